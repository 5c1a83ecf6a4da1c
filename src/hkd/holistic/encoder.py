"""The graph network that turns an attributed graph into holistic embeddings."""

import math

import torch
from torch import Tensor, nn


class TAGConv(nn.Module):
    r"""Topology-adaptive graph convolution.

    .. math:: H = \sum_{l=0}^{L} (D^{-1/2} A D^{-1/2})^l X \Theta_l + b
        = [X \,|\, \hat A X \,|\, \dots \,|\, \hat A^L X]\, \Theta + b

    Source: Du et al., "Topology Adaptive Graph Convolutional Networks", 2017; equation 4 of Zhou et al., ICCV 2021.

    Args:
        dim: width of the node attributes, in and out.
        hops: L, how far a message travels.

    Shapes:
        x (B, dim), adjacency (B, B) -> (B, dim). ``linear.weight`` is (dim, dim * (hops + 1)), its columns ordered
        [X | ÂX | ... | Â^L X].
    """

    def __init__(self, dim: int, hops: int = 1) -> None:
        super().__init__()
        self.hops = hops
        self.linear = nn.Linear(dim * (hops + 1), dim)
        nn.init.xavier_normal_(self.linear.weight, gain=math.sqrt(2))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        propagated = [x]
        for _ in range(self.hops):
            propagated.append(adjacency @ propagated[-1])
        out: Tensor = self.linear(torch.cat(propagated, dim=1))
        return out


class GraphEncoder(nn.Module):
    """Stacked :class:`TAGConv` layers with ReLU between them and none after the last.

    Args:
        dim: width of the node attributes, in and out.
        hops: hops of every layer (the L of the TAGCN formula).
        layers: how many layers are stacked (the other reading of the "number of layers" in the paper's supplement).

    Raises:
        ValueError: hops is negative, or layers is below 1.
    """

    def __init__(self, dim: int, hops: int = 1, layers: int = 1) -> None:
        super().__init__()
        if hops < 0:
            raise ValueError(f"hops: expected 0 or more; got {hops}")
        if layers < 1:
            raise ValueError(f"layers: expected 1 or more; got {layers}")
        self.layers = nn.ModuleList(TAGConv(dim, hops) for _ in range(layers))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        for depth, layer in enumerate(self.layers):
            x = layer(x if depth == 0 else x.relu(), adjacency)
        return x
