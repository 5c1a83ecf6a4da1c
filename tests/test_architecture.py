"""Imports point only upward in the table of docs/architecture.md."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hkd

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "hkd").rglob("*.py"))
SPECIFICATION = {"hkd.data.spec", "hkd.models.spec", "hkd.methods.spec", "hkd.runtime.spec", "hkd.optimisation"}
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "accelerate",
    "PIL",
    "sklearn",
    "matplotlib",
    "plotly",
    "optuna",
    "ray",
}


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(file) for file in SOURCES}


def order() -> list[str]:
    return re.findall(r"^\| `(hkd\.\w+)` \|", (ROOT / "docs" / "architecture.md").read_text(), flags=re.MULTILINE)


def place(module: str) -> str:
    return ".".join(module.split(".")[:2])


def imported_by(node: ast.AST, file: Path) -> Iterator[str]:
    """The modules that a statement imports; ``from hkd.models import spec`` is hkd.models.spec."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0 and node.module is not None, f"{file}: imports are absolute"
        for alias in node.names:
            submodule = f"{node.module}.{alias.name}"
            yield submodule if submodule in MODULES else node.module


def imports(file: Path) -> list[str]:
    """All imports of a file, also those inside functions."""
    return [name for node in ast.walk(ast.parse(file.read_text())) for name in imported_by(node, file)]


def imports_at_start(file: Path) -> list[str]:
    """The imports that run when the file is imported."""
    return [name for node in ast.parse(file.read_text()).body for name in imported_by(node, file)]


def test_every_place_is_in_the_table() -> None:
    places = {place(module) for module in MODULES} - {"hkd"}
    assert sorted(order()) == sorted(places)


@pytest.mark.parametrize("file", [f for f in SOURCES if module_of(f) != "hkd"], ids=module_of)
def test_imports_point_upward(file: Path) -> None:
    table, module = order(), module_of(file)
    for name in imports(file):
        if not name.startswith("hkd.") or name in SPECIFICATION:  # `import hkd` is for its version
            continue
        assert module not in SPECIFICATION or name == "hkd.options", f"{module} imports {name}"
        assert table.index(place(name)) <= table.index(place(module)), f"{module} imports {name}"


def test_the_parts_of_the_specification_exist() -> None:
    assert SPECIFICATION <= MODULES
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert all(f"`{name}`" in text for name in SPECIFICATION)


@pytest.mark.parametrize(
    ("package", "allowed"),
    [("hkd.numerics", {"hkd.numerics"}), ("hkd.holistic", {"hkd.holistic", "hkd.numerics", "hkd.lazy"})],
)
def test_the_losses_depend_on_torch_alone(package: str, allowed: set[str]) -> None:
    for file in SOURCES:
        if place(module_of(file)) == package:
            for name in imports(file):
                assert name.split(".")[0] in {"torch", *sys.stdlib_module_names} or place(name) in allowed, (
                    f"{file}: {name}"
                )


def importers(*packages: str) -> list[str]:
    return [
        module_of(file)
        for file in SOURCES
        if any(name == p or name.startswith(f"{p}.") for name in imports(file) for p in packages)
    ]


def test_one_file_imports_the_distribution_library() -> None:
    assert importers("accelerate") == ["hkd.runtime.engine"]


def test_two_files_talk_to_other_processes() -> None:
    assert importers("torch.distributed") == ["hkd.numerics.gather"], "beside the engine, through Accelerate"


def test_only_the_report_draws() -> None:
    assert {place(module) for module in importers("matplotlib", "plotly")} == {"hkd.report"}


def test_the_loop_knows_no_method_model_or_data_set() -> None:
    names = {*hkd.list_methods(), *hkd.list_models(), *hkd.list_datasets(), "cifar", "holistic", "HKD"} - {"hkd"}
    for module in ("trainer", "distiller", "metrics", "runtime.checkpoint", "runtime.guard"):
        tree = ast.parse((ROOT / "src" / "hkd" / f"{module.replace('.', '/')}.py").read_text())
        words = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        words |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert words & names <= ({"kd"} if module == "distiller" else set()), module  # the KD term is everybody's


def test_help_imports_nothing_heavy() -> None:
    """Starting from the command line, along the imports that run at once."""
    files = {module_of(file): file for file in SOURCES}
    pending, seen = ["hkd.cli", "hkd.cli.commands"], set()
    while pending:
        module = pending.pop()
        if module in seen:
            continue
        seen.add(module)
        for name in imports_at_start(files[module]):
            assert name.split(".")[0] not in HEAVY, f"{module} imports {name}"
            parents = (".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 2))
            pending += [parent for parent in parents if parent in files]
    assert "hkd.spec" in seen and "hkd.data.spec" in seen
