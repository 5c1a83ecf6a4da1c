"""Which names of networks are data, and which import or download code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hkd.errors import RequestError
from hkd.options import shown
from hkd.outside import printable

_LIBRARY = re.compile(r"(timm|torchvision):[A-Za-z0-9_.-]+")
_PROJECTED = re.compile(r"projected-(\d{1,4})-(\d{1,4})-(\d{1,3}):(.+)")


class Projection(NamedTuple):
    """How :class:`hkd.models.projected.ProjectedModel` projects a map; as a name, ``projected-256-8-2``."""

    width: int
    """Channels of the projected map."""
    side: int
    """In cells: larger maps are pooled to it."""
    factor: int
    """The width over that of the bottleneck."""

    def __str__(self) -> str:
        return f"projected-{self.width}-{self.side}-{self.factor}"


def split_projected(name: str) -> tuple[Projection | None, str]:
    """``projected-256-8-2:NETWORK`` as the projection and the network's own name; other names as they are."""
    match = _PROJECTED.fullmatch(name)
    if match is None:
        return None, name
    projection = Projection(*(int(number) for number in match.groups()[:3]))
    return (projection, match[4]) if min(projection) > 0 else (None, name)


_RESIZED = re.compile(r"resized-(\d{1,4}):(.+)")


def split_resized(name: str) -> tuple[int | None, str]:
    """``resized-224:NETWORK`` as the side and the network's own name; other names as they are."""
    match = _RESIZED.fullmatch(name)
    return (int(match[1]), match[2]) if match is not None and int(match[1]) > 0 else (None, name)


def resized(name: str, size: int | None) -> str:
    """The name of a network that resizes its images to a side, which it may be already; see :class:`ResizedModel`.

    Raises:
        RequestError: it resizes them to another.
    """
    given, own = split_resized(name)
    if None not in (given, size) and given != size:
        raise RequestError(f"teacher_image_size: {own} was trained on images resized to {given}x{given}; got {size}")
    return name if size is None or given is not None else f"resized-{size}:{name}"


def _bare(name: str) -> str:
    """A name without what stands before the network's own."""
    return split_resized(split_projected(name)[1])[1]


def names_code(name: str) -> bool:
    """Whether building a network of this name imports a module or downloads something.

    A factory ``package.module:callable``, ``timm:hf-hub:...`` and ``timm:local-dir:...`` do; names of the zoo,
    ``timm:NAME`` and ``torchvision:NAME`` do not, and none of these behind ``projected-...:`` or ``resized-...:`` does.
    """
    name = _bare(name)
    return ":" in name and _LIBRARY.fullmatch(name) is None


def local_folder(name: str) -> Path | None:
    """The folder that ``timm:local-dir:PATH`` names, None for other names."""
    prefix, _, path = name.partition("local-dir:")
    return Path(path).expanduser() if prefix == "timm:" and path else None


def untrusted(file: str | Path, option: str, name: object, way: str) -> RequestError:
    """The refusal of code that a YAML file names.

    Args:
        file: that names it.
        option: by which.
        name: the factory, the hub's name or the module.
        way: what whoever trusts the file can do, in words.
    """
    return RequestError(f"config: {printable(file, 4096)} names {option} = {printable(name)}, which is code; {way}")


def model_of_file(about: Mapping[str, Any], path: str | Path, field: str = "model") -> str:
    """The name of the network in a file of weights, as the file says it.

    A file may come from anywhere, so its word never imports or downloads anything: such a name has to be typed by a
    person.

    Args:
        about: what :func:`hkd.models.weights.read_about` returned.
        path: of the file.
        field: the option that names the network instead, "model" or "teacher".

    Raises:
        RequestError: the file does not say, or says a name that is no network of the zoo, timm or torchvision.
    """
    from hkd.models.base import models  # torch, which a check of names does without

    name, file = about.get("model"), printable(path, 4096)
    if not name:
        raise RequestError(f"{field}: {file} does not say which network it holds; name it with --{field}")
    if names_code(name):
        raise RequestError(
            f"{field}: {file} holds the network {shown(name)}, and a name in a file never imports or downloads "
            f"anything; name the network yourself with --{field} (in Python {field}=...)"
        )
    own = _bare(name)
    if ":" not in own and (len(own) > 200 or own not in models):
        raise RequestError(
            f"{field}: {file} holds a network of its own, {shown(name)}; name its factory with --{field} "
            f"module:callable (in Python {field}=...)"
        )
    return str(name)
