"""Wheel and source distribution: what is in them, and that it works without the repository."""

import os
import resource
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = sorted(file.name for file in (ROOT / "recipes").iterdir())
pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path, **variables: str) -> str:
    """What a command printed, outside of this environment's PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    words = list(map(str, command))
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is made from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=ROOT)
    (source,), (wheel,) = folder.glob("hkd-*.tar.gz"), folder.glob("hkd-*-py3-none-any.whl")
    return source, wheel


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment that has the wheel, and sees the packages of this one but not its hkd."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet"]
    run(*pip, "--no-deps", "--no-index", built[1], cwd=folder)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    paths = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (own / "shared.pth").write_text("\n".join(paths))  # whose own .pth files, as of an editable hkd, are not followed
    return folder / "bin"


def test_a_wheel_holds_the_package_and_its_recipes(built: tuple[Path, Path]) -> None:
    source, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (about,) = (name for name in names if name.endswith("/METADATA"))
        head = message_from_bytes(archive.read(about))
    info = about.partition("/")[0]
    files = (file.relative_to(ROOT / "src") for file in (ROOT / "src").rglob("*") if file.is_file())
    expected = {str(file) for file in files if "__pycache__" not in file.parts}
    expected |= {f"hkd/recipe_files/{name}" for name in RECIPES} | {f"{info}/licenses/LICENSE"}
    expected |= {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    assert set(names) == expected and {"hkd/py.typed", "hkd/report/page.html"} <= expected
    assert source.name == f"hkd-{head['Version']}.tar.gz"
    assert (head["License-Expression"], head["Author"]) == ("Apache-2.0", "hkd contributors")


def test_a_source_distribution_holds_what_a_build_and_its_tests_need(built: tuple[Path, Path], tmp_path: Path) -> None:
    run("tar", "-xzf", built[0], cwd=tmp_path)
    (folder,) = tmp_path.iterdir()
    for name in ("LICENSE", "README.md", "CITATION.cff", "Makefile", "tests/packaging/test_distributions.py"):
        assert (folder / name).is_file(), name
    assert sorted(file.name for file in (folder / "recipes").iterdir()) == RECIPES
    assert not [name for name in (".git", ".venv", "runs", "data", "dist", "build") if (folder / name).exists()]
    hatchling = (sys.executable, "-m", "hatchling", "version")
    assert f"hkd-{run(*hatchling, cwd=folder).strip()}" == folder.name
    (folder / "PKG-INFO").unlink()
    assert run(*hatchling, cwd=folder) == "0.2.0.dev0\n", "an archive of the repository"


def test_both_pass_twine(built: tuple[Path, Path]) -> None:
    pytest.importorskip("twine")
    assert run(sys.executable, "-m", "twine", "check", "--strict", *built, cwd=ROOT).count("PASSED") == 2


def test_an_installed_wheel_trains_and_exports(built: tuple[Path, Path], installed: Path, tmp_path: Path) -> None:
    hkd = installed / "hkd"
    home = run(installed / "python", "-c", "import hkd, torch; print(hkd.__file__)", cwd=tmp_path).strip()
    assert Path(home).is_relative_to(installed.parent)
    version = built[1].name.split("-")[1]
    assert run(hkd, "--version", cwd=tmp_path) == f"hkd {version}\n"
    assert [f"{name}.yaml" for name in run(hkd, "list", "recipes", cwd=tmp_path).split()] == RECIPES
    words = "--epochs 2 --limit-train 40 --teacher resnet14 --device cpu --workers 0 --threads 1 --run runs/first"
    run(hkd, "distill", "--config", "digits", *words.split(), cwd=tmp_path)
    assert f'"hkd": "{version}"' in (tmp_path / "runs" / "first" / "summary.json").read_text()
    run(hkd, "export", "runs/first", cwd=tmp_path, OMP_NUM_THREADS="1")
    exported = {file.name for file in (tmp_path / "runs" / "first" / "export").iterdir()}
    assert {"model.onnx", "model.safetensors", "MODEL_CARD.md"} <= exported


def test_an_installed_command_answers_at_once(installed: Path, tmp_path: Path) -> None:
    """In a tenth of what torch needs to be imported, in processor time: .09 and 1.5 s on a quiet machine."""
    helps = min(processor_seconds(installed / "hkd", "--help", cwd=tmp_path) for _ in range(5))
    torch = min(processor_seconds(installed / "python", "-c", "import torch", cwd=tmp_path) for _ in range(3))
    assert helps < 0.1 * torch


def processor_seconds(*command: object, cwd: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(*command, cwd=cwd)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
