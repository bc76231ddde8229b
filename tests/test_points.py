"""Depth frames as points in space, against geometry that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from tiny_dataset import HEIGHT, WIDTH, tiny_clip

from kdepth.dataset.clip import Clip
from kdepth.dataset.points import pinhole_intrinsics, unproject
from kdepth.errors import DatasetError
from kdepth.samples import rendered_clips, true_inverse_depth
from kdepth.storage import Root


def tiny(root: Path, **columns: Any) -> Clip:
    return Clip(Root(root), tiny_clip(root, "a", **columns))


def plane(normal: NDArray[np.float64], distance: float, k: NDArray[np.float64]) -> NDArray[np.float32]:
    """Inverse depth of the plane ``normal . p = distance`` as the camera sees it."""
    v, u = np.mgrid[0:90, 0:160] + 0.5
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], -1)
    return (rays @ normal / distance).astype(np.float32)


def test_points_of_a_plane_lie_on_it() -> None:
    k = pinhole_intrinsics(140.0, 160, 90)
    normal = np.array([0.2, -0.3, 0.9])
    points, kept = unproject(plane(normal, 4.0, k), k)
    assert (points.dtype, points.shape, kept.shape) == (np.float32, (160 * 90, 3), (90, 160))
    np.testing.assert_allclose(points @ normal, 4.0, rtol=1e-5)
    # What lies to the right and below has larger x and y.
    assert points[-1, 0] > 0 > points[0, 0]
    assert points[-1, 1] > 0 > points[0, 1]
    some, few = unproject(plane(normal, 4.0, k), k, stride=4)
    assert few.shape == (23, 40)
    np.testing.assert_array_equal(some, points.reshape(90, 160, 3)[::4, ::4].reshape(-1, 3))


def test_flying_pixels_and_the_sky_are_dropped() -> None:
    inverse_depth = np.full((40, 60), 0.2, np.float32)
    inverse_depth[10:30, 20:40] = 1.0
    inverse_depth[:, 20] = 0.5  # blended at the silhouette
    inverse_depth[:5] = 0.0
    k = pinhole_intrinsics(50.0, 60, 40)
    points, kept = unproject(inverse_depth, k)
    assert set(np.unique(points[:, 2])) == {1.0, 5.0}
    assert not kept[:6].any()
    everything, _ = unproject(inverse_depth, k, max_jump=np.inf)
    assert len(everything) == 35 * 60
    assert {1.0, 2.0, 5.0} <= set(np.unique(everything[:, 2]))


def test_points_of_true_depth_fall_onto_their_pixels() -> None:
    clip_id = next(iter(rendered_clips()))
    truth = np.asarray(next(iter(true_inverse_depth(clip_id))), np.float32)
    height, width = truth.shape
    k = pinhole_intrinsics(0.9 * width, width, height)
    points, kept = unproject(truth, k, max_jump=np.inf)
    assert np.array_equal(kept, truth > 0)
    projected = points @ k.T.astype(np.float32)
    v, u = np.nonzero(kept)
    np.testing.assert_allclose(projected[:, 0] / projected[:, 2], u + 0.5, atol=1e-2)
    np.testing.assert_allclose(projected[:, 1] / projected[:, 2], v + 0.5, atol=1e-2)
    np.testing.assert_allclose(1 / points[:, 2], truth[kept], rtol=1e-3)


def test_intrinsics_come_from_the_row_or_from_who_knows_them(tmp_path: Path) -> None:
    clip = tiny(tmp_path)
    expected = [[50.0, 0, WIDTH / 2], [0, 50.0, HEIGHT / 2], [0, 0, 1]]
    assert clip.intrinsics(2).dtype == np.float64
    np.testing.assert_array_equal(clip.intrinsics(2), expected)
    assert clip.intrinsics(2, focal_length_px=80)[0, 0] == 80
    assert clip.intrinsics(2, fov_deg=90)[1, 1] == pytest.approx(WIDTH / 2)
    relative = tiny(tmp_path, kind="relative")
    assert relative.intrinsics(0, fov_deg=90)[0, 0] == pytest.approx(WIDTH / 2)
    with pytest.raises(DatasetError, match="finds no focal length; give focal_length_px or fov_deg"):
        relative.points(0)
    with pytest.raises(IndexError, match="has no depth"):
        clip.intrinsics(99)
    for options in ({"fov_deg": 180.0}, {"focal_length_px": -1.0}, {"focal_length_px": 5.0, "fov_deg": 60.0}):
        with pytest.raises(ValueError, match=r"(focal_length_px|fov_deg)="):
            clip.intrinsics(0, **options)


def test_points_of_a_clip_have_their_frames_colours_and_are_saved(tmp_path: Path) -> None:
    clip = tiny(tmp_path)
    points, rgb = clip.points(1, stride=2)
    assert (points.dtype, points.shape, rgb.dtype) == (np.float32, (WIDTH * HEIGHT // 4, 3), np.uint8)
    np.testing.assert_array_equal(rgb, clip.frame(1)[::2, ::2].reshape(-1, 3))
    np.testing.assert_allclose(points[:, 2].reshape(HEIGHT // 2, -1), clip.depth_m(1)[::2, ::2], rtol=1e-6)
    saved = trimesh.load(clip.save_points(tmp_path / "new" / "a.ply", 1, stride=2))
    np.testing.assert_allclose(saved.vertices, points, rtol=1e-5)
    np.testing.assert_array_equal(saved.colors[:, :3], rgb)
    (saved,) = trimesh.load(clip.save_points(tmp_path / "a.glb", 1, stride=2)).geometry.values()
    np.testing.assert_allclose(saved.vertices, points * [1, -1, -1], rtol=1e-5)
    with pytest.raises(ValueError, match=r"must end in \.ply or \.glb"):
        clip.save_points(tmp_path / "a.obj", 1)


def test_a_shots_border_is_not_smoothed_over(tmp_path: Path) -> None:
    clip = tiny(tmp_path, num_frames=12)
    assert clip.shots == [0]
    for frame in clip.row["frames"]:
        frame["focal_length_px"] = 50.0 if frame["index"] < 7 else 80.0
    blurred = [clip.intrinsics(index, stable=True)[0, 0] for index in range(12)]
    assert set(blurred[5:9]) != {50.0, 80.0} or blurred[7] != 80.0
    clip = Clip(Root(tmp_path), clip.row | {"shots": [0, 7]})
    assert clip.shots == [0, 7]
    assert [clip.intrinsics(index, stable=True)[0, 0] for index in range(12)] == [50.0] * 7 + [80.0] * 5
    np.testing.assert_array_equal(clip.inverse_depth(8, stable=True), clip.inverse_depth(8))
    assert np.isnan(clip.scale_jumps()[[0, 7]]).all()


def test_the_stable_view_keeps_the_scale_over_a_cut(tmp_path: Path) -> None:
    clip = tiny(tmp_path, num_frames=4, kind="relative")  # each frame's depth is a step up from the one before
    cut = Clip(Root(tmp_path), clip.row | {"shots": [0, 2]})
    whole, parts = ([np.median(c.inverse_depth(k, stable=True)) for k in range(4)] for c in (clip, cut))
    assert whole[0] == parts[0]
    assert parts[2] / parts[1] == pytest.approx(1.5, rel=1e-3)
