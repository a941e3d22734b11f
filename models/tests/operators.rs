//! Every operator: floats against another implementation of ONNX, fixed point against floats.

mod common;

use common::Attr::{F, Fs, I, Is, S};
use common::{Builder, numbers, to_storage};
use sharelens_models::finish::Function;
use sharelens_models::{Arithmetic, Model, Options, prepare};
use tract_onnx::prelude::*;

/// Outputs of tract for the same file and input.
fn oracle(bytes: &[u8], dims: &[i64], x: &[f32]) -> Vec<Vec<f32>> {
    let shape: Vec<usize> = dims.iter().map(|&d| d as usize).collect();
    let model = tract_onnx::onnx().model_for_read(&mut &bytes[..]).expect("tract reads it");
    let model = model.into_optimized().and_then(|m| m.into_runnable()).expect("tract plans it");
    let input = Tensor::from_shape(&shape, x).expect("right size");
    let outputs = model.run(tvec!(input.into())).expect("tract runs it");
    outputs
        .iter()
        .map(|o| o.to_plain_array_view::<f32>().expect("floats").iter().copied().collect())
        .collect()
}

/// Holds floats against `expected` and fixed point, in both rings, against floats.
fn compare(name: &str, bytes: &[u8], dims: &[i64], x: &[f32], expected: &[Vec<f32>]) {
    let model = Model::from_bytes(bytes, None).unwrap_or_else(|e| panic!("{name}: {e}"));
    let input = to_storage(x, dims);
    let options = Options { stress: false, ..Options::default() };
    let (prepared, report) =
        prepare(&model, std::slice::from_ref(&input), &options).unwrap_or_else(|e| panic!("{name}: {e}"));
    let float = prepared.float(&input).expect("runs");
    assert_eq!(float.len(), expected.len(), "{name}");
    for (f, e) in float.iter().zip(expected) {
        assert_eq!(f.len(), e.len(), "{name}");
        for (i, (f, &e)) in f.iter().zip(e).enumerate() {
            assert!(
                (f - f64::from(e)).abs() < 1e-4 * f64::from(e.abs().max(1.0)),
                "{name}[{i}]: {f}, expected {e}"
            );
        }
    }
    for arithmetic in
        [prepared.arithmetic().clone(), Arithmetic::usual(4, 3).expect("exists"), Arithmetic::Z64]
    {
        let fixed =
            prepared.twin(&arithmetic).and_then(|t| t.run(&input)).unwrap_or_else(|e| panic!("{name}: {e}"));
        for (f, e) in fixed.iter().flatten().zip(float.iter().flatten()) {
            assert!(
                (f - e).abs() < 0.02,
                "{name} in {arithmetic}: {f}, expected {e} (error found: {})",
                report.error
            );
        }
    }
}

fn against_tract(name: &str, builder: Builder, dims: &[i64], outputs: &[&str]) {
    let bytes = builder.build(outputs);
    let x = numbers(dims.iter().product::<i64>() as usize, 7);
    let expected = oracle(&bytes, dims, &x);
    compare(name, &bytes, dims, &x, &expected);
}

type Attributes<'a> = &'a [(&'a str, common::Attr<'a>)];

const MAP: &[i64] = &[1, 4, 7, 6];

fn map(opset: i64) -> Builder {
    Builder::new(opset, MAP)
}

#[test]
fn convolutions() {
    let cases: &[(&str, &[i64], Attributes<'_>)] = &[
        ("plain", &[5, 4, 3, 3], &[]),
        ("padded", &[5, 4, 3, 2], &[("pads", Is(&[1, 0, 2, 1])), ("strides", Is(&[2, 1]))]),
        ("dilated", &[3, 4, 2, 3], &[("dilations", Is(&[2, 2])), ("pads", Is(&[1, 1, 1, 1]))]),
        ("grouped", &[6, 2, 3, 3], &[("group", I(2)), ("pads", Is(&[1, 1, 1, 1]))]),
        ("depthwise", &[8, 1, 3, 3], &[("group", I(4)), ("strides", Is(&[2, 2]))]),
        ("same upper", &[3, 4, 2, 4], &[("auto_pad", S("SAME_UPPER")), ("strides", Is(&[2, 2]))]),
        ("same lower", &[3, 4, 2, 4], &[("auto_pad", S("SAME_LOWER"))]),
        ("valid", &[3, 4, 2, 2], &[("auto_pad", S("VALID"))]),
    ];
    for (name, dims, attributes) in cases {
        for opset in [9, 13, 17, 21] {
            let b = map(opset).weights("w", dims).weights("b", &dims[..1]);
            let b = b.node("Conv", &["x", "w", "b"], "y", attributes);
            against_tract(&format!("Conv {name}, opset {opset}"), b, MAP, &["y"]);
        }
    }
}

/// A square transposed convolution of one image.
struct Scatter {
    input: [usize; 3],
    outputs: usize,
    kernel: usize,
    stride: usize,
    pad: usize,
    extra: usize,
}

/// The definition of a transposed convolution, as a scatter over `[c, h, w]`.
fn scatter(t: &Scatter, x: &[f32], w: &[f32], b: &[f32]) -> Vec<f32> {
    let &Scatter { input: [c, h, wd], outputs: o, kernel: k, stride: s, pad: p, extra } = t;
    let (oh, ow) = ((h - 1) * s + k + extra - 2 * p, (wd - 1) * s + k + extra - 2 * p);
    let mut out: Vec<f32> = b.iter().flat_map(|&b| vec![b; oh * ow]).collect();
    for (i, y, xx, j) in itertools4(c, h, wd, o) {
        for (ky, kx) in (0..k).flat_map(|a| (0..k).map(move |b| (a, b))) {
            let (oy, ox) = ((y * s + ky) as i64 - p as i64, (xx * s + kx) as i64 - p as i64);
            if oy >= 0 && ox >= 0 && oy < oh as i64 && ox < ow as i64 {
                out[(j * oh + oy as usize) * ow + ox as usize] +=
                    x[(i * h + y) * wd + xx] * w[((i * o + j) * k + ky) * k + kx];
            }
        }
    }
    out
}

fn itertools4(a: usize, b: usize, c: usize, d: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..a * b * c * d).map(move |i| (i / (b * c * d), i / (c * d) % b, i / d % c, i % d))
}

#[test]
fn transposed_convolutions() {
    for (k, s, p, extra) in
        [(2, 2, 0, 0), (3, 2, 1, 1), (4, 2, 1, 0), (3, 1, 1, 0), (3, 3, 0, 0), (1, 2, 0, 1)]
    {
        let (pads, strides, extras) = ([p as i64; 4], [s as i64; 2], [extra as i64; 2]);
        let b = map(13).weights("w", &[4, 3, k, k]).weights("b", &[3]).node(
            "ConvTranspose",
            &["x", "w", "b"],
            "y",
            &[("pads", Is(&pads)), ("strides", Is(&strides)), ("output_padding", Is(&extras))],
        );
        let x = numbers(4 * 7 * 6, 7);
        let weights = |i: usize| b.graph.initializer[i].float_data.clone();
        let shape = Scatter { input: [4, 7, 6], outputs: 3, kernel: k as usize, stride: s, pad: p, extra };
        let expected = scatter(&shape, &x, &weights(0), &weights(1));
        compare(
            &format!("ConvTranspose k {k} s {s} p {p} extra {extra}"),
            &b.build(&["y"]),
            MAP,
            &x,
            &[expected],
        );
    }
}

#[test]
fn dense_layers() {
    let flat = |opset| map(opset).node("Flatten", &["x"], "f", &[]);
    let gemm = flat(9).weights("w", &[5, 168]).weights("b", &[5]);
    against_tract("Gemm", gemm.node("Gemm", &["f", "w", "b"], "y", &[("transB", I(1))]), MAP, &["y"]);
    let gemm = flat(13).weights("w", &[168, 5]).weights("b", &[1, 5]);
    let attributes = [("alpha", F(0.5)), ("beta", F(2.0))];
    against_tract("Gemm", gemm.node("Gemm", &["f", "w", "b"], "y", &attributes), MAP, &["y"]);
    let product = flat(17).weights("w", &[168, 5]).weights("b", &[5]);
    let product = product.node("MatMul", &["f", "w"], "m", &[]).node("Add", &["m", "b"], "y", &[]);
    against_tract("MatMul", product, MAP, &["y"]);
}

#[test]
fn normalisation_folds_or_stays() {
    let statistics = |b: Builder| {
        b.weights("s", &[4]).weights("t", &[4]).weights("m", &[4]).floats("v", &[4], vec![0.5, 1.0, 2.0, 0.1])
    };
    let bn = |b: Builder, x: &str, y: &str| {
        b.node("BatchNormalization", &[x, "s", "t", "m", "v"], y, &[("epsilon", F(1e-3))])
    };
    // After a convolution, alone, before an unpadded one, before a padded one.
    let conv =
        |b: Builder, x: &str, y: &str, pad: i64| b.node("Conv", &[x, "w"], y, &[("pads", Is(&[pad; 4]))]);
    let base = || statistics(map(15)).weights("w", &[4, 4, 3, 3]);
    against_tract("bn after conv", bn(conv(base(), "x", "c", 1), "c", "y"), MAP, &["y"]);
    against_tract("bn alone", bn(base(), "x", "y"), MAP, &["y"]);
    against_tract("bn before conv", conv(bn(base(), "x", "c"), "c", "y", 0), MAP, &["y"]);
    against_tract("bn before padded conv", conv(bn(base(), "x", "c"), "c", "y", 1), MAP, &["y"]);
    // Read twice, so that it must not be folded into the convolution.
    let both = bn(conv(base(), "x", "c", 1), "c", "n").node("Add", &["c", "n"], "y", &[]);
    against_tract("bn beside conv", both, MAP, &["y"]);
    let phases = statistics(map(13)).weights("w", &[4, 4, 2, 2]).node(
        "ConvTranspose",
        &["x", "w"],
        "c",
        &[("strides", Is(&[2, 2]))],
    );
    let bytes = bn(phases, "c", "y").build(&["y"]);
    let folded = Model::from_bytes(&bytes, None).expect("supported");
    let mut graph = folded.graph().clone();
    assert_eq!(sharelens_models::passes::simplify(&mut graph).expect("valid").folded, 1);
}

#[test]
fn arithmetic() {
    let c = |b: Builder| b.floats("c", &[4, 1, 1], vec![0.5, -2.0, 1.5, 0.25]).floats("k", &[1], vec![0.75]);
    for op in ["Add", "Sub", "Mul", "Div"] {
        against_tract(op, c(map(13)).node(op, &["x", "c"], "y", &[]), MAP, &["y"]);
        against_tract(op, c(map(13)).node(op, &["x", "k"], "y", &[]), MAP, &["y"]);
        if op != "Div" {
            against_tract(op, c(map(13)).node(op, &["c", "x"], "y", &[]), MAP, &["y"]);
        }
    }
    let whole =
        map(13).weights("c", &[1, 4, 7, 6]).node("Mul", &["x", "c"], "m", &[]).node("Neg", &["m"], "y", &[]);
    against_tract("Mul by a map", whole, MAP, &["y"]);
    let two = map(13).weights("w", &[4, 4, 1, 1]).node("Conv", &["x", "w"], "c", &[]);
    let two = two.node("Relu", &["x"], "r", &[]).node("Add", &["c", "r"], "a", &[]).node(
        "Sub",
        &["a", "x"],
        "y",
        &[],
    );
    against_tract("Add and Sub", two, MAP, &["y"]);
    let spread = map(13).node("GlobalAveragePool", &["x"], "g", &[]).node("Add", &["x", "g"], "y", &[]);
    against_tract("Add that spreads, at scales that differ", spread, MAP, &["y"]);
}

#[test]
fn activations() {
    let conv = |b: Builder| b.weights("w", &[4, 4, 1, 1]).node("Conv", &["x", "w"], "c", &[]);
    against_tract("Relu", conv(map(9)).node("Relu", &["c"], "y", &[]), MAP, &["y"]);
    against_tract(
        "LeakyRelu",
        conv(map(9)).node("LeakyRelu", &["c"], "y", &[("alpha", F(0.2))]),
        MAP,
        &["y"],
    );
    let clip = conv(map(9)).node("Clip", &["c"], "y", &[("min", F(-0.4)), ("max", F(0.6))]);
    against_tract("Clip by attributes", clip, MAP, &["y"]);
    let clip = conv(map(13)).floats("lo", &[], vec![0.0]).floats("hi", &[], vec![0.5]);
    against_tract("Clip by inputs", clip.node("Clip", &["c", "lo", "hi"], "y", &[]), MAP, &["y"]);
    let clip = conv(map(13)).floats("hi", &[], vec![0.5]);
    against_tract("Clip above", clip.node("Clip", &["c", "", "hi"], "y", &[]), MAP, &["y"]);
    let prelu = conv(map(13)).floats("a", &[4, 1, 1], vec![0.1, -0.5, 0.9, 0.0]);
    against_tract("PRelu", prelu.node("PRelu", &["c", "a"], "y", &[]), MAP, &["y"]);
}

#[test]
fn pools() {
    let cases: &[(&str, &str, Attributes<'_>)] = &[
        ("MaxPool", "2x2", &[("kernel_shape", Is(&[2, 2])), ("strides", Is(&[2, 2]))]),
        (
            "MaxPool",
            "3x3 padded",
            &[("kernel_shape", Is(&[3, 3])), ("strides", Is(&[2, 2])), ("pads", Is(&[1, 1, 1, 1]))],
        ),
        (
            "MaxPool",
            "rounded up",
            &[("kernel_shape", Is(&[2, 2])), ("strides", Is(&[2, 2])), ("ceil_mode", I(1))],
        ),
        ("MaxPool", "dilated", &[("kernel_shape", Is(&[2, 3])), ("dilations", Is(&[2, 2]))]),
        ("MaxPool", "same", &[("kernel_shape", Is(&[3, 2])), ("auto_pad", S("SAME_UPPER"))]),
        ("AveragePool", "2x2", &[("kernel_shape", Is(&[2, 2])), ("strides", Is(&[2, 2]))]),
        ("AveragePool", "3x3 padded", &[("kernel_shape", Is(&[3, 3])), ("pads", Is(&[1, 1, 1, 1]))]),
        (
            "AveragePool",
            "counting the padding",
            &[("kernel_shape", Is(&[3, 3])), ("pads", Is(&[1, 1, 1, 1])), ("count_include_pad", I(1))],
        ),
    ];
    for (op, name, attributes) in cases {
        let conv = map(12).weights("w", &[4, 4, 1, 1]).node("Conv", &["x", "w"], "c", &[]);
        against_tract(&format!("{op} {name}"), conv.node(op, &["c"], "y", attributes), MAP, &["y"]);
    }
    let relu = map(12).weights("w", &[4, 4, 3, 3]).node("Conv", &["x", "w"], "c", &[]).node(
        "Relu",
        &["c"],
        "r",
        &[],
    );
    let pool = relu.node("MaxPool", &["r"], "y", &[("kernel_shape", Is(&[2, 2]))]);
    against_tract("MaxPool after Relu", pool, MAP, &["y"]);
    for op in ["GlobalAveragePool", "GlobalMaxPool"] {
        let b = map(13).node(op, &["x"], "g", &[]).node("Flatten", &["g"], "f", &[]);
        let b = b.weights("w", &[4, 3]).node("MatMul", &["f", "w"], "y", &[]);
        against_tract(op, b, MAP, &["y"]);
    }
    let mean = map(13).node("ReduceMean", &["x"], "y", &[("axes", Is(&[2, 3])), ("keepdims", I(0))]);
    against_tract("ReduceMean", mean, MAP, &["y"]);
}

#[test]
fn movements() {
    let concat =
        map(13).node("Relu", &["x"], "r", &[]).node("Concat", &["x", "r", "x"], "y", &[("axis", I(1))]);
    against_tract("Concat of channels", concat, MAP, &["y"]);
    let concat = map(13).node("Concat", &["x", "x"], "y", &[("axis", I(-1))]);
    against_tract("Concat of columns", concat, MAP, &["y"]);
    let reshape = map(13).ints("s", &[0, 2, -1]).node("Reshape", &["x", "s"], "y", &[]);
    against_tract("Reshape", reshape, MAP, &["y"]);
    let back = map(13).ints("s", &[1, 2, 2, 7, 6]).ints("t", &[1, 4, 7, 6]);
    let back = back.node("Reshape", &["x", "s"], "r", &[]);
    let back = back.node("Transpose", &["r"], "p", &[("perm", Is(&[0, 2, 1, 3, 4]))]).node(
        "Reshape",
        &["p", "t"],
        "y",
        &[],
    );
    against_tract("channel shuffle", back, MAP, &["y"]);
    let turned = map(13).node("Transpose", &["x"], "y", &[("perm", Is(&[0, 3, 1, 2]))]);
    against_tract("Transpose", turned, MAP, &["y"]);
    let squeezed = map(11).node("Unsqueeze", &["x"], "u", &[("axes", Is(&[1]))]).node(
        "Squeeze",
        &["u"],
        "y",
        &[("axes", Is(&[0]))],
    );
    against_tract("Unsqueeze and Squeeze by attributes", squeezed, MAP, &["y"]);
    let squeezed = map(13).ints("a", &[1]).ints("b", &[0]);
    let squeezed = squeezed.node("Unsqueeze", &["x", "a"], "u", &[]).node("Squeeze", &["u", "b"], "y", &[]);
    against_tract("Unsqueeze and Squeeze by inputs", squeezed, MAP, &["y"]);
    for mode in ["constant", "edge", "reflect"] {
        let pads = [0, 0, 1, 2, 0, 0, 0, 1];
        let pad = map(10).node("Pad", &["x"], "y", &[("pads", Is(&pads)), ("mode", S(mode))]);
        against_tract(&format!("Pad {mode} by attributes"), pad, MAP, &["y"]);
        let pad = map(13).ints("p", &pads).node("Pad", &["x", "p"], "y", &[("mode", S(mode))]);
        against_tract(&format!("Pad {mode} by inputs"), pad, MAP, &["y"]);
    }
    let slice = map(9).node(
        "Slice",
        &["x"],
        "y",
        &[("starts", Is(&[1, 0])), ("ends", Is(&[9999, -1])), ("axes", Is(&[2, 3]))],
    );
    against_tract("Slice by attributes", slice, MAP, &["y"]);
    let slice = map(13).ints("s", &[1, -1]).ints("e", &[7, -7]).ints("a", &[2, 3]).ints("t", &[2, -2]);
    against_tract("Slice by inputs", slice.node("Slice", &["x", "s", "e", "a", "t"], "y", &[]), MAP, &["y"]);
    let same = map(13).node("Identity", &["x"], "i", &[]).node("Dropout", &["i"], "d", &[]).node(
        "Relu",
        &["d"],
        "y",
        &[],
    );
    against_tract("Identity and Dropout", same, MAP, &["y"]);
}

#[test]
fn shapes_computed_as_exporters_write_them() {
    let b = map(13).ints("zero", &[0]).ints("minus", &[-1]).weights("w", &[168, 3]);
    let b = b.node("Shape", &["x"], "shape", &[]).node("Gather", &["shape", "zero"], "n", &[]);
    let b = b.node("Concat", &["n", "minus"], "target", &[("axis", I(0))]);
    let b = b.node("Reshape", &["x", "target"], "f", &[]).node("MatMul", &["f", "w"], "y", &[]);
    against_tract("Shape, Gather, Concat, Reshape", b, MAP, &["y"]);
}

#[test]
fn enlargements() {
    let nearest = map(9).floats("s", &[4], vec![1.0, 1.0, 2.0, 3.0]);
    let nearest = nearest.node("Upsample", &["x", "s"], "y", &[("mode", S("nearest"))]);
    let bytes = nearest.build(&["y"]);
    let x = numbers(4 * 7 * 6, 7);
    let expected: Vec<f32> =
        (0..4 * 14 * 18).map(|i| x[(i / (14 * 18) * 7 + i / 18 % 14 / 2) * 6 + i % 18 / 3]).collect();
    compare("Upsample", &bytes, MAP, &x, &[expected]);
    for (coordinates, rounding) in [
        ("asymmetric", "floor"),
        ("half_pixel", "round_prefer_floor"),
        ("align_corners", "round_prefer_ceil"),
    ] {
        let b = map(13).floats("s", &[4], vec![1.0, 1.0, 2.0, 1.5]);
        let attributes = [
            ("mode", S("nearest")),
            ("coordinate_transformation_mode", S(coordinates)),
            ("nearest_mode", S(rounding)),
        ];
        let b = b.node("Resize", &["x", "", "s"], "y", &attributes);
        compare_resize(
            &format!("Resize nearest {coordinates} {rounding}"),
            b,
            coordinates,
            Some(rounding),
            [14, 9],
        );
    }
    for coordinates in ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"] {
        for (scales, size) in [([2.0, 2.0], [14, 12]), ([1.5, 0.5], [10, 3])] {
            let b = map(13).floats("s", &[4], vec![1.0, 1.0, scales[0], scales[1]]);
            let attributes = [("mode", S("linear")), ("coordinate_transformation_mode", S(coordinates))];
            let b = b.node("Resize", &["x", "", "s"], "y", &attributes);
            if coordinates == "align_corners" && scales[0] == 1.5 {
                // Ten or ten and a half rows: runtimes do not agree.
                let e = Model::from_bytes(&b.build(&["y"]), None)
                    .expect_err("seven rows by one and a half")
                    .to_string();
                assert!(e.contains("aligned corners"), "{e}");
                continue;
            }
            compare_resize(&format!("Resize linear {coordinates}"), b, coordinates, None, size);
        }
    }
    let sizes = map(13).ints("z", &[1, 4, 14, 12]).node(
        "Resize",
        &["x", "", "", "z"],
        "y",
        &[("mode", S("nearest"))],
    );
    compare_resize("Resize by sizes", sizes, "half_pixel", Some("round_prefer_floor"), [14, 12]);
}

/// The definition of ONNX, position by position.
fn compare_resize(name: &str, b: Builder, coordinates: &str, rounding: Option<&str>, [oh, ow]: [usize; 2]) {
    let scale = |axis: usize| match b.graph.initializer[0].float_data.get(axis + 2) {
        Some(&s) => f64::from(s),
        None => [oh as f64 / 7.0, ow as f64 / 6.0][axis],
    };
    let position = |o: usize, axis: usize| {
        let (o, from, to, s) = (o as f64, [7.0, 6.0][axis], [oh as f64, ow as f64][axis], scale(axis));
        match coordinates {
            "asymmetric" => o / s,
            "align_corners" => o * (from - 1.0) / (to - 1.0),
            _ => (o + 0.5) / s - 0.5,
        }
    };
    let x = numbers(4 * 7 * 6, 7);
    let at = |c: usize, y: f64, xx: f64| {
        let (y, xx) = (y.clamp(0.0, 6.0) as usize, xx.clamp(0.0, 5.0) as usize);
        f64::from(x[(c * 7 + y) * 6 + xx])
    };
    let mut expected = Vec::new();
    for (c, oy, ox, _) in itertools4(4, oh, ow, 1) {
        let (y, xx) = (position(oy, 0), position(ox, 1));
        let round = |v: f64| match rounding {
            Some("floor") => v.floor(),
            Some("round_prefer_ceil") => (v + 0.5).floor(),
            _ => (v - 0.5).ceil(),
        };
        expected.push(match rounding {
            Some(_) => at(c, round(y), round(xx)),
            None => {
                let (y, xx) = (y.clamp(0.0, 6.0), xx.clamp(0.0, 5.0));
                let (fy, fx) = (y - y.floor(), xx - xx.floor());
                let row = |r: f64| at(c, r, xx.floor()) * (1.0 - fx) + at(c, r, xx.floor() + 1.0) * fx;
                row(y.floor()) * (1.0 - fy) + row(y.floor() + 1.0) * fy
            }
        } as f32);
    }
    compare(name, &b.build(&["y"]), MAP, &x, &[expected]);
}

#[test]
fn several_outputs_and_a_final_softmax() {
    let b = map(13).weights("w", &[2, 4, 1, 1]).node("Conv", &["x", "w"], "c", &[]).node(
        "Relu",
        &["c"],
        "r",
        &[],
    );
    against_tract("two outputs", b, MAP, &["c", "r"]);
    let b = map(13).node("GlobalAveragePool", &["x"], "g", &[]).node("Flatten", &["g"], "f", &[]);
    let model =
        Model::from_bytes(&b.node("Softmax", &["f"], "y", &[]).build(&["y"]), None).expect("supported");
    let output = &model.graph().outputs[0];
    let over = sharelens_models::finish::Finish::along(Function::Softmax, &[1, 4], 1, false);
    assert_eq!(output.finish.as_ref(), Some(&over));
    assert_eq!(output.original_shape, [1, 4]);
}

#[test]
fn scales_given_as_an_attribute() {
    let b = map(7).node("Upsample", &["x"], "y", &[("scales", Fs(&[1.0, 1.0, 2.0, 2.0]))]);
    assert!(Model::from_bytes(&b.build(&["y"]), None).unwrap_err().to_string().contains("opset 7"));
}
