"""ShuffleNet V1 (Zhang et al., CVPR 2018) and V2 (Ma et al., ECCV 2018) with a 1x1 stem of stride 1."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.models.base import CifarModel, models, run_stages


def pointwise(inplanes: int, planes: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inplanes, planes, 1, groups=groups, bias=False)


def depthwise(planes: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(planes, planes, 3, stride, padding=1, groups=planes, bias=False)


class ShuffleV1Block(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1, beside a shortcut averaged and concatenated at stride 2.

    Returns the result before the ReLU.
    """

    def __init__(self, inplanes: int, planes: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        inside = planes // 4
        self.stride = stride
        self.first_groups = first_groups
        self.conv1 = pointwise(inplanes, inside, first_groups)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = depthwise(inside, stride)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = pointwise(inside, planes, groups)
        self.bn3 = nn.BatchNorm2d(planes)

    def forward(self, x: Tensor) -> Tensor:
        shuffled = F.channel_shuffle(self.bn1(self.conv1(x)).relu(), self.first_groups)
        out: Tensor = self.bn3(self.conv3(self.bn2(self.conv2(shuffled)).relu()))
        if self.stride == 2:
            return torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)
        return out + x


class ShuffleV1(CifarModel):
    """ShuffleNet V1 with three groups: stages of [4, 8, 4] blocks and [240, 480, 960] channels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = pointwise(3, 24)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = self._stage(24, 240, blocks=4)
        self.layer2 = self._stage(240, 480, blocks=8)
        self.layer3 = self._stage(480, 960, blocks=4)
        self.linear = nn.Linear(960, num_classes)

    @staticmethod
    def _stage(inplanes: int, planes: int, blocks: int, groups: int = 3) -> nn.Sequential:
        # The first 1x1 of the network sees only 24 channels and is not grouped.
        first = ShuffleV1Block(inplanes, planes - inplanes, 2, groups, first_groups=1 if inplanes == 24 else groups)
        rest = (ShuffleV1Block(planes, planes, 1, groups, groups) for _ in range(blocks - 1))
        return nn.Sequential(first, *rest)

    def maps(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return run_stages(self.bn1(self.conv1(image)), self.layer1, self.layer2, self.layer3)

    def classify(self, vectors: Tensor) -> Tensor:
        logits: Tensor = self.linear(vectors)
        return logits


class ShuffleV2Block(nn.Module):
    """Half the channels pass, half go through 1x1, depthwise 3x3, 1x1. Returns the shuffled map and preactivation."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        half = planes // 2
        self.conv1 = pointwise(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = depthwise(half, stride=1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = pointwise(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        passed, x = x.chunk(2, dim=1)
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        shuffled = F.channel_shuffle(torch.cat([passed, out.relu()], dim=1), 2)
        return shuffled, torch.cat([passed, out], dim=1)


class ShuffleV2Down(nn.Module):
    """Two branches at half resolution, side by side. Returns the shuffled map and preactivation."""

    def __init__(self, inplanes: int, planes: int) -> None:
        super().__init__()
        half = planes // 2
        self.conv1 = depthwise(inplanes, stride=2)
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.conv2 = pointwise(inplanes, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = pointwise(inplanes, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = depthwise(half, stride=2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = pointwise(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = self.bn5(self.conv5(self.bn4(self.conv4(self.bn3(self.conv3(x)).relu()))))
        preactivation = torch.cat([left, right], dim=1)
        return F.channel_shuffle(preactivation.relu(), 2), preactivation


class ShuffleV2(CifarModel):
    """ShuffleNet V2 at width 1: stages of 1 + [3, 7, 3] blocks and [116, 232, 464] channels, then a 1x1 to 1024.

    Preactivations of the stage maps stand in the order before the channel shuffle, as in the benchmark.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = pointwise(3, 24)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = self._stage(24, 116, blocks=3)
        self.layer2 = self._stage(116, 232, blocks=7)
        self.layer3 = self._stage(232, 464, blocks=3)
        self.conv2 = pointwise(464, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    @staticmethod
    def _stage(inplanes: int, planes: int, blocks: int) -> nn.Sequential:
        return nn.Sequential(ShuffleV2Down(inplanes, planes), *(ShuffleV2Block(planes) for _ in range(blocks)))

    def maps(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        preactivation = self.bn1(self.conv1(image))
        features, preactivations = [x := preactivation.relu()], [preactivation]
        for layer in (self.layer1, self.layer2, self.layer3):
            for block in layer:
                x, preactivation = block(x)
            features.append(x)
            preactivations.append(preactivation)
        return features, preactivations

    def pooled(self, feature: Tensor, preactivation: Tensor) -> Tensor:
        last: Tensor = self.bn2(self.conv2(feature)).relu()
        return last

    def classify(self, vectors: Tensor) -> Tensor:
        logits: Tensor = self.linear(vectors)
        return logits


models.register("ShuffleV1")(ShuffleV1)
models.register("ShuffleV2")(ShuffleV2)
