//! Cross-layer equalisation: output channels of a linear layer are brought to one magnitude, and the next
//! linear layer takes the factors back. Exact wherever what lies between is positively homogeneous and acts
//! on each channel alone.

use super::{Changes, only_reader};
use crate::graph::{Graph, Op};

/// Factors stay powers of two, so that scaling loses no bit of a weight.
const MAX_SHIFT: i32 = 6;

pub(super) fn channels(graph: &mut Graph, changes: &mut Changes) {
    for first in 0..graph.nodes.len() {
        let Op::Linear { conv, parameters } = &graph.nodes[first].op else { continue };
        let Some(second) = partner(graph, first) else { continue };
        let Op::Linear { conv: next, parameters: taken } = &graph.nodes[second].op else { continue };
        if next.groups != 1 || next.c_in != conv.c_out {
            continue;
        }
        let channels = conv.c_out;
        let taps = parameters.weight.len() / channels;
        let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0f32, |a, v| a.max(v.abs()));
        let out: Vec<f32> = (0..channels)
            .map(|o| {
                let row = &parameters.weight[o * taps..(o + 1) * taps];
                largest(&mut row.iter().copied().chain([parameters.bias[o]]))
            })
            .collect();
        let into: Vec<f32> = (0..channels)
            .map(|c| largest(&mut taken.weight.iter().skip(c).step_by(channels).copied()))
            .collect();
        // Bring each channel's weights up towards those of the layer's largest, and no further than the
        // next layer's weights can give way.
        let top = out.iter().copied().fold(0f32, f32::max);
        let shift = |o: usize| {
            if out[o] <= 0.0 || into[o] <= 0.0 {
                return 0;
            }
            let room = (top / out[o]).log2();
            let balance = 0.5 * (into[o] / out[o]).log2();
            room.min(balance.max(0.0)).floor().clamp(0.0, MAX_SHIFT as f32) as i32
        };
        let shifts: Vec<i32> = (0..channels).map(shift).collect();
        if shifts.iter().all(|&s| s == 0) {
            continue;
        }
        let factor = |s: i32| 2f32.powi(s);
        if let Some(p) = graph.nodes[first].op.parameters_mut() {
            for (o, row) in p.weight.chunks_exact_mut(taps).enumerate() {
                row.iter_mut().for_each(|w| *w *= factor(shifts[o]));
                p.bias[o] *= factor(shifts[o]);
            }
        }
        if let Some(p) = graph.nodes[second].op.parameters_mut() {
            for (j, w) in p.weight.iter_mut().enumerate() {
                *w *= factor(-shifts[j % channels]);
            }
        }
        changes.equalised += shifts.iter().filter(|&&s| s != 0).count();
    }
}

/// The next linear layer behind a chain of homogeneous layers, each read by the next only.
fn partner(graph: &Graph, first: usize) -> Option<usize> {
    let mut at = only_reader(graph, first + 1)?;
    loop {
        match graph.nodes[at].op {
            Op::Linear { .. } => return Some(at),
            Op::Relu | Op::LeakyRelu { .. } | Op::MaxPool(_) | Op::Weighted { .. } => {
                at = only_reader(graph, at + 1)?;
            }
            _ => return None,
        }
    }
}
