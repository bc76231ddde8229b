"""How well two depth maps agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of an estimate with a reference, both inverse depth of the same pixels.

    Attributes:
        abs_rel: Mean of ``|a * estimate + b - reference| / reference`` after the best scale and shift (0: equal).
        rank_correlation: Spearman's: 1 where the order of all pixels is the same, -1 where near and far are exchanged.
        scale: The ``a`` of that fit; negative if near and far are exchanged.
        shift: Its ``b``.
    """

    abs_rel: float
    rank_correlation: float
    scale: float
    shift: float


def compare_models(estimates: Mapping[str, NDArray[Any]], reference: str | None = None) -> dict[str, Agreement]:
    """Compare what several models say about the same frames.

    Args:
        estimates: Inverse depth by model, arrays of one shape, ``(H, W)`` or ``(N, H, W)``.
        reference: The model to compare the others with; default: the first.

    Returns:
        The agreement of each of the other models with the reference.

    Raises:
        ValueError: Fewer than two models, another shape, or an unknown reference.
    """
    if len(estimates) < 2:
        raise ValueError("estimates must hold at least two models")
    reference = next(iter(estimates)) if reference is None else reference
    if reference not in estimates:
        raise ValueError(f"reference={reference!r} is not among {', '.join(estimates)}")
    return {
        name: agreement(estimate, estimates[reference]) for name, estimate in estimates.items() if name != reference
    }


def agreement(estimate: NDArray[Any], reference: NDArray[Any]) -> Agreement:
    """How well an estimate of inverse depth agrees with a reference.

    Scale and shift are the least-squares fit in inverse depth (Ranftl et al. 2020, "Towards Robust Monocular Depth
    Estimation", section 4): what a relative model leaves open. Pixels where either is not finite, or the reference not
    positive (no measurement), don't count; nor, for `abs_rel` alone, those below a thousandth of the reference's
    maximum, where a relative error has no meaning.

    Args:
        estimate: Inverse depth.
        reference: Inverse depth, same shape.

    Raises:
        ValueError: Different shapes, or fewer than three pixels to compare.
    """
    if estimate.shape != reference.shape:
        raise ValueError(f"estimate and reference must have one shape, not {estimate.shape} and {reference.shape}")
    valid = np.isfinite(estimate) & np.isfinite(reference) & (reference > 0)
    x, y = estimate[valid].astype(np.float64), reference[valid].astype(np.float64)
    if len(x) < 3:
        raise ValueError(f"only {len(x)} pixels can be compared")
    spread = np.mean((x - x.mean()) ** 2)
    scale = float(np.mean((x - x.mean()) * (y - y.mean())) / spread) if spread > 0 else 0.0
    shift = float(y.mean() - scale * x.mean())
    counted = y >= 1e-3 * y.max()
    abs_rel = float(np.mean(np.abs(scale * x + shift - y)[counted] / y[counted]))
    return Agreement(abs_rel, rank_correlation(x, y), scale, shift)


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
