//! Rewrites of a network that leave its function as it is and its secure evaluation cheaper.

use crate::error::Result;
use crate::graph::{Graph, Node, ValueId};

mod equalise;
mod fold;
mod order;

/// What [`simplify`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Changes {
    /// Factors and summands folded into linear layers.
    pub folded: usize,
    /// Those that had to become linear layers of their own.
    pub kept: usize,
    /// Max-pools moved before a ReLU.
    pub pools_moved: usize,
    /// Permutations of features folded into dense layers, and reshapes dropped.
    pub movements: usize,
    /// Channels whose weights were brought to one magnitude.
    pub equalised: usize,
}

/// All rewrites, in order.
///
/// # Errors
///
/// If the result does not validate, which would be a mistake of the rewrites.
pub fn simplify(graph: &mut Graph) -> Result<Changes> {
    let mut changes = Changes::default();
    fold::affine(graph, &mut changes);
    order::pool_before_relu(graph, &mut changes);
    order::permutation_into_dense(graph, &mut changes);
    equalise::channels(graph, &mut changes);
    graph.validate()?;
    Ok(changes)
}

/// Nodes that read `value`.
fn readers(graph: &Graph, value: ValueId) -> Vec<usize> {
    (0..graph.nodes.len()).filter(|&i| graph.nodes[i].inputs.contains(&value)).collect()
}

/// The only node that reads `value`, if there is exactly one reader and it is no output.
fn only_reader(graph: &Graph, value: ValueId) -> Option<usize> {
    if graph.outputs.iter().any(|o| o.value == value) {
        return None;
    }
    match readers(graph, value)[..] {
        [only] => Some(only),
        _ => None,
    }
}

/// Drops node `i`, whose readers read its (first) input instead.
fn remove(graph: &mut Graph, i: usize) {
    let (value, replacement) = (i + 1, graph.nodes[i].inputs[0]);
    graph.nodes.remove(i);
    let renumber = |v: &mut ValueId| {
        *v = match *v {
            v if v == value => replacement,
            v if v > value => v - 1,
            v => v,
        }
    };
    let Graph { nodes, outputs, .. } = graph;
    nodes.iter_mut().flat_map(|n: &mut Node| &mut n.inputs).for_each(renumber);
    outputs.iter_mut().for_each(|o| renumber(&mut o.value));
}
