"""What runs are called in tables: their method, and what else differs among the runs that are shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hkd.spec import DATA_OPTIONS, FIELDS, RECORDED, RunSpec, field_of
from hkd.trained import method_label

Flat = dict[str, Any]


def base_label(spec: RunSpec) -> str:
    """The network and its method: "resnet8, hkd(k=4)+kd"; a network trained on labels alone is its name."""
    name = spec.student.name or "?"
    return name if spec.method is None else f"{name}, {method_label(spec)}"


def labels(specs: Mapping[str, RunSpec]) -> dict[str, str]:
    """A label for each key, so that no two keys share one.

    Args:
        specs: a specification of each key that is shown.
    """
    by_label: dict[str, list[str]] = {}
    for key, spec in specs.items():
        by_label.setdefault(base_label(spec), []).append(key)
    found: dict[str, str] = {}
    for label, keys in by_label.items():
        differing = what_differs([specs[key] for key in keys])
        for key, words in zip(keys, differing, strict=True):
            found[key] = ", ".join([label, *words])
        if len({found[key] for key in keys}) < len(keys):  # only the content of data or weights differs
            found |= {key: f"{found[key]} [{key[:6]}]" for key in keys}
    return found


def what_differs(specs: list[RunSpec]) -> list[list[str]]:
    """For each specification the options, as name=value, whose values are not the same in all."""
    flats = [decisive(spec) for spec in specs]
    names = dict.fromkeys(name for flat in flats for name in flat)
    differing = [name for name in names if len({repr(flat.get(name)) for flat in flats}) > 1]
    return [[f"{name}={_short(flat[name])}" for name in differing if name in flat] for flat in flats]


def decisive(spec: RunSpec) -> Flat:
    """The options that decide what is learnt, without digests and what :func:`base_label` says already."""
    flat = spec.to_flat()
    said = {"method", "student", "ce_weight", "kd_weight", "method_weight", "kd_temperature", "mean", "std"}
    names = {name for name, place in FIELDS.items() if _counts(place.part, place.field)}
    names |= set(DATA_OPTIONS) - {"data_root"}
    names -= said | (RECORDED - {"data_revision", "method_revision"})
    return {name: value for name, value in flat.items() if name in names}


def _counts(part: str, field: str) -> bool:
    return bool(field_of(part, field).metadata["key"])


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_short, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting(spec: RunSpec) -> tuple[tuple[str, str], ...]:
    """What runs must share to be compared: everything but networks, method and teacher."""
    flat = spec.to_flat()
    parts = ("data", "optimisation", "runtime")
    names = {name for name, place in FIELDS.items() if place.part in parts and _counts(place.part, place.field)}
    names -= {"mean", "std", "lr"}  # those go with the networks
    digest = [] if flat["data_digest"] else [("dataset", repr(flat["dataset"]))]
    return tuple(sorted([*digest, *((name, repr(flat[name])) for name in names)]))


def setting_words(specs: Iterable[RunSpec]) -> list[str]:
    """A few words for each of some settings: what differs among them, the data set first."""
    found = list(specs)
    return [", ".join([spec.data.dataset, *(w for w in words if not w.startswith("dataset="))])
            for spec, words in zip(found, what_differs(found), strict=True)]  # fmt: skip
