//! The stages in floating point: torchvision's semantics, greedy suppression included.

use super::Stage;

/// What a stage yields for these inputs, which have these shapes.
pub fn apply(stage: &Stage, inputs: &[&[f64]], shapes: &[&[usize]]) -> Vec<f64> {
    let x = inputs[0];
    match stage {
        Stage::TopAnchors { anchors, k, .. } => {
            let columns = shapes[0][2];
            let mut order: Vec<usize> = (0..x.len()).collect();
            order.sort_by(|&a, &b| x[b].total_cmp(&x[a]).then(a.cmp(&b)));
            let row = |&i: &usize| {
                let (point, [cx, cy, w, h]) = (i / anchors.len(), anchors[i % anchors.len()]);
                let (px, py) = ((point % columns) as f64, (point / columns) as f64);
                let d = &inputs[1][4 * i..4 * i + 4];
                [d[0], d[1], d[2], d[3], px + cx, py + cy, w, h]
            };
            order[..*k].iter().flat_map(row).collect()
        }
        Stage::Decode { extent, limit, .. } => {
            let one = |r: &[f64]| decode([r[4], r[5]], [r[6], r[7]], &r[..4], [1.0; 2], *limit, extent);
            x.chunks_exact(8).flat_map(one).collect()
        }
        Stage::Suppress { least_side, threshold, score, .. } => {
            let rows: Vec<&[f64]> = x.chunks_exact(shapes[0][1]).collect();
            let mut keep = vec![0.0; rows.len()];
            for (i, r) in rows.iter().enumerate() {
                let valid = r[2] - r[0] >= *least_side
                    && r[3] - r[1] >= *least_side
                    && score.is_none_or(|(s, _)| r[4] > s && r[6] > 0.0);
                let seen = |j: usize| {
                    keep[j] == 1.0
                        && (score.is_none() || rows[j][5] == r[5])
                        && overlap(rows[j], r) > *threshold
                };
                keep[i] = f64::from(valid && !(0..i).any(seen));
            }
            [keep.clone(), keep].concat()
        }
        Stage::Unsettled { .. } => vec![0.0],
        Stage::KeepFirst { k, columns } => {
            let kept = x.chunks_exact(shapes[0][1]).zip(inputs[1]).filter(|(_, keep)| **keep == 1.0);
            let mut out: Vec<f64> = kept.take(*k).flat_map(|(r, _)| &r[..*columns]).copied().collect();
            out.resize(k * columns, 0.0);
            out
        }
        Stage::RoiAlign { bins, samples, aligned, .. } => {
            let map = [shapes[0][1], shapes[0][2], shapes[0][3]];
            let one = |b: &[f64]| roi_align(x, map, b, (*bins, *samples), *aligned);
            inputs[1].chunks_exact(4).flat_map(one).collect()
        }
        Stage::Scores { .. } => {
            let one = |logits: &[f64]| {
                let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let e: Vec<f64> = logits.iter().map(|l| (l - largest).exp()).collect();
                let sum: f64 = e.iter().sum();
                e.into_iter().skip(1).map(move |e| e / sum)
            };
            x.chunks_exact(shapes[0][1]).flat_map(one).collect()
        }
        Stage::DecodeClasses { extent, weights, limit } => {
            let classes = shapes[1][1] / 4;
            let one = |(b, d): (&[f64], &[f64])| {
                let (centre, size) = ([(b[0] + b[2]) / 2.0, (b[1] + b[3]) / 2.0], [b[2] - b[0], b[3] - b[1]]);
                let of = |c: usize| decode(centre, size, &d[4 * c..4 * c + 4], *weights, *limit, extent);
                (1..classes).flat_map(of).collect::<Vec<_>>()
            };
            x.chunks_exact(4).zip(inputs[1].chunks_exact(4 * classes)).flat_map(one).collect()
        }
        Stage::RankDetections => {
            let classes = shapes[0][1];
            let mut order: Vec<usize> = (0..x.len()).collect();
            order.sort_by(|&a, &b| x[b].total_cmp(&x[a]).then(a.cmp(&b)));
            let row = |i: usize| {
                let (b, p) = (&inputs[1][4 * i..4 * i + 4], &inputs[2][i / classes * 4..][..4]);
                [b[0], b[1], b[2], b[3], x[i], (i % classes + 1) as f64, p[2] - p[0]]
            };
            order.into_iter().flat_map(row).collect()
        }
    }
}

fn decode(
    centre: [f64; 2],
    size: [f64; 2],
    d: &[f64],
    weights: [f64; 2],
    limit: f64,
    extent: &[f64; 2],
) -> [f64; 4] {
    let axis = |a: usize| {
        let middle = centre[a] + d[a] / weights[0] * size[a];
        let half = (d[a + 2] / weights[1]).min(limit).exp() * size[a] / 2.0;
        [(middle - half).clamp(0.0, extent[a]), (middle + half).clamp(0.0, extent[a])]
    };
    let ([x1, x2], [y1, y2]) = (axis(0), axis(1));
    [x1, y1, x2, y2]
}

/// Intersection over union; not a number for two empty boxes, which no threshold is below.
pub fn overlap(a: &[f64], b: &[f64]) -> f64 {
    let side = |i: usize| (a[i + 2].min(b[i + 2]) - a[i].max(b[i])).max(0.0);
    let area = |b: &[f64]| (b[2] - b[0]) * (b[3] - b[1]);
    let inner = side(0) * side(1);
    inner / (area(a) + area(b) - inner)
}

fn roi_align(
    map: &[f64],
    [h, w, c]: [usize; 3],
    b: &[f64],
    (bins, samples): (usize, usize),
    aligned: bool,
) -> Vec<f64> {
    let (shift, least) = if aligned { (0.5, 0.0) } else { (0.0, 1.0) };
    // The two cells that each sample along an axis reads, and their weights.
    let axis = |a: usize, n: usize| -> Vec<[(usize, f64); 2]> {
        let size = (b[a + 2] - b[a]).max(least);
        (0..bins * samples)
            .map(|s| {
                let at = b[a] - shift + (s as f64 + 0.5) / samples as f64 * size / bins as f64;
                if at < -1.0 || at > n as f64 {
                    return [(0, 0.0); 2];
                }
                let at = at.max(0.0);
                let low = at as usize;
                if low + 1 >= n {
                    return [(n - 1, 1.0), (0, 0.0)];
                }
                [(low, 1.0 - at.fract()), (low + 1, at.fract())]
            })
            .collect()
    };
    let (columns, rows) = (axis(0, w), axis(1, h));
    let mut out = Vec::with_capacity(bins * bins * c);
    for (py, px) in (0..bins).flat_map(|y| (0..bins).map(move |x| (y, x))) {
        let start = out.len();
        out.resize(start + c, 0.0);
        for row in &rows[py * samples..(py + 1) * samples] {
            for column in &columns[px * samples..(px + 1) * samples] {
                for (&(y, wy), &(x, wx)) in row.iter().flat_map(|y| column.iter().map(move |x| (y, x))) {
                    let weight = wy * wx / (samples * samples) as f64;
                    let from = &map[(y * w + x) * c..][..c];
                    out[start..].iter_mut().zip(from).for_each(|(o, v)| *o += weight * v);
                }
            }
        }
    }
    out
}
