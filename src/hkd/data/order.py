"""Which images an epoch of training shows, and in which order."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from hkd.data.balance import balanced_order
from hkd.data.randomness import epoch_generator


class EpochOrder:
    """The images of every epoch of training, as positions in the data set. The same number gives the same epoch.

    An epoch shows every image once in random order. Balanced, it shows every class equally often, see
    :func:`hkd.data.balance.balanced_order`.

    With a share s of unlabelled images, an epoch shows every labelled one, and round(s B) images of each batch of B
    have no label, at least one and at most B - 1; the last batch holds both in that proportion. Unlabelled images are
    taken in turn, from one epoch to the next: in random order, and in another one when all have been shown.

    Args:
        labels: (N,) classes, -1 for none.
        seed: of the order.
        batch_size: B.
        balance: whether every class is shown equally often.
        unlabelled_share: s in (0, 1); None shows unlabelled images once in an epoch, like the others.

    Attributes:
        count: images in an epoch.
        repeats: whether an epoch may show an image more than once.
    """

    def __init__(
        self,
        labels: Tensor,
        seed: int,
        batch_size: int,
        *,
        balance: bool = False,
        unlabelled_share: float | None = None,
    ) -> None:
        self.labels = labels
        self.seed = seed
        self.balance = balance
        self._labelled, self._unlabelled = ((labels >= 0).nonzero().flatten(), (labels < 0).nonzero().flatten())
        mixes = unlabelled_share is not None and batch_size > 1 and len(self._labelled) > 0 < len(self._unlabelled)
        self.repeats = balance or mixes
        self._sizes: tuple[list[int], list[int]] | None = None
        self.count = len(labels)
        if mixes and unlabelled_share is not None:
            self._sizes = _sizes(len(self._labelled), batch_size, unlabelled_share)
            self.count = sum(map(sum, self._sizes))

    def __call__(self, epoch: int) -> Tensor:
        """(count,) positions of epoch number ``epoch``, from 0, on the CPU."""
        generator = epoch_generator(self.seed, epoch)
        if self._sizes is None:
            return self._shuffled(torch.arange(len(self.labels)), generator)
        known = torch.split(self._shuffled(self._labelled, generator), self._sizes[0])
        others = torch.split(self._in_turn(epoch, sum(self._sizes[1])), self._sizes[1])
        batches = [torch.cat(pair) for pair in zip(known, others, strict=True)]
        # within a batch they are mixed, so that processes that share it have both
        return torch.cat([batch[torch.randperm(len(batch), generator=generator)] for batch in batches])

    def _shuffled(self, positions: Tensor, generator: torch.Generator) -> Tensor:
        if self.balance:
            return positions[balanced_order(self.labels[positions], generator)]
        return positions[torch.randperm(len(positions), generator=generator)]

    def _in_turn(self, epoch: int, count: int) -> Tensor:
        """The part of an endless row of shuffled unlabelled images that belongs to an epoch, ``count`` positions."""
        of_all = len(self._unlabelled)
        first, end = epoch * count, (epoch + 1) * count
        rounds = range(first // of_all, -(-end // of_all))
        row = torch.cat([self._unlabelled[torch.randperm(of_all, generator=self._of_round(n))] for n in rounds])
        return row[first - rounds.start * of_all :][:count]

    def _of_round(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(random.Random(f"unlabelled {self.seed} {number}").getrandbits(63))


def _sizes(labelled: int, batch_size: int, share: float) -> tuple[list[int], list[int]]:
    """How many labelled and how many unlabelled images each batch of an epoch has."""
    others = min(batch_size - 1, max(1, round(share * batch_size)))
    whole, rest = divmod(labelled, batch_size - others)
    known, without = [batch_size - others] * whole, [others] * whole
    if rest:
        known.append(rest)
        without.append(round(rest * others / (batch_size - others)))
    return known, without
