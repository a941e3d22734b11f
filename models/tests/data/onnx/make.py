"""Makes small networks, one for each kind of operator, beside this file. `record.py` then writes what ONNX Runtime makes of them.

    pip install onnx numpy
    python make.py
"""

import pathlib

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

here = pathlib.Path(__file__).parent
rng = numpy.random.default_rng(11)


class Net:
    def __init__(self, name, shape, opset=17):
        self.name, self.shape, self.opset = name, shape, opset
        self.nodes, self.weights, self.count = [], [], 0

    def weight(self, array, kind=numpy.float32):
        self.count += 1
        name = f"w{self.count}"
        self.weights.append(numpy_helper.from_array(numpy.asarray(array, dtype=kind), name))
        return name

    def random(self, *shape, scale=0.5):
        return self.weight(rng.normal(size=shape) * scale)

    def ints(self, *values):
        return self.weight(values, numpy.int64)

    def add(self, op, *inputs, outputs=1, **attributes):
        self.count += 1
        names = [f"v{self.count}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"{op}_{self.count}", **attributes))
        return names[0] if outputs == 1 else names

    def save(self, result):
        self.nodes.append(helper.make_node("Identity", [result], ["y"]))
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, self.name, [x], [y], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        (here / f"{self.name}.onnx").write_bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())


def smooth(name, op, opset=17, **attributes):
    """The function of numbers from -9 to 9."""
    n = Net(name, [1, 4, 6, 6], opset)
    n.save(n.add(op, n.add("Mul", "x", n.weight([9.0])), **attributes))


smooth("smooth_tanh", "Tanh")
smooth("smooth_erf", "Erf")
smooth("smooth_elu", "Elu", alpha=0.7)
smooth("smooth_selu", "Selu")
smooth("smooth_softplus", "Softplus")
smooth("smooth_mish", "Mish", 18)
smooth("smooth_hard_swish", "HardSwish", 14)
smooth("smooth_hard_sigmoid", "HardSigmoid", alpha=0.3, beta=0.4)
smooth("smooth_gelu_op", "Gelu", 20)
smooth("smooth_gelu_tanh_op", "Gelu", 20, approximate="tanh")
smooth("smooth_abs", "Abs")

n = Net("silu_by_two_nodes", [1, 3, 6, 6])
c = n.add("Conv", "x", n.random(4, 3, 3, 3), pads=[1, 1, 1, 1])
n.save(n.add("Mul", n.add("Sigmoid", c), c))

n = Net("sigmoid_inside", [1, 6])
n.save(n.add("MatMul", n.add("Sigmoid", n.add("MatMul", "x", n.random(6, 5, scale=2))), n.random(5, 3)))

n = Net("gelu_by_erf", [1, 8])
d = n.add("MatMul", "x", n.random(8, 8, scale=1.5))
e = n.add("Add", n.add("Erf", n.add("Div", d, n.weight(2**0.5))), n.weight(1.0))
n.save(n.add("Mul", n.add("Mul", d, e), n.weight(0.5)))

n = Net("mish_by_three_nodes", [1, 8])
d = n.add("MatMul", "x", n.random(8, 8, scale=1.5))
n.save(n.add("Mul", d, n.add("Tanh", n.add("Softplus", d))))

n = Net("squeeze_and_excitation", [1, 3, 8, 8])
c = n.add("Conv", "x", n.random(6, 3, 3, 3), pads=[1, 1, 1, 1])
g = n.add("Relu", n.add("Conv", n.add("GlobalAveragePool", c), n.random(2, 6, 1, 1)))
g = n.add("HardSigmoid", n.add("Conv", g, n.random(6, 2, 1, 1)), alpha=1 / 6, beta=0.5)
n.save(n.add("Conv", n.add("Mul", c, g), n.random(2, 6, 1, 1)))

n = Net("residue_of_products", [1, 3, 6, 6])
c = n.add("Conv", "x", n.random(3, 3, 1, 1))
p = n.add("Mul", c, c)
n.save(n.add("Add", n.add("Add", c, p), n.add("Mul", p, c)))

n = Net("powers", [1, 12])
n.save(n.add("Add", n.add("Pow", "x", n.weight(3.0)), n.add("Pow", "x", n.weight(2.0))))

n = Net("split_and_join", [1, 6, 4, 4])
a, b = n.add("Split", n.add("Conv", "x", n.random(6, 6, 1, 1)), n.ints(4, 2), outputs=2, axis=1)
n.save(n.add("Concat", b, n.random(1, 3, 4, 4), a, axis=1))

for mode in ("DCR", "CRD"):
    n = Net(f"depth_to_space_{mode.lower()}", [1, 8, 3, 5])
    n.save(n.add("DepthToSpace", n.add("Conv", "x", n.random(8, 8, 1, 1)), blocksize=2, mode=mode))
n = Net("space_to_depth", [1, 2, 4, 6])
n.save(n.add("SpaceToDepth", n.add("Conv", "x", n.random(3, 2, 1, 1)), blocksize=2))

n = Net("pad_with_one", [1, 2, 4, 4])
p = n.add("Pad", n.add("Relu", "x"), n.ints(0, 0, 1, 2, 0, 0, 2, 1), n.weight(1.0))
n.save(n.add("Conv", p, n.random(3, 2, 3, 3)))

for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"):
    n = Net(f"{op.lower()}_of_two_axes", [1, 3, 4, 5], 18 if op != "ReduceSum" else 13)
    n.save(n.add(op, n.add("Conv", "x", n.random(4, 3, 1, 1)), n.ints(1, 3), keepdims=0))

n = Net("largest_and_least", [1, 5, 4])
a, b = n.add("MatMul", "x", n.random(4, 4)), n.add("MatMul", "x", n.random(4, 4))
n.save(n.add("Sub", n.add("Max", a, b, n.weight(-0.2)), n.add("Min", a, b)))

n = Net("sums_and_means", [1, 3, 4])
a = n.add("MatMul", "x", n.random(4, 4))
n.save(n.add("Mean", n.add("Sum", a, "x", n.random(4)), a, "x"))

n = Net("line", [1, 2, 20])
c = n.add("Relu", n.add("Conv", "x", n.random(4, 2, 3), n.random(4), pads=[2, 0], dilations=[1]))
c = n.add("MaxPool", c, kernel_shape=[2], strides=[2])
c = n.add("AveragePool", n.add("Conv", c, n.random(3, 4, 3), dilations=[2]), kernel_shape=[3], pads=[1, 1])
n.save(n.add("ConvTranspose", c, n.random(3, 2, 4), strides=[2], pads=[1, 1]))

n = Net("tiled", [1, 1, 3, 4])
t = n.add("Tile", n.add("Conv", "x", n.random(2, 1, 1, 1)), n.ints(1, 2, 1, 3))
n.save(n.add("Add", t, n.add("Tile", "x", n.ints(1, 4, 1, 3))))

n = Net("expanded", [1, 1, 4])
n.save(n.add("Expand", n.add("MatMul", "x", n.random(4, 3)), n.ints(2, 5, 3)))

n = Net("layer_norm", [1, 6, 8])
d = n.add("MatMul", "x", n.random(8, 8, scale=1.0))
n.save(n.add("LayerNormalization", d, n.random(8, scale=1.0), n.random(8), axis=-1, epsilon=1e-3))

n = Net("layer_norm_by_nodes", [1, 6, 8])
d = n.add("MatMul", "x", n.random(8, 8, scale=1.0))
r = n.add("Sub", d, n.add("ReduceMean", d, axes=[-1]))
v = n.add("ReduceMean", n.add("Pow", r, n.weight(2.0)), axes=[-1])
q = n.add("Div", r, n.add("Sqrt", n.add("Add", v, n.weight(1e-3))))
n.save(n.add("Add", n.add("Mul", q, n.random(8, scale=1.0)), n.random(8)))

n = Net("instance_norm", [1, 3, 6, 6])
c = n.add("Conv", "x", n.random(4, 3, 3, 3), pads=[1, 1, 1, 1])
n.save(n.add("Relu", n.add("InstanceNormalization", c, n.random(4, scale=1.0), n.random(4), epsilon=1e-3)))

n = Net("group_norm", [1, 3, 4, 6], 21)
c = n.add("Conv", "x", n.random(6, 3, 3, 3), pads=[1, 1, 1, 1])
n.save(n.add("GroupNormalization", c, n.random(6, scale=1.0), n.random(6), num_groups=3, epsilon=1e-3))

n = Net("quotient", [1, 10])
a, b = n.add("MatMul", "x", n.random(10, 6)), n.add("Softplus", n.add("MatMul", "x", n.random(10, 6)))
n.save(n.add("Div", a, n.add("Add", b, n.weight(0.5))))

n = Net("quotient_of_quotients", [1, 10])
a, b, c = (n.add("Softplus", n.add("MatMul", "x", n.random(10, 6))) for _ in range(3))
half = n.weight(0.5)
q = n.add("Div", n.add("Add", a, half), n.add("Sqrt", n.add("Add", b, half)))
n.save(n.add("Div", c, q))

n = Net("attention", [1, 6, 8])
q, k, v = (n.add("MatMul", "x", n.random(8, 8)) for _ in range(3))
heads = lambda t: n.add("Transpose", n.add("Reshape", t, n.ints(1, 6, 2, 4)), perm=[0, 2, 1, 3])
q, k, v = heads(q), n.add("Transpose", heads(k), perm=[0, 1, 3, 2]), heads(v)
s = n.add("Softmax", n.add("Mul", n.add("MatMul", q, k), n.weight(0.5)), axis=-1)
o = n.add("Reshape", n.add("Transpose", n.add("MatMul", s, v), perm=[0, 2, 1, 3]), n.ints(1, 6, 8))
n.save(n.add("Add", "x", n.add("MatMul", o, n.random(8, 8))))

n = Net("softmax_inside_over_channels", [1, 3, 4, 4], 13)
s = n.add("Softmax", n.add("Conv", "x", n.random(5, 3, 1, 1, scale=1.5)), axis=1)
n.save(n.add("Conv", s, n.random(2, 5, 1, 1)))

n = Net("shapes_that_fold", [1, 4, 4, 6])
shape = n.add("Shape", "x")
batch = n.add("Gather", shape, n.ints(0))
rest = n.add("Unsqueeze", n.add("ReduceProd", n.add("Slice", shape, n.ints(1), n.ints(4)), keepdims=0), n.ints(0))
flat = n.add("Reshape", n.add("Relu", "x"), n.add("Concat", batch, rest, axis=0))
scale = n.add("Sqrt", n.add("Cast", n.add("Gather", shape, n.weight(3, numpy.int64)), to=1))
ramp = n.add("Div", n.add("Cast", n.add("Range", n.weight(0, numpy.int64), n.weight(96, numpy.int64), n.weight(1, numpy.int64)), to=1), scale)
n.save(n.add("Add", flat, ramp))
