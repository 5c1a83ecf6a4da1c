"""One network's side of the loss: its embeddings of a batch, and the memory bank of them."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from hkd.holistic.encoder import GraphEncoder
from hkd.holistic.graph import knn_graph, normalised_adjacency
from hkd.numerics.gather import gather, local_part
from hkd.numerics.memory import BankStart, BankType, MemoryBank
from hkd.numerics.precision import at_least_float32

GraphOf = Literal["global", "local"]


class Embeddings(NamedTuple):
    """A branch's embeddings of a batch, both (B, d) and of unit length."""

    individual: Tensor
    """e: of each image alone."""
    holistic: Tensor | None
    """g: of each image and its neighbourhood in the graph of the batch; None of a branch without a graph."""


class Branch(nn.Module):
    r"""From one network's penultimate features to embeddings, and the memory bank of them.

    .. math:: e = \mathrm{normalize}(W f + b), \qquad g = \mathrm{normalize}(\mathrm{TAG}(e, \hat A(l)))
    """

    def __init__(
        self, feature_dim: int, dim: int, k: int, hops: int, layers: int, graph: GraphOf, num_samples: int,
        momentum: float, bank_start: BankStart, bank_dtype: BankType, has_graph: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.k = k
        self.graph = graph
        self.embed = nn.Linear(feature_dim, dim)
        self.encoder = GraphEncoder(dim, hops, layers) if has_graph else None
        self.bank = MemoryBank(num_samples, dim, momentum, bank_start, bank_dtype)

    def forward(self, feature: Tensor, logits: Tensor) -> Embeddings:
        individual = F.normalize(self.embed(feature.to(self.embed.weight.dtype)), dim=1)
        if self.encoder is None:
            return Embeddings(individual, None)
        if self.graph == "local":
            return Embeddings(individual, self._holistic(self.encoder, individual, logits))
        holistic = self._holistic(self.encoder, gather(individual), gather(at_least_float32(logits.detach())))
        return Embeddings(individual, local_part(holistic))

    def _holistic(self, encoder: GraphEncoder, individual: Tensor, logits: Tensor) -> Tensor:
        adjacency = normalised_adjacency(knn_graph(logits, self.k), individual.dtype)
        return F.normalize(encoder(individual, adjacency), dim=1)
