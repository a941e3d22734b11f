//! Enlargement and reduction, by the nearest neighbour or by linear interpolation.

use sharelens_ops::layers::Select;

use super::attributes::Reason;
use super::tensor::Array;
use super::{Call, Handled, Importer, Known, axis_of};
use crate::arrange::Arrange;
use crate::graph::{Op, Taps};

/// How a position of the output maps to the input, along one axis.
struct Map<'a> {
    input: usize,
    output: usize,
    scale: f64,
    mode: &'a str,
}

impl Map<'_> {
    fn at(&self, o: usize) -> Reason<f64> {
        let (o, input, output) = (o as f64, self.input as f64, self.output as f64);
        Ok(match self.mode {
            "half_pixel" => (o + 0.5) / self.scale - 0.5,
            "pytorch_half_pixel" if self.output > 1 => (o + 0.5) / self.scale - 0.5,
            "pytorch_half_pixel" => 0.0,
            "half_pixel_symmetric" => {
                let adjustment = output / (self.scale * input);
                input / 2.0 * (1.0 - adjustment) + (o + 0.5) / self.scale - 0.5
            }
            "align_corners" if self.output > 1 => o * (input - 1.0) / (output - 1.0),
            "align_corners" => 0.0,
            "asymmetric" => o / self.scale,
            other => return Err(format!("coordinate mode {other} is not supported")),
        })
    }

    fn nearest(&self, rounding: &str) -> Reason<Vec<u32>> {
        let pick = |o| {
            let x = self.at(o)?;
            let i = match rounding {
                "floor" => x.floor(),
                "ceil" => x.ceil(),
                "round_prefer_ceil" => (x + 0.5).floor(),
                "round_prefer_floor" => (x - 0.5).ceil(),
                other => return Err(format!("nearest mode {other} is not supported")),
            };
            Ok(i.clamp(0.0, (self.input - 1) as f64) as u32)
        };
        (0..self.output).map(pick).collect()
    }

    fn linear(&self) -> Reason<Taps> {
        let pick = |o| {
            let x = self.at(o)?.clamp(0.0, (self.input - 1) as f64);
            let low = x.floor();
            let part = (x - low) as f32;
            let high = (low as usize + 1).min(self.input - 1);
            Ok(vec![(low as u32, 1.0 - part), (high as u32, part)])
        };
        let entries = (0..self.output).map(pick).collect::<Reason<_>>()?;
        Ok(Taps { input: self.input, entries })
    }
}

pub(super) fn resize(net: &mut Importer, call: &Call<'_>) -> Handled {
    let (x, dims) = call.map(0)?;
    let a = &call.attributes;
    let old = call.op == "Upsample" || call.opset < 11;
    if a.int("antialias", 0) != 0 {
        return Err("antialiasing is not supported".into());
    }
    if a.string("keep_aspect_ratio_policy", "stretch") != "stretch" {
        return Err("keeping the aspect ratio is not supported".into());
    }
    let axes = match a.ints("axes") {
        None | Some([]) => vec![0, 1, 2, 3],
        Some(v) => v.iter().map(|&v| axis_of(v, 4)).collect::<Reason<_>>()?,
    };
    let (scales_at, sizes_at) = if old { (1, usize::MAX) } else { (2, 3) };
    let given = |i: usize| call.optional(i).map(|c| c.filter(|c| c.dims.iter().product::<usize>() > 0));
    let mut scales = [1.0f64; 4];
    let mut sizes = dims;
    let listed = match a.floats("scales") {
        Some(v) => Some(v.to_vec()),
        None => given(scales_at)?.map(Array::floats),
    };
    if let Some(values) = listed {
        if values.len() != axes.len() || values.iter().any(|s| !(1e-3..1e3).contains(s)) {
            return Err(format!("scales {values:?} are not supported"));
        }
        for (&axis, &s) in axes.iter().zip(&values) {
            scales[axis] = s.into();
            sizes[axis] = (dims[axis] as f64 * f64::from(s)).floor() as usize;
        }
    } else if let Some(values) = given(sizes_at)?.and_then(Array::integers) {
        if values.len() != axes.len() || values.iter().any(|s| !(1..1 << 16).contains(s)) {
            return Err(format!("sizes {values:?} are not supported"));
        }
        for (&axis, &s) in axes.iter().zip(values) {
            sizes[axis] = s as usize;
            scales[axis] = s as f64 / dims[axis] as f64;
        }
    } else {
        return Err("it has neither scales nor sizes".into());
    }
    // Whether corners of the fractional or of the whole size are meant, runtimes do not agree.
    let fraction = |axis: usize| (dims[axis] as f64 * scales[axis] - sizes[axis] as f64).abs() > 1e-3;
    if a.string("coordinate_transformation_mode", "half_pixel") == "align_corners"
        && (fraction(2) || fraction(3))
    {
        return Err("aligned corners of a size that is no whole number are not supported".into());
    }
    if sizes[..2] != dims[..2] || sizes.contains(&0) {
        return Err(format!("from {dims:?} to {sizes:?}; only rows and columns can change"));
    }
    net.reserve(4 * sizes.iter().sum::<usize>())?;
    let mode =
        if old { "asymmetric".into() } else { a.string("coordinate_transformation_mode", "half_pixel") };
    let map = |axis: usize| Map { input: dims[axis], output: sizes[axis], scale: scales[axis], mode: &mode };
    let op = match a.string("mode", "nearest").as_str() {
        "nearest" => {
            // Opset 10 rounds down as its predecessor does when it enlarges, and says nothing of its own for the
            // rest; runtimes round up when it reduces.
            let ceils = call.op == "Resize" && old;
            let rounding = |axis: usize| match old {
                true if ceils && scales[axis] < 1.0 => "ceil".into(),
                true => "floor".into(),
                false => a.string("nearest_mode", "round_prefer_floor"),
            };
            let whole = |d: usize| (0..d as u32).collect();
            let axes = vec![
                whole(dims[0]),
                map(2).nearest(&rounding(2))?,
                map(3).nearest(&rounding(3))?,
                whole(dims[1]),
            ];
            Op::Arrange(Arrange::Select(Select { axes }))
        }
        "linear" | "bilinear" => Op::Weighted { rows: map(2).linear()?, columns: map(3).linear()? },
        other => return Err(format!("mode {other} is not supported")),
    };
    net.push(op, &[x.id], sizes.to_vec()).map(Known::Value)
}
