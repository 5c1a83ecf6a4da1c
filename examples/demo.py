"""Teacher, student alone, and the student distilled with HKD+KD, on scikit-learn's digits. Run by `make demo`."""

import time
from pathlib import Path

import yaml

import hkd

RUNS = Path("runs/demo")
RECIPE = yaml.safe_load(Path("recipes/digits.yaml").read_text())


def main() -> None:
    started = time.perf_counter()
    names = {"teacher": RECIPE.pop("teacher"), "student": RECIPE.pop("student")}
    teacher = hkd.train(hkd.TrainConfig(run=str(RUNS / "teacher"), teacher=names["teacher"], **RECIPE))
    alone = hkd.train(hkd.TrainConfig(run=str(RUNS / "student-alone"), student=names["student"], **RECIPE))
    distilled = hkd.distill(
        hkd.DistillConfig(
            run=str(RUNS / "student-hkd-kd"),
            student=names["student"],
            teacher_checkpoint=str(teacher.run / "model.safetensors"),
            **RECIPE,
        )
    )
    print()
    print(f"{'network':<34} {'parameters':>10} {'top-1, last epoch':>18}   run folder")
    rows = {
        f"teacher {names['teacher']}": teacher,
        f"student {names['student']} alone": alone,
        f"student {names['student']} with HKD+KD": distilled,
    }
    for name, result in rows.items():
        summary = result.summary
        print(f"{name:<34} {summary['parameters']:>10,} {summary['top1_last']:>16.2f} %   {result.run}")
    images = alone.summary["test_images"]
    print(f"\nOne seed and {images} test images: a difference of less than 2 points says nothing.")
    print(f"The distilled network: {distilled.run / 'student.safetensors'}   ({time.perf_counter() - started:.0f} s)")
    print(f"Try it:                .venv/bin/hkd evaluate {distilled.run}")


if __name__ == "__main__":
    main()
