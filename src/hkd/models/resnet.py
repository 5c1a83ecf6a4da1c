"""ResNets for small images (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016)."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from hkd.models.base import CifarModel, Model, initialise, models, run_stages


def projection(inplanes: int, planes: int, stride: int) -> nn.Sequential:
    """The 1x1 convolution of a shortcut that changes width or resolution."""
    return nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))


def stage(
    block: type["BasicBlock | Bottleneck"], inplanes: int, planes: int, blocks: int, stride: int
) -> nn.Sequential:
    """Blocks of one width, of which the first changes width and resolution."""
    rest = (block(planes * block.expansion, planes, 1) for _ in range(blocks - 1))
    return nn.Sequential(block(inplanes, planes, stride), *rest)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut. Returns their sum before the ReLU."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = projection(inplanes, planes, stride) if stride != 1 or inplanes != planes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        preactivation: Tensor = self.bn2(self.conv2(out)) + self.downsample(x)
        return preactivation


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut that is four times as wide. Returns their sum before the ReLU."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        changes = stride != 1 or inplanes != 4 * planes
        self.shortcut = projection(inplanes, 4 * planes, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        preactivation: Tensor = self.bn3(self.conv3(out)) + self.shortcut(x)
        return preactivation


class CifarResNet(CifarModel):
    """Three stages of basic blocks, at full, half and quarter resolution. The depth is 6n + 2, n blocks a stage."""

    def __init__(self, num_classes: int, depth: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        stem, first, second, third = widths
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = stage(BasicBlock, stem, first, blocks, stride=1)
        self.layer2 = stage(BasicBlock, first, second, blocks, stride=2)
        self.layer3 = stage(BasicBlock, second, third, blocks, stride=2)
        self.fc = nn.Linear(third, num_classes)
        initialise(self)

    def maps(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return run_stages(self.bn1(self.conv1(image)), self.layer1, self.layer2, self.layer3)

    def classify(self, vectors: Tensor) -> Tensor:
        logits: Tensor = self.fc(vectors)
        return logits


class ResNet50(CifarModel):
    """ResNet-50 with a 3x3 stem of stride 1 and no max-pooling: four stages of [3, 4, 6, 3] bottlenecks."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(Bottleneck, 64, 64, blocks=3, stride=1)
        self.layer2 = stage(Bottleneck, 256, 128, blocks=4, stride=2)
        self.layer3 = stage(Bottleneck, 512, 256, blocks=6, stride=2)
        self.layer4 = stage(Bottleneck, 1024, 512, blocks=3, stride=2)
        self.linear = nn.Linear(2048, num_classes)
        initialise(self)

    def maps(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return run_stages(self.bn1(self.conv1(image)), self.layer1, self.layer2, self.layer3, self.layer4)

    def classify(self, vectors: Tensor) -> Tensor:
        logits: Tensor = self.linear(vectors)
        return logits


def _cifar_resnet(depth: int, widths: tuple[int, int, int, int]) -> Callable[[int], Model]:
    return partial(CifarResNet, depth=depth, widths=widths)


for depth in (8, 14, 20, 32, 44, 56, 110):
    models.register(f"resnet{depth}")(_cifar_resnet(depth, (16, 16, 32, 64)))
for depth in (8, 32):
    models.register(f"resnet{depth}x4")(_cifar_resnet(depth, (32, 64, 128, 256)))
models.register("ResNet50")(ResNet50)
