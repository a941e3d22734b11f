//! From a picture file to the network's input.

use std::io::Cursor;
use std::path::Path;

use image::{ColorType, DynamicImage, ImageDecoder, ImageReader, Limits};

use crate::config::{Channels, Preprocess, Resize};
use crate::error::{Error, Result};

/// Rows or columns that a picture may have.
pub const MAX_SIDE: u32 = 1 << 14;
/// Bytes that decoding a picture may take.
const MAX_ALLOC: u64 = 1 << 29;
/// Bytes that a picture file may have.
const MAX_FILE: u64 = 1 << 28;
/// Numbers that a picture may have, decoded or on the way to the network's size: half a GiB of them.
pub const MAX_SAMPLES: usize = 1 << 26;

/// A decoded picture: numbers from 0 to 255, `[rows, columns, channels]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Numbers per pixel: 1 or 3.
    pub channels: usize,
    /// The numbers.
    pub pixels: Vec<f64>,
    /// What decoding had to change, for the user to know.
    pub notes: Vec<String>,
}

impl Picture {
    /// From a PNG or JPEG file.
    ///
    /// # Errors
    ///
    /// If it is of another kind, damaged, cut off or too large.
    pub fn load(path: &Path) -> Result<Self> {
        let file = |source| Error::File { path: path.into(), source };
        let size = std::fs::metadata(path).map_err(file)?.len();
        if size > MAX_FILE {
            return Err(Error::Limit {
                what: "the size of the picture file".into(),
                found: size,
                allowed: MAX_FILE,
            });
        }
        Self::decode(&std::fs::read(path).map_err(file)?).map_err(|e| match e {
            Error::Image(why) => Error::Image(format!("{}: {why}", path.display())),
            other => other,
        })
    }

    /// From the bytes of a PNG or JPEG file. Transparency is ignored, 16-bit samples keep their precision.
    ///
    /// # Errors
    ///
    /// As [`Picture::load`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let bad = |e: &dyn std::fmt::Display| Error::Image(e.to_string());
        check_end(bytes)?;
        // The decoder would turn it into RGB without a word, and without its colour profile.
        if components(bytes) == Some(4) {
            return Err(Error::Image("it is in CMYK; convert it to RGB or grey".into()));
        }
        let mut limits = Limits::default();
        limits.max_image_width = Some(MAX_SIDE);
        limits.max_image_height = Some(MAX_SIDE);
        limits.max_alloc = Some(MAX_ALLOC);
        let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| bad(&e))?;
        reader.limits(limits);
        let decoder = reader.into_decoder().map_err(|e| bad(&e))?;
        let (width, height) = decoder.dimensions();
        let samples = u64::from(width) * u64::from(height) * u64::from(decoder.color_type().channel_count());
        if samples > MAX_SAMPLES as u64 {
            return Err(Error::Image(format!(
                "its {width}x{height} pixels are {samples} numbers, and at most {MAX_SAMPLES} are accepted"
            )));
        }
        let picture = DynamicImage::from_decoder(decoder).map_err(|e| bad(&e))?;
        let (rows, columns) = (picture.height() as usize, picture.width() as usize);
        let mut notes = Vec::new();
        // The header comes first in every PNG; its colour type 3 is a palette.
        if bytes.starts_with(b"\x89PNG") && bytes.get(25) == Some(&3) {
            notes.push("colours of a palette were looked up".into());
        }
        if matches!(picture.color(), ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16)
        {
            notes.push("16-bit samples were scaled to 0..255, keeping their fractions".into());
        }
        if picture.color().has_alpha() {
            notes.push("transparency was ignored".into());
        }
        let (channels, pixels) = match picture {
            DynamicImage::ImageLuma8(p) => (1, p.into_raw().into_iter().map(f64::from).collect()),
            DynamicImage::ImageLumaA8(p) => (1, p.pixels().map(|p| p.0[0].into()).collect()),
            DynamicImage::ImageRgb8(p) => (3, p.into_raw().into_iter().map(f64::from).collect()),
            DynamicImage::ImageRgba8(p) => {
                (3, p.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).map(f64::from).collect())
            }
            DynamicImage::ImageLuma16(p) => (1, p.into_raw().into_iter().map(deep).collect()),
            DynamicImage::ImageLumaA16(p) => (1, p.pixels().map(|p| deep(p.0[0])).collect()),
            DynamicImage::ImageRgb16(p) => (3, p.into_raw().into_iter().map(deep).collect()),
            DynamicImage::ImageRgba16(p) => {
                (3, p.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).map(deep).collect())
            }
            other => {
                return Err(Error::Image(format!("samples of type {:?} are not supported", other.color())));
            }
        };
        Ok(Self { rows, columns, channels, pixels, notes })
    }

    /// The numbers that the network sees, before its statistics are applied: `[rows, columns, channels]` of
    /// the network's size, from 0 to 255.
    ///
    /// # Errors
    ///
    /// If the picture has another size than the block mean needs.
    pub fn fit(&self, p: &Preprocess) -> Result<Vec<f64>> {
        let c = p.channels.count();
        let pixels = match (p.channels, self.channels) {
            (Channels::Luma, 3) => self
                .pixels
                .chunks_exact(3)
                .map(|p| (299.0 * p[0] + 587.0 * p[1] + 114.0 * p[2]) / 1000.0)
                .collect(),
            (Channels::Rgb, 1) => self.pixels.iter().flat_map(|&v| [v; 3]).collect(),
            _ => self.pixels.clone(),
        };
        let [rows, columns] = p.size;
        match p.resize {
            Resize::Triangle => {
                if self.rows.saturating_mul(columns).saturating_mul(c) > MAX_SAMPLES {
                    return Err(Error::Image(format!(
                        "it has {} rows, too many for a network of {columns} columns",
                        self.rows
                    )));
                }
                let wide = triangle(&pixels, self.rows, self.columns, columns, c);
                Ok(triangle(&wide, 1, self.rows, rows, columns * c))
            }
            Resize::BlockMean(b) => {
                if (self.rows, self.columns) != (rows * b, columns * b) {
                    return Err(Error::Image(format!(
                        "it has {}x{} pixels, this model takes {}x{}",
                        self.columns,
                        self.rows,
                        columns * b,
                        rows * b
                    )));
                }
                let mean = |i: usize| {
                    let (y, x, k) = (i / (columns * c), i / c % columns, i % c);
                    let at = |j: usize| ((y * b + j / b) * self.columns + x * b + j % b) * c + k;
                    (0..b * b).map(|j| pixels[at(j)]).sum::<f64>() / (b * b) as f64
                };
                Ok((0..rows * columns * c).map(mean).collect())
            }
        }
    }

    /// The network's input, `[1, h, w, c]`.
    ///
    /// # Errors
    ///
    /// As [`Picture::fit`].
    pub fn input(&self, p: &Preprocess) -> Result<Vec<f32>> {
        Ok(normalise(&self.fit(p)?, p))
    }
}

/// Scale, mean and deviation applied to numbers from 0 to 255.
pub fn normalise(pixels: &[f64], p: &Preprocess) -> Vec<f32> {
    let statistics = p.mean.iter().zip(&p.std).cycle();
    pixels.iter().zip(statistics).map(|(&v, (m, s))| ((v * p.scale - m) / s) as f32).collect()
}

fn deep(v: u16) -> f64 {
    f64::from(v) / 257.0
}

/// Components of a JPEG file, as its frame header says; `None` for anything else.
fn components(bytes: &[u8]) -> Option<u8> {
    let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
    loop {
        match *rest {
            // Padding, and markers without a length.
            [0xff, 0xff, ..] => rest = &rest[1..],
            [0xff, 0x01 | 0xd0..=0xd8, ..] => rest = &rest[2..],
            // Frame headers: all of this range but tables and arithmetic conditioning.
            [0xff, 0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf, _, _, _, _, _, _, _, n, ..] => {
                return Some(n);
            }
            [0xff, 0xda, ..] => return None,
            [0xff, _, a, b, ..] => rest = rest.get(2 + usize::from(u16::from_be_bytes([a, b]))..)?,
            _ => return None,
        }
    }
}

/// Decoders forgive a missing end; a cut-off scan must not pass for a whole one.
fn check_end(bytes: &[u8]) -> Result<()> {
    let whole = if bytes.starts_with(&[0xff, 0xd8]) {
        // Some writers append padding after the end, and a thumbnail has an end of its own: what counts is an
        // end after the last scan began.
        let last = |marker: u8| bytes.windows(2).rposition(|w| w == [0xff, marker]);
        last(0xd9) > last(0xda)
    } else if bytes.starts_with(b"\x89PNG") {
        bytes.windows(4).rev().any(|w| w == b"IEND")
    } else {
        return Err(Error::Image("it is neither PNG nor JPEG".into()));
    };
    if whole { Ok(()) } else { Err(Error::Image("the file is cut off".into())) }
}

/// Resizes the middle axis of `[outer, from, inner]`: output `i` looks at the centre `(i + 0.5) * from / to`
/// with a triangle of half-width `max(from / to, 1)`, weights scaled to sum to one.
fn triangle(x: &[f64], outer: usize, from: usize, to: usize, inner: usize) -> Vec<f64> {
    if from == to {
        return x.to_vec();
    }
    let ratio = from as f64 / to as f64;
    let support = ratio.max(1.0);
    let mut out = vec![0.0; outer * to * inner];
    for i in 0..to {
        let centre = (i as f64 + 0.5) * ratio;
        let first = (centre - support - 0.5).floor().max(0.0) as usize;
        let last = ((centre + support).ceil() as usize).min(from);
        let weights: Vec<f64> =
            (first..last).map(|j| (1.0 - (j as f64 + 0.5 - centre).abs() / support).max(0.0)).collect();
        let total: f64 = weights.iter().sum();
        for o in 0..outer {
            let line = &mut out[(o * to + i) * inner..][..inner];
            for (j, w) in (first..last).zip(&weights) {
                let source = &x[(o * from + j) * inner..][..inner];
                line.iter_mut().zip(source).for_each(|(l, s)| *l += w / total * s);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(size: [usize; 2]) -> Preprocess {
        Preprocess::for_input(&[1, size[0], size[1], 1]).expect("a picture")
    }

    #[test]
    fn triangle_keeps_constants_and_interpolates_lines() {
        let flat = triangle(&[7.0; 10], 1, 10, 4, 1);
        assert!(flat.iter().all(|v| (v - 7.0).abs() < 1e-12));
        // Enlarging by two: a quarter of the way from each neighbour.
        assert_eq!(triangle(&[0.0, 4.0], 1, 2, 4, 1), [0.0, 1.0, 3.0, 4.0]);
        // Halving: weights 1, 3, 3, 1 of 8.
        let half = triangle(&[8.0, 0.0, 0.0, 0.0, 8.0, 0.0], 1, 6, 3, 1);
        assert!((half[1] - (8.0 * 1.0 / 8.0)).abs() < 1e-12, "{half:?}");
    }

    #[test]
    fn colours_become_luma() {
        let p = Picture { rows: 1, columns: 1, channels: 3, pixels: vec![10.0, 20.0, 30.0], notes: vec![] };
        let v = p.fit(&grey([1, 1])).expect("fits");
        assert!((v[0] - 18.15).abs() < 1e-12);
    }

    #[test]
    fn damaged_files_are_refused() {
        assert!(Picture::decode(b"GIF89a").is_err());
        let mut png = Vec::new();
        let pixels: Vec<u8> = (0..64 * 64).map(|i| (i * 31 % 251) as u8).collect();
        let buffer = image::GrayImage::from_raw(64, 64, pixels).expect("right size");
        buffer.write_to(&mut Cursor::new(&mut png), image::ImageFormat::Png).expect("encodes");
        assert_eq!(Picture::decode(&png).expect("whole").pixels[1], 31.0);
        let mut jpeg = Vec::new();
        buffer.write_to(&mut Cursor::new(&mut jpeg), image::ImageFormat::Jpeg).expect("encodes");
        assert_eq!(Picture::decode(&jpeg).expect("whole").rows, 64);
        for bytes in [&png, &jpeg] {
            for keep in [3, 20, bytes.len() / 2, bytes.len() - 5] {
                assert!(Picture::decode(&bytes[..keep]).is_err(), "{keep} bytes");
            }
        }
    }

    #[test]
    fn four_inks_are_refused() {
        let mut jpeg = Vec::new();
        let buffer = image::RgbImage::from_raw(8, 8, vec![9; 192]).expect("right size");
        buffer.write_to(&mut Cursor::new(&mut jpeg), image::ImageFormat::Jpeg).expect("encodes");
        assert_eq!(components(&jpeg), Some(3));
        let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).expect("a frame");
        jpeg[frame + 9] = 4;
        assert!(Picture::decode(&jpeg).unwrap_err().to_string().contains("CMYK"));
    }

    #[test]
    fn palettes_depths_and_transparency() {
        let mut png = Vec::new();
        let deep =
            image::ImageBuffer::<image::Luma<u16>, _>::from_raw(2, 1, vec![0u16, 65535]).expect("right size");
        DynamicImage::ImageLuma16(deep)
            .write_to(&mut Cursor::new(&mut png), image::ImageFormat::Png)
            .expect("encodes");
        let p = Picture::decode(&png).expect("whole");
        assert_eq!((p.pixels.as_slice(), p.notes.len()), (&[0.0, 255.0][..], 1));
        let clear = image::RgbaImage::from_raw(1, 1, vec![1, 2, 3, 0]).expect("right size");
        let mut png = Vec::new();
        clear.write_to(&mut Cursor::new(&mut png), image::ImageFormat::Png).expect("encodes");
        assert_eq!(Picture::decode(&png).expect("whole").pixels, [1.0, 2.0, 3.0]);
    }

    #[test]
    fn four_components_are_refused() {
        // Start, a comment, padding, and the frame header of an 8x8 picture in four components.
        let mut file = vec![0xff, 0xd8, 0xff, 0xfe, 0, 3, 7, 0xff, 0xff, 0xc0, 0, 20, 8, 0, 8, 0, 8, 4];
        assert_eq!(components(&file), Some(4));
        for keep in 0..file.len() {
            assert_eq!(components(&file[..keep]), None, "{keep} bytes");
        }
        file.extend([0xff, 0xd9]);
        let error = Picture::decode(&file).expect_err("refused").to_string();
        assert!(error.contains("CMYK"), "{error}");
    }

    #[test]
    fn small_files_of_large_pictures_are_refused() {
        let mut png = Vec::new();
        let pixels = image::GrayImage::from_raw(1 << 14, (1 << 12) + 1, vec![0; MAX_SAMPLES + (1 << 14)]);
        pixels
            .expect("right size")
            .write_to(&mut Cursor::new(&mut png), image::ImageFormat::Png)
            .expect("encodes");
        assert!(png.len() < 1 << 20);
        let error = Picture::decode(&png).expect_err("refused").to_string();
        assert!(error.contains("16384x4097"), "{error}");
        let tall =
            Picture { rows: 1 << 14, columns: 1, channels: 1, pixels: vec![0.0; 1 << 14], notes: vec![] };
        assert!(tall.fit(&grey([1, 1 << 13])).expect_err("refused").to_string().contains("rows"));
    }

    #[test]
    fn block_mean_wants_its_size() {
        let mut p = grey([1, 1]);
        p.resize = Resize::BlockMean(2);
        let square =
            Picture { rows: 2, columns: 2, channels: 1, pixels: vec![1.0, 2.0, 3.0, 6.0], notes: vec![] };
        assert_eq!(square.fit(&p).expect("fits"), [3.0]);
        let other = Picture { rows: 1, columns: 4, ..square };
        assert!(other.fit(&p).is_err());
    }
}
