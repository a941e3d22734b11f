//! Constants of an ONNX file.

use crate::error::{Error, Result};
use crate::graph::MAX_ELEMENTS;
use crate::onnx::proto::TensorProto;

/// A constant in the order of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Shape; empty for a scalar.
    pub dims: Vec<usize>,
    /// Elements.
    pub data: Data,
}

/// Elements of an [`Array`].
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Of a weight.
    Floats(Vec<f32>),
    /// Of a shape, an axis list and the like.
    Ints(Vec<i64>),
}

impl Array {
    /// A list of integers.
    pub fn ints(values: Vec<i64>) -> Self {
        Self { dims: vec![values.len()], data: Data::Ints(values) }
    }

    /// From the file; every element finite.
    pub fn decode(t: &TensorProto) -> Result<Self> {
        let name = if t.name.is_empty() { "a constant" } else { &t.name };
        let bad = |why: &str| Error::Onnx(format!("tensor {name}: {why}"));
        if t.data_location == 1 {
            return Err(bad(
                "its data lie in another file, which is read only where the model is given as a file",
            ));
        }
        let dims: Vec<usize> = t
            .dims
            .iter()
            .map(|&d| usize::try_from(d).map_err(|_| bad("a negative extent")))
            .collect::<Result<_>>()?;
        let count = dims
            .iter()
            .try_fold(1usize, |a, &d| a.checked_mul(d))
            .filter(|&n| n <= MAX_ELEMENTS && dims.len() <= 8)
            .ok_or_else(|| bad(&format!("shape {dims:?} is beyond the limit of {MAX_ELEMENTS} elements")))?;
        let raw = |size: usize| -> Result<Option<std::slice::ChunksExact<'_, u8>>> {
            if t.raw_data.is_empty() {
                return Ok(None);
            }
            if t.raw_data.len() != count * size {
                return Err(bad(&format!("{} bytes of data for shape {dims:?}", t.raw_data.len())));
            }
            Ok(Some(t.raw_data.chunks_exact(size)))
        };
        let word = |b: &[u8]| i64::from_le_bytes(std::array::from_fn(|i| b.get(i).copied().unwrap_or(0)));
        let data = match t.data_type {
            1 => Data::Floats(match raw(4)? {
                Some(b) => b.map(|b| f32::from_bits(word(b) as u32)).collect(),
                None => t.float_data.clone(),
            }),
            11 => Data::Floats(match raw(8)? {
                Some(b) => b.map(|b| f64::from_bits(word(b) as u64) as f32).collect(),
                None => t.double_data.iter().map(|&v| v as f32).collect(),
            }),
            10 | 16 => {
                let widen = if t.data_type == 10 { half } else { brain };
                Data::Floats(match raw(2)? {
                    Some(b) => b.map(|b| widen(word(b) as u16)).collect(),
                    None => t.int32_data.iter().map(|&v| widen(v as u16)).collect(),
                })
            }
            7 => Data::Ints(match raw(8)? {
                Some(b) => b.map(word).collect(),
                None => t.int64_data.clone(),
            }),
            6 => Data::Ints(match raw(4)? {
                Some(b) => b.map(|b| i64::from(word(b) as i32)).collect(),
                None => t.int32_data.iter().map(|&v| v.into()).collect(),
            }),
            9 | 2 => Data::Ints(match raw(1)? {
                Some(b) => b.map(word).collect(),
                None => t.int32_data.iter().map(|&v| v.into()).collect(),
            }),
            other => return Err(bad(&format!("element type {other} is not supported"))),
        };
        let found = match &data {
            Data::Floats(v) => v.len(),
            Data::Ints(v) => v.len(),
        };
        if found != count {
            return Err(bad(&format!("{found} elements for shape {dims:?}")));
        }
        if let Data::Floats(v) = &data
            && let Some(i) = v.iter().position(|v| !v.is_finite())
        {
            return Err(bad(&format!("element {i} is {}", v[i])));
        }
        Ok(Self { dims, data })
    }

    /// Elements as floats.
    pub fn floats(&self) -> Vec<f32> {
        match &self.data {
            Data::Floats(v) => v.clone(),
            Data::Ints(v) => v.iter().map(|&v| v as f32).collect(),
        }
    }

    /// Elements as integers, if they are.
    pub fn integers(&self) -> Option<&[i64]> {
        match &self.data {
            Data::Ints(v) => Some(v),
            Data::Floats(_) => None,
        }
    }

    /// The only element, as a float.
    pub fn scalar(&self) -> Option<f32> {
        match &self.data {
            Data::Floats(v) => (v.len() == 1).then(|| v[0]),
            Data::Ints(v) => (v.len() == 1).then(|| v[0] as f32),
        }
    }
}

/// Half precision, IEEE 754 binary16.
fn half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (bits >> 10 & 31, f32::from(bits & 1023));
    match exponent {
        0 => sign * fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        e => sign * (1.0 + fraction / 1024.0) * 2f32.powi(i32::from(e) - 15),
    }
}

/// The upper half of single precision.
fn brain(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_floats_widen() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x0001, 5.960_464_5e-8),
            (0x7bff, 65504.0),
            (0x3555, 0.333_251_95),
        ] {
            assert_eq!(half(bits), value);
        }
        assert!(half(0x7c00).is_infinite() && half(0x7e00).is_nan());
        assert_eq!(brain(0x3fc0), 1.5);
    }

    #[test]
    fn lies_about_size_are_refused_before_anything_is_allocated() {
        let t = TensorProto { dims: vec![1 << 40, 1 << 40], data_type: 1, ..Default::default() };
        assert!(Array::decode(&t).is_err());
        let t = TensorProto { dims: vec![1 << 20], data_type: 1, raw_data: vec![0; 8], ..Default::default() };
        assert!(Array::decode(&t).is_err());
        let t = TensorProto { dims: vec![-1], data_type: 1, ..Default::default() };
        assert!(Array::decode(&t).is_err());
        let t = TensorProto { dims: vec![1], data_type: 1, float_data: vec![f32::NAN], ..Default::default() };
        assert!(Array::decode(&t).unwrap_err().to_string().contains("NaN"));
        let t = TensorProto { dims: vec![1], data_type: 1, data_location: 1, ..Default::default() };
        assert!(Array::decode(&t).unwrap_err().to_string().contains("another file"));
    }
}
