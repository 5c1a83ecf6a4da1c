"""The command line as a person uses it."""

import dataclasses
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

import hkd
from hkd.cli import HELP_GROUPS, main
from hkd.config import Entry
from hkd.methods.hkd import HolisticConfig
from hkd.recipes import find_recipe, list_recipes
from hkd.report.published import RELEASED, ZHOU, published

HKD = [sys.executable, "-m", "hkd.cli"]


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["distill", "--help"], ["train", "--help"], ["evaluate", "--help"], ["compare", "--help"]]
)
def test_help_answers_without_heavy_imports(arguments: list[str]) -> None:
    code = f"import sys\nfrom hkd.cli import main\ntry: main({arguments})\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy', 'accelerate'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: hkd" in done.stdout


def test_help_is_quick() -> None:
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([*HKD, "distill", "--help"], capture_output=True, check=True)
        best = min(best, time.perf_counter() - started)
    assert best < 0.5


def test_a_pair_s_recipe_trains_either_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("teacher: resnet14\nstudent: resnet8\nlr: 0.01\nteacher_lr: 0.03\nholistic:\n  k: 3\n")
    for role, name, lr in (("student", "resnet8", 0.01), ("teacher", "resnet14", 0.03)):
        run = tmp_path / role
        status, _, err = ask(capsys, "train", f"--config={recipe}", "--role", role, "--run", str(run), *SMALL)
        assert status == 0, err
        assert hkd.load_model(run / "model.safetensors")[1]["model"] == name
        assert yaml.safe_load((run / "config.yaml").read_text())["lr"] == lr
        status, out, _ = ask(capsys, "train", "--config", str(run / "config.yaml"))
        assert status == 0 and "is finished" in out


@pytest.mark.parametrize("config", [hkd.TrainConfig, hkd.DistillConfig, hkd.EvaluateConfig, hkd.CompareConfig])
def test_every_field_has_its_option(config: type) -> None:
    shown = {name for names in HELP_GROUPS.values() for name in names.split()}
    fields = {field.name for field in dataclasses.fields(config) if "help" in field.metadata}
    assert fields <= shown
    assert {f.name for f in dataclasses.fields(config) if f.init} - fields <= {"settings"}


def test_every_promised_option_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["distill", "--help"])
    text = capsys.readouterr().out
    for option in (
        "run dataset data-root image-size student teacher teacher-checkpoint method method-weight kd-weight ce-weight "
        "epochs batch-size lr seed device precision workers limit-classes limit-train config fresh compile"
    ).split():
        assert f"--{option}" in text


def test_help_on_a_method_shows_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["distill", "--method", "hkd", "--help"])
    assert stop.value.code == 0
    assert "--holistic.k" in capsys.readouterr().out


SMALL = ["--epochs", "1", "--limit-train", "10", "--device", "cpu", "--no-tensorboard"]


def test_a_run_from_a_config_file_with_an_override(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("teacher: resnet8\nbatch_size: 32\nlr: 0.01\nholistic:\n  k: 4\n")
    run = tmp_path / "run"
    options = ["--config", str(tmp_path / "c.yaml"), "--lr", "0.02", "--holistic.hops", "2", "--run", str(run)]
    status, out, err = ask(capsys, "distill", *options, *SMALL)
    assert status == 0, err
    assert "student.safetensors" in out and "epoch 1/1" in err
    again, out, _ = ask(capsys, "distill", "--config", str(run / "config.yaml"))
    assert again == 0 and "is finished" in out, "a run's own config.yaml asks for the same run"
    text = (run / "config.yaml").read_text()
    for line in ("batch_size: 32", "lr: 0.02", "  k: 4", "  hops: 2"):
        assert line in text
    status, out, _ = ask(capsys, "evaluate", str(run), "--device", "cpu")
    assert status == 0 and out.startswith("top-1 ")


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_train_names_its_network_by_its_role(tmp_path: Path, capsys: pytest.CaptureFixture[str], role: str) -> None:
    status, out, err = ask(capsys, "train", f"--{role}", "wrn_16_1", "--run", str(tmp_path / "t"), *SMALL)
    assert status == 0, err
    assert "model.safetensors" in out
    assert hkd.load_model(tmp_path / "t" / "model.safetensors")[1]["model"] == "wrn_16_1"


@pytest.mark.parametrize("kind", ["models", "methods", "datasets", "recipes"])
def test_list(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    status, out, _ = ask(capsys, "list", kind)
    assert status == 0
    expected = {"models": "resnet32x4", "methods": "hkd", "datasets": "tiny-imagenet", "recipes": "digits"}[kind]
    assert expected in out.split()


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
    holistic = content.pop("holistic", {})
    asked = hkd.DistillConfig(**content, settings=holistic)
    asked.check()
    default = hkd.DistillConfig()
    assert all(value != getattr(HolisticConfig(), key) for key, value in holistic.items())
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
    named = {entry.method.removesuffix("+kd") for entry in asked.entries}
    assert named == {*hkd.list_methods(), "ce"}
    labels = {entry.label for entry in asked.entries}
    assert {label for found in ZHOU.values() for label in found} <= labels
    assert {f"hkd{RELEASED}", f"hkd{RELEASED}+kd"} <= labels
    assert published("cifar100", "ResNet50", "vgg8", f"hkd{RELEASED}+kd") == "74.88 ± 0.30 [1]"

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
    with pytest.raises(SystemExit):
        main(["compare", "--methods", written, "--milestones=0.5,0.75", "--print-config"])
    found = yaml.safe_load(capsys.readouterr().out)
    assert [Entry.parse(m).label for m in found["methods"]] == ["ce", "kd", "hkd(k=4,hops=2)+kd"]
    assert found["milestones"] == [0.5, 0.75]


def test_compare_prints_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "--methods", "[ce,kd]", "--trials", "1", "--run", str(tmp_path / "c"), *SMALL]
    status, out, error = ask(capsys, *arguments)
    assert status == 0, error
    assert "| kd " in out and f"tables: {tmp_path / 'c' / 'comparison.md'}" in out
    assert "1 of 2 runs to go" in error and "[2/2] resnet20 -> resnet8, kd, seed 0" in error


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
    (folder / "typo.yaml").write_text("epoch: 3\n")
    (folder / "broken.yaml").write_text("epochs: [3\n")
    return folder


WRONG = [
    ("distil", "command: unknown name 'distil'; did you mean distill"),
    ("distill --epochz 3", "option: unknown option --epochz; did you mean --epochs"),
    ("distill --epochs many", "epochs: expected int; got many"),
    ("distill --epochs 0", "epochs: expected 1 or more; got 0"),
    ("distill --batch-size -1", "batch_size: expected 2 or more; got -1"),
    ("distill --lr 0", "lr: expected a number above 0; got 0.0"),
    ("distill --lr nan", "lr: expected float; got nan"),
    ("distill --momentum 1", "momentum: expected a number in [0, 1); got 1.0"),
    ("distill --weight-decay -1", "weight_decay: expected 0 or more; got -1.0"),
    ("distill --milestones [0.5,0.2]", "milestones: expected rising parts of the run"),
    ("distill --seed -1", "seed: expected 0 or more; got -1"),
    ("distill --precision fp8", "precision: expected one of 'fp32', 'bf16', 'fp16'; got fp8"),
    ("distill --precision fp16 --device cpu", "precision: fp16 needs a GPU"),
    ("distill --device gpu", "device: expected auto, cpu, cuda, cuda:N or mps; got 'gpu'"),
    ("distill --device cuda:99", "device: cuda:99 asked for, but torch sees"),
    ("distill --workers -1", "workers: expected 0 or more; got -1"),
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
    ("distill --dataset folder:{files}/empty.zip", "needs the folders train/ and val/"),
    ("distill --image-size 0", "image_size: expected 1 or more; got 0"),
    ("distill --limit-classes 1", "limit_classes: expected 2 or more; got 1"),
    ("distill --limit-classes 11", "limit_classes: expected 2 to 10 for digits; got 11"),
    ("distill --limit-train 0", "limit_train: expected 1 or more; got 0"),
    ("distill --teacher-checkpoint {files}/none.pth", "checkpoint: no file"),
    ("distill --teacher-checkpoint {files}/cut.safetensors", "is not a readable safetensors file"),
    ("distill --teacher-checkpoint {files}/hundred.safetensors", "tells 100 classes apart, digits has 10"),
    ("distill --teacher resnet20 --teacher-checkpoint {files}/vgg8.safetensors", "does not fit resnet20"),
    ("distill --teacher resnet20 --teacher-checkpoint {files}/vgg8.pth", "does not fit resnet20"),
    ("distill --holistic.k 0", "holistic.k: expected 1 or more; got 0"),
    ("distill --holistic.num-negatives 0", "holistic.num_negatives: at least one negative is drawn; got 0"),
    ("distill --holistic.temperature 0", "holistic.temperature: expected a number above 0; got 0.0"),
    ("distill --holistic.layers 0", "holistic.layers: the encoder has at least one layer; got 0"),
    ("distill --holistic.negatives both", "holistic.negatives: expected one of 'same', 'opposite'; got both"),
    ("distill --method kd --holistic.k 4", "holistic.k: is a setting of hkd, and the method is kd"),
    ("distill --config {files}/none.yaml", "config: no file"),
    ("distill --config digit", "config: unknown name 'digit'; did you mean digits"),
    ("distill --config {files}/typo.yaml", "option: unknown option --epoch; did you mean --epochs"),
    ("distill --config {files}/broken.yaml", "config: "),
    ("train --student resnet8 --teacher resnet20", "role: student resnet8 and teacher resnet20 are named; --role says"),
    ("train --role pupil", "role: "),
    ("train --method kd", "method: is about a distillation, and train learns from labels alone"),
    ("train --teacher-checkpoint x", "teacher_checkpoint: is about a distillation"),
    ("distill --role teacher", "option: unknown option --role"),
    ("distill --student=", "student: expected a name; got an empty one"),
    ("distill --seed 5000000000", "seed: expected a number below 2**32; got 5000000000"),
    ("distill --epoch 3", "option: unknown option --epoch; did you mean --epochs"),
    ("distill --student vgg8 --image-size 2", "image_size: vgg8 does not take images of 2x2"),
    ("distill --method kd --method-weight 1", "method_weight: kd is the classical term, whose weight is kd_weight"),
    ("distill --run {files}/typo.yaml/run", "run: "),
    ("distill --teacher-checkpoint {files}/vgg8.pth", "teacher: {files}/vgg8.pth does not say which network it holds"),
    ("distill --teacher-checkpoint {files}/page.pth --teacher resnet20", "page.pth is truncated or corrupt"),
    ("distill --config {files}/latin.yaml", "config: "),
    ("distill --config=digit", "config: unknown name 'digit'; did you mean digits"),
    ("train --holistic.k 3", "holistic.k: is about a distillation"),
    ("compare --methods [ce,hdk]", "method: unknown name 'hdk'; did you mean hkd"),
    ("compare --methods [hkd(kk=3)]", "holistic: unknown name 'kk'; did you mean k"),
    ("compare --trials 0", "trials: expected 1 or more; got 0"),
    ("compare --method kd", "option: unknown option --method; did you mean --methods"),
    ("compare --pairs [resnet8]", "pairs: expected TEACHER->STUDENT; got 'resnet8'"),
    ("compare --baseline sp", "baseline: unknown name 'sp'"),
    ("distill --method kd+kd", "method: kd is the classical term itself"),
    ("distill --method at+kdd", "method: unknown name 'at+kdd'"),
    ("distill --method fsp --teacher wrn_16_2", "method: fsp compares Gram matrices, so stage maps need equal numbers"),
    ("distill --method ab --ab.init-epochs -1", "ab.init_epochs: expected 0 or more; got -1"),
    ("distill --method fitnet --fitnet.stage 9", "fitnet.stage: expected one of 0, 1, 2, 3; got 9"),
    ("list", "list: name one of models, methods, datasets, recipes"),
    ("list models extra", "list: takes one word"),
    ("evaluate {files}/none", "checkpoint: no file"),
    ("evaluate {files}/vgg8.pth --dataset digits", "model: {files}/vgg8.pth does not say which network it holds"),
    ("evaluate {files}/vgg8.safetensors", "dataset: name the data set to test on"),
    ("evaluate {files}/hundred.safetensors --dataset digits", "does not fit resnet8: fc.weight is (100, 64)"),
    ("distill --save-minutes 0", "save_minutes: expected a number above 0; got 0.0"),
    ("distill --skip-bad-steps -1", "skip_bad_steps: expected 0 or more; got -1"),
    ("distill --bad-images keep", "bad_images: expected one of 'stop', 'skip'; got keep"),
    ("distill --holistic.bank-dtype float64", "holistic.bank_dtype: expected one of 'float32', 'bfloat16', 'float16'"),
    ("distill --holistic.graph none", "holistic.graph: expected one of 'global', 'local'; got none"),
    ("list model", "list: unknown name 'model'; did you mean models"),
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


def test_a_failed_run_gets_one_line_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = ask(capsys, "train", "--lr", "1e30", "--run", str(tmp_path / "t"), *SMALL)
    assert status == 1
    assert err.splitlines()[-1].startswith("hkd: failed: the loss is no longer a number in epoch 1")


def test_standard_error_carries_no_traceback() -> None:
    done = subprocess.run([*HKD, "distill", "--dataset", "nowhere"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "--version") == (0, f"hkd {hkd.__version__}\n", "")
