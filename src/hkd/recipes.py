"""The recipes: YAML files with what differs from the defaults."""

import os
from pathlib import Path

from hkd.errors import RequestError, unknown
from hkd.options import check_text


def folder() -> Path:
    """Where the recipes are: in the installed package, or beside the sources."""
    installed = Path(__file__).parent / "recipe_files"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"


def list_recipes() -> list[str]:
    """The names of the recipes."""
    return sorted(file.stem for file in folder().glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a recipe, by its name or by any path."""
    check_text("config", name)
    path = Path(name)
    if os.path.isfile(path):  # for a name that is too long for a file, too
        return path
    if name in list_recipes():
        return folder() / f"{name}.yaml"
    if path.suffix:
        raise RequestError(f"config: no file {path}")
    raise unknown("config", name, list_recipes())
