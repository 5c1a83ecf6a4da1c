"""Names from the package, from other distributions and from plugins."""

import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import hkd
from hkd.registry import Registry, load_plugins

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Puts modules into a folder that Python imports from, and forgets them afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(**modules: str) -> Path:
        for name, text in modules.items():
            path = tmp_path / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def install(folder: Path, distribution: str, group: str, **points: str) -> None:
    """What an installer leaves of a distribution's entry points."""
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))


HOUSE = """
from hkd.registry import Registry
things = Registry("thing", package="house", entry_points="house.things")
"""
ROOM = "from house.base import things\nthings.register('{name}')(object())\n"


def house(write: Write) -> Registry[object]:
    write(
        house____init__="",
        house__base=HOUSE,
        house__room=ROOM.format(name="room"),
        house__bath=ROOM.format(name="bath"),
    )
    from house.base import things  # type: ignore[import-not-found]

    return things


def test_all_modules_of_the_package_are_imported_on_first_use(write: Write) -> None:
    things = house(write)
    assert "house.room" not in sys.modules
    assert "room" in things
    assert list(things) == ["bath", "room"]
    with pytest.raises(hkd.RequestError, match="thing: unknown name 'rom'; did you mean room"):
        things["rom"]


def test_entry_points_are_modules_classes_and_functions(write: Write) -> None:
    folder = write(
        shed="from house.base import things\n@things.register('shovel')\nclass Shovel: ...\n",
        tools="""
from house.base import things
@things.register("saw")
class Saw: ...
def hammer(): ...
class Drill: ...
""",
    )
    install(folder, "shed-things", "house.things", shed="shed")
    install(folder, "tool-things", "house.things", hammer="tools:hammer", saw="tools:Saw", drill="tools:Drill")
    things = house(write)
    assert sorted(things) == ["bath", "drill", "hammer", "room", "saw", "shovel"]
    assert things["drill"] is sys.modules["tools"].Drill
    assert things["saw"] is sys.modules["tools"].Saw


@pytest.mark.parametrize(
    ("value", "text", "reason"),
    [
        ("nowhere", "", "ModuleNotFoundError: No module named 'nowhere'"),
        ("broken", "1 / 0", "ZeroDivisionError: division by zero"),
        ("broken:thing", "", "AttributeError: module 'broken' has no attribute 'thing'"),
        ("broken", "def", "SyntaxError: invalid syntax"),
    ],
)
def test_a_broken_entry_point_is_skipped_in_one_line(write: Write, value: str, text: str, reason: str) -> None:
    folder = write(broken=text, fine="")
    install(folder, "some-things", "house.things", broken=value)
    things = house(write)
    with pytest.warns(RuntimeWarning, match="skipped") as caught:
        assert "room" in things
    (warning,) = caught
    expected = f"thing: skipped the entry point 'broken' of some-things; cannot import {value!r} ({reason}"
    assert str(warning.message).startswith(expected)
    assert "\n" not in str(warning.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(things) == ["bath", "room"], "it is tried once"


def test_a_name_is_taken_once(write: Write) -> None:
    things: Registry[object] = Registry("thing")
    things.register("one")(Registry)
    with pytest.raises(hkd.RequestError, match="thing: the name 'one' is already taken by hkd.registry.Registry"):
        things.register("one")(Path)


def test_a_distribution_cannot_take_a_name_of_the_package(write: Write) -> None:
    folder = write(greedy="from house.base import things\n@things.register('room')\nclass Room: ...\n")
    install(folder, "greedy", "house.things", room="greedy")
    things = house(write)
    for _ in range(2):  # nor when it is tried again
        with pytest.raises(hkd.RequestError, match="the name 'room' is already taken by .*; greedy.Room needs another"):
            list(things)


def test_threads_wait_until_all_names_are_there(write: Write) -> None:
    things = house(write)
    write(house__slow="import time\ntime.sleep(0.3)\n" + ROOM.format(name="slow"))
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(len(list(things)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [3] * 4


def test_a_module_may_look_names_up_while_the_package_is_imported(write: Write) -> None:
    things = house(write)
    write(house__curious="from house.base import things\nassert 'bath' in things\n")
    assert sorted(things) == ["bath", "room"]


def test_a_plugin_is_imported_from_the_working_directory(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    things = house(write)
    folder = write(mine__rooms=ROOM.format(name="cellar"))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(folder)])
    monkeypatch.chdir(folder)
    load_plugins(["mine.rooms", "mine.rooms"])
    assert "cellar" in things


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no.such", "ModuleNotFoundError: No module named 'no'"),
        ("failing", "RuntimeError: one line and another"),
        (".relative", "TypeError: .*"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_a_bad_request(write: Write, name: str, reason: str) -> None:
    write(failing="raise RuntimeError('one line\\nand another')\n")
    with pytest.raises(hkd.RequestError, match=rf"^plugin: cannot import '{name}' \({reason}\)$"):
        load_plugins([name])


METHOD = """
from torch import nn
from hkd.methods.base import Method, NoConfig

class Embeddings(Method[NoConfig]):
    needs = frozenset({"embedding"})

    def __init__(self, setup, config):
        super().__init__(setup, config)
        self.project = nn.Linear(setup.student.embedding_dim, setup.teacher.embedding_dim)

    def forward(self, batch, student, teacher):
        return {"embeddings": (self.project(student.embedding) - teacher.embedding).square().mean()}
"""
MODEL = """
from hkd.models.base import models
from hkd.models.resnet import CifarResNet, BasicBlock

@models.register("resnet2")
def resnet2(num_classes):
    import hkd
    return hkd.create_model("resnet8", num_classes)
"""
USE = """
import torch, hkd
assert "embeddings" in hkd.list_methods() and "resnet2" in hkd.list_models()
student, teacher = hkd.create_model("resnet2", 4), hkd.create_model("resnet8", 4)
assert student.name == "resnet2"
method = hkd.create_method("embeddings", student=student, teacher=teacher, num_samples=8)
image = torch.randn(2, 3, 32, 32)
batch = hkd.Batch(image, torch.arange(2), torch.arange(2))
assert method(batch, student(image), teacher(image))["embeddings"] > 0
"""


def test_another_distribution_adds_a_method_and_a_model(write: Write) -> None:
    folder = write(outside_method=METHOD, outside_model=MODEL)
    install(folder, "outside-methods", "hkd.methods", embeddings="outside_method:Embeddings")
    install(folder, "outside-models", "hkd.models", resnet2="outside_model")
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{USE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
