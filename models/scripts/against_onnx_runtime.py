"""Compares what ShareLens makes of a model with ONNX Runtime, which nobody of ShareLens wrote.

    pip install onnxruntime numpy
    sharelens model prepare model.onnx --calibrate images/ -o model.slm
    sharelens model check model.slm --images more-images/ --export pairs.jsonl
    python models/scripts/against_onnx_runtime.py model.onnx pairs.jsonl

Each line of pairs.jsonl has an input and what floats and fixed point make of it. Prints the largest difference of each output,
as a share of the output's own spread, and ends with an error if it is more than one per cent (--limit) or if the largest number
of an output is another one while the first two are further apart than that.
"""

import argparse
import json
import sys

import numpy
import onnxruntime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the ONNX file")
    parser.add_argument("pairs", help="what `sharelens model check --export` wrote")
    parser.add_argument("--limit", type=float, default=0.01, help="largest difference, as a share of the spread")
    args = parser.parse_args()

    session = onnxruntime.InferenceSession(args.model, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    names = [output.name for output in session.get_outputs()]
    worst, other, count = {}, [], 0
    for line in open(args.pairs, encoding="utf-8"):
        pair = json.loads(line)
        x = numpy.array(pair["input"]["values"], dtype=numpy.float32).reshape(pair["input"]["shape"])
        if [d for d in given.shape[1:] if isinstance(d, int)] != list(x.shape[1:]) and x.ndim == 4:
            # A file with colours last.
            x = x.transpose(0, 2, 3, 1)
        expected = dict(zip(names, session.run(None, {given.name: numpy.ascontiguousarray(x)})))
        for kind in ("float", "plain"):
            for output in pair[kind]:
                found = numpy.array(output["values"], dtype=numpy.float64)
                wanted = expected[output["name"]].astype(numpy.float64).flatten()
                if found.shape != wanted.shape:
                    sys.exit(f"output {output['name']} has {found.size} numbers, ONNX Runtime yields {wanted.size}")
                spread = max(float(wanted.max() - wanted.min()), 1e-9) if wanted.size > 1 else max(abs(float(wanted[0])), 1e-9)
                difference = float(numpy.abs(found - wanted).max()) / spread
                key = (output["name"], kind)
                worst[key] = max(worst.get(key, 0.0), difference)
                first = numpy.sort(wanted)[-2:]
                decided = wanted.size > 1 and (first[1] - first[0]) / spread > args.limit
                if decided and int(found.argmax()) != int(wanted.argmax()):
                    other.append(f"image {count + 1}, {output['name']}, {kind}")
        count += 1
    for (name, kind), difference in worst.items():
        print(f"{name:<20} {kind:<6} differs by at most {100 * difference:.4f} % of its spread")
    print(f"{count} images")
    if other:
        sys.exit("another number is the largest: " + "; ".join(other[:5]))
    if not worst or max(worst.values()) > args.limit:
        sys.exit(f"more than {100 * args.limit} %")


if __name__ == "__main__":
    main()
