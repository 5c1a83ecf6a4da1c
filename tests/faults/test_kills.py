"""A run that is killed at any moment, and started again, ends as if nothing had happened."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import hkd
from tests.faults.runs import asked, outcome

ROOT = Path(__file__).parents[2]
KILLS = 30
# Imports once, then trains in a fork for each line that comes in: a start takes milliseconds, not seconds.
NURSERY = """
import os, sys
import torch
torch.set_num_threads(1)
import hkd, hkd.api
from pathlib import Path
from hkd.data import open_data
from tests.faults.runs import asked
open_data(asked(Path("none")).spec().data)
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        hkd.distill(asked(Path(line.strip())))
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_thirty_kills(whole: Path, tmp_path: Path) -> None:
    expected, choice = outcome(whole / "run"), random.Random(0)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env=environment,
    )  # fmt: skip
    assert nursery.stdin is not None and nursery.stdout is not None
    assert nursery.stdout.readline() == "ready\n"
    kills, number, latest = 0, 0, 0.0
    while kills < KILLS:
        number += 1
        place = tmp_path / str(number)
        place.mkdir()
        (place / "teacher.safetensors").write_bytes((whole / "teacher.safetensors").read_bytes())
        finished = False
        while not finished:
            started = time.monotonic()
            nursery.stdin.write(f"{place / 'run'}\n")
            nursery.stdin.flush()
            child = int(nursery.stdout.readline())
            if number > 1 and kills < KILLS:
                time.sleep(choice.uniform(0.02, latest))
                with contextlib.suppress(ProcessLookupError):  # it was quicker
                    os.kill(child, signal.SIGKILL)
            status = int(nursery.stdout.readline())
            finished = os.WIFEXITED(status)
            assert not finished or os.WEXITSTATUS(status) == 0
            kills += not finished
            latest = latest or 1.2 * (time.monotonic() - started)  # the first is left alone, to tell how long it takes
        assert outcome(place / "run") == expected, f"run {number}"
    nursery.stdin.close()
    nursery.wait()
    assert kills == KILLS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_finishes_the_step_saves_and_says_how_to_continue(whole: Path, tmp_path: Path, number: int) -> None:
    (tmp_path / "teacher.safetensors").write_bytes((whole / "teacher.safetensors").read_bytes())
    code = "import os, signal, sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
    code += "import hkd.runtime.stopping as s; from hkd.cli import main\n"
    code += "action = s.Stopping.action; seen = []\n"
    code += "def after(self, step):\n"
    code += "    seen.append(step)\n"
    code += f"    if len(seen) == 7: os.kill(os.getpid(), {int(number)})\n"
    code += "    return action(self, step)\n"
    code += "s.Stopping.action = after; sys.exit(main(sys.argv[1:]))"
    config = asked(tmp_path / "run")
    options = ["--run", config.run, "--student", "resnet8", "--epochs", "6", "--limit-train", "25", "--device", "cpu"]
    options += ["--no-tensorboard", "--teacher-checkpoint", str(config.teacher_checkpoint)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    done = subprocess.run(
        [sys.executable, "-c", code, "distill", *options, "--holistic.num-negatives", "50"], env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 128 + number, done.stderr
    assert "hkd: stopped after step 3 of epoch 2; the same command continues from there" in done.stderr
    assert "Traceback" not in done.stderr
    hkd.distill(config)
    assert outcome(tmp_path / "run") == outcome(whole / "run")
