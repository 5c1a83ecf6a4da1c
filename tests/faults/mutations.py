"""Valid files, changed a little: bytes flipped, cut, spliced and repeated, values replaced by nasty ones."""

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import torch
import yaml

Files = dict[str, bytes]
"""The contents of a folder's files by their names in it."""

DEEP: Any = 0
for _ in range(100):
    DEEP = [DEEP]
NASTY: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 10**30, -(2**63), 2**31, 2**53 + 1, 1.5, -0.0, 1e308, 1e-320, float("nan"),
    float("inf"), -float("inf"), "", " ", "\x1b[2J", "a\nb", "\0", "\ud800", "x" * 100_000, "1e999", "nan", "null",
    "on", "os:_exit", "hf-hub:a/b", "../../x", "a" * 300, "/dev/zero", "/proc/self/mem", "=1+1", "<script>", "\u2028",
    [], {}, [[]], [None], [1, 2, 3], {"": {}}, {"a": None}, DEEP, ["x"] * 1000,
)  # fmt: skip
TOKENS = (b"\0", b"\xff", b"\n", b"{", b"}", b"[", b"]", b'"', b":", b",", b"-", b"!!python/object:os.system",
          b"!!int ", b"!!timestamp ", b"&a *a", b"<<: *a", b"NaN", b"1e999", b"null",
          b"9" * 40, b"\xef\xbb\xbf", b"PK\x03\x04", b"\x80\x04.")  # fmt: skip


def changed(files: Files, choice: random.Random) -> Files:
    """A folder's files with one to three changes."""
    files = dict(files)
    for _ in range(choice.choice((1, 1, 2, 3))):
        if not files:
            break
        name = choice.choice(sorted(files))
        kind = choice.random()
        if kind < 0.03:
            del files[name]
        elif kind < 0.06:
            files[name] = files[choice.choice(sorted(files))]
        elif kind < 0.09:
            other = choice.choice(("x", "\x1b[2J.png", "é" * 60, " ", "deep/er/than", name + "/x", name.upper()))
            files.update({other: files[name]} if not any(f"{other}/".startswith(f"{f}/") for f in files) else {})
        else:
            files[name] = _content(name, files[name], choice)
    return files


def _content(name: str, data: bytes, choice: random.Random) -> bytes:
    """A file's content, changed as its format allows, or at any byte."""
    change = FORMATS.get(name.rpartition(".")[2])
    if change is not None and choice.random() < 0.7:
        try:
            return change(data, choice)
        except Exception:  # an earlier change has left no such file
            pass
    return some_bytes(data, choice)


def some_bytes(data: bytes, choice: random.Random) -> bytes:
    """Bytes flipped, cut, spliced or repeated, and tokens put between them."""
    for _ in range(choice.choice((1, 1, 2, 8))):
        a = choice.randint(0, len(data))
        b = min(len(data), a + choice.choice((1, 4, 64, 10**6)))
        head, middle, tail = data[:a], data[a:b], data[b:]
        if choice.random() < 0.3:
            flipped = bytes(byte ^ (1 << choice.randrange(8)) for byte in middle[:1])
            data = head + flipped + middle[1:] + tail
            continue
        instead = (b"", middle * 2, middle * 50, choice.choice(TOKENS), choice.randbytes(len(middle) % 10**5))
        data = choice.choice((head, middle + tail, tail + head, *(head + new + tail for new in instead)))
    return data


def value(tree: Any, choice: random.Random) -> Any:
    """Plain data with one to three of its values or names replaced, taken away, repeated or exchanged."""
    holder = {"": copy.deepcopy(tree)}
    for _ in range(choice.choice((1, 1, 2, 3))):
        places = list(_places(holder))
        parent, key = choice.choice(places)
        other_parent, other = choice.choice(places)
        kind = choice.random()
        if kind < 0.55 or parent is holder:
            parent[key] = copy.deepcopy(choice.choice(NASTY))
        elif kind < 0.65:
            del parent[key]
        elif kind < 0.8:
            parent[key] = copy.deepcopy(other_parent[other])
        elif isinstance(parent, dict):
            parent[str(choice.choice(NASTY))[:200]] = parent.pop(key)
        else:
            parent.extend(copy.deepcopy(parent[:20]) * choice.choice((1, 30)))
    return holder[""]


def _places(tree: Any) -> Any:
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    for key, inner in items:
        yield tree, key
        yield from _places(inner)


# -- formats ----------------------------------------------------------------------------------------------------------


def _json(data: bytes, choice: random.Random) -> bytes:
    return json.dumps(value(json.loads(data), choice)).encode()


def _lines(data: bytes, choice: random.Random) -> bytes:
    rows = value([json.loads(line) for line in data.splitlines()], choice)
    return "\n".join(map(json.dumps, rows if isinstance(rows, list) else [rows])).encode()


def _yaml(data: bytes, choice: random.Random) -> bytes:
    tree = value(yaml.safe_load(data), choice)
    text = json.dumps(tree) if choice.random() < 0.3 else yaml.safe_dump(tree, sort_keys=False)
    return text.encode(errors="surrogatepass")


def _safetensors(data: bytes, choice: random.Random) -> bytes:
    """The header, and the text beside the weights that is JSON itself."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    if choice.random() < 0.5:
        header["__metadata__"]["hkd"] = _json(header["__metadata__"]["hkd"].encode(), choice).decode()
    else:
        header = value(header, choice)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def _zip(data: bytes, choice: random.Random) -> bytes:
    """The members."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        compression = archive.infolist()[0].compress_type
        files = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in changed(files, choice).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _torch(data: bytes, choice: random.Random) -> bytes:
    """The values that a checkpoint holds; now and then the members of its archive."""
    if choice.random() < 0.3:
        return _zip(data, choice)
    content = torch.load(io.BytesIO(data), weights_only=True)
    buffer = io.BytesIO()
    torch.save(value(content, choice), buffer)
    return buffer.getvalue()


def _text(data: bytes, choice: random.Random) -> bytes:
    """Lines and the fields of a line."""
    lines = value([line.split("\t") for line in data.decode().splitlines()], choice)
    rows = [line if isinstance(line, list) else [line] for line in (lines if isinstance(lines, list) else [lines])]
    return "\n".join("\t".join(map(str, row)) for row in rows).encode(errors="surrogatepass")


FORMATS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "json": _json, "jsonl": _lines, "yaml": _yaml, "safetensors": _safetensors, "zip": _zip, "npz": _zip, "pt": _torch,
    "txt": _text, "words": _text,
}  # fmt: skip
