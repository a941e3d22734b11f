//! Pictures to measure and calibrate on: slices of the data set that comes with the crate, tinted where a
//! network takes colours, and made-up scenes of waves, discs and noise.

use super::random::Random;
use crate::config::{Channels, Preprocess};
use crate::error::Result;
use crate::image::Picture;

/// Inputs to calibrate on.
pub(super) const CALIBRATION: usize = 4;

/// What pictures are for. Those of one purpose are none of another's.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Purpose {
    /// Statistics and ranges.
    Calibration,
    /// Trying out what has been prepared.
    Trial,
}

impl Purpose {
    fn slices(self) -> [&'static [u8]; 4] {
        match self {
            Self::Calibration => [
                include_bytes!("../../data/brain_mri/glioma-gg_218.jpg"),
                include_bytes!("../../data/brain_mri/meningioma-m1_165.jpg"),
                include_bytes!("../../data/brain_mri/no_tumor-image_165.jpg"),
                include_bytes!("../../data/brain_mri/pituitary-p_230.jpg"),
            ],
            Self::Trial => [
                include_bytes!("../../data/brain_mri/glioma-gg_519.jpg"),
                include_bytes!("../../data/brain_mri/meningioma-m3_92.jpg"),
                include_bytes!("../../data/brain_mri/no_tumor-image_39.jpg"),
                include_bytes!("../../data/brain_mri/pituitary-p_677.jpg"),
            ],
        }
    }
}

/// `count` inputs `[batch, h, w, c]`; every other picture is a slice until there are no more.
pub(super) fn inputs(
    p: &Preprocess,
    batch: usize,
    count: usize,
    seed: u64,
    purpose: Purpose,
) -> Result<Vec<Vec<f32>>> {
    let one = |i: usize| {
        let name = if purpose == Purpose::Trial { "trial" } else { "calibration" };
        let mut random = Random::new(seed.wrapping_add(i as u64), name);
        let picture = match purpose.slices().get(i / 2) {
            Some(slice) if i.is_multiple_of(2) => tinted(Picture::decode(slice)?, p.channels, &mut random),
            _ => scene(p, &mut random),
        };
        picture.input(p)
    };
    let batch_of = |i: usize| -> Result<Vec<f32>> {
        let pictures = (i * batch..(i + 1) * batch).map(one).collect::<Result<Vec<_>>>()?;
        Ok(pictures.concat())
    };
    (0..count).map(batch_of).collect()
}

/// Grey becomes a run of colours from dark to light.
fn tinted(picture: Picture, channels: Channels, random: &mut Random) -> Picture {
    if channels == Channels::Luma {
        return picture;
    }
    let bend: [f64; 3] = std::array::from_fn(|_| random.uniform(0.6, 1.7));
    let dark: [f64; 3] = std::array::from_fn(|_| random.uniform(0.0, 80.0));
    let grey: Vec<f64> = picture
        .pixels
        .chunks_exact(picture.channels)
        .map(|p| p.iter().sum::<f64>() / (255 * p.len()) as f64)
        .collect();
    let colour = |&v: &f64| -> [f64; 3] {
        std::array::from_fn(|c| dark[c] + (255.0 - dark[c]) * v.clamp(0.0, 1.0).powf(bend[c]))
    };
    Picture { channels: 3, pixels: grey.iter().flat_map(colour).collect(), ..picture }
}

/// Waves from a gradient to fine stripes, coloured discs, and noise from hardly any to much: statistics of smooth
/// pictures alone would leave a network that anything else drives out of all range.
fn scene(p: &Preprocess, random: &mut Random) -> Picture {
    const WAVES: usize = 5;
    const DISCS: usize = 6;
    let [rows, columns] = p.size;
    let channels = p.channels.count();
    // Frequencies down and across, phase, and a height by channel.
    let waves: [([f64; 3], [f64; 3]); WAVES] = std::array::from_fn(|i| {
        let reach = (1 << (2 * i)) as f64 / 2.0;
        let [down, across] = [(); 2].map(|()| random.uniform(-reach, reach));
        let phase = random.uniform(0.0, std::f64::consts::TAU);
        ([down, across, phase], std::array::from_fn(|_| random.uniform(-40.0, 40.0)))
    });
    let noise = 128.0 * random.uniform(0.0, 1.0).powi(3);
    // Centre, radius, colour.
    let discs: [([f64; 3], [f64; 3]); DISCS] = std::array::from_fn(|_| {
        let place = [random.uniform(0.0, 1.0), random.uniform(0.0, 1.0), random.uniform(0.04, 0.25)];
        (place, std::array::from_fn(|_| random.uniform(0.0, 255.0)))
    });
    let level: [f64; 3] = std::array::from_fn(|_| random.uniform(70.0, 185.0));
    let mut pixels = Vec::with_capacity(rows * columns * channels);
    for y in 0..rows {
        for x in 0..columns {
            let (v, u) = (y as f64 / rows as f64, x as f64 / columns as f64);
            let mut colour = level;
            for ([down, across, phase], height) in &waves {
                let wave = (std::f64::consts::TAU * (down * v + across * u) + phase).cos();
                colour.iter_mut().zip(height).for_each(|(c, h)| *c += h * wave);
            }
            for ([cy, cx, radius], disc) in &discs {
                if (v - cy).powi(2) + (u - cx).powi(2) < radius.powi(2) {
                    colour.iter_mut().zip(disc).for_each(|(c, d)| *c = 0.3 * *c + 0.7 * d);
                }
            }
            pixels.extend(
                colour[..channels].iter().map(|c| (c + random.uniform(-noise, noise)).clamp(0.0, 255.0)),
            );
        }
    }
    Picture { rows, columns, channels, pixels, notes: Vec::new() }
}
