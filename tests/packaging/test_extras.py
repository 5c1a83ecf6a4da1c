"""What is not installed: a run does without it, or the command names the extra in one line."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from hkd.cli import main
from hkd.config import TrainConfig
from hkd.report import sweeps
from hkd.runtime import curves
from hkd.runtime.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}
FOR_DEVELOPERS = {"docs", "test"}
FOR_USERS = EXTRAS.keys() - FOR_DEVELOPERS - {"all"}
MODULES = {"pillow": "PIL", "pillow-heif": "pillow_heif", "pyyaml": "yaml", "scikit-learn": "sklearn"}
"""What is imported under another name than the distribution's."""


def modules(requirements: list[Requirement]) -> set[str]:
    return {MODULES.get(one.name, one.name.replace("-", "_")) for one in requirements}


CORE = modules([Requirement(line) for line in PROJECT["dependencies"]])
OPTIONAL = set().union(*(modules(EXTRAS[name]) for name in FOR_USERS)) - CORE
NO_CURVES = "no curves are written: tensorboard is not installed; pip install 'hkd[tensorboard]'"
SMALL = "--epochs 1 --limit-train 8 --student resnet8 --device cpu --workers 0"


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        found |= {name.partition(".")[0] for name in names}
    return found


def test_what_is_imported_is_declared_and_what_is_declared_imported() -> None:
    imported = set().union(*map(imports, (ROOT / "src").rglob("*.py"))) - set(sys.stdlib_module_names) - {"hkd"}
    by_name = {"mlflow", "trackio", "wandb", "tensorboard"}  # Accelerate's trackers import them
    assert imported | by_name == CORE | OPTIONAL


def test_all_is_every_extra_for_users() -> None:
    (everything,) = EXTRAS["all"]
    assert (everything.name, everything.extras) == ("hkd", FOR_USERS)


def test_lines_name_extras_that_exist() -> None:
    files = [*(ROOT / "src").rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    named = {
        extra
        for file in files
        for word in file.read_text().split("hkd[")[1:]
        if "]" in word and word.partition("]")[0].replace(",", "").isalnum()
        for extra in word.partition("]")[0].split(",")
    }
    assert {"export", "heif", "loggers", "ray", "report", "search", "tensorboard"} <= named <= EXTRAS.keys()


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [("report x", "plotly", "report"), ("report x", "jinja2", "report"), ("topology x y", "matplotlib", "report")],
)
def test_a_command_names_the_extra_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(words.split()) == 2
    command = words.partition(" ")[0]
    assert capsys.readouterr().err == f"hkd: {command}: {package} is not installed; pip install 'hkd[{extra}]'\n"


def test_without_tensorboard_it_is_said_once_that_there_are_no_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    curves.say_once.cache_clear()
    folder, engine = RunFolder(tmp_path / "run"), SimpleNamespace(is_main=True)

    def write(**options: str) -> str:
        written = curves.Curves(TrainConfig(**options).spec(), folder, engine)
        written.write({"epoch": 1, "loss": 1.0})
        written.close()
        return capsys.readouterr().err

    assert write(logger="none") == ""
    assert write() == NO_CURVES + "\n", "of the teacher"
    assert write() == "", "of the student"
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_without_matplotlib_a_sweep_has_no_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = {
        "field": "lr", "values": [0.1], "methods": ["kd"], "points": [{"method": "kd", "lr": 0.1, "top1_last": 50.0}],
    }  # fmt: skip
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    sweeps.draw_sweep(numbers, tmp_path)
    told = "sweep.png, .svg are not drawn: matplotlib is not installed; pip install 'hkd[report]'\n"
    assert capsys.readouterr().err == told and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_everything_else_works_without_the_extras(tmp_path: Path) -> None:
    """Commands in processes where no package of an extra can be imported; those that need one say so."""
    code = f"import sys; sys.modules.update(dict.fromkeys({sorted(OPTIONAL)})); from hkd.cli import main"

    def hkd(words: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-c", f"{code}; sys.exit(main())", *words.split()],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    trained = hkd(f"distill --run runs/a --teacher resnet8 {SMALL}").splitlines()
    assert trained.count(NO_CURVES) == 1, "of two trainings"
    assert "tensorboard" not in hkd(f"train --run runs/b --logger none {SMALL}")
    hkd("evaluate runs/a --device cpu")
    hkd("transfer runs/a --datasets digits --run runs/transfer --device cpu")
    study = "--epochs 1 --limit-train 8 --device cpu --trials 1 --threads 1 --student resnet8 --methods kd"
    study += " --teacher-checkpoint runs/a/teacher/model.safetensors"
    assert "table: runs/sweep/sweep.md, .csv, .json\n" in hkd(f"sweep --run runs/sweep --field lr --values .1 {study}")
    hkd("export runs/a --formats torch,safetensors")
    for words, package, extra in (
        ("export runs/a --formats onnx", "onnx", "export"), ("report runs/a", "jinja2", "report"),
        ("topology runs/a", "matplotlib", "report"),
        (f"sweep --search lr=.01..1 --tries 1 --holdout .1 --run runs/search {SMALL}", "optuna", "search"),
        (f"sweep --engine ray --field lr --values .2 --run runs/ray {study}", "ray", "ray"),
        (f"train --logger wandb --run runs/c {SMALL}", "wandb", "loggers"),
    ):  # fmt: skip
        line = hkd(words, status=2)
        assert len(line.splitlines()) == 1 or words.startswith("sweep"), line
        assert package in line and f"pip install 'hkd[{extra}]'" in line and "Traceback" not in line
