//! The stages of a detector against what torchvision did with the same numbers (`data/torchvision.py` recorded it):
//! ties, nothing above the threshold, identical boxes, boxes at the border and without area among them.

use std::sync::Arc;

use futures::executor::block_on;
use serde_json::Value;
use sharelens_ops::detect::{
    Decode, DecodeClasses, Extent, KeepFirst, RankDetections, RoiAlign, Suppress, TopAnchors, Unsettled, rank,
};
use sharelens_ops::number::{Number, Scope};
use sharelens_ops::plain::{Bounds, Rounding, Values};
use sharelens_ops::{Plain, real};
use sharelens_protocol::Step;
use sharelens_protocol::ring::{Domain, Full, Reduced};

const STRIDE: f64 = 8.0;
const GRID: [usize; 2] = [6, 8];
const EXTENT: Extent = Extent { width: 8.0, height: 6.0, scale: 16_384.0 };
/// torchvision's log(1000 / 16).
const LIMIT: f64 = 4.135_166_556_742_356;
const FINE: f64 = 1_048_576.0;
const LOGITS: f64 = 65_536.0;

fn recorded() -> Value {
    serde_json::from_str(include_str!("data/torchvision.json")).expect("it was written by the script")
}

fn numbers(v: &Value) -> Vec<f64> {
    match v {
        Value::Array(a) => a.iter().flat_map(numbers).collect(),
        v => vec![v.as_f64().expect("a number")],
    }
}

fn integers<D: Domain>(v: &Value, scale: f64) -> Values<D> {
    numbers(v).iter().map(|v| (v * scale).round() as i64).collect::<Vec<_>>().into()
}

fn number<D: Domain>(scope: &Scope, v: &Value, scale: f64) -> Number<Plain, D> {
    let bound = numbers(v).iter().fold(1f64, |a, v| a.max(v.abs()));
    Number::new(scope, integers::<D>(v, scale), scale, bound).expect("fits")
}

fn plain() -> (Plain, Bounds) {
    let bounds = Bounds::rns(&[255, 253, 251, 247], &[241, 239, 233]).expect("fits 64 bits");
    (Plain::new(bounds, Arc::new(Vec::new())).with_rounding(Rounding::Random(3)), bounds)
}

fn size(v: &Value) -> usize {
    v.as_u64().expect("a count") as usize
}

/// Rows of four corners, in pixels, without padding.
fn boxes(rows: &[i64], width: usize) -> Vec<[f64; 4]> {
    let rows = rows.chunks_exact(width).filter(|r| r[..4].iter().any(|&v| v != 0));
    rows.map(|r| [r[0], r[1], r[2], r[3]].map(|v| v as f64 / EXTENT.scale * STRIDE)).collect()
}

fn assert_close(name: &str, found: &[[f64; 4]], wanted: &Value) {
    let wanted: Vec<[f64; 4]> =
        numbers(wanted).chunks_exact(4).map(|b| b.try_into().expect("four")).collect();
    assert_eq!(found.len(), wanted.len(), "{name}");
    for (f, w) in found.iter().zip(&wanted) {
        assert!(f.iter().zip(w).all(|(f, w)| (f - w).abs() < 0.02), "{name}: {f:?} instead of {w:?}");
    }
}

#[test]
fn proposals() {
    for case in recorded()["rpn"].as_array().expect("cases") {
        let name = case["name"].as_str().expect("a name");
        let corners = numbers(&case["anchors"]);
        let anchors: Vec<[f64; 4]> = corners
            .chunks_exact(4)
            .map(|b| [(b[0] + b[2]) / 2.0, (b[1] + b[3]) / 2.0, b[2] - b[0], b[3] - b[1]])
            .map(|b| b.map(|v| v / STRIDE))
            .collect();
        let side = anchors.iter().fold(0f64, |a, v| a.max(v[2]).max(v[3]));
        let count = GRID[0] * GRID[1] * anchors.len();
        let (before, after) = (size(&case["before"]), size(&case["after"]));
        let top = TopAnchors { grid: GRID, anchors, k: before, levels: rank::levels(count, before) };
        assert!(top.is_valid());
        let decode = Decode { rows: before, extent: EXTENT, limit: LIMIT, reach: 64.0, side };
        let suppress = Suppress {
            rows: before,
            width: 4,
            extent: EXTENT,
            // A thousandth of a pixel.
            least_side: (1e-3 / STRIDE * EXTENT.scale).ceil() as i64,
            least: vec![],
            class: None,
            classes: 0,
            threshold: case["overlap"].as_f64().expect("a number"),
            steps: before,
        };
        let keep = KeepFirst { rows: before, width: 4, columns: 4, k: after };
        let (mut e, bounds) = plain();
        let scope = &mut Scope::new(Step::layer(1), bounds);
        let found = block_on(async {
            let logits = number(scope, &case["logits"], LOGITS);
            let deltas = number(scope, &case["deltas"], FINE);
            let rows = top.run(&mut e, scope, &logits, &deltas).await?;
            let bound = deltas.bound().max(16.0);
            let rows = Number::<Plain, Reduced>::new(scope, rows, FINE, bound)?;
            let all = decode.run(&mut e, scope, &rows).await?;
            let bits = suppress.run(&mut e, scope, &all).await?;
            let left = Unsettled { rows: before, steps: before }.run(&mut e, &bits)?;
            assert_eq!(left.as_slice(), [0], "{name} did not settle");
            keep.run(&mut e, scope, &all, &bits).await
        });
        assert_close(name, &boxes(found.expect(name).as_slice(), 4), &case["boxes"]);
    }
}

#[test]
fn detections() {
    for case in recorded()["head"].as_array().expect("cases") {
        let name = case["name"].as_str().expect("a name");
        let (classes, n) = (size(&case["classes"]), numbers(&case["proposals"]).len() / 4);
        let rows = n * (classes - 1);
        let threshold = case["score"].as_f64().expect("a number");
        let decode = DecodeClasses {
            proposals: n,
            classes,
            extent: EXTENT,
            weights: [10.0, 5.0],
            limit: LIMIT,
            reach: 6.4,
        };
        let rank = RankDetections { proposals: n, classes: classes - 1 };
        let k = size(&case["count"]).min(rows);
        let keep = KeepFirst { rows, width: RankDetections::WIDTH, columns: 6, k };
        let (mut e, bounds) = plain();
        let scope = &mut Scope::new(Step::layer(1), bounds);
        let (found, scale) = block_on(async {
            let logits = number(scope, &case["logits"], FINE);
            let scores = real::scores(&mut e, scope, &logits, classes, threshold / 2.0, 131_072.0).await?;
            let proposals = integers(&case["proposals"], EXTENT.scale / STRIDE);
            let deltas = number(scope, &case["deltas"], FINE);
            let all = decode.run(&mut e, scope, &proposals, &deltas).await?;
            let list = rank.run(&mut e, scope, &scores, &all, &proposals).await?;
            let suppress = Suppress {
                rows,
                width: RankDetections::WIDTH,
                extent: EXTENT,
                // A hundredth of a pixel.
                least_side: (1e-2 / STRIDE * EXTENT.scale).ceil() as i64,
                least: vec![(4, (threshold * scores.scale()).floor() as i64 + 1), (6, 1)],
                class: Some(5),
                classes: classes - 1,
                threshold: case["overlap"].as_f64().expect("a number"),
                steps: rows,
            };
            let bits = suppress.run(&mut e, scope, &list).await?;
            let left = Unsettled { rows, steps: rows }.run(&mut e, &bits)?;
            assert_eq!(left.as_slice(), [0], "{name} did not settle");
            let found = keep.run(&mut e, scope, &list, &bits).await?;
            Ok::<_, sharelens_protocol::Error>((found, scores.scale()))
        })
        .expect(name);
        let mut found: Vec<Vec<f64>> = found
            .as_slice()
            .chunks_exact(6)
            .filter(|r| r[5] != 0)
            .map(|r| {
                let corner = |i: usize| r[i] as f64 / EXTENT.scale * STRIDE;
                vec![r[5] as f64, r[4] as f64 / scale, corner(0), corner(1), corner(2), corner(3)]
            })
            .collect();
        let wanted = [&case["labels"], &case["scores"], &case["boxes"]].map(numbers);
        let mut wanted: Vec<Vec<f64>> = (0..wanted[0].len())
            .map(|i| [&[wanted[0][i], wanted[1][i]], &wanted[2][4 * i..4 * i + 4]].concat())
            .collect();
        assert_eq!(found.len(), wanted.len(), "{name}");
        if name == "ties of scores" {
            // Any order of equals is right.
            let key = |r: &Vec<f64>| (r[0] as i64, (4.0 * r[2]).round() as i64, (4.0 * r[3]).round() as i64);
            found.sort_by_key(key);
            wanted.sort_by_key(key);
        }
        for (f, w) in found.iter().zip(&wanted) {
            let near = |i: usize, by: f64| (f[i] - w[i]).abs() < by;
            let same = f[0] == w[0] && near(1, 2e-3) && (2..6).all(|i| near(i, 0.02));
            assert!(same, "{name}: {f:?} instead of {w:?}");
        }
    }
}

#[test]
fn regions() {
    for case in recorded()["roi_align"].as_array().expect("cases") {
        let n = numbers(&case["boxes"]).len() / 4;
        let stage = RoiAlign {
            boxes: n,
            map: [GRID[0], GRID[1], 2],
            extent: EXTENT,
            bins: 3,
            samples: 2,
            aligned: case["aligned"].as_bool().expect("a bit"),
            scale: 65_536.0,
        };
        let (mut e, bounds) = plain();
        let scope = &mut Scope::new(Step::layer(1), bounds);
        let features = number::<Full>(scope, &case["features"], 32_768.0);
        let all = integers(&case["boxes"], EXTENT.scale / STRIDE);
        let found = block_on(stage.run(&mut e, scope, &features, &all)).expect("in range");
        let wanted = numbers(&case["result"]);
        assert_eq!(found.integers().as_slice().len(), wanted.len());
        for (f, w) in found.integers().as_slice().iter().zip(&wanted) {
            let f = *f as f64 / found.scale();
            assert!((f - w).abs() < 2e-3, "{}: {f} instead of {w}", case["name"]);
        }
    }
}
