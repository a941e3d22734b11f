//! A detector on a directory of pictures: fixed point in the clear against floats.
//!
//!     cargo run --release -p sharelens-models --example detect -- MODEL_DIR IMAGES [K,L]

use std::path::Path;
use std::time::Instant;

use sharelens_models::detect::{Detections, compare};
use sharelens_models::image::Picture;
use sharelens_models::{Arithmetic, Model, Options, prepare};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, images, rest @ ..] = &args[..] else { return Err("MODEL_DIR IMAGES [K,L]".into()) };
    let model = Model::import(Path::new(dir), None)?;
    let stride = model.config().detection.as_ref().ok_or("no detector")?.stride;
    let mut files: Vec<_> =
        std::fs::read_dir(images)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|f| f.extension().is_some_and(|e| e == "jpg" || e == "png"));
    files.sort();
    let inputs = files.iter().map(|f| model.input(&Picture::load(f)?)).collect::<Result<Vec<_>, _>>()?;
    let arithmetic = match rest {
        [kl] => {
            let (k, l) = kl.split_once(',').ok_or("K,L")?;
            Some(Arithmetic::usual(k.parse()?, l.parse()?)?)
        }
        _ => None,
    };
    let start = Instant::now();
    let (prepared, report) =
        prepare(&model, &inputs[..inputs.len().min(8)], &Options { arithmetic, ..Options::default() })?;
    println!(
        "{} error {:.5} in {:?}; {:?}",
        report.arithmetic,
        report.error,
        start.elapsed(),
        report.refused
    );
    for v in &report.values {
        println!(
            "  {:40} {:16} peak {:9.3} bits {:6.2} room {:8.2}",
            v.name, v.op, v.peak, v.scale_bits, v.headroom
        );
    }
    let twin = prepared.twin(prepared.arithmetic())?;
    for (file, input) in files.iter().zip(&inputs) {
        let start = Instant::now();
        let fixed = twin.run(input)?;
        let took = start.elapsed();
        let float = prepared.float(input)?;
        let [a, b] = [&fixed, &float].map(|o| Detections::from_rows(&o[0], stride));
        let agreement = compare(&a, &b, 0.5);
        println!(
            "{} {took:?} fixed {} float {} unsettled {:?} {:?}: {agreement:?}",
            file.file_name().unwrap_or_default().to_string_lossy(),
            a.len(),
            b.len(),
            fixed[1],
            fixed[2]
        );
        if std::env::var_os("PRINT").is_some() {
            println!("{}", serde_json::to_string(&b)?);
        }
    }
    Ok(())
}
