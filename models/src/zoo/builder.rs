//! ONNX graphs with weights, node by node.

use super::random::{Random, normal};
use crate::onnx::proto::{
    AttributeProto, Dimension, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TensorType, TypeProto, ValueInfoProto,
};

const OPSET: i64 = 17;
/// ONNX's numbers for the types of tensors and attributes.
const FLOAT: i32 = 1;
const ATTRIBUTE_INT: i32 = 2;
const ATTRIBUTE_INTS: i32 = 7;
/// What a batch normalisation adds to a variance: ONNX's default.
pub(super) const EPSILON: f64 = 1e-5;

/// A value of the graph.
#[derive(Clone)]
pub(super) struct Tensor {
    name: String,
    /// Channels or features.
    pub(super) channels: usize,
}

/// How a kernel moves.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) pad: usize,
}

impl Frame {
    pub(super) const fn new(kernel: usize, stride: usize, pad: usize) -> Self {
        Self { kernel, stride, pad }
    }
}

/// A batch normalisation whose statistics are still to be measured.
pub(super) struct Norm {
    /// Name of its node; its mean and variance are the initializers named after it.
    pub(super) node: String,
    pub(super) gamma: Vec<f32>,
    pub(super) beta: Vec<f32>,
}

/// A graph under construction.
pub(super) struct Builder {
    graph: GraphProto,
    seed: u64,
    norms: Vec<Norm>,
    input: [usize; 3],
    /// Node of the linear layer that was added last.
    last: String,
}

/// A file that is complete but for its statistics.
pub(super) struct Plan {
    model: ModelProto,
    pub(super) norms: Vec<Norm>,
    /// Node of the last linear layer.
    pub(super) head: String,
    /// Channels, rows and columns of a picture.
    input: [usize; 3],
}

impl Plan {
    /// The file.
    pub(super) fn model(&self) -> &ModelProto {
        &self.model
    }

    fn graph(&mut self) -> &mut GraphProto {
        self.model.graph.as_mut().expect("given by `finish`")
    }

    /// Makes it a file for inputs of this many pictures.
    pub(super) fn set_batch(&mut self, batch: usize) {
        let dims = [batch, self.input[0], self.input[1], self.input[2]];
        self.graph().input = vec![value("image", Some(&dims))];
    }

    fn weights(&mut self, name: &str) -> Option<&mut TensorProto> {
        self.graph().initializer.iter_mut().find(|t| t.name == name)
    }

    /// Replaces the numbers of an initializer.
    pub(super) fn set(&mut self, name: &str, numbers: &[f32]) {
        self.weights(name).expect("named after its node").raw_data = bytes(numbers);
    }

    /// Multiplies the last linear layer's weights and biases.
    pub(super) fn scale_head(&mut self, factor: f64) {
        for part in ["weight", "bias"] {
            let name = format!("{}.{part}", self.head);
            let Some(tensor) = self.weights(&name) else { continue };
            for b in tensor.raw_data.chunks_exact_mut(4) {
                let old = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                b.copy_from_slice(&((f64::from(old) * factor) as f32).to_le_bytes());
            }
        }
    }
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn value(name: &str, dims: Option<&[usize]>) -> ValueInfoProto {
    let dim = |&d: &usize| Dimension { dim_value: d as i64, dim_param: String::new() };
    let shape = dims.map(|d| TensorShapeProto { dim: d.iter().map(dim).collect() });
    let tensor_type = Some(TensorType { elem_type: FLOAT, shape });
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
}

fn int(name: &str, i: usize) -> AttributeProto {
    AttributeProto { name: name.into(), i: i as i64, r#type: ATTRIBUTE_INT, ..Default::default() }
}

fn ints(name: &str, values: &[usize]) -> AttributeProto {
    let ints = values.iter().map(|&v| v as i64).collect();
    AttributeProto { name: name.into(), ints, r#type: ATTRIBUTE_INTS, ..Default::default() }
}

fn window(f: Frame) -> Vec<AttributeProto> {
    vec![ints("kernel_shape", &[f.kernel; 2]), ints("strides", &[f.stride; 2]), ints("pads", &[f.pad; 4])]
}

impl Builder {
    pub(super) fn new(name: &str, channels: usize, side: usize, seed: u64) -> (Self, Tensor) {
        let graph = GraphProto { name: name.into(), ..Default::default() };
        let input = [channels, side, side];
        let builder = Self { graph, seed, norms: Vec::new(), input, last: String::new() };
        (builder, Tensor { name: "image".into(), channels })
    }

    /// Ends the graph, whose output gets this name.
    pub(super) fn finish(mut self, output: &Tensor, name: &str) -> Plan {
        let places = self.graph.node.iter_mut().flat_map(|n| n.output.iter_mut().chain(&mut n.input));
        places.filter(|n| **n == output.name).for_each(|n| *n = name.into());
        self.graph.output = vec![value(name, None)];
        let model = ModelProto {
            ir_version: 8,
            producer_name: "sharelens".into(),
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        };
        let mut plan = Plan { model, norms: self.norms, head: self.last, input: self.input };
        plan.set_batch(1);
        plan
    }

    fn weights(&mut self, name: String, dims: &[usize], numbers: &[f32]) -> String {
        debug_assert_eq!(dims.iter().product::<usize>(), numbers.len());
        self.graph.initializer.push(TensorProto {
            name: name.clone(),
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: FLOAT,
            raw_data: bytes(numbers),
            ..Default::default()
        });
        name
    }

    fn push(
        &mut self,
        op: &str,
        name: &str,
        input: Vec<String>,
        attribute: Vec<AttributeProto>,
        channels: usize,
    ) -> Tensor {
        let out = Tensor { name: format!("{name}.out"), channels };
        self.graph.node.push(NodeProto {
            input,
            output: vec![out.name.clone()],
            name: name.into(),
            op_type: op.into(),
            attribute,
            domain: String::new(),
        });
        out
    }

    /// Weights and biases by He's rule: variance 2 over the number of summands.
    fn linear(&mut self, name: &str, dims: &[usize], summands: usize, biases: Option<usize>) -> Vec<String> {
        let deviation = (2.0 / summands as f64).sqrt();
        let weight = format!("{name}.weight");
        let numbers = normal(dims.iter().product(), deviation, self.seed, &weight);
        let mut names = vec![self.weights(weight, dims, &numbers)];
        if let Some(n) = biases {
            let bias = format!("{name}.bias");
            let numbers = normal(n, 0.05, self.seed, &bias);
            names.push(self.weights(bias, &[n], &numbers));
        }
        self.last = name.into();
        names
    }

    /// A convolution; biases only where no normalisation follows.
    pub(super) fn conv(&mut self, name: &str, x: &Tensor, c_out: usize, f: Frame, bias: bool) -> Tensor {
        self.grouped(name, x, c_out, f, 1, bias)
    }

    /// A convolution of each channel alone.
    pub(super) fn depthwise(&mut self, name: &str, x: &Tensor, f: Frame) -> Tensor {
        self.grouped(name, x, x.channels, f, x.channels, false)
    }

    fn grouped(
        &mut self,
        name: &str,
        x: &Tensor,
        c_out: usize,
        f: Frame,
        groups: usize,
        bias: bool,
    ) -> Tensor {
        let per_in = x.channels / groups;
        let dims = [c_out, per_in, f.kernel, f.kernel];
        let weights = self.linear(name, &dims, per_in * f.kernel * f.kernel, bias.then_some(c_out));
        let mut attributes = window(f);
        attributes.push(int("group", groups));
        let inputs = [vec![x.name.clone()], weights].concat();
        self.push("Conv", name, inputs, attributes, c_out)
    }

    /// Twice the rows and columns.
    pub(super) fn up(&mut self, name: &str, x: &Tensor, c_out: usize) -> Tensor {
        // Windows do not overlap, so each output sums over channels alone.
        let weights = self.linear(name, &[x.channels, c_out, 2, 2], x.channels, Some(c_out));
        let inputs = [vec![x.name.clone()], weights].concat();
        self.push("ConvTranspose", name, inputs, window(Frame::new(2, 2, 0)), c_out)
    }

    /// A dense layer of `[batch, x.channels]`.
    pub(super) fn dense(&mut self, name: &str, x: &Tensor, c_out: usize) -> Tensor {
        let weights = self.linear(name, &[c_out, x.channels], x.channels, Some(c_out));
        let inputs = [vec![x.name.clone()], weights].concat();
        self.push("Gemm", name, inputs, vec![int("transB", 1)], c_out)
    }

    /// A batch normalisation: factors around 1, summands around 0.
    pub(super) fn norm(&mut self, name: &str, x: &Tensor) -> Tensor {
        self.norm_to(name, x, 1.0)
    }

    /// A batch normalisation with factors around `level`.
    pub(super) fn norm_to(&mut self, name: &str, x: &Tensor, level: f64) -> Tensor {
        let c = x.channels;
        let mut random = Random::new(self.seed, name);
        let gamma: Vec<f32> = (0..c).map(|_| (level * random.uniform(0.75, 1.25)) as f32).collect();
        let beta: Vec<f32> = (0..c).map(|_| (level * random.uniform(-0.25, 0.25)) as f32).collect();
        let inputs = vec![
            x.name.clone(),
            self.weights(format!("{name}.weight"), &[c], &gamma),
            self.weights(format!("{name}.bias"), &[c], &beta),
            self.weights(format!("{name}.running_mean"), &[c], &vec![0.0; c]),
            self.weights(format!("{name}.running_var"), &[c], &vec![1.0; c]),
        ];
        self.norms.push(Norm { node: name.into(), gamma, beta });
        self.push("BatchNormalization", name, inputs, vec![], c)
    }

    pub(super) fn relu(&mut self, name: &str, x: &Tensor) -> Tensor {
        self.push("Relu", name, vec![x.name.clone()], vec![], x.channels)
    }

    /// min(max(x, 0), 6)
    pub(super) fn relu6(&mut self, name: &str, x: &Tensor) -> Tensor {
        let lo = self.weights(format!("{name}.min"), &[], &[0.0]);
        let hi = self.weights(format!("{name}.max"), &[], &[6.0]);
        self.push("Clip", name, vec![x.name.clone(), lo, hi], vec![], x.channels)
    }

    pub(super) fn max_pool(&mut self, name: &str, x: &Tensor, f: Frame) -> Tensor {
        self.push("MaxPool", name, vec![x.name.clone()], window(f), x.channels)
    }

    pub(super) fn average_pool(&mut self, name: &str, x: &Tensor, f: Frame) -> Tensor {
        self.push("AveragePool", name, vec![x.name.clone()], window(f), x.channels)
    }

    /// The mean of each channel, as features.
    pub(super) fn global_average(&mut self, name: &str, x: &Tensor) -> Tensor {
        let mean = self.push("GlobalAveragePool", name, vec![x.name.clone()], vec![], x.channels);
        self.flatten("flatten", &mean, 1)
    }

    /// All channels of `pixels` pixels as features.
    pub(super) fn flatten(&mut self, name: &str, x: &Tensor, pixels: usize) -> Tensor {
        self.push("Flatten", name, vec![x.name.clone()], vec![int("axis", 1)], pixels * x.channels)
    }

    pub(super) fn add(&mut self, name: &str, x: &Tensor, y: &Tensor) -> Tensor {
        self.push("Add", name, vec![x.name.clone(), y.name.clone()], vec![], x.channels)
    }

    pub(super) fn sub(&mut self, name: &str, x: &Tensor, y: &Tensor) -> Tensor {
        self.push("Sub", name, vec![x.name.clone(), y.name.clone()], vec![], x.channels)
    }

    /// All channels side by side.
    pub(super) fn concat(&mut self, name: &str, parts: &[Tensor]) -> Tensor {
        let inputs = parts.iter().map(|p| p.name.clone()).collect();
        self.push("Concat", name, inputs, vec![int("axis", 1)], parts.iter().map(|p| p.channels).sum())
    }
}
