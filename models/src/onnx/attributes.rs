//! Attributes of a node, with defaults, and the windows that convolutions and pools share.

use super::proto::{AttributeProto, NodeProto};
use super::tensor::Array;

/// Why a node is not supported.
pub type Reason<T> = Result<T, String>;

/// Attributes of one node.
pub struct Attributes<'a>(&'a [AttributeProto]);

impl<'a> Attributes<'a> {
    /// Of `node`.
    pub fn of(node: &'a NodeProto) -> Self {
        Self(&node.attribute)
    }

    fn find(&self, name: &str) -> Option<&'a AttributeProto> {
        self.0.iter().find(|a| a.name == name)
    }

    /// Whether it is given.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// An integer.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.find(name).map_or(default, |a| a.i)
    }

    /// A float.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.find(name).map_or(default, |a| a.f)
    }

    /// A float, if given.
    pub fn maybe_float(&self, name: &str) -> Option<f32> {
        self.find(name).map(|a| a.f)
    }

    /// A string.
    pub fn string(&self, name: &str, default: &str) -> String {
        self.find(name).map_or_else(|| default.into(), |a| String::from_utf8_lossy(&a.s).into_owned())
    }

    /// Integers, if given.
    pub fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.find(name).map(|a| a.ints.as_slice())
    }

    /// Floats, if given.
    pub fn floats(&self, name: &str) -> Option<&'a [f32]> {
        self.find(name).map(|a| a.floats.as_slice())
    }

    /// A tensor, if given.
    pub fn tensor(&self, name: &str) -> Option<crate::error::Result<Array>> {
        self.find(name).and_then(|a| a.t.as_ref()).map(Array::decode)
    }

    /// Two positive numbers.
    pub fn pair(&self, name: &str, default: [usize; 2]) -> Reason<[usize; 2]> {
        match self.ints(name) {
            None | Some([]) => Ok(default),
            Some(&[a, b]) if (1..1 << 16).contains(&a) && (1..1 << 16).contains(&b) => {
                Ok([a as usize, b as usize])
            }
            Some(other) => Err(format!("{name} {other:?} is not two positive numbers")),
        }
    }
}

/// Kernel, stride, padding and dilation over two axes.
pub struct Frame {
    /// Kernel rows and columns.
    pub kernel: [usize; 2],
    /// Strides.
    pub stride: [usize; 2],
    /// Dilations.
    pub dilation: [usize; 2],
    /// Top, left, bottom, right.
    pub pad: [usize; 4],
    /// Output rows and columns.
    pub output: [usize; 2],
}

impl Frame {
    /// For an input of `size` rows and columns.
    pub fn new(a: &Attributes<'_>, kernel: [usize; 2], size: [usize; 2]) -> Reason<Self> {
        let kernel = a.pair("kernel_shape", kernel)?;
        let stride = a.pair("strides", [1, 1])?;
        let dilation = a.pair("dilations", [1, 1])?;
        let ceil = a.int("ceil_mode", 0) != 0;
        let auto = a.string("auto_pad", "NOTSET");
        let mut pad = match a.ints("pads") {
            None | Some([]) => [0; 4],
            Some(p) if p.len() == 4 && p.iter().all(|p| (0..1 << 12).contains(p)) => {
                std::array::from_fn(|i| p[i] as usize)
            }
            Some(p) => return Err(format!("pads {p:?} are not four numbers from 0 to 4095")),
        };
        let mut output = [0; 2];
        for axis in 0..2 {
            let span = dilation[axis]
                .checked_mul(kernel[axis] - 1)
                .map(|s| s + 1)
                .filter(|&s| s < 1 << 20)
                .ok_or("its kernel is too large")?;
            match auto.as_str() {
                "SAME_UPPER" | "SAME_LOWER" => {
                    let out = size[axis].div_ceil(stride[axis]);
                    let total = ((out - 1) * stride[axis] + span).saturating_sub(size[axis]);
                    let less = total / 2;
                    let (before, after) =
                        if auto == "SAME_UPPER" { (less, total - less) } else { (total - less, less) };
                    (pad[axis], pad[axis + 2]) = (before, after);
                }
                "VALID" => (pad[axis], pad[axis + 2]) = (0, 0),
                "NOTSET" | "" => {}
                other => return Err(format!("auto_pad {other} is not supported")),
            }
            let free = (size[axis] + pad[axis] + pad[axis + 2])
                .checked_sub(span)
                .ok_or_else(|| format!("its kernel of {span} does not fit the padded input {size:?}"))?;
            output[axis] = free / stride[axis] + 1;
            // A window that a rounded-up count adds must start inside the input or the padding before it.
            if ceil && free % stride[axis] != 0 && output[axis] * stride[axis] < size[axis] + pad[axis] {
                output[axis] += 1;
            }
        }
        Ok(Self { kernel, stride, dilation, pad, output })
    }
}
