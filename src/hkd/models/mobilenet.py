"""MobileNetV2 at half width (Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018)."""

from torch import Tensor, nn

from hkd.models.base import CifarModel, initialise, models, small_linear

# (expansion, channels at full width, blocks, stride of the first), after Table 2 of the paper, with the strides that
# the distillation benchmark gives to images of 32 pixels.
SETTINGS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def normalised(convolution: nn.Conv2d) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)


class InvertedResidual(nn.Module):
    """Expand by a 1x1, filter each channel by a 3x3, project by a linear 1x1; with a shortcut where shapes allow."""

    def __init__(self, inplanes: int, planes: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = inplanes * expansion
        self.shortcut = stride == 1 and inplanes == planes
        self.conv = nn.Sequential(
            *normalised(nn.Conv2d(inplanes, inside, 1, bias=False)),
            *normalised(nn.Conv2d(inside, inside, 3, stride, padding=1, groups=inside, bias=False)),
            nn.Conv2d(inside, planes, 1, bias=False),
            nn.BatchNorm2d(planes),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class MobileNetV2(CifarModel):
    """A stem of stride 2 and inverted residuals. Stage maps are linear bottlenecks: they have no last ReLU."""

    def __init__(self, num_classes: int, width: float = 0.5) -> None:
        super().__init__()
        inplanes = int(32 * width)
        self.conv1 = nn.Sequential(*normalised(nn.Conv2d(3, inplanes, 3, 2, padding=1, bias=False)))
        self.blocks = nn.ModuleList()
        for expansion, channels, count, stride in SETTINGS:
            planes = int(channels * width)
            first = InvertedResidual(inplanes, planes, stride, expansion)
            rest = (InvertedResidual(planes, planes, 1, expansion) for _ in range(count - 1))
            self.blocks.append(nn.Sequential(first, *rest))
            inplanes = planes
        self.conv2 = nn.Sequential(*normalised(nn.Conv2d(inplanes, 1280, 1, bias=False)))
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        initialise(self)
        small_linear(self)

    def maps(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        blocks = self.blocks
        p0 = self.conv1[1](self.conv1[0](image))
        f0 = p0.relu()
        f1 = blocks[1](blocks[0](f0))
        f2 = blocks[2](f1)
        f3 = blocks[4](blocks[3](f2))
        f4 = blocks[6](blocks[5](f3))
        return [f0, f1, f2, f3, f4], [p0, f1, f2, f3, f4]

    def pooled(self, feature: Tensor, preactivation: Tensor) -> Tensor:
        last: Tensor = self.conv2(feature)
        return last

    def classify(self, vectors: Tensor) -> Tensor:
        logits: Tensor = self.classifier(vectors)
        return logits


models.register("MobileNetV2")(MobileNetV2)
