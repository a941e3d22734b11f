//! Cheaper orders of layers that commute.

use sharelens_ops::layers::movement::transpose;

use super::{Changes, only_reader, remove};
use crate::arrange::Arrange;
use crate::graph::{Graph, Op};

/// Max-pool and ReLU commute; the pool first divides the number of ReLUs by the stride squared.
pub(super) fn pool_before_relu(graph: &mut Graph, changes: &mut Changes) {
    for i in 0..graph.nodes.len() {
        if !matches!(graph.nodes[i].op, Op::MaxPool(_)) {
            continue;
        }
        let value = graph.nodes[i].inputs[0];
        if value == 0 || graph.nodes[value - 1].op != Op::Relu || only_reader(graph, value) != Some(i) {
            continue;
        }
        // The two change places in the list; their reader goes on reading the later one.
        let relu = value - 1;
        let pool = std::mem::replace(&mut graph.nodes[i].op, Op::Relu);
        graph.nodes[relu].op = pool;
        graph.nodes[relu].shape = graph.nodes[i].shape.clone();
        let name = std::mem::take(&mut graph.nodes[i].name);
        graph.nodes[i].name = std::mem::replace(&mut graph.nodes[relu].name, name);
        changes.pools_moved += 1;
    }
}

/// A feature map flattened for a dense layer is permuted first; permute the columns of the layer instead.
pub(super) fn permutation_into_dense(graph: &mut Graph, changes: &mut Changes) {
    let mut i = 0;
    while i < graph.nodes.len() {
        if permuted_input(graph, i) {
            changes.movements += 1;
            i = 0;
        } else {
            i += 1;
        }
    }
    // What is left of reshapes costs nothing.
}

/// Matches transpose (from `[n, h, w, c]`, batch kept first), reshape to rows, dense.
fn permuted_input(graph: &mut Graph, i: usize) -> bool {
    let Op::Arrange(Arrange::Transpose { permutation }) = &graph.nodes[i].op else { return false };
    if permutation.first() != Some(&0) {
        return false;
    }
    let from = graph.shape(graph.nodes[i].inputs[0]).to_vec();
    let (rows, columns) = (from[0], from[1..].iter().product::<usize>());
    let tail: Vec<usize> = permutation[1..].iter().map(|&a| a - 1).collect();
    let index = transpose(&from[1..], &tail);
    let Some(reshape) =
        only_reader(graph, i + 1).filter(|&r| graph.nodes[r].op == Op::Arrange(Arrange::Reshape))
    else {
        return false;
    };
    let Some(dense) = only_reader(graph, reshape + 1) else { return false };
    let Op::Linear { conv, parameters } = &mut graph.nodes[dense].op else { return false };
    if (conv.h, conv.w, conv.c_in) != (1, rows, columns) || conv.groups != 1 || conv.kernel != [1, 1] {
        return false;
    }
    for row in parameters.weight.chunks_exact_mut(columns) {
        let old = row.to_vec();
        // Column j belonged to element index[j] of the value before it was permuted.
        index.iter().zip(old).for_each(|(&place, w)| row[place as usize] = w);
    }
    remove(graph, i);
    true
}
