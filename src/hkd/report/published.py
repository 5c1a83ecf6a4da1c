"""Published CIFAR-100 test accuracies in percent, to stand beside one's own."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from hkd.config import MethodRequest
from hkd.options import key_values
from hkd.spec import DATA_OPTIONS, PLUS_KD, RunSpec, resolve_method

HKD = "Zhou et al., ICCV 2021, mean ± std"
CRD = (
    "Tian et al., ICLR 2020 (RepDistiller), whose students alone reach 72.50 (resnet8x4), 71.82 (ShuffleV2), "
    "64.60 (MobileNetV2) and 70.36 (vgg8)"
)

SETTINGS = {
    "hkd": "(negatives=same,bank_start=random,sampling=per_sample)",
    "crd": "(sampling=per_sample)",
}
"""What the numbers were measured with, where that need not be a method's default: both codes draw K negatives for every
anchor. Weights and other settings are the methods' defaults, which are the published ones."""
PROTOCOL = {
    "dataset": "cifar100", "epochs": 240, "batch_size": 64, "lr": 0.05, "lr_decay": 0.1,
    "milestones": [0.625, 0.75, 0.875], "momentum": 0.9, "weight_decay": 5e-4, "precision": "fp32",
}  # fmt: skip
LR_OF = {"MobileNetV2": 0.01, "ShuffleV1": 0.01, "ShuffleV2": 0.01}
"""Students that learn at another rate."""

ZHOU: dict[tuple[str, str], dict[str, tuple[float, float]]] = {
    ("resnet32x4", "resnet8x4"): {
        "ce": (72.79, 0.26), "kd": (73.55, 0.20), "crd+kd": (75.64, 0.25), "sskd+kd": (75.80, 0.58),
        "hkd": (75.63, 0.22), "hkd+kd": (76.13, 0.05),
    },
    ("resnet32x4", "ShuffleV2"): {
        "ce": (72.63, 0.71), "kd": (75.38, 0.52), "crd+kd": (76.41, 0.36), "sskd+kd": (76.36, 0.38),
        "hkd": (76.31, 0.30), "hkd+kd": (76.92, 0.22),
    },
    ("vgg13", "MobileNetV2"): {
        "ce": (65.33, 0.63), "kd": (68.08, 0.24), "crd+kd": (69.82, 0.22), "sskd+kd": (69.12, 0.54),
        "hkd": (69.97, 0.42), "hkd+kd": (70.48, 0.25),
    },
    ("ResNet50", "vgg8"): {
        "ce": (70.56, 0.32), "kd": (73.76, 0.09), "crd+kd": (74.41, 0.31), "sskd+kd": (74.68, 0.22),
        "hkd": (74.86, 0.17), "hkd+kd": (74.88, 0.30),
    },
    ("ResNet50", "MobileNetV2"): {
        "ce": (65.33, 0.63), "kd": (67.83, 0.46), "crd+kd": (69.86, 0.04), "sskd+kd": (69.53, 0.43),
        "hkd": (69.83, 0.15), "hkd+kd": (70.72, 0.32),
    },
}  # fmt: skip
"""The columns given here of the paper's Table 1."""

_TIAN_METHODS = ["fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ab", "ft", "nst", "crd"]
TIAN: dict[tuple[str, str], dict[str, float]] = {
    pair: dict(zip(_TIAN_METHODS, numbers, strict=True))
    for pair, numbers in {
        ("resnet32x4", "resnet8x4"): (73.50, 73.44, 72.94, 72.97, 73.09, 71.90, 73.64, 73.17, 72.86, 73.30, 75.51),
        ("resnet32x4", "ShuffleV2"): (73.54, 72.73, 74.56, 71.29, 73.40, 73.21, 74.69, 74.31, 72.50, 74.68, 75.65),
        ("vgg13", "MobileNetV2"): (64.14, 59.40, 66.30, 64.86, 65.56, 64.52, 67.13, 66.06, 61.78, 58.16, 69.73),
        ("ResNet50", "vgg8"): (70.69, 71.84, 73.34, 70.25, 70.30, 71.50, 73.01, 70.65, 70.29, 71.28, 74.30),
        ("ResNet50", "MobileNetV2"): (63.16, 58.58, 68.08, 65.43, 67.57, 64.43, 66.52, 67.20, 60.99, 64.96, 69.11),
    }.items()
}  # fmt: skip
"""The benchmark's table of single methods."""
TIAN["resnet32x4", "resnet8x4"]["fsp"] = 72.62


def published(teacher: str, spec: RunSpec) -> str | None:
    """The published accuracy of a run as text; [2] marks the benchmark's.

    None where there is none, or where the run is not what was published: other images, networks, schedule, precision,
    weights or settings. Which weights teach is not compared, nor the seed.

    Args:
        teacher: the network of the pair; the student alone stands in the tables of each.
        spec: of the run, resolved.
    """
    pair, name = (teacher, str(spec.student.name)), "ce" if spec.method is None else spec.method.name
    if spec.teacher is not None and spec.teacher_names != teacher:
        return None
    for line in (name, f"{name}{PLUS_KD}"):
        ours, benchmark = ZHOU.get(pair, {}).get(line), TIAN.get(pair, {}).get(line)
        if (ours or benchmark) and _learns(spec) == _learns(_measured(*pair, line)):
            return f"{ours[0]:.2f} ± {ours[1]:.2f} [1]" if ours else f"{benchmark:.2f} [2]"
    return None


@lru_cache(maxsize=256)
def _measured(teacher: str, student: str, line: str) -> RunSpec:
    """What a published number was measured with."""
    name = line.removesuffix(PLUS_KD)
    request = MethodRequest.parse(line.replace(name, name + SETTINGS.get(name, ""), 1))
    flat = PROTOCOL | {"student": student, "lr": LR_OF.get(student, PROTOCOL["lr"])}
    if request.options is None:
        return RunSpec.from_flat(flat)
    spec = RunSpec.from_flat(flat | {"teacher": teacher, **request.options})
    assert spec.method is not None
    return replace(spec, method=resolve_method(spec.method))


def _learns(spec: RunSpec) -> list[object]:
    """What decides what a run learns, but for the digests of its images and its teacher."""
    parts = (spec.data, spec.student, spec.optimisation, spec.runtime)
    values = {name: value for part in parts for name, value in key_values(part) if name != "data_digest"}
    images = [getattr(spec.data, name) for name in DATA_OPTIONS if name != "data_root"]
    return [values, images, spec.teacher is not None and spec.teacher.pretrained, spec.method]
