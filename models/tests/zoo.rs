//! Built networks: their bytes mean the same to another runtime, their ranges are sane, and fixed point agrees.

mod common;

use common::to_storage;
use sharelens_models::check::top;
use sharelens_models::config::Task;
use sharelens_models::zoo::{self, Built, Network, Options};
use sharelens_models::{Model, Prepared, prepare};
use tract_onnx::prelude::*;

fn built(network: Network, side: usize, batch: usize) -> Built {
    let options = Options { side: Some(side), batch, classes: None, seed: 5 };
    zoo::build(network, &options).unwrap_or_else(|e| panic!("{network}: {e}"))
}

fn float(built: &Built, input: &[f32]) -> Vec<f64> {
    let model = built.model().expect("within limits");
    let wide: Vec<f64> = input.iter().map(|&v| v.into()).collect();
    sharelens_models::float::run(model.graph(), &wide).expect("runs").remove(0)
}

/// What tract makes of the same bytes and input, in storage order.
fn oracle(built: &Built, input: &[f32]) -> Vec<f64> {
    let model = built.model().expect("within limits");
    let &[n, h, w, c] = &model.graph().input_shape[..] else { panic!("pictures") };
    let size = h * w * c;
    let ordered: Vec<f32> =
        (0..input.len()).map(|i| input[i / size * size + i % (h * w) * c + i % size / (h * w)]).collect();
    let theirs = tract_onnx::onnx().model_for_read(&mut &built.onnx[..]).expect("tract reads it");
    let theirs = theirs.into_optimized().and_then(|m| m.into_runnable()).expect("tract plans it");
    let input = Tensor::from_shape(&[n, c, h, w], &ordered).expect("right size");
    let out = theirs.run(tvec!(input.into())).expect("tract runs it");
    let dims: Vec<i64> = out[0].shape().iter().map(|&d| d as i64).collect();
    let values: Vec<f32> = out[0].to_plain_array_view::<f32>().expect("floats").iter().copied().collect();
    to_storage(&values, &dims).into_iter().map(f64::from).collect()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
}

fn deviation(v: &[f64]) -> f64 {
    let mean = v.iter().sum::<f64>() / v.len() as f64;
    (v.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / v.len() as f64).sqrt()
}

fn against_tract(network: Network, side: usize) {
    let built = built(network, side, 1);
    let input = &built.inputs(1, 9).expect("pictures")[0];
    let (ours, theirs) = (float(&built, input), oracle(&built, input));
    let spread = deviation(&theirs);
    let error = largest_difference(&ours, &theirs);
    // Floats of 24 bits through up to 120 layers.
    assert!(error < 1e-3 * spread, "{network}: off by {error}, outputs spread over {spread}");
    // Measured on other pictures, so not exactly what was aimed at.
    let aimed = match network.task() {
        Task::Denoising => 0.25,
        Task::Other => 0.7,
        _ => 2.0,
    };
    assert!((0.4..2.5).contains(&(spread / aimed)), "{network}: outputs spread over {spread}");
}

#[test]
fn plain_networks_mean_the_same_to_tract() {
    against_tract(Network::LeNet5, 28);
    against_tract(Network::Vgg16Features, 48);
    against_tract(Network::DnCnn, 24);
}

#[test]
fn residual_networks_mean_the_same_to_tract() {
    against_tract(Network::ResNet18, 80);
    against_tract(Network::ResNet50, 32);
    against_tract(Network::MobileNetV2, 64);
}

#[test]
fn joining_networks_mean_the_same_to_tract() {
    against_tract(Network::DenseNet121, 80);
    against_tract(Network::UNet, 64);
}

/// Parameters and products as published: torchvision counts for the networks that it has.
#[test]
fn sizes_are_the_published_ones() {
    let count = |network: Network, side: usize| {
        let graph = built(network, side, 1).model().expect("within limits").graph().clone();
        let linear =
            |n: &sharelens_models::graph::Node| matches!(n.op, sharelens_models::graph::Op::Linear { .. });
        (graph.nodes.iter().filter(|n| linear(n)).count(), graph.parameter_count())
    };
    // Trainable numbers: a folded normalisation has two per channel, and import gives each convolution biases.
    for (network, layers, trainable, biases) in [
        (Network::ResNet18, 21, 11_689_512, 4_800),
        (Network::ResNet50, 54, 25_557_032, 26_560),
        (Network::MobileNetV2, 53, 3_504_872, 17_056),
        (Network::DenseNet121, 121, 7_978_856, 10_240),
    ] {
        assert_eq!(count(network, 32), (layers, trainable + biases), "{network}");
    }
}

fn prepared(built: &Built) -> Prepared {
    let (prepared, report) =
        prepare(&built.model().expect("within limits"), &built.calibration, &built.options)
            .unwrap_or_else(|e| panic!("{}: {e}", built.network));
    assert!(report.error <= built.options.tolerance);
    prepared
}

#[test]
fn fixed_point_agrees() {
    for (network, side) in [(Network::LeNet5, 28), (Network::ResNet18, 64), (Network::MobileNetV2, 32)] {
        let built = built(network, side, 1);
        let prepared = prepared(&built);
        for input in built.inputs(3, 9).expect("pictures") {
            let (fixed, float) = (
                prepared.plain(&input).expect("in range").remove(0),
                prepared.float(&input).expect("runs").remove(0),
            );
            let error = largest_difference(&fixed, &float);
            assert!(error < 2.0 * built.options.tolerance, "{network}: off by {error}");
            assert_eq!(top(&fixed), top(&float), "{network}");
        }
    }
}

#[test]
fn a_batch_is_its_pictures() {
    let (one, two) = (built(Network::ResNet18, 32, 1), built(Network::ResNet18, 32, 2));
    let input = &two.inputs(1, 9).expect("pictures")[0];
    let halves: Vec<f64> = input.chunks(input.len() / 2).flat_map(|x| float(&one, x)).collect();
    let both = float(&two, input);
    assert!(largest_difference(&both, &halves) < 1e-9);
    let fixed = prepared(&two).plain(input).expect("in range").remove(0);
    let error = largest_difference(&fixed, &both);
    assert!(error < 2.0 * two.options.tolerance, "off by {error}");
}

#[test]
fn configuration_survives_its_file() {
    for (network, batch) in [(Network::LeNet5, 1), (Network::DnCnn, 1), (Network::LeNet5, 3)] {
        let built = built(network, 32, batch);
        let model = Model::from_bytes(&built.onnx, Some(&built.config_json())).expect("understood");
        assert_eq!(model.config(), &built.config, "{network}");
    }
}
