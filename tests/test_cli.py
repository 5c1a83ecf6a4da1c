"""The command line as a person uses it."""

import dataclasses
import json
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

import hkd
from hkd.cli import OVERVIEW, main
from hkd.cli.commands import COMMANDS, CONFIGS
from hkd.cli.parser import HELP_GROUPS
from hkd.config import MethodRequest
from hkd.methods import methods
from hkd.methods.create import method_config
from hkd.models.weights import read_about
from hkd.recipes import find_recipe, list_recipes
from hkd.report.published import SETTINGS, ZHOU, published
from hkd.spec import RunSpec, resolve_method
from hkd.studies.compare import run_spec

HKD = [sys.executable, "-m", "hkd"]
HEAVY = {"torch", "torchvision", "timm", "numpy", "accelerate", "PIL", "optuna", "matplotlib", "sklearn"}


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_help_answers_without_heavy_imports(arguments: list[str]) -> None:
    code = f"import sys\nfrom hkd.cli import main\ntry: status = main({arguments})\n"
    code += f"except SystemExit as stop: status = stop.code\nassert not status\nassert not {HEAVY} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: hkd" in done.stdout
    assert all(len(line) <= 120 for line in done.stdout.splitlines())


@pytest.mark.parametrize(("arguments", "seconds"), [(["--help"], 0.15), (["distill", "--help"], 0.2)])
def test_help_is_quick(arguments: list[str], seconds: float) -> None:
    """In processor time, which a busy machine does not stretch; the first start may have to compile."""
    best = float("inf")
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*HKD, *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < seconds


def test_a_pair_s_recipe_trains_either_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("teacher: resnet14\nstudent: resnet8\nlr: 0.01\nteacher_lr: 0.03\nholistic:\n  k: 3\n")
    for role, name, lr in (("student", "resnet8", 0.01), ("teacher", "resnet14", 0.03)):
        run = tmp_path / role
        status, _, err = ask(capsys, "train", f"--config={recipe}", "--role", role, "--run", str(run), *SMALL)
        assert status == 0, err
        assert read_about(run / "model.safetensors")["model"] == name
        assert yaml.safe_load((run / "config.yaml").read_text())["lr"] == lr
        status, out, _ = ask(capsys, "train", "--config", str(run / "config.yaml"))
        assert status == 0 and "is finished" in out


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_every_field_has_its_option(config: type) -> None:
    shown = {name for names in HELP_GROUPS.values() for name in names.split()}
    fields = {field.name for field in dataclasses.fields(config) if "help" in field.metadata}
    assert fields <= shown
    assert {f.name for f in dataclasses.fields(config) if f.init} - fields <= {"settings"}


def test_help_shows_no_field_twice_and_none_that_is_nowhere() -> None:
    shown = [name for names in HELP_GROUPS.values() for name in names.split()]
    assert len(shown) == len(set(shown))
    assert set(shown) == {f.name for kind in CONFIGS.values() for f in dataclasses.fields(kind) if "help" in f.metadata}


def test_every_promised_option_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    text = ask(capsys, "distill", "--help")[1]
    for option in (
        "run dataset data-root image-size student teacher teacher-checkpoint method method-weight kd-weight ce-weight "
        "epochs batch-size lr seed device precision workers limit-classes limit-train config fresh compile holdout "
        "holdout-seed mean std evaluate keep-checkpoints plugin trust-config threads no-flip no-tensorboard"
    ).split():
        assert f"--{option}" in text


def test_help_on_a_method_shows_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ask(capsys, "distill", "--method", "hkd+kd", "--help")
    assert status == 0 and "--holistic.k" in out and "--crd.momentum" not in out


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    """What --print-config shows for a command line."""
    status, out, err = ask(capsys, arguments[0], "--print-config", *arguments[1:])
    assert (status, err) == (0, "")
    return yaml.safe_load(out)


SMALL = ["--epochs", "1", "--limit-train", "10", "--device", "cpu", "--no-tensorboard"]


def test_a_run_from_a_config_file_with_an_override(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("teacher: resnet8\nbatch_size: 32\nlr: 0.01\nholistic:\n  k: 4\n")
    run = tmp_path / "run"
    options = ["--config", str(tmp_path / "c.yaml"), "--lr", "0.02", "--holistic.hops", "2", "--run", str(run)]
    status, out, err = ask(capsys, "distill", *options, *SMALL)
    assert status == 0, err
    assert "student.safetensors" in out and "epoch 1/1" in err
    again, out, _ = ask(capsys, "distill", "--config", str(run / "config.yaml"))
    assert again == 0 and "is finished" in out, "a run's own config.yaml is a request for the same run"
    text = (run / "config.yaml").read_text()
    for line in ("batch_size: 32", "lr: 0.02", "  k: 4", "  hops: 2"):
        assert line in text
    status, out, _ = ask(capsys, "evaluate", str(run), "--device", "cpu")
    assert status == 0 and out.startswith("top-1 ")
    lines = out.splitlines()
    table = [line.split() for line in lines[5:]]
    assert sorted(row[0] for row in table) == sorted("0123456789") and sum(int(row[1]) for row in table) == 355
    accuracies = [float(row[2]) for row in table]
    assert accuracies == sorted(accuracies), "the worst first"
    mean = float(lines[1].removeprefix("balanced accuracy ").removesuffix(" %"))
    assert abs(mean - sum(accuracies) / 10) < 0.01
    assert abs(json.loads((run / "summary.json").read_text())["balanced_accuracy"] - mean) < 0.01


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_train_names_its_network_by_its_role(tmp_path: Path, capsys: pytest.CaptureFixture[str], role: str) -> None:
    status, out, err = ask(capsys, "train", f"--{role}", "wrn_16_1", "--run", str(tmp_path / "t"), *SMALL)
    assert status == 0, err
    assert "model.safetensors" in out
    assert read_about(tmp_path / "t" / "model.safetensors")["model"] == "wrn_16_1"


@pytest.mark.parametrize("kind", ["models", "methods", "datasets", "recipes", "checkpoints"])
def test_list(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    status, out, _ = ask(capsys, "list", kind)
    assert status == 0
    expected = {"models": "resnet32x4", "methods": "hkd", "datasets": "tiny-imagenet", "recipes": "digits"}
    assert expected.get(kind, "repdistiller/resnet32x4") in out.split()


def test_methods_are_cited_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain, _ = ask(capsys, "list", "methods")
    assert plain.split("\n")[:-1] == hkd.list_methods()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    _, cited, _ = ask(capsys, "list", "methods")
    assert [line.split()[0] for line in cited.splitlines()] == hkd.list_methods()
    assert all(" et al., " in line and line[-5:-1].isdigit() for line in cited.splitlines())


@pytest.mark.parametrize("recipe", [name for name in list_recipes() if name != "cifar100-table1"])
def test_recipes_hold_only_what_differs(recipe: str) -> None:
    content = yaml.safe_load(find_recipe(recipe).read_text())
    prefixes = {methods[name].settings: name for name in methods if methods[name].settings}
    settings = {prefixes[key]: content.pop(key) for key in set(content) & set(prefixes)}
    for name, values in settings.items():
        chosen, usual = method_config(name, values), method_config(name, {})
        assert all(getattr(chosen, key) != getattr(usual, key) for key in values), name
    asked = hkd.DistillConfig(**content, settings=settings.get("hkd", {}))
    asked.check()
    default = hkd.DistillConfig()
    same = [
        key for key in content if key not in ("dataset", "student", "teacher") and content[key] == getattr(default, key)
    ]
    assert not same
    if content["student"] in ("MobileNetV2", "ShuffleV1", "ShuffleV2"):
        assert content["lr"] == 0.01


def test_the_table_s_recipe_is_the_pairs_of_the_paper_and_every_method(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(find_recipe("cifar100-table1").read_text())
    asked = hkd.CompareConfig(**content)
    asked.check()
    assert set(asked.named_pairs) == set(ZHOU)
    for teacher, student in asked.named_pairs:
        pair = yaml.safe_load(find_recipe(f"cifar100-{teacher}-{student}").read_text())
        assert pair.get("lr", 0.05) == asked.lr_of.get(student, asked.lr)
    named = {str((entry.options or {}).get("method", "ce")).removesuffix("+kd") for entry in asked.requests}
    assert named == {*hkd.list_methods(), "ce"}
    labels = {entry.label for entry in asked.requests}
    assert {label for found in ZHOU.values() for label in found} <= labels
    assert {f"hkd{SETTINGS['hkd']}", f"hkd{SETTINGS['hkd']}+kd", f"crd{SETTINGS['crd']}+kd"} <= labels
    beside = {}
    for request in asked.requests:
        spec = run_spec(asked, ("ResNet50", "MobileNetV2"), request, 0)
        spec = dataclasses.replace(spec, method=None if spec.method is None else resolve_method(spec.method))
        beside[request.label] = published("ResNet50", spec)
    assert (beside["ce"], beside["hkd+kd"], beside["crd+kd"]) == ("65.33 ± 0.63 [1]", None, None)
    assert beside[f"hkd{SETTINGS['hkd']}+kd"] == "70.72 ± 0.32 [1]"

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    monkeypatch.chdir(tmp_path)
    status, _, error = ask(capsys, "compare", "--config", "cifar100-table1", "--data-root", str(tmp_path / "none"))
    assert status == 2 and error.startswith("hkd: dataset: ") and "no network" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "written", ["ce,kd,hkd(k=4,hops=2)+kd", "ce, kd, hkd(k=4, hops=2)+kd", '[ce, kd, "hkd(k=4,hops=2)+kd"]']
)
def test_lists_are_written_with_commas(capsys: pytest.CaptureFixture[str], written: str) -> None:
    found = printed(capsys, "compare", "--methods", written, "--milestones=0.5,0.75")
    assert [MethodRequest.parse(m).label for m in found["methods"]] == ["ce", "kd", "hkd(k=4,hops=2)+kd"]
    assert found["milestones"] == [0.5, 0.75]


def test_compare_prints_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "--methods", "[ce,kd]", "--trials", "1", "--run", str(tmp_path / "c"), *SMALL]
    status, out, error = ask(capsys, *arguments)
    assert status == 0, error
    assert "| kd " in out and f"tables: {tmp_path / 'c' / 'comparison.md'}" in out
    assert "3 runs: 0 finished, 3 to go" in error and "3 runs: 3 finished, 0 to go" in error


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    hkd.save_model(hkd.create_model("resnet8", 100), folder / "hundred.safetensors")
    hkd.save_model(hkd.create_model("vgg8", 10), folder / "vgg8.safetensors")
    torch.save({"model": hkd.create_model("vgg8", 10).state_dict()}, folder / "vgg8.pth")
    (folder / "cut.safetensors").write_bytes((folder / "vgg8.safetensors").read_bytes()[:500])
    (folder / "cut.zip").write_bytes(b"PK\x03\x04 cut short")
    with zipfile.ZipFile(folder / "empty.zip", "w") as archive:
        archive.writestr("train/a/readme.txt", "")
    (folder / "page.pth").write_text("<html>not found</html>")
    (folder / "latin.yaml").write_bytes("run: b\xe4r\n".encode("latin-1"))
    (folder / "none_teach.yaml").write_text("teacher: []\n")
    (folder / "two_teach.yaml").write_text("teacher: [vgg8, my.module:net]\n")
    (folder / "typo.yaml").write_text("epoch: 3\n")
    (folder / "broken.yaml").write_text("epochs: [3\n")
    return folder


WRONG = [
    ("distil", "command: unknown name 'distil'; did you mean distill"),
    ("distill --epochz 3", "option: unknown option --epochz; did you mean --epochs"),
    ("distill --epochs many", "epochs: expected int; got 'many'"),
    ("distill --epochs 0", "epochs: expected a number in [1, 1000000]; got 0"),
    ("distill --batch-size -1", "batch_size: expected a number in [2, 1048576]; got -1"),
    ("distill --lr 0", "lr: expected a number above 0; got 0.0"),
    ("distill --lr nan", "lr: expected a number above 0; got nan"),
    ("distill --momentum 1", "momentum: expected a number in [0, 1); got 1.0"),
    ("distill --weight-decay -1", "weight_decay: expected 0 or more; got -1.0"),
    ("distill --milestones [0.5,0.2]", "milestones: expected rising fractions of the run; got [0.5, 0.2]"),
    ("distill --seed -1", "seed: expected a number in [0, 4294967296); got -1"),
    ("distill --precision fp8", "precision: expected one of fp32, bf16, fp16; got 'fp8'"),
    ("distill --precision fp16 --device cpu", "precision: fp16 needs a GPU"),
    ("distill --device gpu", "device: expected auto, cpu, cuda, cuda:N or mps; got 'gpu'"),
    ("distill --device cuda:99", "device: expected auto, cpu or one of the"),
    ("distill --workers -1", "workers: expected a number in [0, 1024]; got -1"),
    ("distill --student resnet9", "model: unknown name 'resnet9'; did you mean resnet8"),
    ("distill --teacher resnett20", "model: unknown name 'resnett20'; did you mean resnet20"),
    ("distill --student timm:resnet343", "model: unknown name 'resnet343'; did you mean resnet34"),
    ("distill --student no.where:net", "model: cannot import 'no.where:net'"),
    ("distill --method hkdd", "method: unknown name 'hkdd'; did you mean hkd"),
    ("distill --method-weight -1", "method_weight: expected 0 or more; got -1.0"),
    ("distill --method-weight 0 --kd-weight 0 --ce-weight 0", "method_weight: all weights are 0"),
    ("distill --kd-temperature 0", "kd_temperature: expected a number above 0; got 0.0"),
    ("distill --dataset digit", "dataset: unknown name 'digit'; did you mean digits"),
    ("distill --dataset folder:/no/where", "dataset: no folder or .zip archive at /no/where"),
    ("distill --dataset folder:{files}/cut.zip", "is not a readable zip archive"),
    ("distill --dataset folder:{files}/empty.zip", "dataset: expected at least two class folders in"),
    ("distill --image-size 0", "image_size: expected a number in [2, 4096]; got 0"),
    ("distill --image-size 64x64", "image_size: expected int or nothing; got '64x64'; one side says it, as images are"),
    ("distill --limit-classes 1", "limit_classes: expected 2 or more; got 1"),
    ("distill --limit-classes 11", "limit_classes: expected 2 to 10 for digits; got 11"),
    ("distill --limit-train 0", "limit_train: expected 1 or more; got 0"),
    ("distill --teacher-checkpoint {files}/none.pth", "hkd: teacher_checkpoint: no file"),
    ("distill --teacher-checkpoint {files}/cut.safetensors", "is not a readable safetensors file"),
    ("distill --teacher-checkpoint {files}/hundred.safetensors", "has a 100-class head, digits has 10 classes"),
    ("distill --teacher resnet20 --teacher-checkpoint {files}/vgg8.safetensors", "does not fit resnet20"),
    ("distill --teacher resnet20 --teacher-checkpoint {files}/vgg8.pth", "does not fit resnet20"),
    (
        "distill --teacher resnet8 --teacher vgg8",
        "teacher_checkpoint: expected the weights of each of 2 teachers; got 0",
    ),
    (
        "distill --teacher resnet8 --teacher vgg8 --teacher-checkpoint {files}/vgg8.pth",
        "teacher_checkpoint: expected 2, one for each teacher; got 1",
    ),
    (
        "distill --teacher resnet8 --teacher-checkpoint a --teacher-checkpoint b",
        "teacher_checkpoint: expected 1, one for each teacher; got 2",
    ),
    (
        "distill --teacher-checkpoint {files}/vgg8.safetensors --teacher-checkpoint {files}/hundred.safetensors",
        "hundred.safetensors has a 100-class head, digits has 10 classes",
    ),
    (
        "distill --method at --teacher-checkpoint {files}/vgg8.safetensors "
        "--teacher-checkpoint {files}/vgg8.safetensors",
        "method: AT needs features; several teachers serve methods of logits and embeddings",
    ),
    ("distill --config {files}/none_teach.yaml", "teacher: expected one or more, one for each teacher; got 0"),
    ("distill --config {files}/two_teach.yaml", "names teacher = my.module:net, which is code"),
    ("train --role teacher --config {files}/two_teach.yaml --trust-config", "teacher: expected str or nothing; got ["),
    ("distill --holistic.k 0", "holistic.k: expected 1 or more; got 0"),
    ("distill --holistic.num-negatives 0", "holistic.num_negatives: expected 1 or more; got 0"),
    ("distill --holistic.temperature 0", "holistic.temperature: expected a number above 0; got 0.0"),
    ("distill --holistic.layers 0", "holistic.layers: expected 1 or more; got 0"),
    ("distill --holistic.negatives both", "holistic.negatives: expected one of same, opposite; got 'both'"),
    ("distill --method kd --holistic.k 4", "holistic.k: is a setting of hkd, and the method is kd"),
    ("distill --config {files}/none.yaml", "config: no file"),
    ("distill --config digit", "config: unknown name 'digit'; did you mean digits"),
    ("distill --config {files}/typo.yaml", "config: hkd distill has no option 'epoch'; did you mean epochs?"),
    ("distill --config {files}/broken.yaml", "config: "),
    ("train --student resnet8 --teacher resnet20", "role: student resnet8 and teacher resnet20 are named; --role says"),
    ("train --role pupil", "role: "),
    ("train --method kd", "method: is for a distillation, and train learns from labels alone"),
    ("train --teacher-checkpoint x", "teacher_checkpoint: is for a distillation"),
    ("distill --role teacher", "option: unknown option --role"),
    ("distill --student=", "student: expected a name; got an empty one"),
    ("distill --seed 5000000000", "seed: expected a number in [0, 4294967296); got 5000000000"),
    ("distill --epoch 3", "option: unknown option --epoch; did you mean --epochs"),
    ("distill --student vgg8 --image-size 2", "image_size: vgg8 does not take images of 2x2"),
    ("distill --method kd --method-weight 1", "method_weight: kd is the KD term, whose weight is kd_weight"),
    ("distill --run {files}/typo.yaml/run", "run: "),
    ("distill --teacher-checkpoint {files}/vgg8.pth", "teacher: {files}/vgg8.pth does not say which network it holds"),
    ("distill --teacher-checkpoint {files}/page.pth --teacher resnet20", "page.pth is truncated or corrupt"),
    ("distill --config {files}/latin.yaml", "config: "),
    ("distill --config=digit", "config: unknown name 'digit'; did you mean digits"),
    ("train --holistic.k 3", "holistic.k: is for a distillation"),
    ("compare --methods [ce,hdk]", "method: unknown name 'hdk'; did you mean hkd"),
    ("compare --methods [hkd(kk=3)]", "holistic: unknown name 'kk'; did you mean k"),
    ("compare --trials 0", "trials: expected a number in [1, 100000]; got 0"),
    ("compare --method kd", "option: unknown option --method; did you mean --methods"),
    ("compare --pairs [resnet8]", "pairs: expected TEACHER->STUDENT; got 'resnet8'"),
    ("compare --baseline sp", "baseline: unknown name 'sp'"),
    ("distill --method kd+kd", "method: kd is the KD term itself"),
    ("distill --method at+kdd", "method: unknown name 'at+kdd'"),
    ("distill --method fsp --teacher wrn_16_2", "method: fsp compares Gram matrices, so stage maps need equal numbers"),
    ("distill --method ab --ab.init-epochs -1", "ab.init_epochs: expected 0 or more; got -1"),
    ("distill --method fitnet --fitnet.stage 9", "fitnet.stage: expected one of 0, 1, 2, 3; got 9"),
    ("list", "list: name one of models, methods, datasets, recipes, checkpoints"),
    ("list models extra", "list: takes one word"),
    ("evaluate {files}/none", "checkpoint: no file"),
    ("evaluate {files}/vgg8.pth --dataset digits", "model: {files}/vgg8.pth does not say which network it holds"),
    ("evaluate {files}/vgg8.safetensors", "dataset: name the data set to test on"),
    ("evaluate {files}/hundred.safetensors --dataset digits", "does not fit resnet8: fc.weight is (100, 64)"),
    ("distill --save-minutes 0", "save_minutes: expected a number above 0; got 0.0"),
    ("distill --skip-bad-steps -1", "skip_bad_steps: expected 0 or more; got -1"),
    ("distill --bad-images keep", "bad_images: expected one of stop, skip; got 'keep'"),
    (
        "distill --holistic.bank-dtype float64",
        "holistic.bank_dtype: expected one of float32, bfloat16, float16; got 'float64'",
    ),
    ("distill --holistic.graph none", "holistic.graph: expected one of global, local; got 'none'"),
    ("list model", "list: unknown name 'model'; did you mean models"),
    ("list --plugin", "plugin: expected the name of a module"),
    ("list --all methods", "option: unknown option --all"),
    ("list methods --plugin no.such", "plugin: cannot import 'no.such' (ModuleNotFoundError"),
    ("distill --plugin no.such", "plugin: cannot import 'no.such'"),
    ("distill -x 3", "option: unknown option -x; see hkd distill --help"),
    ("distill runs/a", "option: unexpected 'runs/a'; see hkd distill --help"),
    ("distill --milestones 0.5 0.7", "option: unexpected '0.7'"),
    ("distill --lr", "lr: expected one argument"),
    ("distill --lr --epochs 3", "lr: expected one argument"),
    ("distill --lr=", "lr: expected float; got ''"),
    ("distill --flip=yes", "flip: takes no value 'yes'"),
    ("distill --fresh=1", "fresh: takes no value '1'"),
    ("distill --mean 0.5,0.5", "mean: expected a list of 3"),
    ("distill --evaluate never", "evaluate: expected one of every, last; got 'never'"),
    ("distill --threads 0", "threads: expected a number in [1, 4096]; got 0"),
    ("distill --holdout 1", "holdout: expected a number in [0, 1); got 1"),
    ("distill --config cifar100-table1", "config: hkd distill has no option 'pairs'; it is an option of hkd compare"),
    ("compare --config digits", "config: hkd compare has no option 'teacher'; did you mean teachers"),
    (
        "train --role teacher --student resnet20",
        "role: expected the teacher's name, --teacher NAME; only student resnet20",
    ),
    (
        "train --role student --teacher resnet20",
        "role: expected the student's name, --student NAME; only teacher resnet20",
    ),
    ("train --student resnet20 --teacher-lr 0.1", "teacher_lr: is the teacher's, and the student is trained"),
    ("train --config {files}/typo.yaml", "config: hkd train has no option 'epoch'; did you mean epochs"),
    ("compare --lr-of resnet8", "lr_of: expected NAME=VALUE,...; got 'resnet8'"),
    ("compare --lr-of resnet8=fast", "lr_of.resnet8: expected float; got 'fast'"),
    ("compare --lr-of resnet8=0", "lr_of.resnet8: expected a number above 0; got 0"),
    ("compare --teacher-checkpoints {{resnet20", "teacher_checkpoints: expected a mapping; got '{{resnet20'"),
    ("compare --methods [ce", "methods: expected a list; got '[ce'"),
    ("evaluate", "checkpoint: name a run folder or a file of weights"),
    ("evaluate a b", "checkpoint: takes one; got 'a b'"),
    ("evaluate a --checkpoint b", "checkpoint: named with --checkpoint and again as 'a'"),
    ("evaluate --device cpu {files}/none", "checkpoint: no file {files}/none"),
    ("report --output x.html", "runs: name at least one run folder"),
    ("report a --runs b", "runs: named with --runs and again as 'a'"),
    ("transfer", "checkpoints: name at least one run folder or file of weights"),
    ("topology", "checkpoints: name at least one run folder"),
]


@pytest.mark.parametrize(("request_line", "expected"), WRONG, ids=[line for line, _ in WRONG])
def test_a_wrong_request_gets_one_line_and_status_2(
    request_line: str, expected: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    status, out, err = ask(capsys, *request_line.format(files=files).split())
    assert status == 2
    assert out == ""
    assert len(err.splitlines()) == 1 and err.startswith("hkd: ")
    assert expected.format(files=files) in err
    assert not list(tmp_path.rglob("config.yaml")), "a refused request leaves no run folder"


def test_several_teachers_are_given_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So that a path may have a comma."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text("teacher: [resnet8, vgg8]\nteacher_checkpoint: [a, b]\n")
    words = [
        "distill",
        "--teacher",
        "vgg13",
        "--teacher",
        "vgg8",
        "--teacher-checkpoint=a,b",
        "--teacher-checkpoint",
        "c",
    ]
    shown = printed(capsys, *words)
    assert (shown["teacher"], shown["teacher_checkpoint"]) == (["vgg13", "vgg8"], ["a,b", "c"])
    assert printed(capsys, *words, "--config", str(recipe)) == shown
    read = printed(capsys, "distill", "--config", str(recipe))
    assert (read["teacher"], read["teacher_checkpoint"]) == (["resnet8", "vgg8"], ["a", "b"])
    one = printed(capsys, "distill", "--config", str(recipe), "--teacher", "vgg13", "--teacher-checkpoint", "a,b")
    assert (one["teacher"], one["teacher_checkpoint"]) == ("vgg13", "a,b")


@pytest.mark.parametrize("words", ["--edges=" + "x" * 10**5, "--\x1b[2J=1", "--\u2028", "--" + "y" * 10**5])
def test_what_is_repeated_of_a_command_line_is_escaped_and_shortened(
    capsys: pytest.CaptureFixture[str], words: str
) -> None:
    status, _, told = ask(capsys, "topology", words)
    assert status == 2 and told.rstrip("\n").isprintable() and len(told) < 3000


def test_a_failed_run_gets_one_line_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = ask(capsys, "train", "--lr", "1e30", "--run", str(tmp_path / "t"), *SMALL)
    assert status == 1
    assert err.splitlines()[-1].startswith("hkd: failed: the loss is NaN or infinite in epoch 1")


def test_standard_error_carries_no_traceback() -> None:
    done = subprocess.run([*HKD, "distill", "--dataset", "nowhere"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "--version") == (0, f"hkd {hkd.__version__}\n", "")


def test_the_overview_says_what_the_commands_say() -> None:
    assert {name: command.__doc__ for name, command in COMMANDS.items()} == OVERVIEW


def test_nothing_at_all_shows_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ((), ("--debug",), ("-h",)):
        status, out, _ = ask(capsys, *arguments)
        assert status == 0 and all(f"  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize(("command", "option"), [("report", "--output"), ("transfer", "--run"), ("topology", "--run")])
def test_words_may_stand_anywhere(capsys: pytest.CaptureFixture[str], command: str, option: str) -> None:
    field = "runs" if command == "report" else "checkpoints"
    for words in (
        ["a", "b", option, "x"],
        [option, "x", "a", "b"],
        ["a", option, "x", "b"],
        [option, "x", "--", "a", "b"],
    ):
        shown = printed(capsys, command, *words)
        assert (shown[field], shown[option[2:]]) == (["a", "b"], "x")


def test_one_word_may_stand_behind_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hkd.save_model(hkd.create_model("resnet8", 10), tmp_path / "m.safetensors")
    results = set()
    for words in (["{}", "--device", "cpu"], ["--device", "cpu", "{}"], ["--device=cpu", "--", "{}"]):
        line = [word.format(tmp_path / "m.safetensors") for word in words]
        status, out, err = ask(capsys, "evaluate", "--dataset", "digits", *line)
        assert status == 0, err
        results.add(out)
    assert len(results) == 1
    assert printed(capsys, "export", "--formats", "onnx", "runs/a")["checkpoint"] == "runs/a"


def test_flags_lists_and_mappings(capsys: pytest.CaptureFixture[str]) -> None:
    usual = printed(capsys, "distill")
    assert (usual["flip"], usual["tensorboard"], usual["compile"]) == (True, True, False)
    shown = printed(capsys, "distill", "--no-flip", "--no_tensorboard", "--compile", "--milestones", "[0.5, 0.75]")
    assert (shown["flip"], shown["tensorboard"], shown["compile"]) == (False, False, True)
    assert shown["milestones"] == [0.5, 0.75]
    assert printed(capsys, "distill", "--no-flip", "--flip")["flip"], "the last one counts"
    assert printed(capsys, "distill", "--milestones", "")["milestones"] == []
    assert printed(capsys, "distill", "--mean", "0.1,0.2,.3", "--lr", "1e-3", "--image-size", "none") == usual | {
        "mean": [0.1, 0.2, 0.3], "lr": 1e-3
    }  # fmt: skip
    for written in ("resnet8=0.1,resnet20=1e-2", "{resnet8: 0.1, resnet20: 0.01}"):
        assert printed(capsys, "compare", "--lr-of", written)["lr_of"] == {"resnet8": 0.1, "resnet20": 0.01}
    files = printed(capsys, "compare", "--teacher-checkpoints", "resnet20=a/b.pth")["teacher_checkpoints"]
    assert files == {"resnet20": "a/b.pth"}


def test_what_is_printed_is_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", "--method", "crd+kd", "--crd.temperature", "0.1", "--lr", "0.2", "--run", "elsewhere"]
    shown = printed(capsys, *words)
    assert (shown["method"], shown["kd_weight"], shown["crd"]["temperature"], shown["format"]) == ("crd", 1.0, 0.1, 2)
    assert not any("digest" in name or "revision" in name for name in shown)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(shown))
    assert printed(capsys, "distill", "--config", str(tmp_path / "c.yaml")) == shown
    for command in ("train", "compare", "sweep", "evaluate", "export"):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(shown := printed(capsys, command)))
        assert printed(capsys, command, "--config", str(tmp_path / "c.yaml")) == shown
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.parametrize("method", hkd.list_methods())
def test_a_pair_s_recipe_serves_every_method(capsys: pytest.CaptureFixture[str], method: str) -> None:
    shown = printed(capsys, "distill", "--config", "cifar100-resnet32x4-resnet8x4", "--method", method)
    assert (shown["method"], shown["student"], shown["dataset"]) == (method, "resnet8x4", "cifar100")
    assert ("holistic" in shown) == (method == "hkd")
    if method == "hkd":
        assert (shown["holistic"]["negatives"], shown["holistic"]["bank_start"]) == ("same", "random")


def test_later_files_and_the_command_line_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("lr: 0.1\nholistic: {k: 3, hops: 2}\nepochs: 5\n")
    (tmp_path / "b.yaml").write_text("holistic: {k: 4}\nepochs: 6\n")
    files = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    shown = printed(capsys, "distill", *files, "--epochs", "7", "--holistic.layers", "2")
    assert (shown["lr"], shown["epochs"]) == (0.1, 7)
    assert [shown["holistic"][name] for name in ("k", "hops", "layers")] == [4, 2, 2]


def test_weights_of_a_file_are_those_of_its_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run's config.yaml holds the numbers of its method, which are not another's."""
    (tmp_path / "run.yaml").write_text("method: hkd\nmethod_weight: 5.0\nkd_weight: 0.0\nce_weight: 0.5\n")
    (tmp_path / "open.yaml").write_text("kd_weight: 0.25\n")

    def weights(file: str, *words: str) -> tuple:
        shown = printed(capsys, "distill", "--config", str(tmp_path / file), *words)
        return tuple(shown[f"{name}_weight"] for name in ("method", "kd", "ce"))

    assert weights("run.yaml") == (5.0, 0.0, 0.5)
    assert weights("run.yaml", "--method", "hkd") == (5.0, 0.0, 0.5)
    assert weights("run.yaml", "--method", "hkd+kd") == (5.0, 1.0, 0.5)
    assert weights("run.yaml", "--method", "at") == (None, None, None)
    assert weights("run.yaml", "--method", "at+kd", "--ce-weight", "2") == (None, 1.0, 2.0)
    assert weights("open.yaml", "--method", "at") == (None, 0.25, None), "of no method, so for any"


def test_a_finished_run_s_configuration_makes_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["--teacher", "resnet8", "--lr", "0.02", "--holistic.k", "4", "--teacher-lr", "0.01"]
    assert ask(capsys, "distill", "--run", str(first), *words, *SMALL)[0] == 0
    status, _, err = ask(capsys, "distill", "--config", str(first / "config.yaml"), "--run", str(second))
    assert status == 0, err
    a, b = (RunSpec.load(run / "config.yaml") for run in (first, second))
    assert a.key() == b.key() and a.seed == b.seed
    assert RunSpec.load(first / "teacher" / "config.yaml").optimisation.lr == 0.01
    assert (first / "student.safetensors").read_bytes() == (second / "student.safetensors").read_bytes()


def test_the_learning_rate_of_a_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("teacher: resnet14\nstudent: resnet8\nlr: 0.01\nteacher_lr: 0.03\n")
    for words, lr in (
        (["--role", "teacher"], 0.03), (["--role", "student"], 0.01), (["--role", "teacher", "--lr", "0.2"], 0.2),
        (["--role", "teacher", "--teacher-lr", "0.3"], 0.3),
        (["--role", "teacher", "--lr", "2", "--teacher-lr", "3"], 3.0),
    ):  # fmt: skip
        assert printed(capsys, "train", "--config", str(recipe), *words)["lr"] == lr


PLUGIN = """
from dataclasses import dataclass
from hkd.methods import Method, methods
from hkd.options import option

@dataclass(frozen=True)
class Config:
    power: float = option(2.0, "of the differences", gt=0)

@methods.register("differences")
class Differences(Method):
    Config = Config
    settings = "differences"
    def __init__(self, setup, config):
        super().__init__(setup, config)
    def forward(self, batch, student, teacher):
        return {"difference": (student.logits - teacher.logits).abs().pow(self.config.power).mean()}
"""


def test_a_plugin_s_method_has_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "differences_plugin.py").write_text(PLUGIN)
    (tmp_path / "r.yaml").write_text("plugins: [differences_plugin]\nmethod: differences\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    hkd.list_methods()
    for words in (["--config", "r.yaml", "--trust-config"], ["--plugin=differences_plugin", "--method=differences"]):
        monkeypatch.setattr(methods, "_entries", dict(methods._entries))
        monkeypatch.delitem(sys.modules, "differences_plugin", raising=False)
        methods._entries.pop("differences", None)
        shown = printed(capsys, "distill", *words, "--differences.power", "3")
        assert (shown["method"], shown["differences"]) == ("differences", {"power": 3.0})
        assert "--differences.power" in ask(capsys, "distill", *words, "--method", "differences", "--help")[1]
        assert "differences" in ask(capsys, "list", "methods", "--plugin", "differences_plugin")[1].split()


@pytest.mark.parametrize("redirected", [">&-", ">/dev/full", ">&- 2>&-", "2>/dev/full", "<&- >&-"])
def test_a_run_needs_no_reader(tmp_path: Path, redirected: str) -> None:
    run = [*HKD, "train", "--run", str(tmp_path / "t"), *SMALL]
    done = subprocess.run(["sh", "-c", f'"$@" {redirected}', "sh", *run], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert (tmp_path / "t" / "summary.json").is_file()


def hears_hang_ups() -> None:
    """Also where the tests were started with nohup, under which a run goes on."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("lines", [1, 5])
def test_a_pipe_whose_reader_is_gone_stops_a_run_with_its_checkpoint(tmp_path: Path, lines: int) -> None:
    """After one line the run may not have begun: then there is nothing to save."""
    run = [*HKD, "train", "--run", str(tmp_path / "t"), *SMALL, "--epochs", "5000"]
    line = '{ "$@"; echo $? > "$0"; } 2>&1 | head -' + str(lines)
    done = subprocess.run(
        ["sh", "-c", line, str(tmp_path / "status"), *run], capture_output=True, text=True, check=False, timeout=300,
        preexec_fn=hears_hang_ups,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == lines and done.stderr == ""
    assert not (tmp_path / "t" / "summary.json").exists()
    if lines > 1:  # else the shell itself may end by SIGPIPE, as it says that the run was hung up
        assert (tmp_path / "status").read_text() == "129\n"
        assert (tmp_path / "t" / "checkpoints" / "last.pt").is_file()
