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


def deviation(values: list[Tensor] | Tensor) -> Tensor:
    mean = sum(values) / len(values)
    return (sum((x - mean) ** 2 for x in values) / (len(values) - 1)).sqrt()


def standardise(row: Tensor) -> Tensor:
    mean, scale = sum(row) / len(row), deviation(row)
    return torch.stack([(x - mean) / scale for x in row])


def lskd(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    rows = [(standardise(a) / temperature, standardise(b) / temperature) for a, b in zip(s, t, strict=True)]
    return temperature**2 * sum(kl(softmax(b), softmax(a)) for a, b in rows) / len(rows)


def ttm(s: Tensor, t: Tensor, gamma: float, weighted: bool) -> Tensor:
    total = 0
    for a, b in zip(s, t, strict=True):
        powers = [p**gamma for p in softmax(b)]
        divergence = kl([u / sum(powers) for u in powers], softmax(a))
        total = total + (sum(powers) if weighted else 1) * divergence
    return total / len(s)


def rld(s: Tensor, t: Tensor, label: list[int], temperature: float, tau: float) -> tuple[Tensor, Tensor]:
    confidence = masked = 0
    for a, b, y in zip(s, t, label, strict=True):
        p, q = max(softmax(b / tau)), softmax(a / tau)[y]
        confidence = confidence + kl([p, 1 - p], [q, 1 - q])
        left = [c for c in range(len(b)) if b[c] < b[y]]
        masked = masked + kl(softmax(b[left] / temperature), softmax(a[left] / temperature))
    return tau**2 * confidence / len(s), temperature**2 * masked / len(s)


def nkd(s: Tensor, t: Tensor, label: list[int], temperature: float) -> tuple[Tensor, Tensor]:
    target = nontarget = 0
    for a, b, y in zip(s, t, label, strict=True):
        target = target - softmax(b)[y] * softmax(a)[y].log()
        others = [c for c in range(len(a)) if c != y]
        p, q = softmax(b[others] / temperature), softmax(a[others] / temperature)
        nontarget = nontarget - sum(x * z.log() for x, z in zip(p, q, strict=True))
    return target / len(s), temperature**2 * nontarget / len(s)


def normkd(s: Tensor, t: Tensor, factor: float) -> Tensor:
    total = 0
    for a, b in zip(s, t, strict=True):
        own, theirs = factor * deviation(a), factor * deviation(b)
        total = total + theirs**2 * kl(softmax(b / theirs), softmax(a / own))
    return total / len(s)


def skd_relation(s: Tensor, t: Tensor, shrinkage: float, divisor: float) -> Tensor:
    n = len(s)
    a, b = cosines(s, s), cosines(t, t)
    d = [[(a[i, j] - b[i, j]) / divisor for j in range(n)] for i in range(n)]
    means = [sum(row[j] for row in d) / n for j in range(n)]

    def covariance(j: int, k: int) -> Tensor:
        return sum((row[j] - means[j]) * (row[k] - means[k]) for row in d) / (n - 1) + shrinkage * (j == k)

    inverse = torch.stack([torch.stack([covariance(j, k) for k in range(n)]) for j in range(n)]).inverse()
    squares = [sum(row[j] * inverse[j, k] * row[k] for j in range(n) for k in range(n)) for row in d]
    return sum(x.sqrt() for x in squares) / n


def share_up_to_median(values: list[float]) -> float:
    low, high = sorted(values)[(len(values) - 1) // 2], sorted(values)[len(values) // 2]
    return sum(v <= (low + high) / 2 for v in values) / len(values)


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


def ctkd(s: Tensor, t: Tensor, theta: Tensor) -> Tensor:
    temperature = 1 + 20 / (1 + (-theta).exp())
    total = sum(kl(softmax(b / temperature), softmax(a / temperature)) for a, b in zip(s, t, strict=True))
    return temperature**2 * total / len(s)


def wkd(
    s: Tensor, t: Tensor, label: list[int], rows: Tensor, gamma: float, temperature: float
) -> tuple[Tensor, Tensor]:
    target = transport = 0
    for a, b, y in zip(s, t, label, strict=True):
        target = target - softmax(b)[y] * softmax(a)[y].log()
        others = [c for c in range(len(a)) if c != y]
        p, q = softmax(a[others] / temperature), softmax(b[others] / temperature)
        related = [
            [dot(rows[i], rows[j]) / (norm(list(rows[i])) * norm(list(rows[j]))) for j in others] for i in others
        ]
        cost = [[1 - (-(1 - r)).exp() + 1e-8 for r in row] for row in related]
        kernel = [[(-m / 0.05).exp() for m in row] for row in cost]
        n = range(len(others))
        u = [torch.tensor(1 / len(others), dtype=a.dtype)] * len(others)
        for _ in range(10):
            v = [q[j] / (sum(kernel[i][j] * u[i] for i in n) + 1e-8) for j in n]
            u = [p[i] / (sum(kernel[i][j] * v[j] for j in n) + 1e-8) for i in n]
        transport = transport + sum(u[i] * kernel[i][j] * v[j] * cost[i][j] for i in n for j in n)
    return target / len(s), gamma * transport / len(s)


def sdd(
    s: Tensor,
    t: Tensor,
    layers: list[tuple[Tensor, Tensor]],
    label: list[int],
    scales: tuple[int, ...],
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The terms of kd, and of dkd's target and other classes, for maps (B, D, 4, 4)."""

    def cells(image: Tensor, layer: tuple[Tensor, Tensor]) -> list[Tensor]:
        maps = [pool(image, scale, scale) for scale in scales]
        vectors = [m[:, y, x] for m in maps for y in range(m.shape[1]) for x in range(m.shape[2])]
        return [torch.stack([dot(row, v) + b for row, b in zip(*layer, strict=True)]) for v in vectors]

    totals = [0, 0, 0]
    for image_s, image_t, y in zip(s, t, label, strict=True):
        cells_s, cells_t = cells(image_s, layers[0]), [c.detach() for c in cells(image_t, layers[1])]
        for a, b in zip(cells_s, cells_t, strict=True):
            weight = 2 if (int(b.argmax()) == y) != (int(cells_t[0].argmax()) == y) else 1
            whole = temperature**2 * kl(softmax(b / temperature), softmax(a / temperature))
            terms = [whole, *dkd(a[None], b[None], [y], temperature)]
            totals = [total + weight * term for total, term in zip(totals, terms, strict=True)]
    count = len(s) * sum(scale**2 for scale in scales)
    return tuple(total / count for total in totals)  # type: ignore[return-value]


def catkd(s: Tensor, t: Tensor, weights: list[Tensor], resolution: int, normalise: bool) -> Tensor:
    total, count = 0, 0
    for image_s, image_t in zip(s, t, strict=True):
        for row_s, row_t in zip(weights[0], weights[1].detach(), strict=True):
            maps = []
            for image, row in ((image_s, row_s), (image_t, row_t)):
                activation = sum(w * channel for w, channel in zip(row, image, strict=True))
                flat = list(pool(activation[None], resolution, resolution).flatten())
                maps.append([v / norm(flat) for v in flat] if normalise else flat)
            total = total + sum((a - b) ** 2 for a, b in zip(*maps, strict=True))
            count += resolution**2
    return total / count


def simkd(s: Tensor, t: Tensor, layers: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    """The mean squared error of the projected map, and the vectors that the teacher's classifier is given.

    Args:
        layers: of the projector, (convolution's weight, batch norm's weight, batch norm's bias) in training mode.
    """
    side = min(s.shape[2], t.shape[2])
    s, t = (torch.stack([pool(image, side, side) for image in maps]) for maps in (s, t))
    for weight, scale, shift in layers:
        reach = weight.shape[2] // 2
        around = torch.zeros(*s.shape[:2], side + 2 * reach, side + 2 * reach, dtype=s.dtype)
        around[:, :, reach : reach + side, reach : reach + side] = s
        rows = []
        for y in range(side):
            for x in range(side):
                patch = around[:, :, y : y + weight.shape[2], x : x + weight.shape[3]]
                rows.append((patch[:, None] * weight[None]).sum(dim=(2, 3, 4)))
        cells = torch.stack(rows)  # (side side, B, channels)
        mean = cells.mean(dim=(0, 1))
        variance = ((cells - mean) ** 2).mean(dim=(0, 1))
        cells = scale * (cells - mean) / (variance + 1e-5).sqrt() + shift
        s = (cells * (cells > 0)).permute(1, 2, 0).reshape(s.shape[0], -1, side, side)
    return ((s - t) ** 2).sum() / s.numel(), s.sum(dim=(2, 3)) / side**2


def ofa(s: Tensor, t: Tensor, label: list[int], epsilon: float) -> Tensor:
    total = 0
    for a, b, y in zip(s, t, label, strict=True):
        for c, (q, p) in enumerate(zip(softmax(a), softmax(b), strict=True)):
            total = total - ((p + int(c == y)) ** epsilon - int(c == y)) * q.log()
    return total / len(label)


def _ce(s: Tensor, label: list[int]) -> Tensor:
    return -sum(softmax(row)[y].log() for row, y in zip(s, label, strict=True)) / len(label)


def _kd(s: Tensor, t: Tensor, temperature: float) -> list[Tensor]:
    return [temperature**2 * kl(softmax(b / temperature), softmax(a / temperature)) for a, b in zip(s, t, strict=True)]


def mlkd(s: Tensor, t: Tensor, strong_s: Tensor, strong_t: Tensor, label: list[int]) -> dict[str, Tensor]:
    count, classes = s.shape

    def at_most_median(values: list[float]) -> float:
        ordered, n = sorted(values), len(values)
        median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
        return sum(value <= median for value in values) / n

    def gram(columns: list[list[Tensor]], other: list[list[Tensor]]) -> Tensor:
        pairs = [(i, j) for i in range(len(columns)) for j in range(len(columns))]
        return sum((dot(columns[i], columns[j]) - dot(other[i], other[j])) ** 2 for i, j in pairs) / len(columns)

    p = [softmax(row) for row in t]
    m = at_most_median([max(float(v) for v in row) for row in p])
    m_class = at_most_median([float(sum(row[c] for row in p)) for c in range(classes)])
    instance = between = within = 0
    for temperature in (4.0, 3.0, 5.0, 2.0, 6.0):
        weak = sum(_kd(s, t, temperature)) / count
        second = weak if temperature in (2.0, 6.0) else sum(_kd(strong_s, strong_t, temperature)) / count
        instance = instance + m * weak + second
        a, b = ([softmax(row / temperature) for row in x] for x in (t, s))
        between = between + m * gram(a, b)
        within = within + m_class * gram(*([[row[c] for row in x] for c in range(classes)] for x in (a, b)))
    terms = {"instance": instance, "batch": between, "class": within}
    return {"strong_ce": 0.1 * _ce(strong_s, label)} | {name: 0.9 * value for name, value in terms.items()}


def crld(
    s: Tensor, t: Tensor, strong_s: Tensor, strong_t: Tensor, label: list[int], thresholds: tuple[float, float]
) -> dict[str, Tensor]:
    within = cross = 0 * s.sum()
    for i in range(len(s)):
        a, b, c, d = (x[i : i + 1] for x in (s, t, strong_s, strong_t))
        if max(float(v) for v in softmax(b[0])) >= thresholds[0]:
            within = within + _kd(a, b, 4.0)[0] + _kd(c, d, 4.0)[0]
        if max(float(v) for v in softmax(d[0])) >= thresholds[1]:
            cross = cross + _kd(c, b, 4.0)[0] + _kd(a, d, 4.0)[0]
    return {"strong_ce": _ce(strong_s, label), "within": 2 * within / len(s), "cross": 0.5 * cross / len(s)}


def place(anchor: Tensor, rows: list[Tensor], temperature: float) -> Tensor:
    return softmax(torch.stack([(anchor * row).sum() for row in rows]) / temperature)


def hkd2(
    e_s: list[Tensor], e_t: list[Tensor], graph_s: list[list[int]], graph_t: list[list[int]], tau: float, tau_t: float
) -> dict[str, Tensor]:
    """Embeddings of unit length, and the neighbourhoods of each network's graph."""

    def relation(anchors: list[Tensor], targets: list[Tensor]) -> Tensor:
        pairs = zip(anchors, targets, strict=True)
        return sum(kl(place(t, e_t, tau_t), place(a, e_t, tau)) for a, t in pairs) / len(anchors)

    def holistic(e: list[Tensor], graph: list[list[int]]) -> list[Tensor]:
        mixed = [own + sum(e[b] for b in graph[a]) / len(graph[a]) for a, own in enumerate(e)]
        return [row / (row * row).sum().sqrt() for row in mixed]

    return {
        "individual": relation(e_s, e_t),
        "holistic": relation(holistic(e_s, graph_s), holistic(e_t, graph_t)),
    }
