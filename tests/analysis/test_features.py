"""Saved features answer for exactly what they were computed from."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hkd
from hkd.analysis import features
from hkd.analysis.content import content_digest
from hkd.models.weights import read_model
from hkd.runtime.engine import Engine
from hkd.trained import Trained, find_trained
from tests.data.test_datasets import encoded, picture, write_files, zipped

IN_MEMORY, STREAMED = 16, 100
"""Sides in pixels of images that are decoded into memory, and of those that stay in their files."""


def bitmaps(seed: int) -> dict[str, bytes]:
    """Uncompressed, so that other pixels are files of the same size."""
    return {
        f"{split}/{name}/{i}.bmp": encoded(picture((20, 20), 1000 * seed + 10 * c + i), "BMP")
        for split in ("train", "val")
        for c, name in enumerate(("cat", "dog"))
        for i in range(3)
    }


def rewrite(root: Path, files: dict[str, bytes]) -> None:
    """Replaces the content of files; their names, sizes and modification times stay."""
    for name, content in files.items():
        before = (root / name).stat()
        assert before.st_size == len(content)
        (root / name).write_bytes(content)
        os.utime(root / name, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def network(runs: Path) -> Trained:
    return find_trained(str(runs / "alone"))


def saved(cache: Path) -> int:
    return len(list(cache.glob("features-*.npz")))


@pytest.mark.parametrize("size", [IN_MEMORY, STREAMED])
def test_rewritten_files_are_other_images(network: Trained, tmp_path: Path, size: int) -> None:
    root = write_files(tmp_path / "photos", bitmaps(0))
    open_data = lambda: hkd.load_dataset(f"folder:{root}", "val", image_size=size)  # noqa: E731
    engine, cache = Engine("cpu"), tmp_path / "cache"
    first_object = open_data()
    before = features.extract(network, first_object, engine, cache)
    rewrite(root, bitmaps(1))
    for data in (open_data(), first_object):
        after = features.extract(network, data, engine, cache)
        assert not np.allclose(after.embedding, before.embedding)
    assert saved(cache) == 2
    rewrite(root, bitmaps(0))
    np.testing.assert_array_equal(features.extract(network, open_data(), engine, cache).embedding, before.embedding)
    assert saved(cache) == 2


def test_a_rewritten_archive_is_other_images(network: Trained, tmp_path: Path) -> None:
    engine, cache, path = Engine("cpu"), tmp_path / "cache", tmp_path / "photos.zip"
    found = []
    for seed in (0, 1):
        zipped(path, bitmaps(seed))
        data = hkd.load_dataset(f"folder:{path}", "val", image_size=STREAMED)
        found.append(features.extract(network, data, engine, cache).embedding)
    assert not np.allclose(*found)


def test_the_precision_takes_part(network: Trained, tmp_path: Path) -> None:
    data = hkd.load_dataset("digits", "test")
    half = features.extract(network, data, Engine("cpu", "bf16"), tmp_path)
    full = features.extract(network, data, Engine("cpu", "fp32"), tmp_path)
    assert saved(tmp_path) == 2
    exact = features._run(network, data, Engine("cpu", "fp32"), 256, "stop")
    np.testing.assert_allclose(full.logits, exact.logits, rtol=1e-5, atol=1e-5)
    assert np.abs(half.logits - full.logits).max() > 1e-3


def test_everything_else_that_decides_takes_part(
    network: Trained, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other images, sizes, weights, normalisations or formats are other files; the same are read."""
    engine, test = Engine("cpu"), hkd.load_dataset("digits", "test")
    shifted = dataclasses.replace(network, about={**network.about, "mean": (0.1, 0.2, 0.3)})
    kept: list[tuple[Trained, Any]] = [
        (network, test),
        (network, hkd.load_dataset("digits", "train")),
        (network, hkd.load_dataset("digits", "test", image_size=12)),
        (find_trained(str(runs / "kd-0")), test),
        (shifted, test),
    ]
    for count, (trained, data) in enumerate(kept, 1):
        features.extract(trained, data, engine, tmp_path)
        assert saved(tmp_path) == count
    with monkeypatch.context() as patched:
        patched.setattr(features, "_run", lambda *_: pytest.fail("features are extracted once"))
        for trained, data in kept:
            features.extract(trained, data, engine, tmp_path)
    monkeypatch.setattr(features, "FORMAT", features.FORMAT + 1)
    features.extract(network, test, engine, tmp_path)
    assert saved(tmp_path) == len(kept) + 1


def test_a_file_cut_short_is_computed_again(network: Trained, tmp_path: Path) -> None:
    engine, data = Engine("cpu"), hkd.load_dataset("digits", "test")
    before = features.extract(network, data, engine, tmp_path)
    (file,) = tmp_path.glob("features-*.npz")
    file.write_bytes(file.read_bytes()[:100])
    np.testing.assert_array_equal(features.extract(network, data, engine, tmp_path).logits, before.logits)
    assert file.stat().st_size > 100


def test_many_networks_share_one_reading_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_files(tmp_path / "photos", bitmaps(0))
    data = hkd.load_dataset(f"folder:{root}", "val", image_size=STREAMED)
    digest = content_digest(data)
    monkeypatch.setattr(type(data.files), "read", lambda *_: pytest.fail("the files are read once"))
    assert content_digest(data) == digest
    assert content_digest(hkd.load_dataset(f"folder:{root}", "val", image_size=STREAMED)) == digest


def test_content_is_not_where_it_lies(tmp_path: Path) -> None:
    """A folder and an archive of the same files share features; labels take part, missing files do not stop it."""
    folders = [write_files(tmp_path / name, bitmaps(0)) for name in ("a", "b")]
    paths = [*folders, zipped(tmp_path / "c.zip", bitmaps(0))]
    datasets = [hkd.load_dataset(f"folder:{path}", "val", image_size=STREAMED) for path in paths]
    assert len({content_digest(data) for data in datasets}) == 1
    data = datasets[0]
    other = hkd.load_dataset(f"folder:{folders[0]}", "val", image_size=STREAMED)
    other.labels = other.labels.flip(0)
    assert content_digest(other) != content_digest(data)
    (folders[0] / "val" / "cat" / "0.bmp").unlink()
    assert content_digest(data) != content_digest(datasets[1])


def test_features_are_what_the_network_gives(network: Trained, runs: Path, tmp_path: Path) -> None:
    data = hkd.load_dataset("digits", "test")
    found = features.extract(network, data, Engine("cpu"), tmp_path)
    model, about = read_model(runs / "alone" / "model.safetensors")
    image = torch.stack([data[n][0] for n in range(5)]).float() / 255
    mean, std = (torch.tensor(about[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        out = model.eval()((image - mean) / std)
    np.testing.assert_allclose(found.embedding[:5], out.embedding.numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.logits[:5], out.logits.numpy(), rtol=1e-3, atol=1e-3)
    assert found.label.tolist() == data.labels.tolist()
