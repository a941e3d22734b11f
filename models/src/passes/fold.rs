//! Factors and summands per channel (batch normalisation among them) go into a neighbouring linear layer.

use sharelens_protocol::ring::kernel::Conv;

use super::{Changes, only_reader, remove};
use crate::arrange::Arrange;
use crate::graph::{Graph, Op, Parameters};

pub(super) fn affine(graph: &mut Graph, changes: &mut Changes) {
    let mut i = 0;
    while i < graph.nodes.len() {
        if matches!(graph.nodes[i].op, Op::Affine { .. }) && (into_previous(graph, i) || into_next(graph, i))
        {
            remove(graph, i);
            changes.folded += 1;
            // Removal may bring another one next to a linear layer that was passed already.
            i = 0;
            continue;
        }
        i += 1;
    }
    for i in 0..graph.nodes.len() {
        if let Op::Affine { parameters } = &graph.nodes[i].op {
            let period = parameters.weight.len();
            let conv = Conv { groups: period, ..Conv::dense(graph.len(i + 1) / period, period, period) };
            let parameters = parameters.clone();
            graph.nodes[i].op = Op::Linear { conv, parameters };
            changes.kept += 1;
        }
    }
}

fn parameters(graph: &Graph, i: usize) -> Parameters {
    graph.nodes[i].op.parameters().cloned().unwrap_or_default()
}

/// `(w x + b) f + s = (w f) x + (b f + s)`, where the linear layer before is read here only.
fn into_previous(graph: &mut Graph, i: usize) -> bool {
    let affine = parameters(graph, i);
    let value = graph.nodes[i].inputs[0];
    if value == 0 || only_reader(graph, value) != Some(i) {
        return false;
    }
    match &mut graph.nodes[value - 1].op {
        Op::Linear { conv, parameters } if conv.c_out == affine.weight.len() => {
            let taps = parameters.weight.len() / conv.c_out;
            for (row, &f) in parameters.weight.chunks_exact_mut(taps).zip(&affine.weight) {
                row.iter_mut().for_each(|w| *w = (f64::from(*w) * f64::from(f)) as f32);
            }
            for (b, (&f, &s)) in parameters.bias.iter_mut().zip(affine.weight.iter().zip(&affine.bias)) {
                *b = (f64::from(*b) * f64::from(f) + f64::from(s)) as f32;
            }
            true
        }
        Op::Affine { parameters } if parameters.weight.len() == affine.weight.len() => {
            for (j, (&f, &s)) in affine.weight.iter().zip(&affine.bias).enumerate() {
                let (w, b) = (&mut parameters.weight[j], &mut parameters.bias[j]);
                *b = (f64::from(*b) * f64::from(f) + f64::from(s)) as f32;
                *w = (f64::from(*w) * f64::from(f)) as f32;
            }
            true
        }
        // Through the phases of a transposed convolution, each of which belongs to one channel.
        Op::Arrange(Arrange::Phases(t)) if t.c_out == affine.weight.len() => {
            let t = *t;
            let before = graph.nodes[value - 1].inputs[0];
            if before == 0 || only_reader(graph, before) != Some(value - 1) {
                return false;
            }
            let (factor, shift) = (t.bias(&affine.weight), t.bias(&affine.bias));
            let Op::Linear { conv, parameters } = &mut graph.nodes[before - 1].op else { return false };
            let taps = parameters.weight.len() / conv.c_out;
            for (o, row) in parameters.weight.chunks_exact_mut(taps).enumerate() {
                row.iter_mut().for_each(|w| *w = (f64::from(*w) * f64::from(factor[o])) as f32);
                let b = &mut parameters.bias[o];
                *b = (f64::from(*b) * f64::from(factor[o]) + f64::from(shift[o])) as f32;
            }
            true
        }
        _ => false,
    }
}

/// `w (x f + s) + b = (w f) x + (w s + b)`; with a summand the next layer must not pad, since padding is zero
/// after the sum and not before it.
fn into_next(graph: &mut Graph, i: usize) -> bool {
    let affine = parameters(graph, i);
    let Some(next) = only_reader(graph, i + 1) else { return false };
    let Op::Linear { conv, parameters } = &mut graph.nodes[next].op else { return false };
    let shifts = affine.bias.iter().any(|&s| s != 0.0);
    if conv.c_in != affine.weight.len() || shifts && conv.pad != [0; 4] {
        return false;
    }
    let (per_in, per_out) = (conv.c_in / conv.groups, conv.c_out / conv.groups);
    let taps = parameters.weight.len() / conv.c_out;
    for (o, row) in parameters.weight.chunks_exact_mut(taps).enumerate() {
        let group = o / per_out;
        let mut sum = f64::from(parameters.bias[o]);
        for (j, w) in row.iter_mut().enumerate() {
            let c = group * per_in + j % per_in;
            sum += f64::from(*w) * f64::from(affine.bias[c]);
            *w = (f64::from(*w) * f64::from(affine.weight[c])) as f32;
        }
        parameters.bias[o] = sum as f32;
    }
    true
}
