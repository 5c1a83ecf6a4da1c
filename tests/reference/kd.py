"""T² KL(softmax(t/T) || softmax(s/T)) / B in float64, one image and one class at a time."""

import math

from torch import Tensor


def softmax(row: Tensor, temperature: float) -> list[Tensor]:
    exponentials = [(x / temperature).exp() for x in row]
    return [e / sum(exponentials) for e in exponentials]


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    total = 0
    for s, t in zip(student, teacher, strict=True):
        for p, q in zip(softmax(t, temperature), softmax(s, temperature), strict=True):
            total = total + p * (math.log(float(p)) - q.log())
    return temperature**2 * total / len(student)
