"""Runs the test cases that the ONNX project ships in its Python package through ShareLens.

    pip install onnx numpy
    python models/scripts/onnx_cases.py

Takes every case of one node (`onnx.backend.test.case.node`) whose inputs and outputs are of floats but for shapes, axes and the like.
A case with one input of floats is taken as it is, its other inputs as constants. Of a case with several such inputs two are made: one
in which the first is computed and the others are constants, and one in which all are parts of one input. Cases that ShareLens
refuses are counted, with the reason; a wrong value is an error. --least says how many have to be right.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases


def cases():
    """Name, model, its inputs, its outputs."""
    for case in collect_testcases(None):
        (model, (inputs, outputs)) = (case.model, case.data_sets[0])
        for opset in model.opset_import:
            # The newest changed no operator of these.
            if opset.domain in ("", "ai.onnx"):
                opset.version = min(opset.version, 24)
        arrays = [*inputs, *outputs]
        if all(isinstance(a, numpy.ndarray) for a in arrays) and len(model.graph.input) == len(inputs):
            yield case.name, model, inputs, outputs


def is_float(array):
    return array.dtype in (numpy.float32, numpy.float64, numpy.float16)


def constants(model, inputs, skip):
    """Turns all inputs but these into weights of the file."""
    keep = []
    for value, array in zip(model.graph.input, inputs):
        if value.name in skip:
            keep.append(value)
        else:
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
    del model.graph.input[:]
    model.graph.input.extend(keep)


def packed(model, inputs, names):
    """One input of which those called `names` are parts."""
    chosen = [(v.name, a) for v, a in zip(model.graph.input, inputs) if v.name in names]
    constants(model, inputs, set(names))
    del model.graph.input[:]
    total = sum(a.size for _, a in chosen)
    model.graph.input.append(helper.make_tensor_value_info("all_inputs", TensorProto.FLOAT, [1, total]))
    nodes, at = [], 0
    for i, (name, array) in enumerate(chosen):
        for key, value in (("from", [at]), ("to", [at + array.size]), ("axis", [1]), ("shape", list(array.shape))):
            model.graph.initializer.append(numpy_helper.from_array(numpy.array(value, dtype=numpy.int64), f"{key}_{i}"))
        nodes.append(helper.make_node("Slice", ["all_inputs", f"from_{i}", f"to_{i}", f"axis_{i}"], [f"part_{i}"]))
        nodes.append(helper.make_node("Reshape", [f"part_{i}", f"shape_{i}"], [name]))
        at += array.size
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes + rest)
    return numpy.concatenate([a.astype(numpy.float32).ravel() for _, a in chosen])


def variants():
    for name, model, inputs, outputs in cases():
        if not inputs or not all(is_float(o) and o.size and numpy.isfinite(o).all() for o in outputs):
            continue
        floats = [v.name for v, a in zip(model.graph.input, inputs) if is_float(a) and a.size and a.shape]
        if not floats or any(not numpy.isfinite(a).all() for a in inputs if is_float(a)):
            continue
        first = onnx.ModelProto()
        first.CopyFrom(model)
        index = [v.name for v in model.graph.input].index(floats[0])
        constants(first, inputs, {floats[0]})
        yield name, first, inputs[index].astype(numpy.float32), outputs
        if len(floats) > 1:
            every = onnx.ModelProto()
            every.CopyFrom(model)
            yield name + " (all computed)", every, packed(every, inputs, floats), outputs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--least", type=int, default=0, help="how many have to be right")
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--out", help="where to keep what comes of each case, a line of JSON each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for i, (name, model, x, outputs) in enumerate(variants()):
            if args.only not in name:
                continue
            file = pathlib.Path(folder) / f"{i}.onnx"
            file.write_bytes(model.SerializeToString())
            case = {"name": name, "model": str(file), "input": [float(v) for v in x.ravel()]}
            case["outputs"] = [[float(v) for v in o.ravel()] for o in outputs]
            lines.append(json.dumps(case))
        command = ["cargo", "run", "--quiet", "--release", "-p", "sharelens-models", "--example", "cases"]
        done = subprocess.run(command, input="\n".join(lines) + "\n", stdout=subprocess.PIPE, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    if args.out:
        pathlib.Path(args.out).write_text(done.stdout)
    for case in found:
        if case["outcome"] == "wrong":
            print(f"wrong: {case['name']}: floats {case['float']:.2e}, fixed point {case['fixed']:.2e} of the spread")
    reasons = collections.Counter(c["why"].split(":")[-1].strip()[:90] for c in found if c["outcome"] == "refused")
    for reason, count in reasons.most_common(15):
        print(f"{count:5} refused: {reason}")
    count = collections.Counter(case["outcome"] for case in found)
    print(f"{count['right']} right, {count['refused']} refused, {count['wrong']} wrong of {len(lines)}")
    if len(found) != len(lines):
        sys.exit("it did not come to its end")
    if count["wrong"]:
        sys.exit("a value that is wrong")
    if count["right"] < args.least:
        sys.exit(f"{args.least} have to be right")


if __name__ == "__main__":
    main()
