//! A small builder of ONNX files.
#![allow(dead_code, reason = "each test binary uses a part")]

use prost::Message;
use sharelens_models::onnx::proto::*;

/// A graph being built, with one input `x`.
pub struct Builder {
    pub graph: GraphProto,
    pub opset: i64,
}

pub fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = dims.iter().map(|&d| Dimension { dim_value: d, ..Default::default() }).collect();
    let tensor = TensorType { elem_type: 1, shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}

/// Numbers of both signs between -1 and 1, the same on every run.
pub fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / 8_388_608.0) - 1.0
        })
        .collect()
}

pub enum Attr<'a> {
    I(i64),
    F(f32),
    S(&'a str),
    Is(&'a [i64]),
    Fs(&'a [f32]),
}

impl Builder {
    pub fn new(opset: i64, input: &[i64]) -> Self {
        let graph = GraphProto { name: "test".into(), input: vec![value("x", input)], ..Default::default() };
        Self { graph, opset }
    }

    pub fn floats(mut self, name: &str, dims: &[i64], data: Vec<f32>) -> Self {
        let t = TensorProto {
            name: name.into(),
            dims: dims.into(),
            data_type: 1,
            float_data: data,
            ..Default::default()
        };
        self.graph.initializer.push(t);
        self
    }

    /// Random weights of this shape.
    pub fn weights(self, name: &str, dims: &[i64]) -> Self {
        let n = dims.iter().product::<i64>() as usize;
        let seed = name.bytes().map(u64::from).sum();
        self.floats(name, dims, numbers(n, seed))
    }

    pub fn ints(mut self, name: &str, data: &[i64]) -> Self {
        let t = TensorProto {
            name: name.into(),
            dims: vec![data.len() as i64],
            data_type: 7,
            raw_data: data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            ..Default::default()
        };
        self.graph.initializer.push(t);
        self
    }

    pub fn node(mut self, op: &str, inputs: &[&str], output: &str, attributes: &[(&str, Attr<'_>)]) -> Self {
        let attribute = attributes
            .iter()
            .map(|(name, a)| {
                let mut p = AttributeProto { name: (*name).into(), ..Default::default() };
                match a {
                    Attr::I(i) => (p.i, p.r#type) = (*i, 2),
                    Attr::F(f) => (p.f, p.r#type) = (*f, 1),
                    Attr::S(s) => (p.s, p.r#type) = (s.as_bytes().to_vec(), 3),
                    Attr::Is(v) => (p.ints, p.r#type) = (v.to_vec(), 7),
                    Attr::Fs(v) => (p.floats, p.r#type) = (v.to_vec(), 6),
                }
                p
            })
            .collect();
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|&s| s.into()).collect(),
            output: vec![output.into()],
            name: format!("{op}_{output}"),
            op_type: op.into(),
            attribute,
            ..Default::default()
        });
        self
    }

    pub fn model(mut self, outputs: &[&str]) -> ModelProto {
        self.graph.output = outputs
            .iter()
            .map(|&o| ValueInfoProto {
                name: o.into(),
                r#type: Some(TypeProto { tensor_type: Some(TensorType { elem_type: 1, shape: None }) }),
            })
            .collect();
        ModelProto {
            ir_version: 8,
            producer_name: "test".into(),
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: self.opset }],
        }
    }

    pub fn build(self, outputs: &[&str]) -> Vec<u8> {
        self.model(outputs).encode_to_vec()
    }
}

/// `[n, c, h, w]` to `[n, h, w, c]`.
pub fn to_storage(x: &[f32], dims: &[i64]) -> Vec<f32> {
    let &[_, c, h, w] = dims else { return x.to_vec() };
    let (c, h, w) = (c as usize, h as usize, w as usize);
    let size = c * h * w;
    (0..x.len()).map(|i| x[i / size * size + i % c * h * w + i % size / c]).collect()
}
