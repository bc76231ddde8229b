"""Judge depth maps against true depth, with the field's measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

_NUM_PAIRS = 20_000
_EQUAL = 1.03  # depths within 3 % of each other have no order
_CONTOURS = np.linspace(1.05, 1.25, 10)  # ratios of depth at a boundary


@dataclass(frozen=True, slots=True)
class DepthScores:
    """How near a depth map is to the true one; see `evaluate_depth`.

    Attributes:
        abs_rel: Mean of ``|d - t| / t`` of predicted depth d and true depth t (0 is perfect).
        rmse: Root of the mean of ``(d - t)^2``, in the unit of the true depth.
        log10: Mean of ``|log10 d - log10 t|``.
        silog: 100 times the standard deviation of ``ln d - ln t``: the error that no common scale mends.
        delta1, delta2, delta3: Share of pixels with ``max(d / t, t / d)`` below 1.25, its square, its cube (1 is
            perfect).
        order: Share of random pairs of pixels that are predicted in the right order (1 is perfect, 0.5 is chance). NaN:
            no two depths differ.
        boundary_f1: How well the edges of objects agree (1 is perfect). NaN: there are none.
        num_pixels: How many pixels were compared.
    """

    abs_rel: float
    rmse: float
    log10: float
    silog: float
    delta1: float
    delta2: float
    delta3: float
    order: float
    boundary_f1: float
    num_pixels: int

    def __str__(self) -> str:
        return (
            f"AbsRel {self.abs_rel:.3f}, delta1 {self.delta1:.3f}, order {self.order:.3f}, "
            f"boundary F1 {self.boundary_f1:.3f}"
        )


def evaluate_depth(
    predicted: Array,
    truth: Array,
    *,
    kind: Literal["metric", "relative"],
    min_depth_m: float = 1e-3,
    max_depth_m: float = 80.0,
    seed: int = 0,
) -> DepthScores:
    """Compare a depth map with the true one.

    Metric depth is taken as it is. Relative depth is first aligned by the scale and shift that fit best in inverse
    depth, by least squares (Ranftl et al. 2020, "Towards Robust Monocular Depth Estimation", section 5). All measures
    are of the pixels whose true depth lies within the caps. All but `order` are of predicted depth clipped to the caps
    (Eigen et al. 2014, "Depth Map Prediction from a Single Image", section 4: RMSE, AbsRel, delta).

    ``log10`` is of Saxena et al. 2009, "Make3D"; ``silog`` that of the KITTI depth benchmark, after Eigen et al. 2014,
    section 3.2. ``order`` follows the ordinal relations of Chen et al. 2016, "Single-Image Depth Perception in the
    Wild": 20,000 random pairs, those left out whose true depths are within 3 %. ``boundary_f1`` is by `boundary_f1`.

    Args:
        predicted: ``(H, W)`` inverse depth as models give it: 1/m, or relative. NaN: unknown; 0: farther than any cap.
        truth: ``(H, W)`` true inverse depth, 1/m. NaN and 0 are unknown.
        kind: What `predicted` is.
        min_depth_m, max_depth_m: The caps, in metres. 80 m is usual for KITTI, 10 m for NYU.
        seed: Of the random pairs.

    Raises:
        ValueError: Other shapes, another kind, caps that leave no room, or fewer than three pixels to compare.
    """
    if predicted.shape != truth.shape or predicted.ndim != 2:
        raise ValueError(f"predicted and truth must have one shape (H, W), not {predicted.shape} and {truth.shape}")
    if kind not in ("metric", "relative"):
        raise ValueError(f"kind={kind!r} must be 'metric' or 'relative'")
    if not 0 <= min_depth_m < max_depth_m < np.inf:
        raise ValueError(f"min_depth_m={min_depth_m} and max_depth_m={max_depth_m} must be 0 <= min < max")
    inverse, true_inverse = predicted.astype(np.float64), truth.astype(np.float64)
    known = np.isfinite(inverse) & np.isfinite(true_inverse) & (true_inverse > 0)
    known &= (true_inverse * min_depth_m <= 1) & (true_inverse * max_depth_m >= 1)
    num_pixels = int(np.count_nonzero(known))
    if num_pixels < 3:
        raise ValueError(f"only {num_pixels} pixels can be compared")
    order = _order(inverse[known], true_inverse[known], seed)
    if kind == "relative":
        scale, shift = _best_fit(inverse[known], true_inverse[known])
        inverse = scale * inverse + shift
    nearest = 1 / min_depth_m if min_depth_m else np.inf
    depth, true_depth = np.full(truth.shape, np.nan), np.full(truth.shape, np.nan)
    depth[known] = 1 / inverse[known].clip(1 / max_depth_m, nearest)
    true_depth[known] = 1 / true_inverse[known]
    d, t = depth[known], true_depth[known]
    log_error = np.log(d / t)
    ratio = np.exp(np.abs(log_error))
    return DepthScores(
        abs_rel=float(np.mean(np.abs(d - t) / t)),
        rmse=float(np.sqrt(np.mean((d - t) ** 2))),
        log10=float(np.mean(np.abs(log_error)) / np.log(10)),
        silog=100 * float(np.std(log_error)),
        delta1=float(np.mean(ratio < 1.25)),
        delta2=float(np.mean(ratio < 1.25**2)),
        delta3=float(np.mean(ratio < 1.25**3)),
        order=order,
        boundary_f1=boundary_f1(depth, true_depth),
        num_pixels=num_pixels,
    )


def boundary_f1(depth: Array, true_depth: Array) -> float:
    """How well the edges of objects agree, as Depth Pro's paper measures it (Bochkovskii et al. 2024, section 3.2).

    Two neighbouring pixels lie on an edge where one is farther than the other by more than a factor. Precision and
    recall are over all such pairs, edge and side; their F1 is averaged over factors from 1.05 to 1.25, weighted by the
    factor. It does not depend on the scale. (The published code takes precision and recall for each of the four
    directions and their mean; where a direction has no edges, true depth itself would not reach 1 then.)

    Args:
        depth, true_depth: ``(H, W)``; NaN: unknown.

    Returns:
        0 to 1, over the factors for which there are true edges; NaN if there are none.
    """
    steps = []
    for axis in (0, 1):
        pair = np.stack([np.diff(np.log(one), axis=axis).ravel() for one in (depth, true_depth)])
        steps.append(pair[:, np.isfinite(pair).all(axis=0)])
    predicted, true = np.concatenate(steps, axis=1)
    weights = total = 0.0
    for factor in _CONTOURS:
        edge, true_edge = (np.sign(step) * (np.abs(step) > np.log(factor)) for step in (predicted, true))
        if num_true := np.count_nonzero(true_edge):
            hits = np.count_nonzero((edge == true_edge) & (true_edge != 0))
            weights += factor
            total += factor * 2 * hits / (np.count_nonzero(edge) + num_true)
    return total / weights if weights else float("nan")


def rank_correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Spearman's rank correlation of two arrays of the same shape.

    Returns:
        In [-1, 1]; 1: the same order. Of pixels where both are finite; NaN if one of them is constant there.
    """
    from scipy.stats import spearmanr  # takes a second to import

    valid = np.isfinite(a) & np.isfinite(b)
    x, y = a[valid], b[valid]
    if not x.size or x.min() == x.max() or y.min() == y.max():
        return float("nan")
    return float(spearmanr(x, y).statistic)


def _best_fit(x: Array, y: Array) -> tuple[float, float]:
    """Scale and shift with the least squares of ``scale * x + shift - y``; a constant x gets the scale 0."""
    spread = np.mean((x - x.mean()) ** 2)
    scale = float(np.mean((x - x.mean()) * (y - y.mean())) / spread) if spread > 0 else 0.0
    return scale, float(y.mean() - scale * x.mean())


def _order(inverse: Array, true_inverse: Array, seed: int) -> float:
    """Share of random pairs in the right order; one that is predicted equal counts a half."""
    i, j = np.random.default_rng(seed).integers(0, len(inverse), (2, _NUM_PAIRS))
    differ = np.abs(np.log(true_inverse[i] / true_inverse[j])) > np.log(_EQUAL)
    agree = np.sign(inverse[i] - inverse[j])[differ] * np.sign(true_inverse[i] - true_inverse[j])[differ]
    return float(np.mean((agree + 1) / 2)) if differ.any() else float("nan")
