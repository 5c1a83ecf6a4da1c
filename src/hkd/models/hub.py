"""Libraries that download weights: where there is no network, the answer comes within seconds, with what to do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from hkd.errors import RequestError

PATIENCE = 2.5
"""Seconds in which a host has to answer."""


def reachable(url: str) -> bool:
    """Whether the host of an address, or the proxy before it, takes a connection within :data:`PATIENCE` seconds."""
    place = urlsplit(url)
    proxy = None if proxy_bypass(place.hostname or "") else getproxies().get(place.scheme)
    if proxy:
        place = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = place.port or {"http": 80}.get(place.scheme, 443)
    answers: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((place.hostname, port), timeout=PATIENCE).close()
            answers.append(True)
        except OSError:
            pass

    # Looking a name up has no time limit of its own, so that a thread does it, which may be left behind.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return bool(answers)


@contextmanager
def from_hub(name: str, way: str) -> Iterator[None]:
    """Around a call that takes files from the Hugging Face hub: without a network, those that were downloaded before.

    Args:
        name: of the network, as an error message names it.
        way: what can be done without a network, in words.

    Raises:
        RequestError: there is no network, and the call failed.
    """
    from huggingface_hub import constants

    told, url = constants.HF_HUB_OFFLINE, constants.ENDPOINT
    if not told and reachable(url):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except Exception as error:  # of several libraries, each with its own
        raise _no_network(name, "HF_HUB_OFFLINE is set" if told else f"{url} cannot be reached", way) from error
    finally:
        constants.HF_HUB_OFFLINE = told


def check_download(name: str, url: str, way: str) -> None:
    """Raises :class:`RequestError` for a file of :mod:`torch.hub` that is not on this machine and out of reach."""
    import torch.hub

    place = urlsplit(url)
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(place.path).name)
    if not cached.is_file() and not reachable(url):
        raise _no_network(name, f"{place.scheme}://{place.netloc} cannot be reached", way)


def _no_network(name: str, reason: str, way: str) -> RequestError:
    return RequestError(f"model: the weights of {name} are not on this machine, and {reason}; {way}")
