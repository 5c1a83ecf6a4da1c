"""Holistic knowledge distillation as a method of the training loop."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor

from hkd.holistic import HolisticLoss
from hkd.holistic.branch import GraphOf
from hkd.holistic.loss import NegativeBank, Terms
from hkd.holistic.negatives import Sampling
from hkd.methods.base import Method, Setup, Weights, check_unused, methods
from hkd.numerics.memory import BankStart, BankType
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class HolisticConfig:
    """The settings of HKD, with the defaults of :class:`hkd.HolisticLoss`: the paper's, but for ``bank_start`` and for
    ``sampling``, one draw of negatives a batch instead of one for each anchor.

    The code released with the paper has ``negatives="same", bank_start="random"``, which is
    ``HolisticLoss.as_released(...)`` in other training loops. ``docs/results.md`` compares them.
    """

    embedding_dim: int = option(128, "d, the width of the embeddings", ge=1, most=65_536)
    k: int = option(8, "size of a neighbourhood in the batch graph, the image itself included", ge=1)
    hops: int = option(1, "how far messages travel in one graph layer (L of the TAGCN formula)", ge=0, most=1_000)
    layers: int = option(1, "stacked graph layers", ge=1, most=1_000)
    num_negatives: int = option(16384, "K, negatives of each anchor", ge=1)
    temperature: float = option(0.07, "τ of the four contrasts", gt=0)
    momentum: float = option(0.9, "the part of a memory bank's row that stays at each visit", ge=0, lt=1)
    smoothing: float = option(0.75, "the memory's part in the holistic positives", ge=0, le=1)
    negatives: NegativeBank = option(
        "opposite",
        "the bank they come from: the opposite one (the paper), or the same as the anchor's (its code)",
    )
    sampling: Sampling = option("shared", "one draw a batch, all rows, or a draw for each anchor")
    bank_start: BankStart = option("first", "what bank rows start as: the first embedding seen, or random (the paper)")
    bank_dtype: BankType = option("float32", "of the memory banks; bfloat16 and float16 take half the memory")
    graph: GraphOf = option(
        "global", "with several processes: one graph of all their images, or one for each process (local)"
    )
    terms: Terms = option(
        "all",
        "the contrasts that are summed: all four, those of individual images, or the holistic ones",
        neutral="all",
    )


@methods.register("hkd")
class HKD(Method[HolisticConfig]):
    r"""Zhou et al., "Distilling Holistic Knowledge with Graph Neural Networks", ICCV 2021.

    .. math:: \mathrm{mean}_i\, \big[ \ell(e^s_i, M^t_i) + \ell(e^t_i, M^s_i)
        + \ell(g^s_i, \bar g^t_i) + \ell(g^t_i, \bar g^s_i) \big]

    ℓ is InfoNCE (:func:`hkd.holistic.info_nce`) of an anchor and its positive. e (B, d) are the embeddings of the
    images, g those of their neighbourhoods, M (N, d) the memory banks, and ḡ mixes memory and g:
    :class:`hkd.HolisticLoss` has the details. HKD is CE + 3 HKD; HKD+KD (``--method hkd+kd``) adds the classical term
    with weight 1. Both are the paper's.
    """

    Config = HolisticConfig
    settings = "holistic"
    weights = Weights(method=3.0)
    needs = frozenset({"logits", "embedding"})
    remembers_classes = True

    def __init__(self, setup: Setup, config: HolisticConfig) -> None:
        super().__init__(setup, config)
        if config.terms == "individual":
            check_unused(config, ("k", "hops", "layers", "smoothing", "graph"), "terms individual")
        if config.sampling == "all":
            check_unused(config, ("num_negatives",), "sampling all")
        self.loss = HolisticLoss(
            setup.student.embedding_dim,
            setup.teacher.embedding_dim,
            setup.num_samples,
            setup.labels,
            seed=setup.seed,
            **asdict(config),
        )

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        terms = self.loss.step(student.embedding, student.logits, teacher.embedding, teacher.logits, batch.index)
        return {name: term for name, term in terms._asdict().items() if name.startswith(self.loss.kinds)}

    def undo_step(self) -> None:
        self.loss.undo_step()
