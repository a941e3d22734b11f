//! Picture files of every kind, written byte by byte.

use std::io::Write;

/// A PNG file: samples of `depth` bits, `colour` as in its header (0 grey, 2 RGB, 3 palette), `raw` the rows with
/// a filter byte each. A palette has 2^`depth` colours.
pub fn png([width, height]: [u32; 2], depth: u8, colour: u8, raw: &[u8]) -> Vec<u8> {
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([depth, colour, 0, 0, 0]);
    let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(raw).expect("memory");
    let packed = packed.finish().expect("memory");
    let palette: Vec<u8> = (0..1u32 << depth.min(8)).flat_map(|i| [i as u8, (i * 3) as u8, 9]).collect();
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    chunk(&mut file, b"IHDR", &header);
    if colour == 3 {
        chunk(&mut file, b"PLTE", &palette);
    }
    chunk(&mut file, b"IDAT", &packed);
    chunk(&mut file, b"IEND", &[]);
    file
}

fn chunk(file: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    file.extend((data.len() as u32).to_be_bytes());
    file.extend(kind);
    file.extend(data);
    let mut crc = flate2::Crc::new();
    crc.update(kind);
    crc.update(data);
    file.extend(crc.sum().to_be_bytes());
}

/// Rows of `width` samples, each of `bytes` bytes, behind their filter bytes.
pub fn rows([width, height]: [u32; 2], bytes: u32) -> Vec<u8> {
    (0..height)
        .flat_map(|y| std::iter::once(0).chain((0..width * bytes).map(move |x| (x * 7 + y * 13) as u8)))
        .collect()
}

/// A JPEG file of 8x8 pixels in `components` components, all of one value.
pub fn jpeg(components: u8) -> Vec<u8> {
    let mut file = vec![0xff, 0xd8];
    let mut segment = |marker: u8, data: &[u8]| {
        file.extend([0xff, marker]);
        file.extend((data.len() as u16 + 2).to_be_bytes());
        file.extend(data);
    };
    if components == 4 {
        segment(0xee, b"Adobe\0\x64\0\0\0\0\0");
    }
    segment(0xdb, &[&[0][..], &[1; 64]].concat());
    let each = |entry: fn(u8) -> Vec<u8>| (1..=components).flat_map(entry).collect::<Vec<u8>>();
    segment(0xc0, &[&[8, 0, 8, 0, 8, components][..], &each(|c| vec![c, 0x11, 0])].concat());
    // One code of one bit each: no difference, and the end of the block.
    for table in [0x00, 0x10] {
        segment(0xc4, &[&[table, 1][..], &[0; 15], &[0]].concat());
    }
    segment(0xda, &[&[components][..], &each(|c| vec![c, 0]), &[0, 63, 0]].concat());
    file.extend([0; 4]);
    file.extend([0xff, 0xd9]);
    file
}
