import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import Run

import kdepth
from kdepth.clip import Clip
from kdepth.depth import estimate_clip_depth
from kdepth.depth_video import DepthWriter, read_depth
from kdepth.models import ClipDepth, DepthModel, load_model
from kdepth.samples import rendered_clips
from kdepth.schema import new_row
from kdepth.stability import scale_jump, stabilising_view, steady_focal_length


def test_a_scale_jump_is_measured_on_what_stands_still(random_generator: np.random.Generator) -> None:
    grey = random_generator.integers(0, 255, (90, 160)).astype(np.int16)
    depth = random_generator.uniform(0.1, 2, (90, 160)).astype(np.float32)
    moved_grey, moved_depth = grey.copy(), depth * 1.05
    moved_grey[:30] = 255 - grey[:30]  # a third of the picture changed, and its depth with it
    moved_depth[:30] *= 3
    assert scale_jump(grey, depth, grey, depth) == 0
    assert scale_jump(grey, depth, moved_grey, moved_depth) == pytest.approx(np.log(1.05), abs=1e-3)
    assert scale_jump(grey, depth, grey + 100, depth) is None  # a cut


def moving_scene(random_generator: np.random.Generator, num_frames: int = 40) -> list[tuple[np.ndarray, np.ndarray]]:
    """A still background with a patch that moves over it and comes nearer."""
    grey = random_generator.integers(0, 200, (90, 160)).astype(np.int16)
    depth = np.linspace(0.2, 1, 90, dtype=np.float32)[:, None] + np.zeros((90, 160), np.float32)
    frames = []
    for k in range(num_frames):
        g, d = grey.copy(), depth.copy()
        g[20:60, 2 * k : 2 * k + 30] = 230 + k % 20
        d[20:60, 2 * k : 2 * k + 30] = 1 + 0.02 * k
        frames.append((g, d))
    return frames


def mean_jump(frames: list[tuple[np.ndarray, np.ndarray]]) -> float:
    jumps = [scale_jump(*a, *b) for a, b in pairwise(frames)]
    return float(np.mean([jump for jump in jumps if jump is not None]))


def test_scale_and_shift_that_jump_are_taken_back(random_generator: np.random.Generator) -> None:
    steady = moving_scene(random_generator)
    scales = random_generator.uniform(0.7, 1.4, len(steady))
    shifts = random_generator.uniform(-0.05, 0.05, len(steady))
    jumping = [(g, (a * d + b).astype(np.float32)) for (g, d), a, b in zip(steady, scales, shifts, strict=True)]
    view = stabilising_view(jumping)
    seen = [(g, (a * d + b).astype(np.float32)) for (g, d), (a, b) in zip(jumping, view, strict=True)]
    assert mean_jump(seen) < mean_jump(jumping) / 5
    # What moved keeps its own depth: all frames are in the first one's scale and shift, but for what lies below 2 %.
    for (_, depth), (_, truth) in zip(seen, steady, strict=True):
        assert np.abs(depth - (scales[0] * truth + shifts[0])).max() < 0.08


def test_what_is_steady_stays_as_it_is(random_generator: np.random.Generator) -> None:
    assert np.array_equal(stabilising_view(moving_scene(random_generator)), [[1, 0]] * 40)


def test_at_a_cut_there_is_nothing_to_compare(random_generator: np.random.Generator) -> None:
    first, second = moving_scene(random_generator)[:5], moving_scene(random_generator)[:5]
    jump = [(g, 2 * d if k > 2 else d) for k, (g, d) in enumerate(first)]
    assert scale_jump(*jump[-1], *second[0]) is None
    view = stabilising_view(jump + [(g, 3 * d) for g, d in second])
    assert view[:, 0] == pytest.approx([1] * 3 + [0.5] * 7, abs=1e-3)


def test_a_focal_length_that_jitters_is_steadied_and_a_zoom_is_kept() -> None:
    times = np.arange(100) / 25
    zoom = np.linspace(500, 1000, 100)
    jitter = np.where(np.arange(100) % 7 == 0, 1.5, 1.0)
    steadied = steady_focal_length(zoom * jitter, times)
    assert np.abs(steadied[25:-25] / zoom[25:-25] - 1).max() < 0.05


def jumping_clip(folder: Path, small: DepthModel) -> Clip:
    """A sample clip whose depth gets another scale with each frame."""
    clip_id, video = next(iter(rendered_clips().items()))
    scales = iter(np.random.default_rng(5).uniform(0.6, 1.6, 1000).astype(np.float32))

    class Jumping(DepthModel):
        def estimate(self, frames: np.ndarray, *, focal_length_px: float | None = None) -> ClipDepth:
            inverse_depth = small.estimate(frames).inverse_depth
            return ClipDepth(inverse_depth * np.array([[[next(scales)]] for _ in frames]), None)

    model = Jumping(lambda frames, focal: (frames, None), kind="relative", name="jumping", revision="0", batch_size=8)
    columns = estimate_clip_depth(video, folder / "depth.mkv", model)
    row = new_row(clip_id=clip_id, status="ok", video_path=str(video), depth_path="depth.mkv", **columns)
    return Clip(folder, row)


def test_the_stable_view_of_a_clip_leaves_the_file_alone(tmp_path: Path) -> None:
    small = load_model("small")
    clip = jumping_clip(tmp_path, small)
    before = hashlib.sha256(clip.depth_path.read_bytes()).digest()
    plain = estimate_clip_depth(clip.video_path, tmp_path / "plain.mkv", small)
    for index, reference in enumerate(read_depth(tmp_path / "plain.mkv")):
        if index in (1, 20, 40):
            ratio = clip.inverse_depth(index, stable=True) / reference
            assert np.median(ratio) == pytest.approx(
                np.median(clip.inverse_depth(0) / next(read_depth(tmp_path / "plain.mkv"))), rel=0.1
            )
    with DepthWriter(tmp_path / "stable.mkv", 640, 360) as writer:
        for index in clip.depth_indices:
            writer.write(clip.inverse_depth(index, stable=True), index / 24)
    assert clip.row["flicker"] > 5 * plain["flicker"]
    assert hashlib.sha256(clip.depth_path.read_bytes()).digest() == before


def test_a_steady_clip_looks_the_same_in_the_stable_view(sample_run: Run) -> None:
    clip = next(iter(kdepth.open_dataset(sample_run.root)))
    index = clip.depth_indices[1]
    assert clip.inverse_depth(index, stable=True) == pytest.approx(clip.inverse_depth(index), rel=0.05)
