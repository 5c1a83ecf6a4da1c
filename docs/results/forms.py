"""Forms of HKD that are not the paper's, as a method of its own: `--plugin forms`, `--method forms+kd`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.holistic import GraphEncoder, MemoryBank, NegativeSampler, info_nce, knn_graph, normalised_adjacency
from hkd.methods.base import Method, Setup, Weights, methods
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class FormsConfig:
    """What differs from HKD."""

    embedding_dim: int = option(128, "d", ge=1)
    k: int = option(8, "neighbourhood", ge=1)
    hops: int = option(1, "hops", ge=0)
    temperature: float = option(0.07, "of the contrasts", gt=0)
    smoothing: float = option(0.75, "of holistic positives", ge=0, le=1)
    num_negatives: int = option(4096, "K of the bank, or rows of the queue", ge=1)
    momentum: float = option(0.9, "what a row of a bank keeps of itself", ge=0, lt=1)
    positive: Literal["memory", "present"] = option("memory", "the other network's memory, or its present embedding")
    source: Literal["bank", "queue", "batch"] = option("bank", "of the negatives")
    edges: Literal["own", "teacher"] = option("own", "whose predictions make the student's graph")
    projection: Literal["linear", "mlp"] = option("linear", "from features to embeddings")
    side: Literal["learned", "fixed"] = option("learned", "the teacher's embedding: trained, or its own features")
    target: Literal["hard", "soft"] = option("hard", "one positive, or the teacher's similarities to the same rows")
    target_temperature: float = option(0.07, "of the teacher's similarities", gt=0)
    hardness: float = option(0.0, "weight of the teacher's similarity in the negatives' logits")
    terms: Literal["all", "individual", "holistic"] = option("all", "terms")
    end: float = option(1.0, "weight after the last epoch as a part of that of the first", ge=0)


class Side(nn.Module):
    """Embeddings of one network."""

    def __init__(self, width: int, dim: int, config: FormsConfig, learned: bool) -> None:
        super().__init__()
        self.k = config.k
        self.embed: nn.Module = nn.Identity()
        self.encoder: GraphEncoder | None = None
        if learned or width != dim:
            two = nn.Sequential(nn.Linear(width, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
            self.embed = two if config.projection == "mlp" and learned else nn.Linear(width, dim)
        if config.side == "learned":
            self.encoder = GraphEncoder(dim, config.hops)

    def forward(self, feature: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        e = F.normalize(self.embed(feature.float()), dim=1)
        adjacency = normalised_adjacency(knn_graph(logits, self.k), e.dtype)
        mixed = e + adjacency @ e if self.encoder is None else self.encoder(e, adjacency)
        return e, F.normalize(mixed, dim=1)


@methods.register("forms")
class Forms(Method[FormsConfig]):
    """Forms of HKD."""

    Config = FormsConfig
    settings = "forms"
    weights = Weights(method=3.0)
    needs = frozenset({"logits", "embedding"})
    remembers_classes = True
    follows_progress = True

    def __init__(self, setup: Setup, config: FormsConfig) -> None:
        super().__init__(setup, config)
        fixed = config.side == "fixed"
        dim = setup.teacher.embedding_dim if fixed else config.embedding_dim
        self.student = Side(setup.student.embedding_dim, dim, config, True)
        self.teacher = Side(setup.teacher.embedding_dim, dim, config, not fixed)
        n = setup.num_samples
        self.bank_s, self.bank_t = (MemoryBank(n, dim, config.momentum, "first") for _ in range(2))
        self.sampler = NegativeSampler(n, config.num_negatives, setup.labels, setup.seed)
        if config.source == "queue":
            self.register_buffer("queue_s", torch.zeros(config.num_negatives, dim))
            self.register_buffer("queue_t", torch.zeros(config.num_negatives, dim))
            self.register_buffer("queue_class", torch.full((config.num_negatives,), -1))
            self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        with torch.autocast(student.logits.device.type, enabled=False):
            terms = self._terms(batch, student, teacher)
        c = self.config
        part = 1.0
        if self.progress is not None:
            part = 1 + (c.end - 1) * max(0, self.progress.epoch) / max(1, self.progress.epochs - 1)
        kinds = ("individual", "holistic") if c.terms == "all" else (c.terms,)
        return {name: part * value for name, value in terms.items() if name.startswith(kinds)}

    def _terms(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        c, index = self.config, batch.index
        l_t = teacher.logits.float()
        l_s = l_t if c.edges == "teacher" else student.logits.detach().float()
        e_s, g_s = self.student(student.embedding, l_s)
        e_t, g_t = self.teacher(teacher.embedding, l_t)
        m_s, m_t = (self.bank_s.rows[index], self.bank_t.rows[index])
        if c.positive == "present":
            m_s, m_t = e_s.detach(), e_t.detach()
        n_s, n_t, mask = self._negatives(index, e_s.detach(), e_t.detach())
        h_t = F.normalize(c.smoothing * m_t + (1 - c.smoothing) * g_t.detach(), dim=1)
        h_s = F.normalize(c.smoothing * m_s + (1 - c.smoothing) * g_s.detach(), dim=1)
        terms = {
            "individual_student": self._student(e_s, e_t, m_t, n_t, mask, e_t),
            "holistic_student": self._student(g_s, g_t, h_t, n_t, mask, e_t),
        }
        if c.side == "learned":
            terms["individual_teacher"] = info_nce(e_t, m_s, n_s, c.temperature, mask)
            terms["holistic_teacher"] = info_nce(g_t, h_s, n_s, c.temperature, mask)
        if self.training:
            self.bank_s.update(index, e_s.detach())
            self.bank_t.update(index, e_t.detach())
            self.sampler.draws += 1
            if c.source == "queue":
                self._enqueue(index, e_s.detach(), e_t.detach())
        return terms

    def _student(self, a: Tensor, of_teacher: Tensor, positive: Tensor, n: Tensor, mask: Tensor, e_t: Tensor) -> Tensor:
        c = self.config
        if c.target == "hard" and c.hardness == 0:
            return info_nce(a, positive, n, c.temperature, mask)
        first = (a * positive).sum(1, keepdim=True)
        others = a @ n.T / c.temperature
        with torch.no_grad():
            to_rows = of_teacher @ n.T
            if c.target == "soft":
                own = (of_teacher * positive).sum(1, keepdim=True)
                q = torch.cat([own, to_rows], 1) / c.target_temperature
                q = q.softmax(dim=1)  # rows of its own class are neighbours, not negatives
        if c.target == "soft":
            p = torch.cat([first / c.temperature, others], 1).log_softmax(1)
            return F.kl_div(p, q, reduction="batchmean")
        if c.hardness:
            others = others + c.hardness * to_rows
        return F.cross_entropy(
            torch.cat([first / c.temperature, others.masked_fill(mask, -torch.inf)], 1),
            torch.zeros(len(a), dtype=torch.int64, device=a.device),
        )

    def _negatives(self, index: Tensor, e_s: Tensor, e_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        classes = self.sampler.class_of(index)
        if self.config.source == "bank":
            rows = self.sampler.shared()
            return self.bank_s.rows[rows], self.bank_t.rows[rows], classes[:, None] == self.sampler.class_of(rows)
        n_s, n_t, n_class = e_s, e_t, classes
        if self.config.source == "queue":
            filled = min(int(self.place), self.config.num_negatives)
            n_s, n_t = torch.cat([e_s, self.queue_s[:filled]]), torch.cat([e_t, self.queue_t[:filled]])
            n_class = torch.cat([classes, self.queue_class[:filled]])
        return n_s, n_t, classes[:, None] == n_class

    def _enqueue(self, index: Tensor, e_s: Tensor, e_t: Tensor) -> None:
        places = (self.place + torch.arange(len(index))) % self.config.num_negatives
        self.queue_s[places], self.queue_t[places] = e_s, e_t
        self.queue_class[places] = self.sampler.class_of(index)
        self.place += len(index)
