from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from kdepth.errors import DatasetError
from kdepth.video.depth_file import DepthWriter, read_depth, read_depths_at


def write(path: Path, frames: list[np.ndarray], times: Sequence[float] | None = None) -> list[int]:
    """Write frames (default: at 29.97 a second), and give their checksums."""
    height, width = frames[0].shape
    times = times or [index * 1001 / 30000 for index in range(len(frames))]
    with DepthWriter(path, width, height) as writer:
        return [writer.write(frame, time) for frame, time in zip(frames, times, strict=True)]


@pytest.fixture
def frames(random_generator: np.random.Generator) -> list[np.ndarray]:
    """Every kind of value that fits: 0, subnormals, the largest."""
    frames = [random_generator.lognormal(0, 3, (90, 160)).clip(0, 65504).astype(np.float32) for _ in range(12)]
    frames[3][0, :3] = 0, 6e-8, 65504
    return frames


def test_what_was_stored_comes_back_bit_for_bit(tmp_path: Path, frames: list[np.ndarray]) -> None:
    write(tmp_path / "depth.mkv", frames)
    read = np.stack(list(read_depth(tmp_path / "depth.mkv")))
    assert np.array_equal(read.view(np.uint16), np.stack(frames).astype(np.float16).view(np.uint16))


def test_opencv_alone_reads_the_same_bits(tmp_path: Path, frames: list[np.ndarray]) -> None:
    write(tmp_path / "depth.mkv", frames)
    capture = cv2.VideoCapture(str(tmp_path / "depth.mkv"))
    capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
    for frame in frames:
        there, bits = capture.read()
        assert there
        assert np.array_equal(bits.view(np.float16).reshape(frame.shape), frame.astype(np.float16))
    assert not capture.read()[0]


@pytest.mark.parametrize("fps", [0.5, 24, 30000 / 1001, 120])
def test_any_frame_opens_on_its_own(tmp_path: Path, frames: list[np.ndarray], fps: float) -> None:
    times = [index / fps for index in range(12)]
    checks = write(tmp_path / "depth.mkv", frames, times)
    for some in ([11], [0], [5], [3, 4, 10]):
        found = read_depths_at(tmp_path / "depth.mkv", [times[k] for k in some], [checks[k] for k in some])
        assert np.array_equal(np.stack(list(found)), np.stack([frames[k] for k in some]).astype(np.float16))
    with pytest.raises(DatasetError, match=f"its frame at {12 / fps:.3f} s is not what was written"):
        list(read_depths_at(tmp_path / "depth.mkv", [times[11], 12 / fps], [checks[11], 1]))


def test_frames_at_one_time_are_told_apart_by_their_checksums(tmp_path: Path, frames: list[np.ndarray]) -> None:
    frames = [np.roll(frame, shift) for shift in range(6) for frame in frames]
    times = [0.04 * (index // 60) + 1e-5 * index for index in range(72)]  # the 60th is kept 60 ms late
    checks = write(tmp_path / "depth.mkv", frames, times)
    for frame, time, check in zip(frames, times, checks, strict=True):
        (found,) = read_depths_at(tmp_path / "depth.mkv", [time], [check])
        assert np.array_equal(found, frame.astype(np.float16))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, -0.0, 65520.0])
def test_what_is_no_inverse_depth_is_refused_and_leaves_no_file(tmp_path: Path, bad: float) -> None:
    frame = np.ones((90, 160), np.float32)
    frame[40, 50] = bad
    with pytest.raises(ValueError, match="finite and >= 0"), DepthWriter(tmp_path / "depth.mkv", 160, 90) as writer:
        writer.write(frame, 0.0)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_an_error_not_a_wrong_picture(tmp_path: Path, frames: list[np.ndarray]) -> None:
    path = tmp_path / "depth.mkv"
    times = [index / 30 for index in range(12)]
    checks = write(path, frames, times)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    broken = []
    for time, check in zip(times, checks, strict=True):
        try:
            list(read_depths_at(path, [time], [check]))
        except DatasetError as error:
            broken.append(str(error))
    assert len(broken) == 1
    assert "is damaged" in broken[0]
    for num_bytes in (2000, len(content) // 2):
        path.write_bytes(content[:num_bytes])
        with pytest.raises(DatasetError):
            list(read_depths_at(path, times, checks))
    with pytest.raises(DatasetError):
        list(read_depth(tmp_path / "missing.mkv"))
