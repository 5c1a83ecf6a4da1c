"""The images of a run: which data set, which of its images, in which normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hkd.options import option, recorded

REVISION = 1
"""Of the loader of images in memory: raised whenever a network is shown other images under the same specification."""
STREAM_REVISION = 2
"""The same of the loader of images in files; 2 crops photographs after they were shrunken."""

Channels = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The images of a run. See :func:`hkd.data.open_data`."""

    dataset: str = option(
        "digits", "digits, cifar100, stl10, tiny-imagenet, imagenet, folder:PATH or csv:FILE", key=False
    )
    data_root: str = option("data", "where data sets are stored and downloaded to", key=False)
    image_size: int | None = option(None, "resize images to squares of this side in pixels", ge=2, le=4096)
    limit_classes: int | None = option(None, "use the first N classes only", ge=2, key=False)
    limit_train: int | None = option(None, "use the first N training images of each class", ge=1, key=False)
    train_fraction: float = option(
        1.0, "use this fraction of the training images, the first of each class", gt=0, le=1, key=False
    )
    holdout: float = option(
        0.0, "evaluate on this fraction of the training images; the test split is not opened", ge=0, lt=1, neutral=0.0
    )
    holdout_seed: int = option(0, "of which images are held out, the same for all runs", ge=0, lt=2**32, neutral=0)
    mean: Channels | None = option(
        None, "channel means R,G,B of images in [0, 1] [the data set's, else measured]", ge=0, le=1, neutral=None
    )
    std: Channels | None = option(
        None, "channel standard deviations R,G,B [the data set's, else measured]", gt=0, le=1, neutral=None
    )
    augment: Literal["crop", "resized-crop", "trivial", "randaugment"] | None = option(
        None,
        "how training images are changed; trivial and randaugment draw operations for the cropped image [crop; "
        "streamed images: resized-crop]",
        neutral=None,
    )
    min_crop: float | None = option(
        None, "the smallest part of an image's area in a random resized crop; implies --augment resized-crop [0.08]",
        gt=0, le=1, neutral=None,
    )  # fmt: skip
    mixup: float = option(
        0.0, "mix training images with others of their batch; the α of mixup, such as 0.2", ge=0, le=100, neutral=0.0
    )
    cutmix: float = option(
        0.0, "put boxes of others into training images; the α of cutmix, such as 1", ge=0, le=100, neutral=0.0
    )
    views: int | None = option(
        None,
        "views that an image has, except crops of images in memory [one for each epoch]",
        ge=1,
        le=1_000_000,
        neutral=None,
    )
    flip: bool = option(True, "flip training images at random, where the data set allows it (digits do not)")
    balance: Literal["none", "sampler", "loss"] = option(
        "none", "show classes equally often (sampler), or weigh their cross-entropy (loss)", neutral="none"
    )
    bad_images: Literal["stop", "skip"] = option("stop", "an unreadable image stops the run, or is skipped", key=False)

    digest: str = recorded("", "data_digest")
    """Of the training and evaluation images, see :attr:`hkd.data.Data.digest`: the key has this instead of the name."""
    revision: int = recorded(REVISION, "data_revision")
    """Of the loader of the run; 0 for version 0.1. Resolved with the digest."""
