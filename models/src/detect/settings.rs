//! What `config.json` says of a detector.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Public settings of a two-stage detector on one feature map. Lengths are pixels of the network's input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Pixels per feature cell.
    pub stride: f64,
    /// Anchors of a grid point: corners relative to it.
    pub anchors: Vec<[f64; 4]>,
    /// Proposals.
    pub rpn: Rpn,
    /// Features of a proposal.
    pub roi: Roi,
    /// Detections.
    pub head: Head,
}

/// Settings of the region proposal network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rpn {
    /// Anchors that are decoded.
    pub before: usize,
    /// Proposals that are kept.
    pub after: usize,
    /// Largest overlap of two proposals.
    pub overlap: f64,
    /// Smallest side.
    pub least_side: f64,
    /// Largest exponent.
    pub limit: f64,
    /// Steps of the suppression.
    pub steps: usize,
}

/// Settings of RoIAlign.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Roi {
    /// Bins along each axis.
    pub bins: usize,
    /// Samples along each axis of a bin.
    pub samples: usize,
    /// torchvision's `aligned`.
    pub aligned: bool,
}

/// Settings behind the box head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// What dx, dy and dw, dh are divided by.
    pub weights: [f64; 2],
    /// Largest exponent.
    pub limit: f64,
    /// Scores up to this are dropped.
    pub score: f64,
    /// Smallest side.
    pub least_side: f64,
    /// Largest overlap of two detections of one class.
    pub overlap: f64,
    /// Length of the list.
    pub detections: usize,
    /// Steps of the suppression.
    pub steps: usize,
}

/// Steps of a suppression where the file says nothing: twice the longest chain seen on blood smears.
const STEPS: usize = 12;

#[derive(Deserialize)]
struct File {
    feature_stride: f64,
    anchors: FileAnchors,
    rpn: FileRpn,
    roi_align: FileRoi,
    #[serde(rename = "box")]
    head: FileHead,
}

#[derive(Deserialize)]
struct FileAnchors {
    base: Vec<[f64; 4]>,
    per_location: Option<usize>,
}

#[derive(Deserialize)]
struct FileRpn {
    pre_nms_top_n: usize,
    post_nms_top_n: usize,
    nms_iou: f64,
    min_size: f64,
    max_dw_dh: f64,
    delta_weights: Option<[f64; 4]>,
    nms_steps: Option<usize>,
}

#[derive(Deserialize)]
struct FileRoi {
    output: usize,
    sampling_ratio: usize,
    spatial_scale: f64,
    #[serde(default)]
    aligned: bool,
}

#[derive(Deserialize)]
struct FileHead {
    delta_weights: [f64; 4],
    max_dw_dh: f64,
    score_threshold: f64,
    min_size: f64,
    nms_iou: f64,
    detections_per_image: usize,
    nms_steps: Option<usize>,
}

impl Settings {
    /// From the JSON text of `config.json`.
    ///
    /// # Errors
    ///
    /// If it is not understood or a number makes no sense.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why: String| Error::Config(why);
        let text = text.trim_start_matches('\u{feff}');
        let f: File = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        if f.rpn.min_size == 0.0 {
            return Err(bad(
                "rpn.min_size is 0, which is not supported: a proposal without width stands for an empty row. Its usual \
                 value is 0.001"
                    .into(),
            ));
        }
        if f.anchors.per_location.is_some_and(|n| n != f.anchors.base.len()) {
            return Err(bad("anchors.per_location is not how many anchors.base lists".into()));
        }
        if f.rpn.delta_weights.is_some_and(|w| w != [1.0; 4]) {
            return Err(bad("rpn.delta_weights other than 1 are not supported".into()));
        }
        let [wx, wy, ww, wh] = f.head.delta_weights;
        if wx != wy || ww != wh {
            return Err(bad("box.delta_weights differ between x and y".into()));
        }
        if (f.roi_align.spatial_scale * f.feature_stride - 1.0).abs() > 1e-9 {
            return Err(bad("roi_align.spatial_scale is not one over feature_stride".into()));
        }
        let (before, after) = (f.rpn.pre_nms_top_n, f.rpn.post_nms_top_n);
        let settings = Self {
            stride: f.feature_stride,
            anchors: f.anchors.base,
            rpn: Rpn {
                before,
                after,
                overlap: f.rpn.nms_iou,
                least_side: f.rpn.min_size,
                limit: f.rpn.max_dw_dh,
                steps: f.rpn.nms_steps.unwrap_or(STEPS.min(before.max(2))),
            },
            roi: Roi {
                bins: f.roi_align.output,
                samples: f.roi_align.sampling_ratio,
                aligned: f.roi_align.aligned,
            },
            head: Head {
                weights: [wx, ww],
                limit: f.head.max_dw_dh,
                score: f.head.score_threshold,
                least_side: f.head.min_size,
                overlap: f.head.nms_iou,
                detections: f.head.detections_per_image,
                steps: f.head.nms_steps.unwrap_or(STEPS),
            },
        };
        settings.validate()?;
        Ok(settings)
    }

    /// Checks what does not depend on a graph.
    ///
    /// # Errors
    ///
    /// Names the number that makes no sense.
    pub fn validate(&self) -> Result<()> {
        let ensure = |ok: bool, what: &str| {
            if ok { Ok(()) } else { Err(Error::Config(format!("{what} makes no sense"))) }
        };
        ensure((0.5..=1024.0).contains(&self.stride), "feature_stride")?;
        let fine =
            |a: &[f64; 4]| a.iter().all(|v| v.is_finite() && v.abs() < 1e5) && a[2] > a[0] && a[3] > a[1];
        ensure((1..=64).contains(&self.anchors.len()) && self.anchors.iter().all(fine), "anchors.base")?;
        let share = |v: f64| (0.0..=1.0).contains(&v);
        ensure(share(self.rpn.overlap) && share(self.head.overlap), "an nms_iou")?;
        ensure(share(self.head.score) && self.head.score <= 0.5, "box.score_threshold")?;
        ensure((1..=4096).contains(&self.rpn.before), "rpn.pre_nms_top_n")?;
        ensure((1..=self.rpn.before).contains(&self.rpn.after), "rpn.post_nms_top_n")?;
        ensure(self.head.detections > 0, "box.detections_per_image")?;
        ensure(self.rpn.steps > 0 && self.head.steps > 0, "an nms_steps")?;
        let limits = [self.rpn.limit, self.head.limit];
        ensure(limits.iter().all(|l| (0.0..=8.0).contains(l)), "a max_dw_dh")?;
        ensure(self.rpn.least_side >= 0.0 && self.head.least_side >= 0.0, "a min_size")
    }
}
