"""Two processes do what one would with the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

import hkd
from hkd.runtime.engine import Engine
from tests.runtime.two_processes import CASES, LOCAL, Case, learn

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SMALL = ["--device", "cpu", "--limit-train", "24", "--no-tensorboard", "--student", "resnet8"]


def launch(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


Learnt = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, tuple[Learnt, Learnt]]:
    """What each of two processes has at the end, for each case."""
    folder = tmp_path_factory.mktemp("two")
    done = launch("tests.runtime.two_processes", str(folder))
    assert done.returncode == 0, done.stderr
    both = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    return {case: (first, second) for case, first, second in zip(CASES + LOCAL, *both, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_and_banks_are_those_of_one_process(two: dict[Case, tuple[Learnt, Learnt]], case: Case) -> None:
    alone = learn(case, Engine("cpu", seed=0))
    first, second = two[case]
    assert set(first) == set(second) == set(alone)
    assert any(name.startswith("gradient") for name in alone)
    for name, value in alone.items():
        assert value.isfinite().all()
        assert torch.equal(first[name], second[name]), f"{name} differs between the processes"
        part = 3e-2 if "bfloat16" in case.line else 1e-4  # a rounding to 8 bits may fall to either side
        tolerance = part * float(value.double().abs().max().clamp(min=1e-3))
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", LOCAL, ids=str)
def test_both_processes_have_the_same_gradients(two: dict[Case, tuple[Learnt, Learnt]], case: Case) -> None:
    first, second = two[case]
    assert set(first) == set(second)
    trained, idle = ("head_student", "head_teacher") if case.epoch == 0 else ("head_teacher", "head_student")
    assert any(name.startswith(f"gradient of method.{trained}") for name in first)
    assert not any(name.startswith(f"gradient of method.{idle}") for name in first)
    for name, value in first.items():
        assert value.isfinite().all()
        assert torch.equal(value, second[name]), f"{name} differs between the processes"


def test_a_run_of_two_processes_goes_on_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    words = ["distill", "--run", str(run), "--teacher", "resnet14", "--epochs", "4", *SMALL]
    stop = "import sys,hkd.trainer as l,hkd.cli as c; log=l.Progress.epoch\n"
    (tmp_path / "stopped.py").write_text(
        stop + "def epoch(self, row, *a):\n"
        "    log(self, row, *a)\n"
        "    if row['epoch'] == 2 and self.title.startswith('run'): sys.exit(3)\n"
        "l.Progress.epoch = epoch\n"
        "sys.exit(c.main(sys.argv[1:]))\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    stopped = launch("stopped", "--", *words)
    assert stopped.returncode != 0
    rows = (run / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2, stopped.stderr
    saved = torch.load(run / "checkpoints" / "last.pt", weights_only=True)

    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["batch_size"] == 64, "of all processes together, so that their number may change"
    result = hkd.distill(
        hkd.DistillConfig(
            run=str(run), teacher="resnet14", student="resnet8", epochs=4, device="cpu", limit_train=24,
            tensorboard=False,
        )
    )  # fmt: skip
    after = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in after] == [1, 2, 3, 4]
    assert [json.dumps(row) for row in after[:2]] == rows
    assert result.summary["epochs"] == 4
    assert saved["method"]["loss.student.bank.seen"].all(), "every image was visited by one process or the other"


def test_two_processes_leave_one_run_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = [option for option in SMALL if option not in ("--device", "cpu")]  # whatever there is
    done = launch("hkd", "--", "train", "--run", str(run), "--epochs", "2", *small)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("last epoch: top-1") == 1, "one process reports"
    assert done.stderr.count("epoch 1/2") == 1
    found = hkd.evaluate(hkd.EvaluateConfig(checkpoint=str(run), device="cpu"))
    summary = json.loads((run / "summary.json").read_text())
    assert found.top1 == pytest.approx(summary["top1_last"]), "the shares of both make the whole test split"
    assert found.images == summary["test_images"]
    assert summary["machine"].startswith("2 x ")


def test_two_processes_make_the_steps_of_one(tmp_path: Path) -> None:
    """Each with two parts of a batch, of which the last is smaller, a clipped gradient and an average."""
    options = ["--epochs", "2", "--batch-size", "32", "--ema", "0.8", "--clip-grad", "0.1", "--skip-bad-steps", "1"]
    words = ["train", "--student", "tests.runtime.two_processes:plain", "--limit-train", "9", "--device", "cpu"]
    found = []
    for processes, parts in ((2, "2"), (1, "1")):
        run = tmp_path / parts
        done = launch(
            "hkd", "--", *words, *options, "--accumulate", parts, "--no-tensorboard", "--run", str(run),
            processes=processes,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(safetensors.torch.load_file(run / "model.safetensors"))
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_what_several_processes_cannot_do(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for arguments, message in (
        (["train", "--batch-size", "3", "--run", str(run), *SMALL], "batch_size: 2 processes share every batch"),
        (
            ["train", "--batch-size", "12", "--accumulate", "6", "--run", str(run), *SMALL],
            "batch_size: 2 processes share every batch 6 times in equal parts of 2 images or more; got 12",
        ),
        (["compare", "--run", str(run)], "processes: compare uses one process, and 2 were started"),
    ):
        done = launch("hkd", "--", *arguments)
        assert done.returncode != 0
        assert f"hkd: {message}" in done.stderr, "each process says it, unless it is ended before"
        assert not run.exists()


def test_the_option_that_scales_with_the_processes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = launch("hkd", "--", "train", "--run", str(run), "--epochs", "2", "--scale-with-processes", *SMALL)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["lr"] == pytest.approx(0.1), "twice the default"
    assert yaml.safe_load((run / "config.yaml").read_text())["lr"] == 0.05, "as given"


def test_a_stop_at_the_end_of_an_epoch_goes_on_in_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 steps an epoch, after the last of which the processes agree to stop; and a method of weight 0."""
    run = tmp_path / "run"
    code = "import os, signal, sys; import hkd.runtime.stopping as s; from hkd.cli import main\n"
    code += "action = s.Stopping.action\n"
    code += "def after(self, step):\n"
    code += "    if step == 19 and os.environ['RANK'] == '1': self.signal = signal.SIGTERM\n"
    code += "    return action(self, step)\n"
    code += "if os.environ.get('STOP'): s.Stopping.action = after\n"
    code += "sys.exit(main(sys.argv[1:]))\n"
    (tmp_path / "stops.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    words = ["train", "--run", str(run), "--epochs", "2", "--batch-size", "12", *SMALL]
    monkeypatch.setenv("STOP", "1")
    stopped = launch("stops", "--", *words)
    assert "hkd: stopped after step 20 of epoch 1; the same command continues from there" in stopped.stderr
    monkeypatch.delenv("STOP")
    done = launch("stops", "--", *words)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[0]["loss"] == pytest.approx(2.3, abs=0.5), "a mean over the images of both"

    zero = ["distill", "--run", str(tmp_path / "zero"), "--teacher", "resnet8", "--method-weight", "0", "--epochs", "1"]
    done = launch("hkd", "--", *zero, "--batch-size", "24", *SMALL)
    assert done.returncode == 0, done.stderr
