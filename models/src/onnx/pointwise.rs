//! Elementwise operators and batch normalisation.

use super::attributes::Reason;
use super::tensor::Array;
use super::{Call, Handled, Importer, Known, Value, movement, normal, smooth, storage, storage_axes};
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

fn affine(net: &mut Importer, x: &Value, weight: Vec<f32>, bias: Vec<f32>) -> Reason<Value> {
    // Both repeat; the longer is a multiple of the shorter, since both are runs of trailing axes.
    let n = weight.len().max(bias.len());
    net.reserve(2 * n)?;
    let stretch = |v: Vec<f32>| v.iter().copied().cycle().take(n).collect::<Vec<_>>();
    let parameters = Parameters { weight: stretch(weight), bias: stretch(bias) };
    net.push(Op::Affine { parameters }, &[x.id], x.dims.clone())
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
    affine(net, &x, weight, bias).map(Known::Value)
}

pub(super) fn negate(net: &mut Importer, call: &Call<'_>) -> Handled {
    let x = call.value(0)?;
    affine_by(net, &x, -1.0, None).map(Known::Value)
}

fn affine_by(net: &mut Importer, x: &Value, factor: f32, constant: Option<&Array>) -> Reason<Value> {
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
        affine(net, x, weight, bias).map(Known::Value)
    };
    let negated = |c: &Array| Array {
        dims: c.dims.clone(),
        data: super::tensor::Data::Floats(c.floats().iter().map(|v| -v).collect()),
    };
    match (call.op, call.value(0), call.value(1)) {
        ("Add", Ok(x), Err(_)) => affine_by(net, &x, 1.0, Some(call.constant(1)?)).map(Known::Value),
        ("Add", Err(_), Ok(x)) => affine_by(net, &x, 1.0, Some(call.constant(0)?)).map(Known::Value),
        ("Sub", Ok(x), Err(_)) => {
            affine_by(net, &x, 1.0, Some(&negated(call.constant(1)?))).map(Known::Value)
        }
        ("Sub", Err(_), Ok(x)) => affine_by(net, &x, -1.0, Some(call.constant(0)?)).map(Known::Value),
        ("Mul", Ok(x), Err(_)) => scaled(net, &x, call.constant(1)?, false),
        ("Mul", Err(_), Ok(x)) => scaled(net, &x, call.constant(0)?, false),
        ("Div", Ok(x), Err(_)) => scaled(net, &x, call.constant(1)?, true),
        ("Add" | "Sub", Ok(x), Ok(y)) => {
            let (x, y) = broadcast(net, x, y)?;
            let op = if call.op == "Add" { Op::Arrange(Arrange::Add) } else { Op::Arrange(Arrange::Sub) };
            net.push(op, &[x.id, y.id], x.dims).map(Known::Value)
        }
        ("Mul", Ok(x), Ok(y)) => {
            let known = |net: &Importer, x: &Value, y: &Value| {
                (x.dims == y.dims).then(|| smooth::known_product(net, x.id, y.id)).flatten()
            };
            if let Some((f, factor)) = known(net, &x, &y).or_else(|| known(net, &y, &x)) {
                // The one that the other is made of has the lower number.
                let x = if x.id < y.id { x } else { y };
                let y = net.push(Op::Smooth(f), &[x.id], x.dims)?;
                return if factor == 1.0 {
                    Ok(Known::Value(y))
                } else {
                    net.affine_of(&y, factor, 0.0).map(Known::Value)
                };
            }
            let (x, y) = broadcast(net, x, y)?;
            net.push(Op::Mul, &[x.id, y.id], x.dims).map(Known::Value)
        }
        ("Div", Ok(x), Ok(y)) => {
            let y = normal::inverse(net, y)?;
            let (x, y) = broadcast(net, x, y)?;
            net.push(Op::Mul, &[x.id, y.id], x.dims).map(Known::Value)
        }
        ("Div", Err(_), Ok(y)) => {
            let y = normal::inverse(net, y)?;
            scaled(net, &y, call.constant(0)?, false)
        }
        _ => Err("a constant divided by a computed value".into()),
    }
}

impl Importer {
    /// A constant where a value is due: zeros, and the constant as what is added to them.
    pub(super) fn known_value(&mut self, constant: &Array) -> Reason<Value> {
        let dims = if constant.dims.is_empty() { vec![1] } else { constant.dims.clone() };
        elements(&dims).ok_or("it is too large, or empty")?;
        let shape = storage(&dims);
        // One position of the input, under as many axes, and then zeros.
        let first = Select { axes: self.graph.input_shape.iter().map(|_| vec![0]).collect() };
        let ones = vec![1; first.axes.len()];
        let one = self.push_storage(Op::Arrange(Arrange::Select(first)), &[0], ones)?;
        let one = self.push_storage(Op::Arrange(Arrange::Reshape), &[one], vec![1; shape.len()])?;
        self.reserve(shape.iter().sum())?;
        let zeros = Select { axes: shape.iter().map(|&n| vec![sharelens_ops::ZERO; n]).collect() };
        let zeros = self.push(Op::Arrange(Arrange::Select(zeros)), &[one], dims)?;
        let v = affine_by(self, &zeros, 1.0, Some(constant))?;
        Ok(Value { dims: constant.dims.clone(), ..v })
    }

    /// `scale * x + shift`, each spread over the value.
    pub(super) fn scaled_and_shifted(
        &mut self,
        x: &Value,
        scale: Option<&Array>,
        shift: Option<&Array>,
    ) -> Reason<Value> {
        let one = |c: Option<&Array>, net: &mut Self, or: f32| match c {
            Some(c) => spread(net, c, &x.dims),
            None => Ok(vec![or]),
        };
        let (weight, bias) = (one(scale, self, 1.0)?, one(shift, self, 0.0)?);
        affine(self, x, weight, bias)
    }

    /// `factor * x + summand`.
    pub(super) fn affine_of(&mut self, x: &Value, factor: f32, summand: f32) -> Reason<Value> {
        let n = storage(&x.dims).last().copied().unwrap_or(1);
        affine(self, x, vec![factor; n], vec![summand; n])
    }
}

/// Powers by small whole numbers.
pub(super) fn power(net: &mut Importer, call: &Call<'_>) -> Handled {
    let x = call.value(0)?;
    let exponent = call.constant(1)?.scalar().ok_or("its exponents are not a single number")?;
    let square = |net: &mut Importer, x: &Value, y: &Value| net.push(Op::Mul, &[x.id, y.id], x.dims.clone());
    let out = match exponent {
        1.0 => x,
        2.0 => square(net, &x, &x)?,
        3.0 => {
            let y = square(net, &x, &x)?;
            square(net, &y, &x)?
        }
        4.0 => {
            let y = square(net, &x, &x)?;
            square(net, &y, &y)?
        }
        other => return Err(format!("an exponent of {other} is not supported, only 1 to 4")),
    };
    Ok(Known::Value(out))
}

/// Sums, means, least and largest of any number of values and constants.
pub(super) fn many(net: &mut Importer, call: &Call<'_>) -> Handled {
    let mut all = call.inputs.iter().flatten();
    let mut sum = all.next().cloned().ok_or("it has no inputs")?;
    for next in all {
        sum = match (call.op, sum, next.clone()) {
            (_, Known::Unknown, _) | (_, _, Known::Unknown) => Known::Unknown,
            (_, Known::Constant(_), Known::Constant(_)) => {
                return Err("of several constants is not supported".into());
            }
            ("Sum" | "Mean", Known::Value(x), Known::Constant(c))
            | ("Sum" | "Mean", Known::Constant(c), Known::Value(x)) => {
                Known::Value(affine_by(net, &x, 1.0, Some(&c))?)
            }
            (op, Known::Value(x), Known::Constant(c)) | (op, Known::Constant(c), Known::Value(x)) => {
                let bound = c.scalar().ok_or("a bound is not a single number")?;
                let (lo, hi) = if op == "Max" { (Some(bound), None) } else { (None, Some(bound)) };
                let op = if lo == Some(0.0) { Op::Relu } else { Op::Clip { lo, hi } };
                net.push(op, &[x.id], x.dims).map(Known::Value)?
            }
            (op, Known::Value(x), Known::Value(y)) => {
                let (x, y) = broadcast(net, x, y)?;
                let mut push = |op, inputs: [usize; 2]| net.push(op, &inputs, x.dims.clone());
                if matches!(op, "Sum" | "Mean") {
                    Known::Value(push(Op::Arrange(Arrange::Add), [x.id, y.id])?)
                } else {
                    // max(x, y) = y + relu(x - y), min(x, y) = x - relu(x - y)
                    let rise = push(Op::Arrange(Arrange::Sub), [x.id, y.id])?;
                    let rise = net.push(Op::Relu, &[rise.id], x.dims.clone())?;
                    let (op, of) = if op == "Max" { (Arrange::Add, y.id) } else { (Arrange::Sub, x.id) };
                    Known::Value(net.push(Op::Arrange(op), &[of, rise.id], x.dims.clone())?)
                }
            }
        };
    }
    match (call.op, sum) {
        ("Mean", Known::Value(x)) => net.affine_of(&x, 1.0 / call.inputs.len() as f32, 0.0).map(Known::Value),
        (_, sum) => Ok(sum),
    }
}

/// Repeats either value along axes where it has one position and the other more, or fewer axes.
fn broadcast(net: &mut Importer, x: Value, y: Value) -> Reason<(Value, Value)> {
    let dims = movement::broadcast(&x.dims, &y.dims)
        .ok_or_else(|| format!("shapes {:?} and {:?}", x.dims, y.dims))?;
    let x = movement::expand(net, &x, dims.clone())?;
    Ok((x, movement::expand(net, &y, dims)?))
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
