//! Operators that only move numbers.

use sharelens_ops::ZERO;
use sharelens_ops::layers::Select;

use super::attributes::Reason;
use super::tensor::{Array, Data};
use super::{Call, Handled, Importer, Known, Value, axis_of, constants, storage, storage_axes};
use crate::arrange::Arrange;
use crate::finish::Function;
use crate::graph::{MAX_ELEMENTS, MAX_RANK, Op, elements};

pub(super) fn movement(net: &mut Importer, call: &Call<'_>) -> Handled {
    match call.op {
        "Flatten" => {
            let x = call.value(0)?;
            let rank = x.dims.len();
            let axis = match call.attributes.int("axis", 1) {
                a if a == rank as i64 => rank,
                a => axis_of(a, rank)?,
            };
            let (outer, inner) = x.dims.split_at(axis);
            let dims = vec![outer.iter().product(), inner.iter().product()];
            reshape(net, &x, dims).map(Known::Value)
        }
        "Reshape" => {
            let x = call.value(0)?;
            let wanted = call.list("shape", 1)?.ok_or("its shape is missing")?;
            let dims = resolve(&x.dims, &wanted, call.attributes.int("allowzero", 0) != 0)?;
            reshape(net, &x, dims).map(Known::Value)
        }
        "Squeeze" => {
            let x = call.value(0)?;
            let rank = x.dims.len();
            let axes = match call.list("axes", 1)? {
                Some(list) => list.iter().map(|&a| axis_of(a, rank)).collect::<Reason<Vec<_>>>()?,
                None => (0..rank).filter(|&i| x.dims[i] == 1).collect(),
            };
            if axes.iter().any(|&a| x.dims[a] != 1) {
                return Err(format!("axes {axes:?} of {:?} are not all of extent 1", x.dims));
            }
            let dims = (0..rank).filter(|i| !axes.contains(i)).map(|i| x.dims[i]).collect();
            reshape(net, &x, dims).map(Known::Value)
        }
        "Unsqueeze" => {
            let x = call.value(0)?;
            let list = call.list("axes", 1)?.ok_or("its axes are missing")?;
            let dims = unsqueezed(&x.dims, &list)?;
            reshape(net, &x, dims).map(Known::Value)
        }
        "Transpose" => {
            let x = call.value(0)?;
            let rank = x.dims.len();
            let permutation = match call.attributes.ints("perm") {
                Some(p) => p.iter().map(|&a| axis_of(a, rank)).collect::<Reason<Vec<_>>>()?,
                None => (0..rank).rev().collect(),
            };
            transpose(net, &x, &permutation).map(Known::Value)
        }
        "Concat" => concat(net, call),
        "Pad" => pad(net, call),
        "Slice" => slice(net, call),
        "Gather" => {
            let x = call.value(0)?;
            let axis = axis_of(call.attributes.int("axis", 0), x.dims.len())?;
            let wanted = call.constant(1)?;
            let list = wanted.integers().ok_or("its indices are not integers")?;
            let picked: Reason<Vec<u32>> =
                list.iter().map(|&i| axis_of(i, x.dims[axis]).map(|i| i as u32)).collect();
            let mut dims = x.dims.clone();
            dims[axis] = list.len();
            let out = select(net, &x, axis, picked?, dims.clone())?;
            dims.splice(axis..=axis, wanted.dims.iter().copied());
            if dims.len() > MAX_RANK {
                return Err(format!("its output would have shape {dims:?}"));
            }
            reshape(net, &out, dims).map(Known::Value)
        }
        "Expand" => {
            let x = call.value(0)?;
            let wanted = call.list("shape", 1)?.ok_or("its shape is missing")?;
            let wanted: Reason<Vec<usize>> = wanted
                .iter()
                .map(|&d| {
                    usize::try_from(d).ok().filter(|d| *d > 0).ok_or_else(|| format!("shape {wanted:?}"))
                })
                .collect();
            let dims = broadcast(&x.dims, &wanted?).ok_or("it does not spread over its shape")?;
            expand(net, &x, dims).map(Known::Value)
        }
        "Tile" => {
            let mut x = call.value(0)?;
            let times = call.list("repeats", 1)?.ok_or("its repeats are missing")?;
            if times.len() != x.dims.len() || times.iter().any(|t| !(1..1 << 20).contains(t)) {
                return Err(format!("{times:?} times {:?}", x.dims));
            }
            for (axis, &times) in times.iter().enumerate().filter(|(_, t)| **t > 1) {
                let d = x.dims[axis];
                let total =
                    d.checked_mul(times as usize).filter(|n| *n <= MAX_ELEMENTS).ok_or("it is too large")?;
                let mut dims = x.dims.clone();
                dims[axis] = total;
                x = select(net, &x, axis, (0..total).map(|i| (i % d) as u32).collect(), dims)?;
            }
            Ok(Known::Value(x))
        }
        "DepthToSpace" | "SpaceToDepth" => {
            let (x, [n, c, h, w]) = call.map(0)?;
            let b = usize::try_from(call.attributes.int("blocksize", 0)).unwrap_or(0);
            let space = call.op == "DepthToSpace";
            let fits = if space {
                c.is_multiple_of((b * b).max(1))
            } else {
                h.is_multiple_of(b.max(1)) && w.is_multiple_of(b.max(1))
            };
            if !(1..1 << 10).contains(&b) || !fits {
                return Err(format!("blocks of {b} in {:?}", x.dims));
            }
            let (parts, permutation, dims) = if space {
                let c = c / (b * b);
                let dims = vec![n, c, h * b, w * b];
                match call.attributes.string("mode", "DCR").as_str() {
                    "DCR" => (vec![n, b, b, c, h, w], [0, 3, 4, 1, 5, 2], dims),
                    "CRD" => (vec![n, c, b, b, h, w], [0, 1, 4, 2, 5, 3], dims),
                    other => return Err(format!("mode {other} is not supported")),
                }
            } else {
                let order = match call.attributes.string("mode", "DCR").as_str() {
                    "DCR" => [0, 3, 5, 1, 2, 4],
                    "CRD" => [0, 1, 3, 5, 2, 4],
                    other => return Err(format!("mode {other} is not supported")),
                };
                (vec![n, c, h / b, b, w / b, b], order, vec![n, c * b * b, h / b, w / b])
            };
            let x = reshape(net, &x, parts)?;
            let x = transpose(net, &x, &permutation)?;
            reshape(net, &x, dims).map(Known::Value)
        }
        // Floats like computed values, which are floats.
        "CastLike" => match call.inputs.first() {
            Some(Some(Known::Constant(c))) => {
                Ok(Known::Constant(Array { dims: c.dims.clone(), data: Data::Floats(c.floats()) }))
            }
            _ => match call.constant(1) {
                Ok(like) if like.integers().is_some() => Err("to integers is not supported".into()),
                _ => call.value(0).map(Known::Value),
            },
        },
        "Cast" => {
            let x = call.value(0)?;
            let index = x.finish.as_ref().is_some_and(|f| f.function == Function::ArgMax);
            match call.attributes.int("to", 1) {
                1 | 10 | 11 | 16 => Ok(Known::Value(x)),
                // Indices are whole numbers.
                3 | 5 | 6 | 7 | 12 | 13 if index => Ok(Known::Value(x)),
                to => Err(format!(
                    "casting computed numbers to type {to}, which is not of floats, is not supported"
                )),
            }
        }
        _ => Err("it is supported on constants only".into()),
    }
}

/// Axes in another order: axis `i` of the result is axis `permutation[i]`.
pub(super) fn transpose(net: &mut Importer, x: &Value, permutation: &[usize]) -> Reason<Value> {
    let rank = x.dims.len();
    let mut sorted = permutation.to_vec();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..rank) {
        return Err(format!("{permutation:?} is not a permutation"));
    }
    if permutation.iter().copied().eq(0..rank) {
        return Ok(x.clone());
    }
    let dims = permutation.iter().map(|&a| x.dims[a]).collect();
    // Storage axis i of the output is axis out[i] of the file's order, hence axis permutation[out[i]]
    // of the input's, which is stored at the place found here.
    let stored = storage_axes(rank);
    let place = |axis: usize| stored.iter().position(|&a| a == axis).unwrap_or(axis);
    let permutation = stored.iter().map(|&a| place(permutation[a])).collect();
    net.push(Op::Arrange(Arrange::Transpose { permutation }), &[x.id], dims)
}

/// The value repeated along axes of one position, and along new ones in front.
pub(super) fn expand(net: &mut Importer, x: &Value, dims: Vec<usize>) -> Reason<Value> {
    if x.dims == dims {
        return Ok(x.clone());
    }
    elements(&dims).ok_or("its output is too large")?;
    let lead = dims.len().checked_sub(x.dims.len()).ok_or("its output has fewer axes")?;
    let padded = [&vec![1; lead], &x.dims[..]].concat();
    let x = reshape(net, x, padded)?;
    if x.dims == dims {
        return Ok(x);
    }
    net.reserve(dims.iter().sum())?;
    let (from, to) = (storage(&x.dims), storage(&dims));
    let axis = |(&f, &t): (&usize, &usize)| (0..t as u32).map(|i| if f == 1 { 0 } else { i }).collect();
    let axes = from.iter().zip(&to).map(axis).collect();
    net.push(Op::Arrange(Arrange::Select(Select { axes })), &[x.id], dims)
}

/// The parts of a value, or of a constant, along an axis.
pub(super) fn split(net: &mut Importer, call: &Call<'_>, outputs: usize) -> Reason<Vec<Known>> {
    let dims = match call.inputs.first() {
        Some(Some(Known::Constant(c))) => c.dims.clone(),
        _ => call.value(0)?.dims,
    };
    let axis = axis_of(call.attributes.int("axis", 0), dims.len())?;
    let d = dims[axis];
    let sizes = match call.list("split", 1)? {
        Some(list) => list
            .iter()
            .map(|&n| usize::try_from(n).map_err(|_| format!("parts of {list:?}")))
            .collect::<Reason<Vec<_>>>()?,
        None => {
            // All alike, but for the last.
            let count =
                usize::try_from(call.attributes.int("num_outputs", outputs as i64)).unwrap_or(0).max(1);
            let size = d.div_ceil(count);
            (0..count).map(|i| size.min(d.saturating_sub(i * size))).collect()
        }
    };
    if sizes.len() != outputs
        || sizes.iter().try_fold(0usize, |a, n| a.checked_add(*n)) != Some(d)
        || sizes.contains(&0)
    {
        return Err(format!("{d} in {outputs} parts of {sizes:?}"));
    }
    let mut from = 0;
    let mut parts = Vec::with_capacity(outputs);
    for size in sizes {
        parts.push(match call.inputs.first() {
            Some(Some(Known::Constant(c))) => Known::Constant(constants::part(c, axis, from, from + size)?),
            _ => {
                let mut dims = dims.clone();
                dims[axis] = size;
                let picked = (from..from + size).map(|i| i as u32).collect();
                Known::Value(select(net, &call.value(0)?, axis, picked, dims)?)
            }
        });
        from += size;
    }
    Ok(parts)
}

/// The same numbers in the file's order under another shape.
pub(super) fn reshape(net: &mut Importer, x: &Value, dims: Vec<usize>) -> Reason<Value> {
    let total: usize = x.dims.iter().product();
    if product(&dims) != Some(total) {
        return Err(format!("from {:?} to {dims:?}", x.dims));
    }
    if dims == x.dims {
        return Ok(x.clone());
    }
    let mut id = x.id;
    // A feature map has to go back to the file's order first, unless both orders are one.
    if let [n, c, h, w] = x.dims[..]
        && c > 1
        && h * w > 1
    {
        id = net.push_storage(
            Op::Arrange(Arrange::Transpose { permutation: vec![0, 3, 1, 2] }),
            &[id],
            vec![n, c, h, w],
        )?;
    }
    match dims[..] {
        [n, c, h, w] if c > 1 && h * w > 1 => {
            let id = net.push_storage(Op::Arrange(Arrange::Reshape), &[id], vec![n, c, h, w])?;
            net.push(Op::Arrange(Arrange::Transpose { permutation: vec![0, 2, 3, 1] }), &[id], dims)
        }
        _ => net.push(Op::Arrange(Arrange::Reshape), &[id], dims),
    }
}

pub(super) fn resolve(dims: &[usize], wanted: &[i64], allow_zero: bool) -> Reason<Vec<usize>> {
    let total: usize = dims.iter().product();
    let mut out = Vec::new();
    let mut open = None;
    for (i, &w) in wanted.iter().enumerate() {
        out.push(match w {
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            0 if !allow_zero => *dims.get(i).ok_or("a zero beyond the input's axes")?,
            w if (1..1 << 30).contains(&w) => w as usize,
            _ => return Err(format!("shape {wanted:?} is not supported")),
        });
    }
    if let Some(i) = open {
        let rest = product(&out).filter(|&r| r > 0 && total.is_multiple_of(r));
        out[i] = total / rest.ok_or_else(|| format!("{dims:?} does not divide into {wanted:?}"))?;
    }
    Ok(out)
}

/// Elements of a shape of which nothing is known yet.
pub(super) fn product(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1usize, |a, &d| a.checked_mul(d))
}

pub(super) fn unsqueezed(dims: &[usize], list: &[i64]) -> Reason<Vec<usize>> {
    let rank = dims.len() + list.len();
    if rank > MAX_RANK {
        return Err(format!("its output would have {rank} axes"));
    }
    let axes = list.iter().map(|&a| axis_of(a, rank)).collect::<Reason<Vec<_>>>()?;
    let mut rest = dims.iter();
    let out: Option<Vec<usize>> =
        (0..rank).map(|i| if axes.contains(&i) { Some(1) } else { rest.next().copied() }).collect();
    out.ok_or_else(|| format!("axes {list:?} repeat"))
}

fn concat(net: &mut Importer, call: &Call<'_>) -> Handled {
    let one = |(i, known): (usize, &Option<Known>)| match known {
        Some(Known::Constant(c)) => net.known_value(c),
        _ => call.value(i),
    };
    let parts = call.inputs.iter().enumerate().map(one).collect::<Reason<Vec<_>>>()?;
    let first = parts.first().ok_or("it has no inputs")?;
    let rank = first.dims.len();
    let axis = axis_of(call.attributes.int("axis", 1), rank)?;
    let mut dims = first.dims.clone();
    dims[axis] = 0;
    for p in &parts {
        let same = p.dims.len() == rank && (0..rank).all(|i| i == axis || p.dims[i] == dims[i]);
        if !same {
            return Err(format!("shapes {:?} and {:?}", first.dims, p.dims));
        }
        dims[axis] += p.dims[axis];
    }
    if let [only] = &parts[..] {
        return Ok(Known::Value(only.clone()));
    }
    let stored = storage_axes(rank).iter().position(|&a| a == axis).unwrap_or(axis);
    let ids: Vec<usize> = parts.iter().map(|p| p.id).collect();
    net.push(Op::Arrange(Arrange::Concat { axis: stored }), &ids, dims).map(Known::Value)
}

/// Positions `picked` along one axis of the file's order.
fn select(net: &mut Importer, x: &Value, axis: usize, picked: Vec<u32>, dims: Vec<usize>) -> Reason<Value> {
    elements(&dims).ok_or_else(|| format!("its output would have shape {dims:?}"))?;
    net.reserve(dims.iter().sum())?;
    let mut all = Select::all(&storage(&x.dims));
    let stored = storage_axes(x.dims.len()).iter().position(|&a| a == axis).unwrap_or(axis);
    all.axes[stored] = picked;
    net.push(Op::Arrange(Arrange::Select(all)), &[x.id], dims)
}

fn pad(net: &mut Importer, call: &Call<'_>) -> Handled {
    let mut x = call.value(0)?;
    let rank = x.dims.len();
    let pads = call.list("pads", 1)?.ok_or("its pads are missing")?;
    let axes = match call.optional(3)?.and_then(Array::integers) {
        Some(list) => list.iter().map(|&a| axis_of(a, rank)).collect::<Reason<Vec<_>>>()?,
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * axes.len() || pads.iter().any(|p| !(-(1 << 12)..1 << 12).contains(p)) {
        return Err(format!("pads {pads:?} are not supported"));
    }
    let mode = call.attributes.string("mode", "constant");
    let constant =
        call.optional(2)?.and_then(Array::scalar).unwrap_or_else(|| call.attributes.float("value", 0.0));
    if !constant.is_finite() {
        return Err(format!("padding with {constant} is not supported"));
    }
    // Zero is what padding puts there: numbers move by the constant, and back.
    let shift = if mode == "constant" && pads.iter().any(|&p| p > 0) { constant } else { 0.0 };
    if shift != 0.0 {
        x = net.affine_of(&x, 1.0, -shift)?;
    }
    for (i, &axis) in axes.iter().enumerate() {
        let (before, after) = (pads[i], pads[i + axes.len()]);
        if (before, after) == (0, 0) {
            continue;
        }
        let d = x.dims[axis] as i64;
        let position = |j: i64| -> Reason<u32> {
            Ok(match mode.as_str() {
                _ if (0..d).contains(&j) => j as u32,
                "constant" => ZERO,
                "edge" => j.clamp(0, d - 1) as u32,
                "reflect" if d > 1 => {
                    let turn = j.rem_euclid(2 * (d - 1));
                    turn.min(2 * (d - 1) - turn) as u32
                }
                other => return Err(format!("mode {other} is not supported")),
            })
        };
        let picked = (-before..d + after).map(position).collect::<Reason<Vec<_>>>()?;
        let mut dims = x.dims.clone();
        dims[axis] = picked.len();
        x = select(net, &x, axis, picked, dims)?;
    }
    if shift != 0.0 {
        x = net.affine_of(&x, 1.0, shift)?;
    }
    Ok(Known::Value(x))
}

/// Positions that a slice takes from an axis of extent `d`.
pub(super) fn sliced(d: usize, start: i64, end: i64, step: i64) -> Reason<Vec<u32>> {
    let d = d as i64;
    if step == 0 {
        return Err("a step of zero".into());
    }
    if d == 0 {
        return Ok(Vec::new());
    }
    let wrap = |v: i64| if v < 0 { v.saturating_add(d) } else { v };
    let (low, high) = if step > 0 { (0, d) } else { (-1, d - 1) };
    let (mut i, end) = (wrap(start).clamp(low.max(0), high), wrap(end).clamp(low, high));
    let mut picked = Vec::new();
    while if step > 0 { i < end } else { i > end } {
        picked.push(i as u32);
        i = i.saturating_add(step);
    }
    Ok(picked)
}

/// Starts, ends, axes and steps of a slice.
pub(super) fn slice_lists(call: &Call<'_>, rank: usize) -> Reason<Vec<(usize, i64, i64, i64)>> {
    let starts = call.list("starts", 1)?.ok_or("its starts are missing")?;
    let ends = call.list("ends", 2)?.ok_or("its ends are missing")?;
    let axes = call.list("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = call.list("steps", 4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err("its lists differ in length".into());
    }
    (0..starts.len()).map(|i| Ok((axis_of(axes[i], rank)?, starts[i], ends[i], steps[i]))).collect()
}

fn slice(net: &mut Importer, call: &Call<'_>) -> Handled {
    let mut x = call.value(0)?;
    for (axis, start, end, step) in slice_lists(call, x.dims.len())? {
        let picked = sliced(x.dims[axis], start, end, step)?;
        if picked.len() == x.dims[axis] && step == 1 {
            continue;
        }
        let mut dims = x.dims.clone();
        dims[axis] = picked.len();
        x = select(net, &x, axis, picked, dims)?;
    }
    Ok(Known::Value(x))
}

/// The shape that two are brought to, axis by axis from the last: equal, or one of them 1.
pub(super) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], i: usize| (i + dims.len()).checked_sub(rank).map_or(1, |j| dims[j]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, n) | (n, 1) => Some(n),
            _ => None,
        })
        .collect()
}

/// Where element `i` of a broadcast result stands in an array of `dims`.
pub(super) fn broadcast_at(mut i: usize, out: &[usize], dims: &[usize]) -> usize {
    let (mut at, mut stride) = (0, 1);
    for axis in (0..out.len()).rev() {
        let place = i % out[axis];
        i /= out[axis];
        if let Some(d) = (axis + dims.len()).checked_sub(out.len()).map(|j| dims[j]) {
            at += if d == 1 { 0 } else { place * stride };
            stride *= d;
        }
    }
    at
}
