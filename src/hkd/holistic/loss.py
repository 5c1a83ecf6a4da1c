"""Holistic knowledge distillation: two branches, four contrasts."""

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.holistic.encoder import GraphEncoder
from hkd.holistic.graph import knn_graph, normalised_adjacency
from hkd.numerics.contrast import Block, block_rows, contrast
from hkd.numerics.gather import gather, own
from hkd.numerics.memory import BankStart, BankType, MemoryBank, NegativeSampler
from hkd.numerics.precision import at_least_float32, full_precision

NegativeBank = Literal["same", "opposite"]
Sampling = Literal["shared", "all", "per_sample"]
GraphOf = Literal["global", "local"]


class HolisticTerms(NamedTuple):
    """The four InfoNCE terms, each a scalar mean over the batch. HKD is their sum."""

    individual_student: Tensor
    individual_teacher: Tensor
    holistic_student: Tensor
    holistic_teacher: Tensor


class Embeddings(NamedTuple):
    """What a branch makes of a batch, both (B, d) and of unit length."""

    individual: Tensor
    """e: what the network sees in each image."""
    holistic: Tensor
    """g: the same, with what it sees in the images that it predicts alike."""


class Branch(nn.Module):
    r"""One network's way from its penultimate features to embeddings, and its memory of them.

    .. math:: e = \mathrm{normalize}(W f + b), \qquad g = \mathrm{normalize}(\mathrm{TAG}(e, \hat A(l)))
    """

    def __init__(
        self, feature_dim: int, dim: int, k: int, hops: int, layers: int, graph: GraphOf, num_samples: int,
        momentum: float, bank_start: BankStart, bank_dtype: BankType,
    ) -> None:  # fmt: skip
        super().__init__()
        self.k = k
        self.graph = graph
        self.embed = nn.Linear(feature_dim, dim)
        self.encoder = GraphEncoder(dim, hops, layers)
        self.bank = MemoryBank(num_samples, dim, momentum, bank_start, bank_dtype)

    def forward(self, feature: Tensor, logits: Tensor) -> Embeddings:
        individual = F.normalize(self.embed(feature.to(self.embed.weight.dtype)), dim=1)
        if self.graph == "local":
            return Embeddings(individual, self._holistic(individual, logits))
        return Embeddings(
            individual, own(self._holistic(gather(individual), gather(at_least_float32(logits.detach()))))
        )

    def _holistic(self, individual: Tensor, logits: Tensor) -> Tensor:
        adjacency = normalised_adjacency(knn_graph(logits, self.k), individual.dtype)
        return F.normalize(self.encoder(individual, adjacency), dim=1)


class HolisticLoss(nn.Module):
    r"""The HKD loss, for any training loop. Depends on torch alone.

    Each network's batch becomes an attributed graph, a graph network turns it into embeddings, and each branch's
    embeddings are contrasted with what the other branch remembers of the same image:

    ===================  ========  ==================================================
    term                 anchor    positive
    ===================  ========  ==================================================
    individual_student   e_s       M_t[i]
    individual_teacher   e_t       M_s[i]
    holistic_student     g_s       normalize(smoothing M_t[i] + (1 - smoothing) g_t)
    holistic_teacher     g_t       normalize(smoothing M_s[i] + (1 - smoothing) g_s)
    ===================  ========  ==================================================

    Positives and negatives are constants. The teacher's terms train the teacher's side of this loss only; pass the
    outputs of a frozen teacher. Everything is computed in the type of the parameters (float32), also under autocast.

    Where several processes train together (torch.distributed is started) each passes its own images. Graphs are built
    over the images of all, and all banks take in the embeddings of all, so they stay alike in every process; exclude
    them from what is broadcast (``DistributedDataParallel(..., broadcast_buffers=False)``). With batches of equal size
    the mean of the processes' gradients is the gradient of one process with the whole batch.

    Args:
        student_dim: width of the student's penultimate features.
        teacher_dim: width of the teacher's.
        num_samples: N, the number of training images, which indices count.
        labels: (N,) class of each training image. Negatives are images of other classes. None: any other image.
        embedding_dim: d.
        k: size of a neighbourhood in the batch graph, the node itself included.
        hops: L of the TAGCN formula, how far messages travel in one graph layer.
        layers: stacked graph layers.
        num_negatives: K.
        temperature: τ of all four terms.
        momentum: what a row of a memory bank keeps of itself at each visit.
        smoothing: the memory's part in the holistic positives.
        negatives: whose bank the negatives come from: "same" as the anchor's (the authors' code) or the "opposite"
            (the paper's text).
        sampling: "shared", one draw of K rows a batch without those of an anchor's class; "all", every row of another
            class; "per_sample", an own draw of K for each anchor.
        bank_start: "random", or "first": rows start as the first embedding seen. The defaults here are those of the
            authors' code; ``negatives="opposite", bank_start="first"`` did better on short schedules and is what the
            ``hkd`` command uses.
        bank_dtype: "float32", or "bfloat16" or "float16" for banks of half the size; the arithmetic stays float32.
        graph: "global", a graph over the images of all processes, or "local", one of each process's own.
        seed: of the draws of negatives.

    Raises:
        ValueError: an argument is out of its range, or ``labels`` has another length than ``num_samples``.

    Source: Zhou et al., "Distilling Holistic Knowledge with Graph Neural Networks", ICCV 2021.

    Example::

        hkd_loss = HolisticLoss(student_dim=256, teacher_dim=256, num_samples=len(dataset), labels=labels)
        loss = cross_entropy + 3 * hkd_loss(f_student, logits_student, f_teacher, logits_teacher, index)
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        num_samples: int,
        labels: Tensor | None = None,
        *,
        embedding_dim: int = 128,
        k: int = 8,
        hops: int = 1,
        layers: int = 1,
        num_negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.9,
        smoothing: float = 0.75,
        negatives: NegativeBank = "same",
        sampling: Sampling = "shared",
        bank_start: BankStart = "random",
        bank_dtype: BankType = "float32",
        graph: GraphOf = "global",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("student_dim", student_dim), ("teacher_dim", teacher_dim), ("k", k),
                            ("embedding_dim", embedding_dim)):  # fmt: skip
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more; got {value}")
        if temperature <= 0:
            raise ValueError(f"temperature: expected a number above 0; got {temperature}")
        if not 0 <= smoothing <= 1:
            raise ValueError(f"smoothing: the memory's part in a positive lies in [0, 1]; got {smoothing}")
        for name, choice, choices in (("negatives", negatives, get_args(NegativeBank)),
                                      ("sampling", sampling, get_args(Sampling)),
                                      ("graph", graph, get_args(GraphOf))):  # fmt: skip
            if choice not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}; got {choice!r}")
        self.temperature = temperature
        self.smoothing = smoothing
        self.negatives = negatives
        self.sampling = sampling
        both = (embedding_dim, k, hops, layers, graph, num_samples, momentum, bank_start, bank_dtype)
        self.student = Branch(student_dim, *both)
        self.teacher = Branch(teacher_dim, *both)
        self.sampler = NegativeSampler(num_samples, num_negatives, labels, seed)

    def forward(
        self, student_embedding: Tensor, student_logits: Tensor, teacher_embedding: Tensor, teacher_logits: Tensor,
        index: Tensor,
    ) -> Tensor:  # fmt: skip
        """The sum of the four terms, a scalar. In training mode the banks are updated afterwards.

        Args:
            student_embedding: (B, student_dim) penultimate features.
            student_logits: (B, C).
            teacher_embedding: (B, teacher_dim) penultimate features.
            teacher_logits: (B, C).
            index: (B,) which training image each is, in [0, num_samples).
        """
        terms = self.step(student_embedding, student_logits, teacher_embedding, teacher_logits, index)
        return torch.stack(terms).sum()

    def step(
        self,
        student_embedding: Tensor,
        student_logits: Tensor,
        teacher_embedding: Tensor,
        teacher_logits: Tensor,
        index: Tensor,
    ) -> HolisticTerms:
        """What :meth:`forward` does, with its four terms told apart."""
        terms, e_s, e_t = self._terms(student_embedding, student_logits, teacher_embedding, teacher_logits, index)
        if self.training:
            self.update(index, e_s, e_t)
            self.sampler.draws += 1
        return terms

    def terms(
        self, student_embedding: Tensor, student_logits: Tensor, teacher_embedding: Tensor, teacher_logits: Tensor,
        index: Tensor, negatives: Tensor | None = None,
    ) -> HolisticTerms:  # fmt: skip
        """The four terms on their own, with no effect on banks or draws. Shapes as in :meth:`forward`.

        Args:
            negatives: explicit bank rows instead of a draw. (K,) serve all anchors, without those of an anchor's
                class, as in "shared" sampling; (B, K) serve each anchor as they are, as in "per_sample".
        """
        embeddings_and_logits = (student_embedding, student_logits, teacher_embedding, teacher_logits)
        return self._terms(*embeddings_and_logits, index, negatives)[0]

    def update(self, index: Tensor, e_s: Tensor, e_t: Tensor) -> None:
        """Moves the visited rows of both banks towards (B, d) individual embeddings, those of all processes."""
        index = gather(index.to(e_s.device, torch.int64, non_blocking=True))
        e_s, e_t = gather(torch.cat([e_s.detach(), e_t.detach()], dim=1)).chunk(2, dim=1)
        self.student.bank.update(index, e_s)
        self.teacher.bank.update(index, e_t)

    def _terms(
        self, f_s: Tensor, l_s: Tensor, f_t: Tensor, l_t: Tensor, index: Tensor, rows: Tensor | None = None
    ) -> tuple[HolisticTerms, Tensor, Tensor]:
        """The four terms, over given negatives or a draw, and the individual embeddings that the banks take in."""
        bank_s, bank_t = self.student.bank.rows, self.teacher.bank.rows
        index = index.to(bank_s.device, torch.int64, non_blocking=True)
        with full_precision(bank_s):
            student, teacher = self.student(f_s, l_s), self.teacher(f_t, l_t)
            rows = self._draw(index) if rows is None else torch.as_tensor(rows, device=bank_s.device)
            negatives_s, negatives_t = (bank_s, bank_t) if self.negatives == "same" else (bank_t, bank_s)
            memory_s, memory_t = at_least_float32(bank_s[index]), at_least_float32(bank_t[index])
            classes = self.sampler.class_of(index)[:, None]
            same = classes == self.sampler.class_of(rows) if rows is not None and rows.ndim == 1 else None
            terms_s = self._branch_terms(student, memory_t, teacher.holistic, negatives_s, classes, rows, same)
            terms_t = self._branch_terms(teacher, memory_s, student.holistic, negatives_t, classes, rows, same)
        terms = HolisticTerms(terms_s[0], terms_t[0], terms_s[1], terms_t[1])
        return terms, student.individual, teacher.individual

    def _branch_terms(
        self,
        branch: Embeddings,
        memory: Tensor,
        other_holistic: Tensor,
        bank: Tensor,
        classes: Tensor,
        rows: Tensor | None,
        same: Tensor | None,
    ) -> Tensor:
        """(2,): one branch's individual and holistic term, both over the same negatives and so in one product."""
        smoothed = self.smoothing * memory + (1 - self.smoothing) * other_holistic.detach()
        anchor = torch.cat([branch.individual, branch.holistic])
        positive = torch.cat([memory, F.normalize(smoothed, dim=1)])
        blocks = self._blocks(bank, classes, rows, same, block_rows(anchor))
        return contrast(anchor, positive, blocks, self.temperature).view(2, -1).mean(dim=1)

    def _draw(self, index: Tensor) -> Tensor | None:
        """This step's negatives: (K,) or (B, K) bank rows, or None for the whole bank."""
        if self.sampling == "all":
            return None
        return self.sampler.shared() if self.sampling == "shared" else own(self.sampler.per_sample(gather(index)))

    def _blocks(
        self, bank: Tensor, classes: Tensor, rows: Tensor | None, same: Tensor | None, width: int
    ) -> Iterator[Block]:
        """The bank rows that serve as negatives, block by block, and which of them share an anchor's class.

        Args:
            bank: (N, d).
            classes: (B, 1) of the anchors.
            rows: (K,) for all anchors, (B, K) for each, or None for all rows of the bank.
            same: (B, K), which of the (K,) rows are of an anchor's class.
            width: rows in a block.
        """
        if rows is None:
            for start in range(0, len(bank), width):
                block = torch.arange(start, min(start + width, len(bank)), device=bank.device)
                yield at_least_float32(bank[start : start + width]), classes == self.sampler.class_of(block)
        elif same is None:
            for block in torch.split(rows, max(1, width // bank.shape[1]), dim=1):
                yield at_least_float32(bank[block]).repeat(2, 1, 1), None
        else:
            for block, mask in zip(torch.split(rows, width), torch.split(same, width, dim=1), strict=True):
                yield at_least_float32(bank.index_select(0, block)), mask
