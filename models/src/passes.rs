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
    unused(graph);
    fold::affine(graph, &mut changes);
    order::pool_before_relu(graph, &mut changes);
    order::permutation_into_dense(graph, &mut changes);
    equalise::channels(graph, &mut changes);
    graph.validate()?;
    Ok(changes)
}

/// Drops nodes that nothing reads, as import leaves some behind.
fn unused(graph: &mut Graph) {
    let mut needed = vec![false; graph.nodes.len() + 1];
    graph.outputs.iter().for_each(|o| needed[o.value] = true);
    for i in (0..graph.nodes.len()).rev() {
        if needed[i + 1] {
            graph.nodes[i].inputs.iter().for_each(|&v| needed[v] = true);
        }
    }
    for i in (0..graph.nodes.len()).rev() {
        if !needed[i + 1] {
            remove(graph, i);
        }
    }
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

#[cfg(test)]
mod tests {
    use sharelens_protocol::ring::kernel::Conv;

    use super::*;
    use crate::float;
    use crate::graph::{Op, Output, Parameters};

    fn node(name: &str, op: Op, inputs: &[ValueId], shape: &[usize]) -> Node {
        Node { name: name.into(), op, inputs: inputs.to_vec(), shape: shape.to_vec() }
    }

    fn dense(k: usize, cols: usize, weight: Vec<f32>) -> Op {
        let bias = (0..cols).map(|o| 0.1 * o as f32).collect();
        Op::Linear { conv: Conv::dense(1, k, cols), parameters: Parameters { weight, bias } }
    }

    /// Two dense layers, the first with one channel far smaller than the other.
    fn uneven() -> Graph {
        Graph {
            name: "uneven".into(),
            input_name: "x".into(),
            input_shape: vec![1, 2],
            nodes: vec![
                node("first", dense(2, 2, vec![4.0, -3.0, 0.01, 0.02]), &[0], &[1, 2]),
                node("relu", Op::Relu, &[1], &[1, 2]),
                node("second", dense(2, 1, vec![0.5, 7.0]), &[2], &[1, 1]),
            ],
            outputs: vec![Output { name: "y".into(), value: 3, original_shape: vec![1, 1], finish: None }],
        }
    }

    #[test]
    fn equalising_keeps_the_function() {
        let before = uneven();
        let mut after = before.clone();
        assert_eq!(simplify(&mut after).expect("valid").equalised, 1);
        let largest = |g: &Graph| g.nodes[0].op.parameters().expect("linear").weight[3];
        assert!(largest(&after) >= 8.0 * largest(&before));
        for x in [[1.0, 2.0], [-3.0, 0.5], [0.0, 9.0]] {
            assert_eq!(float::run(&before, &x).expect("runs"), float::run(&after, &x).expect("runs"));
        }
    }

    #[test]
    fn what_is_read_twice_or_yielded_is_left_alone() {
        let mut g = uneven();
        g.outputs.push(Output { name: "z".into(), value: 2, original_shape: vec![1, 2], finish: None });
        assert_eq!(simplify(&mut g).expect("valid"), Changes::default());
    }
}
