"""From a 360p clip to its depth file and the statistics that go into its row."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kdepth.dataset.temporal import sampled, scale_step, steady_grey
from kdepth.errors import DepthError
from kdepth.pipeline.batches import Batch, SharedModel, batched
from kdepth.schema import THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH
from kdepth.video.depth_file import DepthWriter
from kdepth.video.frames import Frame, count_frames, read_frames

if TYPE_CHECKING:  # models imports torch, which workers that only download must not wait for
    from kdepth.models.base import ClipDepth, DepthModel


# Quantiles and thumbnail are made of every fourth pixel in both directions, 14,400 of a 640 x 360 frame.
_STRIDE = 4
MAX_ASPECT_RATIO = 10.0
MAX_CLIP_PIXELS = 1e10  # ten minutes at 60 frames/s of 640 x 360 have 8.3e9


def frames_name(frames: str | float) -> str:
    """`frames` as rows name it, one name for one choice: a notebook's parameter may be 2, 2.0 or ``"2"``."""
    try:
        rate = float(frames)
    except ValueError:
        return str(frames)
    return str(int(rate)) if rate.is_integer() else str(rate)


def frame_selector(frames: str, num_frames: int) -> Callable[[int, float], bool]:
    """Which frames of a clip get depth.

    Args:
        frames: ``"all"``; ``"middle"``: the one at ``num_frames // 2``; ``"first"``; or frames per second as a
            number, such as ``"2"``: the first frame at or after each multiple of 0.5 s.
        num_frames: Frames in the clip.

    Returns:
        A function of a frame's index and time in seconds, to be called in presentation order.

    Raises:
        ValueError: `frames` is none of these.
    """
    if frames == "all":
        return lambda index, time_seconds: True
    if frames in ("first", "middle"):
        only = 0 if frames == "first" else num_frames // 2
        return lambda index, time_seconds: index == only
    try:
        rate = float(frames)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ValueError(f'frames={frames!r}: must be "all", "middle", "first" or a number of frames per second > 0')
    next_tick = 0

    def on_tick(index: int, time_seconds: float) -> bool:
        nonlocal next_tick
        # Times come from integer time bases: a frame meant for a tick may lie a rounding error before it.
        tick = math.floor(time_seconds * rate + 1e-6)
        if tick < next_tick:
            return False
        next_tick = tick + 1
        return True

    return on_tick


def estimate_clip_depth(
    video: str | Path,
    destination: str | Path,
    model: DepthModel,
    *,
    frames: str | float = "all",
    num_frames: int | None = None,
    max_aspect_ratio: float = MAX_ASPECT_RATIO,
    max_clip_pixels: float = MAX_CLIP_PIXELS,
    shared: SharedModel | None = None,
) -> dict[str, Any]:
    """Estimate the depth of a clip's frames and write them to a depth file.

    The next batch is decoded and the last one encoded in threads of their own while the model computes; where the model
    has a single thread of a CPU, one after the other.

    Args:
        video: A 360p file made by `transcode_file`.
        destination: The ``.mkv`` depth file to make; appears whole or not at all.
        model: From `load_model`.
        frames: Which frames: see `frame_selector`.
        num_frames: Frames in the clip if known (only ``"middle"`` needs it, and counts otherwise).
        max_aspect_ratio: A clip is refused whose longer side is more than so many times its shorter one.
        max_clip_pixels: A clip is refused whose frames with depth have more pixels than this, all together.
        shared: `model` and the cores, shared with other clips that are estimated at the same time.

    Returns:
        The columns of the clip's row that this stage fills: ``depth_bytes``, ``depth_model``, ``depth_kind``,
        ``depth_frames``, ``num_depth_frames``, ``frames``, ``depth_thumbnail``, ``flicker`` and
        ``shots`` (None unless `frames` is "all").

    Raises:
        ValueError: `frames` is not one of the allowed values.
        DatasetError: The clip can't be decoded.
        DepthError: The clip has no frame or is larger than allowed, or the model gave depth that can't be stored.
    """
    import torch  # already there with the model

    frames = frames_name(frames)
    if frames == "middle" and num_frames is None:
        num_frames = count_frames(video)
    shots: list[int] | None = [] if frames == "all" else None
    chosen = read_frames(video, frame_selector(frames, num_frames or 0) if shots is None else None)
    batches = batched(chosen, model.batch_size, shots)
    batch = shared.on_cpu(next, batches, None) if shared else next(batches, None)
    if batch is None:
        raise DepthError(f"{video} has no frame to estimate depth of")
    statistics = _ClipStatistics()
    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    height, width = batch.rgb.shape[1:3]
    if (ratio := max(height, width) / min(height, width)) > max_aspect_ratio:
        raise DepthError(f"the clip is {width}x{height}, a ratio of {ratio:.1f}; max_aspect_ratio={max_aspect_ratio:g}")
    most_frames = int(max_clip_pixels / (height * width))
    if frames == "all" and (num_frames or 0) > most_frames:
        raise _too_large(num_frames, width, height, max_clip_pixels)
    estimate = (shared or model).estimate
    with DepthWriter(destination, width, height) as writer, ThreadPoolExecutor(2) as pool:
        # Three threads on one core would drive each other's data out of its cache: 4 % of the time.
        submit = _at_once if model.device == "cpu" and torch.get_num_threads() == 1 else pool.submit
        if shared:
            submit = functools.partial(pool.submit, shared.on_cpu)  # type: ignore[arg-type]  # mypy loses its types
        written: Future[None] = _at_once(lambda: None)
        result: ClipDepth | None = None
        num_done = 0
        while batch is not None:
            if (num_done := num_done + len(batch.frames)) > most_frames:
                raise _too_large(f"over {most_frames}", width, height, max_clip_pixels)
            decoded: Future[Batch | None] = submit(next, batches, None)
            result = estimate(batch.rgb, after=None if batch.starts_shot else result)
            written.result()  # frames must enter the encoder in order
            written = submit(_store, writer, statistics, batch, result)
            batch = decoded.result()
        written.result()
    return {
        "depth_bytes": destination.stat().st_size,
        "depth_model": model.identity,
        "depth_kind": model.kind,
        "depth_frames": frames,
        "num_depth_frames": len(statistics.frames),
        "frames": statistics.frames,
        "depth_thumbnail": statistics.thumbnail(),
        "flicker": statistics.flicker(),
        "shots": shots,
    }


def _too_large(num_frames: object, width: int, height: int, max_clip_pixels: float) -> DepthError:
    return DepthError(
        f"{num_frames} frames of {width}x{height} are too many pixels; max_clip_pixels={max_clip_pixels:g}"
    )


def _at_once(work: Callable[..., Any], *args: Any) -> Future[Any]:
    """As an executor's `submit`, without one."""
    future: Future[Any] = Future()
    future.set_result(work(*args))
    return future


def _store(writer: DepthWriter, statistics: _ClipStatistics, batch: Batch, result: ClipDepth) -> None:
    import torch  # 50 times as fast as NumPy at this, to the same bits

    half = torch.empty(result.inverse_depth.shape[1:], dtype=torch.half)
    for i, frame in enumerate(batch.frames):
        # What is stored, not what was computed, is what the statistics describe.
        stored = half.copy_(torch.from_numpy(result.inverse_depth[i])).numpy()
        focal_length = None if result.focal_length_px is None else float(result.focal_length_px[i])
        row = statistics.add(frame, stored, focal_length, starts_shot=batch.starts_shot and i == 0)
        try:
            row["crc32"] = writer.write(stored, frame.time_seconds)
        except ValueError as exc:
            raise DepthError(f"frame {frame.index}: the model's {exc}") from exc


class _ClipStatistics:
    """Gathers, frame by frame, what a clip's row says of its depth."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self._thumbnail_sum = np.zeros((THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH), np.float64)
        self._jumps: list[float] = []
        self._last: tuple[NDArray[np.int16], NDArray[np.float32]] | None = None

    def add(
        self, frame: Frame, inverse_depth: NDArray[np.float16], focal_length_px: float | None, *, starts_shot: bool
    ) -> dict[str, Any]:
        """The frame's entry of the row's ``frames``, without the checksum of what is written for it."""
        bits = inverse_depth.view(np.uint16)  # half floats >= 0 have the order of their bits, which is faster to find
        every_fourth = inverse_depth[::_STRIDE, ::_STRIDE]
        p05, median, p95 = np.quantile(every_fourth.astype(np.float64), (0.05, 0.5, 0.95)).tolist()
        self.frames.append(
            {
                "index": frame.index,
                "time_seconds": frame.time_seconds,
                "focal_length_px": focal_length_px,
                "min": float(bits.min().view(np.float16)),
                "p05": p05,
                "median": median,
                "p95": p95,
                "max": float(bits.max().view(np.float16)),
            }
        )
        size = (THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT)
        self._thumbnail_sum += cv2.resize(every_fourth.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        sample, grey = sampled(inverse_depth), steady_grey(frame.rgb)
        if self._last is not None and self.frames[-2]["index"] == frame.index - 1 and not starts_shot:
            jump = abs(scale_step(*self._last, grey, sample))
            if not np.isnan(jump):
                self._jumps.append(jump)
        self._last = grey, sample
        return self.frames[-1]

    def thumbnail(self) -> list[float]:
        mean: list[float] = (self._thumbnail_sum / len(self.frames)).ravel().tolist()
        return mean

    def flicker(self) -> float | None:
        return float(np.mean(self._jumps)) if self._jumps else None
