"""Classes of image files: by command, from Python, and as evaluation and exported files see them."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hkd
from hkd.cli import main
from hkd.data import make_loader, prepare
from hkd.trained import find_trained, open_test
from tests.data.awkward import awkward
from tests.data.test_datasets import encoded, picture, write_files, zipped

CLASSES = ("cat", "dog", "eel", "=fox")


@pytest.fixture(scope="module", params=[64, 100])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that has learnt colours, so that its classes differ, and images whose evaluation split is awkward."""
    folder = tmp_path_factory.mktemp("photos")
    colours = ((200, 60, 60), (60, 200, 60), (60, 60, 200), (200, 200, 60))
    files = {
        f"val/{one}/plain.png": encoded(Image.new("RGB", (70, 60), c)) for one, c in zip(CLASSES, colours, strict=True)
    }
    for label, name in enumerate(CLASSES):
        for number in range(8):
            noise = np.random.default_rng(label * 10 + number).integers(-50, 50, (110, 120, 3))
            image = Image.fromarray((noise + colours[label]).clip(0, 255).astype(np.uint8))
            files[f"train/{name}/{number}.png"] = encoded(image)
    files |= {f"val/cat/{name}": data for name, data in awkward().items()}
    write_files(folder / "photos", files)
    config = hkd.TrainConfig(
        run=str(folder / "run"), dataset=f"folder:{folder / 'photos'}", image_size=request.param, epochs=6, workers=0,
        device="cpu", student="resnet8", batch_size=8, lr=0.02, tensorboard=False, seed=1,
    )  # fmt: skip
    return hkd.train(config).run, folder / "photos"


def evaluated(run: Path) -> torch.Tensor:
    """(N, C) probabilities of the evaluation images, through the loader of the evaluation."""
    trained = find_trained(run)
    data = prepare(open_test(hkd.EvaluateConfig(checkpoint=str(run)), trained))
    model = hkd.load_model(run)
    with torch.no_grad():
        batches = make_loader(data, 5, torch.device("cpu"), train=False).epoch(0)
        return torch.cat([model(batch.image).logits for batch in batches]).softmax(1)


def test_prediction_card_and_evaluation_agree_on_awkward_files(
    run: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder, photos = run
    names = [f"val/cat/{name}" for name in sorted(awkward())]
    assert len(names) == 8
    paths = [str(photos / name) for name in names]
    predicted = hkd.predict(folder, paths, top=4, device="cpu")
    assert [path for path, _ in predicted] == paths

    order = hkd.load_dataset(f"folder:{photos}", "test").names
    rows = evaluated(folder)[[order.index(name) for name in names]]
    classes = find_trained(folder).about["classes"]
    for (path, likeliest), row in zip(predicted, rows, strict=True):
        assert [name for name, _ in likeliest] == [classes[label] for label in row.argsort(descending=True)], path
        np.testing.assert_allclose([value for _, value in likeliest], row.sort(descending=True).values, rtol=1e-4)

    hkd.export(hkd.ExportConfig(checkpoint=str(folder), formats=("onnx",)))
    code = (folder / "export" / "MODEL_CARD.md").read_text().split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], cwd=folder / "export", capture_output=True, text=True, check=True
    )
    said = done.stdout.splitlines()
    assert said == [likeliest[0][0] for _, likeliest in predicted]
    assert len(set(said)) > 1, "a network that says the same of all would prove nothing"


def test_files_folders_and_archives(run: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = run
    inner = {"a/1.png": encoded(picture((9, 7), 1)), "a/2.JPG": encoded(picture((9, 7), 2), "JPEG")}
    noise = {"a/._1.png": b"", "__MACOSX/a/1.png": b"", "a/notes.txt": b"", "a/.hidden/3.png": b""}
    write_files(tmp_path / "f", inner | noise)
    zipped(tmp_path / "z.zip", inner | noise)
    (tmp_path / "no_suffix").write_bytes(inner["a/1.png"])
    asked = [tmp_path / "z.zip", tmp_path / "f", tmp_path / "no_suffix"]
    found = hkd.predict(folder, asked, top=2)
    expected = ["z.zip/a/1.png", "z.zip/a/2.JPG", "f/a/1.png", "f/a/2.JPG", "no_suffix"]
    assert [path for path, _ in found] == [str(tmp_path / name) for name in expected]
    first, of_folder, alone = (dict(found[number][1]) for number in (0, 2, 4))
    assert first == pytest.approx(of_folder) and first == pytest.approx(alone)
    assert all(len(classes) == 2 for _, classes in found)
    assert [path for path, _ in hkd.predict(folder, tmp_path / "no_suffix")] == [str(tmp_path / "no_suffix")]
    assert sum(value for _, value in hkd.predict(folder, asked[2], top=99)[0][1]) == pytest.approx(1)


def test_the_command(run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, photos = run
    name = tmp_path / "=1.png"
    name.write_bytes(encoded(picture((20, 30), 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(["predict", str(folder), "=1.png", "--top", "4", "--device", "cpu"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [list(row) for row in rows] == [["file", "rank", "class", "probability"]] * 4
    assert {row["file"] for row in rows} == {"'=1.png"} and [row["rank"] for row in rows] == list("1234")
    assert {row["class"] for row in rows} == {"cat", "dog", "eel", "'=fox"}
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1, abs=1e-5)

    output = tmp_path / "new" / "predictions.csv"
    assert main(["predict", str(folder), str(photos / "val"), "--output", str(output)]) == 0
    assert "12 images" in capsys.readouterr().out
    assert len(output.read_text().splitlines()) == 1 + 12 * 4


def test_a_bad_image_is_told_and_skipped(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = encoded(picture((20, 30), 1))
    write_files(tmp_path, {"a.png": good, "b.png": b"no image", "c.png": good[:300], "d.png": good})
    assert main(["predict", str(run[0]), str(tmp_path), "--top", "1", "--batch-size", "1"]) == 1
    out, err = capsys.readouterr()
    assert [line.split(",")[0] for line in out.splitlines()] == ["file", f"{tmp_path}/a.png", f"{tmp_path}/d.png"]
    assert err.count("warning: skipped, cannot read") == 2 and "b.png (not an image)" in err and "c.png (" in err
    assert main(["predict", str(run[0]), str(tmp_path / "b.png")]) == 2
    assert "hkd: images: none of 1 can be read" in capsys.readouterr().err


def test_wrong_requests_are_one_line(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.zip").write_bytes(b"PK no archive")
    os.mkfifo(tmp_path / "pipe")
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("notes.txt", "")
    for words, message in (
        ([], "checkpoint: name a run folder"),
        ([str(run[0])], "images: name at least one"),
        ([str(run[0]), str(tmp_path / "gone.png")], "images: no file"),
        ([str(run[0]), str(tmp_path / "empty")], "images: no images in"),
        ([str(run[0]), str(tmp_path / "none.zip")], "images: no images in"),
        ([str(run[0]), str(tmp_path / "bad.zip")], "images: "),
        ([str(run[0]), str(tmp_path / "pipe")], "is not a regular file"),
        ([str(run[0]), str(tmp_path), "--top", "0"], "top: expected a number in [1, 1000000]; got 0"),
        (["--checkpoint", "a", "--images", "b", "c"], "checkpoint: named with --checkpoint and again as 'c'"),
    ):
        assert main(["predict", *words]) == 2
        out, err = capsys.readouterr()
        assert err.startswith("hkd: ") and message in err and err.count("\n") == 1 and not out, words
    for wrong in (3, [3], [None]):
        with pytest.raises(hkd.RequestError, match="^images: expected"):
            hkd.predict(run[0], wrong)  # type: ignore[arg-type]


def test_the_network_may_be_named_by_its_option(run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    image = str(run[1] / "val" / "cat" / "exif.jpg")
    assert main(["predict", image, "--checkpoint", str(run[0]), "--top", "1"]) == 0
    assert image in capsys.readouterr().out
