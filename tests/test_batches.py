"""Frames in batches: cut at shots, shared by clips."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import kdepth
from kdepth.errors import DepthError
from kdepth.pipeline.batches import SharedModel, batched
from kdepth.video.frames import Frame


def film(*shots: int, size: tuple[int, int] = (36, 64)) -> Iterator[Frame]:
    """Frames of shots of so many frames, each of another noise that hardly moves."""
    rng, index = np.random.default_rng(3), 0
    for length in shots:
        picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        for _ in range(length):
            yield Frame(index, index / 10, picture)
            index += 1


@pytest.mark.parametrize(
    ("lengths", "size", "batches"),
    [
        ((20,), 8, [8, 8, 4]),
        ((10, 11), 8, [8, 2, 8, 3]),
        ((8, 8), 8, [8, 8]),
        ((9, 8, 8), 4, [4, 4, 1, 4, 4, 4, 4]),
        ((1,), 8, [1]),
        ((), 8, []),
    ],
)
def test_a_batch_ends_where_a_shot_does(lengths: tuple[int, ...], size: int, batches: list[int]) -> None:
    shots: list[int] = []
    found = list(batched(film(*lengths), size, shots))
    assert [len(batch.frames) for batch in found] == batches
    assert [batch.frames[0].index for batch in found if batch.starts_shot] == shots
    assert shots == list(np.cumsum([0, *lengths])[: len(lengths)])
    assert [frame.index for batch in found for frame in batch.frames] == list(range(sum(lengths)))
    for batch in found:
        assert all((frame.rgb == rgb).all() for frame, rgb in zip(batch.frames, batch.rgb, strict=True))
    # Some frames of a clip: nothing is known of its shots.
    some = list(batched(film(*lengths), size, None))
    assert [len(batch.frames) for batch in some] == [min(size, sum(lengths) - i) for i in range(0, sum(lengths), size)]


class Recorded:
    """A model that says what it was given, and lets the first call wait until the others have come."""

    def __init__(self, remembers: bool = False, fails_at: int | None = None) -> None:
        self.sizes: list[int] = []
        self.go, self.began = threading.Event(), threading.Event()
        self._remembers, self._fails_at = remembers, fails_at
        self.model = kdepth.DepthModel(self._predict, kind="metric", name="net", batch_size=4)

    def _predict(self, frames: Any, focal_length_px: float | None, before: Any) -> Any:
        self.sizes.append(len(frames))
        if len(self.sizes) == 2:  # the first call tells whether it remembers
            self.began.set()
            assert self.go.wait(30)
        values = frames[:, 0].float()
        if self._fails_at is not None and (values == self._fails_at).any():
            values = values * float("nan")
        return values, torch.arange(1.0, len(frames) + 1), len(frames) if self._remembers else None


def constant(value: int, count: int, width: int = 8) -> np.ndarray:
    return np.full((count, 6, width, 3), value, np.uint8)


def together(recorded: Recorded, *requests: np.ndarray) -> list[Any]:
    """Ask for the second request while the third and further ones come; the results, or errors, in order."""
    shared = SharedModel(recorded.model, 2)
    shared.estimate(requests[0])
    with ThreadPoolExecutor(len(requests)) as pool:
        first = pool.submit(shared.estimate, requests[1])
        assert recorded.began.wait(30)
        others = []
        for number, request in enumerate(requests[2:], 1):
            others.append(pool.submit(shared.estimate, request))
            while len(shared._waiting) < number and shared._is_stateless:
                threading.Event().wait(0.001)
        recorded.go.set()
        return [future.exception() or future.result() for future in (first, *others)]


def test_clips_that_wait_share_a_batch_and_get_their_own() -> None:
    recorded = Recorded()
    results = together(
        recorded, constant(9, 1), constant(1, 2), constant(2, 1), constant(3, 1, width=10), constant(4, 2)
    )
    assert recorded.sizes == [1, 2, 3, 1]  # 2 and 4 are of one size; 3 is another
    for result, (value, count) in zip(results, [(1, 2), (2, 1), (3, 1), (4, 2)], strict=True):
        assert (result.inverse_depth == value).all()
        assert len(result.inverse_depth) == count
    np.testing.assert_array_equal(results[3].focal_length_px, [2, 3])


def test_a_bad_frame_is_its_own_clips_failure() -> None:
    good, bad, other = together(Recorded(fails_at=7), constant(9, 1), constant(1, 1), constant(7, 1), constant(2, 1))
    assert isinstance(bad, DepthError)
    assert (good.inverse_depth == 1).all()
    assert (other.inverse_depth == 2).all()


def test_a_model_that_remembers_gets_each_clip_alone() -> None:
    recorded = Recorded(remembers=True)
    results = together(recorded, constant(9, 1), constant(1, 2), constant(2, 1), constant(4, 1))
    assert recorded.sizes == [1, 2, 1, 1]
    assert [result.memory for result in results] == [2, 1, 1]


def test_no_more_clips_are_decoded_at_once_than_there_are_cores() -> None:
    shared, lock = SharedModel(Recorded().model, 2), threading.Lock()
    busy, most, both = 0, 0, threading.Barrier(2)

    def work() -> None:
        nonlocal busy, most
        with lock:
            busy, most = busy + 1, max(most, busy + 1)
        both.wait(30)  # two work at once, though
        with lock:
            busy -= 1

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(shared.on_cpu, work) for _ in range(400)]:  # fewer might never meet
            done.result()
    assert most == 2
