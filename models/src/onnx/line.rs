//! Convolutions and pools along one axis: those of pictures of one row.

use super::attributes::Reason;
use super::movement::reshape;
use super::proto::NodeProto;
use super::tensor::Array;
use super::{Handled, Importer, Known};

/// Makes an operator on `[n, c, l]` one on `[n, c, 1, l]`: its input, its kernel, and its settings, which are returned. None
/// if it is no operator on a line.
pub(super) fn widen(
    net: &mut Importer,
    node: &NodeProto,
    inputs: &mut [Option<Known>],
) -> Reason<Option<NodeProto>> {
    let pools = matches!(
        node.op_type.as_str(),
        "Conv" | "ConvTranspose" | "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool"
    );
    let Some(Some(Known::Value(x))) = inputs.first() else { return Ok(None) };
    let [n, c, l] = x.dims[..] else { return Ok(None) };
    if !pools {
        return Ok(None);
    }
    let x = reshape(net, &x.clone(), vec![n, c, 1, l])?;
    inputs[0] = Some(Known::Value(x));
    if let Some(Some(Known::Constant(Array { dims, .. }))) = inputs.get_mut(1)
        && let [o, i, k] = dims[..]
    {
        *dims = vec![o, i, 1, k];
    }
    let mut node = node.clone();
    for a in &mut node.attribute {
        a.ints = match (a.name.as_str(), &a.ints[..]) {
            ("kernel_shape" | "strides" | "dilations" | "output_shape", &[v]) => vec![1, v],
            ("output_padding", &[v]) => vec![0, v],
            ("pads", &[before, after]) => vec![0, before, 0, after],
            (_, other) => other.to_vec(),
        };
    }
    Ok(Some(node))
}

/// The result as `[n, c, l]` again.
pub(super) fn narrow(net: &mut Importer, handled: Known) -> Handled {
    let Known::Value(y) = handled else { return Ok(handled) };
    let [n, c, 1, l] = y.dims[..] else { return Err(format!("its result has shape {:?}", y.dims)) };
    reshape(net, &y, vec![n, c, l]).map(Known::Value)
}
