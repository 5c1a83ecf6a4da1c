"""Holistic knowledge distillation, readable top to bottom: graph, encoder, branch, loss."""

from typing import TYPE_CHECKING

from hkd.lazy import lazy

if TYPE_CHECKING:
    from hkd.holistic.branch import Branch as Branch
    from hkd.holistic.encoder import GraphEncoder as GraphEncoder
    from hkd.holistic.encoder import TAGConv as TAGConv
    from hkd.holistic.graph import knn_graph as knn_graph
    from hkd.holistic.graph import normalised_adjacency as normalised_adjacency
    from hkd.holistic.loss import HolisticLoss as HolisticLoss
    from hkd.holistic.loss import HolisticTerms as HolisticTerms
    from hkd.numerics.contrast import info_nce as info_nce
    from hkd.numerics.memory import MemoryBank as MemoryBank
    from hkd.numerics.negatives import NegativeSampler as NegativeSampler
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "hkd.holistic.encoder": ("GraphEncoder", "TAGConv"),
            "hkd.holistic.graph": ("knn_graph", "normalised_adjacency"),
            "hkd.holistic.branch": ("Branch",),
            "hkd.holistic.loss": ("HolisticLoss", "HolisticTerms"),
            "hkd.numerics.contrast": ("info_nce",),
            "hkd.numerics.memory": ("MemoryBank",),
            "hkd.numerics.negatives": ("NegativeSampler",),
        },
    )
