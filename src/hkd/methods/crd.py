"""Contrastive representation distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.config import option
from hkd.methods.base import Method, Setup, Weights, methods
from hkd.numerics.gather import gather, own
from hkd.numerics.memory import BankType, MemoryBank, NegativeSampler
from hkd.numerics.precision import at_least_float32, full_precision
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class ContrastiveConfig:
    """The settings of CRD. Defaults are the paper's, but for the sampling."""

    embedding_dim: int = option(128, "d, width of both linear embeddings")
    num_negatives: int = option(16384, "K, negatives of each anchor")
    temperature: float = option(0.07, "τ")
    momentum: float = option(0.5, "what a row of a memory bank keeps of itself at each visit")
    sampling: Literal["shared", "per_sample"] = option(
        "shared", "one draw a batch, or an own draw for each anchor (as published; many times slower)"
    )
    bank_dtype: BankType = option("float32", "of the memory banks; bfloat16 and float16 take half the memory")


class NCE(nn.Module):
    r"""Noise-contrastive estimation of whether two embeddings are of one image.

    .. math:: -\log \frac{P(x^+)}{P(x^+) + m/N} - \sum_{j=1}^{m} \log \frac{m/N}{P(x_j) + m/N}, \qquad
        P(x) = e^{x} / Z

    With u(x) = x - log Z - log(m/N) these are -logσ(u(x⁺)) - Σ logσ(-u(x_j)), which is how they are computed: nothing
    overflows, in float32 whatever the networks compute in.

    Z is the mean of N e^x over the first batch, as published; a batch that gives none that is finite leaves the
    estimate to the next one.

    Attributes:
        log_z: scalar buffer, log Z; not a number before the first batch.
    """

    log_z: Tensor

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.register_buffer("log_z", torch.tensor(math.nan))
        self._known = False

    def forward(self, positive: Tensor, negatives: Tensor, mask: Tensor) -> Tensor:
        """The mean over the batch.

        Args:
            positive: (B,) similarities over τ.
            negatives: (B, K) likewise.
            mask: (B, K), which of them are negatives of the anchor.
        """
        count = mask.sum(dim=1).clamp(min=1)
        self._known = self._known or bool(self.log_z.isfinite())  # waits for the device in the first two steps only
        if not self._known:
            self._estimate(positive.detach(), negatives.detach().masked_fill(~mask, -math.inf), mask)
        shift = self.log_z + (count / self.num_samples).log()
        apart = F.logsigmoid(shift[:, None] - negatives).masked_fill(~mask, 0).sum(dim=1)
        return -(F.logsigmoid(positive - shift) + apart).mean()

    @torch.no_grad()
    def _estimate(self, positive: Tensor, negatives: Tensor, mask: Tensor) -> None:
        """Takes Z from this batch, that of all processes."""
        every = torch.cat([positive[:, None], negatives], dim=1).flatten()
        total, count = gather(every.logsumexp(dim=0)[None]), gather((mask.sum() + len(positive))[None])
        mean = total.logsumexp(dim=0) - count.sum().log()
        found = mean + math.log(self.num_samples)
        self.log_z.copy_(torch.where(found.isfinite(), found, math.nan))


@methods.register("crd")
class CRD(Method[ContrastiveConfig]):
    r"""Tian et al., "Contrastive Representation Distillation", ICLR 2020.

    Each network's embedding (B, D) goes through a trained linear layer to a unit vector v of width d, and is contrasted
    with the other network's memory bank M (N, d): the row of the same image against K rows of other classes.

    .. math:: \mathrm{NCE}(v_s^\top M_t / \tau) + \mathrm{NCE}(v_t^\top M_s / \tau)

    See :class:`NCE`. The banks follow with momentum .5 after the loss. The paper draws K rows of other classes for each
    anchor (``sampling="per_sample"``); by default here one draw of K rows serves the batch, an anchor's own class is
    masked, and m counts the rows that are left. With many classes that is nearly K, at the cost of one matrix product.
    β = .8, K = 16384, τ = .07 are the paper's.
    """

    Config = ContrastiveConfig
    settings = "crd"
    weights = Weights(method=0.8)

    def __init__(self, setup: Setup, config: ContrastiveConfig) -> None:
        super().__init__(setup, config)
        if not config.temperature > 0:
            raise ValueError(f"temperature: expected a number above 0; got {config.temperature}")
        if config.embedding_dim < 1:
            raise ValueError(f"embedding_dim: expected 1 or more; got {config.embedding_dim}")
        self.config = config
        self.embed_student = nn.Linear(setup.student.embedding_dim, config.embedding_dim)
        self.embed_teacher = nn.Linear(setup.teacher.embedding_dim, config.embedding_dim)
        self.bank_student, self.bank_teacher = (
            MemoryBank(setup.num_samples, config.embedding_dim, config.momentum, dtype=config.bank_dtype)
            for _ in range(2)
        )
        self.sampler = NegativeSampler(setup.num_samples, config.num_negatives, setup.labels, setup.seed)
        self.nce_student, self.nce_teacher = NCE(setup.num_samples), NCE(setup.num_samples)

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        index, dtype = batch.index, self.embed_student.weight.dtype
        with full_precision(student.embedding):
            v_s = F.normalize(self.embed_student(student.embedding.to(dtype)), dim=1)
            v_t = F.normalize(self.embed_teacher(teacher.embedding.to(dtype)), dim=1)
            if self.config.sampling == "shared":
                rows = self.sampler.shared()
                mask = self.sampler.class_of(index)[:, None] != self.sampler.class_of(rows)[None, :]
            else:
                rows = own(self.sampler.per_sample(gather(index)))
                mask = torch.ones_like(rows, dtype=torch.bool)
            terms = {
                "contrast_student": self._contrast(self.nce_student, v_s, self.bank_teacher.rows, index, rows, mask),
                "contrast_teacher": self._contrast(self.nce_teacher, v_t, self.bank_student.rows, index, rows, mask),
            }
            if self.training:
                index = gather(index)
                self.bank_student.update(index, gather(v_s.detach()))
                self.bank_teacher.update(index, gather(v_t.detach()))
                self.sampler.draws += 1
        return terms

    def _contrast(self, nce: NCE, anchor: Tensor, bank: Tensor, index: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
        anchor = anchor / self.config.temperature
        positive = (anchor * at_least_float32(bank[index])).sum(dim=1)
        # (K,) rows for all anchors, or (B, K) for each
        remembered = at_least_float32(bank[rows])
        negatives = anchor @ remembered.T if rows.ndim == 1 else torch.einsum("bd,bkd->bk", anchor, remembered)
        term: Tensor = nce(positive, negatives, mask)
        return term
