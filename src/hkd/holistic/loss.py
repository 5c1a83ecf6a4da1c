"""Holistic knowledge distillation: two branches, four contrasts."""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.holistic.branch import Branch, Embeddings, GraphOf
from hkd.holistic.negatives import Negatives, Sampling, drawn_negatives, given_negatives, negative_blocks
from hkd.numerics.arguments import check_number, check_whole
from hkd.numerics.contrast import contrast, rows_per_block
from hkd.numerics.gather import gather, world_size
from hkd.numerics.memory import BankStart, BankType, as_index
from hkd.numerics.negatives import NegativeSampler
from hkd.numerics.precision import at_least_float32, full_precision, product_dtype

NegativeBank = Literal["same", "opposite"]
Terms = Literal["all", "individual", "holistic"]


class HolisticTerms(NamedTuple):
    """The four InfoNCE terms, each a scalar mean over the batch, 0 where the loss does without. HKD is their sum."""

    individual_student: Tensor
    individual_teacher: Tensor
    holistic_student: Tensor
    holistic_teacher: Tensor


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
    outputs of a frozen teacher. Everything is computed in the type of the parameters (float32), also under autocast,
    with one exception: under bfloat16 autocast the factors of the products with the negatives are rounded to bfloat16.
    Their sums stay float32, and the gradient moves by less than a hundredth of its norm.

    Where several processes train together (torch.distributed is initialised) each passes its own images. Graphs are
    built over the images of all, and all banks take in the embeddings of all, so they stay equal in every process;
    exclude them from what is broadcast (``DistributedDataParallel(..., broadcast_buffers=False)``). With batches of
    equal size the mean of the processes' gradients is the gradient of one process with the whole batch.

    The defaults are those of the ``hkd`` method. In the comparisons of ``docs/results.md`` opposite negatives and rows
    that start as the first embedding do better than what the authors released, :meth:`as_released`.

    Args:
        student_dim: width of the student's penultimate features.
        teacher_dim: width of the teacher's.
        num_samples: N, the number of training images; indices are in [0, N).
        labels: (N,) class of each training image. Negatives are images of other classes. None: any other image.
        embedding_dim: d.
        k: size of a neighbourhood in the batch graph, the node itself included.
        hops: L of the TAGCN formula, how far messages travel in one graph layer.
        layers: stacked graph layers.
        num_negatives: K.
        temperature: τ of all four terms.
        momentum: the part of a memory bank's row that stays at each visit.
        smoothing: the memory's part in the holistic positives.
        negatives: the bank that the negatives come from: the "opposite" one (the paper's text) or the "same" as the
            anchor's (the authors' code, see :meth:`as_released`).
        sampling: "shared", one draw of K rows a batch, of which each anchor leaves those of its class aside; "all",
            every row of another class; "per_sample", a draw of K for each anchor, or as many as there are.
        bank_start: "first", rows start as the first embedding of their image; or "random" (the authors' code).
        bank_dtype: "float32", or "bfloat16" or "float16" for banks of half the size; the arithmetic stays float32.
        graph: "global", a graph over the images of all processes, or "local", one over each process's images.
        terms: "all" four, the two "individual" ones, for which there is no graph, or the two "holistic" ones.
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
        negatives: NegativeBank = "opposite",
        sampling: Sampling = "shared",
        bank_start: BankStart = "first",
        bank_dtype: BankType = "float32",
        graph: GraphOf = "global",
        terms: Terms = "all",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (("student_dim", student_dim, 1), ("teacher_dim", teacher_dim, 1), ("k", k, 1),
                                   ("embedding_dim", embedding_dim, 1), ("hops", hops, 0), ("layers", layers, 1),
                                   ("num_samples", num_samples, 2)):  # fmt: skip
            check_whole(name, value, least)
        for name, number in (("temperature", temperature), ("smoothing", smoothing)):
            check_number(name, number)
        if not temperature > 0:
            raise ValueError(f"temperature: expected a number above 0; got {temperature}")
        if not 0 <= smoothing <= 1:
            raise ValueError(f"smoothing: expected a number in [0, 1]; got {smoothing}")
        for name, choice, choices in (("negatives", negatives, get_args(NegativeBank)),
                                      ("sampling", sampling, get_args(Sampling)),
                                      ("graph", graph, get_args(GraphOf)),
                                      ("terms", terms, get_args(Terms))):  # fmt: skip
            if choice not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}; got {choice!r}")
        self.temperature = temperature
        self.smoothing = smoothing
        self.negatives = negatives
        self.sampling = sampling
        self.kinds = ("individual", "holistic") if terms == "all" else (terms,)
        both = (
            embedding_dim,
            k,
            hops,
            layers,
            graph,
            num_samples,
            momentum,
            bank_start,
            bank_dtype,
            terms != "individual",
        )
        self.student = Branch(student_dim, *both)
        self.teacher = Branch(teacher_dim, *both)
        self.sampler = NegativeSampler(num_samples, num_negatives, labels, seed)
        self._can_undo = False

    @classmethod
    def as_released(
        cls, student_dim: int, teacher_dim: int, num_samples: int, labels: Tensor | None = None, **changes: Any
    ) -> HolisticLoss:
        """The loss as the authors' code has it, but for the draw of negatives: ``negatives="same",
        bank_start="random"``. The code draws them for each image, which is ``sampling="per_sample"``.

        Args:
            changes: further arguments of the loss; those two may be among them.
        """
        arguments = {"negatives": "same", "bank_start": "random"} | changes
        return cls(student_dim, teacher_dim, num_samples, labels, **arguments)

    def forward(
        self, student_embedding: Tensor, student_logits: Tensor, teacher_embedding: Tensor, teacher_logits: Tensor,
        index: Tensor,
    ) -> Tensor:  # fmt: skip
        """The sum of the four terms, a scalar. In training mode the banks are updated afterwards.

        Args:
            student_embedding: (B, student_dim) penultimate features, B at least 1.
            student_logits: (B, C).
            teacher_embedding: (B, teacher_dim) penultimate features.
            teacher_logits: (B, C).
            index: (B,) integers, which training image each is, in [0, num_samples). A number outside is looked for
                where the tensor is in memory, not on a GPU, for which the host would have to wait.

        Raises:
            ValueError: an argument has another shape or type, by its name.
        """
        terms = self.step(student_embedding, student_logits, teacher_embedding, teacher_logits, index)
        return torch.stack(terms).sum()

    def step(
        self, student_embedding: Tensor, student_logits: Tensor, teacher_embedding: Tensor, teacher_logits: Tensor,
        index: Tensor,
    ) -> HolisticTerms:  # fmt: skip
        """What :meth:`forward` does, with the four terms one by one."""
        terms, e_s, e_t = self._terms(student_embedding, student_logits, teacher_embedding, teacher_logits, index)
        if self.training:
            if self.sampler.draws == 0 and "holistic" in self.kinds:
                self._check_graph(len(index))
            self.update(index, e_s, e_t)
            self.sampler.draws += 1
            self._can_undo = True
        return terms

    def _check_graph(self, images: int) -> None:
        """Warns where a neighbourhood is most of its graph: then all holistic embeddings are nearly the same."""
        nodes, k = images * (world_size() if self.student.graph == "global" else 1), self.student.k
        if nodes < 2 * k:
            warnings.warn(
                f"k: neighbourhoods of {k} images in a graph of {nodes}; use batches of {2 * k} images or more, or a "
                "smaller k (with gradient accumulation, a graph is that of the micro-batch)",
                stacklevel=2,
            )

    def undo_step(self) -> None:
        """Takes the last step in training mode back, once: banks and draw are to the bit what they were before it.

        For a training loop that skips a step, whose loss is NaN for instance. Waits for no device.
        """
        if self._can_undo:
            self.student.bank.undo_update()
            self.teacher.bank.undo_update()
            self.sampler.draws -= 1
            self._can_undo = False

    def terms(
        self, student_embedding: Tensor, student_logits: Tensor, teacher_embedding: Tensor, teacher_logits: Tensor,
        index: Tensor, negatives: Tensor | None = None,
    ) -> HolisticTerms:  # fmt: skip
        """The four terms alone, with no effect on banks or draws. Shapes as in :meth:`forward`.

        Args:
            negatives: explicit bank rows instead of a draw. (K,) serve all anchors, without those of an anchor's
                class, as in "shared" sampling; (B, K) serve each anchor as they are, as in "per_sample".
        """
        embeddings_and_logits = (student_embedding, student_logits, teacher_embedding, teacher_logits)
        return self._terms(*embeddings_and_logits, index, negatives)[0]

    def update(self, index: Tensor, e_s: Tensor, e_t: Tensor) -> None:
        """Moves the visited rows of both banks towards (B, d) individual embeddings, those of all processes."""
        index = gather(as_index(index, e_s.device, self.sampler.num_samples))
        e_s, e_t = gather(torch.cat([e_s.detach(), e_t.detach()], dim=1)).chunk(2, dim=1)
        self.student.bank.update(index, e_s)
        self.teacher.bank.update(index, e_t)

    def _terms(
        self, f_s: Tensor, l_s: Tensor, f_t: Tensor, l_t: Tensor, index: Tensor, rows: Tensor | None = None
    ) -> tuple[HolisticTerms, Tensor, Tensor]:
        """The four terms, over given bank rows or a draw, and the individual embeddings for the banks."""
        bank_s, bank_t = self.student.bank.rows, self.teacher.bank.rows
        index = as_index(index, bank_s.device, self.sampler.num_samples)
        products = product_dtype(self.student.embed.weight)
        _check_batch(student_embedding=f_s, student_logits=l_s, teacher_embedding=f_t, teacher_logits=l_t, index=index)
        for name, value, branch in (("student", f_s, self.student), ("teacher", f_t, self.teacher)):
            if value.shape[1] != branch.embed.in_features:
                raise ValueError(f"{name}_embedding: expected {branch.embed.in_features} columns; got {value.shape[1]}")
        with full_precision(bank_s):
            student, teacher = self.student(f_s, l_s), self.teacher(f_t, l_t)
            if rows is None:
                negatives = drawn_negatives(self.sampler, self.sampling, index)
            else:
                negatives = given_negatives(self.sampler, rows, index)
            negatives_s, negatives_t = (bank_s, bank_t) if self.negatives == "same" else (bank_t, bank_s)
            memory_s, memory_t = at_least_float32(bank_s[index]), at_least_float32(bank_t[index])
            terms_s = self._branch_terms(student, memory_t, teacher.holistic, negatives_s, negatives, products)
            terms_t = self._branch_terms(teacher, memory_s, student.holistic, negatives_t, negatives, products)
        sides = {"student": terms_s, "teacher": terms_t}
        known = {f"{kind}_{side}": term for side, terms in sides.items() for kind, term in terms.items()}
        none = bank_s.new_zeros((), dtype=memory_s.dtype)
        terms = HolisticTerms(*(known.get(name, none) for name in HolisticTerms._fields))
        return terms, student.individual, teacher.individual

    def _branch_terms(
        self, branch: Embeddings, memory: Tensor, other_holistic: Tensor | None, bank: Tensor, negatives: Negatives,
        products: torch.dtype,
    ) -> dict[str, Tensor]:  # fmt: skip
        """One branch's terms by their kinds, all over the same negatives and so in one product."""
        pairs = {"individual": (branch.individual, memory)}
        if branch.holistic is not None and other_holistic is not None:
            smoothed = self.smoothing * memory + (1 - self.smoothing) * other_holistic.detach()
            pairs["holistic"] = (branch.holistic, F.normalize(smoothed, dim=1))
        anchor, positive = (torch.cat(part) for part in zip(*(pairs[kind] for kind in self.kinds), strict=True))
        blocks = negative_blocks(self.sampler, bank, negatives, rows_per_block(anchor), len(self.kinds))
        means = contrast(anchor, positive, blocks, self.temperature, products).view(len(self.kinds), -1).mean(dim=1)
        return dict(zip(self.kinds, means.unbind(), strict=True))


def _check_batch(index: Tensor, **embeddings_and_logits: Tensor) -> None:
    """Raises :class:`ValueError`, by the argument's name, where the shapes of a batch do not agree."""
    if index.ndim != 1 or len(index) == 0:
        raise ValueError(f"index: expected shape (B,), B at least 1; got {tuple(index.shape)}")
    for name, value in embeddings_and_logits.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(f"{name}: expected floats; got {getattr(value, 'dtype', type(value).__name__)}")
        if value.ndim != 2 or len(value) != len(index):
            raise ValueError(f"{name}: expected 2 axes and {len(index)} rows, as index; got shape {tuple(value.shape)}")
