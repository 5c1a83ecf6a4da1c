"""The benchmark's networks as plain functions of a state dict, one line a layer, in evaluation mode.

Every tensor is asked for by the name that the published RepDistiller checkpoints give it, and ``Weights`` knows which
were asked for: a network passes when it has these tensors, no others, and the same logits.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


class Weights:
    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = dict(state)
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.used.add(name)
        return self.state[name]

    def has(self, name: str) -> bool:
        return name in self.state

    def conv(self, name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = self[f"{name}.weight"]
        bias = self[f"{name}.bias"] if self.has(f"{name}.bias") else None
        return F.conv2d(x, weight, bias, stride, padding=weight.shape[2] // 2, groups=groups)

    def norm(self, name: str, x: Tensor) -> Tensor:
        self.used.add(f"{name}.num_batches_tracked")
        mean, var = self[f"{name}.running_mean"], self[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, self[f"{name}.weight"], self[f"{name}.bias"], training=False)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])


def shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.reshape(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def logits(name: str, state: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, set[str]]:
    """The logits, and the names of all tensors that went into them."""
    w = Weights(state)
    if name == "ResNet50":
        out = resnet50(w, x)
    elif name.startswith("resnet"):
        depth = int(name.removeprefix("resnet").split("x")[0])
        out = resnet(w, x, (depth - 2) // 6)
    elif name.startswith("wrn"):
        out = wide_resnet(w, x, (int(name.split("_")[1]) - 4) // 6)
    else:
        out = {"vgg": vgg, "Mobile": mobilenet, "ShuffleV1": shuffle_v1, "ShuffleV2": shuffle_v2}[
            "vgg" if name.startswith("vgg") else "Mobile" if name.startswith("Mobile") else name
        ](w, x)
    return out, w.used


def resnet(w: Weights, x: Tensor, blocks: int) -> Tensor:
    x = w.norm("bn1", w.conv("conv1", x)).relu()
    for stage in (1, 2, 3):
        for block in range(blocks):
            p = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            out = w.norm(f"{p}.bn1", w.conv(f"{p}.conv1", x, stride)).relu()
            out = w.norm(f"{p}.bn2", w.conv(f"{p}.conv2", out))
            if w.has(f"{p}.downsample.0.weight"):
                x = w.norm(f"{p}.downsample.1", w.conv(f"{p}.downsample.0", x, stride))
            x = (out + x).relu()
    return w.linear("fc", F.avg_pool2d(x, 8).flatten(1))


def resnet50(w: Weights, x: Tensor) -> Tensor:
    x = w.norm("bn1", w.conv("conv1", x)).relu()
    for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for block in range(blocks):
            p = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            out = w.norm(f"{p}.bn1", w.conv(f"{p}.conv1", x)).relu()
            out = w.norm(f"{p}.bn2", w.conv(f"{p}.conv2", out, stride)).relu()
            out = w.norm(f"{p}.bn3", w.conv(f"{p}.conv3", out))
            if block == 0:
                x = w.norm(f"{p}.shortcut.1", w.conv(f"{p}.shortcut.0", x, stride))
            x = (out + x).relu()
    return w.linear("linear", x.mean(dim=(2, 3)))


def wide_resnet(w: Weights, x: Tensor, blocks: int) -> Tensor:
    x = w.conv("conv1", x)
    for stage in (1, 2, 3):
        for block in range(blocks):
            p = f"block{stage}.layer.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            active = w.norm(f"{p}.bn1", x).relu()
            out = w.norm(f"{p}.bn2", w.conv(f"{p}.conv1", active, stride)).relu()
            out = w.conv(f"{p}.conv2", out)
            x = out + (w.conv(f"{p}.convShortcut", active, stride) if w.has(f"{p}.convShortcut.weight") else x)
    return w.linear("fc", F.avg_pool2d(w.norm("bn1", x).relu(), 8).flatten(1))


def vgg(w: Weights, x: Tensor) -> Tensor:
    for block in range(5):
        layer = 0
        while w.has(f"block{block}.{layer}.weight"):
            x = w.norm(f"block{block}.{layer + 1}", w.conv(f"block{block}.{layer}", x)).relu()
            layer += 3
        if block < 3:
            x = F.max_pool2d(x, 2, 2)
    return w.linear("classifier", x.mean(dim=(2, 3)))


def mobilenet(w: Weights, x: Tensor) -> Tensor:
    x = w.norm("conv1.1", w.conv("conv1.0", x, stride=2)).relu()
    for group, (count, first_stride) in enumerate(((1, 1), (2, 1), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1))):
        for block in range(count):
            p = f"blocks.{group}.{block}.conv"
            stride = first_stride if block == 0 else 1
            out = w.norm(f"{p}.1", w.conv(f"{p}.0", x)).relu()
            out = w.norm(f"{p}.4", w.conv(f"{p}.3", out, stride, groups=out.shape[1])).relu()
            out = w.norm(f"{p}.7", w.conv(f"{p}.6", out))
            x = x + out if stride == 1 and x.shape[1] == out.shape[1] else out
    x = w.norm("conv2.1", w.conv("conv2.0", x)).relu()
    return w.linear("classifier.0", F.avg_pool2d(x, 2).flatten(1))


def shuffle_v1(w: Weights, x: Tensor) -> Tensor:
    x = w.norm("bn1", w.conv("conv1", x)).relu()
    for stage, blocks in ((1, 4), (2, 8), (3, 4)):
        for block in range(blocks):
            p = f"layer{stage}.{block}"
            groups = 1 if x.shape[1] == 24 else 3
            stride = 2 if block == 0 else 1
            out = shuffle(w.norm(f"{p}.bn1", w.conv(f"{p}.conv1", x, groups=groups)).relu(), groups)
            out = w.norm(f"{p}.bn2", w.conv(f"{p}.conv2", out, stride, groups=out.shape[1])).relu()
            out = w.norm(f"{p}.bn3", w.conv(f"{p}.conv3", out, groups=3))
            if stride == 2:
                x = torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1).relu()
            else:
                x = (out + x).relu()
    return w.linear("linear", F.avg_pool2d(x, 4).flatten(1))


def shuffle_v2(w: Weights, x: Tensor) -> Tensor:
    x = w.norm("bn1", w.conv("conv1", x)).relu()
    for stage, blocks in ((1, 3), (2, 7), (3, 3)):
        p = f"layer{stage}.0"
        left = w.norm(f"{p}.bn1", w.conv(f"{p}.conv1", x, 2, groups=x.shape[1]))
        left = w.norm(f"{p}.bn2", w.conv(f"{p}.conv2", left)).relu()
        right = w.norm(f"{p}.bn3", w.conv(f"{p}.conv3", x)).relu()
        right = w.norm(f"{p}.bn4", w.conv(f"{p}.conv4", right, 2, groups=right.shape[1]))
        right = w.norm(f"{p}.bn5", w.conv(f"{p}.conv5", right)).relu()
        x = shuffle(torch.cat([left, right], dim=1), 2)
        for block in range(1, blocks + 1):
            p = f"layer{stage}.{block}"
            half = x.shape[1] // 2
            kept, out = x[:, :half], x[:, half:]
            out = w.norm(f"{p}.bn1", w.conv(f"{p}.conv1", out)).relu()
            out = w.norm(f"{p}.bn2", w.conv(f"{p}.conv2", out, groups=half))
            out = w.norm(f"{p}.bn3", w.conv(f"{p}.conv3", out)).relu()
            x = shuffle(torch.cat([kept, out], dim=1), 2)
    x = w.norm("bn2", w.conv("conv2", x)).relu()
    return w.linear("linear", F.avg_pool2d(x, 4).flatten(1))
