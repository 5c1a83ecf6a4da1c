"""Contrastive representation distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.methods.base import Method, Setup, Weights, methods
from hkd.numerics.gather import gather, local_part
from hkd.numerics.memory import BankType, MemoryBank, as_index
from hkd.numerics.negatives import NegativeSampler
from hkd.numerics.precision import at_least_float32, full_precision, product_dtype
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class ContrastiveConfig:
    """The settings of CRD. Defaults are the authors' code's, but for the sampling."""

    embedding_dim: int = option(128, "d, width of both linear embeddings", ge=1, most=65_536)
    num_negatives: int = option(16384, "K, negatives of each anchor", ge=1)
    temperature: float = option(0.07, "τ", gt=0)
    momentum: float = option(0.5, "the part of a memory bank's row that stays at each visit", ge=0, lt=1)
    sampling: Literal["shared", "per_sample"] = option(
        "shared", "one draw a batch, or a draw for each anchor (as published; many times slower)"
    )
    bank_dtype: BankType = option("float32", "of the memory banks; bfloat16 and float16 take half the memory")


class NCE(nn.Module):
    r"""Noise-contrastive estimation of whether two embeddings are of one image.

    .. math:: -\log \frac{P(x^+)}{P(x^+) + m/N} - \sum_{j=1}^{m} \log \frac{m/N}{P(x_j) + m/N}, \qquad
        P(x) = e^{x} / Z

    With u(x) = x - log Z - log(m/N) these are -logσ(u(x⁺)) - Σ logσ(-u(x_j)), which is how they are computed: nothing
    overflows, in float32 whatever the networks compute in.

    Z is the mean of N e^x over the first batch of the training, as published; a batch in which it is not finite leaves
    the estimate to the next one.

    Attributes:
        log_z: scalar buffer, log Z; NaN before the first batch.
    """

    log_z: Tensor

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.register_buffer("log_z", torch.tensor(math.nan))
        self._known = False  # whether log_z was finite before the last call
        self._can_undo = False

    def forward(self, positive: Tensor, negatives: Tensor, mask: Tensor) -> Tensor:
        """The mean over the batch.

        Args:
            positive: (B,) similarities over τ.
            negatives: (B, K) similarities over τ.
            mask: (B, K), which of them are negatives of the anchor.
        """
        count = mask.sum(dim=1).clamp(min=1)
        self._known = self._known or bool(self.log_z.isfinite())  # waits for the device in the first two steps only
        log_z = self.log_z
        if not self._known:
            log_z = self._estimate(positive.detach(), negatives.detach().masked_fill(~mask, -math.inf), mask)
            if self.training:
                self.log_z.copy_(log_z)
        self._can_undo = self.training
        shift = log_z + (count / self.num_samples).log()
        noise = F.logsigmoid(shift[:, None] - negatives).masked_fill(~mask, 0).sum(dim=1)
        return -(F.logsigmoid(positive - shift) + noise).mean()

    @torch.no_grad()
    def _estimate(self, positive: Tensor, negatives: Tensor, mask: Tensor) -> Tensor:
        """log Z from this batch, that of all processes; NaN where it is not finite."""
        every = torch.cat([positive[:, None], negatives], dim=1).flatten()
        total, count = gather(every.logsumexp(dim=0)[None]), gather((mask.sum() + len(positive))[None])
        log_z = total.logsumexp(dim=0) - count.sum().log() + math.log(self.num_samples)
        return torch.where(log_z.isfinite(), log_z, math.nan)

    def undo_step(self) -> None:
        """Takes the estimate back if the last call in training mode made it."""
        if self._can_undo and not self._known:
            self.log_z.fill_(math.nan)
        self._can_undo = False


@methods.register("crd")
class CRD(Method[ContrastiveConfig]):
    r"""Tian et al., "Contrastive Representation Distillation", ICLR 2020.

    A trained linear layer takes each network's embedding (B, D) to a unit vector v of width d, which is contrasted with
    the other network's memory bank M (N, d): the row of the same image against K rows of other classes.

    .. math:: \mathrm{NCE}(v_s^\top M_t / \tau) + \mathrm{NCE}(v_t^\top M_s / \tau)

    See :class:`NCE`. The banks follow with momentum .5 after the loss. The paper draws K rows of other classes for each
    anchor (``sampling="per_sample"``); by default here one draw of K rows serves the batch, the anchor's class is
    masked, and m counts the other rows. With many classes that is nearly K, at the cost of one matrix product.
    β = .8, K = 16384 and τ = .07 are the defaults of the authors' code.
    """

    Config = ContrastiveConfig
    settings = "crd"
    weights = Weights(method=0.8)
    needs = frozenset({"embedding"})
    remembers_classes = True

    def __init__(self, setup: Setup, config: ContrastiveConfig) -> None:
        super().__init__(setup, config)
        self.embed_student = nn.Linear(setup.student.embedding_dim, config.embedding_dim)
        self.embed_teacher = nn.Linear(setup.teacher.embedding_dim, config.embedding_dim)
        self.bank_student, self.bank_teacher = (
            MemoryBank(setup.num_samples, config.embedding_dim, config.momentum, dtype=config.bank_dtype)
            for _ in range(2)
        )
        self.sampler = NegativeSampler(setup.num_samples, config.num_negatives, setup.labels, setup.seed)
        self.nce_student, self.nce_teacher = NCE(setup.num_samples), NCE(setup.num_samples)
        self._can_undo = False

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        dtype = self.embed_student.weight.dtype
        index = as_index(batch.index, self.embed_student.weight.device, len(self.bank_student))
        products = product_dtype(self.embed_student.weight)
        with full_precision(student.embedding):
            v_s = F.normalize(self.embed_student(student.embedding.to(dtype)), dim=1)
            v_t = F.normalize(self.embed_teacher(teacher.embedding.to(dtype)), dim=1)
            if self.config.sampling == "shared":
                rows = self.sampler.shared()
                mask = self.sampler.class_of(index)[:, None] != self.sampler.class_of(rows)[None, :]
            else:
                rows, surplus = self.sampler.per_sample(gather(index))
                mask = torch.ones_like(rows, dtype=torch.bool) if surplus is None else ~surplus
                rows, mask = local_part(rows), local_part(mask)
            shared = index, rows, mask, products
            terms = {
                "contrast_student": self._contrast(self.nce_student, v_s, self.bank_teacher.rows, *shared),
                "contrast_teacher": self._contrast(self.nce_teacher, v_t, self.bank_student.rows, *shared),
            }
            if self.training:
                index = gather(index)
                self.bank_student.update(index, gather(v_s.detach()))
                self.bank_teacher.update(index, gather(v_t.detach()))
                self.sampler.draws += 1
                self._can_undo = True
        return terms

    def undo_step(self) -> None:
        if self._can_undo:
            for bank in (self.bank_student, self.bank_teacher):
                bank.undo_update()
            for nce in (self.nce_student, self.nce_teacher):
                nce.undo_step()
            self.sampler.draws -= 1
            self._can_undo = False

    def _contrast(
        self, nce: NCE, anchor: Tensor, bank: Tensor, index: Tensor, rows: Tensor, mask: Tensor, products: torch.dtype
    ) -> Tensor:
        anchor = anchor / self.config.temperature
        positive = (anchor * at_least_float32(bank[index])).sum(dim=1)
        # (K,) rows for all anchors, or (B, K) for each
        remembered, factor = bank[rows].to(products), anchor.to(products)
        negatives = factor @ remembered.T if rows.ndim == 1 else torch.einsum("bd,bkd->bk", factor, remembered)
        term: Tensor = nce(positive, at_least_float32(negatives), mask)
        return term
