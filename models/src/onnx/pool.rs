//! Pooling.

use sharelens_ops::layers::{MaxPool, Window};

use super::attributes::Frame;
use super::movement::{reshape, transpose};
use super::{Call, Handled, Importer, Known, Value, axis_of};
use crate::graph::{Op, Taps};

fn window(frame: &Frame, axis: usize, input: usize) -> Window {
    Window {
        input,
        kernel: frame.kernel[axis],
        stride: frame.stride[axis],
        dilation: frame.dilation[axis],
        before: frame.pad[axis],
        output: frame.output[axis],
    }
}

fn frame(call: &Call<'_>, size: [usize; 2]) -> Result<Frame, String> {
    if !call.attributes.has("kernel_shape") {
        return Err("its kernel_shape is missing".into());
    }
    Frame::new(&call.attributes, [1, 1], size)
}

/// The entries of all windows.
fn reserve(net: &mut Importer, frame: &Frame) -> Result<(), String> {
    let axis = |i: usize| frame.kernel[i].saturating_mul(frame.output[i]);
    net.reserve(axis(0).saturating_add(axis(1)))
}

pub(super) fn max_pool(net: &mut Importer, call: &Call<'_>) -> Handled {
    let (x, [n, c, h, w]) = call.map(0)?;
    let frame = frame(call, [h, w])?;
    reserve(net, &frame)?;
    let pool = MaxPool { n, c, rows: window(&frame, 0, h), columns: window(&frame, 1, w) };
    if !pool.rows.is_valid() || !pool.columns.is_valid() {
        return Err("a window lies in the padding altogether, or its sizes are beyond the limits".into());
    }
    net.push(Op::MaxPool(pool), &[x.id], vec![n, c, frame.output[0], frame.output[1]]).map(Known::Value)
}

/// Averages along one axis. Windows count the padding or not; what lies beyond even the padding (a window
/// that ceil_mode added) never counts.
fn averages(window: &Window, after: usize, include_pad: bool) -> Taps {
    let padded = window.input + window.before + after;
    let entries = (0..window.output)
        .map(|o| {
            let inside: Vec<usize> = window.entries(o).collect();
            let reach =
                (0..window.kernel).filter(|k| o * window.stride + k * window.dilation < padded).count();
            let count = if include_pad { reach } else { inside.len() };
            let mut taps: Vec<(u32, f32)> = inside.iter().map(|&i| (i as u32, 1.0 / count as f32)).collect();
            taps.resize(window.kernel, (inside.first().copied().unwrap_or(0) as u32, 0.0));
            taps
        })
        .collect();
    Taps { input: window.input, entries }
}

pub(super) fn average_pool(net: &mut Importer, call: &Call<'_>) -> Handled {
    let (x, [n, c, h, w]) = call.map(0)?;
    let frame = frame(call, [h, w])?;
    reserve(net, &frame)?;
    let [rows, columns] = [window(&frame, 0, h), window(&frame, 1, w)];
    if !rows.is_valid() || !columns.is_valid() {
        return Err("a window lies in the padding altogether, or its sizes are beyond the limits".into());
    }
    let include = call.attributes.int("count_include_pad", 0) != 0;
    let op = Op::Weighted {
        rows: averages(&rows, frame.pad[2], include),
        columns: averages(&columns, frame.pad[3], include),
    };
    net.push(op, &[x.id], vec![n, c, frame.output[0], frame.output[1]]).map(Known::Value)
}

pub(super) fn global(net: &mut Importer, call: &Call<'_>) -> Handled {
    let (x, [n, c, h, w]) = call.map(0)?;
    let whole = |input| Window { input, kernel: input, stride: 1, dilation: 1, before: 0, output: 1 };
    let (rows, columns) = (whole(h), whole(w));
    net.reserve(h + w)?;
    if !rows.is_valid() || !columns.is_valid() {
        return Err("its input is too large".into());
    }
    let op = match call.op {
        "GlobalMaxPool" => Op::MaxPool(MaxPool { n, c, rows, columns }),
        _ => Op::Weighted { rows: averages(&rows, 0, false), columns: averages(&columns, 0, false) },
    };
    net.push(op, &[x.id], vec![n, c, 1, 1]).map(Known::Value)
}

/// Mean, sum, largest or least along any axes.
pub(super) fn reduce(net: &mut Importer, call: &Call<'_>) -> Handled {
    let x = call.value(0)?;
    let rank = x.dims.len();
    let mut axes = match call.list("axes", 1)?.filter(|list| !list.is_empty()) {
        Some(list) => list.iter().map(|&a| axis_of(a, rank)).collect::<Result<Vec<_>, _>>()?,
        None if call.attributes.int("noop_with_empty_axes", 0) != 0 => return Ok(Known::Value(x)),
        None => (0..rank).collect(),
    };
    axes.sort_unstable();
    axes.dedup();
    let kept = (0..rank).filter(|i| !axes.contains(i));
    let dims: Vec<usize> = if call.attributes.int("keepdims", 1) != 0 {
        (0..rank).map(|i| if axes.contains(&i) { 1 } else { x.dims[i] }).collect()
    } else {
        kept.clone().map(|i| x.dims[i]).collect()
    };
    let count: usize = axes.iter().map(|&a| x.dims[a]).product();
    net.reserve(count)?;
    // Rows and columns of feature maps stay where they are.
    let (map, [n, h, w, c], out) = if axes == [2, 3] && rank == 4 {
        (x.clone(), [x.dims[0], x.dims[2], x.dims[3], x.dims[1]], vec![x.dims[0], x.dims[1], 1, 1])
    } else {
        let order: Vec<usize> = kept.chain(axes.iter().copied()).collect();
        let outer = x.dims.iter().product::<usize>() / count.max(1);
        let [a, b] = sides(count);
        let turned = transpose(net, &x, &order)?;
        let rows = reshape(net, &turned, vec![outer, 1, a, b])?;
        (rows, [outer, a, b, 1], vec![outer, 1, 1, 1])
    };
    let y = whole_maps(net, &map, [n, h, w, c], call.op, out)?;
    reshape(net, &y, dims).map(Known::Value)
}

/// Rows and columns of as many numbers, as near to a square as they go: sums along two short axes take fewer steps than along
/// a long one, and fractions of their lengths are whole numbers of small denominators.
fn sides(count: usize) -> [usize; 2] {
    let a = (1..=count.isqrt().max(1)).rev().find(|a| count.is_multiple_of(*a)).unwrap_or(1);
    [count / a, a]
}

/// Mean and the like of each row of `[rows, width]`, as `[rows, 1]`.
pub(super) fn along_rows(net: &mut Importer, x: &Value, op: &str) -> Result<Value, String> {
    let [rows, width] = x.dims[..] else { return Err(format!("{:?} is no matrix", x.dims)) };
    let [a, b] = sides(width);
    let map = reshape(net, x, vec![rows, 1, a, b])?;
    let y = whole_maps(net, &map, [rows, a, b, 1], op, vec![rows, 1, 1, 1])?;
    reshape(net, &y, vec![rows, 1])
}

/// Mean and the like of whole maps `[n, h, w, c]`.
fn whole_maps(
    net: &mut Importer,
    map: &Value,
    [n, h, w, c]: [usize; 4],
    op: &str,
    out: Vec<usize>,
) -> Result<Value, String> {
    let whole = |input| Window { input, kernel: input, stride: 1, dilation: 1, before: 0, output: 1 };
    let (rows, columns) = (whole(h), whole(w));
    if !rows.is_valid() || !columns.is_valid() {
        return Err("its input is too large".into());
    }
    let total = |window: &Window| Taps {
        input: window.input,
        entries: vec![(0..window.input as u32).map(|i| (i, 1.0)).collect()],
    };
    let pool = || Op::MaxPool(MaxPool { n, c, rows, columns });
    match op {
        "ReduceMax" => net.push(pool(), &[map.id], out),
        "ReduceMin" => {
            let negative = net.affine_of(map, -1.0, 0.0)?;
            let y = net.push(pool(), &[negative.id], out)?;
            net.affine_of(&y, -1.0, 0.0)
        }
        "ReduceSum" => {
            net.push(Op::Weighted { rows: total(&rows), columns: total(&columns) }, &[map.id], out)
        }
        _ => {
            let (rows, columns) = (averages(&rows, 0, false), averages(&columns, 0, false));
            net.push(Op::Weighted { rows, columns }, &[map.id], out)
        }
    }
}
