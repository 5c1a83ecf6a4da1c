"""VGG with batch normalisation and a single linear layer (Simonyan and Zisserman, ICLR 2015)."""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from hkd.models.base import CifarModel, initialise, models, small_linear


def block(inplanes: int, widths: tuple[int, ...]) -> nn.Sequential:
    """3x3 convolutions, each normalised and rectified but for the last, whose ReLU is left to the network."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(inplanes, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        inplanes = width
    return nn.Sequential(*layers[:-1])


class VGG(CifarModel):
    """Five blocks of convolutions, 2x2 max-pooling after the first three, and after the fourth from 64 pixels on."""

    def __init__(self, num_classes: int, convolutions: tuple[int, int, int, int, int]) -> None:
        super().__init__()
        first, second, third, fourth, fifth = convolutions
        self.block0 = block(3, (64,) * first)
        self.block1 = block(64, (128,) * second)
        self.block2 = block(128, (256,) * third)
        self.block3 = block(256, (512,) * fourth)
        self.block4 = block(512, (512,) * fifth)
        self.classifier = nn.Linear(512, num_classes)
        initialise(self)
        small_linear(self)

    def maps(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        p0 = self.block0(image)
        p1 = self.block1(F.max_pool2d(f0 := p0.relu(), 2))
        p2 = self.block2(F.max_pool2d(f1 := p1.relu(), 2))
        p3 = self.block3(F.max_pool2d(f2 := p2.relu(), 2))
        f3 = p3.relu()
        p4 = self.block4(F.max_pool2d(f3, 2) if image.shape[2] >= 64 else f3)
        return [f0, f1, f2, f3, p4.relu()], [p0, p1, p2, p3, p4]

    def classify(self, vectors: Tensor) -> Tensor:
        logits: Tensor = self.classifier(vectors)
        return logits


for name, convolutions in {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}.items():
    models.register(name)(partial(VGG, convolutions=convolutions))
