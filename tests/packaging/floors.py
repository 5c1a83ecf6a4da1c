"""Constraints for pip: the lowest version that pyproject.toml allows, of the dependencies that are named or of all.

python -m tests.packaging.floors torch torchvision
"""

import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def floors(names: list[str]) -> list[str]:
    """Lines such as "torch==2.11" of the dependencies; torchvision's belongs to torch's."""
    lines = [line.split(">=") for line in tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]]
    names = [*names, "torchvision"] if "torch" in names else names
    if unknown := set(names) - {"all", *(name for name, _ in lines)}:
        raise SystemExit(f"floors: no dependency {', '.join(sorted(unknown))}")
    return [f"{name}=={version}" for name, version in lines if names == ["all"] or name in names]


if __name__ == "__main__":
    print("\n".join(floors(sys.argv[1:])))
