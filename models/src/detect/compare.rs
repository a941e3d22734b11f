//! Lists of detections, and how far two of them agree.

use serde::Serialize;

use super::COLUMNS;
use super::reference::overlap;

/// Detections of one picture, best first. Boxes are corners in pixels of the network's input.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Detections {
    /// x1, y1, x2, y2.
    pub boxes: Vec<[f64; 4]>,
    /// Classes, the background being 0.
    pub labels: Vec<usize>,
    /// Probabilities.
    pub scores: Vec<f64>,
}

impl Detections {
    /// From the rows of a detector's first output, whose unit is `stride` pixels. Rows of class 0 are padding.
    pub fn from_rows(rows: &[f64], stride: f64) -> Self {
        let mut found = Self::default();
        for row in rows.chunks_exact(COLUMNS).filter(|r| r[5].round() >= 1.0) {
            found.boxes.push([row[0], row[1], row[2], row[3]].map(|v| v * stride));
            found.labels.push(row[5].round() as usize);
            found.scores.push(row[4]);
        }
        found
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.boxes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.boxes.is_empty()
    }
}

/// How far two lists agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Agreement {
    /// Detections of one list with a partner of the same class in the other.
    pub matched: usize,
    /// Detections scored at least as high as asked for, in either list, without a partner.
    pub alone: usize,
    /// Largest difference of a coordinate of partners, in pixels.
    pub pixels: f64,
    /// Largest difference of their scores.
    pub score: f64,
}

impl Agreement {
    /// Over the pictures of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            matched: self.matched + other.matched,
            alone: self.alone + other.alone,
            pixels: self.pixels.max(other.pixels),
            score: self.score.max(other.score),
        }
    }
}

/// Pairs detections of the same class that overlap most, and by at least a half. Those scored below `least` in
/// both lists are left out.
pub fn compare(a: &Detections, b: &Detections, least: f64) -> Agreement {
    let mut pairs: Vec<(f64, usize, usize)> = Vec::new();
    for i in 0..a.len() {
        let same = (0..b.len()).filter(|&j| a.labels[i] == b.labels[j]);
        pairs.extend(same.map(|j| (overlap(&a.boxes[i], &b.boxes[j]), i, j)).filter(|p| p.0 >= 0.5));
    }
    pairs.sort_by(|x, y| y.0.total_cmp(&x.0));
    let (mut of_a, mut of_b) = (vec![None; a.len()], vec![None; b.len()]);
    for (_, i, j) in pairs {
        if of_a[i].is_none() && of_b[j].is_none() {
            of_a[i] = Some(j);
            of_b[j] = Some(i);
        }
    }
    let mut out = Agreement::default();
    for (i, partner) in of_a.iter().enumerate() {
        let Some(j) = *partner else {
            out.alone += usize::from(a.scores[i] >= least);
            continue;
        };
        if a.scores[i].max(b.scores[j]) < least {
            continue;
        }
        out.matched += 1;
        out.score = out.score.max((a.scores[i] - b.scores[j]).abs());
        let sides = a.boxes[i].iter().zip(&b.boxes[j]);
        out.pixels = sides.fold(out.pixels, |m, (x, y)| m.max((x - y).abs()));
    }
    out.alone += of_b.iter().zip(&b.scores).filter(|(p, s)| p.is_none() && **s >= least).count();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(of: &[(f64, usize, f64)]) -> Detections {
        Detections {
            boxes: of.iter().map(|d| [d.0, 0.0, d.0 + 10.0, 10.0]).collect(),
            labels: of.iter().map(|d| d.1).collect(),
            scores: of.iter().map(|d| d.2).collect(),
        }
    }

    #[test]
    fn partners_are_of_the_same_class_and_close() {
        let a = list(&[(0.0, 1, 0.9), (50.0, 2, 0.8), (90.0, 1, 0.2)]);
        let b = list(&[(0.5, 1, 0.85), (50.0, 1, 0.8), (200.0, 1, 0.1)]);
        let agreement = compare(&a, &b, 0.5);
        assert_eq!((agreement.matched, agreement.alone), (1, 2));
        assert!((agreement.pixels - 0.5).abs() < 1e-12 && (agreement.score - 0.05).abs() < 1e-12);
        assert_eq!(compare(&a, &a, 0.0), Agreement { matched: 3, ..Agreement::default() });
        let both = agreement.and(compare(&a, &a, 0.0));
        assert_eq!((both.matched, both.alone, both.pixels), (4, 2, agreement.pixels));
        // Below the limit nobody asks.
        assert_eq!(compare(&a, &Detections::default(), 0.95), Agreement::default());
    }

    #[test]
    fn padding_is_no_detection() {
        let rows = [1.0, 2.0, 3.0, 4.0, 0.5, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let found = Detections::from_rows(&rows, 8.0);
        assert_eq!((found.len(), found.labels[0], found.boxes[0]), (1, 2, [8.0, 16.0, 24.0, 32.0]));
    }
}
