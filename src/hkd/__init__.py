"""Distil a large image classifier into a small one.

    import hkd

    loss = hkd.HolisticLoss(student_dim=256, teacher_dim=256, num_samples=50_000, labels=labels)
    result = hkd.distill(hkd.DistillConfig(dataset="folder:photos", run="runs/first"))

Names are imported when they are first used, so that ``import hkd`` and the command's help are instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from hkd import holistic as holistic
    from hkd.api import Result as Result
    from hkd.api import distill as distill
    from hkd.api import evaluate as evaluate
    from hkd.api import train as train
    from hkd.config import CompareConfig as CompareConfig
    from hkd.config import DistillConfig as DistillConfig
    from hkd.config import EvaluateConfig as EvaluateConfig
    from hkd.config import ExportConfig as ExportConfig
    from hkd.config import PredictConfig as PredictConfig
    from hkd.config import ReportConfig as ReportConfig
    from hkd.config import SweepConfig as SweepConfig
    from hkd.config import TopologyConfig as TopologyConfig
    from hkd.config import TrainConfig as TrainConfig
    from hkd.config import TransferConfig as TransferConfig
    from hkd.data import as_dataset as as_dataset
    from hkd.data import list_datasets as list_datasets
    from hkd.data import load_dataset as load_dataset
    from hkd.deploy import export as export
    from hkd.deploy.hub import push_to_hub as push_to_hub
    from hkd.distiller import Distiller as Distiller
    from hkd.distiller import DistillerOutput as DistillerOutput
    from hkd.errors import RequestError as RequestError
    from hkd.errors import TrainingError as TrainingError
    from hkd.holistic import HolisticLoss as HolisticLoss
    from hkd.methods import create_method as create_method
    from hkd.methods import list_methods as list_methods
    from hkd.models import create_model as create_model
    from hkd.models import list_models as list_models
    from hkd.models import load_checkpoint as load_checkpoint
    from hkd.models import save_model as save_model
    from hkd.models import wrap_model as wrap_model
    from hkd.prediction import predict as predict
    from hkd.report.page import write_report as write_report
    from hkd.report.topology import topology as topology
    from hkd.report.transfer import transfer as transfer
    from hkd.spec import RunSpec as RunSpec
    from hkd.studies.compare import compare as compare
    from hkd.studies.sweep import sweep as sweep
    from hkd.trained import load_model as load_model
    from hkd.types import Batch as Batch
    from hkd.types import ModelOutput as ModelOutput

_NAMES = {
    "hkd.api": ("Result", "distill", "evaluate", "train"),
    "hkd.config": (
        "CompareConfig",
        "DistillConfig",
        "EvaluateConfig",
        "ExportConfig",
        "PredictConfig",
        "ReportConfig",
        "SweepConfig",
        "TopologyConfig",
        "TrainConfig",
        "TransferConfig",
    ),
    "hkd.data": ("as_dataset", "list_datasets", "load_dataset"),
    "hkd.distiller": ("Distiller", "DistillerOutput"),
    "hkd.errors": ("RequestError", "TrainingError"),
    "hkd.deploy": ("export",),
    "hkd.deploy.hub": ("push_to_hub",),
    "hkd.holistic": ("HolisticLoss",),
    "hkd.methods": ("create_method", "list_methods"),
    "hkd.models": ("create_model", "list_models", "load_checkpoint", "save_model", "wrap_model"),
    "hkd.prediction": ("predict",),
    "hkd.report.page": ("write_report",),
    "hkd.report.topology": ("topology",),
    "hkd.report.transfer": ("transfer",),
    "hkd.spec": ("RunSpec",),
    "hkd.studies.compare": ("compare",),
    "hkd.studies.sweep": ("sweep",),
    "hkd.trained": ("load_model",),
    "hkd.types": ("Batch", "ModelOutput"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
        globals()[name] = value  # also where a submodule of the same name has been imported
        return value
    if name == "__version__":
        return _installed_version()
    if name in ("data", "holistic", "methods", "models"):
        return importlib.import_module(f"hkd.{name}")
    raise AttributeError(f"module 'hkd' has no attribute {name!r}")


def _installed_version() -> str:
    """The version of the installed package; "unknown" for sources that were not installed."""
    from importlib import metadata  # takes longer than the rest of this file

    try:
        return metadata.version("hkd")
    except metadata.PackageNotFoundError:
        return "unknown"


def __dir__() -> list[str]:
    return [*globals(), "__version__", *_MODULE_OF]
