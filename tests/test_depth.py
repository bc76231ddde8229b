import subprocess
from pathlib import Path

import numpy as np
import pytest

import kdepth
from kdepth.errors import DatasetError, DepthError
from kdepth.models.base import DepthModel
from kdepth.models.load import load_model
from kdepth.pipeline.clip_depth import MAX_CLIP_PIXELS, estimate_clip_depth, frame_selector
from kdepth.samples import rendered_clips
from kdepth.video.depth_file import read_depth
from kdepth.video.ffmpeg import ffmpeg_path
from kdepth.video.frames import read_frames


@pytest.fixture(scope="module")
def model() -> DepthModel:
    return load_model("small")


@pytest.fixture(scope="module")
def clip() -> Path:
    return next(iter(rendered_clips().values()))


def picked(frames: str, fps: float, num_frames: int) -> list[int]:
    wanted = frame_selector(frames, num_frames)
    return [index for index in range(num_frames) if wanted(index, index / fps)]


@pytest.mark.parametrize(
    ("frames", "fps", "expected"),
    [
        ("all", 24, list(range(50))),
        ("first", 24, [0]),
        ("middle", 24, [25]),
        ("2", 24, [0, 12, 24, 36, 48]),
        ("2", 30000 / 1001, [0, 15, 30, 45]),
        ("0.5", 24, [0, 48]),
        ("1", 25, [0, 25]),
        ("100", 24, list(range(50))),  # more than there are: each once
    ],
)
def test_the_right_frames_are_taken(frames: str, fps: float, expected: list[int]) -> None:
    assert picked(frames, fps, 50) == expected


@pytest.mark.parametrize("frames", ["", "none", "0", "-1", "nan", "inf"])
def test_other_values_of_frames_are_named(frames: str) -> None:
    with pytest.raises(ValueError, match="frames="):
        frame_selector(frames, 10)


def test_one_depth_frame_for_each_frame_with_its_statistics(model: DepthModel, clip: Path, tmp_path: Path) -> None:
    row = estimate_clip_depth(clip, tmp_path / "depth" / "clip.mkv", model)
    video = list(read_frames(clip))
    depth = [frame.astype(np.float32) for frame in read_depth(tmp_path / "depth" / "clip.mkv")]
    assert row["num_depth_frames"] == len(depth) == len(video) == len(row["frames"])
    assert (row["depth_model"], row["depth_kind"], row["depth_frames"]) == (model.identity, "relative", "all")
    assert row["depth_bytes"] == (tmp_path / "depth" / "clip.mkv").stat().st_size
    for statistics, frame, inverse_depth in zip(row["frames"], video, depth, strict=True):
        assert (statistics["index"], statistics["time_seconds"]) == (frame.index, frame.time_seconds)
        assert inverse_depth.shape == frame.rgb.shape[:2]
        assert statistics["min"] == inverse_depth.min()
        assert statistics["max"] == inverse_depth.max()
        quantiles = np.quantile(inverse_depth[::4, ::4].astype(np.float64), (0.05, 0.5, 0.95))
        assert [statistics[name] for name in ("p05", "median", "p95")] == pytest.approx(quantiles)
        assert statistics["min"] <= statistics["p05"] <= statistics["median"] <= statistics["p95"] <= statistics["max"]
    assert len(row["depth_thumbnail"]) == 144
    assert np.mean(row["depth_thumbnail"]) == pytest.approx(np.mean([frame[::4, ::4] for frame in depth]), rel=1e-3)
    assert np.mean(row["depth_thumbnail"]) == pytest.approx(np.mean(depth), rel=1e-2)
    assert 0 <= row["flicker"] < 0.1


def test_the_same_clip_twice_gives_the_same_file(model: DepthModel, clip: Path, tmp_path: Path) -> None:
    for name in ("a.mkv", "b.mkv"):
        estimate_clip_depth(clip, tmp_path / name, model, frames="4")
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()
    assert sum(1 for _ in read_depth(tmp_path / "a.mkv")) > 1


def test_a_middle_frame_is_found_without_being_told_the_length(model: DepthModel, clip: Path, tmp_path: Path) -> None:
    row = estimate_clip_depth(clip, tmp_path / "depth.mkv", model, frames="middle")
    num_frames = sum(1 for _ in read_frames(clip))
    assert [frame["index"] for frame in row["frames"]] == [num_frames // 2]
    assert row["flicker"] is None


def test_depth_that_can_not_be_stored_is_an_error_and_no_file(clip: Path, tmp_path: Path) -> None:
    import torch

    def predict(frames: torch.Tensor, focal_length_px: float | None, before: None) -> tuple[torch.Tensor, None, None]:
        return -torch.zeros(len(frames), *frames.shape[2:]), None, None

    broken = DepthModel(predict, kind="relative", name="broken", revision="0", batch_size=4)
    with pytest.raises(DepthError, match="frame 0"):
        estimate_clip_depth(clip, tmp_path / "depth.mkv", broken, frames="first")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_clip_is_an_error(model: DepthModel, tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        estimate_clip_depth(tmp_path / "missing.mp4", tmp_path / "depth.mkv", model)


def test_a_clip_has_bounds_that_are_named(model: DepthModel, tmp_path: Path) -> None:
    """A small file may become a large clip, and that days of work."""
    source = tmp_path / "wide.mp4"
    picture = "testsrc2=size=364x32:rate=10:duration=1"  # 364 x 32 becomes 4096 x 360
    subprocess.run(
        [ffmpeg_path(), "-v", "error", "-f", "lavfi", "-i", picture, "-c:v", "libx264", str(source)], check=True
    )
    clip = tmp_path / "clip.mp4"
    info = kdepth.transcode_file(source, clip)
    with pytest.raises(DepthError, match=r"a ratio of 11\.4; max_aspect_ratio=10"):
        estimate_clip_depth(clip, tmp_path / "d.mkv", model)
    pixels = info.width * info.height
    allowed = {"max_aspect_ratio": 12, "max_clip_pixels": 5 * pixels}
    for frames, num_frames in (("all", 10), ("all", None), ("10", 10)):
        with pytest.raises(DepthError, match=r"frames of \d+x360 are too many pixels; max_clip_pixels="):
            estimate_clip_depth(clip, tmp_path / "d.mkv", model, frames=frames, num_frames=num_frames, **allowed)
        assert not (tmp_path / "d.mkv").exists()
    found = estimate_clip_depth(clip, tmp_path / "d.mkv", model, frames="5", num_frames=10, **allowed)
    assert found["num_depth_frames"] == 5
    assert MAX_CLIP_PIXELS > 600 * 60 * 640 * 360  # ten minutes at 60 frames/s
