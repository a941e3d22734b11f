//! Agreement of an ONNX graph with stored tensors, in floats and in fixed point.
//!
//! ```text
//! cargo run --release -p sharelens-models --example compare -- GRAPH.onnx INPUT_NAME FILE.safetensors...
//! ```
//!
//! Each file holds the input under `INPUT_NAME` and outputs under the names of the graph's.

use std::error::Error;
use std::path::Path;

use safetensors::SafeTensors;
use sharelens_models::{Arithmetic, Model, Options, prepare};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [graph, input, files @ ..] = &args[..] else { return Err("GRAPH.onnx INPUT_NAME FILE...".into()) };
    let model = Model::import(Path::new(graph), None)?;
    let shape = &model.graph().input_shape;
    println!(
        "{} parameters, {} multiply-accumulates, input {shape:?}",
        model.graph().parameter_count(),
        model.graph().macs()
    );
    let mut inputs = Vec::new();
    let mut expected: Vec<Vec<Option<Vec<f64>>>> = Vec::new();
    for f in files {
        let bytes = std::fs::read(f)?;
        let stored = SafeTensors::deserialize(&bytes)?;
        let floats = |name: &str| -> Option<Vec<f32>> {
            let data = stored.tensor(name).ok()?.data();
            Some(data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        };
        let Some(mut x) = floats(input) else { continue };
        // Fewer rows than the graph's batch are filled up with zeros.
        x.resize(model.graph().len(0), 0.0);
        if let [_, h, w, c] = shape[..] {
            let size = h * w * c;
            x = (0..x.len()).map(|i| x[i / size * size + i % c * h * w + i % size / c]).collect();
        }
        inputs.push(x);
        let outputs = model.graph().outputs.iter();
        expected
            .push(outputs.map(|o| floats(&o.name).map(|v| v.into_iter().map(f64::from).collect())).collect());
    }
    let (prepared, report) = prepare(&model, &inputs, &Options::default())?;
    println!("{} inputs; {}, error {:.5}", inputs.len(), report.arithmetic, report.error);
    report.refused.iter().for_each(|r| println!("refused: {r}"));
    let twins = [prepared.arithmetic().clone(), Arithmetic::Z64].map(|a| prepared.twin(&a));
    let [chosen, z64] = twins;
    let (chosen, z64) = (chosen?, z64?);
    let difference = |a: &[f64], b: &[f64]| a.iter().zip(b).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    for (x, expected) in inputs.iter().zip(&expected) {
        let float = prepared.float(x)?;
        let start = std::time::Instant::now();
        let fixed = chosen.run(x)?;
        let seconds = start.elapsed().as_secs_f64();
        let wide = z64.run(x)?;
        for (i, output) in model.graph().outputs.iter().enumerate() {
            let stored = expected[i].as_ref().map_or(f64::NAN, |e| difference(&float[i], e));
            println!(
                "{:14} float against stored {stored:.2e}; twin against float {:.2e}, in Z_2^64 {:.2e}; {seconds:.2} s",
                output.name,
                difference(&fixed[i], &float[i]),
                difference(&wide[i], &float[i])
            );
        }
    }
    Ok(())
}
