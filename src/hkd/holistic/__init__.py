"""Holistic knowledge distillation, readable top to bottom: graph, encoder, memory, contrast, loss."""

from hkd.holistic.encoder import GraphEncoder, TAGConv
from hkd.holistic.graph import knn_graph, normalised_adjacency
from hkd.holistic.loss import Branch, HolisticLoss, HolisticTerms
from hkd.numerics.contrast import info_nce
from hkd.numerics.memory import MemoryBank, NegativeSampler

__all__ = [
    "Branch", "GraphEncoder", "HolisticLoss", "HolisticTerms", "MemoryBank", "NegativeSampler", "TAGConv", "info_nce",
    "knn_graph", "normalised_adjacency",
]  # fmt: skip
