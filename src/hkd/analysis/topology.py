"""How alike a teacher and its students embed test images: numbers, and layouts in the plane."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.analysis.features import Features, extract
from hkd.analysis.geometry import (
    aligned,
    distance_correlation_squared,
    knn_overlap,
    linear_cka,
    trustworthiness,
)
from hkd.analysis.trials import by_key, identity
from hkd.config import EvaluateConfig, TopologyConfig
from hkd.errors import RequestError
from hkd.holistic import knn_graph
from hkd.runtime.engine import Engine
from hkd.spec import RunSpec
from hkd.trained import Trained, open_test

Points = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Panel:
    """One network's test images in the plane.

    Attributes:
        title: the network.
        points: (N, 2).
        edges: (N, k) the batch graph's neighbours of each image, itself first; None where they are not drawn.
    """

    title: str
    points: Points
    edges: NDArray[np.int64] | None


@dataclass(frozen=True)
class Topology:
    """What :func:`compute_topology` returns.

    Attributes:
        numbers: the content of ``topology.json``: data set, images, neighbours, teacher, and a row a student.
        panels: of the teacher, then of the first network of each group of trials.
        label: (N,) classes of the images in the panels.
        classes: their names.
    """

    numbers: dict[str, Any]
    panels: list[Panel]
    label: NDArray[np.int64]
    classes: list[str]


def compute_topology(config: TopologyConfig, networks: Sequence[Trained]) -> Topology:
    """Compares students' embeddings of test images with their teacher's.

    All panels show the same images; each is laid out by t-SNE from the same seed, then rotated or reflected to be
    nearest to the teacher's, so that panels can be compared by eye. The numbers are of the embeddings, not of the
    panels.

    Args:
        networks: the teacher, then its students.

    Raises:
        RequestError: the first network is a student, there is no student, there are too few images, or two networks
            would be shown different ones.
    """
    teacher, students = networks[0], networks[1:]
    if teacher.is_distilled or not students:
        raise RequestError("checkpoints: name students with their teacher, or the teacher first")
    engine = Engine(config.device, config.precision, config.seed)
    of_data = next((network.spec for network in networks if network.spec is not None), None)
    seen = {network.weights: _features(config, network, of_data, engine) for network in networks}
    reference = seen[teacher.weights]
    for network in students:
        if not np.array_equal(seen[network.weights].label, reference.label):
            raise RequestError(f"dataset: {network.weights} and {teacher.weights} would be shown different images")
    chosen = np.random.default_rng(config.seed).permutation(len(reference.label))[: config.images]
    chosen.sort()
    config.check_neighbours(len(chosen))

    rows = []
    for student in students:
        print(f"{student.label} ({student.weights.parent})", file=sys.stderr, flush=True)
        a, b = reference.embedding[chosen], seen[student.weights].embedding[chosen]
        rows.append(identity(student) | measures(a, b, config.neighbours))
    classes = list(teacher.about.get("classes") or range(int(reference.label.max()) + 1))
    numbers = {
        "dataset": config.dataset or teacher.about.get("dataset"),
        "images": len(chosen),
        "neighbours": config.neighbours,
        "teacher": teacher.label,
        "rows": rows,
    }
    panels = _panels(config, networks, seen, chosen)
    return Topology(numbers, panels, reference.label[chosen], [str(name) for name in classes])


def measures(teacher: NDArray[np.float32], student: NDArray[np.float32], k: int) -> dict[str, float]:
    """How much of a teacher's geometry a student keeps, (N, D) and (N, D'); see :mod:`hkd.analysis.geometry`."""
    return {
        "knn_overlap": knn_overlap(teacher, student, k),
        "linear_cka": linear_cka(teacher, student),
        "trustworthiness": trustworthiness(teacher, student, k),
        "distance_correlation_squared": distance_correlation_squared(teacher, student),
    }


def _features(config: TopologyConfig, network: Trained, of_data: RunSpec | None, engine: Engine) -> Features:
    """Of the evaluation images of one run for all networks, whatever their own runs held out."""
    request = EvaluateConfig(checkpoint=str(network.weights), dataset=config.dataset, data_root=config.data_root)
    data = open_test(request, replace(network, spec=of_data))
    return extract(network, data, engine, Path(config.run) / "cache", config.batch_size)


def _panels(
    config: TopologyConfig, networks: Sequence[Trained], seen: dict[Path, Features], chosen: NDArray[np.intp]
) -> list[Panel]:
    from sklearn.manifold import TSNE

    panels: list[Panel] = []
    for trials in by_key([identity(network) for network in networks]):
        features = seen[Path(trials.rows[0]["weights"])]
        perplexity = min(30.0, (len(chosen) - 1) / 3)
        layout = TSNE(init="pca", perplexity=perplexity, metric="cosine", random_state=config.seed)
        points = layout.fit_transform(features.embedding[chosen].astype(np.float64))
        points = points if not panels else aligned(points, panels[0].points)
        edges = knn_graph(torch.from_numpy(features.logits[chosen]), config.k).numpy() if config.edges else None
        panels.append(Panel(trials.label, points, edges))
    return panels
