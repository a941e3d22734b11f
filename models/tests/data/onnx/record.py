"""Writes expected.json: what ONNX Runtime yields for each file beside this one.

    pip install onnxruntime numpy
    python record.py
"""

import json
import pathlib

import numpy
import onnxruntime

here = pathlib.Path(__file__).parent
expected = {}
for file in sorted(here.glob("*.onnx")):
    session = onnxruntime.InferenceSession(str(file))
    given = session.get_inputs()[0]
    shape = [d if isinstance(d, int) else 1 for d in given.shape]
    index = numpy.arange(numpy.prod(shape))
    x = ((index * 37 % 101) / 50.0 - 1.0).astype(numpy.float32).reshape(shape)
    (y,) = session.run(None, {given.name: x})[:1]
    expected[file.stem] = {"input": shape, "shape": list(y.shape), "values": [round(float(v), 7) for v in y.flatten()]}
(here / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
