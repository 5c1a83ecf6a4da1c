"""What each branch remembers of every training image, and which of those memories serve as negatives."""

import math
import random
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.numerics.precision import at_least_float32, full_precision

BankStart = Literal["random", "first"]
BankType = Literal["float32", "bfloat16", "float16"]


class MemoryBank(nn.Module):
    r"""One row for each training image: a slow average of its pre-graph embedding.

    .. math:: M_i \leftarrow \mathrm{normalize}(m\, M_i + (1 - m)\, e_i)

    Rows start uniform in :math:`\pm\sqrt{3/d}`, not normalised. With ``start="first"`` a row is replaced by the first
    embedding seen for it, instead of the average slowly forgetting the noise.

    Args:
        num_samples: N, how many training images there are.
        dim: d, the embedding width.
        momentum: m, what a row keeps of itself at each visit.
        start: "random" (the paper) or "first".
        dtype: of the rows; the arithmetic is at least float32.

    Attributes:
        rows: (N, d) buffer. No gradient ever flows into it.
        seen: (N,) boolean buffer, only with ``start="first"``: which rows hold an embedding.

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018; section
    3.4 of Zhou et al., ICCV 2021.
    """

    rows: Tensor
    seen: Tensor

    def __init__(
        self, num_samples: int, dim: int, momentum: float = 0.9, start: BankStart = "random",
        dtype: BankType = "float32",
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: what a row keeps of itself lies in [0, 1); got {momentum}")
        if start not in ("random", "first"):
            raise ValueError(f"bank_start: expected 'random' or 'first'; got {start!r}")
        if dtype not in get_args(BankType):
            raise ValueError(f"bank_dtype: expected one of {', '.join(get_args(BankType))}; got {dtype!r}")
        self.momentum = momentum
        self.start = start
        bound = math.sqrt(3 / dim)
        self.register_buffer("rows", torch.empty(num_samples, dim, dtype=getattr(torch, dtype)).uniform_(-bound, bound))
        if start == "first":
            self.register_buffer("seen", torch.zeros(num_samples, dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def update(self, index: Tensor, embedding: Tensor) -> None:
        """Moves the visited rows towards their embeddings.

        An index that stands in the batch more than once moves its row once, by the mean of its embeddings. A row whose
        embedding is not finite stays as it is.

        Args:
            index: (B,) rows to visit.
            embedding: (B, d) normalised embeddings.
        """
        index = index.to(self.rows.device, torch.int64, non_blocking=True)
        # An overflow of half precision skips the optimiser's step, and must not stay in the memory either.
        whole = embedding.isfinite().all(dim=1)
        before = at_least_float32(self.rows[index])
        same = ((index[:, None] == index[None, :]) & whole).to(before.dtype)
        visits = same.sum(dim=1, keepdim=True)
        with full_precision(self.rows):
            mean = same @ embedding.to(before.dtype).masked_fill(~whole[:, None], 0) / visits.clamp(min=1)
        row = self.momentum * before + (1 - self.momentum) * mean
        if self.start == "first":
            seen = self.seen[index]
            row = torch.where(seen[:, None], row, mean)
            self.seen.index_copy_(0, index, seen | (visits[:, 0] > 0))
        row = torch.where(visits > 0, F.normalize(row, dim=1), before)
        # Duplicates write the same values to the same row, so their order does not matter.
        self.rows.index_copy_(0, index, row.to(self.rows.dtype))


class NegativeSampler(nn.Module):
    """Draws bank rows on the device, without replacement, at a cost that depends on K alone.

    Draw t of a sampler comes from a generator seeded with (seed, t), so it is the same on every process and after a
    resumed run, whatever the device did in between. Asking for a draw does not use it up: ``draws``, the number of the
    present one, is counted up by who has trained with it.

    Args:
        num_samples: N, rows of the bank.
        num_negatives: K, how many rows a draw holds; capped at what the bank can give.
        labels: (N,) class of each row, or None: then only an anchor's own row is no negative of it.
        seed: of the draws.

    Raises:
        ValueError: K is below 1, labels are not one for each row, or leave no negatives (a single class).
    """

    labels: Tensor | None
    _by_class: Tensor
    _class_start: Tensor
    _class_size: Tensor
    _first: Tensor

    def __init__(self, num_samples: int, num_negatives: int, labels: Tensor | None = None, seed: int = 0) -> None:
        super().__init__()
        if num_samples < 2:
            raise ValueError(f"num_samples: a bank needs two rows to contrast; got {num_samples}")
        if num_negatives < 1:
            raise ValueError(f"num_negatives: at least one negative is drawn; got {num_negatives}")
        if labels is not None:
            labels = torch.as_tensor(labels, dtype=torch.int64)
            if labels.ndim == 1 and len(labels) and labels.min() < 0:
                raise ValueError(f"labels: classes count from 0; got {int(labels.min())}")
            if labels.shape != (num_samples,):
                raise ValueError(
                    f"labels: expected one label for each of the {num_samples} training images, "
                    f"shape ({num_samples},); got shape {tuple(labels.shape)}"
                )
        self.num_samples = num_samples
        self.num_negatives = min(num_negatives, num_samples)
        self.seed = seed
        self.draws = 0
        # Labels follow from the data set, so they travel with the module between devices but not with its state.
        self.register_buffer("labels", labels, persistent=False)
        # Rows sorted by class: the rows that share a class with an anchor are then one run of positions to step over.
        classes = torch.arange(num_samples) if labels is None else labels
        size = torch.bincount(classes)
        self.register_buffer("_by_class", classes.argsort(stable=True), persistent=False)
        self.register_buffer("_class_start", size.cumsum(0) - size, persistent=False)
        self.register_buffer("_class_size", size, persistent=False)
        self._negatives = (num_samples - int(size.max()), num_samples - int(size.min()))  # fewest, most of any anchor
        if self._negatives[0] < 1:
            raise ValueError("labels: every training image has the same class, so no image is a negative of another")
        if self._order_is_dear:
            self.register_buffer("_first", torch.zeros(num_samples, dtype=torch.int32), persistent=False)
        self._generator = torch.Generator()

    @property
    def _order_is_dear(self) -> bool:
        """Whether a random order of the whole bank costs more than a small multiple of K."""
        return self.num_samples > 8 * self.num_negatives

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.draws)

    def set_extra_state(self, state: Tensor) -> None:
        self.draws = int(state)

    def class_of(self, rows: Tensor) -> Tensor:
        """What must differ between an anchor and its negatives: the class, or without labels the row itself."""
        return rows if self.labels is None else self.labels[rows]

    def shared(self) -> Tensor:
        """One draw for the whole batch: (K,) distinct rows, uniform over the bank, of any class."""
        generator, device = self._keyed_generator(), self._by_class.device
        if not self._order_is_dear:
            return torch.randperm(self.num_samples, generator=generator, device=device)[: self.num_negatives]
        length = int(_stream_length(self.num_samples, self.num_negatives))
        stream = torch.randint(self.num_samples, (length,), generator=generator, device=device)
        place = torch.arange(length, dtype=torch.int32, device=device)
        # Where each row stands first in the stream; what earlier draws left is written over.
        first = self._first.index_fill_(0, stream, length).scatter_reduce_(0, stream, place, "amin")
        return _kept(stream[None], (first[stream] == place)[None], self.num_negatives)[0]

    def per_sample(self, index: Tensor) -> Tensor:
        """A draw of its own for each anchor: (B, K) distinct rows of other classes than row ``index[b]``.

        K is at most what the anchor with the fewest negatives has.
        """
        own = self.class_of(index)
        start, size = self._class_start[own], self._class_size[own]
        count = min(self.num_negatives, self._negatives[0])
        position = _distinct(self.num_samples - size, self._negatives, count, self._keyed_generator())
        position = torch.where(position < start[:, None], position, position + size[:, None])
        return self._by_class[position]

    def _keyed_generator(self) -> torch.Generator:
        """The generator of the present draw. Being keyed by a count, it needs no saved state of any one device."""
        if self._generator.device != self._by_class.device:
            self._generator = torch.Generator(self._by_class.device)
        key = random.Random(f"negatives {self.seed} {self.draws}").getrandbits(63)
        return self._generator.manual_seed(key)


def _stream_length(population: int, count: int) -> float:
    """How many independent integers below a population hold so many distinct ones, but for one time in 1e20.

    Keeping c distinct values of n takes n ln(n / (n - c)) integers on average, and ten standard deviations more are
    taken. Infinite where all are wanted.
    """
    expected = population * math.log(population / (population - count)) if count < population else math.inf
    return expected + 10 * math.sqrt(max(expected - count, 0.0)) + 32


def _distinct(population: Tensor, bounds: tuple[int, int], count: int, generator: torch.Generator) -> Tensor:
    """Draws without replacement, for several populations at once and without looking at a value.

    An endless stream of independent integers, of which each new value is kept, is a uniform draw without replacement.
    Where the stream would be longer than the population (more than 63 % of it is wanted), a random order of the
    population costs less.

    Args:
        population: (R,) sizes to draw below.
        bounds: the smallest and the largest of them, which the host knows without asking the device.
        count: how many to draw, at most the smallest population.

    Returns:
        (R, count) int64: row r holds distinct integers in [0, population[r]).
    """
    rows, device = len(population), population.device
    smallest, largest = bounds
    length = _stream_length(smallest, count)
    if length > smallest:
        key = torch.rand(rows, largest, generator=generator, device=device)
        outside = torch.arange(largest, device=device) >= population[:, None]
        return key.masked_fill_(outside, torch.inf).argsort(dim=1)[:, :count]

    stream = torch.randint(2**62, (rows, int(length)), generator=generator, device=device) % population[:, None]
    value, order = stream.sort(dim=1, stable=True)
    new = torch.ones_like(value, dtype=torch.bool)
    new[:, 1:] = value[:, 1:] != value[:, :-1]
    return _kept(stream, torch.empty_like(new).scatter_(1, order, new), count)


def _kept(stream: Tensor, new: Tensor, count: int) -> Tensor:
    """The first values of each row of a stream that are new: (R, L) and (R, L) boolean give (R, count)."""
    # Each new value goes to its place; repetitions and the spare end go to one last column, which is cut off.
    place = torch.where(new, new.cumsum(dim=1) - 1, count).clamp_(max=count)
    return stream.new_zeros(len(stream), count + 1).scatter_(1, place, stream)[:, :count]
