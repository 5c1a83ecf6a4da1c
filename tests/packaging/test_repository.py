"""The files around the code agree: packaging, Makefile, CI, hooks, conda recipe, changelog, citation."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.packaging.floors import floors

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
HOME = PROJECT["urls"]["Homepage"]
CONDA_NAMES = {"torch": "pytorch", "huggingface-hub": "huggingface_hub"}


def read_yaml(file: str) -> Any:
    return yaml.safe_load((ROOT / file).read_text())


CI, RELEASE = read_yaml(".github/workflows/ci.yml"), read_yaml(".github/workflows/release.yml")
RECIPE = read_yaml("conda/recipe.yaml")


def recipe_of(target: str) -> list[str]:
    """The commands of a target of the Makefile."""
    return re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split("\n\t")


def as_conda(lines: list[str]) -> set[str]:
    pairs = [line.split(">=") for line in lines]
    return {f"{CONDA_NAMES.get(name, name)} >={version}" for name, version in pairs}


def test_every_step_of_ci_is_a_target_of_make() -> None:
    steps = [step for flow in (CI, RELEASE) for job in flow["jobs"].values() for step in job["steps"]]
    words = [step["run"].split() for step in steps if "run" in step]
    assert {first for first, *_ in words} == {"make"}
    assert {target for _, target, *_ in words} == {"check", "test", "test-slow", "test-lowest", "docs", "dist"}
    assert all(recipe_of(target) for _, target, *_ in words)
    for action in (step["uses"] for step in steps if "uses" in step):
        assert re.fullmatch(r"(actions/[a-z-]+@v\d+|pypa/gh-action-pypi-publish@release/v1)", action)


def test_ci_runs_the_versions_of_python_that_the_package_names() -> None:
    named = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)}
    matrix = CI["jobs"]["test"]["strategy"]["matrix"]
    assert set(matrix["python"]) >= named, "a version is named once the suite ran with it"
    lowest = min(named, key=lambda version: int(version.partition(".")[2]))
    assert PROJECT["requires-python"] == f">={lowest}" and RECIPE["context"]["python_min"] == lowest
    oldest = CI["jobs"]["lowest"]["strategy"]["matrix"]["include"]
    assert [entry["python"] for entry in oldest if entry["floors"] == "all"] == [lowest]


def test_constraints_are_the_lowest_versions() -> None:
    assert floors(["all"]) == [line.replace(">=", "==") for line in PROJECT["dependencies"]]
    pair = [line for line in floors(["all"]) if line.startswith("torch")]
    assert floors(["torch"]) == pair and len(pair) == 2
    with pytest.raises(SystemExit, match="^floors: no dependency x$"):
        floors(["x"])


def test_hooks_run_the_tools_of_make_check() -> None:
    (local,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local" and all(hook["language"] == "system" for hook in local["hooks"])
    hooks = {hook["entry"].split()[0] for hook in local["hooks"]}
    assert hooks == {f".venv/bin/{tool}" for tool in re.findall(r"\$\(BIN\)/(\w+)", " ".join(recipe_of("check")))}


def test_the_conda_recipe_depends_on_what_the_package_does() -> None:
    wanted = RECIPE["requirements"]
    assert set(wanted["run"]) == as_conda(PROJECT["dependencies"]) | {"python >=${{ python_min }}"}
    assert set(wanted["host"]) == as_conda(PYPROJECT["build-system"]["requires"]) | {
        "python ${{ python_min }}.*",
        "pip",
    }
    commands = {f"{name} = {target}" for name, target in PROJECT["scripts"].items()}
    assert set(RECIPE["build"]["python"]["entry_points"]) == commands
    assert RECIPE["about"]["license"] == PROJECT["license"] and RECIPE["about"]["homepage"] == HOME


def test_changelog_citation_and_recipe_name_the_same_release() -> None:
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == "Unreleased" and all(
        re.fullmatch(r"\d+\.\d+\.\d+ — \d{4}-\d\d-\d\d", head) for head in heads[1:]
    )
    version, _, date = heads[1].partition(" — ")
    citation = read_yaml("CITATION.cff")
    assert (citation["version"], str(citation["date-released"])) == (version, date)
    assert RECIPE["context"]["version"] == version
    assert citation["repository-code"] == HOME and citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]


def test_links_to_the_repository_name_one_place() -> None:
    files = [
        *ROOT.glob("*.md"),
        *(ROOT / ".github").rglob("*.yml"),
        ROOT / "pyproject.toml",
        ROOT / "conda" / "recipe.yaml",
    ]
    places = {place for file in files for place in re.findall(r"https://github\.com/[\w-]+/hkd\b", file.read_text())}
    assert places == {HOME}
