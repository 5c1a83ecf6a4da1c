"""The images of a run: what it trains on and what it is evaluated on."""

from __future__ import annotations

import copy
import hashlib
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hkd.data.base import STREAM_SIZE, ArrayDataset, Dataset, NoEvaluationSplitError
from hkd.data.convert import as_dataset
from hkd.data.files import warn
from hkd.data.load import load_dataset, prepare
from hkd.data.normalisation import measure
from hkd.data.spec import REVISION, STREAM_REVISION, DataSpec
from hkd.data.subsets import hold_out, limit
from hkd.data.unlabelled import labelled, with_unlabelled
from hkd.errors import RequestError
from hkd.options import check_fields
from hkd.outside import printable
from hkd.types import Channels

PUBLISHED, MEASURED, GIVEN, OF_NETWORK = (
    "the data set's", "the training images' own", "the given", "the trained network's",
)  # fmt: skip
"""Where a mean or a standard deviation comes from, as :meth:`Data.describe` says it."""

USUAL_HOLDOUT = 0.2
"""Fraction of the training images that is held out where there is no evaluation split and no other is asked for."""


@dataclass(frozen=True)
class Data:
    """The images of a run.

    Attributes:
        name: of the data set, as ``DataSpec.dataset`` or the class of a data set object.
        train: what it trains on.
        test: what it is evaluated on, in the same classes and normalisation.
        holdout: the fraction of the training split that ``test`` is; 0 for a split of its own.
        dropped: what was left out of the images that were found, in words.
        sources: where mean and standard deviation come from.
    """

    name: str
    train: Dataset
    test: Dataset
    holdout: float = 0.0
    sources: tuple[str, str] = (PUBLISHED, PUBLISHED)
    dropped: tuple[str, ...] = ()

    @property
    def image_size(self) -> int:
        """Side in pixels of what the network sees."""
        return self.train.info.image_size or STREAM_SIZE

    @property
    def mean(self) -> Channels:
        """Of the channels, as the loaders use it on images in [0, 1]."""
        return self.train.info.normalisation[0]

    @property
    def std(self) -> Channels:
        """Standard deviation of the channels, as the loaders use it on images in [0, 1]."""
        return self.train.info.normalisation[1]

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that say which images, labels and classes these are, wherever they are stored."""
        parts = (self.train.fingerprint, self.test.fingerprint, *self.train.info.classes)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    @property
    def revision(self) -> int:
        """Of the loader of the training images."""
        return REVISION if isinstance(self.train, ArrayDataset) else STREAM_REVISION

    def normalised(self, mean: Channels, std: Channels, sources: tuple[str, str] = (OF_NETWORK, OF_NETWORK)) -> Data:
        """The same images in another normalisation, such as the one that a trained network expects.

        The data sets are copied without their images; these keep their normalisation.
        """
        train, test = copy.copy(self.train), copy.copy(self.test)
        for part in (train, test):
            part.info = replace(part.info, mean=mean, std=std)
        return replace(self, train=train, test=test, sources=sources)

    @property
    def labelled(self) -> Data:
        """The same data without the training images that have no label."""
        return replace(self, train=labelled(self.train))

    def describe(self) -> str:
        """How many images of which size, and their normalisation, in two lines for the start of a run."""
        side = f"{self.image_size}x{self.image_size}"
        if not isinstance(self.train, ArrayDataset):
            varying = self.train.info.image_size is None
            side = f"images of varying size, shown at {side}" if varying else f"shown at {side}"
        evaluation = "held-out" if self.holdout else "test"
        unlabelled = int((self.train.labels < 0).sum())
        training = f"training images, {unlabelled:,} of them without a label," if unlabelled else "training"
        mean, std = (" ".join(f"{value:.3f}" for value in channels) for channels in (self.mean, self.std))
        ours, theirs = self.sources
        of_std = f"std {std}" if ours == theirs else f"{theirs} std {std}"
        return (
            f"{self.name}: {len(self.train):,} {training} and {len(self.test):,} {evaluation} images, "
            f"{self.train.info.num_classes} classes, {side}\n"
            f"normalised by {ours} mean {mean} and {of_std}"
        )


def open_data(
    spec: DataSpec,
    train: Any = None,
    test: Any = None,
    *,
    unlabelled: str | None = None,
    workers: int | None = None,
    cache: Path | None = None,
) -> Data:
    """The images that a specification describes, for one run or several.

    They are limited to what it asks for and decoded if small. The training images decide the size of all. With
    ``spec.holdout`` the evaluation is on a part of the training split, chosen before ``limit_train`` and
    ``train_fraction`` reduce the rest, and the test split is not opened. Where a data set has no evaluation split, a
    fifth is held out so, and a warning says it.

    The normalisation is ``spec.mean`` and ``spec.std``, else the published one of the data set, else that of the
    training images, see :func:`hkd.data.normalisation.measure`.

    Args:
        spec: see :class:`DataSpec`.
        train, test: data set objects (see :func:`as_dataset`) instead of the data set that the specification names;
            they stay as they are. With a holdout, ``test`` is not looked at and may be None.
        unlabelled: images that join the training images, see :func:`hkd.data.unlabelled.with_unlabelled`.
        workers: threads that decode; None for one for each CPU, at most 8.
        cache: folder where small data sets are kept decoded; see :func:`hkd.data.decode.in_memory`.

    Raises:
        RequestError: a field is out of its range, or the data is missing, corrupt, or too small.
    """
    check_fields(spec)
    name, whole, test = _splits(spec, train, test)
    first_row = len(whole)
    whole = limit(whole, spec.limit_classes, None)
    if test is None:
        holdout = spec.holdout or USUAL_HOLDOUT
        whole, test = hold_out(whole, holdout, spec.holdout_seed)
    else:
        holdout, test = 0.0, limit(test, spec.limit_classes, None)
    threads = worker_count(workers)
    chosen = limit(whole, None, spec.limit_train, spec.train_fraction)
    if not (test.labels >= 0).any():
        raise RequestError(f"dataset: expected labels of the evaluation images of {name}; got none")
    tested = labelled(test)
    train, evaluation = (prepare(part, cache, threads, spec.bad_images) for part in (chosen, tested))
    dropped = {
        "training images beyond the limits": len(whole) - len(chosen),
        "unreadable training images": len(chosen) - len(train),
        "evaluation images without a label": len(test) - len(tested),
        "unreadable evaluation images": len(tested) - len(evaluation),
    }
    words = tuple(f"{count:,} {name}" for name, count in dropped.items() if count)
    if unlabelled is not None:
        train = with_unlabelled(
            train, unlabelled, first_row, root=spec.data_root, cache=cache, workers=threads, bad_images=spec.bad_images
        )
    data = Data(name, train, evaluation, holdout, dropped=words)
    return _normalised(data, spec, threads)


def _splits(spec: DataSpec, train: Any, test: Any) -> tuple[str, Dataset, Dataset | None]:
    """The name of the data set, its training split, and its test split; None where a part is to be held out."""
    if train is None and test is not None:
        raise RequestError("train_data: expected a data set beside test_data; got None")
    if train is None:
        name, whole = spec.dataset, load_dataset(spec.dataset, "train", spec.data_root, spec.image_size)
    else:
        whole = as_dataset(train, spec.image_size)
        name = whole.info.name
    if spec.holdout > 0:
        return name, whole, None
    size = whole.info.image_size or STREAM_SIZE
    if train is None:
        try:
            evaluation = load_dataset(name, "test", spec.data_root, size)
        except NoEvaluationSplitError:
            warn(
                f"{printable(name, 4096)} has no evaluation split; --holdout {USUAL_HOLDOUT} of its images is made one"
            )
            return name, whole, None
    elif test is None:
        raise RequestError("test_data: expected a data set, or a holdout of the training images; got None")
    else:
        evaluation = as_dataset(test, size)
    ours, theirs = whole.info.classes, evaluation.info.classes
    if ours != theirs:
        differing = sorted(set(ours) ^ set(theirs))
        detail = f"{differing[0]!r} is in one of them" if differing else "they are in another order"
        raise RequestError(f"dataset: the classes of the training and the test split of {name} differ: {detail}")
    return name, whole, evaluation


def _normalised(data: Data, spec: DataSpec, workers: int) -> Data:
    """The same data in the normalisation that is given, published, or else measured."""
    info = data.train.info
    mean, std = spec.mean or info.mean, spec.std or info.std
    of_mean, of_std = (GIVEN if given else PUBLISHED for given in (spec.mean, spec.std))
    if mean is None or std is None:
        measured_mean, measured_std = measure(data.labelled.train, data.image_size, workers, spec.bad_images)
        mean, of_mean = (measured_mean, MEASURED) if mean is None else (mean, of_mean)
        std, of_std = (measured_std, MEASURED) if std is None else (std, of_std)
    return data.normalised(mean, std, (of_mean, of_std))


def worker_count(workers: int | None) -> int:
    """How many threads or processes decode: one for each CPU, at most 8, unless a number is given."""
    return min(8, os.cpu_count() or 1) if workers is None else workers
