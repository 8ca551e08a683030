"""Counts of what is taken for what, the same for birds and digits. Arrays only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def confusion(labels: NDArray, predicted: NDArray, names: list) -> NDArray[np.int64]:
    """Counts (K, K): row i is true, column j read, both in the order of `names`, which must hold all that occur."""
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, ([place[name] for name in labels.tolist()], [place[name] for name in predicted.tolist()]), 1)
    return counts


def per_class(counts: NDArray[np.int64]) -> list[dict[str, float]]:
    """Number, precision, recall and F1 of each class of a confusion matrix (K, K); a share of nothing is 0."""
    right, true, read_as = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    return [{"number": int(n), "precision": float(r / max(m, 1)), "recall": float(r / max(n, 1)),
             "f1": float(2 * r / max(n + m, 1))} for r, n, m in zip(right, true, read_as, strict=True)]
