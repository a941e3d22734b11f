//! From stages in real units to stages of a program.

use futures::executor::block_on;
use sharelens_ops::Planner;
use sharelens_ops::detect::{
    Decode, DecodeClasses, Extent, KeepFirst, RankDetections, RoiAlign, Suppress, TopAnchors, Unsettled,
};
use sharelens_ops::plain::Bounds;
use sharelens_ops::planner::Length;
use sharelens_protocol::Step;
use sharelens_protocol::compare::Rounds;
use sharelens_protocol::ring::{Range, Z64};

use super::{COLUMNS, COORDINATES, Stage};
use crate::error::{Error, Result};
use crate::graph::{Graph, Op, ValueId};
use crate::program::Value;
use crate::program::detect::{self, Given};
use crate::scales::Scales;

/// Scale that features of proposals should have.
const FEATURES: f64 = 65_536.0;
/// Scale that scores should have.
const SCORES: f64 = 131_072.0;
/// How far a box may move, in sides of its anchor.
const REACH: f64 = 64.0;

/// The stage that node `i` of a network becomes.
///
/// # Errors
///
/// If it is no stage, or a list of detections was not made from scores.
pub fn stage(graph: &Graph, i: usize, scales: &Scales, bounds: &Bounds) -> Result<detect::Stage> {
    let node = &graph.nodes[i];
    let bad = |reason: &str| Error::Graph { node: node.name.clone(), reason: reason.into() };
    let Op::Detect(stage) = &node.op else { return Err(bad("it is no stage of a detector")) };
    let shapes: Vec<&[usize]> = node.inputs.iter().map(|&v| graph.shape(v)).collect();
    let own: Vec<f64> = node.inputs.iter().map(|&v| scales.scale[v]).collect();
    let scores = match stage {
        Stage::Suppress { score: Some(_), .. } => scores(graph, node.inputs[0])
            .map(|v| scales.scale[v])
            .ok_or_else(|| bad("its rows are no list of detections"))?,
        _ => 1.0,
    };
    Ok(lowered(stage, &shapes, &own, bounds, scores))
}

/// The scores from which a list of detections was made.
fn scores(graph: &Graph, list: ValueId) -> Option<ValueId> {
    let node = &graph.nodes[list.checked_sub(1)?];
    matches!(node.op, Op::Detect(Stage::RankDetections)).then_some(node.inputs[0])
}

/// Scales of the columns of a value that has several: of detections.
pub fn columns(graph: &Graph, scales: &Scales, value: ValueId) -> Vec<f64> {
    let Some(node) = value.checked_sub(1).map(|i| &graph.nodes[i]) else { return Vec::new() };
    let Op::Detect(Stage::KeepFirst { columns: COLUMNS, .. }) = node.op else { return Vec::new() };
    scores(graph, node.inputs[0]).map_or_else(Vec::new, |v| {
        let c = COORDINATES;
        vec![c, c, c, c, scales.scale[v], 1.0]
    })
}

/// Largest magnitudes of the inputs of node `i` that its stage has to reckon with.
pub fn limits(graph: &Graph, i: usize, peaks: &[f64], margin: f64) -> Vec<f64> {
    graph.nodes[i].inputs.iter().map(|&v| peaks[v] * margin).collect()
}

/// The stage of a program, for inputs of these shapes and scales; `score_scale` is that of the scores that a list
/// of detections was made from.
fn lowered(
    stage: &Stage,
    shapes: &[&[usize]],
    scales: &[f64],
    bounds: &Bounds,
    score_scale: f64,
) -> detect::Stage {
    let x = shapes[0];
    let place = |e: &[f64; 2]| Extent { width: e[0], height: e[1], scale: COORDINATES };
    // A hundredth below the end of the range of lifts.
    let reach = |scale: f64| REACH.min(0.99 * bounds.lift as f64 / scale);
    match stage {
        Stage::TopAnchors { anchors, k, levels } => detect::Stage::TopAnchors(TopAnchors {
            grid: [x[1], x[2]],
            anchors: anchors.clone(),
            k: *k,
            levels: levels.clone(),
        }),
        Stage::Decode { extent, limit, side } => detect::Stage::Decode(Decode {
            rows: x[0],
            extent: place(extent),
            limit: *limit,
            reach: reach(scales[0]),
            side: *side,
        }),
        Stage::Suppress { extent, least_side, threshold, steps, score } => {
            let least = score.map(|(s, _)| vec![(4, (s * score_scale).floor() as i64 + 1), (6, 1)]);
            detect::Stage::Suppress(Suppress {
                rows: x[0],
                width: x[1],
                extent: place(extent),
                least_side: (least_side * COORDINATES).ceil() as i64,
                least: least.unwrap_or_default(),
                class: score.map(|_| 5),
                classes: score.map_or(0, |(_, c)| c),
                threshold: *threshold,
                steps: *steps,
            })
        }
        Stage::Unsettled { steps } => detect::Stage::Unsettled(Unsettled { rows: x[1], steps: *steps }),
        Stage::KeepFirst { k, columns } => {
            detect::Stage::KeepFirst(KeepFirst { rows: x[0], width: x[1], columns: *columns, k: *k })
        }
        Stage::RoiAlign { extent, bins, samples, aligned } => detect::Stage::RoiAlign(RoiAlign {
            boxes: shapes[1][0],
            map: [x[1], x[2], x[3]],
            extent: place(extent),
            bins: *bins,
            samples: *samples,
            aligned: *aligned,
            scale: FEATURES,
        }),
        Stage::Scores { floor } => {
            // Keys hold a score and a place, and differences of them are compared.
            let rows = (x[0] * (x[1] - 1)) as f64;
            let room = bounds.reduced as f64 / (4.0 * (rows + 1.0));
            detect::Stage::Scores { classes: x[1], floor: *floor, scale: SCORES.min(room) }
        }
        Stage::DecodeClasses { extent, weights, limit } => detect::Stage::DecodeClasses(DecodeClasses {
            proposals: x[0],
            classes: shapes[1][1] / 4,
            extent: place(extent),
            weights: *weights,
            limit: *limit,
            reach: reach(scales[1] * weights[0]),
        }),
        Stage::RankDetections => {
            detect::Stage::RankDetections(RankDetections { proposals: x[0], classes: x[1] })
        }
    }
}

/// Scale of what node `i` yields, which follows from the ring and the scales of its inputs: found by planning it.
///
/// # Errors
///
/// If its numbers do not fit the ring.
pub fn scale(
    graph: &Graph,
    i: usize,
    stage: &detect::Stage,
    scales: &Scales,
    peaks: &[f64],
    margin: f64,
    bounds: &Bounds,
) -> Result<f64> {
    let node = &graph.nodes[i];
    let bounds_of = limits(graph, i, peaks, margin);
    let mut planner = Planner::<Z64>::new(Rounds::Balanced);
    let value = |(j, &v): (usize, &ValueId)| match stage.kind().wants(j).range() {
        Range::Full => Value::Full(Length::new(graph.len(v))),
        Range::Reduced => Value::Reduced(Length::new(graph.len(v))),
    };
    let inputs = node.inputs.iter().enumerate().map(value).collect();
    let given = node.inputs.iter().zip(bounds_of);
    let given: Vec<Given> = given.map(|(&v, bound)| Given { bound, scale: scales.scale[v] }).collect();
    let fail = |why: String| Error::Range(format!("{}: {why}", node.name));
    let planned = block_on(stage.run(&mut planner, Step::layer(0), bounds, inputs, &given));
    let (_, scale) = planned.map_err(|e| fail(e.to_string()))?;
    scale.ok_or_else(|| fail("its scale does not depend on the ring".into()))
}
