"""The specification of a run: its flat shape, its key, and what it refuses."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import hkd
from hkd.data.spec import DataSpec
from hkd.models.spec import StudentSpec, TeacherSpec
from hkd.spec import FIELDS, RECORDED, RunSpec
from tests.data.test_datasets import class_folders, write_files

RESOLVED = DataSpec(digest="0123456789abcdef")


def resolved(**values: Any) -> RunSpec:
    """A specification whose data set is known by its digest alone."""
    spec = RunSpec.from_flat({"method": "hkd+kd", **values})
    spec = dataclasses.replace(
        spec, data=dataclasses.replace(spec.data, digest=RESOLVED.digest),
        student=dataclasses.replace(spec.student, name=spec.student.name or "resnet8"),
    )  # fmt: skip
    from hkd.spec import resolve_method, resolve_teacher

    assert spec.method is not None and spec.teacher is not None
    return dataclasses.replace(spec, method=resolve_method(spec.method), teacher=resolve_teacher(spec.teacher))


def test_the_flat_shape_makes_a_round_trip(tmp_path: Path) -> None:
    spec = resolved(lr=0.1, milestones=[0.5], seed=3, holistic={"k": 4})
    assert RunSpec.from_flat(spec.to_flat()) == spec
    spec.save(tmp_path / "config.yaml")
    assert RunSpec.load(tmp_path / "config.yaml") == spec
    flat = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (flat["format"], flat["method"], flat["kd_weight"], flat["holistic"]["k"]) == (2, "hkd", 1.0, 4)
    assert flat["holistic"]["num_negatives"] == 16384, "settings are written whole"


def test_flat_constructors_make_the_same_specification() -> None:
    config = hkd.DistillConfig(dataset="folder:photos", method="hkd", lr=0.1, settings={"k": 4})
    spec = config.spec()
    assert (spec.data.dataset, spec.optimisation.lr) == ("folder:photos", 0.1)
    assert spec.method is not None and (spec.method.name, spec.method.settings.k) == ("hkd", 4)
    assert spec == RunSpec.from_flat(
        {"dataset": "folder:photos", "method": "hkd", "lr": 0.1, "holistic": {"k": 4}, "run": "runs/distill"}
    )
    assert hkd.TrainConfig(teacher="resnet20").spec().student == StudentSpec(name="resnet20")


def test_plus_kd_is_the_kd_term_with_weight_1() -> None:
    a, b = resolved(method="hkd+kd"), resolved(method="hkd", kd_weight=1.0)
    assert a == b and a.key() == b.key()
    with pytest.raises(hkd.RequestError, match="kd is the KD term itself"):
        RunSpec.from_flat({"method": "kd+kd"})


FREE = {
    "logger": "none",
    "seed": 7, "run": "elsewhere", "device": "cpu", "threads": 3, "workers": 2, "tensorboard": False, "compile": True,
    "save_minutes": 1.0, "data_root": "/data", "skip_bad_steps": 2, "keep_checkpoints": True, "evaluate": "last",
    "image_cache": "cache", "image_cache_gb": 1.0, "dataset": "folder:./same", "teacher_cache": "auto",
    "teacher_cache_gb": 1.0, "teacher_cache_dtype": "float32",
}  # fmt: skip
DECISIVE: dict[str, Any] = {
    "lr": 0.1, "epochs": 3, "batch_size": 32, "milestones": [0.5], "momentum": 0.8, "weight_decay": 0.0, "flip": False,
    "precision": "bf16", "student": "resnet20", "teacher": "resnet32", "method": "crd", "method_weight": 1.0,
    "kd_weight": 0.5, "ce_weight": 0.5, "kd_temperature": 2.0, "kd_standardise": True, "pseudo_labels": 0.5,
    "unlabelled_share": 0.25,
    "holdout": 0.1, "image_size": 16, "views": 8, "holistic": {"k": 4}, "optimizer": "adamw", "schedule": "cosine",
    "warmup_epochs": 2, "min_lr": 0.001, "label_smoothing": 0.1, "clip_grad": 1.0, "accumulate": 2, "ema": 0.9,
    "decay_all": False, "balance": "sampler",
    "student_pretrained": True, "teacher_pretrained": True, "teacher_lr": 0.1, "teacher_image_size": 64,
    "teacher_train": "head", "student_train": "head", "scale_with_processes": True,
    "lr_decay": 0.2, "mean": [0.1, 0.2, 0.3], "std": [0.1, 0.2, 0.3], "augment": "trivial", "min_crop": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", FREE)
def test_the_machine_and_the_seed_are_not_in_the_key(name: str) -> None:
    assert resolved(**{name: FREE[name]}).key() == resolved().key()


@pytest.mark.parametrize("name", DECISIVE)
def test_what_decides_what_is_learnt_is_in_the_key(name: str) -> None:
    assert resolved(**{name: DECISIVE[name]}).key() != resolved().key()


def test_every_option_is_one_or_the_other() -> None:
    by_content = {"limit_classes", "limit_train", "train_fraction", "bad_images", "teacher_checkpoint", "unlabelled"}
    by_content |= STARTS
    together = {"holdout_seed", "patience"}  # without a holdout it says nothing; what is by its content is in a digest
    mixed = {"mixup", "cutmix"}  # not with hkd; see tests/test_mixed_images.py
    assert set(FREE) | set(DECISIVE) - {"holistic"} | by_content | together | mixed == set(FIELDS) - RECORDED


def test_the_data_and_the_teacher_are_known_by_their_content() -> None:
    spec = resolved()
    assert spec.teacher is not None and spec.method is not None
    other_data = dataclasses.replace(spec, data=dataclasses.replace(spec.data, digest="f" * 16))
    taught = [
        dataclasses.replace(spec, teacher=TeacherSpec(name="resnet20", digest=d))
        for d in ("run a 0", "run a 1", "run b 0")
    ]
    elsewhere = dataclasses.replace(spec, teacher=TeacherSpec(name="resnet20", checkpoint="x", digest="run a 0"))
    newer = dataclasses.replace(spec, method=dataclasses.replace(spec.method, revision=99))
    keys = [s.key() for s in (spec, other_data, *taught, newer)]
    assert len(set(keys)) == len(keys)
    assert elsewhere.key() == taught[0].key()


TWO = {"teacher": ["resnet20", "vgg8"], "teacher_digest": ["run a 0", "weights b"]}


def test_several_teachers_make_a_round_trip(tmp_path: Path) -> None:
    spec = resolved(**TWO)
    assert [(t.name, t.digest) for t in spec.teachers] == [("resnet20", "run a 0"), ("vgg8", "weights b")]
    assert spec.teacher_names == "resnet20+vgg8"
    spec.save(tmp_path / "config.yaml")
    assert RunSpec.load(tmp_path / "config.yaml") == spec == RunSpec.from_flat(spec.to_flat())
    flat = spec.to_flat()
    assert {name: flat[name] for name in TWO} == TWO and flat["teacher_checkpoint"] is None
    open_ = RunSpec.from_flat({"method": "kd", "teacher_checkpoint": ["a", "b"]})
    assert (open_.to_flat()["teacher"], open_.to_flat()["teacher_checkpoint"]) == (None, ["a", "b"])
    assert open_.with_options(lr=1.0).teachers == open_.teachers
    one = RunSpec.from_flat({"method": "kd", "teacher": ["vgg8"], "teacher_checkpoint": ["a"]})
    assert one == RunSpec.from_flat({"method": "kd", "teacher": "vgg8", "teacher_checkpoint": "a"})


def test_a_key_depends_on_all_teachers_in_order() -> None:
    digests = [
        ["run a 0", "weights b"],
        ["weights b", "run a 0"],
        ["run a 0", "weights c"],
        ["run a 0"],
        ["run a 0"] * 2,
    ]
    names = ["resnet20", "vgg8"]
    keys = [resolved(teacher=names[: len(one)], teacher_digest=one).key() for one in digests]
    assert len(set(keys)) == len(keys)
    assert resolved(teacher=names[::-1], teacher_digest=digests[0], teacher_lr=0.5).key() == keys[0]
    assert resolved(teacher="resnet20", teacher_digest="run a 0").key() == keys[3]
    assert resolved(**TWO).difference(resolved(**TWO | {"teacher_digest": digests[2]})) is not None
    assert resolved(**TWO).difference(resolved(**TWO)) is None


def test_a_file_s_code_is_found_among_several_teachers(tmp_path: Path) -> None:
    resolved(**TWO | {"teacher": ["vgg8", "my.module:net"]}).save(tmp_path / "config.yaml")
    with pytest.raises(hkd.RequestError, match=r"names teacher = my\.module:net, which is code"):
        RunSpec.load(tmp_path / "config.yaml")


STARTS = {"student_weights", "teacher_weights"}
GOLDEN = {"hkd+kd": "b6a054399d9dbce9", "kd": "95a935c6893f6355", "ce": "dec31a687a089ae5"}


def test_keys_do_not_change_between_versions() -> None:
    """A new option has a neutral value, so that these stay; a change here separates all runs from earlier ones."""
    spec = resolved()
    keys = {"hkd+kd": spec.key(), "kd": resolved(method="kd").key()}
    keys["ce"] = dataclasses.replace(spec, teacher=None, method=None).key()
    assert keys == GOLDEN


def test_a_key_opens_the_data_where_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "ph", class_folders())
    monkeypatch.chdir(tmp_path)
    asked = [f"folder:{tmp_path}/ph", "folder:ph/", "folder:./ph"]
    keys = {hkd.DistillConfig(dataset=name, image_size=8, seed=n).spec().key() for n, name in enumerate(asked)}
    assert len(keys) == 1
    shutil.copytree(tmp_path / "ph", tmp_path / "moved")
    assert {hkd.DistillConfig(dataset="folder:moved", image_size=8).spec().key()} == keys


@pytest.mark.parametrize("version", ["\u2028", "\x1b[2J", 3, None, [1]], ids=repr)
def test_another_format_is_refused_in_one_line(tmp_path: Path, version: Any) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"format": version, "student": "resnet8"}))
    with pytest.raises(hkd.RequestError, match="format: expected 1 or 2") as error:
        RunSpec.load(tmp_path / "config.yaml")
    assert str(error.value).isprintable()


def test_runs_of_the_first_version_are_read(tmp_path: Path) -> None:
    old = {
        "run": "runs/a", "dataset": "digits", "data_root": "data", "image_size": None, "limit_classes": None,
        "limit_train": 20, "train_fraction": 1.0, "flip": True, "student": "resnet8", "teacher": "resnet20",
        "student_pretrained": False, "teacher_pretrained": False, "epochs": 2, "batch_size": 64,
        "scale_with_processes": False, "lr": 0.05, "lr_decay": 0.1, "milestones": [0.625, 0.75, 0.875],
        "momentum": 0.9, "weight_decay": 0.0005, "seed": 1, "device": "cpu", "precision": "fp32", "compile": False,
        "workers": None, "tensorboard": False, "save_minutes": 10.0, "skip_bad_steps": 0, "bad_images": "stop",
        "teacher_checkpoint": None, "method": "hkd", "method_weight": 3.0, "kd_weight": 1.0, "ce_weight": 1.0,
        "teacher_lr": None, "kd_temperature": 4.0, "holistic": {"k": 8, "negatives": "opposite", "bank_start": "first"},
    }  # fmt: skip
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(old))
    spec = RunSpec.load(file)
    assert spec.method is not None and (spec.method.kd_weight, spec.method.settings.k, spec.seed) == (1.0, 8, 1)
    assert (spec.data.revision, spec.method.revision) == (0, 0)
    assert spec.key() != resolved(epochs=2, limit_train=20).key(), "they never pool with later runs"
    for change in ({"lr": 0.1}, {"limit_train": 10}, {"dataset": "cifar100"}, {"teacher_checkpoint": "other.pth"}):
        file.write_text(yaml.safe_dump(old | change))
        assert RunSpec.load(file).key() != spec.key(), change
    del old["method"], old["holistic"]
    file.write_text(yaml.safe_dump(old | {"role": "teacher"}))
    trained = RunSpec.load(file)
    assert trained.method is None and trained.student.name == "resnet20"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": "fast"}, "lr: expected float; got 'fast'"),
        ({"lr": True}, "lr: expected float; got True"),
        ({"lr": 0.0}, "lr: expected a number above 0; got 0.0"),
        ({"lr": float("nan")}, "lr: expected a number above 0; got nan"),
        ({"lr": None}, "lr: expected float; got None"),
        ({"epochs": 1.5}, "epochs: expected int; got 1.5"),
        ({"epochs": 0}, r"epochs: expected a number in \[1, 1000000\]; got 0"),
        ({"seed": 2**32}, r"seed: expected a number in \[0, 4294967296\); got 4294967296"),
        ({"milestones": [0.5, 0.2]}, r"milestones: expected rising fractions of the run; got \[0.5, 0.2\]"),
        ({"milestones": [0.5, 0.5]}, "milestones: expected rising fractions"),
        ({"milestones": [0.5, 1.0]}, r"milestones: expected a number in \(0, 1\); got 1.0"),
        ({"momentum": 1.0}, r"momentum: expected a number in \[0, 1\); got 1"),
        ({"milestones": [0.5, "late"]}, "milestones: expected float; got 'late'"),
        ({"milestones": 0.5}, "milestones: expected a list of float; got 0.5"),
        ({"mean": [0.5, 0.5]}, "mean: expected a list of 3: float, float, float or nothing"),
        ({"precision": "fp8"}, "precision: expected one of fp32, bf16, fp16; got 'fp8'"),
        ({"run": ""}, "run: expected a name; got an empty one"),
        ({"method": "hdk"}, "method: unknown name 'hdk'; did you mean hkd"),
        ({"method": "hkd", "holistic": {"kk": 4}}, "holistic: unknown name 'kk'; did you mean k"),
        ({"method": "hkd", "holistic": {"k": "four"}}, "holistic.k: expected int; got 'four'"),
        ({"method": "hkd", "holistic": 4}, "holistic: expected settings by name; got 4"),
        ({"method": "hkd", "crd": {"momentum": 0.5}}, "crd: these are settings of crd, and the method is hkd"),
        ({"method": "kd", "method_weight": 1.0}, "method_weight: kd is the KD term, whose weight is kd_weight"),
        ({"method": "hkd", "method_weight": 0, "kd_weight": 0, "ce_weight": 0}, "all weights are 0"),
        ({"epoch": 3}, "option: unknown name 'epoch'; did you mean epochs"),
        ({"lr": "1e-3x"}, "lr: expected float; got '1e-3x'"),
        ({"format": 3}, "format: expected 1 or 2"),
    ],
)
def test_what_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(hkd.RequestError, match=message):
        RunSpec.from_flat(values)


def test_a_setting_of_kd_is_not_dropped() -> None:
    with pytest.raises(hkd.RequestError, match="kd.temperature: is no setting of a run; T of the KD term is kd_temper"):
        RunSpec.from_flat({"method": "kd", "settings": {"temperature": 2.0}})
    method = RunSpec.from_flat({"method": "kd", "kd_temperature": 2.0}).method
    assert method is not None and method.kd_temperature == 2.0


def test_a_recipe_may_hold_settings_of_other_methods() -> None:
    recipe = {"method": "kd", "holistic": {"k": 4}, "crd": {"momentum": 0.5}}
    spec = RunSpec.from_flat(recipe, ignore_other_methods=True)
    assert spec.method is not None and spec.method.settings is None
    spec = RunSpec.from_flat(recipe | {"method": "crd"}, ignore_other_methods=True)
    assert spec.method is not None and spec.method.settings.momentum == 0.5


def test_the_first_difference_is_named() -> None:
    a = resolved()
    assert a.difference(resolved(seed=3, device="cpu")) is None
    assert a.difference(resolved(lr=0.1)) == ("lr", 0.05, 0.1)
    other = dataclasses.replace(a, data=dataclasses.replace(a.data, digest="f" * 16, limit_train=20))
    assert a.difference(other) == ("limit_train", None, 20)
    assert a.difference(resolved(holistic={"hops": 2})) == ("holistic.hops", 1, 2)


@pytest.mark.parametrize(("text", "lr"), [("1e-3", 1e-3), ("1E2", 100.0), ("2.5e1", 25.0), ("1", 1.0)])
def test_numbers_that_yaml_takes_for_text(tmp_path: Path, text: str, lr: float) -> None:
    (tmp_path / "r.yaml").write_text(f"lr: {text}\nmilestones: [1e-1]\n")
    spec = RunSpec.load(tmp_path / "r.yaml")
    assert (spec.optimisation.lr, spec.optimisation.milestones) == (lr, (0.1,))


def test_learning_rates_follow_the_milestones() -> None:
    schedule = hkd.TrainConfig().spec().optimisation
    rates = [schedule.lr_at(epoch) for epoch in (0, 149, 150, 179, 180, 209, 210, 239)]
    assert rates == pytest.approx([0.05, 0.05, 5e-3, 5e-3, 5e-4, 5e-4, 5e-5, 5e-5])
    imagenet = dataclasses.replace(schedule, epochs=100, lr=0.1, milestones=(0.3, 0.6, 0.9))
    assert [imagenet.lr_at(e) for e in (29, 30, 60, 90)] == pytest.approx([0.1, 0.01, 1e-3, 1e-4])
