"""Keeps the numbers of a study without its networks: what a table of docs/results.md is made of.

    python -m benchmarks.collect STUDY docs/results/NAME

writes NAME.json, the study's comparison.json with run folders relative to the study, data by name and not by place,
hours and machines, and NAME.npz with the class that each run predicted for each evaluation image, uint8, and the right
ones under ``label``. Of the folder of ``hkd topology``, ``hkd transfer`` or a search, NAME.json alone.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from hkd.deploy.card import without_place
from hkd.runtime.run_folder import RunFolder


def collect(study: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The numbers of a study and the predictions of its finished runs, under the runs' folders in it."""
    numbers = json.loads((study / "comparison.json").read_text())
    arrays: dict[str, np.ndarray] = {}
    seconds, machines = 0.0, set()
    for pair in numbers["pairs"]:
        for row in pair["methods"]:
            folders = [RunFolder(place) for place in row["runs"]]
            finished = {run: summary for run in folders if (summary := run.summary) is not None}
            row["runs"] = [str(run.path.resolve().relative_to(study.resolve())) for run in finished]
            for name, (run, summary) in zip(row["runs"], finished.items(), strict=True):
                predicted, label = run.predictions()
                if arrays.setdefault("label", _small(label)).tolist() != label.tolist():
                    raise SystemExit(f"{run.path}: other evaluation images than those of the runs before it")
                arrays[name] = _small(predicted)
                seconds += summary["seconds"]
                machines.add(summary["machine"])
    protocol = [_data_by_name(line) for line in numbers["protocol"]]
    return numbers | {"protocol": protocol, "hours": seconds / 3600, "machines": sorted(machines)}, arrays


def _data_by_name(line: str) -> str:
    """A sentence of the protocol; that on the data begins with the data set and a colon."""
    data, colon, rest = line.partition(": ")
    return without_place(data) + colon + rest


def _small(classes: np.ndarray) -> np.ndarray:
    if classes.max() > 255:
        raise SystemExit("more than 256 classes")
    return classes.astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("name", type=Path)
    asked = parser.parse_args()
    asked.name.parent.mkdir(parents=True, exist_ok=True)
    for file in (asked.study / f"{kind}.json" for kind in ("topology", "transfer", "search")):
        if file.is_file():
            numbers = json.loads(file.read_text())
            for row in [*numbers.get("rows", []), *numbers.get("tries", [])]:
                kind = "weights" if "weights" in row else "run"
                row[kind] = "/".join(Path(row[kind]).parts[-2:])
            asked.name.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")
            return
    numbers, arrays = collect(asked.study)
    asked.name.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")
    np.savez_compressed(asked.name.with_suffix(".npz"), **arrays)
    print(f"{len(arrays) - 1} runs, {numbers['hours']:.1f} hours, {', '.join(numbers['machines'])}")


if __name__ == "__main__":
    main()
