//! Import of ONNX models, opset 9 to 24.
//!
//! Feature maps change from `[n, c, h, w]` to `[n, h, w, c]` on the way. Everything a file states is checked
//! before it is believed; all nodes that are not supported are reported at once.

use std::collections::{BTreeMap, HashMap, HashSet};

use prost::Message;

use crate::error::{Error, Result, Unsupported};
use crate::finish::{Finish, Function};
use crate::graph::{Graph, MAX_NODES, Node, Op, Output, ValueId, elements};

mod attributes;
mod constants;
pub mod external;
mod line;
mod linear;
mod movement;
mod normal;
mod pointwise;
mod pool;
mod resize;
mod smooth;

pub mod proto;
pub mod tensor;

use attributes::{Attributes, Reason};
use proto::{GraphProto, ModelProto, NodeProto, ValueInfoProto};
use tensor::Array;

/// Bytes that a model file may have.
pub const MAX_FILE: u64 = 1 << 30;

/// Numbers that an imported network may hold, weights and index tables together: a GiB of them. Nodes share
/// the weights of the file, so a small file may hold a large network.
pub const MAX_NUMBERS: usize = 1 << 28;

/// Characters of a reason that are reported; a file may list millions of numbers.
const MAX_REASON: usize = 300;

/// Operators that import knows.
pub const OPERATORS: &[&str] = &[
    "Abs",
    "Add",
    "ArgMax",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "CastLike",
    "Celu",
    "Clip",
    "Concat",
    "Constant",
    "Conv",
    "ConstantOfShape",
    "ConvTranspose",
    "DepthToSpace",
    "Div",
    "Dropout",
    "Elu",
    "Erf",
    "Expand",
    "Flatten",
    "Gather",
    "Gelu",
    "Gemm",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "Reciprocal",
    "Sqrt",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "LogSoftmax",
    "MatMul",
    "Max",
    "MaxPool",
    "Mean",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "PRelu",
    "Pad",
    "Pow",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Resize",
    "Selu",
    "Shape",
    "Sigmoid",
    "Slice",
    "Softmax",
    "SpaceToDepth",
    "Softplus",
    "Split",
    "Squeeze",
    "Sub",
    "Sum",
    "Swish",
    "Tanh",
    "ThresholdedRelu",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Upsample",
];

/// The network in the bytes of an ONNX file.
///
/// # Errors
///
/// [`Error::Unsupported`] lists every node that is not supported; [`Error::Onnx`] and [`Error::Limit`] say
/// what is wrong with the file.
pub fn import(bytes: &[u8]) -> Result<Graph> {
    import_model(&decode(bytes)?)
}

/// The network in a decoded file.
pub(crate) fn import_model(model: &ModelProto) -> Result<Graph> {
    let opset = model
        .opset_import
        .iter()
        .find(|o| o.domain.is_empty() || o.domain == "ai.onnx")
        .map_or(0, |o| o.version);
    if !(9..=24).contains(&opset) {
        return Err(Error::Onnx(format!("it uses opset {opset}; opsets 9 to 24 are supported")));
    }
    let graph = model.graph.as_ref().ok_or_else(|| Error::Onnx("the file holds no graph".into()))?;
    if graph.node.len() > MAX_NODES {
        return Err(Error::Limit {
            what: "the number of nodes".into(),
            found: graph.node.len() as u64,
            allowed: MAX_NODES as u64,
        });
    }
    if !graph.sparse_initializer.is_empty() {
        return Err(Error::Onnx("it holds sparse weights, which are not supported".into()));
    }
    Importer::new(graph, opset)?.run(graph)
}

/// How often each operator occurs in the bytes of an ONNX file.
///
/// # Errors
///
/// If the file is damaged or too large.
pub fn operators(bytes: &[u8]) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for node in decode(bytes)?.graph.unwrap_or_default().node {
        *counts.entry(node.op_type).or_default() += 1;
    }
    Ok(counts)
}

fn decode(bytes: &[u8]) -> Result<ModelProto> {
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::Limit {
            what: "the size of the file in bytes".into(),
            found: bytes.len() as u64,
            allowed: MAX_FILE,
        });
    }
    ModelProto::decode(bytes).map_err(|e| Error::Onnx(format!("the file is damaged or not ONNX: {e}")))
}

/// What a name of the file stands for.
#[derive(Clone)]
enum Known {
    Constant(Array),
    Value(Value),
    /// The result of something that is not supported.
    Unknown,
}

/// A value of the network and its shape in the order of the file.
#[derive(Clone, Debug)]
struct Value {
    id: ValueId,
    dims: Vec<usize>,
    /// What the file applies to it, and the client will.
    finish: Option<Finish>,
}

/// The shape in storage order.
fn storage(dims: &[usize]) -> Vec<usize> {
    match *dims {
        [n, c, h, w] => vec![n, h, w, c],
        _ => dims.to_vec(),
    }
}

/// For each axis of the storage order, the axis of the file's order.
fn storage_axes(rank: usize) -> Vec<usize> {
    if rank == 4 { vec![0, 2, 3, 1] } else { (0..rank).collect() }
}

/// What the handler of an operator yields.
type Handled = Reason<Known>;

struct Importer {
    opset: i64,
    graph: Graph,
    known: HashMap<String, Known>,
    /// Whether the file has its input as `[n, h, w, c]`, and turns it round first.
    channels_last: bool,
    /// Values with their last function computed, by name.
    applied: HashMap<String, Value>,
    /// Name of the node being imported.
    current: String,
    names: HashSet<String>,
    /// What is left of [`MAX_NUMBERS`].
    room: usize,
}

impl Importer {
    fn new(graph: &GraphProto, opset: i64) -> Result<Self> {
        let mut known = HashMap::new();
        for t in &graph.initializer {
            if known.insert(t.name.clone(), Known::Constant(Array::decode(t)?)).is_some() {
                return Err(Error::Onnx(format!("two weights are named {}", t.name)));
            }
        }
        let inputs: Vec<&ValueInfoProto> =
            graph.input.iter().filter(|i| !known.contains_key(&i.name)).collect();
        let [input] = inputs[..] else {
            let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
            return Err(Error::Onnx(format!("it has {} inputs {names:?}; one is supported", inputs.len())));
        };
        let mut dims = input_dims(input)?;
        let channels_last = is_channels_last(graph, &input.name, &dims);
        if channels_last {
            dims = vec![dims[0], dims[3], dims[1], dims[2]];
        }
        let value = Value { id: 0, dims: dims.clone(), finish: None };
        known.insert(input.name.clone(), Known::Value(value));
        let graph = Graph {
            name: graph.name.clone(),
            input_name: input.name.clone(),
            input_shape: storage(&dims),
            nodes: Vec::new(),
            outputs: Vec::new(),
        };
        Ok(Self {
            opset,
            graph,
            known,
            channels_last,
            applied: HashMap::new(),
            current: String::new(),
            names: HashSet::new(),
            room: MAX_NUMBERS,
        })
    }

    fn run(mut self, file: &GraphProto) -> Result<Graph> {
        let order = sorted(file, &self.known)?;
        let mut problems = Vec::new();
        for i in order {
            let node = &file.node[i];
            self.current = label(node, i);
            let outcome = self.node(node);
            let mut produced = match outcome {
                Ok(known) => known.into_iter(),
                Err(Failure::Unsupported(why)) => {
                    let why = match why.char_indices().nth(MAX_REASON) {
                        Some((end, _)) => format!("{}...", &why[..end]),
                        None => why,
                    };
                    problems.push(Unsupported { node: self.current.clone(), op: node.op_type.clone(), why });
                    vec![Known::Unknown].into_iter()
                }
                Err(Failure::Error(e)) => return Err(e),
            };
            for name in &node.output {
                let known = produced.next().unwrap_or(Known::Unknown);
                if !name.is_empty() {
                    self.known.insert(name.clone(), known);
                }
            }
        }
        if !problems.is_empty() {
            return Err(Error::Unsupported(problems));
        }
        for output in &file.output {
            match self.known.get(&output.name) {
                Some(Known::Value(v)) => {
                    self.graph.outputs.push(Output {
                        name: output.name.clone(),
                        value: v.id,
                        original_shape: v.dims.clone(),
                        finish: v.finish.clone(),
                    });
                }
                Some(Known::Constant(_)) => {
                    return Err(Error::Onnx(format!("output {} does not depend on the input", output.name)));
                }
                _ => return Err(Error::Onnx(format!("no node yields output {}", output.name))),
            }
        }
        self.graph.validate()?;
        Ok(self.graph)
    }

    /// What a node yields, as many as are known of its outputs.
    fn node(&mut self, node: &NodeProto) -> Result<Vec<Known>, Failure> {
        if !(node.domain.is_empty() || node.domain == "ai.onnx") {
            return Err(Failure::Unsupported(format!("operator set {} is not supported", node.domain)));
        }
        let mut inputs = Vec::with_capacity(node.input.len());
        for name in &node.input {
            inputs.push(match self.known.get(name) {
                _ if name.is_empty() => None,
                // Its own problem has been reported already.
                Some(Known::Unknown) => return Ok(Vec::new()),
                Some(known) => Some(known.clone()),
                None => {
                    let reason = format!("it reads {name}, which nothing yields");
                    return Err(Failure::Error(Error::Graph { node: self.current.clone(), reason }));
                }
            });
        }
        if node.op_type == "Mul"
            && let Some(silu) = smooth::silu(self, &inputs)
        {
            return silu.map(|v| vec![v]).map_err(Failure::from);
        }
        self.apply_pending(node, &mut inputs)?;
        let line = line::widen(self, node, &mut inputs).map_err(Failure::from)?;
        let attributes = Attributes::of(line.as_ref().unwrap_or(node));
        let call = Call { op: &node.op_type, inputs, attributes, opset: self.opset };
        if let Some(constant) = constants::fold(&call) {
            let constant = constant.map_err(Failure::from)?;
            // A few bytes can ask for large constants again and again.
            self.reserve(constant.dims.iter().product()).map_err(Failure::from)?;
            return Ok(vec![Known::Constant(constant)]);
        }
        if node.op_type == "Split" {
            return movement::split(self, &call, node.output.len()).map_err(Failure::from);
        }
        if !OPERATORS.contains(&node.op_type.as_str()) {
            return Err(Failure::Unsupported("operator not supported".into()));
        }
        let handled = match node.op_type.as_str() {
            "Conv" => linear::conv(self, &call),
            "ConvTranspose" => linear::conv_transpose(self, &call),
            "Gemm" => linear::gemm(self, &call),
            "MatMul" => linear::mat_mul(self, &call),
            // Before opset 14 it is trained where statistics are asked for.
            "BatchNormalization" if node.output.iter().skip(1).any(|o| !o.is_empty()) => {
                Err("it is in training mode: it yields statistics".into())
            }
            "BatchNormalization" => pointwise::batch_norm(self, &call),
            "Add" | "Sub" | "Mul" | "Div" => pointwise::arithmetic(self, &call),
            "Neg" => pointwise::negate(self, &call),
            "Pow" => pointwise::power(self, &call),
            "Sum" | "Mean" | "Min" | "Max" => pointwise::many(self, &call),
            "LayerNormalization" | "InstanceNormalization" | "GroupNormalization"
                if node.output.iter().skip(1).any(|o| !o.is_empty()) =>
            {
                Err("it yields its statistics, too".into())
            }
            "LayerNormalization" | "InstanceNormalization" | "GroupNormalization" => {
                normal::normalisation(self, &call)
            }
            "Sqrt" | "Reciprocal" => normal::root(self, &call),
            op if smooth::handles(op) => smooth::smooth(self, &call),
            "Relu" | "Clip" | "LeakyRelu" | "PRelu" => pointwise::activation(self, &call),
            "MaxPool" => match node.output.get(1).filter(|o| !o.is_empty()) {
                Some(_) => Err("its second output (indices) is not supported".into()),
                None => pool::max_pool(self, &call),
            },
            "AveragePool" => pool::average_pool(self, &call),
            "GlobalAveragePool" | "GlobalMaxPool" => pool::global(self, &call),
            "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" => pool::reduce(self, &call),
            "Resize" | "Upsample" => resize::resize(self, &call),
            "Identity" => call.value(0).map(Known::Value),
            "Dropout" => match call.constant(2).ok().and_then(Array::scalar) {
                Some(training) if training != 0.0 => Err("it is in training mode".into()),
                _ => call.value(0).map(Known::Value),
            },
            // Inputs are stored so anyway.
            "Transpose" if self.channels_last && matches!(call.value(0), Ok(v) if v.id == 0) => {
                call.value(0).map(Known::Value)
            }
            "Softmax" | "LogSoftmax" | "Sigmoid" | "ArgMax" => finish(&call),
            _ => movement::movement(self, &call),
        };
        let mut handled = handled.map_err(Failure::from)?;
        if line.is_some() {
            handled = line::narrow(self, handled).map_err(Failure::from)?;
        }
        // Whatever keeps the order of numbers leaves the last function as it is.
        if let (Some(Some(Known::Value(Value { finish: Some(finish), .. }))), Known::Value(out)) =
            (call.inputs.first(), &mut handled)
        {
            out.finish.get_or_insert_with(|| finish.clone());
        }
        Ok(vec![handled])
    }

    /// Computes last functions that this node reads and does not pass on.
    fn apply_pending(&mut self, node: &NodeProto, inputs: &mut [Option<Known>]) -> Result<(), Failure> {
        for (name, input) in node.input.iter().zip(inputs) {
            let Some(Known::Value(value)) = input else { continue };
            let Some(finish) = &value.finish else { continue };
            if keeps(&node.op_type, finish) {
                continue;
            }
            let applied = match self.applied.get(name) {
                Some(applied) => applied.clone(),
                None => smooth::applied(self, value, finish).map_err(Failure::from)?,
            };
            self.applied.insert(name.clone(), applied.clone());
            *value = applied;
        }
        Ok(())
    }

    /// Counts numbers that the network is about to hold.
    fn reserve(&mut self, numbers: usize) -> Reason<()> {
        self.room = self
            .room
            .checked_sub(numbers)
            .ok_or_else(|| format!("the network would hold more than {MAX_NUMBERS} numbers"))?;
        Ok(())
    }

    /// Appends a node and yields its value; `dims` is its shape in the order of the file.
    fn push(&mut self, op: Op, inputs: &[ValueId], dims: Vec<usize>) -> Reason<Value> {
        let shape = storage(&dims);
        self.push_storage(op, inputs, shape)?;
        Ok(Value { id: self.graph.nodes.len(), dims, finish: None })
    }

    /// The same for a value that is not in the file.
    fn push_storage(&mut self, op: Op, inputs: &[ValueId], shape: Vec<usize>) -> Reason<ValueId> {
        elements(&shape).ok_or_else(|| format!("its output would have shape {shape:?}"))?;
        if self.graph.nodes.len() >= 2 * MAX_NODES {
            return Err("the network has too many nodes".into());
        }
        let mut name = self.current.clone();
        let mut count = 2;
        while !self.names.insert(name.clone()) {
            name = format!("{} #{count}", self.current);
            count += 1;
        }
        self.graph.nodes.push(Node { name, op, inputs: inputs.to_vec(), shape });
        Ok(self.graph.nodes.len())
    }
}

enum Failure {
    Unsupported(String),
    Error(Error),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Unsupported(why)
    }
}

/// Whether an operator may come behind this last function, and leaves it as it is.
fn keeps(op: &str, finish: &Finish) -> bool {
    match op {
        "Identity" | "Dropout" | "Cast" => true,
        // The shape of indices is another one.
        "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => finish.shape.is_none(),
        "Transpose" => finish.function == Function::Sigmoid,
        "ArgMax" => finish.function != Function::ArgMax,
        // Folded, or refused, on its own.
        "Shape" => true,
        _ => false,
    }
}

/// One node with its inputs resolved.
struct Call<'a> {
    op: &'a str,
    inputs: Vec<Option<Known>>,
    attributes: Attributes<'a>,
    opset: i64,
}

impl Call<'_> {
    fn value(&self, i: usize) -> Reason<Value> {
        match self.inputs.get(i) {
            Some(Some(Known::Value(v))) => Ok(v.clone()),
            Some(Some(_)) => Err(format!("input {i} is a constant, expected a value")),
            _ => Err(format!("input {i} is missing")),
        }
    }

    /// A feature map: value, and `[n, c, h, w]`.
    fn map(&self, i: usize) -> Reason<(Value, [usize; 4])> {
        let v = self.value(i)?;
        let dims: [usize; 4] = v.dims.as_slice().try_into().map_err(|_| {
            format!("its input has shape {:?}, and only images [n, c, h, w] are supported", v.dims)
        })?;
        Ok((v, dims))
    }

    fn constant(&self, i: usize) -> Reason<&Array> {
        match self.inputs.get(i) {
            Some(Some(Known::Constant(c))) => Ok(c),
            Some(Some(_)) => Err(format!("input {i} is computed, and only a constant is supported")),
            _ => Err(format!("input {i} is missing")),
        }
    }

    fn optional(&self, i: usize) -> Reason<Option<&Array>> {
        match self.inputs.get(i) {
            None | Some(None) => Ok(None),
            _ => self.constant(i).map(Some),
        }
    }

    /// Integers from an attribute (older opsets) or an input (newer ones).
    fn list(&self, attribute: &str, input: usize) -> Reason<Option<Vec<i64>>> {
        if let Some(ints) = self.attributes.ints(attribute) {
            return Ok(Some(ints.to_vec()));
        }
        match self.optional(input)? {
            None => Ok(None),
            Some(a) => {
                a.integers().map(|v| Some(v.to_vec())).ok_or_else(|| format!("input {input} is not integers"))
            }
        }
    }
}

/// `axis` counted from either end.
fn axis_of(axis: i64, rank: usize) -> Reason<usize> {
    let a = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(a).ok().filter(|&a| a < rank).ok_or_else(|| format!("axis {axis} of {rank}"))
}

fn label(node: &NodeProto, i: usize) -> String {
    match (node.name.as_str(), node.output.first()) {
        ("", Some(out)) if !out.is_empty() => out.clone(),
        ("", _) => format!("{}_{i}", node.op_type),
        (name, _) => name.to_owned(),
    }
}

/// The input's shape: the batch becomes 1 where it is open, everything else has to be fixed.
fn input_dims(input: &ValueInfoProto) -> Result<Vec<usize>> {
    let name = &input.name;
    let tensor = input
        .r#type
        .as_ref()
        .and_then(|t| t.tensor_type.as_ref())
        .ok_or_else(|| Error::Onnx(format!("input {name} is not a tensor")))?;
    if !matches!(tensor.elem_type, 1 | 10 | 11 | 16) {
        return Err(Error::Onnx(format!(
            "input {name} is not of floats (element type {})",
            tensor.elem_type
        )));
    }
    let shape = tensor.shape.as_ref().ok_or_else(|| Error::Onnx(format!("input {name} has no shape")))?;
    let mut dims = Vec::new();
    for (i, d) in shape.dim.iter().enumerate() {
        dims.push(match (i, d.dim_value) {
            (_, v) if v > 0 => v as usize,
            (0, _) => 1,
            _ => {
                let which = if d.dim_param.is_empty() { "unnamed" } else { &d.dim_param };
                return Err(Error::Onnx(format!(
                    "axis {i} of input {name} is open ({which}); only the batch may be: export with fixed sizes"
                )));
            }
        });
    }
    elements(&dims)
        .ok_or_else(|| Error::Onnx(format!("input {name} has shape {dims:?}, beyond the limits")))?;
    Ok(dims)
}

/// Whether a picture comes in as `[n, h, w, c]`, as TensorFlow has it: everything that reads it turns it round first.
fn is_channels_last(graph: &GraphProto, input: &str, dims: &[usize]) -> bool {
    let turns = |n: &NodeProto| {
        n.op_type == "Transpose" && Attributes::of(n).ints("perm").is_some_and(|p| p == [0, 3, 1, 2])
    };
    let mut readers = graph.node.iter().filter(|n| n.input.iter().any(|i| i == input)).peekable();
    matches!(dims, [_, _, _, 1 | 3]) && readers.peek().is_some() && readers.all(turns)
}

/// The value as it is, with a last function that the client will apply.
fn finish(call: &Call<'_>) -> Handled {
    let x = call.value(0)?;
    if call.op == "Sigmoid" {
        return Ok(Known::Value(Value { finish: Some(Finish::sigmoid()), ..x }));
    }
    let rank = x.dims.len();
    // Since opset 13 a softmax is over one axis, before over all from an axis on.
    let flat = call.op != "ArgMax" && call.opset < 13;
    let default = match call.op {
        "ArgMax" => 0,
        _ if flat => 1,
        _ => -1,
    };
    let axis = match call.attributes.int("axis", default) {
        // Behind the last axis: each number alone.
        a if flat && a == rank as i64 => return Err("an axis behind the last is not supported".into()),
        a => axis_of(a, rank)?,
    };
    let function = match call.op {
        "Softmax" => Function::Softmax,
        "LogSoftmax" => Function::LogSoftmax,
        _ => Function::ArgMax,
    };
    let mut finish = Finish::along(function, &x.dims, axis, flat);
    if function == Function::ArgMax {
        if call.attributes.int("select_last_index", 0) != 0 {
            return Err("the last of several largest is not supported".into());
        }
        let same = |before: &Finish| {
            before.function == Function::Sigmoid
                || (before.count, before.stride) == (finish.count, finish.stride)
        };
        if !x.finish.as_ref().is_none_or(same) {
            return Err("it is over another axis than the function before it".into());
        }
        let mut shape = x.dims.clone();
        if call.attributes.int("keepdims", 1) == 0 {
            shape.remove(axis);
        } else {
            shape[axis] = 1;
        }
        finish.shape = Some(shape);
    }
    Ok(Known::Value(Value { finish: Some(finish), ..x }))
}

/// Nodes in an order in which every one comes after those it reads.
fn sorted(file: &GraphProto, known: &HashMap<String, Known>) -> Result<Vec<usize>> {
    let mut producer = HashMap::new();
    for (i, node) in file.node.iter().enumerate() {
        for name in node.output.iter().filter(|n| !n.is_empty()) {
            if known.contains_key(name) || producer.insert(name.as_str(), i).is_some() {
                return Err(Error::Onnx(format!("two things are named {name}")));
            }
        }
    }
    let mut waiting = vec![0usize; file.node.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); file.node.len()];
    for (i, node) in file.node.iter().enumerate() {
        for p in node.input.iter().filter_map(|n| producer.get(n.as_str())) {
            waiting[i] += 1;
            readers[*p].push(i);
        }
    }
    // Smallest index first keeps the order of the file where it is one.
    let mut ready: std::collections::BTreeSet<usize> =
        (0..waiting.len()).filter(|&i| waiting[i] == 0).collect();
    let mut order = Vec::with_capacity(waiting.len());
    while let Some(i) = ready.pop_first() {
        order.push(i);
        for &r in &readers[i] {
            waiting[r] -= 1;
            if waiting[r] == 0 {
                ready.insert(r);
            }
        }
    }
    match waiting.iter().position(|&w| w > 0) {
        Some(i) => Err(Error::Onnx(format!("node {} is part of a cycle", label(&file.node[i], i)))),
        None => Ok(order),
    }
}
