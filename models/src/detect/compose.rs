//! One network from backbone, region proposal network, stages and box head.

use sharelens_ops::detect::rank;

use super::{COLUMNS, Settings, Stage};
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Op, Output, ValueId};

/// Names of the results of a detector.
pub const OUTPUTS: [&str; 3] = ["detections", "unsettled proposals", "unsettled detections"];

/// The detector of these settings. `first` yields features, logits and deltas, `head` takes the features of
/// proposals and yields class logits and box deltas, each found by name, else in this order.
///
/// # Errors
///
/// If the graphs do not fit together.
pub fn compose(first: Graph, head: &Graph, s: &Settings) -> Result<Graph> {
    s.validate()?;
    let [features, logits, deltas] = outputs(&first, ["features", "rpn_logits", "rpn_deltas"])?;
    let [class_logits, box_deltas] = outputs(head, ["class_logits", "box_deltas"])?;
    let shape = |v: ValueId| first.shape(v).to_vec();
    let bad = |why: String| Error::Config(why);
    let (&[1, fh, fw, _], &[1, lh, lw, a]) = (&shape(features)[..], &shape(logits)[..]) else {
        return Err(bad("features or logits are no feature maps of one picture".into()));
    };
    if (fh, fw) != (lh, lw) || a != s.anchors.len() {
        return Err(bad(format!("{a} logits per cell for {} anchors", s.anchors.len())));
    }
    let &[_, h, w, _] = &first.input_shape[..] else {
        return Err(bad("the first graph does not take pictures".into()));
    };
    let extent = [w as f64 / s.stride, h as f64 / s.stride];
    let k = s.rpn.after;
    let unit = |v: f64| v / s.stride;
    let anchors = s.anchors.iter().map(|&[x1, y1, x2, y2]| {
        [unit((x1 + x2) / 2.0), unit((y1 + y2) / 2.0), unit(x2 - x1), unit(y2 - y1)]
    });
    let anchors: Vec<[f64; 4]> = anchors.collect();
    let side = anchors.iter().fold(0f64, |a, v| a.max(v[2]).max(v[3]));
    let count = lh * lw * a;
    let before = s.rpn.before.min(count);
    let mut net = Composer { graph: first };
    net.graph.outputs.clear();

    let top = Stage::TopAnchors { anchors, k: before, levels: rank::levels(count, before) };
    let anchors = net.stage("rpn.top", top, &[logits, deltas])?;
    let boxes = net.stage("rpn.decode", Stage::Decode { extent, limit: s.rpn.limit, side }, &[anchors])?;
    let suppress = Stage::Suppress {
        extent,
        least_side: unit(s.rpn.least_side),
        threshold: s.rpn.overlap,
        steps: s.rpn.steps.min(before.max(2)),
        score: None,
    };
    let unsettled = Stage::Unsettled { steps: s.rpn.steps.min(before.max(2)) };
    let keep = net.stage("rpn.suppress", suppress, &[boxes])?;
    let unsettled_proposals = net.stage("rpn.unsettled", unsettled, &[keep])?;
    let proposals = net.stage("rpn.proposals", Stage::KeepFirst { k, columns: 4 }, &[boxes, keep])?;
    let roi = Stage::RoiAlign { extent, bins: s.roi.bins, samples: s.roi.samples, aligned: s.roi.aligned };
    let roi = net.stage("roi_align", roi, &[features, proposals])?;
    if net.graph.shape(roi) != head.input_shape {
        return Err(bad(format!(
            "the box head takes {:?}, and proposals have features of shape {:?}",
            head.input_shape,
            net.graph.shape(roi)
        )));
    }
    let offset = net.graph.nodes.len();
    let place = |v: ValueId| if v == 0 { roi } else { offset + v };
    let moved =
        head.nodes.iter().map(|n| Node { inputs: n.inputs.iter().map(|&v| place(v)).collect(), ..n.clone() });
    net.graph.nodes.extend(moved);
    let (class_logits, box_deltas) = (place(class_logits), place(box_deltas));
    let scores =
        net.stage("box.scores", Stage::Scores { floor: (s.head.score / 2.0).max(1e-3) }, &[class_logits])?;
    let decode = Stage::DecodeClasses { extent, weights: s.head.weights, limit: s.head.limit };
    let boxes = net.stage("box.decode", decode, &[proposals, box_deltas])?;
    let list = net.stage("box.rank", Stage::RankDetections, &[scores, boxes, proposals])?;
    let rows = net.graph.shape(list)[0];
    let classes = net.graph.shape(scores)[1];
    let suppress = Stage::Suppress {
        extent,
        least_side: unit(s.head.least_side),
        threshold: s.head.overlap,
        steps: s.head.steps.min(rows.max(2)),
        score: Some((s.head.score, classes)),
    };
    let unsettled = Stage::Unsettled { steps: s.head.steps.min(rows.max(2)) };
    let kept = net.stage("box.suppress", suppress, &[list])?;
    let unsettled_detections = net.stage("box.unsettled", unsettled, &[kept])?;
    let d = s.head.detections.min(rows);
    let found = net.stage("box.detections", Stage::KeepFirst { k: d, columns: COLUMNS }, &[list, kept])?;
    for (name, value) in OUTPUTS.into_iter().zip([found, unsettled_proposals, unsettled_detections]) {
        let original_shape = net.graph.shape(value).to_vec();
        net.graph.outputs.push(Output { name: name.into(), value, original_shape, finish: None });
    }
    net.graph.validate()?;
    Ok(net.graph)
}

/// The values of these outputs: by name if all names are there, else in order.
fn outputs<const N: usize>(graph: &Graph, names: [&str; N]) -> Result<[ValueId; N]> {
    let named = names.map(|n| graph.outputs.iter().find(|o| o.name == n).map(|o| o.value));
    if named.iter().all(Option::is_some) {
        return Ok(named.map(|v| v.expect("all are there")));
    }
    let values: Vec<ValueId> = graph.outputs.iter().map(|o| o.value).collect();
    values.try_into().map_err(|v: Vec<_>| {
        Error::Config(format!("{} has {} outputs, expected {}", graph.name, v.len(), names.join(", ")))
    })
}

struct Composer {
    graph: Graph,
}

impl Composer {
    fn push(&mut self, name: String, op: Op, inputs: &[ValueId], shape: Vec<usize>) -> ValueId {
        self.graph.nodes.push(Node { name, op, inputs: inputs.to_vec(), shape });
        self.graph.nodes.len()
    }

    fn stage(&mut self, name: &str, stage: Stage, inputs: &[ValueId]) -> Result<ValueId> {
        let shapes: Vec<&[usize]> = inputs.iter().map(|&v| self.graph.shape(v)).collect();
        let shape = stage.shape(&shapes).map_err(|reason| Error::Graph { node: name.into(), reason })?;
        Ok(self.push(name.into(), Op::Detect(stage), inputs, shape))
    }
}
