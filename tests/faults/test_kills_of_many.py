"""Studies and streams are several processes: whichever of them are killed, the same command ends as if nothing were."""

import contextlib
import itertools
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.test_datasets import encoded, picture, write_files
from tests.faults.processes import kill, naming, remaining, started
from tests.faults.runs import checkpoints, outcome

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")]

KILLS = 20
COMPARE = (
    "compare --teachers resnet14 --students resnet8 --methods ce,hkd(num_negatives=50)+kd --trials 2 --epochs 12 "
    "--limit-train 25 --no-tensorboard --device cpu --jobs 2 --threads 1 --keep-checkpoints"
)
STREAM = (
    "train --student resnet8 --image-size 100 --epochs 3 --batch-size 8 --save-minutes 0.005 --device cpu --threads 1 "
    "--workers 2 --no-tensorboard --keep-checkpoints"
)


def result(run: Path) -> tuple[Any, ...]:
    """All that a run has come to: weights, metrics, result, checkpoints, the digest of its predictions."""
    with np.load(run / "predictions.npz") as file:
        predictions = file["predicted"].tolist(), file["label"].tolist()
    return outcome(run), checkpoints(run), predictions


def results(study: Path) -> dict[str, Any]:
    """Those of a study's runs by their places, and the seeds and accuracies of its tables."""
    found = {str(run.relative_to(study)): result(run) for run in ended(study)}
    pairs = json.loads((study / "comparison.json").read_text())["pairs"]
    return found | {"tables": [(row["seeds"], row["top1_last"]) for pair in pairs for row in pair["methods"]]}


def ended(study: Path) -> dict[Path, tuple[int, int]]:
    """The runs of a study that have a result, and which file it is: one that is written again is another."""
    return {file.parent: (file.stat().st_ino, file.stat().st_mtime_ns) for file in sorted(study.rglob("summary.json"))}


def undisturbed(argv: list[str], output: Path) -> float:
    """Seconds that a command takes."""
    begun = time.monotonic()
    assert started(argv, output).wait() == 0, output.read_text()
    return time.monotonic() - begun


def test_twenty_kills_of_a_comparison_and_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, choice = tmp_path / "output.txt", random.Random(0)
    seconds = undisturbed([*COMPARE.split(), "--run", str(tmp_path / "whole")], output)
    expected = results(tmp_path / "whole")
    kills: Counter[str] = Counter()
    victims = itertools.cycle(["command and runs", "run", "command"])
    for number in itertools.count():
        study = tmp_path / f"study{number}"
        argv, first = [*COMPARE.split(), "--run", str(study)], {}
        command = started(argv, output)
        while command.poll() is None and kills.total() < KILLS:
            pause(command, choice.uniform(0.1, 0.25 * seconds))
            runs = naming(study) - {command.pid}
            whom = next(victims)
            if command.poll() is not None or (whom == "run" and not runs):
                continue
            kill(*runs if whom == "command and runs" else sorted(runs)[:1] if whom == "run" else ())
            kill(*() if whom == "run" else (command.pid,))
            kills[whom] += 1
            if whom != "run":  # the command notices a lost run itself
                assert command.wait() == -signal.SIGKILL
                assert not remaining(study), "runs without their study"
                first |= {run: file for run, file in ended(study).items() if run not in first}
                command = started(argv, output)
        assert command.wait() == 0, output.read_text()
        assert not remaining(study)
        assert results(study) == expected, study
        assert first.items() <= ended(study).items(), "a run was trained again"
        if kills.total() == KILLS:
            break
    said = output.read_text() + "".join(log.read_text() for log in tmp_path.rglob("log.txt"))
    assert "Traceback" not in said, said
    with capsys.disabled():
        print(f"\n{kills.total()} of {KILLS} kills, {number + 1} comparisons recovered; {dict(kills)}")


def test_twenty_kills_of_a_stream_and_its_decoding_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs = {
        f"{split}/{name}/{number}.jpg": encoded(picture((130, 110), 100 * label + 10 * number), "JPEG")
        for split, count in (("train", 6), ("val", 2)) for label, name in enumerate(("cat", "dog", "eel"))
        for number in range(count)
    }  # fmt: skip
    arguments = [*STREAM.split(), "--dataset", f"folder:{write_files(tmp_path / 'photos', photographs)}", "--run"]
    output, choice = tmp_path / "output.txt", random.Random(0)
    seconds = undisturbed([*arguments, str(tmp_path / "whole")], output)
    assert "training images streamed" in output.read_text()
    expected = result(tmp_path / "whole")
    kills: Counter[str] = Counter()
    victims = itertools.cycle(["run", "worker"])
    for number in itertools.count():
        run, status = tmp_path / f"run{number}", -1
        while status != 0:
            said, orphans = tmp_path / f"said{kills.total()}", naming(run)
            command = started([*arguments, str(run)], said)
            whom = next(victims) if kills.total() < KILLS else "nobody"
            if whom == "run":
                pause(command, choice.uniform(0.1, 0.9 * seconds))
                kill(command.pid)
            elif whom == "worker":
                kill(*one_decoding(command, run, orphans, choice))
            status, text = command.wait(), said.read_text()
            # What Python and torch print of a process that vanishes under them has no line of this package.
            assert "/hkd/" not in text.partition("Traceback")[2], text
            if status != 0:
                kills[whom] += 1
                assert status == (-signal.SIGKILL if whom == "run" else 1), text
            if status == 1:
                (line,) = [line for line in text.splitlines() if line.startswith("hkd: ")]
                assert line.startswith("hkd: failed: a process that decodes images died"), text
        assert result(run) == expected, run
        if kills.total() == KILLS:
            break
    assert not remaining(tmp_path)
    with capsys.disabled():
        print(f"\n{kills.total()} of {KILLS} kills, {number + 1} runs recovered; {dict(kills)}")


def pause(command: subprocess.Popen[bytes], seconds: float) -> None:
    """Waits, no longer than the command runs."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        command.wait(seconds)


def one_decoding(command: subprocess.Popen[bytes], run: Path, others: set[int], choice: random.Random) -> list[int]:
    """A worker at a random moment of its life; none where the run has ended before that."""
    moment = choice.uniform(0, 2)
    while command.poll() is None:
        if naming(run) - others - {command.pid}:
            pause(command, moment)
            return [choice.choice(sorted(alive))] if (alive := naming(run) - others - {command.pid}) else []
        time.sleep(0.02)
    return []
