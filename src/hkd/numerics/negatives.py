"""Which rows of a memory bank serve as negatives."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hkd.numerics.arguments import LARGEST, check_whole


class NegativeSampler(nn.Module):
    """Draws bank rows on the device, without replacement, at a cost that depends on K alone.

    Draw t of a sampler comes from a generator seeded with (seed, t), so it is the same in every process and after a
    resumed run, whatever the device did in between. Taking a draw does not count it: ``draws``, the number of the
    present one, is raised by the loss that has trained with it.

    Args:
        num_samples: N, rows of the bank.
        num_negatives: K, how many rows a draw holds; at most what the bank can give.
        labels: (N,) class of each row, integers from 0 up, and -1 for a row that is a class of its own; or None: then
            all rows but an anchor's are its negatives.
        seed: of the draws.

    Raises:
        ValueError: K is below 1; labels are not integers, not one for each row, or leave no negatives (a single class).
    """

    classes: Tensor | None
    _by_class: Tensor
    _class_start: Tensor
    _class_size: Tensor
    _first_place: Tensor

    def __init__(self, num_samples: int, num_negatives: int, labels: Tensor | None = None, seed: int = 0) -> None:
        super().__init__()
        check_whole("num_samples", num_samples, 0)
        check_whole("num_negatives", num_negatives, 1)
        check_whole("seed", seed, -LARGEST, 2**64)
        if num_samples < 2:
            raise ValueError(f"num_samples: expected 2 or more, so that there is a negative; got {num_samples}")
        self.num_samples = num_samples
        self.num_negatives = min(num_negatives, num_samples)
        self.seed = seed
        self.draws = 0
        # Classes follow from the data set, so they travel with the module between devices but not with its state.
        classes = None if labels is None else _classes(labels, num_samples)
        self.register_buffer("classes", classes, persistent=False)
        # Rows sorted by class: the rows that share a class with an anchor are then one run of positions to step over.
        every = torch.arange(num_samples) if classes is None else classes
        size = torch.bincount(every)
        self.register_buffer("_by_class", every.argsort(stable=True), persistent=False)
        self.register_buffer("_class_start", size.cumsum(0) - size, persistent=False)
        self.register_buffer("_class_size", size, persistent=False)
        # How many negatives an anchor may have: known to the host, so that no draw has to ask the device.
        populations = sorted(num_samples - n for n in torch.unique(size).tolist())
        if populations[0] < 1:
            raise ValueError("labels: all training images have the same class, so none is a negative of another")
        self._fewest = populations[0]
        self._plan = _Plan.of(populations, min(self.num_negatives, populations[-1]))
        if self.use_stream_sampling:
            self.register_buffer("_first_place", torch.zeros(num_samples, dtype=torch.int32), persistent=False)
        self._generator = torch.Generator()

    @property
    def use_stream_sampling(self) -> bool:
        """Whether a random order of the whole bank costs more than a small multiple of K."""
        return self.num_samples > 8 * self.num_negatives

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.draws)

    def set_extra_state(self, state: Tensor) -> None:
        self.draws = int(state)

    def class_of(self, rows: Tensor) -> Tensor:
        """What must differ between an anchor and its negatives: the class, or without labels the row itself."""
        return rows if self.classes is None else self.classes[rows]

    def shared(self) -> Tensor:
        """One draw for the whole batch: (K,) distinct rows, uniform over the bank, of any class."""
        generator, device = self._keyed_generator(), self._by_class.device
        if not self.use_stream_sampling:
            return torch.randperm(self.num_samples, generator=generator, device=device)[: self.num_negatives]
        length = int(_stream_length(self.num_samples, self.num_negatives))
        stream = torch.randint(self.num_samples, (length,), generator=generator, device=device)
        place = torch.arange(length, dtype=torch.int32, device=device)
        # The place of each row's first occurrence in the stream; what earlier draws left is written over.
        first = self._first_place.index_fill_(0, stream, length).scatter_reduce_(0, stream, place, "amin")
        return _first_occurrences(stream[None], (first[stream] == place)[None], self.num_negatives)[0]

    def per_sample(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """A draw for each anchor: distinct rows of other classes than row ``index[b]``.

        An anchor with n negatives gets min(K, n) of them.

        Returns:
            rows: (B, K') with K' the smaller of K and the most negatives that an image of the bank has.
            surplus: (B, K') boolean, True at the ends of rows that are longer than n, whose values mean nothing; None
                where every image of the bank has K negatives.
        """
        anchor_class = self.class_of(index)
        start, size = self._class_start[anchor_class], self._class_size[anchor_class]
        population = self.num_samples - size
        position = _draw_distinct(population, self._plan, self._keyed_generator())
        surplus = None
        if self._plan.k > self._fewest:
            surplus = torch.arange(self._plan.k, device=position.device) >= population[:, None]
            position = position.masked_fill(surplus, 0)
        position = torch.where(position < start[:, None], position, position + size[:, None])
        return self._by_class[position], surplus

    def _keyed_generator(self) -> torch.Generator:
        """The generator of the present draw. Being keyed by a count, it needs no saved state of any one device."""
        if self._generator.device != self._by_class.device:
            self._generator = torch.Generator(self._by_class.device)
        key = random.Random(f"negatives {self.seed} {self.draws}").getrandbits(63)
        return self._generator.manual_seed(key)


def _classes(labels: Tensor, num_samples: int) -> Tensor:
    """Labels as classes 0, 1, ... without gaps, (N,) int64: their numbers may be anything from 0 up, or -1."""
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"labels: expected integers; got {type(labels).__name__}") from error
    if labels.shape != (num_samples,):
        raise ValueError(
            f"labels: expected one label for each of the {num_samples} training images, "
            f"shape ({num_samples},); got shape {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels: expected integers; got {labels.dtype}")
    if labels.min() < -1:
        raise ValueError(f"labels: expected classes from 0 up, or -1 for none; got {int(labels.min())}")
    own = labels.max() + 1 + torch.arange(num_samples, device=labels.device)
    labels = torch.where(labels < 0, own, labels)
    classes: Tensor = torch.unique(labels, return_inverse=True)[1]
    return classes


def _stream_length(population: int, count: int) -> float:
    """How many independent integers below a population hold so many distinct ones, but for one time in 1e20.

    Keeping c distinct values of n takes n ln(n / (n - c)) integers on average, and ten standard deviations more are
    taken. Infinite where all are wanted.
    """
    expected = population * math.log(population / (population - count)) if count < population else math.inf
    return expected + 10 * math.sqrt(max(expected - count, 0.0)) + 32


class _Plan(NamedTuple):
    """How to draw k values without replacement from populations of several sizes.

    An endless stream of independent integers, of which each new value is kept, is a uniform draw without replacement.
    Where the stream would be longer than the population (more than 63 % of it is wanted), a random order of the
    population costs less.
    """

    k: int
    largest_ordered: int
    """The largest size for which a random order costs less; 0 if there is none."""
    smallest_streamed: int
    """The smallest size for which a stream costs less; 0 if there is none."""

    @classmethod
    def of(cls, sizes: list[int], count: int) -> _Plan:
        """The plan for populations of these sizes, rising: from some size on a stream costs less."""
        ordered = [size for size in sizes if _stream_length(size, count) > size]
        streamed = sizes[len(ordered) :]
        return cls(count, ordered[-1] if ordered else 0, streamed[0] if streamed else 0)


def _draw_distinct(population: Tensor, plan: _Plan, generator: torch.Generator) -> Tensor:
    """Draws without replacement, for several populations at once and without looking at a value.

    Where some are drawn by order and some by stream, both are done for all, so that the cost depends on the count
    alone.

    Args:
        population: (R,) sizes to draw below.
        plan: for these sizes.

    Returns:
        (R, count) int64: row r begins with min(count, population[r]) distinct integers in [0, population[r]).
    """
    count, largest_ordered, smallest_streamed = plan
    if not smallest_streamed:
        return _cut_orders(population, largest_ordered, count, generator)
    if not largest_ordered:
        return _cut_streams(population, smallest_streamed, count, generator)
    ordered = _cut_orders(population, largest_ordered, count, generator)
    streamed = _cut_streams(population.clamp(min=smallest_streamed), smallest_streamed, count, generator)
    return torch.where(population[:, None] <= largest_ordered, ordered, streamed)


def _cut_orders(population: Tensor, largest: int, count: int, generator: torch.Generator) -> Tensor:
    """The begin of a random order of each population that is at most ``largest``: (R, count)."""
    width, device = max(largest, count), population.device
    key = torch.rand(len(population), width, generator=generator, device=device)
    outside = torch.arange(width, device=device) >= population[:, None]
    return key.masked_fill_(outside, torch.inf).argsort(dim=1)[:, :count]


def _cut_streams(population: Tensor, smallest: int, count: int, generator: torch.Generator) -> Tensor:
    """The first new values of a stream of integers below each population of at least ``smallest``: (R, count)."""
    shape = len(population), int(_stream_length(smallest, count))
    stream = torch.randint(2**62, shape, generator=generator, device=population.device) % population[:, None]
    value, order = stream.sort(dim=1, stable=True)
    new = torch.ones_like(value, dtype=torch.bool)
    new[:, 1:] = value[:, 1:] != value[:, :-1]
    return _first_occurrences(stream, torch.empty_like(new).scatter_(1, order, new), count)


def _first_occurrences(stream: Tensor, new: Tensor, count: int) -> Tensor:
    """The first values of each row of a stream that are new: (R, L) and (R, L) boolean give (R, count)."""
    # Each new value goes to its place; repetitions and the spare end go to one last column, which is cut off.
    place = torch.where(new, new.cumsum(dim=1) - 1, count).clamp_(max=count)
    return stream.new_zeros(len(stream), count + 1).scatter_(1, place, stream)[:, :count]
