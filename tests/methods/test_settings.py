"""Settings that have no effect are refused, so that a study never compares a computation with itself."""

from typing import Any

import pytest

import hkd


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("hkd", {"terms": "individual", "k": 4}, "k: expected 8 beside terms individual; got 4"),
        ("hkd", {"terms": "individual", "hops": 2}, "hops: expected 1 beside terms individual; got 2"),
        ("hkd", {"terms": "individual", "smoothing": 0.5}, "smoothing: expected 0.75 beside terms individual"),
        ("hkd", {"sampling": "all", "num_negatives": 8}, "num_negatives: expected 16384 beside sampling all; got 8"),
        ("cc", {"gamma": 0.5}, "gamma: expected 0.4 beside kernel adjacent; got 0.5"),
        ("cc", {"order": 3}, "order: expected 2 beside kernel adjacent; got 3"),
        ("sdd", {"nontarget_weight": 2.0}, "nontarget_weight: expected 8.0 beside loss kd; got 2.0"),
    ],
)
def test_a_setting_without_effect_is_refused(method: str, settings: dict[str, Any], message: str) -> None:
    student, teacher = hkd.create_model("resnet8", 10), hkd.create_model("resnet14", 10)
    with pytest.raises(ValueError, match=message):
        hkd.Distiller(student, teacher, method, num_samples=20, **settings)
