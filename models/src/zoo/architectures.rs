//! The networks, layer by layer, under the names that torchvision gives to their layers where it has them.

use super::Network;
use super::builder::{Builder, Frame, Plan, Tensor};

const POINT: Frame = Frame::new(1, 1, 0);
const SAME: Frame = Frame::new(3, 1, 1);
const HALF: Frame = Frame::new(2, 2, 0);

/// The graph of a network, its batch normalisations still without statistics.
pub(super) fn plan(network: Network, side: usize, classes: usize, seed: u64) -> Plan {
    let channels = network.preprocess(side).channels.count();
    let (b, image) = Builder::new(network.name(), channels, side, seed);
    match network {
        Network::LeNet5 => lenet(b, &image, side, classes),
        Network::ResNet18 => resnet(b, &image, [2, 2, 2, 2], Block::Basic, classes),
        Network::ResNet34 => resnet(b, &image, [3, 4, 6, 3], Block::Basic, classes),
        Network::ResNet50 => resnet(b, &image, [3, 4, 6, 3], Block::Bottleneck, classes),
        Network::Vgg16 => vgg(b, &image, side, Some(classes)),
        Network::Vgg16Features => vgg(b, &image, side, None),
        Network::MobileNetV2 => mobilenet(b, &image, classes),
        Network::DenseNet121 => densenet(b, &image, classes),
        Network::UNet => unet(b, &image),
        Network::DnCnn => dncnn(b, &image),
    }
}

fn lenet(mut b: Builder, image: &Tensor, side: usize, classes: usize) -> Plan {
    let x = b.conv("conv1", image, 6, Frame::new(5, 1, 2), true);
    let x = b.relu("relu1", &x);
    let x = b.max_pool("pool1", &x, HALF);
    let x = b.conv("conv2", &x, 16, Frame::new(5, 1, 0), true);
    let x = b.relu("relu2", &x);
    let x = b.max_pool("pool2", &x, HALF);
    let rows = (side / 2 - 4) / 2;
    let mut x = b.flatten("flatten", &x, rows * rows);
    for (i, features) in [120, 84].into_iter().enumerate() {
        x = b.dense(&format!("fc{}", i + 1), &x, features);
        x = b.relu(&format!("relu{}", i + 3), &x);
    }
    let x = b.dense("fc3", &x, classes);
    b.finish(&x, "logits")
}

/// Factors of the normalisation that ends a residual branch: training makes them small beside the others.
const BRANCH: f64 = 0.4;

#[derive(Clone, Copy)]
enum Block {
    Basic,
    Bottleneck,
}

fn resnet(mut b: Builder, image: &Tensor, depth: [usize; 4], block: Block, classes: usize) -> Plan {
    let x = b.conv("conv1", image, 64, Frame::new(7, 2, 3), false);
    let x = b.norm("bn1", &x);
    let x = b.relu("relu", &x);
    let mut x = b.max_pool("maxpool", &x, Frame::new(3, 2, 1));
    for (stage, &count) in depth.iter().enumerate() {
        let width = 64 << stage;
        for i in 0..count {
            let name = |part: &str| format!("layer{}.{i}.{part}", stage + 1);
            let stride = if stage > 0 && i == 0 { 2 } else { 1 };
            let turn = Frame::new(3, stride, 1);
            // Kernel and width of each convolution.
            let steps: &[(Frame, usize)] = match block {
                Block::Basic => &[(turn, width), (SAME, width)],
                Block::Bottleneck => &[(POINT, width), (turn, width), (POINT, 4 * width)],
            };
            let mut y = x.clone();
            for (j, &(frame, channels)) in steps.iter().enumerate() {
                y = b.conv(&name(&format!("conv{}", j + 1)), &y, channels, frame, false);
                let last = j + 1 == steps.len();
                y = b.norm_to(&name(&format!("bn{}", j + 1)), &y, if last { BRANCH } else { 1.0 });
                if !last {
                    y = b.relu(&name(&format!("relu{}", j + 1)), &y);
                }
            }
            let skip = if stride > 1 || x.channels != y.channels {
                let s = b.conv(&name("downsample.0"), &x, y.channels, Frame::new(1, stride, 0), false);
                b.norm(&name("downsample.1"), &s)
            } else {
                x
            };
            let sum = b.add(&name("add"), &y, &skip);
            x = b.relu(&name("relu"), &sum);
        }
    }
    let x = b.global_average("avgpool", &x);
    let x = b.dense("fc", &x, classes);
    b.finish(&x, "logits")
}

fn vgg(mut b: Builder, image: &Tensor, side: usize, classes: Option<usize>) -> Plan {
    let mut x = image.clone();
    for (stage, &(count, channels)) in [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)].iter().enumerate() {
        for i in 0..count {
            let name = |part: &str| format!("features.{}.{i}.{part}", stage + 1);
            x = b.conv(&name("conv"), &x, channels, SAME, true);
            x = b.relu(&name("relu"), &x);
        }
        x = b.max_pool(&format!("features.{}.pool", stage + 1), &x, HALF);
    }
    let Some(classes) = classes else { return b.finish(&x, "features") };
    let mut x = b.flatten("flatten", &x, (side / 32) * (side / 32));
    for i in [0, 3] {
        x = b.dense(&format!("classifier.{i}"), &x, 4096);
        x = b.relu(&format!("classifier.{}", i + 1), &x);
    }
    let x = b.dense("classifier.6", &x, classes);
    b.finish(&x, "logits")
}

fn mobilenet(mut b: Builder, image: &Tensor, classes: usize) -> Plan {
    let x = b.conv("features.0.0", image, 32, Frame::new(3, 2, 1), false);
    let x = b.norm("features.0.1", &x);
    let mut x = b.relu6("features.0.2", &x);
    // Expansion, channels, how often, first stride.
    let stages = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ];
    let mut index = 1;
    for (expansion, channels, count, first) in stages {
        for i in 0..count {
            let name = |part: &str| format!("features.{index}.{part}");
            let stride = if i == 0 { first } else { 1 };
            let mut y = x.clone();
            if expansion > 1 {
                y = b.conv(&name("expand"), &y, expansion * x.channels, POINT, false);
                y = b.norm(&name("expand.bn"), &y);
                y = b.relu6(&name("expand.relu6"), &y);
            }
            y = b.depthwise(&name("depthwise"), &y, Frame::new(3, stride, 1));
            y = b.norm(&name("depthwise.bn"), &y);
            y = b.relu6(&name("depthwise.relu6"), &y);
            y = b.conv(&name("project"), &y, channels, POINT, false);
            y = b.norm(&name("project.bn"), &y);
            x = if stride == 1 && x.channels == channels { b.add(&name("add"), &y, &x) } else { y };
            index += 1;
        }
    }
    let x = b.conv("features.18.0", &x, 1280, POINT, false);
    let x = b.norm("features.18.1", &x);
    let x = b.relu6("features.18.2", &x);
    let x = b.global_average("avgpool", &x);
    let x = b.dense("classifier.1", &x, classes);
    b.finish(&x, "logits")
}

fn densenet(mut b: Builder, image: &Tensor, classes: usize) -> Plan {
    const GROWTH: usize = 32;
    let x = b.conv("features.conv0", image, 2 * GROWTH, Frame::new(7, 2, 3), false);
    let x = b.norm("features.norm0", &x);
    let x = b.relu("features.relu0", &x);
    let mut x = b.max_pool("features.pool0", &x, Frame::new(3, 2, 1));
    for (block, &layers) in [6, 12, 24, 16].iter().enumerate() {
        let mut parts = vec![x];
        for layer in 1..=layers {
            let name = |part: &str| format!("features.denseblock{}.{layer}.{part}", block + 1);
            let all = match &parts[..] {
                [only] => only.clone(),
                several => b.concat(&name("concat"), several),
            };
            let y = b.norm(&name("norm1"), &all);
            let y = b.relu(&name("relu1"), &y);
            let y = b.conv(&name("conv1"), &y, 4 * GROWTH, POINT, false);
            let y = b.norm(&name("norm2"), &y);
            let y = b.relu(&name("relu2"), &y);
            parts.push(b.conv(&name("conv2"), &y, GROWTH, SAME, false));
        }
        let all = b.concat(&format!("features.denseblock{}.concat", block + 1), &parts);
        let name = |part: &str| match block {
            3 => format!("features.{part}5"),
            _ => format!("features.transition{}.{part}", block + 1),
        };
        let y = b.norm(&name("norm"), &all);
        x = b.relu(&name("relu"), &y);
        if block < 3 {
            let y = b.conv(&name("conv"), &x, x.channels / 2, POINT, false);
            x = b.average_pool(&name("pool"), &y, HALF);
        }
    }
    let x = b.global_average("avgpool", &x);
    let x = b.dense("classifier", &x, classes);
    b.finish(&x, "logits")
}

fn unet(mut b: Builder, image: &Tensor) -> Plan {
    const WIDTHS: [usize; 4] = [32, 64, 128, 256];
    let mut skips = Vec::new();
    let mut x = image.clone();
    for (i, &width) in WIDTHS.iter().enumerate() {
        let y = twice(&mut b, &format!("encoder{}", i + 1), &x, width);
        x = b.max_pool(&format!("pool{}", i + 1), &y, HALF);
        skips.push(y);
    }
    x = twice(&mut b, "bottleneck", &x, 2 * WIDTHS[3]);
    for (i, skip) in skips.iter().enumerate().rev() {
        let up = b.up(&format!("upconv{}", i + 1), &x, WIDTHS[i]);
        let both = b.concat(&format!("concat{}", i + 1), &[up, skip.clone()]);
        x = twice(&mut b, &format!("decoder{}", i + 1), &both, WIDTHS[i]);
    }
    let x = b.conv("conv", &x, 1, POINT, true);
    b.finish(&x, "mask_logits")
}

fn twice(b: &mut Builder, name: &str, x: &Tensor, width: usize) -> Tensor {
    let mut x = x.clone();
    for i in 1..=2 {
        x = b.conv(&format!("{name}.conv{i}"), &x, width, SAME, false);
        x = b.norm(&format!("{name}.norm{i}"), &x);
        x = b.relu(&format!("{name}.relu{i}"), &x);
    }
    x
}

fn dncnn(mut b: Builder, image: &Tensor) -> Plan {
    const LAYERS: usize = 17;
    let x = b.conv("layer1.conv", image, 64, SAME, true);
    let mut x = b.relu("layer1.relu", &x);
    for i in 2..LAYERS {
        x = b.conv(&format!("layer{i}.conv"), &x, 64, SAME, false);
        x = b.norm(&format!("layer{i}.norm"), &x);
        x = b.relu(&format!("layer{i}.relu"), &x);
    }
    let noise = b.conv("layer17.conv", &x, 1, SAME, true);
    let clean = b.sub("residual", image, &noise);
    b.finish(&clean, "denoised")
}
