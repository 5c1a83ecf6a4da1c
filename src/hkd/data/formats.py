"""Which files are images: those of every installation, those that a further package reads, and those that are left out.

What is decoded is a list, because some of Pillow's other readers start programs.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterable
from functools import cache

from PIL import features

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF")
"""All that is decoded in every installation, whatever a file is called."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"})
"""Of files in these formats."""

HEIF, AVIF = frozenset({".heic", ".heif", ".hif"}), frozenset({".avif"})
"""Photographs of telephones; ``hkd[heif]`` installs what reads them."""
NOT_READ = frozenset({".gif", ".svg", ".psd", ".jp2", ".jxl", ".tga", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf"})
"""Pictures that are left out: animations, drawings and unprocessed sensor data are not one picture, and readers of the
others are few and little tried on files from anywhere."""


@cache
def readable_suffixes() -> frozenset[str]:
    """Of the files that this installation reads."""
    return SUFFIXES | (HEIF if _has_heif() else frozenset()) | (AVIF if _has_avif() else frozenset())


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats that this installation decodes, by Pillow's names. Registers the reader of HEIC where it is there."""
    further = ["AVIF"] if _has_avif() else []
    if _has_heif():
        import pillow_heif

        pillow_heif.register_heif_opener()
        further.append("HEIF")
    return (*FORMATS, *further)


def _has_heif() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None


def _has_avif() -> bool:
    return "avif" in features.modules and features.check_module("avif")  # Pillow 11.3 and later, as it was built


def not_read(names: Iterable[str]) -> list[str]:
    """Of some files those that are pictures and are not read."""
    unread = (HEIF | AVIF | NOT_READ) - readable_suffixes()
    return [name for name in names if os.path.splitext(name)[1].lower() in unread]


def described(names: Iterable[str]) -> str:
    """How many of some files are pictures of each kind that is not read, and what to do about them; may be nothing."""
    suffixes = Counter(os.path.splitext(name)[1].lower() for name in not_read(names))
    return ", ".join(f"{count:,} {suffix} ({way_to_read(suffix)})" for suffix, count in sorted(suffixes.items()))


def way_to_read(suffix: str) -> str:
    """What a person can do about files that are not read, by their suffix; nothing for what is no picture."""
    if suffix in HEIF | AVIF:
        return "pip install 'hkd[heif]' reads them"
    return "save them as PNG or JPEG" if suffix in NOT_READ else ""
