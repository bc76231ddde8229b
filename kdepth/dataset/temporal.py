"""Depth over time: how much its scale jumps between frames, and a view of it without the jumps.

Single-image models look at each frame alone, so the scale of their depth may jump from one frame to the next. Where the
picture does not change, depth should not change either: on those pixels a jump can be measured and removed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Every eighth pixel in both directions: 3,600 values of a 640 x 360 frame. All of them give jumps some 2 % different.
_STRIDE = 8
# A pixel whose grey value changes by no more than this between frames shows the same thing (sensor noise is about 2).
_STEADY_GREY_LEVELS = 4
# Two unrelated pictures agree that well in about 5 to 10 % of their pixels.
_MIN_STEADY = 0.15
# What looks the same does not come 2 % nearer from one frame to the next, nor 50 % within a second where frames are
# rare: a larger change is the model's.
_JUMP = 0.02
_JUMP_A_SECOND = 0.5


def sampled(inverse_depth: NDArray[np.floating]) -> NDArray[np.float32]:
    """Take the pixels that statistics over time are made of: float32 ``(H / 8, W / 8)`` of ``(H, W)``."""
    return np.ascontiguousarray(inverse_depth[::_STRIDE, ::_STRIDE], np.float32)


def steady_grey(rgb: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Compute grey values of the same pixels: int16 ``(H / 8, W / 8)`` of uint8 ``(H, W, 3)``."""
    red, green, blue = np.moveaxis(rgb[::_STRIDE, ::_STRIDE], 2, 0)
    grey: NDArray[np.int16] = (red.astype(np.int16) + green + blue) // 3  # a tenth of the time of a mean over that axis
    return grey


def scale_step(
    grey_before: NDArray[Any], depth_before: NDArray[Any], grey_after: NDArray[Any], depth_after: NDArray[Any]
) -> float:
    """Measure how the scale of depth changes between two neighbouring frames, as `scale_steps` does; NaN: unknown."""
    steady = np.abs(grey_after - grey_before) <= _STEADY_GREY_LEVELS
    steady &= (depth_before > 0) & (depth_after > 0)
    if np.count_nonzero(steady) < _MIN_STEADY * steady.size:
        return np.nan
    return float(np.log(np.median(depth_after[steady] / depth_before[steady])))


def scale_steps(
    frames: Iterable[tuple[int, NDArray[np.int16], NDArray[np.float32]]], cuts: Collection[int] = ()
) -> NDArray[np.float64]:
    """Measure how the scale of depth changes from each frame to the next.

    The median of ``log(after / before)`` over the pixels whose colour hardly changed: a camera at rest gives 0, a scale
    that is 5 % larger in the second frame gives 0.05.

    Args:
        frames: Number, `steady_grey` and `sampled` of each frame, in order.
        cuts: Numbers of the frames that begin another shot: they are not compared with the frame before.

    Returns:
        ``(N,)`` log ratios; NaN for the first frame, at cuts, after a gap, and where too few pixels are steady to tell
        (a fast pan).
    """
    steps: list[float] = []
    last: tuple[int, NDArray[np.int16], NDArray[np.float32]] | None = None
    for index, grey, depth in frames:
        is_next = last is not None and last[0] == index - 1 and index not in cuts
        steps.append(scale_step(*last[1:], grey, depth) if last is not None and is_next else np.nan)
        last = index, grey, depth
    return np.array(steps)


def stabilising_scales(steps: NDArray[np.float64], time_seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute for each frame of a clip the scale that removes the jumps before it.

    Where the scale jumps by more than 2 % (50 % a second where there are fewer than 25 frames a second), this frame and
    all that follow are divided by the ratio. Smaller changes stay. (No shift is fitted: chained over hundreds of
    frames, fits with a shift lose the scale.)

    Args:
        steps: ``(N,)``, from `scale_steps`.
        time_seconds: ``(N,)`` of the frames.

    Returns:
        ``(N,)``: a frame's stable inverse depth is ``scale * inverse_depth``.
    """
    seconds = np.diff(time_seconds, prepend=time_seconds[:1])
    is_jump = np.abs(steps) > np.maximum(_JUMP, _JUMP_A_SECOND * seconds)  # NaN is no jump
    scales: NDArray[np.float64] = np.exp(-np.cumsum(np.where(is_jump, steps, 0)))
    return scales


def steady_focal_length(focal_length_px: NDArray[np.float64], time_seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smooth the focal length of each frame: the median within a second before and after, ``(N,)`` px."""
    first = np.searchsorted(time_seconds, time_seconds - 1.0)
    behind = np.searchsorted(time_seconds, time_seconds + 1.0, side="right")
    return np.array([np.median(focal_length_px[i:j]) for i, j in zip(first, behind, strict=True)])
