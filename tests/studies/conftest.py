"""Studies whose runs are not trained."""

from __future__ import annotations

from typing import Any

import pytest

from hkd import api
from hkd.studies import compare, search, sweep
from tests.studies.fakes import InstantEngine, instant_run


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> InstantEngine:
    """The engine of all studies of a test."""
    instant = InstantEngine()

    def make(*_: Any) -> InstantEngine:
        return instant

    for module in (compare, sweep, search):
        monkeypatch.setattr(module, "make_engine", make)
    for name in ("train", "distill"):
        monkeypatch.setattr(api, name, instant_run())
    monkeypatch.setattr("hkd.studies.execution.POLL_SECONDS", 0.0)
    return instant
