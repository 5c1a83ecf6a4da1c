"""What runs are called in tables: network, method, and what else differs among the runs that are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from hkd.options import key_values
from hkd.spec import DATA_OPTIONS, FIELDS, RECORDED, RunSpec, field_of
from hkd.trained import method_label

Setting = tuple[tuple[str, str], ...]
"""What runs must share to be compared, by flat name."""


def _decisive(*parts: str) -> list[str]:
    """The options of some parts of a specification that are in its key, by their flat names."""
    return [name for name, (part, entry) in FIELDS.items() if part in parts and field_of(part, entry).metadata["key"]]


CONTENT = tuple(name for name in DATA_OPTIONS if name != "data_root")
"""The options behind the digest of the data."""
SETTING = (*CONTENT, *(n for n in _decisive("data", "optimisation", "runtime") if n not in ("data_digest", "lr")))
NETWORKS = ("lr", *(n for n in _decisive("student", "teacher") if n not in {"student", *RECORDED}), "method_revision")
REVISIONS = ("data_revision", "method_revision")


def base_label(spec: RunSpec) -> str:
    """The network and its method: "resnet8, hkd(k=4)+kd"; a network trained with cross-entropy alone is its name."""
    name = spec.student.name or "?"
    return name if spec.method is None else f"{name}, {method_label(spec)}"


def labels(specs: Mapping[str, RunSpec], base: Callable[[RunSpec], str] = base_label) -> dict[str, str]:
    """A label for each key, so that no two keys share one.

    A label is the base with what differs, as name=value. If there are several settings, each label names its setting.
    What else differs is added where labels would be equal, and a part of the key where no option differs, as for two
    files of weights under one name.

    Args:
        specs: a specification of each key that is shown.
        base: the label of a specification that is shown alone.
    """
    words = setting_words(specs.values())
    names = {key: ", ".join([base(spec), *words[setting(spec)]]) for key, spec in specs.items()}
    for options in (NETWORKS, ("teacher_checkpoint",)):
        for keys in _sharing(names):
            differing = what_differs([specs[key] for key in keys], options)
            names |= {key: ", ".join([names[key], *words]) for key, words in zip(keys, differing, strict=True)}
    for keys in _sharing(names):
        names |= {key: f"{names[key]} [{short}]" for key, short in zip(keys, _prefixes(keys), strict=True)}
    return names


def setting(spec: RunSpec) -> Setting:
    """What runs must share to be compared: the images, the optimisation but the learning rate, and the precision.

    The learning rate belongs to the network: a teacher and its student may have two.
    """
    values = [value for part in (spec.data, spec.optimisation, spec.runtime) for value in key_values(part)]
    if not spec.data.digest:  # runs of version 0.1 did not record it
        values += [(name, getattr(spec.data, name)) for name in CONTENT]
    return tuple(sorted((name, repr(value)) for name, value in values if name != "lr"))


def setting_words(specs: Iterable[RunSpec]) -> dict[Setting, list[str]]:
    """A few words for each of the settings of some specifications: what differs among them."""
    first: dict[Setting, RunSpec] = {}
    for spec in specs:
        first.setdefault(setting(spec), spec)
    words = dict(zip(first, what_differs(list(first.values()), SETTING), strict=True))
    for same in _sharing({key: ", ".join(some) for key, some in words.items()}):  # a folder whose content has changed
        for key, short in zip(same, _prefixes([first[key].data.digest for key in same]), strict=True):
            words[key] = [*words[key], f"data {short}"]
    return words


def what_differs(specs: Sequence[RunSpec], options: Iterable[str]) -> list[list[str]]:
    """For each specification those of the options, as name=value, whose values are not the same in all."""
    flats = [_shown(spec) for spec in specs]
    columns = []
    for name in options:
        values = [flat.get(name) for flat in flats]
        if len(set(map(repr, values))) > 1:
            columns.append(_revisions(name, flats) if name in REVISIONS else _words(name, values))
    return [[column[n] for column in columns if column[n]] for n in range(len(specs))]


def _shown(spec: RunSpec) -> dict[str, Any]:
    """The flat options, without those of a teacher's training where its weights are given."""
    flat = spec.to_flat()
    if spec.teacher is not None and spec.teacher.digest:
        del flat["teacher_pretrained"], flat["teacher_lr"], flat["teacher_train"]
    return flat


def _revisions(name: str, flats: list[dict[str, Any]]) -> list[str]:
    """What is not of the newest revision on the same data: images in memory and in files have their own."""
    newest: dict[str, int] = {}
    for flat in flats:
        digest = flat.get("data_digest", "")
        newest[digest] = max(newest.get(digest, 0), flat.get(name) or 0)
    words = []
    for flat in flats:
        value = flat.get(name)
        current = value in (None, newest[flat.get("data_digest", "")]) and value != 0
        words.append("" if current else f"{name}={value}" if value else "hkd 0.1")
    return words


def _words(name: str, values: list[Any]) -> list[str]:
    """The values of one option in words; none for what is not given, and for a switch that is not turned."""
    if name == "dataset":
        return _tails(values)
    if name == "teacher_checkpoint":
        several = [value if isinstance(value, list) else [value] for value in values]
        tails = iter(_tails([path for paths in several for path in paths]))
        words = ["+".join(next(tails) for _ in paths) for paths in several]
        return [tail and f"teacher={tail}" for tail in words]
    if name == "teacher":
        values = ["+".join(value) if isinstance(value, list) else value for value in values]
    part, attribute = FIELDS[name]
    entry = field_of(part, attribute)
    usual = [None, entry.metadata["neutral"], *([entry.default] if isinstance(entry.default, bool) else [])]
    return ["" if value in usual else f"{name}={_short(value)}" for value in values]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_short, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _tails(paths: list[str | None]) -> list[str]:
    """The last parts of each path, as many as it takes to distinguish them; those of folder:PATH with its prefix."""
    split = {path: path.rpartition(":") for path in paths if path is not None}
    tails: dict[str | None, str] = {None: ""}
    for count in range(1, max(len(PurePath(place).parts) for _, _, place in split.values()) + 1):
        for path, (kind, colon, place) in split.items():
            tails[path] = kind + colon + str(PurePath(*PurePath(place).parts[-count:]))
        if len(set(tails.values())) == len(tails):
            break
    return [tails[path] for path in paths]


def _sharing(names: Mapping[Any, str]) -> list[list[Any]]:
    """The keys that have a name in common with another."""
    keys: dict[str, list[Any]] = {}
    for key, name in names.items():
        keys.setdefault(name, []).append(key)
    return [same for same in keys.values() if len(same) > 1]


def _prefixes(digests: list[str]) -> list[str]:
    """The first characters of each digest, at least six and as many as it takes to distinguish them."""
    count = 6
    while len({digest[:count] for digest in digests}) < len(set(digests)):
        count += 1
    return [digest[:count] for digest in digests]
