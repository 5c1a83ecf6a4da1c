"""T² KL(softmax(t/T) || softmax(s/T)) / B in float64, one image and one class at a time."""

import math

import torch
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


def mean_logits(teachers: list[Tensor], standardised: bool) -> Tensor:
    """The mean over teachers of z = (l - mean) / std, times the mean of their std unless all are standardised."""
    rows = []
    for n in range(len(teachers[0])):
        row, deviations = 0, []
        for logits in teachers:
            mean = sum(logits[n]) / len(logits[n])
            deviation = math.sqrt(sum(float(x - mean) ** 2 for x in logits[n]) / (len(logits[n]) - 1))
            row = row + (logits[n] - mean) / deviation / len(teachers)
            deviations.append(deviation)
        rows.append(row if standardised else row * (sum(deviations) / len(deviations)))
    return torch.stack(rows)
