"""A network that sees the images of a run in its own size and normalisation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hkd.models.base import Model
from hkd.types import Channels, ModelOutput


class ResizedModel(Model):
    r"""A network behind a change of size and normalisation, such as a teacher of 224x224 images beside a small student.

    .. math:: x' = \mathrm{resize}\left(\frac{\sigma x + \mu - \mu'}{\sigma'}\right)

    x (B, 3, H, W) is normalised with μ and σ, those of the run; x' (B, 3, S, S) with μ' and σ', those of the network's
    weights, or the same where these are not known. Resizing is bilinear with antialiasing, on the device. All four are
    buffers, so they are in the file and in the digest of the weights.

    Args:
        network: sees S x S images.
        size: S.
    """

    seen_mean: Tensor
    seen_std: Tensor
    own_mean: Tensor
    own_std: Tensor
    settled: Tensor

    def __init__(self, network: Model, size: int) -> None:
        super().__init__()
        self.network, self.input_size = network, size
        self.name, self.image_size = f"resized-{size}:{network.name}", size
        for name in ("seen", "own"):
            self.register_buffer(f"{name}_mean", torch.zeros(3, 1, 1))
            self.register_buffer(f"{name}_std", torch.ones(3, 1, 1))
        self.register_buffer("settled", torch.zeros(()))

    def sees(self, mean: Channels, std: Channels) -> None:
        """Says the normalisation of the images that come in. The network's own is settled by the first call."""
        if not self.settled:
            self._set("own", *(self.network.normalisation or (mean, std)))
            self.settled.fill_(1)
        self._set("seen", mean, std)

    def _set(self, which: str, mean: Channels, std: Channels) -> None:
        for name, values in (("mean", mean), ("std", std)):
            buffer = getattr(self, f"{which}_{name}")
            buffer.copy_(torch.tensor(values).view(3, 1, 1))

    def forward(self, image: Tensor) -> ModelOutput:
        image = image * (self.seen_std / self.own_std) + (self.seen_mean - self.own_mean) / self.own_std
        if image.shape[2:] != (self.input_size, self.input_size):
            assert self.input_size is not None
            image = F.interpolate(image, (self.input_size, self.input_size), mode="bilinear", antialias=True)
        output: ModelOutput = self.network(image)
        return output

    def classify(self, vectors: Tensor) -> Tensor:
        return self.network.classify(vectors)
