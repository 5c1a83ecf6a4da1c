"""A specification as the command that trains it, for engines, job arrays and people."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from hkd.config import DEFAULTS
from hkd.options import default_of
from hkd.registry import loaded_plugins
from hkd.spec import FIELDS, RECORDED, RunSpec, field_of

HKD = ("-m", "hkd")


def launcher(processes: int) -> tuple[str, ...]:
    """The words between ``python`` and a command, of so many processes on this machine, started by torchrun."""
    if processes == 1:
        return HKD
    return ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *HKD, "--")


def command_of(spec: RunSpec, processes: int = 1) -> list[str]:
    """The words that train a run, or continue it: what differs from the command's defaults, and the loaded plugins.

    Args:
        spec: of the run, as it was requested.
        processes: that train it together, started by torchrun.
    """
    command = "train" if spec.method is None else "distill"
    words = [sys.executable, *launcher(processes), command]
    for plugin in loaded_plugins():
        words += ["--plugin", plugin]
    for name, value in _options(spec, command):
        words += _words(f"--{name.replace('_', '-')}", value)
    return words


def _options(spec: RunSpec, command: str) -> Iterator[tuple[str, Any]]:
    """The options that are not at their defaults."""
    for name, value in spec.to_flat().items():
        if name in FIELDS and name not in RECORDED and value != _default(name, command):
            yield name, value
    if spec.method is not None and spec.method.settings is not None:
        from hkd.methods import methods

        prefix, usual = methods[spec.method.name].settings, vars(methods[spec.method.name].Config())
        yield from ((f"{prefix}.{name}", v) for name, v in vars(spec.method.settings).items() if v != usual[name])


def _default(name: str, command: str) -> Any:
    part, attribute = FIELDS[name]
    default = DEFAULTS[command].get(name, default_of(field_of(part, attribute)))
    return list(default) if isinstance(default, tuple) else default


def _words(flag: str, value: Any) -> list[str]:
    match value:
        case bool():
            return [flag if value else f"--no-{flag.removeprefix('--')}"]
        case None:
            return [flag, "none"]
        case list() | tuple():
            return [flag, ",".join(map(str, value))]
        case Mapping():
            return [flag, ",".join(f"{key}={item}" for key, item in value.items())]
    return [flag, str(value)]
