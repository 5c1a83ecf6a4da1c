"""HolisticLoss beside two plainer formulations, in one run.

    python -m benchmarks loss [--threads 2] [--batch 64] [--negatives 16384] [--samples 50000] [--json FILE]

The gather formulation is how the loss is written in earlier code: each anchor draws its own K bank rows on the host,
(B, K, d) of both banks are gathered, and autograd differentiates a softmax over them. The plain formulation has the
same shared draw as HolisticLoss, and is how a reader would write it: one product with all K rows, a mask, ``cat``,
``cross_entropy``. All make the same four terms from the same banks, graph and encoders; all are timed forward, backward
and draw, in turns, so that a busy machine slows all. The last line is HolisticLoss under bfloat16 autocast.

Memory is the peak of the process during three steps, in a process of its own, beyond what it held when the banks were
there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import machine, seconds, write
from hkd.holistic import HolisticLoss

CLASSES, FEATURES, DIM = 100, 256, 128
NAMES = {"gather": "per-sample gather (earlier)", "plain": "plain, shared draw"}


class GatherLoss(HolisticLoss):
    """The per-sample gather formulation: (B, K, d) in memory, plain autograd, draws by NumPy on the host."""

    def forward(self, f_s: Tensor, l_s: Tensor, f_t: Tensor, l_t: Tensor, index: Tensor) -> Tensor:
        student, teacher = self.student(f_s, l_s), self.teacher(f_t, l_t)
        memory_s, memory_t = self.student.bank.rows[index], self.teacher.bank.rows[index]
        rows = torch.from_numpy(np.stack([np.random.choice(self.other[int(self.labels[i])], self.count, replace=False)
                                          for i in index]))  # fmt: skip
        total = torch.zeros(())
        for own, memory, other, bank in ((student, memory_t, teacher, self.student.bank.rows),
                                         (teacher, memory_s, student, self.teacher.bank.rows)):  # fmt: skip
            negatives = bank[rows.view(-1)].view(*rows.shape, -1)
            smoothed = F.normalize(self.smoothing * memory + (1 - self.smoothing) * other.holistic.detach(), dim=1)
            for anchor, positive in ((own.individual, memory), (own.holistic, smoothed)):
                inside = (anchor * positive).sum(dim=1, keepdim=True)
                outside = torch.bmm(negatives, anchor[:, :, None])[:, :, 0]
                logits = torch.cat([inside, outside], dim=1) / self.temperature
                total = total + F.cross_entropy(logits, torch.zeros(len(index), dtype=torch.long))
        self.update(index, student.individual, teacher.individual)
        return total

    @classmethod
    def build(cls, samples: int, labels: Tensor, negatives: int) -> GatherLoss:
        loss = cls(FEATURES, FEATURES, samples, labels, num_negatives=negatives)
        loss.labels, loss.count = labels, negatives
        loss.other = [(labels != c).nonzero().flatten().numpy() for c in range(CLASSES)]
        return loss


class PlainLoss(HolisticLoss):
    """The shared draw without blocks: (2B, K) similarities in memory, plain autograd."""

    def _branch_terms(self, branch, memory, other_holistic, bank, negatives, products) -> Tensor:
        smoothed = F.normalize(self.smoothing * memory + (1 - self.smoothing) * other_holistic.detach(), dim=1)
        rows = bank[negatives.rows]
        terms = []
        for anchor, positive in ((branch.individual, memory), (branch.holistic, smoothed)):
            inside = (anchor * positive).sum(dim=1, keepdim=True)
            outside = (anchor @ rows.T).masked_fill(negatives.excluded, -torch.inf)
            logits = torch.cat([inside, outside], dim=1) / self.temperature
            terms.append(F.cross_entropy(logits, torch.zeros(len(anchor), dtype=torch.long)))
        return torch.stack(terms)


def setting(kind: str, asked: argparse.Namespace) -> Callable[[], None]:
    """A function that makes one step: draw, forward, backward, update."""
    torch.manual_seed(0)
    torch.set_num_threads(asked.threads)
    labels = torch.randint(0, CLASSES, (asked.samples,))
    if kind == "gather":
        loss: HolisticLoss = GatherLoss.build(asked.samples, labels, asked.negatives)
    else:
        made = PlainLoss if kind == "plain" else HolisticLoss
        sampling = kind if kind in ("all", "per_sample") else "shared"
        loss = made(FEATURES, FEATURES, asked.samples, labels, num_negatives=asked.negatives, sampling=sampling)
    f_s = torch.randn(asked.batch, FEATURES, requires_grad=True)
    f_t, l_s, l_t = (
        torch.randn(asked.batch, FEATURES),
        torch.randn(asked.batch, CLASSES),
        torch.randn(asked.batch, CLASSES),
    )

    def step() -> None:
        index = torch.randint(0, asked.samples, (asked.batch,))
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "shared, bf16"):
            value = loss(f_s, l_s, f_t, l_t, index)
        value.backward()
        loss.zero_grad()

    return step


def peak_memory(kind: str, asked: argparse.Namespace, answer: multiprocessing.Queue) -> None:
    """Bytes beyond the banks, measured in a process that does nothing else."""
    step = setting(kind, asked)
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * resource.getpagesize()
    for _ in range(3):
        step()
    answer.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--negatives", type=int, default=16384)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=7, help="each times one gather step between ten of the others")
    parser.add_argument("--json", help="write the numbers to this file")
    asked = parser.parse_args(argv)

    kinds = ("shared", "all", "per_sample", "plain", "gather", "shared, bf16")
    memory = {}
    context = multiprocessing.get_context("spawn")
    for kind in kinds:
        answer = context.Queue()
        process = context.Process(target=peak_memory, args=(kind, asked, answer))
        process.start()
        memory[kind] = answer.get()
        process.join()

    steps = {kind: setting(kind, asked) for kind in kinds}
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(asked.rounds):
        for kind in kinds:
            times[kind] += [seconds(steps[kind]) for _ in range(1 if kind in ("per_sample", "gather") else 10)]
    median = {kind: statistics.median(times[kind]) for kind in kinds}

    print(f"B={asked.batch}, K={asked.negatives}, N={asked.samples}, d={DIM}, {machine(asked.threads)}")
    print("forward + backward + draw + update; median; memory beyond the banks\n")
    print(f"{'negatives':<28} {'ms':>9} {'times faster':>13} {'peak MB':>9}")
    for kind in kinds:
        name = NAMES.get(kind, f"HolisticLoss {kind}")
        faster = median["gather"] / median[kind]
        print(f"{name:<28} {1e3 * median[kind]:>9.1f} {faster:>12.1f}x {memory[kind] / 1e6:>9.0f}")
    write(asked.json, {"settings": vars(asked), "seconds": times, "bytes": memory})
