"""The data sets, and the two ways in which they reach the device.

Names are imported when they are first used, so that :mod:`hkd.data.spec` needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hkd.data.base import STREAM_SIZE as STREAM_SIZE
    from hkd.data.base import ArrayDataset as ArrayDataset
    from hkd.data.base import Dataset as Dataset
    from hkd.data.base import DatasetInfo as DatasetInfo
    from hkd.data.base import FileDataset as FileDataset
    from hkd.data.base import check_split as check_split
    from hkd.data.base import datasets as datasets
    from hkd.data.convert import as_dataset as as_dataset
    from hkd.data.load import list_datasets as list_datasets
    from hkd.data.load import load_dataset as load_dataset
    from hkd.data.load import make_loader as make_loader
    from hkd.data.load import prepare as prepare
    from hkd.data.loader import Loader as Loader
    from hkd.data.memory_loader import MemoryLoader as MemoryLoader
    from hkd.data.open import Data as Data
    from hkd.data.open import open_data as open_data
    from hkd.data.spec import DataSpec as DataSpec
    from hkd.data.stream_loader import StreamLoader as StreamLoader
    from hkd.data.subsets import hold_out as hold_out
    from hkd.data.subsets import limit as limit

_HOME = {
    "hkd.data.base": (
        "STREAM_SIZE", "ArrayDataset", "Dataset", "DatasetInfo", "FileDataset", "check_split", "datasets",
    ),
    "hkd.data.convert": ("as_dataset",),
    "hkd.data.load": ("list_datasets", "load_dataset", "make_loader", "prepare"),
    "hkd.data.loader": ("Loader",),
    "hkd.data.memory_loader": ("MemoryLoader",),
    "hkd.data.open": ("Data", "open_data"),
    "hkd.data.spec": ("DataSpec",),
    "hkd.data.stream_loader": ("StreamLoader",),
    "hkd.data.subsets": ("hold_out", "limit"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'hkd.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_MODULE_OF]
