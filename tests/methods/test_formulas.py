"""Every comparison method against the plain float64 re-statement of its formula: values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hkd
from hkd.methods import Method, Progress, Setup, methods
from hkd.models.base import Model, ModelInfo
from hkd.types import Batch, ModelOutput
from tests.reference import methods as reference
from tests.reference.holistic import neighbourhoods, normalise
from tests.reference.kd import kd

B, C, N = 5, 4, 12
LABELS = torch.arange(N) % C
INDEX = torch.tensor([3, 0, 7, 10, 5])
# (channels, height, width) of each stage map, stem first; widths and resolutions differ
STUDENT = ((3, 8, 8), (3, 8, 8), (4, 4, 4), (5, 2, 2))
TEACHER = ((4, 8, 8), (5, 8, 8), (4, 8, 8), (6, 4, 4))
DEEPER = ((2, 8, 8), *TEACHER)
ALIKE = ((3, 8, 8), (3, 4, 4), (4, 8, 8), (5, 2, 2))

Terms = dict[str, Tensor]
Restated = Callable[[Method, Batch, ModelOutput, ModelOutput], Terms]


def info(name: str, stages: tuple[tuple[int, int, int], ...], width: int) -> ModelInfo:
    return ModelInfo(name, C, width, 8, stages, 0)


def setup(teacher: tuple[tuple[int, int, int], ...] = TEACHER, **changes: object) -> Setup:
    found = Setup(info("student", STUDENT, 6), info("teacher", teacher, 7), N, LABELS)
    return replace(found, **changes)


def output(stages: tuple[tuple[int, int, int], ...], width: int, grad: bool) -> ModelOutput:
    maps = tuple(torch.randn(B, *stage) for stage in stages)
    parts = ModelOutput(2 * torch.randn(B, C), torch.randn(B, width), tuple(m.relu() for m in maps), maps)
    parts = replace(parts, pooled=torch.randn(B, width, 4, 4, generator=torch.Generator().manual_seed(width)))
    return as_leaves(parts, torch.float32, grad)


def as_leaves(out: ModelOutput, dtype: torch.dtype, grad: bool) -> ModelOutput:
    def leaf(x: Tensor) -> Tensor:
        return x.detach().to(dtype).clone().requires_grad_(grad)

    return ModelOutput(
        leaf(out.logits), leaf(out.embedding), tuple(map(leaf, out.features)), tuple(map(leaf, out.preactivations)),
        leaf(out.pooled),
    )  # fmt: skip


def leaves(out: ModelOutput) -> list[Tensor]:
    return [out.logits, out.embedding, *out.features, *out.preactivations, out.pooled]


def check(
    name: str, restated: Restated, *, teacher: tuple[tuple[int, int, int], ...] = TEACHER, networks: object = None,
    **config: object,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    kind = methods[name]
    method = kind(setup(teacher, networks=networks), kind.Config(**config)).train()
    exact = deepcopy(method).double()
    image = torch.randn(B, 3, 4, 4)
    batch = Batch(image, LABELS[INDEX], INDEX, strong=image.flip(3) + 0.5)
    ours, theirs = output(STUDENT, 6, True), output(teacher, 7, False)
    ours64, theirs64 = as_leaves(ours, torch.float64, True), as_leaves(theirs, torch.float64, False)

    terms = method(batch, ours, theirs)
    expected = restated(exact, batch, ours64, theirs64)
    assert terms.keys() == expected.keys()
    for term, value in terms.items():
        torch.testing.assert_close(
            value.double(), expected[term], rtol=1e-5, atol=1e-6, msg=lambda m, t=term: f"{t}: {m}"
        )
    sum(terms.values()).backward()
    sum(expected.values()).backward()
    compared = list(zip(leaves(ours), leaves(ours64), strict=True))
    compared += zip(method.parameters(), exact.parameters(), strict=True)
    if method.networks is not None:
        compared += zip(method.networks[0].parameters(), exact.networks[0].parameters(), strict=True)
    reached = 0
    for value, wanted in compared:
        grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in (value, wanted)]
        scale = float(grads[1].abs().max())
        # What is 0 in exact arithmetic, such as a bias before batch normalisation, is rounding in float32.
        torch.testing.assert_close(grads[0].double(), grads[1], rtol=1e-4, atol=1e-5 * scale + 1e-7)
        reached += scale > 1e-6
    assert reached


def pairs_of(method: Method, s: ModelOutput, t: ModelOutput) -> list[tuple[Tensor, Tensor]]:
    return [(s.features[a], t.features[b]) for a, b in method.pairs]


def test_at() -> None:
    check("at", lambda m, _, s, t: {"attention": reference.at(pairs_of(m, s, t))})


def test_sp() -> None:
    check("sp", lambda _, __, s, t: {"similarity": reference.sp(s.features[-1], t.features[-1])})


@pytest.mark.parametrize("order", [1, 2, 4])
def test_cc(order: int) -> None:
    def restated(m: Method, _: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        e_s, e_t = m.embed_student(s.embedding), m.embed_teacher(t.embedding)
        return {"correlation": reference.cc_rbf(e_s, e_t, 0.4, order)}

    check("cc", restated, kernel="rbf", order=order, embedding_dim=6)


def test_cc_of_adjacent_pairs() -> None:
    def restated(m: Method, _: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        return {"correlation": reference.cc_adjacent(m.embed_student(s.embedding), m.embed_teacher(t.embedding))}

    check("cc", restated, embedding_dim=6)


def test_rkd() -> None:
    def restated(_: Method, __: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        return dict(zip(("distance", "angle"), reference.rkd(s.embedding, t.embedding), strict=True))

    check("rkd", restated)


def test_pkt() -> None:
    check("pkt", lambda _, __, s, t: {"probabilities": reference.pkt(s.embedding, t.embedding)})


def test_nst() -> None:
    check("nst", lambda m, _, s, t: {"selectivity": reference.nst(pairs_of(m, s, t))})


def test_fitnet() -> None:
    def restated(m: Method, _: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        a, b = reference.same_size(s.features[2], t.features[2])
        squares = [(x - y) ** 2 for x, y in zip(m.regressor(a).flatten(), b.flatten(), strict=True)]
        return {"hint": sum(squares) / len(squares)}

    check("fitnet", restated)


def test_vid() -> None:
    def restated(m: Method, _: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        sized = [reference.same_size(*pair) for pair in pairs_of(m, s, t)]
        means = [g.mean(a) for g, (a, _) in zip(m.gaussians, sized, strict=True)]
        return {"variational": reference.vid(means, [b for _, b in sized], [g.scale for g in m.gaussians])}

    check("vid", restated)
    method = methods["vid"](setup(), None)
    for gaussian in method.gaussians:
        torch.testing.assert_close(F.softplus(gaussian.scale) + 1e-5, torch.full_like(gaussian.scale, 5.0))


def test_ab() -> None:
    def restated(m: Method, _: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        sized = [reference.same_size(s.preactivations[a], t.preactivations[b]) for a, b in m.pairs]
        connected = [c(a) for c, (a, _) in zip(m.connectors, sized, strict=True)]
        return {"boundary": reference.ab(connected, [b for _, b in sized], 1.0)}

    check("ab", restated)
    check("ab", restated, teacher=ALIKE)


def test_ft() -> None:
    def restated(m: Method, _: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        with torch.no_grad():
            theirs = m.paraphraser.encoder(t.features[-1])
        return {"factor": reference.ft(m.translator(s.features[-1]), theirs)}

    check("ft", restated)


def test_fsp() -> None:
    widths = ((3, 8, 8), (3, 8, 8), (4, 8, 8), (5, 4, 4))
    check("fsp", lambda _, __, s, t: {"flow": reference.fsp(list(s.features), list(t.features))}, teacher=widths)


def test_dkd() -> None:
    def restated(_: Method, batch: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        target, nontarget = reference.dkd(s.logits, t.logits, batch.label.tolist(), 4.0)
        return {"target": target, "nontarget": 8 * nontarget}

    check("dkd", restated)


def test_dist() -> None:
    def restated(_: Method, __: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        return dict(zip(("inter", "intra"), reference.dist(s.logits, t.logits, 4.0), strict=True))

    check("dist", restated)


@pytest.mark.parametrize(("epoch", "reversal"), [(0, -0.024472), (4, -0.5), (9, -1.0), (200, -1.0), (None, -1.0)])
def test_ctkd(epoch: int | None, reversal: float) -> None:
    torch.manual_seed(0)
    method = methods["ctkd"](setup(), methods["ctkd"].Config())
    method.progress = None if epoch is None else Progress(epoch, 240)
    ours, theirs = output(STUDENT, 6, True), output(TEACHER, 7, False)
    ours64, theirs64 = as_leaves(ours, torch.float64, True), as_leaves(theirs, torch.float64, False)
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    (term,) = method(Batch(None, LABELS[INDEX], INDEX), ours, theirs).values()
    expected = reference.ctkd(ours64.logits, theirs64.logits, theta)
    torch.testing.assert_close(term.double(), expected, rtol=1e-5, atol=1e-6)
    term.backward()
    expected.backward()
    torch.testing.assert_close(ours.logits.grad.double(), ours64.logits.grad, rtol=1e-4, atol=1e-6)
    # The gradients of T² and of KL nearly cancel at a high T: float32 is as exact as either of them.
    part = 2 * expected.item() / 15.6212 * 20 * 0.1966
    torch.testing.assert_close(method.theta.grad.double(), reversal * theta.grad, rtol=1e-4, atol=1e-4 * part)
    assert abs(theta.grad) > 1e-3 * part
    assert method.temperature().item() == pytest.approx(15.6212, abs=1e-4)


@pytest.mark.parametrize("temperature", [8.0, 1.0])
def test_wkd(temperature: float) -> None:
    torch.manual_seed(2)
    teacher = Tiny(7)

    def restated(_: Method, batch: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        rows = teacher.fc.weight.detach().double()
        terms = reference.wkd(s.logits, t.logits, batch.label.tolist(), rows, 600.0, temperature)
        return dict(zip(("target", "transport"), terms, strict=True))

    check("wkd", restated, networks=Twice((Tiny(6), teacher)), temperature=temperature)


def wkd(**config: object) -> Method:
    return methods["wkd"](setup(networks=(Tiny(6), Tiny(7))), methods["wkd"].Config(**config))


def test_the_transport_of_wkd_fades_in_the_last_part_of_the_training() -> None:
    def gammas(method: Method, epochs: int) -> list[float]:
        found = [method.gamma]
        for epoch in range(epochs):
            method.progress = Progress(epoch, epochs)
            found.append(method.gamma)
        return found

    untold, *told = gammas(wkd(), 240)
    assert {untold, *told[:150]} == {600.0} and told[150] < 600.0
    assert told[194] == pytest.approx(300.0) and told[239] == pytest.approx(0.0)
    assert set(gammas(wkd(decay_from=1.0), 5)) == {600.0}
    assert gammas(wkd(), 1) == [600.0, 600.0]


def test_wkd_is_finite_where_probabilities_saturate_and_leaves_out_images_without_a_label() -> None:
    method, label = wkd(), torch.tensor([0, 1, 2, 3, -1])
    for scale in (0.0, 1.0, 1e4):
        values = scale * torch.randn(B, C)
        for theirs in (values, -values):
            ours = ModelOutput(values.clone().requires_grad_(), torch.zeros(B, 6))
            terms = method(Batch(None, label, INDEX), ours, ModelOutput(theirs, torch.zeros(B, 7)))
            sum(terms.values()).backward()
            assert all(term.isfinite() for term in terms.values()) and ours.logits.grad.isfinite().all()
            assert not ours.logits.grad[4].any()


def test_wkd_reads_the_classifier_that_the_teacher_has_when_it_is_called() -> None:
    student, teacher = hkd.create_model("resnet8", C), hkd.create_model("vgg8", C)
    asked = {"student": student, "num_samples": N, "labels": LABELS, "image_size": 32}
    method = hkd.create_method("wkd", teacher=teacher, **asked)
    with torch.no_grad():
        teacher.classifier.weight.copy_(torch.eye(C, 512))
    expected = 1 - torch.exp(torch.eye(C) - 1) + 1e-8
    torch.testing.assert_close(method.cost(torch.zeros(1)), expected)
    assert not list(method.parameters()) and not method.state_dict()
    teacher.classifier = Summed()
    message = r"^method: wkd relates classes by the rows of the teacher's linear classifier, and vgg8 has none$"
    with pytest.raises(hkd.RequestError, match=message):
        hkd.create_method("wkd", teacher=teacher, **asked)


class Summed(nn.Module):
    """A classifier without rows."""

    def forward(self, embedding: Tensor) -> Tensor:
        return embedding.view(len(embedding), C, -1).sum(dim=2)


def test_ctkd_keeps_its_temperature_within_its_bounds() -> None:
    method = methods["ctkd"](setup(), methods["ctkd"].Config(min_temperature=2.0, temperature_range=3.0))
    for theta, temperature in ((-200.0, 2.0), (0.0, 3.5), (200.0, 5.0)):
        with torch.no_grad():
            method.theta.fill_(theta)
        ours = ModelOutput(torch.zeros(B, C, requires_grad=True), torch.zeros(B, 6))
        (term,) = method(
            Batch(None, LABELS[INDEX], INDEX), ours, ModelOutput(torch.ones(B, C), torch.zeros(B, 7))
        ).values()
        term.backward()
        assert method.temperature().item() == temperature
        assert term == 0 and method.theta.grad.isfinite() and ours.logits.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_lskd(temperature: float) -> None:
    def restated(_: Method, __: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        return {"standardised": reference.lskd(s.logits, t.logits, temperature)}

    check("lskd", restated, temperature=temperature)


@pytest.mark.parametrize("gamma", [0.1, 0.2, 1.0, 1.5])
def test_ttm_and_wttm(gamma: float) -> None:
    def restated(_: Method, __: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        return {"transformed": reference.ttm(s.logits, t.logits, gamma, weighted=False)}

    def restated_weighted(_: Method, __: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        return {"weighted": reference.ttm(s.logits, t.logits, gamma, weighted=True)}

    check("ttm", restated, gamma=gamma)
    check("wttm", restated_weighted, gamma=gamma)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_rld(tau: float) -> None:
    def restated(_: Method, batch: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        confidence, masked = reference.rld(s.logits, t.logits, batch.label.tolist(), 4.0, tau)
        return {"confidence": 0.5 * confidence, "masked": 8 * masked}

    check("rld", restated, alpha=0.5, confidence_temperature=tau)


@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (3.5, 3.0)])
def test_nkd(gamma: float, temperature: float) -> None:
    def restated(_: Method, batch: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        target, nontarget = reference.nkd(s.logits, t.logits, batch.label.tolist(), temperature)
        return {"target": target, "nontarget": gamma * nontarget}

    check("nkd", restated, gamma=gamma, temperature=temperature)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_normkd(factor: float) -> None:
    def restated(_: Method, __: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        return {"normalised": reference.normkd(s.logits, t.logits, factor)}

    check("normkd", restated, temperature=factor)


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("mask", [True, False])
def test_skd(divide: bool, mask: bool) -> None:
    def restated(_: Method, __: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        p = [[float(v) for v in reference.softmax(row)] for row in t.logits]
        images = reference.share_up_to_median([max(row) for row in p]) if mask else 1
        classes = reference.share_up_to_median([sum(column) for column in zip(*p, strict=True)]) if mask else 1
        relation = reference.skd_relation(s.logits, t.logits, 0.1, C if divide else 1)
        return {"instance": images * kd(s.logits, t.logits, 4.0), "relation": classes * relation}

    check("skd", restated, divide=divide, mask=mask)


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("terms", ["all", "individual", "holistic"])
def test_hkd2(k: int, terms: str) -> None:
    def restated(method: Method, _: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        e_s = [normalise(method.embed.weight @ row + method.embed.bias) for row in s.embedding]
        e_t = [normalise(row) for row in t.embedding]
        graphs = [neighbourhoods(out.logits.detach(), k) for out in (s, t)]
        both = reference.hkd2(e_s, e_t, *graphs, 0.2, 0.1)
        return {name: value for name, value in both.items() if terms in ("all", name)}

    check("hkd2", restated, k=k, terms=terms, temperature=0.2, teacher_temperature=0.1)


LOGIT_METHODS = [name for name in hkd.list_methods() if methods[name].needs == {"logits"} and name != "ofa"]
EXTREMES = {
    "equal": (torch.eye(C), torch.eye(C)),
    "constant": (torch.full((C, C), 3.0), torch.zeros(C, C)),
    "a constant teacher": (torch.eye(C), torch.ones(C, C)),
    "saturated": (200 * torch.eye(C), 300 * torch.eye(C).roll(1, 0)),
    "the label is the least likely": (torch.eye(C), 1 - torch.eye(C)),
}


@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_extreme_logits_have_finite_losses_and_bounded_gradients(name: str, case: str) -> None:
    ours, theirs = (logits.clone() for logits in EXTREMES[case])
    ours.requires_grad_()
    kind = methods[name]
    empty = torch.zeros(C, 1)
    batch = Batch(None, torch.arange(C), torch.arange(C))
    terms = kind(setup(), kind.Config())(batch, ModelOutput(ours, empty), ModelOutput(theirs, empty))
    sum(terms.values()).backward()
    assert all(term.isfinite() and term > -1e-6 for term in terms.values())
    assert ours.grad.isfinite().all() and ours.grad.abs().max() < 1000


@pytest.mark.parametrize("name", ["dkd", "rld", "nkd"])
def test_images_without_a_label_are_left_out(name: str) -> None:
    torch.manual_seed(0)
    kind = methods[name]
    method, empty = kind(setup(), kind.Config()), torch.zeros(B, 1)
    ours, theirs = torch.randn(B, C, requires_grad=True), torch.randn(B, C)
    label = torch.tensor([1, -1, 0, -1, 3])
    kept = label >= 0
    terms = method(Batch(None, label, INDEX), ModelOutput(ours, empty), ModelOutput(theirs, empty))
    parts = ModelOutput(ours[kept], empty[kept]), ModelOutput(theirs[kept], empty[kept])
    expected = method(Batch(None, label[kept], INDEX[kept]), *parts)
    for key, value in terms.items():
        torch.testing.assert_close(value, expected[key])
    (gradient,) = torch.autograd.grad(sum(terms.values()), ours)
    assert not gradient[~kept].any() and gradient[kept].any()
    none = method(Batch(None, torch.full((B,), -1), INDEX), ModelOutput(ours, empty), ModelOutput(theirs, empty))
    assert all(value == 0 for value in none.values())


def nearest(x: Tensor, height: int, width: int) -> Tensor:
    rows = [y * x.shape[2] // height for y in range(height)]
    columns = [c * x.shape[3] // width for c in range(width)]
    return x[:, :, rows][:, :, :, columns]


@pytest.mark.parametrize("teacher", [TEACHER, DEEPER])
def test_reviewkd(teacher: tuple[tuple[int, int, int], ...]) -> None:
    def restated(m: Method, _: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        ours = [*(s.features[a] for a, _ in m.pairs), s.embedding[:, :, None, None]]
        goals = [*(t.preactivations[b] for _, b in m.pairs), t.embedding[:, :, None, None]]
        compared, fused = [], None
        for fusion, feature, goal in list(zip(m.fusions, ours, goals, strict=True))[::-1]:
            x = fusion.inner(feature)
            if fused is not None:
                y = nearest(fused, x.shape[2], x.shape[3])
                z = fusion.attention(torch.cat([x, y], dim=1))
                x = x * z[:, :1] + y * z[:, 1:]
            fused = nearest(x, goal.shape[2], goal.shape[3])
            compared.append((fusion.outer(fused), goal))
        return {"review": reference.hcl(compared)}

    check("reviewkd", restated, teacher=teacher)


class Tiny(nn.Module):
    """A network small enough for loops."""

    def __init__(self, width: int, scale: float = 3.0) -> None:
        super().__init__()
        self.scale = scale
        self.conv = nn.Conv2d(3, width, 3)
        self.fc = nn.Linear(width, C)

    def forward(self, image: Tensor) -> ModelOutput:
        embedding = self.conv(image.to(self.fc.weight.dtype)).square().mean(dim=(2, 3))
        return ModelOutput(self.scale * self.fc(embedding), embedding)

    def classify(self, vectors: Tensor) -> Tensor:
        return self.fc(vectors)


class Twice(tuple):
    """A deep copy of a method copies its networks; their double is what the re-statement runs."""

    def __deepcopy__(self, memo: dict) -> tuple:
        return tuple(deepcopy(list(self), memo)[i].double() for i in range(2))


@pytest.mark.parametrize("name", ["mlkd", "crld"])
@pytest.mark.parametrize("sharp", [1.0, 4.0])
def test_methods_with_a_strong_view(name: str, sharp: float) -> None:
    torch.manual_seed(1)
    thresholds = {"weak_confidence": 0.6, "strong_confidence": 0.5}

    def restated(m: Method, batch: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        strong_s, strong_t = (network(batch.strong.double()).logits for network in m.networks)
        logits = (s.logits, t.logits, strong_s, strong_t.detach())
        if name == "mlkd":
            return reference.mlkd(*logits, batch.label.tolist())
        return reference.crld(*logits, batch.label.tolist(), tuple(thresholds.values()))

    config = thresholds if name == "crld" else {}
    check(name, restated, networks=Twice((Tiny(6), Tiny(7, sharp))), **config)


@pytest.mark.parametrize("keep", [0.0, 0.75, 1.0])
def test_sskd(keep: float) -> None:
    torch.manual_seed(1)
    networks = Tiny(6), Tiny(7)

    def restated(m: Method, batch: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        student, teacher = m.networks
        turned = torch.stack([image.rot90(k, dims=(1, 2)) for k in (1, 2, 3) for image in batch.image])
        r_s = student(turned.double())
        with torch.no_grad():
            r_t = teacher(turned.double())
            a_t = reference.cosines(m.head_teacher(t.embedding), m.head_teacher(r_t.embedding))
        a_s = reference.cosines(m.head_student(s.embedding), m.head_student(r_s.embedding))
        rotated = reference.selective_kl(r_s.logits, r_t.logits, batch.label.tolist() * 3, 4.0, keep)
        similarity = reference.selective_kl(a_s, a_t, list(range(B)) * 3, 0.5, keep)
        return {"rotated": 2.7 * rotated, "similarity": 10 * similarity}

    check("sskd", restated, networks=Twice(networks), rotated_keep=keep, similarity_keep=keep)


def test_sskd_learns_to_find_the_upright_image() -> None:
    torch.manual_seed(0)
    kind = methods["sskd"]
    teacher = Tiny(7)
    method = kind(setup(networks=(Tiny(6), teacher)), kind.Config())
    image = torch.randn(B, 3, 4, 4)
    batch = Batch(image, LABELS[INDEX], INDEX)
    with torch.no_grad():
        seen = teacher(image)
    (value,) = method.initialisation.terms(batch, seen).values()
    head = deepcopy(method.head_teacher).double()
    turned = torch.stack([one.rot90(k, dims=(1, 2)) for k in (1, 2, 3) for one in image])
    double = deepcopy(teacher).double()
    alike = reference.cosines(head(double(image).embedding), head(double(turned).embedding))
    expected = -sum(reference.softmax(row)[n % B].log() for n, row in enumerate(alike)) / (3 * B)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    value.backward()
    assert all(p.grad is not None for p in method.head_teacher.parameters())
    assert all(p.grad is None for p in [*teacher.parameters(), *method.head_student.parameters()])


def test_a_rotated_pass_leaves_the_running_statistics_alone() -> None:
    student, teacher = hkd.create_model("resnet8", C).train(), hkd.create_model("resnet8", C).eval()
    method = hkd.create_method("sskd", student=student, teacher=teacher, num_samples=N, labels=LABELS, image_size=8)
    batch = Batch(torch.randn(B, 3, 8, 8), LABELS[INDEX], INDEX)
    outputs = student(batch.image), teacher(batch.image)
    before = student.bn1.running_mean.clone()
    method(batch, *outputs)
    assert torch.equal(student.bn1.running_mean, before)
    student(batch.image)
    assert not torch.equal(student.bn1.running_mean, before)


@pytest.mark.parametrize(
    ("student", "given", "rate"),
    [
        ("resnet8x4", None, 0.01),
        ("wrn_40_2", None, 0.01),
        ("vgg8", None, 0.05),
        ("ResNet50", None, 0.05),
        ("torchvision:resnet18", None, 0.05),
        ("resnet8x4", 0.2, 0.2),
    ],
)
def test_the_rate_of_fts_initialisation_follows_the_student(student: str, given: float | None, rate: float) -> None:
    method = methods["ft"](setup(student=info(student, STUDENT, 6)), methods["ft"].Config(init_lr=given))
    assert method.initialisation.lr_at(0, 0.05) == rate


def test_ft_learns_to_reconstruct() -> None:
    torch.manual_seed(0)
    method = methods["ft"](setup(), methods["ft"].Config())
    teacher = output(TEACHER, 7, False)
    (value,) = method.initialisation.terms(Batch(None, None, None), teacher).values()
    made, feature = method.paraphraser(teacher.features[-1]).double(), teacher.features[-1].double()
    squares = [(x - y) ** 2 for x, y in zip(made.flatten(), feature.flatten(), strict=True)]
    torch.testing.assert_close(value.double(), sum(squares) / len(squares), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampling", ["shared", "per_sample"])
@pytest.mark.parametrize("abundant", [False, True])
def test_crd(sampling: str, abundant: bool) -> None:
    torch.manual_seed(0)
    kind = methods["crd"]
    # Of an abundant class an image has 3 negatives, of the others K = 6 and more.
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 3, 0]) if abundant else LABELS
    method = kind(setup(labels=labels), kind.Config(num_negatives=6, embedding_dim=8, sampling=sampling)).train()
    z: dict[str, Tensor | None] = {"student": None, "teacher": None}
    for _ in range(2):  # the second step has banks that were visited, and keeps Z
        exact = deepcopy(method).double()
        batch = Batch(None, labels[INDEX], INDEX)
        ours, theirs = output(STUDENT, 6, True), output(TEACHER, 7, False)
        ours64, theirs64 = as_leaves(ours, torch.float64, True), as_leaves(theirs, torch.float64, False)
        if sampling == "shared":
            rows = method.sampler.shared().tolist()
            negatives = [[r for r in rows if labels[r] != labels[i]] for i in INDEX]
        else:
            rows, surplus = method.sampler.per_sample(INDEX)
            surplus = torch.zeros_like(rows, dtype=torch.bool) if surplus is None else surplus
            negatives = [row[~skipped].tolist() for row, skipped in zip(rows, surplus, strict=True)]
            assert all(labels[r] != labels[i] for drawn, i in zip(negatives, INDEX, strict=True) for r in drawn)
            assert {len(drawn) for drawn in negatives} == ({3, 6} if abundant else {6})
        terms = method(batch, ours, theirs)
        v_s = F.normalize(exact.embed_student(ours64.embedding), dim=1)
        v_t = F.normalize(exact.embed_teacher(theirs64.embedding), dim=1)
        index = INDEX.tolist()
        bank_s, bank_t = exact.bank_student.rows, exact.bank_teacher.rows
        student, z["student"] = reference.nce(v_s, bank_t, index, negatives, 0.07, z["student"])
        teacher, z["teacher"] = reference.nce(v_t, bank_s, index, negatives, 0.07, z["teacher"])
        torch.testing.assert_close(terms["contrast_student"].double(), student, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(terms["contrast_teacher"].double(), teacher, rtol=1e-5, atol=1e-5)
        method.zero_grad()
        sum(terms.values()).backward()
        (student + teacher).backward()
        torch.testing.assert_close(ours.embedding.grad.double(), ours64.embedding.grad, rtol=1e-4, atol=1e-6)
        for value, wanted in zip(method.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(value.grad.double(), wanted.grad, rtol=1e-4, atol=1e-5)
        for bank, before, v in ((method.bank_student, bank_s, v_s), (method.bank_teacher, bank_t, v_t)):
            for row, e in zip(index, v, strict=True):
                moved = 0.5 * before[row] + 0.5 * e
                torch.testing.assert_close(bank.rows[row].double(), moved / moved.norm(), rtol=1e-5, atol=1e-6)


def test_the_partition_constant_survives_a_broken_first_batch() -> None:
    kind = methods["crd"]
    method = kind(setup(), kind.Config(num_negatives=6)).train()
    batch = Batch(None, LABELS[INDEX], INDEX)
    broken = output(STUDENT, 6, False)
    broken.embedding.fill_(torch.inf)
    method(batch, broken, output(TEACHER, 7, False))
    assert method.nce_student.log_z.isnan()
    assert method.nce_teacher.log_z.isfinite()
    terms = method(batch, output(STUDENT, 6, False), output(TEACHER, 7, False))
    assert all(term.isfinite() for term in terms.values())
    kept = method.nce_student.log_z.clone()
    method(batch, output(STUDENT, 6, False), output(TEACHER, 7, False))
    assert torch.equal(method.nce_student.log_z, kept)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("sampling", ["shared", "per_sample"])
def test_a_step_of_crd_taken_back_leaves_no_trace(steps: int, sampling: str) -> None:
    torch.manual_seed(0)
    kind = methods["crd"]
    method = kind(setup(), kind.Config(num_negatives=6, embedding_dim=8, sampling=sampling)).train()
    batch = Batch(None, LABELS[INDEX], INDEX)
    for _ in range(steps):
        method(batch, output(STUDENT, 6, False), output(TEACHER, 7, False))
    never, before = deepcopy(method), {name: value.clone() for name, value in method.state_dict().items()}
    method(batch, output(STUDENT, 6, False), output(TEACHER, 7, False))
    method.undo_step()
    method.undo_step()  # once is all
    for name, value in method.state_dict().items():
        assert bits(value) == bits(before[name]), name
    outputs = output(STUDENT, 6, False), output(TEACHER, 7, False)
    for taken_back, expected in zip(method(batch, *outputs).values(), never(batch, *outputs).values(), strict=True):
        assert torch.equal(taken_back, expected), "the next step is as if there had been none"
    assert torch.equal(method.nce_student.log_z, never.nce_student.log_z)


def bits(value: Tensor) -> bytes:
    """A tensor bit by bit, so that NaN equals NaN."""
    return value.numpy().tobytes()


def test_looking_at_crd_changes_nothing() -> None:
    kind = methods["crd"]
    method = kind(setup(), kind.Config(num_negatives=6, embedding_dim=8)).eval()
    terms = method(Batch(None, LABELS[INDEX], INDEX), output(STUDENT, 6, False), output(TEACHER, 7, False))
    assert all(term.isfinite() for term in terms.values())
    assert method.nce_student.log_z.isnan(), "Z is that of the first batch of the training"
    assert method.sampler.draws == 0


def test_stages_are_paired_from_the_deepest_backwards() -> None:
    assert methods["at"](setup(), None).pairs == ((1, 1), (2, 2), (3, 3))
    assert methods["at"](setup(DEEPER), None).pairs == ((1, 2), (2, 3), (3, 4))
    assert methods["fitnet"](setup(DEEPER), methods["fitnet"].Config()).pairs == ((2, 3),)
    assert methods["fsp"](setup(DEEPER[:1] + STUDENT), methods["fsp"].Config()).pairs == (
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
    )


@pytest.mark.parametrize("scales", [(1, 2, 4), (1, 2), (1,)])
@pytest.mark.parametrize("loss", ["kd", "dkd"])
def test_sdd(loss: str, scales: tuple[int, ...]) -> None:
    def restated(m: Method, batch: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        layers = [(network.fc.weight, network.fc.bias) for network in m.networks]
        found = reference.sdd(s.pooled, t.pooled, layers, batch.label.tolist(), scales, 4.0)
        return {"scales": found[0]} if loss == "kd" else {"target": found[1], "nontarget": 8 * found[2]}

    torch.manual_seed(1)
    check("sdd", restated, networks=Twice((Tiny(6), Tiny(7))), loss=loss, scales=scales)


def test_sdd_averages_a_map_of_another_size_to_its_grid() -> None:
    networks = tuple(hkd.create_model("resnet8", C) for _ in range(2))
    method = hkd.create_method("sdd", student=networks[0], teacher=networks[1], num_samples=N)
    small = replace(output(STUDENT, 64, False), pooled=torch.randn(B, 64, 2, 2))
    repeated = replace(small, pooled=small.pooled.repeat_interleave(2, 2).repeat_interleave(2, 3))
    batch = Batch(torch.randn(B, 3, 4, 4), LABELS[INDEX], INDEX)
    other = replace(small, pooled=torch.randn(B, 64, 4, 4))
    torch.testing.assert_close(method(batch, small, other), method(batch, repeated, other))


def test_sdd_of_dkd_has_the_weights_of_dkd() -> None:
    kind = methods["sdd"]
    assert kind.default_weights(kind.Config()) == (0.1, 0.0, 0.9)
    assert kind.default_weights(kind.Config(loss="dkd")) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize(("resolution", "normalise"), [(1, False), (2, False), (2, True), (4, True)])
def test_catkd(resolution: int, normalise: bool) -> None:
    def restated(m: Method, _: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        weights = [network.fc.weight for network in m.networks]
        return {"activation": reference.catkd(s.pooled, t.pooled, weights, resolution, normalise)}

    torch.manual_seed(1)
    check("catkd", restated, networks=Twice((Tiny(6), Tiny(7))), resolution=resolution, normalise=normalise)


class Averaging(Model):
    """A network whose map of ``side`` cells is averaged."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.name, self.side, self.image_size = f"averaging{width}", side, 8
        self.conv, self.fc = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, C)

    def forward(self, image: Tensor) -> ModelOutput:
        pooled = F.adaptive_avg_pool2d(self.conv(image).square(), self.side)
        embedding = pooled.mean(dim=(2, 3))
        return ModelOutput(self.classify(embedding), embedding, pooled=pooled)

    def classify(self, vectors: Tensor) -> Tensor:
        return self.fc(vectors)


@pytest.mark.parametrize("sides", [(4, 2), (2, 4), (4, 4)])
@pytest.mark.parametrize("factor", [1, 2])
def test_simkd(factor: int, sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    student, teacher = Averaging(6, sides[0]), Averaging(8, sides[1])
    method = hkd.create_method("simkd", student=student, teacher=teacher, num_samples=N, factor=factor)
    predictor = method.predictor
    with torch.no_grad():
        for norm in predictor.projector[1::3]:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
    exact, image = deepcopy(predictor).double(), torch.randn(B, 3, 8, 8)
    batch, goal = Batch(image, LABELS[INDEX], INDEX), teacher(image)

    out = predictor(image)
    terms = method(batch, out, goal)
    layers = [
        (convolution.weight, norm.weight, norm.bias)
        for convolution, norm in zip(exact.projector[::3], exact.projector[1::3], strict=True)
    ]
    expected, vectors = reference.simkd(exact.network(image.double()).pooled, goal.pooled.detach().double(), layers)
    head = deepcopy(teacher.fc).double()
    torch.testing.assert_close(terms["reuse"].double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(out.logits.double(), head(vectors), rtol=1e-5, atol=1e-5)
    terms["reuse"].backward()
    expected.backward()
    for (name, value), wanted in zip(predictor.named_parameters(), exact.parameters(), strict=True):
        assert (value.grad is None) == (wanted.grad is None) == (name.startswith(("classifier", "network.fc")))
        if value.grad is not None:
            scale = float(wanted.grad.abs().max())
            torch.testing.assert_close(value.grad.double(), wanted.grad, rtol=1e-4, atol=1e-5 * scale + 1e-7)


@pytest.mark.parametrize(("epsilon", "weight"), [(1.0, 1.0), (1.5, 0.1)])
def test_ofa(epsilon: float, weight: float) -> None:
    def restated(m: Method, batch: Batch, s: ModelOutput, t: ModelOutput) -> Terms:
        label = batch.label.tolist()
        exits = [head(feature) for head, feature in zip(m.exits, s.features[1:], strict=True)]
        terms = [reference.ofa(logits, t.logits, label, epsilon) for logits in (s.logits, *exits)]
        return {"target": terms[0], "exits": weight * sum(terms[1:])}

    check("ofa", restated, epsilon=epsilon, stage_weight=weight)


def test_exits_of_ofa_halve_a_map_once_for_each_deeper_stage() -> None:
    method = methods["ofa"](setup(), methods["ofa"].Config())
    convolutions = [[p for p in head.modules() if isinstance(p, nn.Conv2d)] for head in method.exits]
    widths = [[(c.in_channels, c.out_channels) for c in stage if c.kernel_size == (1, 1)] for stage in convolutions]
    assert widths == [[(3, 3), (3, 6), (6, 6), (6, 7)], [(4, 4), (4, 7)], [(5, 7)]]
    assert [sum(c.stride == (2, 2) for c in stage) for stage in convolutions] == [2, 1, 0]


def test_ofa_refuses_a_student_of_tokens() -> None:
    student, teacher = hkd.create_model("timm:vit_tiny_patch16_224", C), hkd.create_model("resnet8", C)
    with pytest.raises(
        hkd.RequestError, match="method: ofa has an exit .*vit_tiny_patch16_224 has none behind the stem"
    ):
        hkd.create_method("ofa", student=student, teacher=teacher, num_samples=N, image_size=224)
