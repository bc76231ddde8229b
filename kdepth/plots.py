"""Pictures for notebooks: RGB beside depth, the timeline of a run. Each takes data and draws on figures of its own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kdepth.dataset import Clip

# Perceptually uniform, dark to bright: near is bright.
_COLOUR_MAP = "inferno"
_STAGES = {"download": "#4c78a8", "transcode": "#f58518", "depth": "#54a24b"}


def unit(clip: Clip) -> str:
    """Unit of a clip's inverse depth, for a colour bar."""
    return "inverse depth [1/m]" if clip.row["depth_kind"] == "metric" else "inverse depth [relative]"


def robust_limits(*inverse_depth: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Colour limits that a few stray pixels do not decide: the 1st and 99th percentile of all the arrays together."""
    values = np.concatenate([array.ravel()[::7] for array in inverse_depth])
    low, high = (float(value) for value in np.percentile(values, (1, 99)))
    return low, max(high, low + 1e-6)


def show_inverse_depth(
    inverse_depth: NDArray[np.floating[Any]],
    *,
    ax: Axes | None = None,
    limits: tuple[float, float] | None = None,
    label: str = "inverse depth [relative]",
) -> Axes:
    """Draw one depth frame with a colour bar; near is bright.

    Args:
        inverse_depth: ``(H, W)``.
        ax: Where to draw; default: a new figure.
        limits: Colour limits, to be shared by pictures that are compared; default: `robust_limits`.
        label: Of the colour bar, with the unit.
    """
    if ax is None:
        ax = plt.figure(layout="constrained").add_subplot()
    low, high = limits or robust_limits(inverse_depth)
    image = ax.imshow(inverse_depth, cmap=_COLOUR_MAP, vmin=low, vmax=high)
    ax.figure.colorbar(image, ax=ax, label=label, fraction=0.035, pad=0.02)
    ax.set_axis_off()
    return ax


def show_clips(clips: Sequence[Clip], *, frames_per_clip: int = 3) -> Figure:
    """RGB over depth for some frames of each clip, one clip a row; the colour limits are shared within a clip.

    Args:
        clips: Clips with status ok.
        frames_per_clip: Frames of each, spread evenly over those that have depth.
    """
    if not clips:
        raise ValueError("clips is empty: there is nothing to show")
    columns = min(frames_per_clip, max(len(clip.depth_indices) for clip in clips))
    figure = plt.figure(figsize=(3.6 * 2 * columns, 2.35 * len(clips)), layout="constrained")
    for figure_row, clip in zip(figure.subfigures(len(clips), 1, squeeze=False)[:, 0], clips, strict=True):
        have = clip.depth_indices
        picks = sorted({have[round(k)] for k in np.linspace(0, len(have) - 1, columns)})
        depths = [clip.inverse_depth(index) for index in picks]
        limits = robust_limits(*depths)
        label = clip.row["label"] or "no label"
        figure_row.suptitle(f"{clip.clip_id}  ({label}), depth by {clip.row['depth_model']}", fontsize=9)
        axes = figure_row.subplots(1, 2 * columns, squeeze=False)[0]
        for ax in axes:
            ax.set_axis_off()
        for k, (index, depth) in enumerate(zip(picks, depths, strict=True)):
            axes[2 * k].imshow(clip.frame(index))
            axes[2 * k].set_title(f"frame {index}", fontsize=8)
            image = axes[2 * k + 1].imshow(depth, cmap=_COLOUR_MAP, vmin=limits[0], vmax=limits[1])
        figure_row.colorbar(image, ax=list(axes), label=unit(clip), fraction=0.02, pad=0.01)
    return figure


def timeline(rows: pa.Table, *, ax: Axes | None = None) -> Axes:
    """What each stage did when: one line a clip, one bar a stage, in order of the first start.

    Args:
        rows: Rows with the columns ``clip_id``, ``status``, ``*_started_at`` and ``*_seconds``.
        ax: Where to draw; default: a new figure.
    """
    table = [row for row in rows.to_pylist() if any(row[f"{stage}_started_at"] for stage in _STAGES)]
    if not table:
        raise ValueError("rows: no row says when a stage began")

    def began(row: dict[str, Any]) -> datetime:
        times: list[datetime] = [row[f"{stage}_started_at"] for stage in _STAGES if row[f"{stage}_started_at"]]
        return min(times)

    table.sort(key=began)
    start = began(table[0])
    if ax is None:
        ax = plt.figure(figsize=(11, 1 + 0.22 * min(len(table), 60)), layout="constrained").add_subplot()
    for stage, colour in _STAGES.items():
        bars = [(line, row) for line, row in enumerate(table) if row[f"{stage}_started_at"]]
        ax.barh(
            [line for line, _ in bars],
            [row[f"{stage}_seconds"] or 0 for _, row in bars],
            left=[(row[f"{stage}_started_at"] - start).total_seconds() for _, row in bars],
            color=colour,
            label=stage,
        )
    if len(table) <= 60:
        ax.set_yticks(range(len(table)), [row["clip_id"] for row in table], fontsize=7)
    else:
        ax.set_ylabel("clip")
    ax.invert_yaxis()
    ax.set_xlabel("seconds since the first stage began")
    ax.legend(loc="lower right")
    return ax
