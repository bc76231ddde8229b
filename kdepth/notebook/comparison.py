"""How well depth maps agree, and what several models make of one frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdepth.dataset.clip import Clip
from kdepth.html import card, rgb_and_depth
from kdepth.models.load import DepthModel, load_model, model_identity


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of an estimate with a reference, both inverse depth of the same pixels.

    Attributes:
        abs_rel: Mean of ``|a * estimate + b - reference| / reference`` after the best scale and shift (0: equal); of
            inverse depth, where papers mostly give it of depth.
        rank_correlation: Spearman's: 1 where the order of all pixels is the same, -1 where near and far are exchanged.
        scale: The ``a`` of that fit; negative if near and far are exchanged.
        shift: Its ``b``.
    """

    abs_rel: float
    rank_correlation: float
    scale: float
    shift: float

    def __str__(self) -> str:
        return f"AbsRel {self.abs_rel:.3f}, rank correlation {self.rank_correlation:.3f}"


@dataclass(frozen=True, slots=True, repr=False)
class ModelComparison:
    """What several models say of one frame; a notebook shows it as a picture and numbers.

    Attributes:
        rgb: The frame, uint8 ``(H, W, 3)``.
        inverse_depth: By model (`DepthModel.identity`), float32 ``(H, W)``, in the order asked for.
        agreement: Of each model but the first with the first.
    """

    rgb: NDArray[np.uint8]
    inverse_depth: dict[str, NDArray[np.float32]]
    agreement: dict[str, Agreement]

    def __str__(self) -> str:
        first, *others = self.inverse_depth
        return "\n".join([f"compared with {first}:", *(f"  {name}: {self.agreement[name]}" for name in others)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        facts: dict[str, object] = {
            f"{n}. {name}": self.agreement.get(name, "the reference") for n, name in enumerate(self.inverse_depth, 1)
        }
        title = "the frame, then inverse depth by model, each in its own colours; near is bright"
        return card(title, facts, html=[rgb_and_depth(self.rgb, *self.inverse_depth.values())])


def compare_models(
    clip: Clip, models: Sequence[str | Path | DepthModel], *, index: int | None = None
) -> ModelComparison:
    """Estimate the depth of a clip's frame with several models, and compare them with the first.

    Args:
        clip: The clip; what depth it has already does not matter.
        models: Names as for `load_model`, or loaded models. Metric and relative ones may be mixed: scale and shift are
            fitted. Each named one is loaded after the one before has gone.
        index: Number of the frame; default: the middle one.

    Raises:
        ValueError: Fewer than two models, or one twice.
        IndexError, DatasetError: As `Clip.frame`.
        DepthError: As `load_model`.
    """
    if isinstance(models, str) or len(models) < 2:
        raise ValueError("models must be a list of at least two")
    clip.require("video")
    rgb = clip.frame(clip.row["num_frames"] // 2 if index is None else index)
    names = [one.identity if isinstance(one, DepthModel) else model_identity(one) for one in models]
    if "@" in names:
        raise ValueError("models: give DepthModels that you made yourself a name, by which to tell them apart")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"models: {', '.join(twice)} is there twice")
    found: dict[str, NDArray[np.float32]] = {}
    for one in models:
        model = one if isinstance(one, DepthModel) else load_model(one)
        found[model.identity] = model.estimate(rgb[None]).inverse_depth[0]
        del model
    first, *others = found
    return ModelComparison(rgb, found, {name: agreement(found[name], found[first]) for name in others})


def agreement(estimate: NDArray[Any], reference: NDArray[Any]) -> Agreement:
    """How well an estimate of inverse depth agrees with a reference.

    Scale and shift are the least-squares fit in inverse depth (Ranftl et al. 2020, "Towards Robust Monocular Depth
    Estimation", section 4): what a relative model leaves open. Pixels where either is not finite, or the reference not
    positive (no measurement), don't count; nor, for `abs_rel` alone, those below a thousandth of what is near in the
    reference (its 99th percentile), where a relative error has no meaning.

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
    counted = y >= 1e-3 * np.percentile(y, 99)
    abs_rel = float(np.mean(np.abs(scale * x + shift - y)[counted] / y[counted]))
    return Agreement(abs_rel, rank_correlation(x, y), scale, shift)


def rank_correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Spearman's rank correlation of two arrays of the same shape, equal values at their mean rank.

    Returns:
        In [-1, 1]; 1: the same order. Of pixels where both are finite; NaN if one of them is constant.
    """
    valid = np.isfinite(a) & np.isfinite(b)
    if not valid.any():
        return float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(_ranks(a[valid]), _ranks(b[valid]))[0, 1])


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[place]
    return ranks
