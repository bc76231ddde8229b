"""Compare what several models make of one frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdepth.dataset.clip import Clip
from kdepth.html import card, rgb_and_depth
from kdepth.models.base import DepthModel
from kdepth.models.load import load_model, model_identity
from kdepth.notebook.evaluation import DepthScores, evaluate_depth


@dataclass(frozen=True, slots=True, repr=False)
class ModelComparison:
    """What several models say of one frame; a notebook shows it as a picture and numbers.

    Attributes:
        rgb: The frame, uint8 ``(H, W, 3)``.
        inverse_depth: By model (`DepthModel.identity`), float32 ``(H, W)``, in the order asked for.
        agreement: How well each model but the first agrees with the first (`agreement`).
    """

    rgb: NDArray[np.uint8]
    inverse_depth: dict[str, NDArray[np.float32]]
    agreement: dict[str, DepthScores]

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


def agreement(estimate: NDArray[np.floating], reference: NDArray[np.floating]) -> DepthScores:
    """Compare two estimates of one frame up to scale and shift, which a relative model leaves open.

    As `kdepth.evaluate_depth` for relative depth, with the reference as the truth in a unit of its own. What is over a
    thousand times as far as its nearest hundredth does not count: a relative error has no meaning there.

    Args:
        estimate: ``(H, W)`` inverse depth.
        reference: Inverse depth, same shape.

    Raises:
        ValueError: As `kdepth.evaluate_depth`.
    """
    near = np.nanpercentile(reference, 99)
    far = 1e3 / float(near) if near > 0 else 1.0
    return evaluate_depth(estimate, reference, kind="relative", min_depth_m=0.0, max_depth_m=far)
