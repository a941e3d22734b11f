"""Exports networks of other projects and compares ShareLens with ONNX Runtime on each.

    pip install torch torchvision timm monai segmentation-models-pytorch onnx onnxruntime onnxscript
    python models/scripts/networks.py --markdown benches/results/networks.md

Every network has random weights, statistics from random pictures, and is exported by both exporters of PyTorch. ShareLens calibrates
on three random pictures and is held against ONNX Runtime on a fourth, in floats and in fixed point. What is missing on this
machine is left out and named.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy
import onnxruntime
import torch

warnings.filterwarnings("ignore")


def torchvision_networks():
    import torchvision.models as m

    for name in ("alexnet", "vgg11_bn"):
        yield name, lambda name=name: getattr(m, name)(weights=None), (3, 224, 224)
    small = "densenet121 efficientnet_b0 efficientnet_v2_s googlenet mnasnet1_0 mobilenet_v2 mobilenet_v3_small " \
        "mobilenet_v3_large regnet_y_400mf regnet_x_400mf resnet18 resnet50 resnext50_32x4d shufflenet_v2_x1_0 " \
        "squeezenet1_1 wide_resnet50_2 convnext_tiny"
    for name in small.split():
        yield name, lambda name=name: getattr(m, name)(weights=None), (3, 64, 64)
    yield "inception_v3", lambda: m.inception_v3(weights=None, init_weights=False), (3, 299, 299)
    yield "vit_b_16", lambda: m.vit_b_16(weights=None, image_size=64), (3, 64, 64)
    yield "swin_t", lambda: m.swin_t(weights=None), (3, 64, 64)
    for name in ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"):
        build = lambda name=name: Named(getattr(m.segmentation, name)(weights=None, weights_backbone=None))
        yield name, build, (3, 64, 64)


class Named(torch.nn.Module):
    """Segmentation networks of torchvision yield a dictionary."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)["out"]


def timm_networks():
    import timm

    names = "efficientnet_lite0 ghostnet_100 mobilenetv3_small_050 regnety_002 repvgg_a0 resnest14d.gluon_in1k convnext_atto " \
        "edgenext_xx_small mobilevit_xxs vit_tiny_patch16_224 deit_tiny_patch16_224 mixer_s32_224 poolformer_s12 " \
        "resmlp_12_224 tf_efficientnet_b0 dla34 hardcorenas_a lcnet_050 tinynet_e hrnet_w18_small cspresnet50 darknet53"
    for name in names.split():
        size = 224 if "224" in name else 64
        kwargs = {"img_size": 64} if name.startswith(("vit", "deit")) else {}
        side = 64 if kwargs else size
        yield name, lambda name=name, kwargs=kwargs: timm.create_model(name, pretrained=False, **kwargs), (3, side, side)


def monai_networks():
    import monai.networks.nets as n

    two = {"spatial_dims": 2, "in_channels": 1}
    unet = dict(two, out_channels=2, channels=(8, 16, 32), strides=(2, 2))
    yield "monai_unet", lambda: n.UNet(**unet, num_res_units=2), (1, 64, 64)
    yield "monai_unet_batch", lambda: n.UNet(**unet, norm="batch"), (1, 64, 64)
    yield "monai_basicunet", lambda: n.BasicUNet(**two, out_channels=2, features=(8, 8, 16, 32, 64, 8)), (1, 64, 64)
    yield "monai_densenet121", lambda: n.DenseNet121(**two, out_channels=3), (1, 64, 64)
    yield "monai_efficientnet", lambda: n.EfficientNetBN("efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=1), (1, 64, 64)
    yield "monai_segresnet", lambda: n.SegResNet(spatial_dims=2, in_channels=1, out_channels=2, init_filters=8), (1, 64, 64)
    yield "monai_attentionunet", lambda: n.AttentionUnet(**two, out_channels=2, channels=(8, 16, 32), strides=(2, 2)), (1, 64, 64)
    yield "monai_vnet", lambda: n.VNet(spatial_dims=2, in_channels=1, out_channels=2), (1, 64, 64)
    yield "monai_autoencoder", lambda: n.AutoEncoder(**dict(unet, strides=(2, 2, 2))), (1, 64, 64)
    yield "monai_dynunet", lambda: n.DynUNet(
        **two, out_channels=2, kernel_size=(3, 3, 3), strides=(1, 2, 2), upsample_kernel_size=(2, 2), filters=(8, 16, 32)), (1, 64, 64)
    yield "monai_vit", lambda: n.ViT(
        in_channels=1, img_size=(64, 64), patch_size=(16, 16), hidden_size=64, mlp_dim=128, num_layers=2, num_heads=4,
        classification=True, spatial_dims=2), (1, 64, 64)


def smp_networks():
    import segmentation_models_pytorch as s

    for name in ("Unet", "FPN", "DeepLabV3Plus", "Linknet", "PSPNet", "MAnet"):
        build = lambda name=name: getattr(s, name)("resnet18", encoder_weights=None, in_channels=3, classes=2)
        yield f"smp_{name.lower()}", build, (3, 64, 64)


class Temporal(torch.nn.Module):
    """A temporal convolutional network on a signal of one lead."""

    def __init__(self):
        super().__init__()
        layers = []
        for i, (a, b) in enumerate([(1, 8), (8, 16), (16, 16)]):
            layers += [torch.nn.Conv1d(a, b, 3, dilation=2**i, padding=2**i), torch.nn.BatchNorm1d(b), torch.nn.ReLU()]
        self.net = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten(), torch.nn.Linear(16, 3))

    def forward(self, x):
        return self.net(x.flatten(2))


class DnCNN(torch.nn.Module):
    def __init__(self):
        super().__init__()
        layers = [torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU()]
        for _ in range(5):
            layers += [torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU()]
        self.net = torch.nn.Sequential(*layers, torch.nn.Conv2d(16, 1, 3, padding=1))

    def forward(self, x):
        return x - self.net(x)


def own_networks():
    yield "tcn", Temporal, (1, 1, 128)
    yield "dncnn", DnCNN, (1, 48, 48)


FAMILIES = [own_networks, torchvision_networks, timm_networks, monai_networks, smp_networks]


def export(net, x, file, exporter):
    if exporter == "torchscript":
        torch.onnx.export(net, x, file, dynamo=False, opset_version=17)
    else:
        torch.onnx.export(net, (x,), file, dynamo=True, verbose=False)


def lines(folder, only, exporters):
    """A case for each network and exporter, and what could not be made."""
    for family in FAMILIES:
        try:
            networks = list(family())
        except ImportError as e:
            yield None, f"{family.__name__}: {e}"
            continue
        for name, build, shape in networks:
            if only and only not in name:
                continue
            torch.manual_seed(7)
            try:
                net = build()
                with torch.no_grad():
                    for p in net.parameters():
                        # Some start with zeros, and would yield nothing else.
                        if not p.any():
                            p.normal_(0, 0.02)
                pictures = torch.rand(8, *shape)
                # Statistics of batch normalisation from pictures, as after training.
                net.train()
                with torch.no_grad():
                    for _ in range(3):
                        net(pictures)
                net.eval()
            except Exception as e:
                yield None, f"{name}: {e}"
                continue
            for exporter in exporters:
                file = str(pathlib.Path(folder) / f"{name}-{exporter}.onnx")
                try:
                    with torch.no_grad():
                        export(net, pictures[:1], file, exporter)
                    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
                    x = pictures[3:4].numpy()
                    outputs = session.run(None, {session.get_inputs()[0].name: x})
                except Exception as e:
                    yield None, f"{name} ({exporter}): {str(e).splitlines()[0].split('. ')[0][:200]}"
                    continue
                flat = lambda a: [float(v) for v in numpy.asarray(a).ravel()]
                yield {
                    "name": f"{name} ({exporter})",
                    "model": file,
                    "input": flat(x),
                    "outputs": [flat(o) for o in outputs],
                    "calibration": [flat(p) for p in pictures[:3].numpy()],
                }, None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--exporter", choices=["torchscript", "dynamo"], help="only this one")
    parser.add_argument("--markdown", help="where to write the table")
    args = parser.parse_args()
    # The exporter knows attention only as its parts.
    torch.backends.mha.set_fastpath_enabled(False)
    exporters = [args.exporter] if args.exporter else ["torchscript", "dynamo"]
    build = ["cargo", "build", "--quiet", "--release", "-p", "sharelens-models", "--example", "cases"]
    subprocess.run(build, check=True)
    rows, missing = [], []
    with tempfile.TemporaryDirectory() as folder:
        for case, why in lines(folder, args.only, exporters):
            if case is None:
                missing.append(why)
                print(f"left out: {why}", flush=True)
                continue
            run = ["cargo", "run", "--quiet", "--release", "-p", "sharelens-models", "--example", "cases"]
            done = subprocess.run(run, input=json.dumps(case) + "\n", capture_output=True, text=True, check=False)
            if not done.stdout.strip():
                found = {"name": case["name"], "outcome": "wrong", "why": "it stopped: " + done.stderr[-300:]}
            else:
                found = json.loads(done.stdout.splitlines()[0])
            rows.append(found)
            error = lambda key: f"{found[key]:.1e}" if found.get(key) is not None else ""
            print(f"{found['outcome']:8} {found['name']:45} {error('float'):8} {error('fixed'):8} "
                  f"{(found.get('why') or '')[-300:]}", flush=True)
            for file in pathlib.Path(folder).iterdir():
                file.unlink()
    count = lambda outcome: sum(r["outcome"] == outcome for r in rows)
    summary = f"{count('right')} right, {count('refused')} refused, {count('wrong')} wrong of {len(rows)} exports"
    print(summary)
    if args.markdown:
        table = ["| network | outcome | floats | fixed point | ring | why refused |", "|---|---|---|---|---|---|"]
        for r in rows:
            error = lambda key, r=r: f"{r[key]:.1e}" if r.get(key) is not None else ""
            why = (r.get("why") or "").replace("|", "/")[-160:]
            table.append(f"| {r['name']} | {r['outcome']} | {error('float')} | {error('fixed')} | {r.get('arithmetic') or ''} | {why} |")
        head = "# Networks of other projects\n\nMade by `models/scripts/networks.py`: largest error against ONNX Runtime, as a " \
            "share of how far the numbers of an output are apart; random weights, one picture.\n\n"
        text = head + summary + ".\n\n" + "\n".join(table) + "\n"
        if missing:
            text += "\nLeft out, since they could not be built or exported here:\n\n" + "\n".join(f"- {m}" for m in missing) + "\n"
        pathlib.Path(args.markdown).write_text(text)
    if count("wrong"):
        sys.exit(1)


if __name__ == "__main__":
    main()
