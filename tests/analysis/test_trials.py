"""Rows are pooled by the keys of their runs, never by their labels."""

from __future__ import annotations

from typing import Any

from hkd.analysis.trials import by_key, repeated, repetition_notes
from hkd.report import topology, transfer


def row(label: str, key: str, seed: int | None, weights: str, **numbers: Any) -> dict[str, Any]:
    return {"label": label, "key": key, "seed": seed, "weights": weights} | numbers


def test_runs_of_one_label_and_two_keys_are_two_experiments() -> None:
    rows = [
        row("resnet8, kd", "k1", 0, "a/kd-0/s.safetensors", x=1.0),
        row("resnet8, kd", "k2", 0, "b/kd-0/s.safetensors", x=5.0),
        row("resnet8, kd", "k1", 1, "a/kd-1/s.safetensors", x=2.0),
        row("resnet8", "k3", 0, "c/s.safetensors", x=9.0),
    ]
    groups = by_key(rows)
    assert [trials.values("x") for trials in groups] == [[1.0, 2.0], [5.0], [9.0]]
    assert [trials.label for trials in groups] == ["resnet8, kd [a/kd-0]", "resnet8, kd [b/kd-0]", "resnet8"]


def test_a_seed_counts_once() -> None:
    rows = [row("kd", "k", seed, f"{folder}/s.safetensors", x=x) for folder, seed, x in
            (("a", 0, 1.0), ("b", 0, 7.0), ("c", 1, 3.0))]  # fmt: skip
    (trials,) = by_key(rows)
    assert trials.values("x") == [1.0, 3.0] and trials.label == "kd"
    assert repeated(rows) == {"b/s.safetensors": "a/s.safetensors"}
    (note,) = repetition_notes(rows)
    assert note == "note: b/s.safetensors is not counted: it has the specification and the seed of a/s.safetensors"


def test_a_network_with_several_rows_is_no_repetition() -> None:
    rows = [row("kd", "k", 0, "a/s.safetensors", dataset=name, x=1.0) for name in ("digits", "stl10")]
    assert repeated(rows) == {} and len(by_key(rows)[0].rows) == 2


def test_files_of_weights_are_groups_of_their_own() -> None:
    rows = [row("resnet8", "", None, f"w/{name}.pth") for name in ("a", "b")]
    assert [trials.label for trials in by_key(rows)] == ["resnet8 [w/a.pth]", "resnet8 [w/b.pth]"]
    assert repeated(rows) == {}


def test_rows_of_version_0_1_never_pool() -> None:
    rows = [{"network": "kd", "weights": f"{folder}/s.safetensors", "seed": 0, "x": 1.0} for folder in ("a", "b")]
    groups = by_key(rows)
    assert [trials.label for trials in groups] == ["kd [a/s.safetensors]", "kd [b/s.safetensors]"]
    assert groups[0].values("not then") == []


def test_tables_pool_by_key() -> None:
    measured = dict.fromkeys(topology.MEASURES, 0.5)
    networks = [("k1", 0, "a"), ("k1", 1, "b"), ("k2", 0, "c"), ("k1", 0, "d")]
    rows = [row("kd", key, seed, f"{folder}/s", **measured) for key, seed, folder in networks]
    numbers = {"rows": rows, "teacher": "resnet14", "neighbours": 5, "images": 60, "dataset": "digits"}
    lines = topology.markdown(numbers).splitlines()
    assert sum("0.500 ± 0.000 (2)" in line for line in lines) == 1
    assert sum("| kd [c]" in line and "0.500 (1)" in line for line in lines) == 1

    rows = [
        row("kd", key, seed, f"{folder}/s", dataset=dataset, top1=top1)
        for key, seed, folder in networks
        for dataset, top1 in (("digits", 50.0), ("stl10", 20.0 + seed))
    ]
    lines = transfer.markdown({"rows": rows, "protocol": ["p"], "datasets": ["digits", "stl10"]}).splitlines()
    (pooled,) = [line for line in lines if line.startswith("| kd [a]")]
    assert "50.00 ± 0.00 (2)" in pooled and "20.50 ± 0.71 (2)" in pooled
    assert sum(line.startswith("| kd [c]") and "20.00 (1)" in line for line in lines) == 1
