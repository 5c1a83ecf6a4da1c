"""The comparison methods' formulas in float64, one image and one value at a time.

Parts that a method trains (regressors, embeddings, heads) are applied as they are; what is re-stated is what is
computed from their outputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def norm(values: list[Tensor]) -> Tensor:
    return sum(v * v for v in values).sqrt()


def dot(a: list[Tensor] | Tensor, b: list[Tensor] | Tensor) -> Tensor:
    return sum(x * y for x, y in zip(a, b, strict=True))


def softmax(row: Tensor) -> list[Tensor]:
    exponentials = [x.exp() for x in row]
    return [e / sum(exponentials) for e in exponentials]


def kl(p: list[Tensor], q: list[Tensor]) -> Tensor:
    return sum(a * (a.log() - b.log()) for a, b in zip(p, q, strict=True))


def huber(x: Tensor) -> Tensor:
    return x * x / 2 if abs(x.item()) < 1 else x.abs() - 0.5


def pool(image: Tensor, height: int, width: int) -> Tensor:
    """Average pooling of a (c, h, w) map to a size that divides its own."""
    step_y, step_x = image.shape[1] // height, image.shape[2] // width
    rows = [
        torch.stack(
            [
                image[:, y * step_y : (y + 1) * step_y, x * step_x : (x + 1) * step_x].mean(dim=(1, 2))
                for x in range(width)
            ],
            dim=1,
        )
        for y in range(height)
    ]
    return torch.stack(rows, dim=1)


def same_size(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Two batches of maps at the smaller size."""
    height, width = min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3])
    return tuple(torch.stack([pool(image, height, width) for image in batch]) for batch in (s, t))  # type: ignore[return-value]


def attention_map(image: Tensor) -> list[Tensor]:
    _, height, width = image.shape
    values = [sum(c * c for c in image[:, y, x]) / len(image[:, y, x]) for y in range(height) for x in range(width)]
    length = norm(values)
    return [v / length for v in values]


def at(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    total = 0
    for s, t in pairs:
        a, b = same_size(s, t)
        squares = [
            (x - y) ** 2
            for one, other in zip(a, b, strict=True)
            for x, y in zip(attention_map(one), attention_map(other), strict=True)
        ]
        total = total + sum(squares) / len(squares)
    return total


def sp(s: Tensor, t: Tensor) -> Tensor:
    matrices = []
    for batch in (s, t):
        flat = batch.flatten(1)
        rows = [[dot(a, b) for b in flat] for a in flat]
        matrices.append([[v / norm(row) for v in row] for row in rows])
    count = len(s)
    return sum((matrices[0][i][j] - matrices[1][i][j]) ** 2 for i in range(count) for j in range(count)) / count**2


def cc_rbf(s: Tensor, t: Tensor, gamma: float, order: int) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        cosine = dot(a, b) / (norm(list(a)) * norm(list(b)))
        series = sum((2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1))
        return math.exp(-2 * gamma) * series

    count = len(s)
    squares = [(kernel(s[i], s[j]) - kernel(t[i], t[j])) ** 2 for i in range(count) for j in range(count)]
    return sum(squares) / count**2


def cc_adjacent(s: Tensor, t: Tensor) -> Tensor:
    total = 0
    for i in range(len(s) - 1):
        for c in range(s.shape[1]):
            total = total + abs(s[i, c] - t[i, c]) * abs(s[i + 1, c] - t[i + 1, c])
    return total / (len(s) - 1)


def rkd(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    count = len(s)

    def distances(x: Tensor) -> dict[tuple[int, int], Tensor]:
        found = {(i, j): norm(list(x[i] - x[j])) for i in range(count) for j in range(count) if i != j}
        mean = sum(found.values()) / len(found)
        return {pair: d / mean for pair, d in found.items()}

    def angle(x: Tensor, i: int, j: int, k: int) -> Tensor | float:
        if j in (i, k):
            return 0.0
        a, b = x[i] - x[j], x[k] - x[j]
        return dot(a, b) / (norm(list(a)) * norm(list(b)))

    d_s, d_t = distances(s), distances(t)
    distance = sum(huber(d_s[pair] - d_t[pair]) for pair in d_s) / count**2
    triples = [(i, j, k) for i in range(count) for j in range(count) for k in range(count)]
    angles = sum(huber(torch.as_tensor(angle(s, *n) - angle(t, *n))) for n in triples) / count**3
    return 25 * distance, 50 * angles


def pkt(s: Tensor, t: Tensor) -> Tensor:
    count = len(s)

    def probabilities(x: Tensor) -> list[list[Tensor]]:
        rows = [[(dot(a, b) / (norm(list(a)) * norm(list(b))) + 1) / 2 for b in x] for a in x]
        return [[v / sum(row) for v in row] for row in rows]

    p, q = probabilities(s), probabilities(t)
    return sum(kl(q[i], p[i]) for i in range(count)) / count**2


def nst(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    total = 0
    for s, t in pairs:
        a, b = same_size(s, t)
        for one, other in zip(a, b, strict=True):
            units = [[[v / norm(list(c.flatten())) for v in c.flatten()] for c in image] for image in (one, other)]

            def mean(x: list, y: list) -> Tensor:
                return sum(dot(p, q) ** 2 for p in x for q in y) / (len(x) * len(y))

            own, theirs = units
            total = total + (mean(theirs, theirs) + mean(own, own) - 2 * mean(own, theirs)) / len(a)
    return total


def vid(means: list[Tensor], targets: list[Tensor], scales: list[Tensor]) -> Tensor:
    total = 0
    for mean, target, scale in zip(means, targets, scales, strict=True):
        values = []
        for channel in range(target.shape[1]):
            variance = (1 + scale[channel].exp()).log() + 1e-5
            for m, t in zip(mean[:, channel].flatten(), target[:, channel].flatten(), strict=True):
                values.append(((m - t) ** 2 / variance + variance.log()) / 2)
        total = total + sum(values) / len(values)
    return total


def ab(connected: list[Tensor], targets: list[Tensor], margin: float) -> Tensor:
    total = 0
    for level, (s, t) in enumerate(zip(connected, targets, strict=True), 1):
        part = 0
        for a, b in zip(s.flatten(), t.flatten(), strict=True):
            if b > 0 and a < margin:
                part = part + (margin - a) ** 2
            if b <= 0 and a > -margin:
                part = part + (margin + a) ** 2
        total = total + 2.0 ** (level - len(targets)) * part
    return 3 / 1000 * total / len(targets[0])


def ft(s: Tensor, t: Tensor) -> Tensor:
    a, b = same_size(s, t)
    values = []
    for one, other in zip(a, b, strict=True):
        values += [abs(x - y) for x, y in zip(attention_map(one), attention_map(other), strict=True)]
    return sum(values) / len(values)


def fsp(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    def gram(shallow: Tensor, deep: Tensor, image: int) -> list[list[Tensor]]:
        a, b = same_size(shallow, deep)
        area = a.shape[2] * a.shape[3]
        return [[dot(x.flatten(), y.flatten()) / area for y in b[image]] for x in a[image]]

    total = 0
    for level in range(len(student) - 1):
        squares = []
        for image in range(len(student[0])):
            ours = gram(student[level], student[level + 1], image)
            theirs = gram(teacher[level], teacher[level + 1], image)
            squares += [(x - y) ** 2 for p, q in zip(ours, theirs, strict=True) for x, y in zip(p, q, strict=True)]
        total = total + sum(squares) / len(squares)
    return total


def nce(
    anchors: Tensor, bank: Tensor, index: list[int], negatives: list[list[int]], temperature: float, z: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The mean over the batch, and Z: the given one, or N times the mean of exp(similarity / τ) of this batch."""
    count = len(bank)
    scores = [
        [(dot(v, bank[row]) / temperature).exp() for row in [own, *rows]]
        for v, own, rows in zip(anchors, index, negatives, strict=True)
    ]
    if z is None:
        every = [x.item() for row in scores for x in row]
        z = torch.tensor(sum(every) / len(every) * count, dtype=torch.float64)
    total = 0
    for (positive, *others), rows in zip(scores, negatives, strict=True):
        noise = len(rows) / count
        total = total - (positive / z / (positive / z + noise)).log()
        total = total - sum((noise / (other / z + noise)).log() for other in others)
    return total / len(anchors), z


def selective_kl(s: Tensor, t: Tensor, right: list[int], temperature: float, keep: float) -> Tensor:
    places = [sum(float(v) > float(row[column]) for v in row) for row, column in zip(t, right, strict=True)]
    wrong = sum(place > 0 for place in places)
    kept = sorted(range(len(places)), key=lambda i: places[i])[: len(places) - wrong + int(wrong * keep)]
    total = sum(kl(softmax(t[i] / temperature), softmax(s[i] / temperature)) for i in kept)
    return temperature**2 * total / len(kept)


def cosines(upright: Tensor, rotated: Tensor) -> Tensor:
    rows = [torch.stack([dot(r, u) / (norm(list(r)) * norm(list(u))) for u in upright]) for r in rotated]
    return torch.stack(rows)


def dkd(s: Tensor, t: Tensor, label: list[int], temperature: float) -> tuple[Tensor, Tensor]:
    target = nontarget = 0
    for a, b, y in zip(s, t, label, strict=True):
        p, q = softmax(b / temperature), softmax(a / temperature)
        target = target + kl([p[y], sum(p) - p[y]], [q[y], sum(q) - q[y]])
        others = [c for c in range(len(a)) if c != y]
        nontarget = nontarget + kl(softmax(b[others] / temperature), softmax(a[others] / temperature))
    scale = temperature**2 / len(s)
    return scale * target, scale * nontarget


def dist(s: Tensor, t: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    p = torch.stack([torch.stack(softmax(row / temperature)) for row in s])
    q = torch.stack([torch.stack(softmax(row / temperature)) for row in t])

    def distance(a: Tensor, b: Tensor) -> Tensor:
        x, y = [v - sum(a) / len(a) for v in a], [v - sum(b) / len(b) for v in b]
        return 1 - dot(x, y) / (norm(x) * norm(y))

    inter = sum(distance(a, b) for a, b in zip(p, q, strict=True)) / len(p)
    intra = sum(distance(a, b) for a, b in zip(p.T, q.T, strict=True)) / p.shape[1]
    return temperature**2 * inter, temperature**2 * intra


def hcl(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    def mse(a: Tensor, b: Tensor) -> Tensor:
        squares = [(x - y) ** 2 for x, y in zip(a.flatten(), b.flatten(), strict=True)]
        return sum(squares) / len(squares)

    total = 0
    for s, t in pairs:
        levels = [level for level in (4, 2, 1) if level < s.shape[2]]
        term, weights = mse(s, t), 1.0
        for n, level in enumerate(levels, 1):
            pooled = [torch.stack([pool(image, level, level) for image in batch]) for batch in (s, t)]
            term = term + 0.5**n * mse(*pooled)
            weights += 0.5**n
        total = total + term / weights
    return total
