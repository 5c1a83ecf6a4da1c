"""The classifiers of both networks, applied to the cells of the maps that they average."""

from __future__ import annotations

import torch
from torch import Tensor

from hkd.errors import IncompatibleError, RequestError
from hkd.methods.base import Setup
from hkd.models.base import Model
from hkd.types import ModelOutput


def classifying(setup: Setup, method: str) -> tuple[Model, Model]:
    """The student and the teacher, both of which classify the cells of a map.

    Args:
        setup: of the method.
        method: its name, for the error.

    Raises:
        IncompatibleError: a network is not an average pooling and a linear layer.
        ValueError: the networks are not there.
    """
    if setup.networks is None:
        raise ValueError("networks: expected the student and the teacher, which classify the cells of maps; got none")
    for network, info in zip(setup.networks, (setup.student, setup.teacher), strict=True):
        like = next(network.parameters())
        try:
            with torch.no_grad():
                network.classify(torch.zeros(1, info.embedding_dim, device=like.device, dtype=like.dtype))
        except RequestError as error:
            raise IncompatibleError(
                f"method: {method} applies each network's classifier to the cells of its last map; {error}"
            ) from error
    return setup.networks


def pooled_map(output: ModelOutput) -> Tensor:
    """The map (B, D, h, w) that a network averages."""
    if output.pooled is None:
        raise ValueError("pooled: expected the map that the network averages; got none")
    return output.pooled


def cell_logits(network: Model, cells: Tensor) -> Tensor:
    """The logits of each cell of a map, row by row: (B, D, h, w) -> (h w, B, C)."""
    rows = cells.flatten(2).permute(2, 0, 1)
    return network.classify(rows.to(next(network.parameters()).dtype))
