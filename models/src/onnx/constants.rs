//! Operators on constants alone: what exporters write around shapes, masks and tables becomes a constant here.

use super::attributes::Reason;
use super::movement::{broadcast, broadcast_at, product, resolve, slice_lists, sliced, unsqueezed};
use super::tensor::{Array, Data};
use super::{Call, Known, axis_of};
use crate::graph::{MAX_RANK, elements};

/// What can be computed without the input: constants, shapes, and the index arithmetic on them. `None` if this
/// node is not of that kind.
pub(super) fn fold(call: &Call<'_>) -> Option<Reason<Array>> {
    match call.op {
        "Constant" => return Some(constant(call)),
        "Shape" => {
            let dims = match call.inputs.first()?.as_ref()? {
                Known::Value(v) if v.finish.as_ref().is_some_and(|f| f.shape.is_some()) => {
                    return Some(Err("the shape of indices is not supported".into()));
                }
                Known::Value(v) => &v.dims,
                Known::Constant(c) => &c.dims,
                Known::Unknown => return None,
            };
            let d = dims.len() as i64;
            let clamp = |v: i64| (if v < 0 { v + d } else { v }).clamp(0, d) as usize;
            let (from, to) = (clamp(call.attributes.int("start", 0)), clamp(call.attributes.int("end", d)));
            return Some(Ok(Array::ints(dims[from.min(to)..to].iter().map(|&d| d as i64).collect())));
        }
        _ => {}
    }
    let constants: Option<Vec<&Array>> = call
        .inputs
        .iter()
        .flatten()
        .map(|k| match k {
            Known::Constant(c) => Some(c),
            _ => None,
        })
        .collect();
    let constants = constants.filter(|c| !c.is_empty())?;
    let x = constants[0];
    let rank = x.dims.len();
    Some(match call.op {
        "Identity" | "Dropout" => Ok(x.clone()),
        // To what the other one is of; numbers stay as they are unless they become whole.
        "CastLike" => match (&x.data, &constants[constants.len() - 1].data) {
            (Data::Floats(_), Data::Ints(_)) => Err("of floats to integers is not supported".into()),
            (Data::Ints(_), Data::Floats(_)) => {
                Ok(Array { dims: x.dims.clone(), data: Data::Floats(x.floats()) })
            }
            _ => Ok(x.clone()),
        },
        "Cast" => {
            let cast = |data| Ok(Array { dims: x.dims.clone(), data });
            match (call.attributes.int("to", 1), &x.data) {
                (9, Data::Floats(v)) => cast(Data::Ints(v.iter().map(|&v| i64::from(v != 0.0)).collect())),
                (9, Data::Ints(v)) => cast(Data::Ints(v.iter().map(|&v| i64::from(v != 0)).collect())),
                (2..=7 | 12 | 13, Data::Floats(v)) => cast(Data::Ints(v.iter().map(|&v| v as i64).collect())),
                (1 | 10 | 11 | 16, _) => cast(Data::Floats(x.floats())),
                (2..=7 | 12 | 13, Data::Ints(_)) => Ok(x.clone()),
                (to, _) => Err(format!("to type {to} is not supported")),
            }
        }
        "Squeeze" | "Unsqueeze" | "Reshape" | "Flatten" => reshaped(call, x),
        "Slice" => slice_lists(call, rank).and_then(|lists| slice(x, &lists)),
        "Split" => return None,
        _ => {
            let folded = folded(call, &constants);
            return Some(folded.unwrap_or_else(|| Err("of constants only is not supported".into())));
        }
    })
}

fn constant(call: &Call<'_>) -> Reason<Array> {
    let a = &call.attributes;
    if let Some(t) = a.tensor("value") {
        return t.map_err(|e| e.to_string());
    }
    if let Some(v) = a.maybe_float("value_float") {
        return Ok(Array { dims: vec![], data: Data::Floats(vec![v]) });
    }
    if a.has("value_int") {
        return Ok(Array { dims: vec![], data: Data::Ints(vec![a.int("value_int", 0)]) });
    }
    if let Some(v) = a.ints("value_ints") {
        return Ok(Array::ints(v.to_vec()));
    }
    if let Some(v) = a.floats("value_floats") {
        return Ok(Array { dims: vec![v.len()], data: Data::Floats(v.to_vec()) });
    }
    Err("a constant of this kind is not supported".into())
}

fn reshaped(call: &Call<'_>, x: &Array) -> Reason<Array> {
    let rank = x.dims.len();
    let dims = match call.op {
        "Unsqueeze" => unsqueezed(&x.dims, &call.list("axes", 1)?.ok_or("its axes are missing")?)?,
        "Squeeze" => match call.list("axes", 1)? {
            None => x.dims.iter().copied().filter(|&d| d != 1).collect(),
            Some(list) => {
                let axes = list.iter().map(|&a| axis_of(a, rank)).collect::<Reason<Vec<_>>>()?;
                (0..rank).filter(|i| !axes.contains(i)).map(|i| x.dims[i]).collect()
            }
        },
        "Reshape" => resolve(&x.dims, &call.list("shape", 1)?.ok_or("its shape is missing")?, false)?,
        _ => {
            let axis = match call.attributes.int("axis", 1) {
                a if a == rank as i64 => rank,
                a => axis_of(a, rank)?,
            };
            vec![x.dims[..axis].iter().product(), x.dims[axis..].iter().product()]
        }
    };
    if product(&dims) != product(&x.dims) || dims.len() > MAX_RANK {
        return Err(format!("from {:?} to {dims:?}", x.dims));
    }
    Ok(Array { dims, data: x.data.clone() })
}

/// The result of an operator whose inputs are all constants; `None` if it is not one of these.
fn folded(call: &Call<'_>, inputs: &[&Array]) -> Option<Reason<Array>> {
    let x = inputs[0];
    Some(match (call.op, inputs) {
        ("Mod", _) if call.attributes.int("fmod", 0) != 0 => {
            Err("a remainder with the sign of the dividend is not supported".into())
        }
        (
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Min" | "Max" | "Mod" | "Equal" | "Less" | "Greater"
            | "LessOrEqual" | "GreaterOrEqual" | "And" | "Or",
            [x, y],
        ) => binary(call.op, x, y),
        (
            "Neg" | "Abs" | "Sqrt" | "Exp" | "Log" | "Floor" | "Ceil" | "Round" | "Not" | "Reciprocal"
            | "Sigmoid" | "Tanh" | "Relu" | "Sin" | "Cos",
            [x],
        ) => unary(call.op, x),
        ("Clip", _) => clip(call, x),
        ("CumSum", [x, axis]) => running_sum(call, x, axis),
        ("Where", [c, x, y]) => choose(c, x, y),
        ("ConstantOfShape", [_]) => filled(call, x),
        ("Range", [from, to, by]) => range(from, to, by),
        ("Size", [_]) => Ok(Array { dims: Vec::new(), data: Data::Ints(vec![len(x) as i64]) }),
        ("Expand", [x, shape]) => expand(x, shape),
        ("Tile", [x, times]) => tile(x, times),
        ("Transpose", [_]) => transpose(call, x),
        ("Gather", [x, at]) => gather(call, x, at),
        ("Concat", _) => concat(call, inputs),
        ("ScatterND", [x, at, values]) => scatter(call, x, at, values),
        ("ReduceProd" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceMean", _) => reduce(call, x),
        _ => return None,
    })
}

fn len(x: &Array) -> usize {
    x.dims.iter().product()
}

fn checked(dims: &[usize]) -> Reason<usize> {
    match dims.contains(&0) && dims.len() <= MAX_RANK {
        true => Ok(0),
        false => elements(dims).ok_or_else(|| format!("its output would have shape {dims:?}")),
    }
}

fn finite(dims: Vec<usize>, values: Vec<f64>) -> Reason<Array> {
    let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
    if values.iter().any(|v| v.is_nan()) {
        return Err("it yields what is no number".into());
    }
    // Masks hold infinities: the largest number does as well.
    let values = values.into_iter().map(|v| v.clamp(f32::MIN, f32::MAX)).collect();
    Ok(Array { dims, data: Data::Floats(values) })
}

fn binary(op: &str, a: &Array, b: &Array) -> Reason<Array> {
    let dims = broadcast(&a.dims, &b.dims).ok_or_else(|| format!("shapes {:?} and {:?}", a.dims, b.dims))?;
    let n = checked(&dims)?;
    let at = |i: usize| (broadcast_at(i, &dims, &a.dims), broadcast_at(i, &dims, &b.dims));
    if let (Some(x), Some(y)) = (a.integers(), b.integers()) {
        let one = |i: usize| {
            let (p, q) = at(i);
            let (p, q) = (x[p], y[q]);
            match op {
                "Add" => p.checked_add(q),
                "Sub" => p.checked_sub(q),
                "Mul" => p.checked_mul(q),
                "Div" => p.checked_div(q),
                "Mod" => p.checked_rem_euclid(q).map(|r| if q < 0 && r != 0 { r + q } else { r }),
                "Pow" => u32::try_from(q).ok().and_then(|q| p.checked_pow(q)),
                "Min" => Some(p.min(q)),
                "Max" => Some(p.max(q)),
                "And" => Some((p != 0 && q != 0).into()),
                "Or" => Some((p != 0 || q != 0).into()),
                _ => Some(compare(op, p as f64, q as f64)),
            }
        };
        let values: Option<Vec<i64>> = (0..n).map(one).collect();
        return Ok(Array { dims, data: Data::Ints(values.ok_or("it overflows, or divides by zero")?) });
    }
    let (x, y) = (a.floats(), b.floats());
    let pairs = (0..n).map(|i| {
        let (p, q) = at(i);
        (f64::from(x[p]), f64::from(y[q]))
    });
    if matches!(op, "Equal" | "Less" | "Greater" | "LessOrEqual" | "GreaterOrEqual") {
        let data = Data::Ints(pairs.map(|(p, q)| compare(op, p, q)).collect());
        return Ok(Array { dims, data });
    }
    let values = pairs.map(|(p, q)| match op {
        "Add" => p + q,
        "Sub" => p - q,
        "Mul" => p * q,
        "Div" => p / q,
        "Pow" => p.powf(q),
        "Min" => p.min(q),
        "Max" => p.max(q),
        _ => f64::NAN,
    });
    let values = values.collect();
    finite(dims, values)
}

fn compare(op: &str, p: f64, q: f64) -> i64 {
    let holds = match op {
        "Equal" => p == q,
        "Less" => p < q,
        "Greater" => p > q,
        "LessOrEqual" => p <= q,
        _ => p >= q,
    };
    holds.into()
}

fn unary(op: &str, x: &Array) -> Reason<Array> {
    let dims = x.dims.clone();
    if let Some(v) = x.integers() {
        let values: Option<Vec<i64>> = match op {
            "Neg" => v.iter().map(|v| v.checked_neg()).collect(),
            "Abs" => v.iter().map(|v| v.checked_abs()).collect(),
            "Not" => Some(v.iter().map(|v| i64::from(*v == 0)).collect()),
            _ => None,
        };
        if let Some(values) = values {
            return Ok(Array { dims, data: Data::Ints(values) });
        }
    }
    let f = |v: f64| match op {
        "Neg" => -v,
        "Abs" => v.abs(),
        "Sqrt" => v.sqrt(),
        "Exp" => v.exp(),
        "Log" => v.ln(),
        "Floor" => v.floor(),
        "Ceil" => v.ceil(),
        "Round" => v.round_ties_even(),
        "Reciprocal" => 1.0 / v,
        "Sigmoid" => 1.0 / (1.0 + (-v).exp()),
        "Tanh" => v.tanh(),
        "Relu" => v.max(0.0),
        "Sin" => v.sin(),
        "Cos" => v.cos(),
        _ => f64::NAN,
    };
    finite(dims, x.floats().into_iter().map(|v| f(v.into())).collect())
}

fn clip(call: &Call<'_>, x: &Array) -> Reason<Array> {
    let bound = |name: &str, i: usize| -> Reason<Option<f64>> {
        Ok(match (call.attributes.maybe_float(name), call.optional(i)?) {
            (Some(v), _) => Some(v.into()),
            (None, Some(c)) => Some(c.scalar().ok_or("a bound is not a single number")?.into()),
            (None, None) => None,
        })
    };
    let (lo, hi) = (bound("min", 1)?, bound("max", 2)?);
    let one = |v: f64| v.max(lo.unwrap_or(f64::MIN)).min(hi.unwrap_or(f64::MAX));
    match x.integers() {
        Some(v) => {
            let data = Data::Ints(v.iter().map(|&v| one(v as f64) as i64).collect());
            Ok(Array { dims: x.dims.clone(), data })
        }
        None => finite(x.dims.clone(), x.floats().into_iter().map(|v| one(v.into())).collect()),
    }
}

/// Sums of all up to each place of an axis.
fn running_sum(call: &Call<'_>, x: &Array, axis: &Array) -> Reason<Array> {
    if call.attributes.int("exclusive", 0) != 0 || call.attributes.int("reverse", 0) != 0 {
        return Err("sums that leave out a place or run backwards are not supported".into());
    }
    let axis = match axis.integers() {
        Some(&[a]) => axis_of(a, x.dims.len())?,
        _ => return Err("its axis is not a single number".into()),
    };
    let (d, inner) = (x.dims[axis], x.dims[axis + 1..].iter().product::<usize>());
    let before = |i: usize| (!(i / inner).is_multiple_of(d)).then(|| i - inner);
    let mut sums = x.floats().into_iter().map(f64::from).collect::<Vec<_>>();
    let mut whole = x.integers().map(<[i64]>::to_vec);
    for i in 0..sums.len() {
        let Some(b) = before(i) else { continue };
        sums[i] += sums[b];
        if let Some(v) = &mut whole {
            v[i] = v[i].checked_add(v[b]).ok_or("it overflows")?;
        }
    }
    match whole {
        Some(v) => Ok(Array { dims: x.dims.clone(), data: Data::Ints(v) }),
        None => finite(x.dims.clone(), sums),
    }
}

fn choose(c: &Array, x: &Array, y: &Array) -> Reason<Array> {
    let of = |a: &[usize], b: &[usize]| broadcast(a, b).ok_or_else(|| format!("shapes {a:?} and {b:?}"));
    let dims = of(&of(&c.dims, &x.dims)?, &y.dims)?;
    let n = checked(&dims)?;
    let c_values = c.integers().ok_or("its condition is not of truth values")?;
    let first = |i: usize| c_values[broadcast_at(i, &dims, &c.dims)] != 0;
    if let (Some(p), Some(q)) = (x.integers(), y.integers()) {
        let pick = |i| {
            if first(i) { p[broadcast_at(i, &dims, &x.dims)] } else { q[broadcast_at(i, &dims, &y.dims)] }
        };
        let data = Data::Ints((0..n).map(pick).collect());
        return Ok(Array { dims, data });
    }
    let (p, q) = (x.floats(), y.floats());
    let pick =
        |i| if first(i) { p[broadcast_at(i, &dims, &x.dims)] } else { q[broadcast_at(i, &dims, &y.dims)] };
    let data = Data::Floats((0..n).map(pick).collect());
    Ok(Array { dims, data })
}

fn list(x: &Array) -> Reason<Vec<usize>> {
    let values = x.integers().ok_or("a shape is not of integers")?;
    let fits = |&v: &i64| usize::try_from(v).map_err(|_| format!("a shape of {values:?}"));
    values.iter().map(fits).collect()
}

fn filled(call: &Call<'_>, shape: &Array) -> Reason<Array> {
    let dims = list(shape)?;
    let n = checked(&dims)?;
    let value = match call.attributes.tensor("value") {
        Some(value) => value.map_err(|e| e.to_string())?,
        None => Array { dims: vec![1], data: Data::Floats(vec![0.0]) },
    };
    let data = match &value.data {
        Data::Ints(v) => Data::Ints(vec![*v.first().ok_or("its value is empty")?; n]),
        Data::Floats(v) => Data::Floats(vec![*v.first().ok_or("its value is empty")?; n]),
    };
    Ok(Array { dims, data })
}

fn range(from: &Array, to: &Array, by: &Array) -> Reason<Array> {
    let one = |a: &Array| match a.integers() {
        Some(&[v]) => Ok(v as f64),
        Some(_) => Err("an end of it is no single number".to_owned()),
        None => a.scalar().map(f64::from).ok_or_else(|| "an end of it is no single number".to_owned()),
    };
    let whole = [from, to, by].iter().all(|a| a.integers().is_some());
    let (from, to, by) = (one(from)?, one(to)?, one(by)?);
    let count = ((to - from) / by).ceil().max(0.0);
    if by == 0.0 || !count.is_finite() || count > (1 << 24) as f64 {
        return Err(format!("from {from} to {to} by {by}"));
    }
    let values = (0..count as usize).map(|i| from + by * i as f64);
    let dims = vec![count as usize];
    if whole {
        let data = Data::Ints(values.map(|v| v as i64).collect());
        return Ok(Array { dims, data });
    }
    finite(dims, values.collect())
}

/// The elements at these places.
fn at(x: &Array, dims: Vec<usize>, places: impl Iterator<Item = usize>) -> Array {
    let data = match &x.data {
        Data::Ints(v) => Data::Ints(places.map(|i| v[i]).collect()),
        Data::Floats(v) => Data::Floats(places.map(|i| v[i]).collect()),
    };
    Array { dims, data }
}

/// The elements whose positions along each axis are listed.
fn along(x: &Array, axes: &[Vec<usize>]) -> Reason<Array> {
    let dims: Vec<usize> = axes.iter().map(Vec::len).collect();
    checked(&dims)?;
    let mut places = vec![0usize];
    for (list, &d) in axes.iter().zip(&x.dims) {
        places = places.iter().flat_map(|p| list.iter().map(move |i| p * d + i)).collect();
    }
    Ok(at(x, dims, places.into_iter()))
}

fn expand(x: &Array, shape: &Array) -> Reason<Array> {
    let dims = broadcast(&x.dims, &list(shape)?).ok_or("it does not spread over its shape")?;
    let n = checked(&dims)?;
    let places: Vec<usize> = (0..n).map(|i| broadcast_at(i, &dims, &x.dims)).collect();
    Ok(at(x, dims, places.into_iter()))
}

fn tile(x: &Array, times: &Array) -> Reason<Array> {
    let times = list(times)?;
    if times.len() != x.dims.len() {
        return Err(format!("{times:?} times {:?}", x.dims));
    }
    let dims: Option<Vec<usize>> = x.dims.iter().zip(&times).map(|(d, t)| d.checked_mul(*t)).collect();
    checked(&dims.ok_or("its output is too large")?)?;
    let axes: Vec<Vec<usize>> =
        x.dims.iter().zip(&times).map(|(&d, &t)| (0..d * t).map(|i| i % d).collect()).collect();
    along(x, &axes)
}

fn transpose(call: &Call<'_>, x: &Array) -> Reason<Array> {
    let rank = x.dims.len();
    let permutation = match call.attributes.ints("perm") {
        Some(p) => p.iter().map(|&a| axis_of(a, rank)).collect::<Reason<Vec<_>>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut sorted = permutation.clone();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..rank) {
        return Err(format!("{permutation:?} is not a permutation"));
    }
    let mut strides = vec![1; rank];
    for i in (1..rank).rev() {
        strides[i - 1] = strides[i] * x.dims[i];
    }
    let mut places = vec![0usize];
    for &axis in &permutation {
        let (d, stride) = (x.dims[axis], strides[axis]);
        places = places.iter().flat_map(|p| (0..d).map(move |i| p + i * stride)).collect();
    }
    let dims = permutation.iter().map(|&a| x.dims[a]).collect();
    Ok(at(x, dims, places.into_iter()))
}

fn gather(call: &Call<'_>, x: &Array, wanted: &Array) -> Reason<Array> {
    let axis = axis_of(call.attributes.int("axis", 0), x.dims.len())?;
    let indices = wanted.integers().ok_or("its indices are not integers")?;
    let mut axes: Vec<Vec<usize>> = x.dims.iter().map(|&d| (0..d).collect()).collect();
    axes[axis] = indices.iter().map(|&i| axis_of(i, x.dims[axis])).collect::<Reason<_>>()?;
    let picked = along(x, &axes)?;
    let dims = [&x.dims[..axis], &wanted.dims, &x.dims[axis + 1..]].concat();
    checked(&dims)?;
    Ok(Array { dims, ..picked })
}

/// Slices of any rank, of which each axis has a list of positions.
fn slice(x: &Array, lists: &[(usize, i64, i64, i64)]) -> Reason<Array> {
    let mut axes: Vec<Vec<usize>> = x.dims.iter().map(|&d| (0..d).collect()).collect();
    for &(axis, start, end, step) in lists {
        axes[axis] = sliced(x.dims[axis], start, end, step)?.into_iter().map(|i| i as usize).collect();
    }
    along(x, &axes)
}

/// The part of a constant from one position of an axis to another.
pub(super) fn part(x: &Array, axis: usize, from: usize, to: usize) -> Reason<Array> {
    let mut axes: Vec<Vec<usize>> = x.dims.iter().map(|&d| (0..d).collect()).collect();
    axes[axis] = (from..to).collect();
    along(x, &axes)
}

fn concat(call: &Call<'_>, inputs: &[&Array]) -> Reason<Array> {
    let rank = inputs[0].dims.len();
    let axis = axis_of(call.attributes.int("axis", 1), rank)?;
    let mut dims = inputs[0].dims.clone();
    dims[axis] = 0;
    for x in inputs {
        let same = x.dims.len() == rank && (0..rank).all(|i| i == axis || x.dims[i] == dims[i]);
        if !same {
            return Err(format!("shapes {:?} and {:?}", inputs[0].dims, x.dims));
        }
        dims[axis] += x.dims[axis];
    }
    checked(&dims)?;
    let outer: usize = dims[..axis].iter().product();
    let inner: usize = dims[axis + 1..].iter().product();
    let pieces = |o: usize| inputs.iter().map(move |x| (x, o * x.dims[axis] * inner, x.dims[axis] * inner));
    let data = if inputs.iter().all(|x| x.integers().is_some()) {
        let part =
            |(x, from, n): (&&Array, usize, usize)| x.integers().unwrap_or(&[])[from..from + n].to_vec();
        Data::Ints((0..outer).flat_map(pieces).flat_map(part).collect())
    } else {
        let part = |(x, from, n): (&&Array, usize, usize)| x.floats()[from..from + n].to_vec();
        Data::Floats((0..outer).flat_map(pieces).flat_map(part).collect())
    };
    Ok(Array { dims, data })
}

/// The constant with some of its parts replaced.
fn scatter(call: &Call<'_>, x: &Array, places: &Array, values: &Array) -> Reason<Array> {
    if call.attributes.string("reduction", "none") != "none" {
        return Err("adding to what is there is not supported".into());
    }
    let indices = places.integers().ok_or("its indices are not integers")?;
    let depth = places
        .dims
        .last()
        .copied()
        .filter(|d| (1..=x.dims.len()).contains(d))
        .ok_or("its indices have no axis")?;
    let (outer, part) = (&x.dims[..depth], x.dims[depth..].iter().product::<usize>());
    if len(values) != indices.len() / depth * part {
        return Err(format!("{:?} at {:?} of {:?}", values.dims, places.dims, x.dims));
    }
    let mut out = x.clone();
    for (i, index) in indices.chunks(depth).enumerate() {
        let mut at = 0;
        for (&v, &d) in index.iter().zip(outer) {
            at = at * d + axis_of(v, d)?;
        }
        match (&mut out.data, &values.data) {
            (Data::Ints(out), Data::Ints(v)) => {
                out[at * part..][..part].copy_from_slice(&v[i * part..][..part])
            }
            (Data::Floats(out), Data::Floats(v)) => {
                out[at * part..][..part].copy_from_slice(&v[i * part..][..part])
            }
            _ => return Err("its values are of another type".into()),
        }
    }
    Ok(out)
}

fn reduce(call: &Call<'_>, x: &Array) -> Reason<Array> {
    let rank = x.dims.len();
    let axes: Vec<usize> = match call.list("axes", 1)?.filter(|list| !list.is_empty()) {
        Some(list) => list.iter().map(|&a| axis_of(a, rank)).collect::<Reason<_>>()?,
        None if call.attributes.int("noop_with_empty_axes", 0) != 0 => return Ok(x.clone()),
        None => (0..rank).collect(),
    };
    let keep = call.attributes.int("keepdims", 1) != 0;
    let one: Vec<usize> = (0..rank).map(|i| if axes.contains(&i) { 1 } else { x.dims[i] }).collect();
    let mut groups: Vec<Vec<usize>> = vec![Vec::new(); one.iter().product()];
    for i in 0..len(x) {
        groups[broadcast_at(i, &x.dims, &one)].push(i);
    }
    let dims = if keep { one } else { (0..rank).filter(|i| !axes.contains(i)).map(|i| x.dims[i]).collect() };
    if groups.iter().any(Vec::is_empty) {
        return Err("of nothing is not supported".into());
    }
    if let Some(v) = x.integers() {
        let of = |g: &Vec<usize>| {
            let mut all = g.iter().map(|&i| v[i]);
            match call.op {
                "ReduceProd" => all.try_fold(1i64, i64::checked_mul),
                "ReduceSum" => all.try_fold(0i64, i64::checked_add),
                "ReduceMax" => all.max(),
                "ReduceMin" => all.min(),
                _ => None,
            }
        };
        let values: Option<Vec<i64>> = groups.iter().map(of).collect();
        return Ok(Array { dims, data: Data::Ints(values.ok_or("it overflows")?) });
    }
    let v = x.floats();
    let of = |g: &Vec<usize>| {
        let all = g.iter().map(|&i| f64::from(v[i]));
        match call.op {
            "ReduceProd" => all.product(),
            "ReduceSum" => all.sum(),
            "ReduceMax" => all.fold(f64::NEG_INFINITY, f64::max),
            "ReduceMin" => all.fold(f64::INFINITY, f64::min),
            _ => all.sum::<f64>() / g.len() as f64,
        }
    };
    finite(dims, groups.iter().map(of).collect())
}
