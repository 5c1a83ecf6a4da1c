"""HKD without a memory: each image's place among the teacher's images of the batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from hkd.holistic.graph import knn_graph, normalised_adjacency
from hkd.holistic.loss import Terms
from hkd.methods.base import Method, Setup, Weights, methods
from hkd.numerics.gather import gather, local_part
from hkd.numerics.precision import at_least_float32, full_precision
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class RelationalConfig:
    """The settings of HKD2, chosen on held-out training images; see docs/results.md."""

    temperature: float = option(0.13, "τ of the student's similarities", gt=0)
    teacher_temperature: float = option(0.07, "τ' of the teacher's", gt=0)
    k: int = option(8, "size of a neighbourhood in the batch graph, the image itself included", ge=1)
    terms: Terms = option("individual", "which are summed: that of individual images, the holistic one, or both (all)")


def relation(anchor: Tensor, target: Tensor, rows: Tensor, temperature: float, of_target: float) -> Tensor:
    r"""How far an image lies from its place among other images, the mean over a batch, a scalar.

    .. math:: \mathrm{mean}_i\, \mathrm{KL}\big(\mathrm{softmax}(R\, t_i / \tau') \,\|\,
        \mathrm{softmax}(R\, a_i / \tau)\big)

    Args:
        anchor: a (B, d), the student's embeddings, of unit length.
        target: t (B, d), the teacher's.
        rows: R (N, d), the teacher's embeddings of N images.
        temperature: τ.
        of_target: τ'.
    """
    places = (anchor @ rows.T / temperature).log_softmax(dim=1)
    return F.kl_div(places, (target @ rows.T / of_target).softmax(dim=1), reduction="batchmean")


@methods.register("hkd2")
class HKD2(Method[RelationalConfig]):
    r"""Not published: a variant of Zhou et al., "Distilling Holistic Knowledge with Graph Neural Networks", ICCV 2021.

    .. math:: R(e^s, e^t) \qquad \text{and, of all terms, } + R(g^s, g^t), \quad g = \mathrm{normalize}(e + \hat A e)

    R is :func:`relation` to e^t of all images of the batch, in all processes. e^t (B, d) is the teacher's penultimate
    feature itself, of unit length; a linear layer, which is all that is trained, takes the student's feature to the
    same width. Â is the propagation matrix of HKD's graph, from each network's own predictions
    (:func:`hkd.holistic.knn_graph`); the graph layer has no weights. By default there is no graph.

    Unlike in the paper nothing is trained for the teacher, and no embedding of a training image is kept: the target is
    the teacher's whole pattern of similarities, in which alike images are no negatives. So the method has to know
    neither which image it sees nor its class. It is the form of HKD that was best on held-out images of CIFAR-100
    (docs/results.md, study E), where its temperatures and its weight were chosen, too, beside a KD term of weight 2
    and T = 2.

    Similarities to other images as the target, to those in a queue and without labels: Abbasi Koohpayegani et al.,
    "CompRess", NeurIPS 2020; Fang et al., "SEED", ICLR 2021.
    """

    Config = RelationalConfig
    settings = "hkd2"
    weights = Weights(method=20.0)
    needs = frozenset({"logits", "embedding"})

    def __init__(self, setup: Setup, config: RelationalConfig) -> None:
        super().__init__(setup, config)
        self.embed = nn.Linear(setup.student.embedding_dim, setup.teacher.embedding_dim)

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        config = self.config
        with full_precision(student.embedding):
            e_s = gather(F.normalize(self.embed(student.embedding.to(self.embed.weight.dtype)), dim=1))
            e_t = gather(F.normalize(at_least_float32(teacher.embedding), dim=1)).to(e_s.dtype)

            def compare(of_student: Tensor, of_teacher: Tensor) -> Tensor:
                parts = local_part(of_student), local_part(of_teacher)
                return relation(*parts, e_t, config.temperature, config.teacher_temperature)

            terms = {}
            if config.terms != "holistic":
                terms["individual"] = compare(e_s, e_t)
            if config.terms != "individual":
                g_s, g_t = self._holistic(e_s, student.logits), self._holistic(e_t, teacher.logits)
                terms["holistic"] = compare(g_s, g_t)
        return terms

    def _holistic(self, e: Tensor, logits: Tensor) -> Tensor:
        """Each image with its neighbourhood, of unit length."""
        graph = knn_graph(gather(at_least_float32(logits.detach())), self.config.k)
        return F.normalize(e + normalised_adjacency(graph, e.dtype) @ e, dim=1)
