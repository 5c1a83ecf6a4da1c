"""Methods, networks and data sets of other packages: installed with entry points, or named by --plugin and recipes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hkd.config import CONTROL

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
COMPARE = [
    "compare", "--dataset", "stripes", "--teachers", "resnet8", "--students", "tinynet", "--trials", "1",
    "--methods", "margin(power=2)+kd", "--epochs", "1", "--batch-size", "16", "--no-tensorboard", "--device", "cpu",
    "--threads", "1",
]  # fmt: skip


def hkd(*words: str, paths: tuple[Path, ...], cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (SOURCE, *paths)))
    done = subprocess.run(
        [sys.executable, "-m", "hkd", *words], env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the package has been installed."""
    folder = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "outside"
    shutil.copytree(HERE / "outside", source)
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
            "--disable-pip-version-check", "--target", str(folder), str(source),
        ],
        check=True,
    )  # fmt: skip
    return folder


def test_an_installed_package_needs_no_option(installed: Path, tmp_path: Path) -> None:
    for kind, name in (("methods", "margin"), ("models", "tinynet"), ("datasets", "stripes")):
        assert name in hkd("list", kind, paths=(installed,), cwd=tmp_path).stdout.split()
    assert "margin" not in hkd("list", "methods", paths=(), cwd=tmp_path).stdout.split()
    shown = hkd("distill", "--method", "margin", "--help", paths=(installed,), cwd=tmp_path).stdout
    assert "--margin.power X" in shown and "what the difference is raised to" in shown
    wrong = hkd("distill", "--method", "margin", "--margin.power", "5", paths=(installed,), cwd=tmp_path, status=2)
    assert wrong.stderr == "hkd: margin.power: expected a number in (0, 4]; got 5.0\n"


@pytest.mark.slow
def test_an_installed_package_is_compared(installed: Path, tmp_path: Path) -> None:
    hkd(*COMPARE, "--run", "c", paths=(installed,), cwd=tmp_path)
    check_comparison(tmp_path / "c")
    sweep = [word if word != "compare" else "sweep" for word in COMPARE]
    sweep = [word.replace("--teachers", "--teacher").replace("--students", "--student") for word in sweep]
    sweep[sweep.index("margin(power=2)+kd")] = "margin"
    printed = hkd(
        *sweep,
        "--field",
        "margin.power",
        "--values",
        "1,2",
        "--run",
        "s",
        "--dry-run",
        paths=(installed,),
        cwd=tmp_path,
    ).stdout
    assert "margin.power = 2, margin, seed 0" in printed
    assert "--margin.power 2" in printed


def check_comparison(folder: Path) -> None:
    (pair,) = json.loads((folder / "comparison.json").read_text())["pairs"]
    control, row = pair["methods"]
    assert control["method"] == CONTROL
    assert len(row["top1_last"]) == 1
    values = yaml.safe_load((Path(row["runs"][0]) / "config.yaml").read_text())
    assert (values["method"], values["method_weight"], values["kd_weight"]) == ("margin", 0.5, 1.0)
    assert values["margin"] == {"power": 2.0}
    assert (values["student"], values["dataset"]) == ("tinynet", "stripes")


@pytest.mark.slow
def test_a_plugin_is_named_on_the_command_line(tmp_path: Path) -> None:
    paths = (HERE / "outside" / "src",)
    for form in (("--plugin", "outside"), ("--plugin=outside",)):
        assert "margin" in hkd("list", "methods", *form, paths=paths, cwd=tmp_path).stdout.split()
    refused = hkd(*COMPARE, "--run", "c", paths=paths, cwd=tmp_path, status=2)
    assert "unknown name 'stripes'" in refused.stderr
    missing = hkd("list", "methods", "--plugin", "nowhere", paths=paths, cwd=tmp_path, status=2)
    assert missing.stderr.startswith("hkd: plugin: cannot import 'nowhere' (ModuleNotFoundError")
    hkd(*COMPARE, "--run", "c", "--plugin", "outside", paths=paths, cwd=tmp_path)
    check_comparison(tmp_path / "c")


def test_the_commands_of_a_plan_name_the_plugins(tmp_path: Path) -> None:
    paths = (HERE / "outside" / "src",)
    printed = hkd(*COMPARE, "--run", "c", "--plugin", "outside", "--dry-run", paths=paths, cwd=tmp_path).stdout
    commands = [shlex.split(line) for line in printed.splitlines() if " -m hkd " in line]
    assert len(commands) == 3, "the teacher, the control of +kd, and the method"
    for words in commands:
        assert words[words.index("--plugin") + 1] == "outside"


def test_a_recipe_names_plugins_of_the_working_directory(tmp_path: Path) -> None:
    shutil.copytree(HERE / "outside" / "src" / "outside", tmp_path / "outside")
    recipe = {
        "plugins": ["outside"], "dataset": "stripes", "student": "tinynet", "teacher": "resnet8", "method": "margin",
        "epochs": 1, "batch_size": 16, "tensorboard": False, "device": "cpu",
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ("distill", "--config", "recipe.yaml", "--trust-config", "--margin.power", "3")
    hkd(*words, "--run", "r", paths=(), cwd=tmp_path)
    assert yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["margin"] == {"power": 3.0}
    study = {
        "plugins": ["outside"], "dataset": "stripes", "students": ["tinynet"], "teachers": ["resnet8"], "trials": 1,
        "methods": ["margin"], "epochs": 1, "batch_size": 16, "device": "cpu",
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    printed = hkd("compare", "--config", "study.yaml", "--trust-config", "--dry-run", paths=(), cwd=tmp_path).stdout
    assert printed.count("--plugin outside") == 2
