import hashlib
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from kdepth.dataset.clip import Clip
from kdepth.dataset.temporal import (
    sampled,
    scale_step,
    scale_steps,
    stabilising_scales,
    steady_focal_length,
    steady_grey,
)
from kdepth.models.base import ClipDepth, DepthModel
from kdepth.pipeline.clip_depth import estimate_clip_depth
from kdepth.samples import rendered_clips, true_inverse_depth
from kdepth.schema import new_row
from made_clips import jumping_copy


def test_a_scale_jump_is_measured_on_what_stands_still(random_generator: np.random.Generator) -> None:
    grey = random_generator.integers(0, 255, (90, 160)).astype(np.int16)
    depth = random_generator.uniform(0.1, 2, (90, 160)).astype(np.float32)
    moved_grey, moved_depth = grey.copy(), depth * 1.05
    moved_grey[:30] = 255 - grey[:30]  # a third of the picture changed, and its depth with it
    moved_depth[:30] *= 3
    assert scale_step(grey, depth, grey, depth) == 0
    assert scale_step(grey, depth, moved_grey, moved_depth) == pytest.approx(np.log(1.05), abs=1e-3)
    assert np.isnan(scale_step(grey, depth, grey + 100, depth))  # a cut


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


def scales_of(frames: list[tuple[np.ndarray, np.ndarray]], step: int = 1, fps: float = 25) -> np.ndarray:
    steps = scale_steps((step * k, grey, depth) for k, (grey, depth) in enumerate(frames))
    return stabilising_scales(steps, np.arange(len(frames)) / fps)


def mean_jump(frames: list[tuple[np.ndarray, np.ndarray]]) -> float:
    return float(np.nanmean([abs(scale_step(*a, *b)) for a, b in pairwise(frames)]))


def test_a_scale_that_jumps_is_taken_back(random_generator: np.random.Generator) -> None:
    steady = moving_scene(random_generator)
    scales = random_generator.uniform(0.7, 1.4, len(steady))
    jumping = [(g, (scale * d).astype(np.float32)) for (g, d), scale in zip(steady, scales, strict=True)]
    seen = [(g, scale * d) for (g, d), scale in zip(jumping, scales_of(jumping), strict=True)]
    assert mean_jump(seen) < mean_jump(jumping) / 5
    # What moved keeps its own depth: all frames are in the first one's scale, but for jumps below 2 %.
    for (_, depth), (_, truth) in zip(seen, steady, strict=True):
        assert np.abs(depth / (scales[0] * truth) - 1).max() < 0.06


def test_the_scale_is_not_lost_over_a_long_clip_that_flickers(random_generator: np.random.Generator) -> None:
    noisy = []
    for k in range(400):
        grey, depth = moving_scene(random_generator, 1)[0]
        noise = random_generator.lognormal(0, 0.1, depth.shape) * (1.05 if k % 2 else 1.0)
        noisy.append((np.zeros_like(grey), (depth * noise).astype(np.float32)))
    scales = scales_of(noisy)
    assert 0.5 < scales.min() <= scales.max() < 2


def test_what_comes_nearer_is_no_jump_where_frames_are_rare() -> None:
    # A plain wall, to which the camera goes from 6 m to 3 m at 1 m/s: 10 frames/s.
    wall = np.zeros((90, 160), np.int16)
    frames = [(wall, np.full(wall.shape, 1 / (6 - k / 10), np.float32)) for k in range(31)]
    assert np.array_equal(scales_of(frames, fps=10), np.ones(31))
    assert scales_of(frames, fps=100).min() < 0.9


def test_what_is_steady_stays_as_it_is(random_generator: np.random.Generator) -> None:
    assert np.array_equal(scales_of(moving_scene(random_generator)), np.ones(40))


def test_frames_that_are_not_neighbours_are_not_compared(random_generator: np.random.Generator) -> None:
    jumping = [(g, (1 + k % 2) * d) for k, (g, d) in enumerate(moving_scene(random_generator))]
    assert np.array_equal(scales_of(jumping, step=25), np.ones(40))
    assert not np.array_equal(scales_of(jumping), np.ones(40))


def test_at_a_cut_there_is_nothing_to_compare(random_generator: np.random.Generator) -> None:
    first, second = moving_scene(random_generator)[:5], moving_scene(random_generator)[:5]
    jump = [(g, 2 * d if k > 2 else d) for k, (g, d) in enumerate(first)]
    assert np.isnan(scale_step(*jump[-1], *second[0]))
    view = scales_of(jump + [(g, 3 * d) for g, d in second])
    assert view == pytest.approx([1] * 3 + [0.5] * 7, abs=1e-3)


def test_a_focal_length_that_jitters_is_steadied_and_a_zoom_is_kept() -> None:
    times = np.arange(100) / 25
    zoom = np.linspace(500, 1000, 100)
    jitter = np.where(np.arange(100) % 7 == 0, 1.5, 1.0)
    steadied = steady_focal_length(zoom * jitter, times)
    assert np.abs(steadied[25:-25] / zoom[25:-25] - 1).max() < 0.05


def clip_with_true_depth(folder: Path, scales: np.ndarray) -> Clip:
    """A sample clip with its true depth, each frame in another scale."""
    clip_id, video = next(iter(rendered_clips().items()))
    truth = zip(true_inverse_depth(clip_id), scales, strict=False)

    class Truth(DepthModel):
        def estimate(
            self, frames: np.ndarray, *, focal_length_px: float | None = None, after: ClipDepth | None = None
        ) -> ClipDepth:
            depths = [cv2.resize(scale * depth, (640, 360)) for depth, scale in islice(truth, len(frames))]
            return ClipDepth(np.stack(depths), None)

    model = Truth(
        lambda frames, focal, before: (frames, None, None), kind="relative", name="truth", revision="0", batch_size=8
    )
    folder.mkdir()
    columns = estimate_clip_depth(video, folder / "depth.mkv", model)
    return Clip(folder, new_row(clip_id=clip_id, status="ok", video_path=str(video), depth_path="depth.mkv", **columns))


def flicker_of_the_stable_view(clip: Clip) -> float:
    rgb = clip.frames()
    return mean_jump(
        [(steady_grey(next(rgb)), sampled(clip.inverse_depth(i, stable=True))) for i in clip.depth_indices]
    )


def test_the_stable_view_of_a_clip_that_jumps_and_of_one_that_does_not(tmp_path: Path) -> None:
    steady = clip_with_true_depth(tmp_path / "steady", np.ones(1000, np.float32))
    scales = np.random.default_rng(5).uniform(0.6, 1.6, 1000).astype(np.float32)
    jumping = clip_with_true_depth(tmp_path / "jumping", scales)
    before = hashlib.sha256(jumping.depth_path.read_bytes()).digest()
    assert jumping.row["flicker"] > 0.1 > 10 * steady.row["flicker"]
    assert flicker_of_the_stable_view(jumping) < jumping.row["flicker"] / 5
    assert flicker_of_the_stable_view(steady) == pytest.approx(steady.row["flicker"], rel=0.05)
    assert hashlib.sha256(jumping.depth_path.read_bytes()).digest() == before


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_a_clip_that_was_made_to_jump(tmp_path: Path, kind: str) -> None:
    original = clip_with_true_depth(tmp_path / "original", np.ones(1000, np.float32))
    if kind == "metric":  # whose scale jumps with the focal length that the model guesses
        original.row["depth_kind"] = "metric"
        for frame in original.row["frames"]:
            frame["focal_length_px"] = 500.0
    file = original.depth_path.read_bytes()
    jumping = jumping_copy(original, tmp_path / "jumping.mkv", seed=3)
    bits = hashlib.sha256(jumping.depth_path.read_bytes()).digest()
    stored, stable = (np.nanmean(jumping.scale_jumps(stable=stable)) for stable in (False, True))
    assert stored == pytest.approx(jumping.row["flicker"], rel=1e-3)
    assert stored > 0.1
    assert stable < stored / 5
    index = jumping.depth_indices[10]
    ratio = jumping.inverse_depth(index) / np.maximum(original.inverse_depth(index), 1e-6)
    assert 0.6 <= np.median(ratio) <= 1.6
    assert np.array_equal(jumping.frame(index), original.frame(index))
    assert hashlib.sha256(jumping.depth_path.read_bytes()).digest() == bits
    assert original.depth_path.read_bytes() == file
