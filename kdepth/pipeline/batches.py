"""Frames of clips in batches for a model: cut where a shot begins, and shared by several clips on a GPU."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdepth.dataset.shots import ShotDetector
from kdepth.video.frames import Frame

if TYPE_CHECKING:  # it imports torch when used, which workers that only download must not wait for
    from kdepth.models.base import ClipDepth, DepthModel

T = TypeVar("T")


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


class _Asked(NamedTuple):
    rgb: NDArray[np.uint8]
    after: ClipDepth | None
    found: Future[ClipDepth]


class SharedModel:
    """One model for several clips at once: a thread computes, and puts what waits for it into one batch.

    A model that remembers anything of a call gets each clip's frames alone: its first call tells.

    Args:
        model: The model.
        cpus: Cores that all clips share for decoding and encoding. First come, first served: the model has its first
            frames after one clip's decoding, not after that of all that began together.
    """

    def __init__(self, model: DepthModel, cpus: int) -> None:
        self._model = model
        self._cpus = threading.Semaphore(cpus)
        self._thread = ThreadPoolExecutor(1, "kdepth-model")
        self._waiting: deque[_Asked] = deque()
        self._is_stateless: bool | None = None

    def on_cpu(self, work: Callable[..., T], *args: Any) -> T:
        """Decode or encode when a core is free."""
        with self._cpus:
            return work(*args)

    def estimate(self, rgb: NDArray[np.uint8], *, after: ClipDepth | None = None) -> ClipDepth:
        """As `DepthModel.estimate`."""
        asked = _Asked(rgb, after, Future())
        self._waiting.append(asked)
        self._thread.submit(self._compute_some)
        return asked.found.result()

    def _compute_some(self) -> None:
        """One batch of those who wait, the first of them and others with frames of its size."""
        if not self._waiting:
            return  # all were in batches of others
        batch = [self._waiting.popleft()]
        room = self._model.batch_size - len(batch[0].rgb) if self._is_stateless else 0
        kept: list[_Asked] = []
        while self._waiting and room > 0:
            asked = self._waiting.popleft()
            fits = asked.rgb.shape[1:] == batch[0].rgb.shape[1:] and len(asked.rgb) <= room
            (batch if fits else kept).append(asked)
            room -= len(asked.rgb) if fits else 0
        self._waiting.extendleft(reversed(kept))
        self._answer(batch)

    def _answer(self, batch: list[_Asked]) -> None:
        try:
            results = self._results(batch)
        except BaseException as error:
            if len(batch) == 1:
                batch[0].found.set_exception(error)
                return
            for asked in batch:  # whose frames it was is seen when each clip is alone
                self._answer([asked])
            return
        for asked, result in zip(batch, results, strict=True):
            asked.found.set_result(result)

    def _results(self, batch: list[_Asked]) -> list[ClipDepth]:
        if len(batch) == 1:
            result = self._model.estimate(batch[0].rgb, after=batch[0].after)
            if not self._is_stateless:  # once it has remembered something, no later answer makes it stateless
                self._is_stateless = result.memory is None and self._is_stateless is None
            return [result]
        result = self._model.estimate(np.concatenate([asked.rgb for asked in batch]))
        ends = np.cumsum([len(asked.rgb) for asked in batch])[:-1]
        focal = result.focal_length_px
        focals = [None] * len(batch) if focal is None else np.split(focal, ends)
        return list(map(type(result), np.split(result.inverse_depth, ends), focals))
