//! What is in an ONNX file, supported or not.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result, Unsupported};
use crate::graph::{Graph, Op};
use crate::model::read_onnx;
use crate::onnx;

/// A report on an ONNX file.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Whether it can be imported.
    pub supported: bool,
    /// Nodes that stand in the way.
    pub unsupported: Vec<Unsupported>,
    /// How often each operator occurs.
    pub operators: BTreeMap<String, usize>,
    /// The network, if it can be imported.
    pub network: Option<Network>,
}

/// An importable network.
#[derive(Clone, Debug, Serialize)]
pub struct Network {
    /// Name of the graph.
    pub name: String,
    /// Name of the input.
    pub input: String,
    /// Shape of the input, `[n, h, w, c]` for pictures.
    pub input_shape: Vec<usize>,
    /// Names and shapes of the outputs, as in the file.
    pub outputs: Vec<(String, Vec<usize>)>,
    /// Secret numbers, after expansion of per-channel constants.
    pub parameters: usize,
    /// Multiply-accumulates of one run.
    pub macs: u64,
    /// One entry per step.
    pub layers: Vec<LayerReport>,
}

/// One step of a network.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Name of the node.
    pub name: String,
    /// What it does.
    pub op: &'static str,
    /// Shape of its output, in storage order.
    pub shape: Vec<usize>,
    /// Secret numbers.
    pub parameters: usize,
    /// Multiply-accumulates.
    pub macs: u64,
}

/// Reports on the ONNX file at `path`.
///
/// # Errors
///
/// If the file is damaged; nodes that are not supported are part of the report.
pub fn inspect(path: &Path) -> Result<Inspection> {
    inspect_bytes(&read_onnx(path)?)
}

/// Reports on the bytes of an ONNX file.
///
/// # Errors
///
/// As [`inspect`].
pub fn inspect_bytes(bytes: &[u8]) -> Result<Inspection> {
    let operators = onnx::operators(bytes)?;
    match onnx::import(bytes) {
        Ok(graph) => Ok(Inspection {
            supported: true,
            unsupported: Vec::new(),
            operators,
            network: Some(network(&graph)),
        }),
        Err(Error::Unsupported(unsupported)) => {
            Ok(Inspection { supported: false, unsupported, operators, network: None })
        }
        Err(other) => Err(other),
    }
}

/// Reports on an imported network.
pub fn network(graph: &Graph) -> Network {
    let layer = |n: &crate::graph::Node| LayerReport {
        name: n.name.clone(),
        op: n.op.label(),
        shape: n.shape.clone(),
        parameters: n.op.parameters().map_or(0, |p| p.weight.len() + p.bias.len()),
        macs: if let Op::Linear { conv, .. } = &n.op { conv.macs() } else { 0 },
    };
    Network {
        name: graph.name.clone(),
        input: graph.input_name.clone(),
        input_shape: graph.input_shape.clone(),
        outputs: graph.outputs.iter().map(|o| (o.name.clone(), o.original_shape.clone())).collect(),
        parameters: graph.parameter_count(),
        macs: graph.macs(),
        layers: graph.nodes.iter().map(layer).collect(),
    }
}
