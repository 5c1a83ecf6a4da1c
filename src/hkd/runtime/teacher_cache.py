"""Between the frozen teacher and the loop: outputs from a table where they are known, from the teacher where not."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hkd.data.base import ArrayDataset, FileDataset
from hkd.data.image_copy import RULE, SHRUNKEN
from hkd.data.loader import Loader
from hkd.distiller import Distiller
from hkd.errors import RequestError, TrainingError
from hkd.files import inside, read_json, shown_path
from hkd.models.base import Model
from hkd.models.weights import weights_digest
from hkd.options import shown
from hkd.runtime.engine import Engine
from hkd.runtime.records import TABLE, checked
from hkd.runtime.teacher_table import StorageType, TableKey, TeacherTable, file_digests, image_digests
from hkd.slots import FILES, HEADER, MARKS, ROWS
from hkd.types import Batch, ModelOutput

CHECKED = 256
"""Stored rows that are computed again at each opening."""
TOLERANCE = {"float32": 1e-4, "float16": 4e-3}
"""Of that check, to the largest number compared: rounding of storage, and what another kernel may round otherwise."""
TOLERANCE_OF_HALF = 5e-2
"""The same where the teacher computes in half precision."""


@dataclass(frozen=True)
class CacheRequest:
    """What a run asks for.

    Attributes:
        folder: of the tables.
        gigabytes: the most that a table may take.
        dtype: of what is stored.
        precision: of the run.
    """

    folder: Path
    gigabytes: float = 20.0
    dtype: StorageType = "float16"
    precision: str = "fp32"


def cacheable(distiller: Distiller) -> str:
    """Why a table cannot stand for the teacher: an empty string where it can."""
    method = distiller.method
    if method is None or not distiller.weights.method:
        return ""
    if "strong" in method.needs:
        return "the method shows the teacher a strong view of each image, which is another one in every epoch"
    other = sorted(method.needs - {"logits", "embedding", "classifier"})
    return f"the method reads the teacher's {' and '.join(other)}" if other else ""


def table_key(teacher: Model, loader: Loader, request: CacheRequest, image_size: int) -> TableKey:
    """What a teacher says of a loader's views depends on this alone. The teacher's norms must not be folded yet."""
    info = teacher.info_at(image_size)
    dataset = loader.dataset
    in_memory = isinstance(dataset, ArrayDataset)
    mean, std = dataset.info.normalisation
    return TableKey(
        teacher=weights_digest(teacher),
        classes=info.num_classes,
        width=info.embedding_dim,
        side=image_size,
        padding=loader.padding,
        augmentation=loader.augmentation,
        views=loader.view_count,
        decode="memory" if in_memory else f"shrunken {SHRUNKEN}x, rule {RULE}",
        mean=mean,
        std=std,
        teacher_size=teacher.input_size or image_size,
        precision=request.precision,
        folded=True,
        dtype=request.dtype,
    )


class TeacherCache:
    """Gives a teacher's logits and embedding of a batch; the loop cannot tell where they come from.

    A batch of which everything is known is read from the table; one with any unknown row runs through the teacher as a
    whole, so that a run with a table sees the batch shapes of a run without, and what was unknown is written. When all
    views that the training can show are known, the teacher is not needed any more: :attr:`is_complete`.

    Args:
        key: of the table, see :func:`table_key`.
        teacher: frozen, in evaluation mode, on the device.
        loader: of the training.
        engine: where to compute.
        request: where the table is.

    Raises:
        RequestError: the folder holds something else, or its numbers are not this teacher's.
    """

    def __init__(self, key: TableKey, teacher: Model, loader: Loader, engine: Engine, request: CacheRequest) -> None:
        self.teacher: Model | None = teacher
        self.loader, self.engine, self.key = loader, engine, key
        dataset = loader.dataset
        if isinstance(dataset, ArrayDataset):
            images = image_digests(dataset.images)
        else:
            assert isinstance(dataset, FileDataset)
            images = file_digests(dataset.names, [dataset.files.size(name) for name in dataset.names])
        self.table = TeacherTable(request.folder, key, images, dataset.positions)
        self.hits = self.misses = 0
        self._writes = True
        self._on_device: Tensor | None = None
        used = loader.used_views().numpy()
        marked = self.table.marked(used)
        if marked.all():  # the teacher will be let go of, so each row has to be of these images as they are now
            marked = self.table.known(used)
        self.known, self.possible = int(marked.sum()), marked.size
        self.checked, self.difference = self._check(marked, used)
        self.table.used()

    @property
    def is_complete(self) -> bool:
        """Whether every view that the training can show was known when the table was opened."""
        return self.known == self.possible

    def __call__(self, batch: Batch) -> ModelOutput:
        """The teacher's output for a batch, without stage maps."""
        if self._on_device is not None and batch.view is not None:
            self.hits += len(batch.index)
            return self._split(self._on_device[batch.index * self.key.views + batch.view])
        assert batch.place is not None
        numbers, known = self.table.read(*batch.place)
        if known.all():
            self.hits += len(known)
            return self._split(self._moved(numbers))
        if self.teacher is None:
            raise self._corrupt()
        self.misses += len(known)
        with torch.no_grad():
            out = self.teacher(batch.image)
        numbers = self._numbers(out)
        self._store(batch.place, numbers, ~known)
        if not np.isfinite(numbers).all():  # too large for float16
            return ModelOutput(out.logits, out.embedding)
        return self._split(self._moved(numbers))  # as a later run will read it, whoever comes first

    def _corrupt(self) -> TrainingError:
        return TrainingError(
            f"teacher_cache: a row of {shown_path(self.table.path)} is corrupt; delete the folder to fill it again"
        )

    def _store(
        self, place: tuple[Tensor, Tensor], numbers: np.ndarray[Any, Any], unknown: np.ndarray[Any, Any]
    ) -> None:
        """Writes what was not known. Where it cannot be written, the run goes on with the teacher."""
        if not self._writes:
            return
        rows = torch.from_numpy(unknown)
        try:
            self._write(place[0][rows], place[1][rows], numbers[unknown])
        except OSError as error:
            self._writes = False
            print(
                f"warning: the teacher cache in {self.table.path} cannot be written ({error.strerror}); "
                "the run goes on with the teacher where a view is not known",
                file=sys.stderr,
            )

    def _numbers(self, out: ModelOutput) -> np.ndarray[Any, Any]:
        return self._as_stored(torch.cat([out.logits.float(), out.embedding.float()], dim=1).cpu())

    def _as_stored(self, joined: Tensor) -> np.ndarray[Any, Any]:
        """Numbers in the table's type; what float16 cannot hold is inf, and is not stored."""
        with np.errstate(over="ignore"):
            numbers: np.ndarray[Any, Any] = joined.numpy().astype(self.key.dtype)
        return numbers

    def _write(self, index: Tensor, view: Tensor, numbers: np.ndarray[Any, Any]) -> None:
        """Writes the rows that are numbers."""
        finite = np.isfinite(numbers).all(axis=1)
        rows = torch.from_numpy(finite)
        self.table.write(index[rows], view[rows], numbers[finite])

    def _moved(self, numbers: np.ndarray[Any, Any]) -> Tensor:
        """Rows on the device, copied from pinned memory without waiting where there is one."""
        rows = torch.from_numpy(np.ascontiguousarray(numbers))
        if self.engine.device.type == "cuda":
            return rows.pin_memory().to(self.engine.device, non_blocking=True)
        return rows.to(self.engine.device)

    def _split(self, rows: Tensor) -> ModelOutput:
        logits, embedding = torch.split(rows.float(), [self.key.classes, self.key.width], dim=1)
        return ModelOutput(logits, embedding)

    # -- the opening --------------------------------------------------------------------------------------------------

    def _check(self, marked: np.ndarray[Any, Any], used: np.ndarray[Any, Any]) -> tuple[int, float]:
        """Computes some stored rows again. Returns how many, and the largest difference.

        Raises:
            RequestError: they are not what this teacher says.
        """
        draw = np.random.default_rng(0)
        candidates = draw.permutation(len(marked))[: 4 * CHECKED]
        picks = [(i, used[draw.choice(np.flatnonzero(marked[i]))]) for i in candidates if marked[i].any()][:CHECKED]
        if not picks:
            return 0, 0.0
        index, view = (torch.tensor(part, dtype=torch.int64) for part in zip(*picks, strict=True))
        numbers, known = self.table.read(index, view)
        worst = 0.0
        for rows in torch.split(torch.from_numpy(np.flatnonzero(known)), 64):
            expected = self._live(index[rows], view[rows])
            stored = torch.from_numpy(numbers[rows.numpy()].astype(np.float32))
            scale = float(expected.abs().max().clamp(min=1.0))
            difference = float((stored - expected).abs().max())
            worst = max(worst, difference)
            limit = TOLERANCE[self.key.dtype] if self.key.precision == "fp32" else TOLERANCE_OF_HALF
            if not difference <= limit * scale:
                raise RequestError(
                    f"teacher_cache: {self.table.path} differs from the teacher by {difference:.3g}; delete it to fill "
                    "it again, or name another folder"
                )
        return int(known.sum()), worst

    @torch.no_grad()
    def _live(self, index: Tensor, view: Tensor) -> Tensor:
        """(B, C + D) float32 on the CPU, from the teacher."""
        assert self.teacher is not None
        device = self.engine.device
        with self.engine.autocast():
            out = self.teacher(self.loader.images(index.to(device), view.to(device)))
        return torch.cat([out.logits.float(), out.embedding.float()], dim=1).cpu()

    def release_teacher(self) -> None:
        """Lets go of the teacher, of a complete table; on a GPU the table moves to it where there is room."""
        self.teacher = None
        if self.engine.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.engine.device)
            if len(self.table.positions) * self.key.views * self.key.row_bytes <= free // 2:
                self._on_device = self._whole_table()

    def _whole_table(self) -> Tensor:
        """(N V, C + D) on the device, in the order of the run's own indices; only views that are used are filled in."""
        count, width = len(self.table.positions), self.key.classes + self.key.width
        dtype, used = getattr(torch, self.key.dtype), self.loader.used_views()
        table = torch.zeros(count, self.key.views, width, dtype=dtype, device=self.engine.device)
        for rows in torch.split(torch.arange(count), 64):
            numbers, known = self.table.read(rows.repeat_interleave(len(used)), used.repeat(len(rows)))
            if not known.all():
                raise self._corrupt()
            part = torch.from_numpy(np.ascontiguousarray(numbers)).view(len(rows), len(used), width)
            table[rows[0] : rows[-1] + 1, used.to(table.device)] = part.to(table.device)
        return table.flatten(0, 1)

    # -- filling and telling ------------------------------------------------------------------------------------------

    def fill(self, images: Tensor, batch_size: int, progress: Callable[[int], object]) -> None:
        """Computes what is not known of some images (n,), image by image in all their views; says how many are done."""
        used = self.loader.used_views()
        for rows in torch.split(images, max(1, batch_size // len(used))):
            index, view = rows.repeat_interleave(len(used)), used.repeat(len(rows))
            _, known = self.table.read(index, view)
            missing = torch.from_numpy(np.flatnonzero(~known))
            for part in torch.split(missing, batch_size):
                self._write(index[part], view[part], self._as_stored(self._live(index[part], view[part])))
            progress(len(index))

    def describe(self) -> str:
        """A line for the start of a run."""
        check = f"; {self.checked} rows checked, largest difference {self.difference:.1e}" if self.checked else ""
        return (
            f"teacher cache: {self.known:,} of {self.possible:,} views known in {self.table.path} "
            f"({self.table.bytes / 1e6:,.1f} MB of at most {self.size / 1e6:,.1f}){check}"
        )

    @property
    def size(self) -> int:
        """Bytes of the table when every view that the training can show is known."""
        return _full_size(self.key, self.loader)

    def summary(self) -> dict[str, Any]:
        """Images of the training whose teacher's output was known and was not, in all processes; the table's size."""
        counts = torch.tensor([self.hits, self.misses], dtype=torch.float64, device=self.engine.device)
        hits, misses = (int(count) for count in self.engine.sum(counts).tolist())
        return {"hits": hits, "misses": misses, "bytes": self.table.bytes, "dtype": self.key.dtype}

    def accuracy(self, images: str) -> float | None:
        """The teacher's top-1 on evaluation images, by their digest, where an earlier run has noted it."""
        value = self.table.header.get("top1", {}).get(images)
        return float(value) if isinstance(value, int | float) else None

    def note_accuracy(self, images: str, top1: float) -> None:
        """So that a later run need not measure it again."""
        if self.engine.is_main and self.accuracy(images) is None:
            self.table.note(top1={**self.table.header.get("top1", {}), images: top1})


def summary_of(tables: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each table's :meth:`TeacherCache.summary`: the only one, or the sums of several teachers' and each of them."""
    if len(tables) == 1:
        return tables[0]
    sums = {name: sum(table[name] for table in tables) for name in ("hits", "misses", "bytes")}
    return {**sums, "dtype": tables[0]["dtype"], "teachers": tables}


def _full_size(key: TableKey, loader: Loader) -> int:
    """Bytes on disk. Views that are never shown lie between the others, on the same pages of the file."""
    return len(loader.dataset) * key.views * (key.row_bytes + 4)


def fits(key: TableKey, loader: Loader, request: CacheRequest) -> str:
    """Why a table does not fit: an empty string where it does."""
    size = _full_size(key, loader)
    if size > request.gigabytes * 1e9:
        return f"it would take up to {size / 1e9:.1f} GB, and --teacher-cache-gb is {request.gigabytes:g}"
    request.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(request.folder).free
    there = sum(f.stat().st_blocks * 512 for f in inside(request.folder, key.digest).glob("*.bin"))
    if size - there > free:
        return f"it would take up to {size / 1e9:.1f} GB, and {free / 1e9:.1f} are free in {request.folder}"
    return ""


@dataclass(frozen=True)
class TableOnDisk:
    """A table as ``hkd cache --list`` shows it."""

    path: Path
    header: dict[str, Any]
    bytes: int
    used: float

    def describe(self) -> str:
        """A line."""
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.used))
        header = self.header
        views, side = shown(header.get("views")), shown(header.get("side"))
        what = f"teacher {shown(header.get('teacher'))}, {views} views of {side} pixels"
        return f"{shown_path(self.path)}  {self.bytes / 1e9:.3f} GB  used {day}  {what}, {shown(header.get('dtype'))}"


def tables_in(folder: Path) -> list[TableOnDisk]:
    """The tables in a folder, least recently used first; what is linked from elsewhere is none."""
    tables = []
    for header in sorted(folder.glob(f"*/{HEADER}")):
        try:
            values = read_json(inside(folder, header.parent.name, HEADER))
            if "teacher" not in checked(values, TABLE, header):
                continue
        except (RequestError, OSError):
            continue
        files = [header.parent / name for name in (ROWS, MARKS)]
        size = sum(file.lstat().st_blocks * 512 for file in files if os.path.lexists(file))
        tables.append(TableOnDisk(header.parent, values, size, header.stat().st_mtime))
    return sorted(tables, key=lambda table: table.used)


def prune(folder: Path, gigabytes: float) -> list[TableOnDisk]:
    """Deletes tables, least recently used first, until the rest takes no more. Returns the deleted ones."""
    tables, gone = tables_in(folder), []
    total = sum(table.bytes for table in tables)
    for table in tables:
        if total <= gigabytes * 1e9:
            break
        for name in FILES:
            (table.path / name).unlink(missing_ok=True)
        with suppress(OSError):  # somebody keeps something else there
            table.path.rmdir()
        total -= table.bytes
        gone.append(table)
    return gone
