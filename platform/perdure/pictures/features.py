"""A map of features: test pictures of the first task's classes and the last one's, before and after, by t-SNE.

E encoders, n test pictures, D embedding.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perdure.pictures.asking import Embeddings
from perdure.pipeline import Prepared
from perdure.records import EncoderRef, Release, Task
from perdure.report import FeatureMap

__all__ = ["feature_map", "features_in_the_plane"]

_FIRST, _LAST, _POINTS = 5, 3, 600  # classes of the first task and of the last, and pictures, at most
_NEAREST = 10  # neighbours by which the classes are judged
_FEWEST = 5  # pictures that make a map


def feature_map(release: Release, tasks: Sequence[Task], prepared: Prepared, embeddings: Embeddings) -> FeatureMap | None:
    """A few classes of the first task and of the last, by the run's first encoder and by its last.

    None for too few pictures, or where most classes have a single one.
    """
    labels = prepared.stream.labels
    chosen = [(tasks[0], _FIRST if len(tasks) > 1 else _FIRST + _LAST), *([(tasks[-1], _LAST)] if len(tasks) > 1 else [])]
    classes = list(dict.fromkeys((int(label), task.index) for task, count in chosen for label in np.unique(labels[task.query])[:count]))
    each = [tasks[task].query[labels[tasks[task].query] == label][: _POINTS // len(classes)] for label, task in classes]
    rows, class_of = np.concatenate(each), np.repeat(np.arange(len(classes)), [len(part) for part in each])
    if len(rows) < max(_FEWEST, 2 * len(classes)):
        return None
    refs = [EncoderRef(release.run, version) for version in sorted({1, release.task + 1})]
    vectors = [embeddings(ref).of(rows).image for ref in refs]
    return FeatureMap(
        rows=rows,
        class_of=class_of,
        classes=[prepared.dataset.items[int(part[0])].label for part in each],
        task_of=[task for _, task in classes],
        encoders=[str(ref).removeprefix("encoder/") for ref in refs],
        points=features_in_the_plane(vectors),
        agreement=[_agreement(part, class_of) for part in vectors],
    )


def features_in_the_plane(embeddings: Sequence[NDArray[np.floating]], *, max_iterations: int = 500) -> NDArray[np.float32]:
    """t-SNE of the same pictures as several encoders see them, each map starting from the one before, and turned to lie like it.

    van der Maaten and Hinton, "Visualizing data using t-SNE", JMLR 9, 2008, as in scikit-learn, from a fixed seed.

    Args:
        embeddings: E arrays (n, D), rows of unit length; n >= 5.
        max_iterations: of gradient descent, for each map.
    Returns:
        (E, n, 2) coordinates around 0. Distances on them are not distances of embeddings; neighbours are neighbours.
    Deviations: the perplexity is 30 or, for few pictures, a third of their number; the first map starts from two principal components.
    """
    from sklearn.manifold import TSNE  # a second to import, which only the end of a run should pay
    from threadpoolctl import threadpool_limits

    out: list[NDArray[np.float32]] = []
    start = _principal(embeddings[0])
    for vectors in embeddings:
        perplexity = min(30.0, (len(vectors) - 1) / 3)
        with threadpool_limits(1):  # the same sum in the same order; and so few points are faster on one thread
            model = TSNE(perplexity=perplexity, init=start, random_state=0, max_iter=max_iterations)  # pyright: ignore[reportArgumentType]
            points = np.asarray(model.fit_transform(vectors), dtype=np.float32)
        out.append(_turned(points - points.mean(axis=0), out[-1]) if out else points - points.mean(axis=0))
        start = _small(out[-1])
    return np.stack(out)


def _turned(points: NDArray[np.float32], before: NDArray[np.float32]) -> NDArray[np.float32]:
    """A map after the rotation or reflection that brings it nearest to another one: the orthogonal Procrustes problem."""
    left, _, right = np.linalg.svd(points.T @ before)
    return points @ left @ right


def _principal(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """(n, 2) the first principal components, as wide as high; equal vectors are set slightly apart."""
    centred = vectors - vectors.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    plane = (left * values)[:, :2]
    plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    apart = np.random.default_rng(0).standard_normal(plane.shape)
    return _small(plane + 1e-3 * (plane.std() or 1.0) * apart)


def _small(plane: NDArray[np.floating]) -> NDArray[np.float32]:
    """A map as t-SNE wants its start: very small."""
    spread = plane.std(axis=0)
    return (1e-4 * plane / np.where(spread > 0, spread, 1.0)).astype(np.float32)


def _agreement(vectors: NDArray[np.floating], class_of: NDArray[np.int64]) -> list[float]:
    """(C,) the mean share of same-class pictures among each one's nearest ten."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : min(_NEAREST, len(vectors) - 1)]
    same = (class_of[nearest] == class_of[:, None]).mean(axis=1)
    return [float(same[class_of == label].mean()) for label in np.unique(class_of)]
