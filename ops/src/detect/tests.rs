//! The operators in the clear against naive loops on real numbers. What shares compute is compared with this twin
//! elsewhere.

use std::sync::Arc;

use futures::executor::block_on;
use sharelens_protocol::Step;
use sharelens_protocol::ring::Full;

use super::levels::Levels;
use super::*;
use crate::number::{Number, Scope};
use crate::opened::Bits;
use crate::plain::{Bounds, Plain, Rounding, Values};

pub fn plain() -> Plain {
    let bounds = Bounds::rns(&[255, 253, 251, 247], &[241, 239, 233]).expect("fits 64 bits");
    Plain::new(bounds, Arc::new(Vec::new())).with_rounding(Rounding::Random(7))
}

/// Numbers in 0..1 that look random.
fn noise(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f64) / f64::from(1u32 << 31)
    }
}

const EXTENT: Extent = Extent { width: 40.0, height: 30.0, scale: 16_384.0 };

fn integers(boxes: &[[f64; 4]]) -> Values<Full> {
    boxes.iter().flatten().map(|v| (v * EXTENT.scale).round() as i64).collect::<Vec<_>>().into()
}

fn overlap(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    let side = |i: usize| (a[i + 2].min(b[i + 2]) - a[i].max(b[i])).max(0.0);
    let area = |b: &[f64; 4]| (b[2] - b[0]) * (b[3] - b[1]);
    let inter = side(0) * side(1);
    inter / (area(a) + area(b) - inter)
}

/// Greedy suppression, as torchvision does it.
fn greedy(boxes: &[[f64; 4]], class: &[i64], valid: &[bool], threshold: f64) -> Vec<i64> {
    let mut keep = vec![0; boxes.len()];
    for i in 0..boxes.len() {
        let seen =
            |j: usize| keep[j] == 1 && class[j] == class[i] && overlap(&boxes[j], &boxes[i]) > threshold;
        keep[i] = i64::from(valid[i] && !(0..i).any(seen));
    }
    keep
}

/// Boxes at multiples of 1/16, so that fixed point is exact.
fn boxes(n: usize, seed: u64) -> Vec<[f64; 4]> {
    let mut next = noise(seed);
    let mut at = |limit: f64| (next() * limit * 16.0).round() / 16.0;
    (0..n)
        .map(|_| {
            let (x, y, w, h) = (at(34.0), at(24.0), at(6.0), at(6.0));
            [x, y, (x + w).min(40.0), (y + h).min(30.0)]
        })
        .collect()
}

#[test]
fn suppression_is_the_greedy_one() {
    for (n, threshold, classes, seed) in [(40, 0.3, 1, 1), (60, 0.1, 3, 2), (25, 0.5, 2, 3), (33, 0.0, 1, 4)]
    {
        let all = boxes(n, seed);
        let class: Vec<i64> = (0..n as i64).map(|i| i % classes + 1).collect();
        let score: Vec<i64> = (0..n as i64).map(|i| 100 - i).collect();
        let (least_side, least_score) = ((0.25 * EXTENT.scale) as i64, 100 - n as i64 * 3 / 4);
        let valid: Vec<bool> = all
            .iter()
            .zip(&score)
            .map(|(b, &s)| b[2] - b[0] >= 0.25 && b[3] - b[1] >= 0.25 && s >= least_score)
            .collect();
        let list: Vec<i64> = integers(&all)
            .as_slice()
            .chunks_exact(4)
            .zip(score.iter().zip(&class))
            .flat_map(|(b, (&s, &c))| [b[0], b[1], b[2], b[3], s, c])
            .collect();
        let stage = Suppress {
            rows: n,
            width: 6,
            extent: EXTENT,
            least_side,
            least: vec![(4, least_score)],
            class: Some(5),
            classes: classes as usize,
            threshold,
            steps: n,
        };
        assert!(stage.is_valid());
        let mut e = plain();
        let mut scope = Scope::new(Step::layer(1), *e.bounds());
        let got = block_on(stage.run(&mut e, &mut scope, &list.clone().into())).expect("in range");
        let want = greedy(&all, &class, &valid, threshold);
        assert!((1..n as i64).contains(&want.iter().sum()), "a test of nothing");
        assert_eq!(got.numbers().as_slice()[..n], want, "n {n} seed {seed}");
        let left = Unsettled { rows: n, steps: n }.run(&mut e, &got).expect("as many bits");
        assert_eq!(left.as_slice(), [0], "all rows are steps enough");

        // One step is not enough, and the count says so; where it says nothing, more change nothing.
        for steps in 1..5 {
            let hasty = Suppress { steps, ..stage.clone() };
            let mut scope = Scope::new(Step::layer(1), *e.bounds());
            let got = block_on(hasty.run(&mut e, &mut scope, &list.clone().into())).expect("in range");
            let left = Unsettled { rows: n, steps }.run(&mut e, &got).expect("as many bits");
            let left = left.as_slice()[0];
            assert!(left > 0 || steps > 1 && left == 0, "{steps}: {left}");
            assert!(left > 0 || got.numbers().as_slice()[..n] == want, "{steps}: settled, and wrong");
        }
    }
}

#[test]
fn ties_of_the_threshold_are_not_suppressed() {
    // Halves that overlap by exactly a third, and identical boxes.
    let all = [[0.0, 0.0, 2.0, 1.0], [1.0, 0.0, 3.0, 1.0], [0.0, 0.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0]];
    for (threshold, want) in [(0.5, [1, 1, 0, 1]), (1.0, [1, 1, 1, 1]), (0.25, [1, 0, 0, 1])] {
        let stage = Suppress {
            rows: 4,
            width: 4,
            extent: EXTENT,
            least_side: 0,
            least: vec![],
            class: None,
            classes: 0,
            threshold,
            steps: 4,
        };
        let mut e = plain();
        let mut scope = Scope::new(Step::layer(1), *e.bounds());
        let got = block_on(stage.run(&mut e, &mut scope, &integers(&all))).expect("in range");
        assert_eq!(got.numbers().as_slice()[..4], want, "{threshold}");
    }
    // An overlap of exactly a half.
    let all = [[0.0, 0.0, 3.0, 1.0], [1.0, 0.0, 4.0, 1.0]];
    for (threshold, want) in [(0.5, 1), (0.499, 0)] {
        let stage = Suppress {
            rows: 2,
            width: 4,
            extent: EXTENT,
            least_side: 1,
            least: vec![],
            class: None,
            classes: 0,
            threshold,
            steps: 2,
        };
        let mut e = plain();
        let mut scope = Scope::new(Step::layer(1), *e.bounds());
        let got = block_on(stage.run(&mut e, &mut scope, &integers(&all))).expect("in range");
        assert_eq!(got.numbers().as_slice()[1], want, "{threshold}");
    }
}

#[test]
fn the_first_kept_rows_move_to_the_front() {
    let keep = [0i64, 1, 1, 0, 0, 1, 0];
    let list: Vec<i64> = (0..7).flat_map(|i| [10 * i, 10 * i + 1, 99]).collect();
    for k in [1, 2, 3, 5, 7] {
        let stage = KeepFirst { rows: 7, width: 3, columns: 2, k };
        let mut e = plain();
        let mut scope = Scope::new(Step::layer(1), *e.bounds());
        let signs: Vec<i64> = keep.iter().map(|k| -k).collect();
        let bits = block_on(Bits::negative(&mut e, scope.step(), &signs.into())).expect("in range");
        let got = block_on(stage.run(&mut e, &mut scope, &list.clone().into(), &bits));
        let mut want: Vec<i64> = [1, 2, 5].iter().flat_map(|i| [10 * i, 10 * i + 1]).collect();
        want.resize(14, 0);
        assert_eq!(got.expect("in range").as_slice(), &want[..2 * k], "{k}");
    }
}

/// One sample of torchvision's RoIAlign.
fn sample(map: &[f64], [h, w, c]: [usize; 3], channel: usize, y: f64, x: f64) -> f64 {
    if y < -1.0 || y > h as f64 || x < -1.0 || x > w as f64 {
        return 0.0;
    }
    let split = |v: f64, n: usize| {
        let v = v.max(0.0);
        let low = v as usize;
        if low + 1 >= n { (n - 1, n - 1, 0.0) } else { (low, low + 1, v - low as f64) }
    };
    let ((y0, y1, fy), (x0, x1, fx)) = (split(y, h), split(x, w));
    let at = |y: usize, x: usize| map[(y * w + x) * c + channel];
    (1.0 - fy) * ((1.0 - fx) * at(y0, x0) + fx * at(y0, x1))
        + fy * ((1.0 - fx) * at(y1, x0) + fx * at(y1, x1))
}

fn roi_align(map: &[f64], stage: &RoiAlign, boxes: &[[f64; 4]]) -> Vec<f64> {
    let (n, s) = (stage.bins, stage.samples);
    let mut out = Vec::new();
    for b in boxes {
        let shift = if stage.aligned { 0.5 } else { 0.0 };
        let least = if stage.aligned { 0.0 } else { 1.0 };
        let size = [(b[3] - b[1]).max(least), (b[2] - b[0]).max(least)];
        let place = |axis: usize, bin: usize, part: usize| {
            b[1 - axis] - shift + (bin as f64 + (part as f64 + 0.5) / s as f64) * size[axis] / n as f64
        };
        for (py, px) in (0..n).flat_map(|y| (0..n).map(move |x| (y, x))) {
            for channel in 0..stage.map[2] {
                let mut sum = 0.0;
                for (sy, sx) in (0..s).flat_map(|y| (0..s).map(move |x| (y, x))) {
                    sum += sample(map, stage.map, channel, place(0, py, sy), place(1, px, sx));
                }
                out.push(sum / (s * s) as f64);
            }
        }
    }
    out
}

#[test]
fn regions_are_aligned_as_torchvision_does() {
    for aligned in [false, true] {
        let mut all = boxes(20, 9);
        // At the border, tiny, empty, all of the map.
        all.extend([
            [39.5, 29.75, 40.0, 30.0],
            [0.0, 0.0, 40.0, 30.0],
            [0.0; 4],
            [3.0, 3.0, 3.0, 9.0],
            [40.0, 30.0, 40.0, 30.0],
        ]);
        let mut next = noise(3);
        let map: Vec<f64> = (0..30 * 40 * 3).map(|_| 20.0 * next() - 10.0).collect();
        let scale = 32_768.0;
        let numbers: Vec<i64> = map.iter().map(|v| (v * scale).round() as i64).collect();
        let stage = RoiAlign {
            boxes: all.len(),
            map: [30, 40, 3],
            extent: EXTENT,
            bins: 7,
            samples: 2,
            aligned,
            scale: 65_536.0,
        };
        assert!(stage.is_valid());
        let mut e = plain();
        let mut scope = Scope::new(Step::layer(1), *e.bounds());
        let features = Number::<Plain, Full>::new(&scope, numbers.into(), scale, 10.0).expect("fits");
        let got = block_on(stage.run(&mut e, &mut scope, &features, &integers(&all))).expect("in range");
        let want = roi_align(&map, &stage, &all);
        assert_eq!(got.integers().as_slice().len(), want.len());
        for (i, (&g, w)) in got.integers().as_slice().iter().zip(&want).enumerate() {
            let g = g as f64 / got.scale();
            assert!((g - w).abs() < 2e-3, "{i}: {g} instead of {w}, aligned {aligned}");
        }
    }
}

#[test]
fn boxes_take_the_features_of_their_level() {
    let all = boxes(40, 5);
    let levels = Levels::new(all.len(), EXTENT, [2, 4, 5], 2.0);
    let level = |b: &[f64; 4]| {
        let area = (b[2] - b[0]) * (b[3] - b[1]);
        ((4.0 + (area.sqrt() / 2.0).log2() + 1e-6).floor()).clamp(2.0, 5.0) as usize - 2
    };
    let features: Vec<Values<Full>> =
        (0..4).map(|l| (0..80).map(|i| 1000 * l + i).collect::<Vec<i64>>().into()).collect();
    let mut e = plain();
    let mut scope = Scope::new(Step::layer(1), *e.bounds());
    let parts: Vec<&Values<Full>> = features.iter().collect();
    let got = block_on(levels.select(&mut e, &mut scope, &integers(&all), &parts)).expect("in range");
    let chosen: Vec<usize> = all.iter().map(level).collect();
    assert!((0..4).all(|l| chosen.contains(&l)), "a test of some levels only");
    let want: Vec<i64> = (0..80).map(|i| 1000 * chosen[i / 2] as i64 + i as i64).collect();
    assert_eq!(got.as_slice(), want);
}
