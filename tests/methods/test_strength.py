"""No method is in a comparison at a weight that leaves it without effect."""

from __future__ import annotations

import pytest
from benchmarks.strength import LEAST, OTHERS, REASONS, Scene, scene, strength

import hkd


@pytest.fixture(scope="module")
def trained() -> Scene:
    return scene(epochs=4)


@pytest.mark.parametrize("label", [*hkd.list_methods(), *OTHERS])
def test_a_gradient_is_felt_beside_the_cross_entropys_or_there_is_a_reason(label: str, trained: Scene) -> None:
    found = strength(label, trained)
    assert found.ce > 0 and found.method > 0
    assert found.ratio >= LEAST or label in REASONS, f"{label}: ratio {found.ratio:.3f}"


def test_reasons_are_of_methods_that_are_measured() -> None:
    assert set(REASONS) <= {*hkd.list_methods(), *OTHERS}
