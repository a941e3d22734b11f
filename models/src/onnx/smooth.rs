//! Smooth functions, and the chains of nodes that exporters write for them.

use super::attributes::Reason;
use super::{Call, Handled, Importer, Known, Value, normal};
use crate::finish::{Finish, Function};
use crate::graph::{Op, ValueId};
use crate::smooth::Smooth;

/// Whether it is one of these operators.
pub(super) fn handles(op: &str) -> bool {
    matches!(
        op,
        "Tanh"
            | "Erf"
            | "Softplus"
            | "Elu"
            | "Selu"
            | "Celu"
            | "Gelu"
            | "Mish"
            | "HardSwish"
            | "Swish"
            | "HardSigmoid"
            | "ThresholdedRelu"
            | "Abs"
    )
}

pub(super) fn smooth(net: &mut Importer, call: &Call<'_>) -> Handled {
    let x = call.value(0)?;
    let a = &call.attributes;
    let elu = |alpha: f32, gamma: f32| Op::Smooth(Smooth::Elu { alpha, gamma });
    let op = match call.op {
        "Tanh" => Op::Smooth(Smooth::Tanh),
        "Erf" => Op::Smooth(Smooth::Erf),
        "Softplus" => Op::Smooth(Smooth::Softplus),
        "Mish" => Op::Smooth(Smooth::Mish),
        "HardSwish" => Op::Smooth(Smooth::HardSwish),
        "Swish" if a.float("alpha", 1.0) == 1.0 => Op::Smooth(Smooth::Silu),
        "Elu" => elu(a.float("alpha", 1.0), 1.0),
        "Selu" => elu(a.float("alpha", 1.673_263_2), a.float("gamma", 1.050_701)),
        // alpha (e^(x/alpha) - 1), which is ELU where alpha is 1.
        "Celu" if a.float("alpha", 1.0) == 1.0 => elu(1.0, 1.0),
        "Gelu" => match a.string("approximate", "none").as_str() {
            "none" => Op::Smooth(Smooth::Gelu),
            "tanh" => Op::Smooth(Smooth::GeluTanh),
            other => return Err(format!("an approximation called {other} is not supported")),
        },
        "HardSigmoid" => {
            let x = net.affine_of(&x, a.float("alpha", 0.2), a.float("beta", 0.5))?;
            return net.push(Op::Clip { lo: Some(0.0), hi: Some(1.0) }, &[x.id], x.dims).map(Known::Value);
        }
        "Abs" => Op::LeakyRelu { alpha: -1.0 },
        _ => return Err("these settings of it are not supported".into()),
    };
    if let Op::Smooth(f) = &op
        && !f.is_valid()
    {
        return Err("its settings are out of range".into());
    }
    net.push(op, &[x.id], x.dims).map(Known::Value)
}

/// x sigmoid(x), where the sigmoid was not computed yet.
pub(super) fn silu(net: &mut Importer, inputs: &[Option<Known>]) -> Option<Reason<Known>> {
    let [Some(Known::Value(a)), Some(Known::Value(b))] = inputs else { return None };
    let gate = |v: &Value| v.finish.as_ref().is_some_and(|f| *f == Finish::sigmoid());
    let (x, _) = match (gate(a), gate(b)) {
        (false, true) => (a, b),
        (true, false) => (b, a),
        _ => return None,
    };
    let same = a.id == b.id && a.dims == b.dims && x.finish.is_none();
    same.then(|| net.push(Op::Smooth(Smooth::Silu), &[x.id], x.dims.clone()).map(Known::Value))
}

/// A last function that something reads after all, as a node.
pub(super) fn applied(net: &mut Importer, value: &Value, finish: &Finish) -> Reason<Value> {
    match finish.function {
        Function::Sigmoid => net.push(Op::Smooth(Smooth::Sigmoid), &[value.id], value.dims.clone()),
        _ => normal::softmax(net, value, finish),
    }
}

/// What x is multiplied with, if the product is a known function of x.
pub(super) fn known_product(net: &Importer, x: ValueId, gate: ValueId) -> Option<(Smooth, f32)> {
    let node = |v: ValueId| v.checked_sub(1).map(|i| &net.graph.nodes[i]);
    let uniform = |v: ValueId| -> Option<(f32, f32, ValueId)> {
        let n = node(v)?;
        let Op::Affine { parameters: p } = &n.op else { return None };
        let one = |v: &[f32]| v.iter().all(|x| *x == v[0]).then_some(v[0]);
        Some((one(&p.weight)?, one(&p.bias)?, n.inputs[0]))
    };
    // x tanh(softplus(x))
    if let Some(n) = node(gate)
        && n.op == Op::Smooth(Smooth::Tanh)
        && let Some(inner) = node(n.inputs[0])
        && inner.op == Op::Smooth(Smooth::Softplus)
        && inner.inputs[0] == x
    {
        return Some((Smooth::Mish, 1.0));
    }
    // x min(max(x/6 + 1/2, 0), 1), or with x + 3 and 6
    if let Some(n) = node(gate)
        && let Op::Clip { lo: Some(0.0), hi: Some(hi) } = n.op
        && let Some((w, b, inner)) = uniform(n.inputs[0])
        && inner == x
        && hi > 0.0
        && (w / hi - 1.0 / 6.0).abs() < 1e-6
        && (b / hi - 0.5).abs() < 1e-6
    {
        return Some((Smooth::HardSwish, hi));
    }
    // c x (1 + erf(x / sqrt 2))
    let (w, b, inner) = uniform(gate)?;
    let erf = node(inner)?;
    if erf.op != Op::Smooth(Smooth::Erf) || (w - b).abs() > 1e-6 * w.abs() {
        return None;
    }
    let (scale, shift, source) = uniform(erf.inputs[0])?;
    let fits = source == x && shift == 0.0 && (scale - std::f32::consts::FRAC_1_SQRT_2).abs() < 1e-5;
    fits.then_some((Smooth::Gelu, 2.0 * w))
}
