//! Normalisation by statistics of the picture itself, and quotients and roots of computed values.

use super::attributes::Reason;
use super::movement::{expand, reshape, transpose};
use super::{Call, Handled, Importer, Known, Value, axis_of, pool};
use crate::arrange::Arrange;
use crate::finish::{Finish, Function};
use crate::graph::{Op, ProductSize, ValueId};
use crate::real::Real;

/// (x - mean) / sqrt(variance + epsilon) of each of `rows` runs of numbers, in the order of the file.
fn standardise(net: &mut Importer, x: &Value, rows: usize, epsilon: f32) -> Reason<Value> {
    if !(0.0..=1.0).contains(&epsilon) {
        return Err(format!("an epsilon of {epsilon} is not supported"));
    }
    let width = x.dims.iter().product::<usize>() / rows.max(1);
    if width < 2 {
        return Err("it normalises single numbers".into());
    }
    let flat = reshape(net, x, vec![rows, width])?;
    let mean = pool::along_rows(net, &flat, "ReduceMean")?;
    let mean = expand(net, &mean, flat.dims.clone())?;
    let rest = net.push(Op::Arrange(Arrange::Sub), &[flat.id, mean.id], flat.dims.clone())?;
    let square = net.push(Op::Mul, &[rest.id, rest.id], flat.dims.clone())?;
    let variance = pool::along_rows(net, &square, "ReduceMean")?;
    let root = Op::Real(Real::InverseRoot { summand: epsilon });
    let root = net.push(root, &[variance.id], variance.dims.clone())?;
    let root = expand(net, &root, flat.dims.clone())?;
    net.push(Op::Mul, &[rest.id, root.id], flat.dims)
}

/// Layer, instance and group normalisation.
pub(super) fn normalisation(net: &mut Importer, call: &Call<'_>) -> Handled {
    let x = call.value(0)?;
    let rank = x.dims.len();
    let epsilon = call.attributes.float("epsilon", 1e-5);
    if call.op == "LayerNormalization" {
        let axis = axis_of(call.attributes.int("axis", -1), rank)?;
        let rows: usize = x.dims[..axis].iter().product();
        let y = standardise(net, &x, rows, epsilon)?;
        let y = reshape(net, &y, x.dims.clone())?;
        return net.scaled_and_shifted(&y, Some(call.constant(1)?), call.optional(2)?).map(Known::Value);
    }
    let (n, c) = match x.dims[..] {
        [n, c, ..] if rank > 2 => (n, c),
        _ => return Err(format!("its input has shape {:?}", x.dims)),
    };
    let groups = match call.op {
        "InstanceNormalization" => c,
        _ => usize::try_from(call.attributes.int("num_groups", 0)).unwrap_or(0),
    };
    if groups == 0 || !c.is_multiple_of(groups) {
        return Err(format!("{groups} groups of {c} channels"));
    }
    let y = standardise(net, &x, n * groups, epsilon)?;
    let y = reshape(net, &y, x.dims.clone())?;
    // One factor for each channel, or until opset 20 for each group.
    let spread = |i: usize| -> Reason<super::tensor::Array> {
        let given = call.constant(i)?.floats();
        let each = match given.len() {
            n if n == c => 1,
            n if n == groups => c / groups,
            n => return Err(format!("{n} factors for {c} channels")),
        };
        let mut dims = vec![1; rank];
        dims[1] = c;
        let floats = given.iter().flat_map(|v| std::iter::repeat_n(*v, each)).collect();
        Ok(super::tensor::Array { dims, data: super::tensor::Data::Floats(floats) })
    };
    let (scale, shift) = (spread(1)?, spread(2)?);
    net.scaled_and_shifted(&y, Some(&scale), Some(&shift)).map(Known::Value)
}

/// Square root, quotient of one, and their like.
pub(super) fn root(net: &mut Importer, call: &Call<'_>) -> Handled {
    let x = call.value(0)?;
    let (id, summand) = shifted(net, x.id);
    let x = Value { id, ..x };
    match call.op {
        "Reciprocal" => {
            net.push(Op::Real(Real::Reciprocal { summand }), &[x.id], x.dims.clone()).map(Known::Value)
        }
        _ => {
            let root = net.push(Op::Real(Real::InverseRoot { summand }), &[x.id], x.dims.clone())?;
            let x = if summand == 0.0 { x } else { net.affine_of(&x, 1.0, summand)? };
            net.push(Op::Mul, &[x.id, root.id], x.dims).map(Known::Value)
        }
    }
}

/// What a positive constant was added to, and the constant; the value itself and zero otherwise.
fn shifted(net: &Importer, x: ValueId) -> (ValueId, f32) {
    let node = x.checked_sub(1).map(|i| &net.graph.nodes[i]);
    if let Some(node) = node
        && let Op::Affine { parameters: p } = &node.op
        && p.weight.iter().all(|w| *w == 1.0)
        && let Some(&first) = p.bias.first()
        && p.bias.iter().all(|b| *b == first)
        && (0.0..=1e6).contains(&first)
    {
        return (node.inputs[0], first);
    }
    (x, 0.0)
}

/// 1 / y as a value: of a root that was just taken, its inverse is at hand.
pub(super) fn inverse(net: &mut Importer, y: Value) -> Reason<Value> {
    let node = |v: usize| v.checked_sub(1).map(|i| &net.graph.nodes[i]);
    if let Some(product) = node(y.id)
        && product.op == Op::Mul
        && let Some(root) = node(product.inputs[1])
        && let Op::Real(Real::InverseRoot { summand }) = root.op
        // A root is its argument times the inverse root of the same; any other factor makes it another quotient.
        && shifted(net, product.inputs[0]) == (root.inputs[0], summand)
    {
        return Ok(Value { id: product.inputs[1], ..y });
    }
    let (x, summand) = shifted(net, y.id);
    net.push(Op::Real(Real::Reciprocal { summand }), &[x], y.dims)
}

/// A product of two computed matrices, or of stacks of them.
pub(super) fn mat_mul(net: &mut Importer, x: &Value, y: &Value) -> Handled {
    let (rx, ry) = (x.dims.len(), y.dims.len());
    if rx < 2 || ry < 2 {
        return Err(format!("of shapes {:?} and {:?} is not supported", x.dims, y.dims));
    }
    let ((m, k), (l, n)) = ((x.dims[rx - 2], x.dims[rx - 1]), (y.dims[ry - 2], y.dims[ry - 1]));
    let outer = super::movement::broadcast(&x.dims[..rx - 2], &y.dims[..ry - 2]);
    let Some(outer) = outer.filter(|_| k == l) else {
        return Err(format!("of shapes {:?} and {:?}", x.dims, y.dims));
    };
    let groups: usize = outer.iter().product();
    let x = expand(net, x, [&outer[..], &[m, k]].concat())?;
    let y = expand(net, y, [&outer[..], &[k, n]].concat())?;
    let x = reshape(net, &x, vec![groups, m, k])?;
    let y = reshape(net, &y, vec![groups, k, n])?;
    let y = transpose(net, &y, &[0, 2, 1])?;
    let size = ProductSize { groups, m, k, n };
    let z = net.push(Op::MatMul(size), &[x.id, y.id], vec![groups, m, n])?;
    reshape(net, &z, [&outer[..], &[m, n]].concat()).map(Known::Value)
}

/// A softmax that something reads.
pub(super) fn softmax(net: &mut Importer, x: &Value, finish: &Finish) -> Reason<Value> {
    if finish.function != Function::Softmax || finish.shape.is_some() {
        return Err("it reads a logarithm of a softmax or an index of the largest, which are supported only at the end of a \
                    network, where they are left to the client"
            .into());
    }
    if finish.count == 1 {
        // One number is all there is.
        return net.affine_of(x, 0.0, 1.0);
    }
    let outer = x.dims.iter().product::<usize>() / (finish.count * finish.stride).max(1);
    let stacked = reshape(net, x, vec![outer, finish.count, finish.stride])?;
    let rows = transpose(net, &stacked, &[0, 2, 1])?;
    let function = Real::Softmax { width: finish.count };
    if !function.is_valid(rows.dims.iter().product()) {
        return Err(format!("over {} numbers is not supported", finish.count));
    }
    let y = net.push(Op::Real(function), &[rows.id], rows.dims)?;
    let y = transpose(net, &y, &[0, 2, 1])?;
    reshape(net, &y, x.dims.clone())
}
