"""Frames of clips in batches for a model: cut where a shot begins, and shared by several clips on a GPU."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdepth.dataset.shots import ShotDetector
from kdepth.video.frames import Frame

if TYPE_CHECKING:  # it imports torch when used, which workers that only download must not wait for
    from kdepth.models.base import ClipDepth, DepthModel


class Batch(NamedTuple):
    """Frames in order, ``rgb`` uint8 ``(N, H, W, 3)``; and whether the first of them is the first of a shot."""

    frames: list[Frame]
    rgb: NDArray[np.uint8]
    starts_shot: bool


def batched(frames: Iterator[Frame], size: int, shots: list[int] | None) -> Iterator[Batch]:
    """Put frames into batches of at most `size`.

    Args:
        frames: Of one clip.
        size: Of a batch.
        shots: A list that the first frame of each shot is added to, if these are all frames of the clip; a batch then
            ends where a shot does. None: the frames are some of a clip, and belong together.
    """
    marked = ((frame, False) for frame in frames) if shots is None else _with_shots(frames, shots)
    item = next(marked, None)
    while item is not None:
        first, starts_shot = item
        rgb = np.empty((size, *first.rgb.shape), np.uint8)
        batch: list[Frame] = []
        while item is not None and len(batch) < size and not (batch and item[1]):
            rgb[len(batch)] = item[0].rgb  # while the cache has it; and its own memory is for the next one
            batch.append(item[0]._replace(rgb=rgb[len(batch)]))
            item = next(marked, None)
        yield Batch(batch, rgb[: len(batch)], starts_shot)


def _with_shots(frames: Iterator[Frame], shots: list[int]) -> Iterator[tuple[Frame, bool]]:
    """Each frame, and whether a shot begins with it, which is known when the next one was looked at."""
    detector = ShotDetector()
    held: Frame | None = None
    for frame in frames:
        detector.add(frame.rgb)
        if held is not None:
            yield held, held.index in detector.shots
        held = frame
    shots += detector.finish()
    if held is not None:
        yield held, held.index in shots


class SharedModel:
    """One model for several clips at once: the threads that wait for it put their frames into one batch.

    Only one thread computes at a time. A model that remembers anything of a call gets each clip's frames alone: its
    first call tells.
    """

    def __init__(self, model: DepthModel) -> None:
        self._model = model
        self._turn = threading.Lock()
        self._waiting: deque[tuple[NDArray[np.uint8], Future[ClipDepth]]] = deque()
        self._is_stateless: bool | None = None

    def estimate(self, rgb: NDArray[np.uint8], *, after: ClipDepth | None = None) -> ClipDepth:
        """As `DepthModel.estimate`."""
        if not self._is_stateless:
            with self._turn:
                if not self._is_stateless:
                    result = self._model.estimate(rgb, after=after)
                    # Once it has remembered something, no later answer makes it stateless.
                    self._is_stateless = result.memory is None and self._is_stateless is None
                    return result
        found: Future[ClipDepth] = Future()
        self._waiting.append((rgb, found))
        with self._turn:
            while not found.done():
                self._compute_some()
        return found.result()

    def _compute_some(self) -> None:
        """One batch of those who wait, the first of them and others with frames of its size."""
        batch = [self._waiting.popleft()]
        room = self._model.batch_size - len(batch[0][0])
        kept: list[tuple[NDArray[np.uint8], Future[ClipDepth]]] = []
        while self._waiting and room > 0:
            item = self._waiting.popleft()
            fits = item[0].shape[1:] == batch[0][0].shape[1:] and len(item[0]) <= room
            (batch if fits else kept).append(item)
            room -= len(item[0]) if fits else 0
        self._waiting.extendleft(reversed(kept))
        self._answer(batch)

    def _answer(self, batch: list[tuple[NDArray[np.uint8], Future[ClipDepth]]]) -> None:
        try:
            result = self._model.estimate(np.concatenate([rgb for rgb, _ in batch]) if len(batch) > 1 else batch[0][0])
        except BaseException as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:  # whose frames it was is seen when each clip is alone
                for item in batch:
                    self._answer([item])
            return
        start = 0
        for rgb, found in batch:
            part = slice(start, start := start + len(rgb))
            focal = result.focal_length_px
            found.set_result(type(result)(result.inverse_depth[part], None if focal is None else focal[part]))
