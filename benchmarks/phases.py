"""Where the time of an HKD+KD step goes: what is neither teacher forward nor student forward and backward.

    python -m benchmarks phases [--teacher resnet32x4] [--student resnet8x4] [--batch 64] [--rounds 31] [--json FILE]

In each round three steps have their turn: the teacher's forward and the student's forward and backward with
cross-entropy, bare (fixed batch, no optimiser); the loop's KD step; the loop's HKD+KD step.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch
from torch.nn import functional as F

import hkd
from benchmarks.common import in_turns, machine, network_options, write
from benchmarks.step import CLASSES, noise, stepper
from hkd.models.fold import fold_batch_norms
from hkd.runtime.engine import Engine


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    network_options(parser, rounds=31)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args(argv)
    torch.set_num_threads(asked.threads)
    engine, data = Engine(asked.device, asked.precision), noise()

    student, teacher = hkd.create_model(asked.student, CLASSES), hkd.create_model(asked.teacher, CLASSES)
    for network in (student, teacher):
        network.to(engine.device, memory_format=torch.channels_last)
    teacher.eval().requires_grad_(False)
    fold_batch_norms(teacher, 32)
    image = torch.randn(asked.batch, 3, 32, 32, device=engine.device).to(memory_format=torch.channels_last)
    label = torch.randint(0, CLASSES, (asked.batch,), device=engine.device)

    def teacher_forward() -> None:
        with engine.autocast(), torch.no_grad():
            teacher(image)

    def student_both() -> None:
        with engine.autocast():
            loss = F.cross_entropy(student(image).logits.float(), label)
        loss.backward()
        student.zero_grad()

    steps = {"teacher forward, bare": teacher_forward, "student forward and backward, bare": student_both}
    steps |= {f"{label} step": stepper(label, asked, engine, data) for label in ("kd", "hkd+kd")}
    times = in_turns(steps, asked.rounds, device=engine.device)
    bare = [sum(pair) for pair in zip(times["teacher forward, bare"], times["student forward and backward, bare"],
                                      strict=True)]  # fmt: skip
    print(f"{asked.teacher} -> {asked.student}, batch {asked.batch}, {engine.device}, {asked.precision}, "
          f"{machine(asked.threads)}, {asked.rounds} rounds\n")  # fmt: skip
    for name, taken in times.items():
        print(f"{name:<36} {1e3 * statistics.median(taken):>8.1f} ms")
    for name in ("kd step", "hkd+kd step"):
        low, middle, high = statistics.quantiles([a / b for a, b in zip(times[name], bare, strict=True)], n=4)
        print(f"{name} to both networks bare: {middle:.3f} (quartiles {low:.3f}-{high:.3f})")
    ratios = [a / b for a, b in zip(times["hkd+kd step"], times["kd step"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"hkd+kd step to kd step: {middle:.3f} (quartiles {low:.3f}-{high:.3f})")
    write(asked.json, {"settings": vars(asked), "seconds": times})
