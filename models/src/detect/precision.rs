//! Average precision of detections against annotated boxes.

use super::Detections;
use super::reference::overlap;

/// Annotated boxes of one picture, in the same pixels as the detections.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Truth {
    /// x1, y1, x2, y2.
    pub boxes: Vec<[f64; 4]>,
    /// Classes, the background being 0.
    pub labels: Vec<usize>,
}

/// Average precision of each class from 1 to `classes`, over all pictures, where a detection counts that overlaps
/// a box of its class, not taken by a better one, by at least `least`. The area under the whole
/// precision-recall curve, its precision made to fall; none for a class without a box.
pub fn average_precision(
    found: &[Detections],
    truth: &[Truth],
    classes: usize,
    least: f64,
) -> Vec<Option<f64>> {
    (1..=classes).map(|class| of_class(found, truth, class, least)).collect()
}

/// The mean over classes that have boxes.
pub fn mean(all: &[Option<f64>]) -> f64 {
    let some: Vec<f64> = all.iter().flatten().copied().collect();
    some.iter().sum::<f64>() / some.len().max(1) as f64
}

fn of_class(found: &[Detections], truth: &[Truth], class: usize, least: f64) -> Option<f64> {
    let total: usize = truth.iter().map(|t| t.labels.iter().filter(|&&l| l == class).count()).sum();
    if total == 0 {
        return None;
    }
    let mut all: Vec<(f64, usize, [f64; 4])> = Vec::new();
    for (picture, d) in found.iter().enumerate() {
        let own = (0..d.len()).filter(|&i| d.labels[i] == class);
        all.extend(own.map(|i| (d.scores[i], picture, d.boxes[i])));
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut taken: Vec<Vec<bool>> = truth.iter().map(|t| vec![false; t.boxes.len()]).collect();
    let mut hits = 0usize;
    let mut curve = Vec::new();
    for (rank, (_, picture, b)) in all.iter().enumerate() {
        let t = &truth[*picture];
        let own = (0..t.boxes.len()).filter(|&i| t.labels[i] == class);
        let best = own
            .map(|i| (overlap(b, &t.boxes[i]), i))
            .max_by(|x, y| x.0.total_cmp(&y.0))
            .filter(|(o, i)| *o >= least && !taken[*picture][*i]);
        if let Some((_, i)) = best {
            taken[*picture][i] = true;
            hits += 1;
        }
        curve.push((hits as f64 / total as f64, hits as f64 / (rank + 1) as f64));
    }
    let (mut area, mut precision, mut recall_above) = (0.0, 0f64, None);
    for &(recall, p) in curve.iter().rev() {
        if let Some(above) = recall_above {
            area += (above - recall) * precision;
        }
        precision = precision.max(p);
        recall_above = Some(recall);
    }
    Some(area + recall_above.unwrap_or(0.0) * precision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_curve() {
        let b = |x: f64| [x, 0.0, x + 10.0, 10.0];
        let truth = [Truth { boxes: vec![b(0.0), b(100.0), b(200.0)], labels: vec![1, 1, 1] }];
        let found = |xs: &[f64]| {
            let n = xs.len();
            let scores = (0..n).map(|i| 0.9 - 0.1 * i as f64).collect();
            [Detections { boxes: xs.iter().map(|&x| b(x)).collect(), labels: vec![1; n], scores }]
        };
        let ap = |xs: &[f64]| average_precision(&found(xs), &truth, 2, 0.5);
        assert_eq!(ap(&[0.0, 100.0, 200.0]), [Some(1.0), None]);
        // Found, wrong, found: precision 1 up to a third, 2/3 up to two thirds.
        let got = ap(&[0.0, 500.0, 101.0])[0].unwrap();
        assert!((got - (1.0 + 2.0 / 3.0) / 3.0).abs() < 1e-12, "{got}");
        // The same box twice counts once.
        let got = ap(&[0.0, 0.0])[0].unwrap();
        assert!((got - 1.0 / 3.0).abs() < 1e-12, "{got}");
        assert_eq!(ap(&[]), [Some(0.0), None]);
        assert_eq!(mean(&[Some(0.5), None, Some(1.0)]), 0.75);
    }
}
