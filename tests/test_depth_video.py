from pathlib import Path

import cv2
import numpy as np
import pytest

from kdepth.errors import DatasetError
from kdepth.video.depth_file import DepthWriter, read_depth, read_depth_at


def write(path: Path, frames: list[np.ndarray], fps: float = 30000 / 1001) -> list[np.ndarray]:
    height, width = frames[0].shape
    with DepthWriter(path, width, height) as writer:
        for index, frame in enumerate(frames):
            writer.write(frame, index / fps)
    return [frame.astype(np.float16) for frame in frames]


@pytest.fixture
def frames(random_generator: np.random.Generator) -> list[np.ndarray]:
    """Every kind of value that fits: 0, subnormals, the largest."""
    frames = [random_generator.lognormal(0, 3, (90, 160)).clip(0, 65504).astype(np.float32) for _ in range(12)]
    frames[3][0, :3] = 0, 6e-8, 65504
    return frames


def test_what_was_stored_comes_back_bit_for_bit(tmp_path: Path, frames: list[np.ndarray]) -> None:
    stored = write(tmp_path / "depth.mkv", frames)
    read = list(read_depth(tmp_path / "depth.mkv"))
    assert len(read) == len(stored)
    assert all(np.array_equal(a.view(np.uint16), b.view(np.uint16)) for a, b in zip(read, stored, strict=True))


def test_opencv_alone_reads_the_same_bits(tmp_path: Path, frames: list[np.ndarray]) -> None:
    stored = write(tmp_path / "depth.mkv", frames)
    capture = cv2.VideoCapture(str(tmp_path / "depth.mkv"))
    capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
    for half in stored:
        there, bits = capture.read()
        assert there
        assert np.array_equal(bits.view(np.float16).reshape(half.shape), half)
    assert not capture.read()[0]


@pytest.mark.parametrize("fps", [0.5, 24, 30000 / 1001, 120])
def test_any_frame_opens_on_its_own(tmp_path: Path, frames: list[np.ndarray], fps: float) -> None:
    stored = write(tmp_path / "depth.mkv", frames, fps)
    for index in (11, 0, 5, 3, 10):
        assert np.array_equal(read_depth_at(tmp_path / "depth.mkv", index / fps), stored[index])
    with pytest.raises(DatasetError, match="no frame at"):
        read_depth_at(tmp_path / "depth.mkv", 12 / fps + 1)


def test_frames_at_one_time_are_told_apart_by_their_checksums(tmp_path: Path, frames: list[np.ndarray]) -> None:
    times = [0.04 * (index // 4) + 1e-5 * index for index in range(12)]
    with DepthWriter(tmp_path / "depth.mkv", 160, 90) as writer:
        checksums = [writer.write(frame, time) for frame, time in zip(frames, times, strict=True)]
    for frame, time, checksum in zip(frames, times, checksums, strict=True):
        assert np.array_equal(read_depth_at(tmp_path / "depth.mkv", time, checksum), frame.astype(np.float16))
    for time in times:
        with pytest.raises(DatasetError, match="is damaged"):
            read_depth_at(tmp_path / "depth.mkv", time, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, -0.0, 65520.0])
def test_what_is_no_inverse_depth_is_refused_and_leaves_no_file(tmp_path: Path, bad: float) -> None:
    frame = np.ones((90, 160), np.float32)
    frame[40, 50] = bad
    with pytest.raises(ValueError, match="finite and >= 0"), DepthWriter(tmp_path / "depth.mkv", 160, 90) as writer:
        writer.write(frame, 0.0)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_an_error_not_a_wrong_picture(tmp_path: Path, frames: list[np.ndarray]) -> None:
    path = tmp_path / "depth.mkv"
    with DepthWriter(path, 160, 90) as writer:
        checks = [writer.write(frame, index / 30) for index, frame in enumerate(frames)]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    broken = []
    for index, crc32 in enumerate(checks):
        try:
            read_depth_at(path, index / 30, crc32)
        except DatasetError as error:
            broken.append(str(error))
    assert len(broken) == 1
    assert "is damaged" in broken[0]
    path.write_bytes(content[:2000])
    with pytest.raises(DatasetError):
        read_depth_at(path, 11 / 30, checks[11])
    with pytest.raises(DatasetError):
        list(read_depth(tmp_path / "missing.mkv"))
