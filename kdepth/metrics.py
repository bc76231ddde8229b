"""How well two depth maps agree."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def rank_correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Spearman's rank correlation of two arrays of the same shape, equal values at their mean rank.

    Returns:
        In [-1, 1]; 1: the same order. NaN if one of them is constant.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[place]
    return ranks
