"""The renderer's depth against geometry on paper, and its determinism."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("numba", reason="the dependency group 'train' is not installed")

from train_small import scenes
from train_small.render import BOX, CAPSULE, CONE, ELLIPSOID, RECT, TERRAIN

WIDTH, HEIGHT = 96, 72


def draw(scene: scenes.Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    scene.light[:8] = [0, 0.3, 1.0, -0.4, 1, 1, 1, 0]
    scene.light[14:21] = [0.5] * 7
    return scenes.draw(scene, WIDTH, HEIGHT)


def rays(intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions (x right, y down; z = 1) through the pixels' centres."""
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    return (u - intrinsics[0, 2]) / intrinsics[0, 0], (v - intrinsics[1, 2]) / intrinsics[1, 1]


def test_floor_is_a_plane() -> None:
    s = scenes.Scene(0)
    s.floor(s.paint())
    _, depth, index, intrinsics = draw(s)  # the camera looks along the horizon from 1.6 m
    _, y = rays(intrinsics)
    below = y > 1e-3
    np.testing.assert_allclose(depth[below], (1.6 / y)[below], rtol=1e-5)
    assert np.isinf(depth[~below]).all()
    assert (index[~below] == -1).all()


def test_tilted_camera_sees_the_same_plane() -> None:
    s = scenes.Scene(0)
    s.floor(s.paint())
    s.pitch, s.roll, s.yaw = -0.5, 0.2, 0.7
    _, depth, _, intrinsics = draw(s)
    x, y = rays(intrinsics)
    world_y = np.einsum("i,ihw->hw", s.pose()[1], np.stack((x, y, np.ones_like(x)))) * depth + 1.6
    assert np.abs(world_y[np.isfinite(depth)]).max() < 1e-4
    assert np.isfinite(depth).mean() > 0.5


def test_sphere() -> None:
    s = scenes.Scene(0)
    s.ball((0.2, 1.5, 4.0), 0.8, s.paint())
    _, depth, index, intrinsics = draw(s)
    x, y = rays(intrinsics)
    centre = np.array((0.2, 0.1, 4.0))  # in camera axes
    length2 = x * x + y * y + 1
    along = (x * centre[0] + y * centre[1] + centre[2]) / length2
    left = along**2 - (centre @ centre - 0.8**2) / length2
    expected = np.where(left > 0, along - np.sqrt(np.maximum(left, 0)), np.inf)
    inside = left > 1e-6
    assert inside.sum() > 300
    np.testing.assert_allclose(depth[inside], expected[inside], rtol=1e-5)
    assert (index[left < -1e-6] == -1).all()


@pytest.mark.parametrize(
    ("kind", "size", "p", "nearest"),
    [(BOX, (0.5, 0.7, 0.3), 0.0, 2.7), (ELLIPSOID, (0.5, 0.7, 0.3), 0.0, 2.7), (CONE, (0.4, 0.7, 0.4), 0.4, 2.6),
     (CAPSULE, (0.4, 0.7, 0.4), 0.4, 2.6), (RECT, (0.5, 0.0, 0.3), 0.0, 3.0)],
)  # fmt: skip
def test_nearest_point_of_each_primitive(kind: int, size: tuple[float, float, float], p: float, nearest: float) -> None:
    s = scenes.Scene(0)
    axes = ((1, 0, 0), (0, 0, -1), (0, 1, 0)) if kind == RECT else ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    s.add(kind, (0.0, 1.6, 3.0), size, s.paint(), axes, p)
    _, depth, _, _ = draw(s)
    assert np.nanmin(depth) == pytest.approx(nearest, rel=2e-3)


def test_terrain_has_the_height_of_its_formula() -> None:
    s = scenes.Scene(0)
    s.add(TERRAIN, (0, -0.2, 0), (1e5, 0.3, 1e5), s.paint(), p=1.0, q=0.3)
    s.pitch = -0.3
    _, depth, _, intrinsics = draw(s)
    x, y = rays(intrinsics)
    ok = depth < 60
    points = np.einsum("ji,ihw->jhw", s.pose(), np.stack((x, y, np.ones_like(x)))) * np.where(ok, depth, 0)
    k, wx, wz = 0.3, points[0], points[2]
    height = np.sin(k * wx + 1.3) * np.cos(0.8 * k * wz + 1.0)
    height = -0.2 + 0.3 * (height + 0.25 * np.sin(4.7 * k * wx - 1.1) * np.sin(4.1 * k * wz + 1.0))
    assert ok.mean() > 0.5
    assert np.abs(points[1] + 1.6 - height)[ok].max() < 0.02


def test_shadow_lies_where_the_sun_says() -> None:
    s = scenes.Scene(0)
    s.floor(s.paint((0.5, 0.5, 0.5), (0,), contrast=0.0, dirt=0.0))
    s.ball((0.0, 1.0, 5.0), 0.3, s.paint())
    s.light[:8] = [0, 0.0, 1.0, 0.0, 1, 1, 1, 0]  # straight from above
    s.light[14:21] = [0.2] * 7
    s.eye, s.pitch = (0.0, 4.0, 0.0), -0.6
    rgb, depth, _, intrinsics = scenes.draw(s, WIDTH, HEIGHT)
    focal = intrinsics[0, 0]

    def brightness(x: float, z: float) -> float:
        right, down, ahead = s.pose().T @ (np.array((x, 0.0, z)) - np.array(s.eye))
        return float(rgb[int(HEIGHT / 2 + focal * down / ahead), int(WIDTH / 2 + focal * right / ahead)].mean())

    assert brightness(0.0, 5.0) < 0.5 * brightness(1.5, 5.0)
    assert np.isfinite(depth).all()


@pytest.mark.parametrize("kind", list(scenes.SCENES))
def test_every_kind_renders_and_is_decided_by_its_seed(kind: str) -> None:
    rgb, depth, intrinsics = scenes.render_scene(kind, 5, WIDTH, HEIGHT)
    assert rgb.shape == (HEIGHT, WIDTH, 3)
    assert rgb.dtype == np.uint8
    assert rgb.std() > 5
    assert depth.shape == (HEIGHT, WIDTH)
    assert depth.dtype == np.float32
    assert depth.min() > 0.04
    assert 15 < math.degrees(2 * math.atan(WIDTH / 2 / intrinsics[0, 0])) < 90
    again = scenes.render_scene(kind, 5, WIDTH, HEIGHT)
    assert (again[0] == rgb).all()
    assert (again[1] == depth).all()
    assert (scenes.render_scene(kind, 6, WIDTH, HEIGHT)[1] != depth).any()


def test_time_moves_people_but_not_the_room() -> None:
    now, later = (scenes.build_scene("street", 160_000_000, time) for time in (0.0, 0.5))
    a, b = np.array(now.geometry), np.array(later.geometry)
    assert a.shape == b.shape
    moved = np.abs(a - b).max(1) > 1e-6
    assert 5 < moved.sum() < len(a) - 5
    assert now.material == later.material


def test_degrade_keeps_depth_and_is_decided_by_its_seed() -> None:
    rgb, depth, _ = scenes.render_scene("room", 1, WIDTH, HEIGHT)
    changed = 0
    for seed in range(20):
        out, kept = scenes.degrade(rgb, depth, seed)
        assert out.shape == rgb.shape
        assert out.dtype == np.uint8
        ok = ~np.isnan(kept)
        assert (kept[ok] == depth[ok]).all()
        assert (scenes.degrade(rgb, depth, seed)[0] == out).all()
        changed += bool((out != rgb).any())
    assert changed >= 15
