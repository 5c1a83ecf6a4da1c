"""Several processes in a loop of one's own: what is right trains, what is wrong is noticed in the first steps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import hkd
from tests.loops.setting import B, N
from tests.runtime.test_distributed import launch

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).parents[2] / "docs" / "distributed.md"
SETTING = """
import hkd
from tests.loops.setting import C, LABELS as labels, images
train_set, epochs = images(), 2
student, teacher = hkd.create_model("resnet8", C), hkd.create_model("resnet14", C)
def Indexed(data):
    return [(*data[index], index) for index in range(len(data))]
"""
"""What the script of the document takes as given."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    (folder / "script.py").write_text(SETTING + script)
    done = launch("tests.loops.processes", str(folder))
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_the_script_of_the_document_trains(both: list[dict[str, Any]]) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    code = [line for line in script.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(code) <= 17
    for one in both:
        assert one["script"]["agree"]
        assert one["script"]["seen"] > 32, "the banks have the images of both, 16 of each in a step"
        assert one["script"]["loss"] < 100


@pytest.mark.parametrize("what", ["banks_of_another_seed", "draws_of_another_seed", "labels_of_another_order"])
def test_banks_and_seeds_that_differ_are_noticed_at_the_first_step(both: list[dict[str, Any]], what: str) -> None:
    for one in both:
        ((calls, message),) = one[what].values()
        assert calls == 0
        assert message.startswith("the method's memory banks or seeds differ between the processes; call torch.manual")


@pytest.mark.parametrize(
    ("what", "calls"),
    [
        ("the zoo's student alone", 1), ("a foreign student alone", 1), ("neither", 1), ("beside", 1),
        ("accumulated", 2),
    ],
)  # fmt: skip
def test_parameters_outside_are_noticed_after_the_first_step(both: list[dict[str, Any]], what: str, calls: int) -> None:
    for one in both:
        assert one["parameters_outside"][what] == [
            calls,
            "parameters differ between the processes after the first step; wrap the whole Distiller in "
            "DistributedDataParallel, not the student alone",
        ]


def test_other_weights_are_noticed_at_the_first_step(both: list[dict[str, Any]]) -> None:
    for one in both:
        outside = one["parameters_outside"]
        message = "parameters differ between the processes from the start; load the same weights in each"
        assert outside["from the start"] == [0, message]
        assert outside["not compared"] == outside["kd shares nothing"] == [N // B, ""]


@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize("method", hkd.list_methods())
def test_every_method_trains_with_and_without_broadcast_buffers(
    both: list[dict[str, Any]], method: str, broadcast: bool
) -> None:
    for one in both:
        assert one["every_method_with_moving_batch_norms"][f"{method} {broadcast}"] == [N // B, "", True]


def test_one_process_may_evaluate(both: list[dict[str, Any]]) -> None:
    first, second = (one["evaluation_in_one_process"] for one in both)
    assert len(first["losses"]) == 2 * N // B and not second["losses"]
    assert first["losses"][::2] == first["losses"][1::2], "through DDP or past it"
    assert first["agree"] and second["agree"]


def test_what_agrees(both: list[dict[str, Any]]) -> None:
    for one in both:
        assert [what for what, agree in one["what_agrees"].items() if agree] == ["the same", "strided"]
