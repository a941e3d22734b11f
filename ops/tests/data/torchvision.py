"""Records what torchvision does with small cases of a two-stage detector's stages."""
import json, math, sys
import torch, torchvision
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

torch.manual_seed(7)
D = torch.float64
out = {"torchvision": torchvision.__version__}
STRIDE, H, W = 8, 6, 8            # feature map; pictures of 48 x 64
SIZES = (12.0, 24.0, 40.0)

class Head(torch.nn.Module):
    def __init__(self, logits, deltas):
        super().__init__(); self.o = (logits, deltas)
    def forward(self, _):
        return [self.o[0]], [self.o[1]]

def rpn_case(name, logits, deltas, pre, post, nms=0.7):
    gen = AnchorGenerator((SIZES,), ((1.0,),))
    rpn = RegionProposalNetwork(gen, Head(logits, deltas), 0.6, 0.3, 8, 0.5,
        dict(training=pre, testing=pre), dict(training=post, testing=post), nms, score_thresh=0.0).eval()
    images = ImageList(torch.zeros(1, 3, H * STRIDE, W * STRIDE, dtype=D), [(H * STRIDE, W * STRIDE)])
    boxes, _ = rpn(images, {"0": torch.zeros(1, 4, H, W, dtype=D)})
    base = gen.cell_anchors[0].tolist()
    # [h, w, a] and [h, w, 4 a]
    out["rpn"].append(dict(name=name, logits=logits[0].permute(1, 2, 0).reshape(-1).tolist(),
        deltas=deltas[0].permute(1, 2, 0).reshape(-1).tolist(), anchors=base, before=pre, after=post,
        overlap=nms, boxes=boxes[0].tolist()))

out["rpn"] = []
A = len(SIZES)
def distinct(n):  # no two closer than what fixed point tells apart
    return (torch.randperm(n).to(D) - n / 2) * 0.02
logits = distinct(A * H * W).view(1, A, H, W)
deltas = torch.randn(1, 4 * A, H, W, dtype=D) * 0.4
rpn_case("random", logits, deltas, 40, 12)
rpn_case("all anchors", logits, deltas, A * H * W, 30, 0.5)
rpn_case("few survive", logits, deltas, 40, 30, 0.05)
# Every decoded box is the whole picture: one proposal survives.
big = torch.zeros(1, 4 * A, H, W, dtype=D)
big[:, 2::4] = 4.0; big[:, 3::4] = 4.0
rpn_case("all identical", logits, big, 30, 10)
# Moved out of the picture: boxes without area are dropped.
far = torch.zeros(1, 4 * A, H, W, dtype=D); far[:, 0::4] = 9.0
rpn_case("beyond the border", logits, far, 30, 10)
far = deltas.clone(); far[:, 0:4] = torch.tensor([-9.0, 0, 0, 0], dtype=D).view(1, 4, 1, 1)
rpn_case("some beyond the border", logits, far, 60, 10)
# Shrunk to nothing.
tiny = torch.zeros(1, 4 * A, H, W, dtype=D); tiny[:, 2::4] = -20.0
rpn_case("shrunk", logits, tiny, 30, 10)

def head_case(name, proposals, logits, deltas, score=0.05, nms=0.5, count=100):
    heads = RoIHeads(None, None, None, 0.5, 0.5, 8, 0.25, (10.0, 10.0, 5.0, 5.0), score, nms, count)
    b, s, l = heads.postprocess_detections(logits, deltas, [proposals], [(H * STRIDE, W * STRIDE)])
    out["head"].append(dict(name=name, proposals=proposals.tolist(), logits=logits.reshape(-1).tolist(),
        deltas=deltas.reshape(-1).tolist(), classes=logits.shape[1], score=score, overlap=nms, count=count,
        boxes=b[0].tolist(), scores=s[0].tolist(), labels=l[0].tolist()))

out["head"] = []
def boxes(n):
    x = torch.rand(n, dtype=D) * 44; y = torch.rand(n, dtype=D) * 30
    return torch.stack([x, y, x + 4 + torch.rand(n, dtype=D) * 16, y + 4 + torch.rand(n, dtype=D) * 14], 1)
n, c = 16, 4
p = boxes(n)
l, d = torch.randn(n, c, dtype=D) * 2, torch.randn(n, 4 * c, dtype=D)
head_case("random", p, l, d)
head_case("short list", p, l, d, count=5)
head_case("strict", p, l, d, nms=0.1)
head_case("two classes", p, l[:, :2].contiguous(), d[:, :8].contiguous())
none = torch.zeros(n, c, dtype=D); none[:, 0] = 12.0
head_case("nothing above the threshold", p, none, d)
same = p[:1].repeat(n, 1)
head_case("all identical", same, l, torch.zeros(n, 4 * c, dtype=D))
head_case("ties of scores", boxes(n), torch.zeros(n, c, dtype=D), torch.zeros(n, 4 * c, dtype=D), nms=1.0)
flat = p.clone(); flat[::2, 2] = flat[::2, 0]
head_case("boxes without area", flat, l, d)
edge = torch.tensor([[0., 0, 10, 10], [54, 38, 64, 48], [0, 38, 10, 48], [60, 0, 64, 4]], dtype=D).repeat(4, 1)
head_case("at the border", edge, l, d * 3)

def roi_case(name, boxes, aligned):
    f = (torch.rand(1, 2, H, W, dtype=D) * 20 - 10)
    r = roi_align(f, [boxes], 3, 1.0 / STRIDE, 2, aligned)
    out["roi_align"].append(dict(name=name, aligned=aligned, boxes=boxes.tolist(),
        features=f[0].permute(1, 2, 0).reshape(-1).tolist(), result=r.permute(0, 2, 3, 1).reshape(-1).tolist()))
out["roi_align"] = []
special = torch.tensor([[0., 0, 64, 48], [0, 0, 0, 0], [64, 48, 64, 48], [20, 20, 20, 40], [63, 47, 64, 48], [0, 47.5, 3, 48]], dtype=D)
for aligned in (False, True):
    roi_case("random", boxes(8), aligned)
    roi_case("border and without area", special, aligned)

def r6(o):
    if isinstance(o, float): return round(o, 9)
    if isinstance(o, list): return [r6(v) for v in o]
    if isinstance(o, dict): return {k: r6(v) for k, v in o.items()}
    return o
json.dump(r6(out), open(sys.argv[1], "w"))
