"""Packages import what they are asked for, and nothing heavy before."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "hkd"
LAZY = ("hkd.holistic", "hkd.methods", "hkd.models")


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import hkd.methods.spec, hkd.models.spec", "import hkd.holistic, hkd.methods, hkd.models", "import hkd.registry"],
)
def test_nothing_heavy_is_imported(statement: str) -> None:
    assert not loaded_after(statement) & {"torch", "numpy", "torchvision", "timm", "accelerate"}


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_and_python_see_the_same_names(package: str) -> None:
    """Those imported under TYPE_CHECKING are those of the table, from the modules that the table says."""
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text())
    (branch,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {(alias.name, node.module) for node in branch.body for alias in node.names}
    (call,) = (node for node in ast.walk(branch) if isinstance(node, ast.Call))
    table = {(name, home) for home, names in ast.literal_eval(call.args[1]).items() for name in names}
    assert typed == table
    for name, home in table:
        assert getattr(module, name) is getattr(importlib.import_module(home), name)
        assert name in dir(module)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018
