"""What runs are called: what differs among those that are shown, and no two the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hkd.report.labels import labels, setting, setting_words
from hkd.spec import RunSpec
from tests.report.fakes import OLD, OLD_DISTILLATION, fake_spec

KD = {"method": "kd", "teacher": "resnet14"}


def named(*specs: RunSpec) -> list[str]:
    """The label of each specification."""
    keys = [spec.key() for spec in specs]
    assert len(set(keys)) == len(keys), "of other keys"
    names = labels(dict(zip(keys, specs, strict=True)))
    assert len(set(names.values())) == len(keys)
    return [names[key] for key in keys]


def taught_by(digest: str, checkpoint: str | None = None, **flat: Any) -> RunSpec:
    return RunSpec.from_flat(
        fake_spec(**KD, **flat).to_flat() | {"teacher_digest": digest, "teacher_checkpoint": checkpoint}
    )


def test_what_is_the_same_is_not_said() -> None:
    specs = [fake_spec(lr=0.2, epochs=7, dataset="cifar100", **method) for method in (
        {}, KD, {"method": "hkd+kd"}, {"method": "hkd", "holistic": {"k": 4}}, {"method": "sp", "method_weight": 1.0},
        {**KD, "kd_weight": 1.0}, {"method": "crd", "kd_weight": 0.5, "kd_temperature": 2.0},
        {"method": "sp+kd", "kd_standardise": True},
    )]  # fmt: skip
    assert named(*specs) == [
        "resnet8",
        "resnet8, kd",
        "resnet8, hkd+kd",
        "resnet8, hkd(k=4)",
        "resnet8, sp(method_weight=1)",
        "resnet8, kd(kd_weight=1)",
        "resnet8, crd(kd_weight=0.5,kd_temperature=2)",
        "resnet8, sp(kd_standardise=true)+kd",
    ]


def test_learning_rates() -> None:
    assert named(fake_spec(**KD), fake_spec(**KD, lr=0.1), fake_spec(lr=0.1)) == [
        "resnet8, kd, lr=0.05",
        "resnet8, kd, lr=0.1",
        "resnet8",
    ]


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ({"dataset": "cifar100"}, {"dataset": "digits"}, ("cifar100", "digits")),
        ({"dataset": "folder:/a/photos"}, {"dataset": "folder:b/scans"}, ("folder:photos", "folder:scans")),
        ({"dataset": "folder:/a/photos"}, {"dataset": "folder:/b/photos"}, ("folder:a/photos", "folder:b/photos")),
        ({"epochs": 4}, {"epochs": 2}, ("epochs=4", "epochs=2")),
        ({"limit_train": 20}, {}, ("limit_train=20", "")),
        ({"holdout": 0.1}, {}, ("holdout=0.1", "")),
        ({"flip": False}, {}, ("flip=false", "")),
        ({"milestones": [0.5, 0.75]}, {"milestones": []}, ("milestones=[0.5,0.75]", "milestones=[]")),
        ({"mean": [0.5, 0.5, 0.25]}, {}, ("mean=[0.5,0.5,0.25]", "")),
        ({"precision": "bf16"}, {"image_size": 16}, ("precision=bf16", "image_size=16, precision=fp32")),
    ],
)
def test_settings_are_in_every_label(one: dict[str, Any], other: dict[str, Any], words: tuple[str, str]) -> None:
    """Also of methods that only one setting has: their accuracies are not comparable."""
    first, second = (f", {word}" if word else "" for word in words)
    specs = (fake_spec(**one), fake_spec(**KD, **one), fake_spec(**KD, **other), fake_spec(method="hkd", **other))
    assert named(*specs) == [
        f"resnet8{first}",
        f"resnet8, kd{first}",
        f"resnet8, kd{second}",
        f"resnet8, hkd{second}",
    ]


def test_teachers() -> None:
    other = fake_spec(**KD | {"teacher": "resnet20"})
    assert named(fake_spec(**KD), other) == ["resnet8, kd, teacher=resnet14", "resnet8, kd, teacher=resnet20"]
    assert named(fake_spec(**KD), fake_spec(**KD, teacher_lr=0.1)) == ["resnet8, kd", "resnet8, kd, teacher_lr=0.1"]


def test_teachers_of_one_architecture_are_named_by_their_files() -> None:
    specs = [fake_spec(**KD), taught_by("weights a", "/w/a.pth"), taught_by("weights b", "/w/b.pth")]
    assert named(*specs) == ["resnet8, kd", "resnet8, kd, teacher=a.pth", "resnet8, kd, teacher=b.pth"]
    specs = [taught_by(f"run {name} 0", f"/runs/{name}/teacher") for name in ("new", "old")]
    assert named(*specs) == ["resnet8, kd, teacher=new/teacher", "resnet8, kd, teacher=old/teacher"]
    hidden = taught_by("weights a", "x", teacher_lr=0.1), taught_by("weights b", "y")
    assert named(*hidden) == ["resnet8, kd, teacher=x", "resnet8, kd, teacher=y"]


def test_what_only_a_digest_says_is_named_by_the_key() -> None:
    a, b = taught_by("weights a", "/w/a.pth"), taught_by("weights b", "/w/a.pth")
    assert named(a, b, fake_spec()) == [f"resnet8, kd [{a.key()[:6]}]", f"resnet8, kd [{b.key()[:6]}]", "resnet8"]


def test_images_that_changed_in_one_folder_are_two_settings() -> None:
    a, b = (fake_spec(content, dataset="folder:photos", **KD) for content in ("before", "after"))
    expected = [f"resnet8, kd, data {spec.data.digest[:6]}" for spec in (a, b)]
    assert named(a, b) == expected


def test_runs_of_version_0_1() -> None:
    old, old_kd = RunSpec.from_flat({"format": 1} | OLD), RunSpec.from_flat({"format": 1} | OLD_DISTILLATION)
    assert named(old, old_kd) == ["resnet8", "resnet8, kd"]
    assert named(old, old_kd, fake_spec(), fake_spec(**KD)) == [
        "resnet8, hkd 0.1",
        "resnet8, kd, hkd 0.1",
        "resnet8",
        "resnet8, kd",
    ]
    assert named(old_kd, fake_spec("", **KD, limit_train=20))[0] == "resnet8, kd, hkd 0.1"


def test_a_setting_is_everything_but_networks_method_rate_and_seed() -> None:
    base = fake_spec()
    for flat in (KD, {"student": "vgg8"}, {"lr": 0.1}, {"seed": 3}, {"device": "cpu", "run": "elsewhere"}):
        assert setting(fake_spec(**flat)) == setting(base)
    others = ({"dataset": "cifar100"}, {"epochs": 3}, {"batch_size": 32}, {"flip": False}, {"precision": "bf16"})
    for flat in others:
        assert setting(fake_spec(**flat)) != setting(base)
    assert list(setting_words([base, fake_spec(**KD)]).values()) == [[]]


def test_revisions_are_said_within_the_same_images_alone() -> None:
    """Images in memory and in files have loaders, and so revisions, of their own."""
    memory, stream = fake_spec(dataset="digits"), fake_spec(dataset="folder:photos")
    newer = replace(stream, data=replace(stream.data, revision=2))
    assert not any("revision" in name for name in named(memory, newer))
    assert [("data_revision=1" in name) for name in named(memory, stream, newer)] == [False, True, False]
