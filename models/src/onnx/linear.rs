//! Convolutions and dense layers.

use sharelens_ops::layers::ConvTranspose;
use sharelens_protocol::ring::kernel::Conv;

use super::attributes::{Frame, Reason};
use super::movement::reshape;
use super::tensor::Array;
use super::{Call, Handled, Importer, Known, Value, normal};
use crate::arrange::Arrange;
use crate::graph::{Op, Parameters, conv_fits};

/// `count` biases, zero where there are none.
fn bias(constant: Option<&Array>, count: usize) -> Reason<Vec<f32>> {
    match constant.map(Array::floats) {
        None => Ok(vec![0.0; count]),
        Some(b) if b.len() == count => Ok(b),
        Some(b) => Err(format!("{} biases for {count} channels", b.len())),
    }
}

/// A kernel in the order of the file with its four extents.
fn kernel(call: &Call<'_>) -> Reason<(Vec<f32>, [usize; 4])> {
    let w = call.constant(1)?;
    let dims: Result<[usize; 4], _> = w.dims.as_slice().try_into();
    let dims =
        dims.map_err(|_| format!("its kernel has shape {:?}; only 2-D kernels are supported", w.dims))?;
    match dims {
        [a, b, c, d] if a * b * c * d > 0 => Ok((w.floats(), dims)),
        _ => Err("its kernel is empty".into()),
    }
}

fn groups(call: &Call<'_>) -> Reason<usize> {
    usize::try_from(call.attributes.int("group", 1))
        .ok()
        .filter(|&g| g > 0)
        .ok_or_else(|| "its group count is not positive".into())
}

pub(super) fn conv(net: &mut Importer, call: &Call<'_>) -> Handled {
    let (x, [n, c_in, h, w]) = call.map(0)?;
    let (weights, [c_out, per_in, kh, kw]) = kernel(call)?;
    let groups = groups(call)?;
    if groups.checked_mul(per_in) != Some(c_in) {
        return Err(format!("its kernel takes {groups} x {per_in} channels, the input has {c_in}"));
    }
    let frame = Frame::new(&call.attributes, [kh, kw], [h, w])?;
    if frame.kernel != [kh, kw] {
        return Err(format!("kernel_shape {:?} for a kernel of {kh}x{kw}", frame.kernel));
    }
    let conv = Conv {
        n,
        h,
        w,
        c_in,
        c_out,
        kernel: [kh, kw],
        stride: frame.stride,
        pad: frame.pad,
        dilation: frame.dilation,
        groups,
    };
    if !conv_fits(&conv) {
        return Err(format!("its sizes are beyond the limits: {conv:?}"));
    }
    net.reserve(conv.weight_len() + c_out)?;
    let mut weight = Vec::with_capacity(weights.len());
    for o in 0..c_out {
        for k in 0..kh * kw {
            weight.extend((0..per_in).map(|i| weights[(o * per_in + i) * kh * kw + k]));
        }
    }
    let bias = bias(call.optional(2)?, c_out)?;
    let dims = vec![n, c_out, conv.out_h(), conv.out_w()];
    let op = Op::Linear { conv, parameters: Parameters { weight, bias } };
    net.push(op, &[x.id], dims).map(Known::Value)
}

pub(super) fn conv_transpose(net: &mut Importer, call: &Call<'_>) -> Handled {
    let (x, [n, c_in, h, w]) = call.map(0)?;
    let (weights, [w_in, per_out, kh, kw]) = kernel(call)?;
    let groups = groups(call)?;
    let a = &call.attributes;
    if w_in != c_in {
        return Err(format!("its kernel takes {w_in} channels, the input has {c_in}"));
    }
    let c_out =
        per_out.checked_mul(groups).filter(|&c| c < 1 << 24).ok_or("it has too many output channels")?;
    let stride = a.pair("strides", [1, 1])?;
    let dilation = a.pair("dilations", [1, 1])?;
    let output_padding = match a.ints("output_padding") {
        None | Some([]) => [0, 0],
        Some(&[y, x]) if (0..1 << 12).contains(&y) && (0..1 << 12).contains(&x) => [y as usize, x as usize],
        Some(p) => return Err(format!("output_padding {p:?} is not two numbers from 0 to 4095")),
    };
    let pad = match a.ints("pads") {
        None | Some([]) => [0; 4],
        Some(p) if p.len() == 4 && p.iter().all(|p| (0..1 << 12).contains(p)) => {
            std::array::from_fn(|i| p[i] as usize)
        }
        Some(p) => return Err(format!("pads {p:?} are not four numbers from 0 to 4095")),
    };
    let mut t = ConvTranspose {
        n,
        h,
        w,
        c_in,
        c_out,
        kernel: [kh, kw],
        stride,
        pad,
        dilation,
        output_padding,
        groups,
    };
    let auto = a.string("auto_pad", "NOTSET");
    let wanted = match (a.ints("output_shape"), auto.as_str()) {
        (Some(s), _) if s.len() >= 2 && s.iter().all(|v| (1..1 << 24).contains(v)) => {
            Some([s[s.len() - 2] as usize, s[s.len() - 1] as usize])
        }
        (Some(s), _) if !s.is_empty() => return Err(format!("output_shape {s:?} is not supported")),
        (_, "SAME_UPPER" | "SAME_LOWER") => Some([h * stride[0], w * stride[1]]),
        (_, "VALID" | "NOTSET" | "") => None,
        (_, other) => return Err(format!("auto_pad {other} is not supported")),
    };
    if let Some(wanted) = wanted {
        t.pad = [0; 4];
        for axis in 0..2 {
            let full = t.out(axis).ok_or("its sizes are beyond the limits")?;
            let Some(total) = full.checked_sub(wanted[axis]) else {
                return Err(format!("it cannot yield {wanted:?} without more output padding"));
            };
            // The larger half goes to the end with SAME_UPPER, to the start otherwise.
            let less = total / 2;
            (t.pad[axis], t.pad[axis + 2]) =
                if auto == "SAME_UPPER" { (less, total - less) } else { (total - less, less) };
        }
    } else if auto == "VALID" {
        t.pad = [0; 4];
    }
    if !t.is_valid() || !conv_fits(&t.conv()) {
        return Err(format!("its sizes are beyond the limits: {t:?}"));
    }
    let (oh, ow) = t.out(0).zip(t.out(1)).ok_or("its output is empty")?;
    net.reserve(t.conv().weight_len() + t.conv().c_out)?;
    // [c_in, c_out / groups, kh, kw] to [c_in, kh, kw, c_out / groups]
    let mut ordered = Vec::with_capacity(weights.len());
    for i in 0..c_in {
        for k in 0..kh * kw {
            ordered.extend((0..per_out).map(|o| weights[(i * per_out + o) * kh * kw + k]));
        }
    }
    let bias = bias(call.optional(2)?, c_out)?;
    let conv = t.conv();
    let parameters = Parameters { weight: t.weights(&ordered), bias: t.bias(&bias) };
    let shape = vec![n, conv.out_h(), conv.out_w(), conv.c_out];
    let phases = net.push_storage(Op::Linear { conv, parameters }, &[x.id], shape)?;
    net.push(Op::Arrange(Arrange::Phases(t)), &[phases], vec![n, c_out, oh, ow]).map(Known::Value)
}

pub(super) fn gemm(net: &mut Importer, call: &Call<'_>) -> Handled {
    let x = call.value(0)?;
    let a = &call.attributes;
    let [rows, k] = x.dims[..] else {
        return Err(format!("its input has shape {:?}, expected [rows, columns]", x.dims));
    };
    if a.int("transA", 0) != 0 && rows != 1 && k != 1 {
        return Err("transA is not supported".into());
    }
    let (rows, k) = if a.int("transA", 0) != 0 { (k, rows) } else { (rows, k) };
    let b = call.constant(1)?;
    let transposed = a.int("transB", 0) != 0;
    let (b_k, cols) = match b.dims[..] {
        [n, k] if transposed => (k, n),
        [k, n] => (k, n),
        _ => return Err(format!("its weights have shape {:?}", b.dims)),
    };
    let alpha = a.float("alpha", 1.0);
    let beta = a.float("beta", 1.0);
    let bias = match call.optional(2)? {
        None => vec![0.0; cols],
        Some(c) => {
            let values = c.floats();
            let last = c.dims.last().copied().unwrap_or(1);
            match values.len() {
                1 => vec![beta * values[0]; cols],
                n if n == cols && last == cols => values.iter().map(|v| beta * v).collect(),
                _ => return Err(format!("a bias of shape {:?} is not supported", c.dims)),
            }
        }
    };
    dense(net, x.id, &b.floats(), [rows, k, b_k, cols], transposed, alpha, bias, vec![rows, cols])
        .map(Known::Value)
}

pub(super) fn mat_mul(net: &mut Importer, call: &Call<'_>) -> Handled {
    let computed = |i: usize| matches!(call.inputs.get(i), Some(Some(Known::Value(_))));
    let stacked = |i: usize| call.constant(i).is_ok_and(|c| c.dims.len() != 2);
    if computed(0) && computed(1) {
        return normal::mat_mul(net, &call.value(0)?, &call.value(1)?);
    }
    if !computed(0) || stacked(1) {
        // A constant on the left, or a stack of them: as if it were computed.
        let side = |i: usize, net: &mut Importer| match call.constant(i) {
            Ok(c) => net.known_value(c),
            Err(_) => call.value(i),
        };
        let (x, y) = (side(0, net)?, side(1, net)?);
        return normal::mat_mul(net, &x, &y);
    }
    let x = call.value(0)?;
    let b = call.constant(1)?;
    let [b_k, cols] = b.dims[..] else {
        return Err(format!("weights of shape {:?} are not supported", b.dims));
    };
    if x.dims.is_empty() {
        return Err(format!("an input of shape {:?} is not supported", x.dims));
    }
    let (k, outer) = x.dims.split_last().ok_or("its input is a scalar")?;
    let (k, rows) = (*k, outer.iter().product());
    let dims = [outer, &[cols]].concat();
    let sizes = [rows, k, b_k, cols];
    if x.dims.len() != 4 {
        return dense(net, x.id, &b.floats(), sizes, false, 1.0, vec![0.0; cols], dims).map(Known::Value);
    }
    // Four axes are stored in another order.
    let flat = reshape(net, &x, vec![rows, k])?;
    let y = dense(net, flat.id, &b.floats(), sizes, false, 1.0, vec![0.0; cols], vec![rows, cols])?;
    reshape(net, &y, dims).map(Known::Value)
}

#[expect(clippy::too_many_arguments, reason = "one place for what Gemm and MatMul share")]
fn dense(
    net: &mut Importer,
    x: usize,
    weights: &[f32],
    [rows, k, b_k, cols]: [usize; 4],
    transposed: bool,
    alpha: f32,
    bias: Vec<f32>,
    dims: Vec<usize>,
) -> Reason<Value> {
    if k != b_k {
        return Err(format!("its weights take {b_k} numbers, the input has {k}"));
    }
    let conv = Conv::dense(rows, k, cols);
    if !conv_fits(&conv) {
        return Err(format!("its sizes are beyond the limits: {rows} x {k} x {cols}"));
    }
    net.reserve(conv.weight_len() + cols)?;
    let at = |o: usize, i: usize| alpha * if transposed { weights[o * k + i] } else { weights[i * cols + o] };
    let weight = (0..cols).flat_map(|o| (0..k).map(move |i| at(o, i))).collect();
    net.push(Op::Linear { conv, parameters: Parameters { weight, bias } }, &[x], dims)
}
