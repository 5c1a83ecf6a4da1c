"""All benchmarks, or one: ``python -m benchmarks NAME [options]``, ``python -m benchmarks all [--output FOLDER]``.

``all`` writes the figures of docs/performance.md: what each prints as .txt, its numbers as .json, and the plots.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

NAMES = ("loss", "growth", "step", "phases", "strength", "data", "comparison", "rounding", "startup", "scaling", "soak")
PLOTS = ("growth",)


def main() -> int:
    asked = sys.argv[1:]
    if asked[:1] == ["all"]:
        return every(Path(asked[2] if asked[1:2] == ["--output"] else "docs/benchmarks"))
    if not asked or asked[0] not in NAMES:
        print(f"usage: python -m benchmarks {{all,{','.join(NAMES)}}} [options]")
        return 0 if asked in ([], ["-h"], ["--help"]) else 2
    importlib.import_module(f"benchmarks.{asked[0]}").main(asked[1:])
    return 0


def every(output: Path) -> int:
    """Each in a process of its own, one after another."""
    output.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        command = [sys.executable, "-m", "benchmarks", name, "--json", str(output / f"{name}.json")]
        command += ["--plot", str(output / f"{name}.png")] if name in PLOTS else []
        print(f"\n$ python -m benchmarks {name}\n", flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, flush=True)
        (output / f"{name}.txt").write_text(done.stdout)
        if done.returncode:
            return done.returncode
    return 0


sys.exit(main())
