"""Code that a file names is imported if a person says so, and never else."""

import dataclasses
import itertools
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import safetensors.torch
import yaml

import hkd
from hkd.cli.commands import CONFIGS
from hkd.cli.parser import read_config
from hkd.cli.trust import check_networks
from hkd.models import external, names_code
from hkd.options import hints_of
from hkd.parts import _blank
from hkd.recipes import find_recipe, list_recipes
from hkd.report.collect import read_run
from hkd.runtime.run_folder import RunFolder
from hkd.spec import RunSpec
from hkd.trainer import Trainer
from tests.test_cli import ask

PAYLOAD = "import pathlib\nimport hkd\npathlib.Path({marker!r}).touch()\n" + (
    "def net(classes):\n    return hkd.create_model('resnet8', classes)\n"
)
TINY = ["--epochs", "1", "--limit-train", "4", "--device", "cpu", "--no-tensorboard"]
NET = "payload:net"
WAY = "which is code; name it on the command line, or add --trust-config if you trust the file"


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that exists once ``payload``, a module of the working directory, has been imported by anybody."""
    marker = tmp_path / "imported"
    (tmp_path / "payload.py").write_text(PAYLOAD.format(marker=str(marker)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "payload", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr("hkd.registry._plugins", {})
    _blank.cache_clear()
    yield marker
    sys.modules.pop("payload", None)
    _blank.cache_clear()


def write(values: Any, name: str = "r.yaml") -> str:
    Path(name).write_text(yaml.safe_dump(values))
    return name


# -- files of --config ------------------------------------------------------------------------------------------------

PLACES: list[tuple[str, dict[str, Any], str]] = [
    *((command, {role: NET}, role) for command in ("train", "distill", "sweep") for role in ("student", "teacher")),
    ("train", {"teacher": NET, "student": "resnet8", "role": "student"}, "teacher"),
    ("compare", {"students": ["resnet8", NET]}, "students"),
    ("compare", {"teachers": [NET]}, "teachers"),
    ("compare", {"pairs": ["resnet20 -> resnet8", f"{NET}->resnet8"]}, "pairs"),
    ("compare", {"pairs": [f"resnet20 -> {NET}"]}, "pairs"),
    ("sweep", {"field": "student", "values": ["resnet8", NET]}, "values"),
    ("sweep", {"field": "teacher", "values": [NET, "resnet20"]}, "values"),
    ("sweep", {"search": [f"student=resnet8| {NET}"], "holdout": 0.2}, "search"),
    ("evaluate", {"model": NET, "checkpoint": "m.safetensors"}, "model"),
    ("export", {"model": NET, "checkpoint": "m.safetensors"}, "model"),
    ("cache", {"teacher": NET, "checkpoint": "m.safetensors", "teacher_cache": "table"}, "teacher"),
    *((command, {"plugins": ["payload"]}, "plugins") for command in CONFIGS),
]


@pytest.mark.parametrize(("command", "values", "option"), PLACES)
def test_a_file_cannot_name_code(
    marker: Path, capsys: pytest.CaptureFixture[str], command: str, values: dict[str, Any], option: str
) -> None:
    write(values)
    before, path = sorted(Path().iterdir()), list(sys.path)
    name = "payload" if option == "plugins" else NET
    more = ["--help"] if option == "plugins" else ["--config", write({}, "empty.yaml")]
    for words in ([], ["--print-config"], more):
        status, out, err = ask(capsys, command, "--config", "r.yaml", *words)
        assert (status, out, err) == (2, "", f"hkd: config: r.yaml names {option} = {name}, {WAY}\n")
    Path("empty.yaml").unlink(missing_ok=True)
    assert not marker.exists() and sys.path == path and sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    "name", ["os:_exit", "timm:hf-hub:x/y", "timm:local-dir:/tmp/x", "hf-hub:x", ":", "timm:a/b:c"]
)
def test_hubs_and_modules_of_python_are_code_too(marker: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert names_code(name)
    write({"student": name})
    assert ask(capsys, "distill", "--config=r.yaml")[::2] == (
        2, f"hkd: config: r.yaml names student = {name}, {WAY}\n"
    )  # fmt: skip


def test_a_name_cannot_move_the_cursor(marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for values in ({"student": "a:\x1b[2J\n"}, {"plugins": ["\x1b[2J\n" + "x" * 10**5]}):
        write(values)
        status, _, err = ask(capsys, "distill", "--config", "r.yaml")
        assert status == 2 and err.endswith(f"{WAY}\n") and err[:-1].isprintable() and len(err) < 500


WORDS = {
    "train": "--no-tensorboard", "distill": "--no-tensorboard", "compare": "--dry-run", "report": "{honest}",
    "sweep": "--dry-run --field student --run sweep", "evaluate": "{honest}/t",
    "export": "{honest}/t --output out --formats safetensors",
    "cache": "{honest}/t --teacher-cache table --views 1 --limit-train 4", "transfer": "{honest}/t --datasets none",
    "predict": "{honest}/t r.yaml", "topology": "{honest}/t {honest}/s --images 12 --neighbours 3",
}  # fmt: skip
"""What lets a command come to where networks are built."""


def text_options() -> list[tuple[str, str]]:
    """Every option of every command that takes a text, or a list of texts."""
    takes = (str, str | None, tuple[str, ...])
    return [
        (command, entry.name)
        for command, kind in CONFIGS.items()
        for entry in dataclasses.fields(kind)
        if "help" in entry.metadata and hints_of(kind)[entry.name] in takes
    ]


@pytest.mark.parametrize(("command", "option"), text_options())
def test_no_option_of_a_file_leads_to_an_import(
    marker: Path, honest: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str,
    option: str,
) -> None:  # fmt: skip
    """Whichever they are: one that is added later and names a network is noticed here."""

    def refuse(*_: Any) -> None:
        raise hkd.RequestError("no run is wanted")

    monkeypatch.setattr(Trainer, "run", refuse)
    monkeypatch.setattr(external, "from_timm", lambda *_: pytest.fail("a hub was asked"))
    several = get_origin(hints_of(CONFIGS[command])[option]) is tuple and get_args(hints_of(CONFIGS[command])[option])
    words = WORDS[command].format(honest=honest).split()
    for name in (NET, "timm:hf-hub:x/y"):
        write({option: [name] if several else name})
        ask(capsys, command, "--config", "r.yaml", *words)
    assert not marker.exists()


def test_recipes_of_this_package_name_no_code() -> None:
    for name in list_recipes():
        values = read_config(file := find_recipe(name))
        assert "plugins" not in values
        check_networks(values, {}, dict.fromkeys(values, file))


# -- what a person says -----------------------------------------------------------------------------------------------


def test_a_name_on_the_command_line_takes_the_place_of_the_file_s(
    marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write({"student": "payload:other", "teacher": "resnet8", "plugins": ["payload"]})
    status, out, err = ask(
        capsys, "distill", "--print-config", "--config", "r.yaml", "--plugin=payload", "--student", NET
    )
    assert (status, err) == (0, "") and yaml.safe_load(out)["student"] == NET
    write({"student": NET}, "below.yaml")
    write({"student": "resnet14"}, "above.yaml")
    words = ["distill", "--print-config", "--config", "below.yaml", "--config", "above.yaml"]
    assert yaml.safe_load(ask(capsys, *words)[1])["student"] == "resnet14", "the last file counts"
    assert "below.yaml names student" in ask(capsys, *words[:2], *words[4:], *words[2:4])[2]


def test_typed_code_is_run_and_continued_without_more_words(marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--student", NET, "--run", "run", *TINY]
    assert ask(capsys, *words)[0] == 0 and marker.exists()
    assert RunFolder("run").spec.code == {"student": NET}, "a folder is read to be shown"
    for file in ("summary.json", "model.safetensors"):
        Path("run", file).unlink()
    assert ask(capsys, *words)[0] == 0, "resumed"
    assert "is finished" in ask(capsys, *words)[1]
    assert f"run/config.yaml names student = {NET}" in ask(capsys, "train", "--config", "run/config.yaml")[2]
    assert "is finished" in ask(capsys, "train", "--config", "run/config.yaml", "--trust_config")[1]
    assert "is finished" in ask(capsys, "train", "--config", "run/config.yaml", "--student", NET)[1]
    run = read_run(RunFolder("run"))
    assert run is not None and run.command == "hkd train --config run/config.yaml --trust-config --run NEW"
    assert ask(capsys, *shlex.split(run.command)[1:])[0] == 0, "what a report recommends works"


def test_python_is_told_apart(marker: Path) -> None:
    """A name in Python was typed; one in a file was not."""
    spec = hkd.TrainConfig(student=NET, run="typed", epochs=1, limit_train=4, device="cpu", tensorboard=False).spec()
    spec.save(Path("c.yaml"))
    with pytest.raises(
        hkd.RequestError, match=f"^config: c.yaml names student = {NET}, which is code; pass trust=True"
    ):
        RunSpec.load("c.yaml")
    assert RunSpec.load("c.yaml", trust=True) == RunSpec.read("c.yaml") == spec and not marker.exists()
    hkd.train(spec)
    assert marker.exists()


@pytest.mark.parametrize("typed", [True, False])
def test_the_runs_of_a_study_import_what_a_person_named(
    marker: Path, capsys: pytest.CaptureFixture[str], typed: bool
) -> None:
    """In processes of their own, whose command lines hold the names and no file."""
    study = {"students": [NET], "methods": ["ce"], "trials": 1, "jobs": 1, "threads": 1, "plugins": ["payload"]}
    words = ["--students", NET, "--plugin", "payload"] if typed else ["--trust-config"]
    words = ["compare", "--config", write(study), "--run", "study", *words, *TINY]
    status, out, _ = ask(capsys, *words, "--dry-run")
    assert status == 0 and f"--student {NET}" in out and "--plugin payload" in out and "--config" not in out
    marker.unlink()
    status, _, err = ask(capsys, *words)
    assert status == 0, err
    assert marker.exists(), "made by the run's process: this one had imported it before"


# -- run folders and weights ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder with a teacher and its student."""
    folder = tmp_path_factory.mktemp("honest")
    small = {"epochs": 1, "limit_train": 4, "device": "cpu", "tensorboard": False, "image_cache": str(folder / "cache")}
    hkd.train(hkd.TrainConfig(run=str(folder / "t"), student="resnet8", **small))
    hkd.distill(hkd.DistillConfig(run=str(folder / "s"), method="kd", teacher_checkpoint=str(folder / "t"), **small))
    return folder


def forged(honest: Path, *, weights: bool, package: str) -> None:
    """The run folders ``runs/t`` and ``runs/s`` in the working directory, importable from it, with names of code."""
    shutil.copytree(honest, "runs", ignore=shutil.ignore_patterns("cache"))
    shutil.copy("payload.py", "runs/s/payload.py")
    for run, file in (("t", "model.safetensors"), ("s", "student.safetensors")):
        config = Path("runs", run, "config.yaml")
        values = yaml.safe_load(config.read_text()) | {"student": f"{package}:net"}
        values |= {"teacher": f"{package}:net", "teacher_checkpoint": "runs/t"} if run == "s" else {}
        config.write_text(yaml.safe_dump(values))
        if weights:
            path = Path("runs", run, file)
            with safetensors.safe_open(path, "pt") as content:
                about = json.loads(content.metadata()["hkd"]) | {"model": f"{package}:net"}
            safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"hkd": json.dumps(about)})


ON_FOLDERS = {
    "evaluate": "evaluate runs/s --device cpu",
    "export": "export runs/s --formats safetensors",
    "transfer": "transfer runs/s --datasets digits --limit-train 5 --run out --device cpu",
    "topology": "topology runs/s --images 12 --neighbours 3 --run out --device cpu",
    "report": "report runs --output out.html",
    "distill from it": "distill --method kd --teacher-checkpoint runs/t --run new {tiny}",
    "continue it": "distill --method kd --teacher-checkpoint runs/t --run runs/s {tiny}",
    "train in it": "train --run runs/t --student resnet8 {tiny}",
    "config": "distill --config runs/s/config.yaml --run new",
    "cache": "cache runs/t --teacher-cache table --views 1 --limit-train 4 --device cpu",
    "compare with it": "compare --run runs --methods kd --trials 1 --dry-run --teachers resnet8 "
    "--teacher-checkpoints resnet8=runs/t {tiny}",
    "compare in it": "compare --run runs --methods ce --trials 1 --dry-run {tiny}",
    "sweep": "sweep --run out --teacher-checkpoint runs/t --methods kd --field lr --values 0.1,0.2 --dry-run {tiny}",
}


@pytest.mark.parametrize(
    ("request_line", "weights", "package"),
    [
        pytest.param(line, weights, package, id=f"{name}-{'weights' if weights else 'config'}-{package}")
        for (name, line), (weights, package) in itertools.product(
            ON_FOLDERS.items(), [(False, "payload"), (True, "runs.s.payload")]
        )
    ],
)
def test_a_folder_cannot_name_code(
    marker: Path, honest: Path, capsys: pytest.CaptureFixture[str], request_line: str, weights: bool, package: str
) -> None:
    forged(honest, weights=weights, package=package)
    path = list(sys.path)
    status, _, err = ask(capsys, *request_line.format(tiny=" ".join(TINY)).split())
    assert status in (0, 2), err
    assert not marker.exists() and sys.path == path
    assert not [name for name in sys.modules if "payload" in name]


def test_a_search_cannot_be_told_a_network_by_its_folder(marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "sweep --search student=resnet8|resnet14 --holdout 0.2 --methods kd --teacher resnet8 --run out --dry-run"
    Path("out").mkdir()
    Path("out/study.yaml").write_text("kind: search\n")
    tries = [{"try": 0, "values": {"student": NET}}]
    search = {"search": ["student=resnet8|resnet14"], "method": "kd", "best": None, "tries": tries}
    Path("out/search.json").write_text(json.dumps(search))
    assert ask(capsys, *line.split(), *TINY)[0] != 0
    assert not marker.exists()
