"""Imports point only upward in the table of docs/architecture.md."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "hkd").rglob("*.py"))
PARTS = "hkd.*.spec"
STANDARD = {"collections", "dataclasses", "math", "random", "typing", "warnings", "zlib", "__future__"}


def order() -> list[str]:
    return re.findall(r"^\| `(hkd\.[\w.*]+)` \|", (ROOT / "docs" / "architecture.md").read_text(), flags=re.MULTILINE)


def place(module: str) -> str:
    if re.fullmatch(r"hkd\.\w+\.spec", module) or module == "hkd.optimisation":
        return PARTS
    return ".".join(module.split(".")[:2])


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found += [node.module or ""] if node.module != "hkd" else [f"hkd.{alias.name}" for alias in node.names]
    return found


def test_every_place_is_in_the_table() -> None:
    places = {place(module_of(file)) for file in SOURCES} - {"hkd"}
    assert places == set(order())
    assert len(order()) == len(set(order()))


@pytest.mark.parametrize("file", [f for f in SOURCES if module_of(f) != "hkd"], ids=module_of)
def test_imports_point_upward(file: Path) -> None:
    table = order()
    own = place(module_of(file))
    for imported in imports(file):
        if imported.startswith("hkd."):
            assert table.index(place(imported)) <= table.index(own), f"{module_of(file)} imports {imported}"


def test_the_parts_of_a_specification_import_options_alone() -> None:
    for file in SOURCES:
        if place(module_of(file)) == PARTS:
            own = {imported for imported in imports(file) if imported.startswith("hkd")}
            assert own <= {"hkd.options"}, module_of(file)


@pytest.mark.parametrize(("folder", "accepted"), [("hkd.numerics", ()), ("hkd.holistic", ("hkd.numerics", "hkd.lazy"))])
def test_the_loss_depends_on_torch_alone(folder: str, accepted: tuple[str, ...]) -> None:
    for file in SOURCES:
        for imported in imports(file) if place(module_of(file)) == folder else ():
            top = imported.split(".")[0]
            assert top in STANDARD | {"torch"} or imported.startswith((folder, *accepted)), f"{file}: {imported}"


def test_one_file_imports_the_distribution_library() -> None:
    importers = [module_of(file) for file in SOURCES if any(i.split(".")[0] == "accelerate" for i in imports(file))]
    assert importers == ["hkd.runtime.engine"]


def test_analysis_draws_nothing() -> None:
    for file in SOURCES:
        if place(module_of(file)) == "hkd.analysis":
            assert not {i.split(".")[0] for i in imports(file)} & {"matplotlib", "plotly"}


def test_the_trainer_knows_no_method_model_or_data_set() -> None:
    text = (ROOT / "src" / "hkd" / "trainer.py").read_text()
    for name in ("resnet", "digits", "cifar", "holistic", "HKD"):
        assert name not in text


def test_help_imports_nothing_heavy() -> None:
    light = {"hkd.errors", "hkd.options", "hkd.config", "hkd.recipes", "hkd.files", "hkd.spec", "hkd.lazy"}
    for file in SOURCES:
        if module_of(file) in light or place(module_of(file)) in ("hkd.cli", PARTS):
            top_level = ast.parse(file.read_text()).body
            names = [a.name for n in top_level if isinstance(n, ast.Import) for a in n.names]
            names += [n.module or "" for n in top_level if isinstance(n, ast.ImportFrom)]
            assert not any(n.split(".")[0] in ("torch", "torchvision", "timm", "numpy", "accelerate") for n in names)
