"""Frames of 360p files: any choice of them is what reading them all gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from media_zoo import X264, Clip, ffmpeg

from kdepth.errors import DatasetError
from kdepth.video.frames import Frame, count_frames, read_frame_at, read_frames
from kdepth.video.transcode import transcode_file


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds that move, with several key frames and B-frames."""
    folder = tmp_path_factory.mktemp("frames")
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=320x180:rate=25:duration=6", *X264, str(folder / "raw.mp4"))
    transcode_file(folder / "raw.mp4", folder / "clip.mp4", height=180, encoder="libx264", threads=1)
    return folder / "clip.mp4"


@pytest.fixture(scope="module")
def everything(clip: Path) -> list[Frame]:
    return list(read_frames(clip))


def same(frame: Frame, other: Frame) -> bool:
    return frame[:2] == other[:2] and np.array_equal(frame.rgb, other.rgb)


CHOICES: dict[str, Callable[[int, float], bool]] = {
    "all": lambda index, time: True,
    "none": lambda index, time: False,
    "first": lambda index, time: index == 0,
    "middle": lambda index, time: index == 75,
    "last": lambda index, time: index == 149,
    "every third": lambda index, time: index % 3 == 0,
    "one a second": lambda index, time: index % 25 == 0,
    "around the key frames": lambda index, time: index % 48 in (0, 1, 46, 47),
    "the second half": lambda index, time: time >= 3,
}


@pytest.mark.parametrize("name", CHOICES)
def test_chosen_frames_are_those_of_reading_all(name: str, clip: Path, everything: list[Frame]) -> None:
    asked = []

    def wanted(index: int, time_seconds: float) -> bool:
        asked.append((index, time_seconds))
        return CHOICES[name](index, time_seconds)

    chosen = list(read_frames(clip, wanted))
    expected = [frame for frame in everything if CHOICES[name](frame.index, frame.time_seconds)]
    assert len(chosen) == len(expected)
    assert all(map(same, chosen, expected))
    assert asked == [frame[:2] for frame in everything], "each frame is asked about, once and in order"


def test_from_a_file_that_is_open(clip: Path, everything: list[Frame]) -> None:
    with clip.open("rb") as file:
        (frame,) = read_frames(file, CHOICES["middle"])
    assert same(frame, everything[75])


def test_count_is_that_of_decoding(clip: Path, everything: list[Frame]) -> None:
    assert count_frames(clip) == len(everything) == 150


def test_what_can_not_be_read(clip: Path, tmp_path: Path) -> None:
    whole = clip.read_bytes()
    for name, data in (("half.mp4", whole[: len(whole) // 2]), ("text.mp4", b"text"), ("a.mkv", Clip("a.mkv").bytes())):
        (tmp_path / name).write_bytes(data)
        for read in (lambda p: list(read_frames(p)), lambda p: list(read_frames(p, CHOICES["last"]))):
            with pytest.raises(DatasetError, match=name):
                read(tmp_path / name)
    for read_one in (count_frames, lambda p: read_frame_at(p, 0.0)):
        with pytest.raises(DatasetError, match=r"a\.mkv"):
            read_one(tmp_path / "a.mkv")
