//! Detections drawn into the picture they belong to.

use std::path::Path;

use anyhow::{Context, Result};
use image::{Rgb, RgbImage};
use sharelens_models::detect::Detections;
use sharelens_models::image::Picture;

use super::show;

/// Scores from which a box is drawn boldly and labelled.
const BOLD: f64 = 0.5;
/// Pixels of a letter's dot.
const DOT: i64 = 2;

/// Dark enough for white letters, and apart for most kinds of colour blindness (after Okabe and Ito).
const COLOURS: [[u8; 3]; 6] =
    [[0, 90, 170], [205, 75, 0], [0, 125, 90], [165, 60, 130], [60, 60, 60], [120, 85, 0]];

/// The colour of a class.
pub const fn colour(label: usize) -> [u8; 3] {
    COLOURS[label.wrapping_sub(1) % COLOURS.len()]
}

/// Writes `picture` with boxes in the pixels of a network whose input has `size` rows and columns.
pub fn save(
    picture: &Picture,
    size: [usize; 2],
    found: &Detections,
    classes: &[String],
    file: &Path,
) -> Result<()> {
    let mut canvas = canvas(picture)?;
    let scale = [picture.columns as f64 / size[1] as f64, picture.rows as f64 / size[0] as f64];
    // The best ones last, above the others.
    for i in (0..found.len()).rev() {
        let colour = Rgb(colour(found.labels[i]));
        let bold = found.scores[i] >= BOLD;
        let [x1, y1, x2, y2] = [0, 1, 2, 3].map(|a| (found.boxes[i][a] * scale[a % 2]).round() as i64);
        frame(&mut canvas, [x1, y1, x2, y2], if bold { 3 } else { 1 }, colour);
        if bold {
            let class = classes.get(found.labels[i]).map_or("", String::as_str);
            label(&mut canvas, [x1, y1], &format!("{class} {:.2}", found.scores[i]), colour);
        }
    }
    canvas.save(file).with_context(|| show(file))
}

fn canvas(picture: &Picture) -> Result<RgbImage> {
    let byte = |v: &f64| v.round().clamp(0.0, 255.0) as u8;
    let pixels = match picture.channels {
        3 => picture.pixels.iter().map(byte).collect(),
        _ => picture.pixels.iter().flat_map(|v| [byte(v); 3]).collect(),
    };
    let (w, h) = (u32::try_from(picture.columns)?, u32::try_from(picture.rows)?);
    RgbImage::from_raw(w, h, pixels).context("the picture has another size than it says")
}

/// The outline of a box, `width` pixels inwards, as far as it lies in the picture.
fn frame(canvas: &mut RgbImage, [x1, y1, x2, y2]: [i64; 4], width: i64, colour: Rgb<u8>) {
    fill(canvas, [x1, y1, x2, y1 + width], colour);
    fill(canvas, [x1, y2 - width, x2, y2], colour);
    fill(canvas, [x1, y1, x1 + width, y2], colour);
    fill(canvas, [x2 - width, y1, x2, y2], colour);
}

fn fill(canvas: &mut RgbImage, [x1, y1, x2, y2]: [i64; 4], colour: Rgb<u8>) {
    let within = |v: i64, n: u32| v.clamp(0, n.into()) as u32;
    let (w, h) = canvas.dimensions();
    for y in within(y1, h)..within(y2, h) {
        for x in within(x1, w)..within(x2, w) {
            canvas.put_pixel(x, y, colour);
        }
    }
}

/// White letters on a plate, above the corner if there is room, else inside.
fn label(canvas: &mut RgbImage, [x, y]: [i64; 2], text: &str, colour: Rgb<u8>) {
    let height = 7 * DOT;
    let top = if y >= height { y - height } else { y };
    let width = (4 * text.chars().count() as i64 + 1) * DOT;
    fill(canvas, [x, top, x + width, top + height], colour);
    for (i, letter) in text.chars().enumerate() {
        let left = x + (4 * i as i64 + 1) * DOT;
        let glyph = glyph(letter);
        for bit in (0..15).filter(|b| glyph >> (14 - b) & 1 == 1) {
            let (dx, dy) = (left + bit % 3 * DOT, top + (bit / 3 + 1) * DOT);
            fill(canvas, [dx, dy, dx + DOT, dy + DOT], Rgb([255; 3]));
        }
    }
}

/// Letters of 3x5 dots: an octal digit per row, from the top.
const LETTERS: [u16; 26] = [
    0o25755, 0o65656, 0o34443, 0o65556, 0o74647, 0o74644, 0o34553, 0o55755, 0o72227, 0o11152, 0o55655,
    0o44447, 0o57755, 0o65555, 0o25552, 0o65644, 0o25563, 0o65655, 0o34216, 0o72222, 0o55557, 0o55552,
    0o55775, 0o55255, 0o55222, 0o71247,
];
const DIGITS: [u16; 10] =
    [0o75557, 0o26227, 0o61247, 0o61216, 0o55711, 0o74616, 0o34757, 0o71222, 0o75757, 0o75716];

fn glyph(letter: char) -> u16 {
    let nth = |set: &[u16], first: char| set[letter.to_ascii_uppercase() as usize - first as usize];
    match letter {
        'a'..='z' | 'A'..='Z' => nth(&LETTERS, 'A'),
        '0'..='9' => nth(&DIGITS, '0'),
        '.' => 0o00002,
        '-' => 0o00700,
        '_' => 0o00007,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_where_they_belong() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("boxes.png");
        let picture = Picture { rows: 80, columns: 120, channels: 1, pixels: vec![9.0; 9600], notes: vec![] };
        // One within, one faint, one that leaves the picture, one of a class without a name.
        let found = Detections {
            boxes: vec![[10.0, 20.0, 30.0, 35.0], [35.0, 2.0, 55.0, 12.0], [50.0, 30.0, 1e9, 1e9], [-1e9; 4]],
            labels: vec![1, 2, 1, 77],
            scores: vec![0.9, 0.2, 0.8, 0.7],
        };
        let classes = ["background", "RBC", "WBC"].map(String::from);
        save(&picture, [40, 60], &found, &classes, &file).unwrap();
        let drawn = image::open(&file).unwrap().into_rgb8();
        let at = |x, y| drawn.get_pixel(x, y).0;
        assert_eq!(drawn.dimensions(), (120, 80));
        assert_eq!([at(20, 60), at(59, 50), at(40, 69), at(100, 62)], [colour(1); 4]);
        assert_eq!([at(75, 4), at(75, 23), at(109, 10)], [colour(2); 3]);
        // Inside and outside nothing is drawn, but the label above the first box, whose R begins with two dots.
        assert_eq!([at(40, 55), at(66, 40), at(90, 14), at(115, 75)], [[9; 3]; 4]);
        assert_eq!([at(22, 28), at(25, 28), at(26, 28)], [[255; 3], [255; 3], colour(1)]);
    }

    #[test]
    fn every_label_has_a_colour() {
        for label in [0, 1, 6, 7, usize::MAX] {
            assert!(COLOURS.contains(&colour(label)));
        }
        assert_ne!(colour(1), colour(2));
    }
}
