"""The teacher's table: what it gives, what it refuses, what it survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hkd
from hkd.data import ArrayDataset, DatasetInfo, make_loader
from hkd.data.memory_loader import MemoryLoader
from hkd.models import Model
from hkd.runtime.engine import Engine
from hkd.runtime.teacher_cache import CacheRequest, TeacherCache, fits, prune, table_key, tables_in
from hkd.runtime.teacher_table import image_digests

SIZE, COUNT, CLASSES = 16, 24, 4


def images(count: int = COUNT, seed: int = 0) -> ArrayDataset:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    info = DatasetInfo("noise", tuple(map(str, range(CLASSES))), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return ArrayDataset(pixels, torch.arange(count) % CLASSES, info)


def teacher(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return hkd.create_model("resnet8", CLASSES).eval().requires_grad_(False)


def loader(dataset: ArrayDataset, batch_size: int = 6, seed: int = 0) -> MemoryLoader:
    made = make_loader(dataset, batch_size, torch.device("cpu"), train=True, seed=seed)
    assert isinstance(made, MemoryLoader)
    return made


def opened(folder: Path, dataset: ArrayDataset, network: Model, **changes: Any) -> TeacherCache:
    request = CacheRequest(folder, **{"dtype": "float32", **changes})
    made = loader(dataset)
    return TeacherCache(table_key(network, made, request, SIZE), network, made, Engine("cpu"), request)


def run_epochs(cache: TeacherCache, epochs: range, seed: int = 0, batch_size: int = 6) -> list[hkd.ModelOutput]:
    made = loader(cache.loader.dataset, batch_size, seed)  # type: ignore[arg-type]
    return [cache(batch) for epoch in epochs for batch in made.epoch(epoch)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("float16", 1e-3)])
def test_a_second_run_reads_what_the_first_computed(tmp_path: Path, dtype: Any, tolerance: float) -> None:
    data, network = images(), teacher()
    first = opened(tmp_path, data, network, dtype=dtype)
    live = run_epochs(first, range(2))
    assert (first.hits, first.misses) == (0, 2 * COUNT)
    second = opened(tmp_path, data, network, dtype=dtype)
    again = run_epochs(second, range(2))
    assert (second.hits, second.misses) == (2 * COUNT, 0)
    assert second.checked > 0
    for a, b in zip(live, again, strict=True):
        for x, y in ((a.logits, b.logits), (a.embedding, b.embedding)):
            assert float((x - y).abs().max()) <= tolerance * float(x.abs().max())


def test_other_seeds_and_batch_sizes_share_the_rows(tmp_path: Path) -> None:
    data, network = images(), teacher()
    cache = opened(tmp_path, data, network)
    cache.fill(torch.arange(COUNT), 64, lambda _: None)
    full = opened(tmp_path, data, network)
    assert full.is_complete and full.possible == COUNT * 2 * 25
    full.release_teacher()
    for seed, batch_size in ((0, 6), (5, 6), (0, 7)):
        for batch in loader(data, batch_size, seed).epoch(3):
            torch.testing.assert_close(full(batch).logits, network(batch.image).logits, rtol=1e-4, atol=1e-5)
    assert full.misses == 0


def test_the_whole_table_of_a_device_is_that_of_the_file(tmp_path: Path) -> None:
    data, network = images(), teacher()
    opened(tmp_path, data, network).fill(torch.arange(COUNT), 64, lambda _: None)
    part = data.select(torch.tensor([8, 3, 21, 5]), data.info)
    cache = opened(tmp_path, part, network)
    batch = next(iter(loader(part, 4).epoch(1)))
    read = cache(batch)
    cache._on_device = cache._whole_table()
    torch.testing.assert_close(cache(batch), read, rtol=0, atol=0)
    flip_a_byte(cache.table.path, "rows.bin")
    with pytest.raises(hkd.TrainingError, match="a row of .* is corrupt"):
        opened(tmp_path, data, network)._whole_table()


def test_a_part_of_the_images_shares_the_rows_of_all(tmp_path: Path) -> None:
    data, network = images(), teacher()
    opened(tmp_path, data, network).fill(torch.arange(COUNT), 64, lambda _: None)
    part = data.select(torch.tensor([3, 8, 21, 5]), data.info)
    some = opened(tmp_path, part, network)
    assert some.is_complete
    batch = next(iter(loader(part, 4).epoch(0)))
    torch.testing.assert_close(some(batch).embedding, network(batch.image).embedding, rtol=1e-4, atol=1e-5)


def flip_a_byte(table: Path, name: str) -> None:
    content = bytearray((table / name).read_bytes())
    place = next(n for n, byte in enumerate(content) if byte and n > 100)
    content[place] ^= 1
    (table / name).write_bytes(content)


@pytest.mark.parametrize("name", ["rows.bin", "marks.bin"])
def test_a_flipped_bit_is_computed_again(tmp_path: Path, name: str) -> None:
    data, network = images(), teacher()
    cache = opened(tmp_path, data, network)
    cache.fill(torch.arange(COUNT), 64, lambda _: None)
    flip_a_byte(cache.table.path, name)
    again = opened(tmp_path, data, network)
    index, view = torch.arange(COUNT).repeat_interleave(50), torch.arange(50).repeat(COUNT)
    _, known = again.table.read(index, view)
    assert int((~known).sum()) == 1
    again.fill(torch.arange(COUNT), 64, lambda _: None)
    numbers, known = again.table.read(index, view)
    assert known.all()
    expected = torch.cat([again._live(i, v) for i, v in zip(index.split(64), view.split(64), strict=True)])
    np.testing.assert_allclose(numbers, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_corrupt_row_without_a_teacher_is_said_and_not_used(tmp_path: Path) -> None:
    data, network = images(), teacher()
    cache = opened(tmp_path, data, network)
    cache.fill(torch.arange(COUNT), 64, lambda _: None)
    for name in ("rows.bin",):
        content = np.fromfile(cache.table.path / name, np.uint32) ^ np.uint32(1)
        content.tofile(cache.table.path / name)
    cache.teacher = None
    with pytest.raises(hkd.TrainingError, match="a row of .* is corrupt; delete the folder"):
        run_epochs(cache, range(1))


def changed_after_filling(folder: Path, network: Model) -> ArrayDataset:
    """The images with one that differs from what it was when a table was filled."""
    opened(folder, images(), network).fill(torch.arange(COUNT), 64, lambda _: None)
    changed = images()
    changed.images[5, 0, 0, 0] ^= 1
    return changed


def test_images_that_changed_are_computed_again(tmp_path: Path) -> None:
    network = teacher()
    cache = opened(tmp_path, changed_after_filling(tmp_path, network), network)
    run_epochs(cache, range(1))
    assert cache.misses == 6, "the batch with the changed image, as a whole"


def test_a_full_table_of_other_images_is_not_complete(tmp_path: Path) -> None:
    """The teacher stays until each row is of the images as they are now."""
    network = teacher()
    changed = changed_after_filling(tmp_path, network)
    cache = opened(tmp_path, changed, network)
    views = len(cache.loader.used_views())
    assert not cache.is_complete and cache.known == (COUNT - 1) * views
    cache.fill(torch.arange(COUNT), 64, lambda _: None)
    assert opened(tmp_path, changed, network).is_complete


def test_what_float16_cannot_hold_is_not_filled_in(tmp_path: Path) -> None:
    network = teacher()
    with torch.no_grad():
        network.fc.weight[:, 0] = 1e7  # type: ignore[union-attr]
    data = images()
    opened(tmp_path, data, network, dtype="float16").fill(torch.arange(COUNT), 64, lambda _: None)
    cache = opened(tmp_path, data, network, dtype="float16")
    assert cache.known == 0 and cache.difference == 0.0


def test_another_key_is_another_table(tmp_path: Path) -> None:
    data, network = images(), teacher()
    made, request = loader(data), CacheRequest(tmp_path)
    key = table_key(network, made, request, SIZE)
    other_mean = images()
    other_mean.info = replace(other_mean.info, mean=(0.4, 0.5, 0.5))
    keys = [
        key, table_key(teacher(1), made, request, SIZE), table_key(network, loader(other_mean), request, SIZE),
        table_key(network, made, replace(request, dtype="float32"), SIZE),
        table_key(network, made, replace(request, precision="bf16"), SIZE),
    ]  # fmt: skip
    assert len({k.digest for k in keys}) == len(keys)


def test_a_table_of_another_teacher_under_this_name_is_refused(tmp_path: Path) -> None:
    data = images()
    cache = opened(tmp_path, data, teacher(1))
    cache.fill(torch.arange(COUNT), 64, lambda _: None)
    mine = table_key(teacher(0), loader(data), CacheRequest(tmp_path, dtype="float32"), SIZE)
    cache.table.path.rename(tmp_path / mine.digest)
    with pytest.raises(hkd.RequestError, match="is a table of another teacher"):
        opened(tmp_path, data, teacher(0))
    header = tmp_path / mine.digest / "header.json"
    header.write_text(header.read_text().replace(cache.key.teacher, mine.teacher))
    with pytest.raises(hkd.RequestError, match="differs from the teacher by"):
        opened(tmp_path, data, teacher(0))


def test_a_full_disk_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    cache = opened(tmp_path, images(), teacher())
    monkeypatch.setattr(os, "pwrite", full)
    outputs = run_epochs(cache, range(1))
    assert len(outputs) == 4 and cache.misses == COUNT
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_size_is_known_beforehand(tmp_path: Path) -> None:
    data, network = images(), teacher()
    request = CacheRequest(tmp_path, gigabytes=1e-6)
    made = loader(data)
    assert "--teacher-cache-gb is 1e-06" in fits(table_key(network, made, request, SIZE), made, request)
    request = CacheRequest(tmp_path)
    assert fits(table_key(network, made, request, SIZE), made, request) == ""
    cache = opened(tmp_path, data, network)
    cache.fill(torch.arange(COUNT), 64, lambda _: None)
    assert cache.size <= cache.table.bytes <= cache.size + 8192 * 2


def test_pruning_takes_what_was_used_least_recently(tmp_path: Path) -> None:
    for seed in range(3):
        cache = opened(tmp_path, images(), teacher(seed))
        cache.fill(torch.arange(COUNT), 64, lambda _: None)
        os.utime(cache.table.path / "header.json", (seed, seed))
    tables = tables_in(tmp_path)
    assert [table.used for table in tables] == [0, 1, 2]
    gone = prune(tmp_path, 2.1 * tables[0].bytes / 1e9)
    assert [table.path for table in gone] == [tables[0].path]
    assert len(tables_in(tmp_path)) == 2


def test_images_are_told_apart_by_any_pixel() -> None:
    pixels = images().images
    before = image_digests(pixels)
    for place in ((0, 0, 0, 0), (3, 2, 15, 15), (7, 1, 4, 9)):
        changed = pixels.clone()
        changed[place] ^= 128
        assert (image_digests(changed) != before).nonzero()[0].tolist() == [place[0]]


FILLER = """
import sys
from pathlib import Path
from tests.runtime.test_teacher_cache import images, opened, run_epochs, teacher
cache = opened(Path(sys.argv[1]), images(), teacher())
print("ready", flush=True)
for epoch in range(10_000):
    run_epochs(cache, range(epoch, epoch + 1), seed=int(sys.argv[2]))
"""


@pytest.mark.slow
def test_killed_while_filling_from_two_processes(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}", "OMP_NUM_THREADS": "1"}
    data, network = images(), teacher()
    for kill in range(20):
        started = [
            subprocess.Popen(
                [sys.executable, "-c", FILLER, str(tmp_path), str(2 * kill + n)],
                env=environment,
                stdout=subprocess.PIPE,
            )
            for n in range(2)
        ]
        for process in started:
            assert process.stdout is not None and process.stdout.readline().strip() == b"ready"
        time.sleep(0.05 + 0.02 * kill)
        for process in started:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]
    cache = opened(tmp_path, data, network)
    index, view = torch.arange(COUNT).repeat_interleave(50), torch.arange(50).repeat(COUNT)
    numbers, known = cache.table.read(index, view)
    assert known.any()
    expected = torch.cat([cache._live(i, v) for i, v in zip(index.split(64), view.split(64), strict=True)]).numpy()
    np.testing.assert_allclose(numbers[known], expected[known], rtol=1e-3, atol=1e-4)


def test_a_forged_header_is_listed_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    forged = dict.fromkeys(("views", "side", "dtype"), "\x1b[2J\n" + "x" * 10**5)
    (tmp_path / "t" / "header.json").write_text(json.dumps({"teacher": "0123456789abcdef"} | forged))
    (line,) = (table.describe() for table in tables_in(tmp_path))
    assert line.isprintable() and len(line) < 1000
