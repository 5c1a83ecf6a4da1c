"""HKD in float64, one image and one negative at a time. Nothing here is shared with the package."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def normalise(vector: Tensor) -> Tensor:
    return vector / vector.pow(2).sum().sqrt()


def neighbourhoods(logits: Tensor, k: int) -> list[list[int]]:
    """Self, then the most alike others by the cosine of the softmaxed predictions."""
    predictions = [torch.exp(row) / torch.exp(row).sum() for row in logits.double()]
    found = []
    for a, p in enumerate(predictions):
        others = [b for b in range(len(predictions)) if b != a]
        others.sort(key=lambda b: -float(normalise(p) @ normalise(predictions[b])))
        found.append([a, *others][: min(k, len(predictions))])
    return found


def tag_layer(x: list[Tensor], neighbours: list[list[int]], weight: Tensor, bias: Tensor, hops: int) -> list[Tensor]:
    """H = sum over hops l of (A / k)^l X Theta_l, with Theta_l the l-th block of columns of the weight."""
    width = x[0].numel()
    out = [bias.clone() for _ in x]
    propagated = list(x)
    for hop in range(hops + 1):
        theta = weight[:, hop * width : (hop + 1) * width]
        out = [h + theta @ v for h, v in zip(out, propagated, strict=True)]
        propagated = [torch.stack([propagated[b] for b in members]).sum(dim=0) / len(members) for members in neighbours]
    return out


def encode(
    x: list[Tensor], neighbours: list[list[int]], layers: Sequence[tuple[Tensor, Tensor]], hops: int
) -> list[Tensor]:
    for depth, (weight, bias) in enumerate(layers):
        if depth > 0:
            x = [torch.where(v > 0, v, torch.zeros_like(v)) for v in x]
        x = tag_layer(x, neighbours, weight, bias, hops)
    return [normalise(v) for v in x]


def nce(anchor: Tensor, positive: Tensor, negatives: Sequence[Tensor], temperature: float) -> Tensor:
    """-log( exp(a.p/t) / (exp(a.p/t) + sum_j exp(a.n_j/t)) )"""
    numerator = torch.exp(anchor @ positive / temperature)
    denominator = numerator
    for negative in negatives:
        denominator = denominator + torch.exp(anchor @ negative / temperature)
    return -torch.log(numerator / denominator)


def hkd_terms(
    f_s: Tensor, l_s: Tensor, f_t: Tensor, l_t: Tensor, index: Sequence[int], *,
    embed_s: tuple[Tensor, Tensor], embed_t: tuple[Tensor, Tensor],
    layers_s: Sequence[tuple[Tensor, Tensor]], layers_t: Sequence[tuple[Tensor, Tensor]],
    bank_s: Tensor, bank_t: Tensor, negative_rows: Sequence[Sequence[int]],
    k: int, hops: int, temperature: float, smoothing: float, opposite: bool,
) -> dict[str, Tensor]:  # fmt: skip
    """The four terms. ``negative_rows[b]`` names the bank rows that are negatives of anchor b."""
    batch = range(len(index))
    e_s = [normalise(embed_s[0] @ f_s[b] + embed_s[1]) for b in batch]
    e_t = [normalise(embed_t[0] @ f_t[b] + embed_t[1]) for b in batch]
    g_s = encode(e_s, neighbourhoods(l_s, k), layers_s, hops)
    g_t = encode(e_t, neighbourhoods(l_t, k), layers_t, hops)
    for_student, for_teacher = (bank_t, bank_s) if opposite else (bank_s, bank_t)
    sums = dict.fromkeys(("individual_student", "individual_teacher", "holistic_student", "holistic_teacher"), 0.0)
    for b in batch:
        m_s, m_t = bank_s[index[b]], bank_t[index[b]]
        negatives_s = [for_student[j] for j in negative_rows[b]]
        negatives_t = [for_teacher[j] for j in negative_rows[b]]
        positive_s = normalise(smoothing * m_t + (1 - smoothing) * g_t[b].detach())
        positive_t = normalise(smoothing * m_s + (1 - smoothing) * g_s[b].detach())
        sums["individual_student"] += nce(e_s[b], m_t, negatives_s, temperature)
        sums["individual_teacher"] += nce(e_t[b], m_s, negatives_t, temperature)
        sums["holistic_student"] += nce(g_s[b], positive_s, negatives_s, temperature)
        sums["holistic_teacher"] += nce(g_t[b], positive_t, negatives_t, temperature)
    return {name: value / len(index) for name, value in sums.items()}


def bank_after(
    bank: Tensor, index: Sequence[int], embeddings: Tensor, momentum: float, seen: Sequence[int] | None = None
) -> Tensor:
    """M[i] <- normalize(m M[i] + (1 - m) mean of the embeddings that the batch has for i), with m = 0 for rows that are
    not among those seen before, where that is what rows start with."""
    after = bank.clone()
    for row in set(index):
        visits = [embeddings[b] for b in range(len(index)) if index[b] == row]
        mean = sum(visits[1:], start=visits[0]) / len(visits)
        kept = momentum if seen is None or row in seen else 0.0
        after[row] = normalise(kept * bank[row] + (1 - kept) * mean)
    return after


def uniform_bound(dim: int) -> float:
    return math.sqrt(3 / dim)
