//! Elementwise operators and batch normalisation.

use super::attributes::Reason;
use super::tensor::Array;
use super::{Call, Handled, Importer, Known, Value, storage, storage_axes};
use crate::arrange::Arrange;
use crate::graph::{Op, Parameters, elements};
use sharelens_ops::layers::Select;

/// A constant spread over a value of shape `dims` and put into storage order, cut to the shortest run of whole
/// trailing axes that repeats.
fn spread(net: &mut Importer, constant: &Array, dims: &[usize]) -> Reason<Vec<f32>> {
    let values = constant.floats();
    let rank = dims.len();
    let skip = rank.checked_sub(constant.dims.len());
    let fits =
        skip.is_some_and(|skip| constant.dims.iter().zip(&dims[skip..]).all(|(&c, &d)| c == d || c == 1));
    let (Some(skip), true, false) = (skip, fits, values.is_empty()) else {
        return Err(format!("a constant of shape {:?} does not spread over {dims:?}", constant.dims));
    };
    let mut strides = vec![0usize; rank];
    let mut stride = 1;
    for (i, &c) in constant.dims.iter().enumerate().rev() {
        strides[skip + i] = if c == 1 { 0 } else { stride };
        stride *= c;
    }
    let axes = storage_axes(rank);
    // Leading axes along which nothing changes are left out.
    let lead = axes.iter().take(rank.saturating_sub(1)).take_while(|&&a| strides[a] == 0).count();
    net.reserve(axes[lead..].iter().map(|&a| dims[a]).product())?;
    let mut index = vec![0usize];
    for &axis in &axes[lead..] {
        let stride = strides[axis];
        index = index.iter().flat_map(|&b| (0..dims[axis]).map(move |i| b + i * stride)).collect();
    }
    Ok(index.into_iter().map(|i| values[i]).collect())
}

fn affine(net: &mut Importer, x: &Value, weight: Vec<f32>, bias: Vec<f32>) -> Handled {
    // Both repeat; the longer is a multiple of the shorter, since both are runs of trailing axes.
    let n = weight.len().max(bias.len());
    net.reserve(2 * n)?;
    let stretch = |v: Vec<f32>| v.iter().copied().cycle().take(n).collect::<Vec<_>>();
    let parameters = Parameters { weight: stretch(weight), bias: stretch(bias) };
    net.push(Op::Affine { parameters }, &[x.id], x.dims.clone()).map(Known::Value)
}

pub(super) fn batch_norm(net: &mut Importer, call: &Call<'_>) -> Handled {
    let x = call.value(0)?;
    if call.attributes.int("training_mode", 0) != 0 {
        return Err("it is in training mode".into());
    }
    let epsilon = f64::from(call.attributes.float("epsilon", 1e-5));
    let [scale, shift, mean, variance]: [Vec<f32>; 4] =
        [call.constant(1)?, call.constant(2)?, call.constant(3)?, call.constant(4)?].map(Array::floats);
    let channels = x.dims.get(1).copied().unwrap_or(1);
    if [&scale, &shift, &mean, &variance].iter().any(|v| v.len() != channels) {
        return Err(format!("its statistics are not for {channels} channels"));
    }
    if variance.iter().any(|&v| f64::from(v) + epsilon <= 0.0) {
        return Err("a variance is not positive".into());
    }
    let factor: Vec<f64> =
        scale.iter().zip(&variance).map(|(&s, &v)| f64::from(s) / (f64::from(v) + epsilon).sqrt()).collect();
    let offset: Vec<f32> = factor
        .iter()
        .zip(shift.iter().zip(&mean))
        .map(|(&f, (&b, &m))| (f64::from(b) - f * f64::from(m)) as f32)
        .collect();
    let mut dims = vec![1; x.dims.len()];
    if dims.len() > 1 {
        dims[1] = channels;
    }
    let mut per_channel = |v: Vec<f32>| {
        spread(net, &Array { dims: dims.clone(), data: super::tensor::Data::Floats(v) }, &x.dims)
    };
    let weight = per_channel(factor.iter().map(|&f| f as f32).collect())?;
    let bias = per_channel(offset)?;
    affine(net, &x, weight, bias)
}

pub(super) fn negate(net: &mut Importer, call: &Call<'_>) -> Handled {
    let x = call.value(0)?;
    affine_by(net, &x, -1.0, None)
}

fn affine_by(net: &mut Importer, x: &Value, factor: f32, constant: Option<&Array>) -> Handled {
    let last = storage(&x.dims).last().copied().unwrap_or(1);
    net.reserve(2 * last)?;
    let bias = constant.map_or_else(|| Ok(vec![0.0; last]), |c| spread(net, c, &x.dims))?;
    affine(net, x, vec![factor; last], bias)
}

pub(super) fn arithmetic(net: &mut Importer, call: &Call<'_>) -> Handled {
    if call.inputs.len() != 2 {
        return Err(format!("it has {} inputs", call.inputs.len()));
    }
    let scaled = |net: &mut Importer, x: &Value, c: &Array, invert: bool| {
        let mut weight = spread(net, c, &x.dims)?;
        if invert {
            if weight.contains(&0.0) {
                return Err("it divides by zero".to_owned());
            }
            weight.iter_mut().for_each(|w| *w = 1.0 / *w);
        }
        let bias = vec![0.0; weight.len()];
        affine(net, x, weight, bias)
    };
    let negated = |c: &Array| Array {
        dims: c.dims.clone(),
        data: super::tensor::Data::Floats(c.floats().iter().map(|v| -v).collect()),
    };
    match (call.op, call.value(0), call.value(1)) {
        ("Add", Ok(x), Err(_)) => affine_by(net, &x, 1.0, Some(call.constant(1)?)),
        ("Add", Err(_), Ok(x)) => affine_by(net, &x, 1.0, Some(call.constant(0)?)),
        ("Sub", Ok(x), Err(_)) => affine_by(net, &x, 1.0, Some(&negated(call.constant(1)?))),
        ("Sub", Err(_), Ok(x)) => affine_by(net, &x, -1.0, Some(call.constant(0)?)),
        ("Mul", Ok(x), Err(_)) => scaled(net, &x, call.constant(1)?, false),
        ("Mul", Err(_), Ok(x)) => scaled(net, &x, call.constant(0)?, false),
        ("Div", Ok(x), Err(_)) => scaled(net, &x, call.constant(1)?, true),
        ("Add" | "Sub", Ok(x), Ok(y)) => {
            let (x, y) = broadcast(net, x, y)?;
            let op = if call.op == "Add" { Op::Arrange(Arrange::Add) } else { Op::Arrange(Arrange::Sub) };
            net.push(op, &[x.id, y.id], x.dims).map(Known::Value)
        }
        ("Mul" | "Div", Ok(_), Ok(_)) => {
            Err("of two computed values; only a constant operand is supported".into())
        }
        _ => Err("a constant divided by a computed value".into()),
    }
}

/// Repeats either value along axes where it has one position and the other more.
fn broadcast(net: &mut Importer, x: Value, y: Value) -> Reason<(Value, Value)> {
    if x.dims == y.dims {
        return Ok((x, y));
    }
    if x.dims.len() != y.dims.len() {
        return Err(format!("shapes {:?} and {:?}", x.dims, y.dims));
    }
    let mut dims = Vec::new();
    for (&a, &b) in x.dims.iter().zip(&y.dims) {
        dims.push(match (a, b) {
            (a, b) if a == b => a,
            (1, b) => b,
            (a, 1) => a,
            _ => return Err(format!("shapes {:?} and {:?}", x.dims, y.dims)),
        });
    }
    let mut repeat = |v: Value| {
        if v.dims == dims {
            return Ok(v);
        }
        elements(&dims).ok_or("its output is too large")?;
        net.reserve(dims.iter().sum())?;
        let (from, to) = (storage(&v.dims), storage(&dims));
        let axis = |(&f, &t): (&usize, &usize)| (0..t as u32).map(|i| if f == 1 { 0 } else { i }).collect();
        let axes = from.iter().zip(&to).map(axis).collect();
        net.push(Op::Arrange(Arrange::Select(Select { axes })), &[v.id], dims.clone())
    };
    let x = repeat(x)?;
    Ok((x, repeat(y)?))
}

pub(super) fn activation(net: &mut Importer, call: &Call<'_>) -> Handled {
    let x = call.value(0)?;
    let a = &call.attributes;
    let op = match call.op {
        "Relu" => Op::Relu,
        "LeakyRelu" => match a.float("alpha", 0.01) {
            alpha if alpha.is_finite() && alpha.abs() <= 16.0 => Op::LeakyRelu { alpha },
            alpha => return Err(format!("a slope of {alpha} is not supported")),
        },
        "PRelu" => {
            let weight = spread(net, call.constant(1)?, &x.dims)?;
            Op::PRelu { parameters: Parameters { weight, bias: Vec::new() } }
        }
        _ => {
            let bound = |name: &str, i: usize| -> Reason<Option<f32>> {
                let given = match a.maybe_float(name) {
                    Some(v) => Some(v),
                    None => match call.optional(i)? {
                        Some(c) => Some(c.scalar().ok_or("a bound is not a single number")?),
                        None => None,
                    },
                };
                // Exporters write the largest float for an absent bound.
                Ok(given.filter(|v| v.abs() < 1e30))
            };
            let (lo, hi) = (bound("min", 1)?, bound("max", 2)?);
            match (lo, hi) {
                (Some(lo), Some(hi)) if lo > hi => return Err(format!("its bounds are {lo} and {hi}")),
                (Some(0.0), None) => Op::Relu,
                (None, None) => return Ok(Known::Value(x)),
                _ => Op::Clip { lo, hi },
            }
        }
    };
    net.push(op, &[x.id], x.dims.clone()).map(Known::Value)
}
