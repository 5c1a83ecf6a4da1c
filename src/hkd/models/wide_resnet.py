"""Wide residual networks (Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016)."""

from functools import partial

from torch import Tensor, nn

from hkd.models.base import CifarModel, initialise, models


class PreactivationBlock(nn.Module):
    """Normalise, ReLU, 3x3 convolution, twice, beside a shortcut. Returns the sum and the first normalised map."""

    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(inplanes, planes, 1, stride, bias=False) if inplanes != planes else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        normalised = self.bn1(x)
        activated = normalised.relu()
        out = self.conv2(self.bn2(self.conv1(activated)).relu())
        return out + (x if self.convShortcut is None else self.convShortcut(activated)), normalised


class NetworkBlock(nn.Module):
    """One stage. Returns its map and what its first block makes of the map before: that map's preactivation."""

    def __init__(self, blocks: int, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        rest = (PreactivationBlock(planes, planes, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(PreactivationBlock(inplanes, planes, stride), *rest)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, previous = self.layer[0](x)
        for block in self.layer[1:]:
            x, _ = block(x)
        return x, previous


class WideResNet(CifarModel):
    """Three stages of pre-activation blocks. The depth is 6n + 4, n blocks a stage.

    The stage maps are the raw sums, as in the benchmark; their preactivations are those sums normalised, which is what
    the next stage rectifies.
    """

    def __init__(self, num_classes: int, depth: int, widen_factor: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        first, second, third = (width * widen_factor for width in (16, 32, 64))
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = NetworkBlock(blocks, 16, first, stride=1)
        self.block2 = NetworkBlock(blocks, first, second, stride=2)
        self.block3 = NetworkBlock(blocks, second, third, stride=2)
        self.bn1 = nn.BatchNorm2d(third)
        self.fc = nn.Linear(third, num_classes)
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    def maps(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        f0 = self.conv1(image)
        f1, p0 = self.block1(f0)
        f2, p1 = self.block2(f1)
        f3, p2 = self.block3(f2)
        return [f0, f1, f2, f3], [p0, p1, p2, self.bn1(f3)]

    def pooled(self, feature: Tensor, preactivation: Tensor) -> Tensor:
        return preactivation.relu()

    def classify(self, vectors: Tensor) -> Tensor:
        logits: Tensor = self.fc(vectors)
        return logits


for depth, widen_factor in ((16, 1), (16, 2), (40, 1), (40, 2)):
    models.register(f"wrn_{depth}_{widen_factor}")(partial(WideResNet, depth=depth, widen_factor=widen_factor))
