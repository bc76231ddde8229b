"""Cuts in films that are joined from the sample clips, decoded by FFmpeg."""

from functools import cache
from itertools import pairwise

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from kdepth import samples
from kdepth.dataset.shots import ShotDetector
from kdepth.video.frames import read_frames

Frames = list[NDArray[np.uint8]]
CLIPS = [*samples.rendered_clips(), "bunny-00001_000000_000005", "carphone-01_000000_000004"]


@cache
def frames_of(clip_id: str) -> Frames:
    path = samples.rendered_clips().get(clip_id) or samples.real_clips()[clip_id][0]
    return [cv2.resize(frame.rgb, (640, 360)) for frame in read_frames(path)]  # type: ignore[misc]


def shots(frames: Frames) -> list[int]:
    detector = ShotDetector()
    for frame in frames:
        detector.add(frame)
    return detector.finish()


@pytest.mark.parametrize("clip_id", CLIPS)
def test_no_cut_is_invented(clip_id: str) -> None:
    assert shots(frames_of(clip_id)) == [0]


def test_the_cuts_of_a_real_film_are_found() -> None:
    path, _ = samples.real_clips()["bikes-00001_000000_000010"]
    # As one sees them in the pictures before and after each.
    assert shots([frame.rgb for frame in read_frames(path)]) == [0, 30, 76, 137, 187, 242]


@pytest.mark.parametrize("seed", range(4))
def test_every_cut_of_a_joined_film_is_found(seed: int) -> None:
    generator = np.random.default_rng(seed)
    order = [*generator.permutation(CLIPS), *generator.permutation(CLIPS)]
    order = [order[0], *(after for before, after in pairwise(order) if before != after)]
    film: Frames = []
    cuts = []
    for clip_id in order:
        frames = frames_of(str(clip_id))
        start, length = int(generator.integers(0, len(frames) - 40)), int(generator.integers(5, 40))
        cuts.append(len(film))
        film += frames[start : start + length]
    assert shots(film) == cuts


@pytest.mark.parametrize("size", [(64, 48), (202, 360), (1280, 720)])
def test_frames_of_any_size_will_do(size: tuple[int, int]) -> None:
    film = [cv2.resize(frame, size) for name in CLIPS[:3] for frame in frames_of(name)[:12]]
    assert shots(film) == [0, 12, 24]  # type: ignore[arg-type]


def test_a_cut_may_be_near_the_ends_and_a_flash_is_none() -> None:
    one, other = frames_of(CLIPS[0]), frames_of(CLIPS[1])
    assert shots([*one[:5], *other[:20]]) == [0, 5]
    assert shots([*one[:20], other[0]]) == [0, 20]
    assert shots([*one[:20], *other[:2]]) == [0, 20]
    flash = np.full_like(one[0], 255)
    assert shots([*one[:20], flash, *one[20:40]]) == [0]
    assert shots([one[0]] * 10) == shots([one[0]]) == [0]
    assert shots([]) == []
