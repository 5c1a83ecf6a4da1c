"""Where a run computes and what it leaves there; nothing of it but the precision decides what is learnt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hkd.options import option

Logger = Literal["tensorboard", "wandb", "mlflow", "trackio", "none"]
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class RuntimeSpec:
    """The machine's side of a run, and its seed, by which trials of one experiment differ."""

    run: str = option("runs/run", "the run folder", key=False, writes="folder")
    seed: int = option(
        0, "the random seed: of initial weights, order, augmentation and draws", ge=0, lt=2**32, key=False
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps", key=False)
    precision: Precision = option("fp32", "arithmetic of the networks; fp16 needs a GPU")
    compile: bool = option(False, "compile the networks with torch.compile", key=False)
    threads: int | None = option(None, "CPU threads of a process [torch's choice]", ge=1, le=4096, key=False)
    workers: int | None = option(
        None, "processes or threads that decode images [one a core, at most 8]", ge=0, le=1024, key=False
    )
    image_cache: str | None = option(
        None, "folder where decoded images are kept [cache, beside the run folder]", key=False, writes="folder"
    )
    image_cache_gb: float = option(
        20.0,
        "the most that shrunken photographs may take there, which later epochs read; 0 keeps none",
        ge=0,
        key=False,
    )
    teacher_cache: str = option(
        "off",
        "keep the teacher's outputs of every view: off, auto (beside the run folder) or a folder",
        key=False,
        writes="folder",
    )
    teacher_cache_gb: float = option(20.0, "the most that a teacher's table may take on disk", gt=0, key=False)
    teacher_cache_dtype: Literal["float16", "float32"] = option("float16", "of what is stored there", key=False)
    logger: Logger = option(
        "tensorboard",
        "where the curves go: TensorBoard's in the run folder (hkd[tensorboard]); others need hkd[loggers]",
        key=False,
    )
    tensorboard: bool = option(True, "off is --logger none, where that names no other", key=False)
    evaluate: Literal["every", "last"] = option(
        "every", "evaluate after every epoch, or once after the last", key=False
    )
    save_minutes: float = option(
        10.0, "save within an epoch, too, when this many minutes have passed since the last save", gt=0, key=False
    )
    keep_checkpoints: bool = option(
        False, "keep the optimiser and the memory banks of a finished run (last.pt)", key=False
    )
    skip_bad_steps: int = option(
        0, "skip up to N steps whose loss is NaN or infinite, instead of stopping at the first", ge=0, key=False
    )

    @property
    def curves(self) -> Logger:
        """The logger that is written to."""
        return "none" if self.logger == "tensorboard" and not self.tensorboard else self.logger

    @property
    def image_folder(self) -> Path:
        """Where decoded images are kept."""
        return Path(self.image_cache) if self.image_cache else Path(self.run).parent / "cache"
