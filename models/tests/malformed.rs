//! Files that are wrong in one way each, and files that are wrong at random.

mod common;

use common::Attr::{F, I, Is, S};
use common::{Builder, value};
use proptest::prelude::*;
use prost::Message;
use sharelens_models::onnx::{import, proto::*};
use sharelens_models::{Error, Model, Options, prepare};

const MAP: &[i64] = &[1, 2, 4, 4];

fn conv(opset: i64) -> Builder {
    Builder::new(opset, MAP).weights("w", &[3, 2, 3, 3]).node(
        "Conv",
        &["x", "w"],
        "c",
        &[("pads", Is(&[1, 1, 1, 1]))],
    )
}

fn refused(bytes: &[u8], word: &str) {
    match import(bytes) {
        Ok(_) => panic!("accepted, expected a complaint about {word}"),
        Err(e) => assert!(e.to_string().contains(word), "{e}, expected {word}"),
    }
}

#[test]
fn all_unsupported_nodes_are_listed_at_once() {
    let b = conv(13).node("LSTM", &["c"], "l", &[]).node("Relu", &["l"], "r", &[]);
    let b = b.node("Det", &["c"], "m", &[]).node("Softmax", &["m"], "s", &[]);
    let b = b.node("Pad", &["c"], "p", &[("mode", S("wrap"))]).node("AveragePool", &["c"], "a", &[]);
    match import(&b.build(&["r", "s", "p", "a"])) {
        Err(Error::Unsupported(list)) => {
            let ops: Vec<&str> = list.iter().map(|u| u.op.as_str()).collect();
            assert_eq!(ops, ["LSTM", "Det", "Pad", "AveragePool"]);
            assert!(list.iter().all(|u| !u.why.is_empty() && u.node.contains(&u.op)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_fault_each() {
    refused(b"not onnx at all", "");
    refused(&[], "opset 0");
    refused(&conv(8).build(&["c"]), "opset 8");
    refused(&conv(25).build(&["c"]), "opset 25");
    refused(&conv(13).build(&["nothing"]), "nothing");
    refused(&conv(13).node("Relu", &["ghost"], "r", &[]).build(&["r"]), "ghost");
    refused(&conv(13).weights("w", &[1]).build(&["c"]), "two weights");
    refused(&conv(13).node("Relu", &["x"], "c", &[]).build(&["c"]), "named c");
    let cycle = conv(13).node("Add", &["c", "b"], "a", &[]).node("Relu", &["a"], "b", &[]);
    refused(&cycle.build(&["b"]), "cycle");
    refused(
        &Builder::new(13, MAP)
            .floats("k", &[1], vec![f32::NAN])
            .node("Add", &["x", "k"], "y", &[])
            .build(&["y"]),
        "NaN",
    );
    refused(
        &Builder::new(13, MAP)
            .floats("k", &[1], vec![f32::INFINITY])
            .node("Add", &["x", "k"], "y", &[])
            .build(&["y"]),
        "inf",
    );
    refused(&Builder::new(13, &[1, 3, 0, 8]).node("Relu", &["x"], "y", &[]).build(&["y"]), "open");
    refused(
        &Builder::new(13, &[1, 1 << 20, 1 << 20, 1 << 20]).node("Relu", &["x"], "y", &[]).build(&["y"]),
        "limits",
    );
    let open = Builder::new(13, &[0, 2, 4, 4]).node("Relu", &["x"], "y", &[]);
    assert_eq!(import(&open.build(&["y"])).expect("an open batch is one").input_shape, [1, 4, 4, 2]);
    let mut two = conv(13);
    two.graph.input.push(value("z", MAP));
    refused(&two.build(&["c"]), "2 inputs");
    let mut far = conv(13);
    far.graph.initializer[0].data_location = 1;
    refused(&far.build(&["c"]), "another file");
    let mut short = conv(13);
    short.graph.initializer[0].float_data.pop();
    refused(&short.build(&["c"]), "elements");
    let mut model = conv(13).model(&["c"]);
    model.graph.as_mut().expect("there").sparse_initializer.push(Ignored {});
    refused(&model.encode_to_vec(), "sparse");
    let mut foreign = conv(13);
    foreign.graph.node[0].domain = "com.example".into();
    refused(&foreign.build(&["c"]), "com.example");
}

#[test]
fn attributes_that_make_no_sense() {
    let with = |attributes: &[(&str, common::Attr<'_>)]| {
        Builder::new(13, MAP)
            .weights("w", &[3, 2, 3, 3])
            .node("Conv", &["x", "w"], "c", attributes)
            .build(&["c"])
    };
    for attributes in [
        &[("strides", Is(&[0, 1]))][..],
        &[("strides", Is(&[-1, 1]))],
        &[("strides", Is(&[1]))],
        &[("dilations", Is(&[1 << 40, 1]))],
        &[("dilations", Is(&[5, 5]))],
        &[("pads", Is(&[-1, 0, 0, 0]))],
        &[("pads", Is(&[1 << 30, 0, 0, 0]))],
        &[("pads", Is(&[0, 0]))],
        &[("group", I(0))],
        &[("group", I(2))],
        &[("group", I(i64::MIN))],
        &[("kernel_shape", Is(&[2, 2]))],
        &[("auto_pad", S("SOMEHOW"))],
    ] {
        assert!(matches!(import(&with(attributes)), Err(Error::Unsupported(_))));
    }
    let pool = |attributes: &[(&str, common::Attr<'_>)]| {
        Builder::new(13, MAP).node("MaxPool", &["x"], "c", attributes).build(&["c"])
    };
    for attributes in [
        &[][..],
        &[("kernel_shape", Is(&[9, 9]))],
        &[("kernel_shape", Is(&[2, 2])), ("pads", Is(&[4, 0, 0, 0]))],
    ] {
        assert!(matches!(import(&pool(attributes)), Err(Error::Unsupported(_))));
    }
    let slope = Builder::new(13, MAP).node("LeakyRelu", &["x"], "c", &[("alpha", F(f32::NAN))]).build(&["c"]);
    assert!(matches!(import(&slope), Err(Error::Unsupported(_))));
    // Enlargement step by step, each within its own limits.
    let mut b = Builder::new(13, MAP).floats("s", &[4], vec![1.0, 1.0, 100.0, 100.0]);
    for (from, to) in [("x", "a"), ("a", "b"), ("b", "c")] {
        b = b.node("Resize", &[from, "", "s"], to, &[("mode", S("nearest"))]);
    }
    assert!(import(&b.build(&["c"])).is_err());
}

#[test]
fn weights_that_no_ring_holds_are_refused() {
    let b = Builder::new(13, MAP).floats("k", &[1], vec![1e30]).node("Mul", &["x", "k"], "y", &[]);
    let model = Model::from_bytes(&b.build(&["y"]), None).expect("supported");
    let error = prepare(&model, &[vec![0.5; 32]], &Options::default()).expect_err("no scale is left");
    assert!(error.to_string().contains("Mul_y"), "{error}");
    assert!(prepare(&model, &[], &Options::default()).is_err(), "nothing to calibrate on");
    assert!(prepare(&model, &[vec![0.5; 31]], &Options::default()).is_err(), "of another size");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever happens to a file, import answers; it neither panics nor takes memory without end.
    #[test]
    fn import_survives_damage(cut in 0usize..900, flips in prop::collection::vec((0usize..900, any::<u8>()), 0..6)) {
        let b = conv(13).ints("s", &[1, -1]).node("Relu", &["c"], "r", &[]);
        let b = b.node("MaxPool", &["r"], "m", &[("kernel_shape", Is(&[2, 2])), ("strides", Is(&[2, 2]))]);
        let mut bytes = b.node("Reshape", &["m", "s"], "y", &[]).build(&["y"]);
        for (at, bits) in flips {
            let n = bytes.len();
            bytes[at % n] ^= bits;
        }
        bytes.truncate(bytes.len().saturating_sub(cut / 3 * usize::from(cut % 3 == 0)));
        let _ = import(&bytes);
    }
}
