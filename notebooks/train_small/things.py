"""What scenes are made of: a `Scene` under construction, people, furniture, plants, cars and other things.

Everything is built from the primitives of `train_small.render`; chance comes from the scene's own generator, so a seed
decides it all.
"""

import math
import random
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train_small.render import BOX, CAPSULE, CONE, ELLIPSOID, RECT

Array = NDArray[Any]
Vec = tuple[float, float, float]
Material = tuple[float, ...]
UP: Vec = (0.0, 1.0, 0.0)
WHITE: Vec = (0.8, 0.8, 0.78)
SKIN: tuple[Vec, ...] = (
    (0.70, 0.44, 0.32),
    (0.60, 0.35, 0.24),
    (0.42, 0.23, 0.14),
    (0.22, 0.11, 0.07),
    (0.78, 0.55, 0.44),
)
HAIR: tuple[Vec, ...] = (
    (0.02, 0.015, 0.01),
    (0.06, 0.03, 0.015),
    (0.2, 0.1, 0.04),
    (0.5, 0.35, 0.15),
    (0.35, 0.35, 0.35),
)
WOOD: tuple[Vec, ...] = ((0.35, 0.2, 0.1), (0.5, 0.33, 0.18), (0.2, 0.1, 0.05), (0.62, 0.48, 0.3))
STONE: tuple[Vec, ...] = ((0.4, 0.39, 0.37), (0.55, 0.5, 0.44), (0.3, 0.3, 0.31), (0.45, 0.25, 0.18), (0.65, 0.6, 0.5))
LEAF: tuple[Vec, ...] = (
    (0.08, 0.2, 0.03),
    (0.16, 0.28, 0.06),
    (0.25, 0.3, 0.08),
    (0.05, 0.12, 0.04),
    (0.4, 0.28, 0.06),
)
# Patterns by what they suit (indices into render.pattern_bank).
PLAIN, ROUGH, PLANKS, BRICKS, TILES = (0, 1), (2, 3, 4, 5, 6, 9, 10, 56, 57), (19, 20, 21), (14, 15), (16, 17, 18)
CLOTH = (0, 1, 1, 4, 7, 22, 23, 24, 26, 28, 31, 32, 33, 35, 53, 55, 51, 49)
FACADES, PRINTS, COLLAGE, FOLIAGE, CELLS = (
    (44, 45, 46),
    (47, 48),
    (49, 50, 51, 52),
    (53, 54, 55),
    (36, 37, 38, 39, 40, 41),
)
ANY = tuple(range(60))


def unit(v: Vec) -> Vec:
    n = math.sqrt(v[0] ** 2 + v[1] ** 2 + v[2] ** 2) or 1.0
    return v[0] / n, v[1] / n, v[2] / n


def cross(a: Vec, b: Vec) -> Vec:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def along(a: Vec, b: Vec, f: float) -> Vec:
    return a[0] + (b[0] - a[0]) * f, a[1] + (b[1] - a[1]) * f, a[2] + (b[2] - a[2]) * f


def turned(angle: float) -> tuple[Vec, Vec, Vec]:
    """Axes (x, y, z of the thing, in the world) of something turned about the vertical."""
    c, s = math.cos(angle), math.sin(angle)
    return (c, 0.0, -s), UP, (s, 0.0, c)


class Scene:
    """Tables of primitives under construction, with a camera, lights and a source of chance."""

    def __init__(self, seed: int | str, time: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.time = time
        self.kinds: list[int] = []
        self.geometry: list[tuple[float, ...]] = []
        self.material: list[Material] = []
        self.eye: Vec = (0.0, 1.6, 0.0)
        self.yaw, self.pitch, self.roll, self.fov_deg = 0.0, 0.0, 0.0, 60.0
        self.light = [0.0] * 22
        self.sky = [0.55, 0.68, 0.85, 0.2, 0.4, 0.75, 0.3, 0.3, 0.28, 6.0, 1.5, 0.35]
        self.fog = [0.7, 0.72, 0.75, 0.0]
        self.portal_m = 30.0

    # -- chance
    def u(self, low: float = 0.0, high: float = 1.0) -> float:
        return self.rng.uniform(low, high)

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def pick(self, items: Any) -> Any:
        return items[int(self.rng.random() * len(items))]

    def colour(self, bright: float = 0.0) -> Vec:
        """Half muted, half saturated, some near white or black."""
        r = self.rng.random()
        if r < 0.15:
            v = self.u(0.6, 0.9)
            return v, v * self.u(0.93, 1), v * self.u(0.85, 1)
        if r < 0.27:
            v = self.u(0.01, 0.06)
            return v, v, v * self.u(0.8, 1.5)
        h, s, v = self.u(0, 6), self.u(0.1, 0.9) * self.u(0.3, 1), self.u(0.08 + bright, 0.85)
        rgb = [v * (1 - s * min(max(2 - abs((h - k) % 6 - 3), 0), 1)) for k in (0, 2, 4)]
        return rgb[0], rgb[1], rgb[2]

    def paint(
        self,
        base: Vec | None = None,
        patterns: Any = PLAIN,
        *,
        scale: float = 0.0,
        contrast: float = -1.0,
        gloss: float = 0.0,
        mirror: float = 0.0,
        emission: float = 0.0,
        ripple: float = 0.0,
        dirt: float = -1.0,
        cut: int = 53,
    ) -> Material:
        """A material: a base colour varied by a pattern, or (contrast > 1) three colours of its own."""
        base = base or self.colour()
        contrast = self.u(0.1, 0.5) if contrast < 0 else contrast
        pattern = self.pick(patterns)
        scale = scale or math.exp(self.u(-0.7, 1.2))
        if contrast > 1:
            low, high = self.colour(), self.colour()
        else:
            low = (base[0] * (1 - contrast), base[1] * (1 - contrast), base[2] * (1 - contrast))
            k = 1 + 0.6 * contrast
            high = (min(base[0] * k, 0.95), min(base[1] * k, 0.95), min(base[2] * k, 0.95))
        return (
            *low,
            *base,
            *high,
            pattern,
            scale,
            self.rng.random(),
            self.rng.random(),
            gloss,
            self.u(8, 60),
            mirror,
            emission,
            ripple,
            self.u(0, 0.5) if dirt < 0 else dirt,
            cut,
        )

    # -- primitives
    def add(
        self,
        kind: int,
        centre: Vec,
        size: Vec,
        material: Material,
        axes: tuple[Vec, Vec, Vec] = ((1, 0, 0), UP, (0, 0, 1)),
        p: float = 0.0,
        q: float = 0.0,
        cut: float = 0.0,
    ) -> None:
        self.kinds.append(kind)
        self.geometry.append((*centre, *axes[0], *axes[1], *axes[2], *size, p, q, cut))
        self.material.append(material)

    def rod(self, a: Vec, b: Vec, ra: float, rb: float, material: Material, kind: int = CAPSULE) -> None:
        """A capsule (or a cone) from a to b."""
        d = (b[0] - a[0], b[1] - a[1], b[2] - a[2])
        length = math.sqrt(d[0] ** 2 + d[1] ** 2 + d[2] ** 2) + 1e-6
        y = (d[0] / length, d[1] / length, d[2] / length)
        x = unit(cross(y, (0.3, 0.2, 1.0) if abs(y[2]) < 0.9 else (1.0, 0.1, 0.0)))
        half = 0.5 * length if kind == CONE else max(0.5 * length, abs(ra - rb) * 0.51)
        self.add(kind, along(a, b, 0.5), (ra, half, ra), material, (x, y, cross(x, y)), rb)

    def box(
        self,
        x: float,
        y: float,
        z: float,
        w: float,
        h: float,
        d: float,
        material: Material,
        yaw: float = 0.0,
        p: float = 0.0,
        q: float = 0.0,
    ) -> None:
        """A box that stands on height y; w, h, d are full sizes."""
        self.add(BOX, (x, y + h / 2, z), (w / 2, h / 2, d / 2), material, turned(yaw), p, q)

    def ball(self, centre: Vec, r: float | Vec, material: Material, yaw: float = 0.0, cut: float = 0.0) -> None:
        self.add(ELLIPSOID, centre, r if isinstance(r, tuple) else (r, r, r), material, turned(yaw), cut=cut)

    def floor(self, material: Material, y: float = 0.0) -> None:
        self.add(RECT, (0.0, y, 0.0), (1e5, 0.0, 1e5), material)

    def wall(self, centre: Vec, normal: Vec, w: float, h: float, material: Material) -> None:
        """An upright (or any) rectangle with the given normal, w wide and h high."""
        x = unit(cross(UP, normal)) if abs(normal[1]) < 0.9 else (1.0, 0.0, 0.0)
        self.add(RECT, centre, (w / 2, 0.0, h / 2), material, (x, normal, cross(x, normal)))

    def place(self, x: float, z: float, yaw: float) -> Any:
        """A function from (right, up, forward) of something that stands at x, z to the world."""
        c, s = math.cos(yaw), math.sin(yaw)
        return lambda a, b, f: (x + c * a + s * f, b, z - s * a + c * f)

    # -- light
    def daylight(self) -> None:
        kind = self.rng.random()
        elevation, turn = math.radians(self.u(12, 70)), self.u(0, 2 * math.pi)
        sun = 0.0 if kind < 0.2 else self.u(0.7, 2.2)
        warm = self.u(0.7, 1.0)
        self.light[:8] = [
            0,
            math.cos(elevation) * math.sin(turn),
            math.sin(elevation),
            math.cos(elevation) * math.cos(turn),
            sun,
            sun * (0.6 + 0.4 * warm),
            sun * warm * 0.95,
            self.u(0.01, 0.06),
        ]
        self.light[8:14] = [0, 500, 0, 0, 0, 0]
        sky = self.u(0.35, 0.7) + (0.3 if sun == 0 else 0)
        self.light[14:20] = [sky * 0.85, sky * 0.93, sky, sky * 0.4, sky * 0.38, sky * 0.34]
        self.light[20:22] = [10.0, -2.0]
        grey = self.u(0.45, 1.1)
        blue = 0.0 if sun == 0 else self.u(0, 1)
        self.sky = [
            grey,
            grey * (1 - 0.05 * blue),
            grey * (1 + 0.05 * blue) * self.u(0.85, 1),
            grey * (1 - 0.7 * blue),
            grey * (1 - 0.45 * blue),
            grey * (1 - 0.05 * blue),
            *([0.25 * grey] * 3),
            self.pick((5, 6, 7, 8, 56, 57)),
            self.u(0, 3) if self.chance(0.7) else 0.0,
            self.u(0.15, 0.8),
        ]
        haze = self.pick((0.0, 0.001, 0.003, 0.01)) if self.chance(0.8) else self.u(0.01, 0.05)
        self.fog = [self.sky[0] * 0.95, self.sky[1] * 0.95, self.sky[2] * 0.95, haze]

    def lamplight(self, w: float, h: float, d: float, dim: float = 1.0) -> None:
        """A ceiling lamp that casts shadows and one that does not, in a room of the given size about the origin."""
        warm = self.u(0.55, 1.05)
        power = self.u(0.8, 2.2) * dim
        self.light[:8] = [
            1,
            self.u(-0.4, 0.4) * w,
            h * self.u(0.75, 0.95),
            self.u(0.1, 0.8) * d,
            power,
            power * (0.5 + 0.5 * warm),
            power * warm,
            self.u(0.05, 0.4),
        ]
        fill = self.u(0.1, 0.8) * dim
        self.light[8:14] = [
            self.u(-0.45, 0.45) * w,
            h * self.u(0.3, 0.9),
            self.u(-0.2, 0.9) * d,
            fill,
            fill * self.u(0.8, 1),
            fill * self.u(0.6, 1),
        ]
        sky = self.u(0.12, 0.4) * dim
        self.light[14:20] = [sky, sky * self.u(0.9, 1), sky * self.u(0.8, 1.05), sky * 0.6, sky * 0.55, sky * 0.5]
        self.light[20:22] = [self.u(0.5, 1.3) * max(h, d * 0.5), -2.0]
        if self.chance(0.3):  # sun through a window on the other side
            self.light[:8] = [
                0,
                self.u(-1, 1),
                self.u(0.5, 1.2),
                self.u(-1, 0.6),
                power,
                power * 0.95,
                power * 0.85,
                0.03,
            ]
        outside = self.u(0.3, 1.6) * dim if self.chance(0.8) else 0.02
        self.sky = [
            outside,
            outside,
            outside * self.u(0.9, 1.1),
            outside * 0.9,
            outside * 0.95,
            outside,
            outside * 0.4,
            outside * 0.45,
            outside * 0.3,
            6,
            1.0,
            0.4,
        ]
        self.portal_m = self.u(8, 60)

    def camera(self, eye: Vec, target: Vec, fov_deg: float, shake: float = 1.0) -> None:
        """Looks from eye towards target; drifts with time, like a hand or a dolly."""
        t = self.time
        sway = [self.u(-1, 1) * 0.05 * shake for _ in range(3)]
        phase = self.u(0, 6)
        bob = 0.012 * shake * math.sin(5 * t + phase)
        self.eye = (eye[0] + sway[0] * 3 * t, eye[1] + sway[1] * t + bob * 0.5, eye[2] + sway[2] * 3 * t)
        d = (target[0] - self.eye[0], target[1] - self.eye[1], target[2] - self.eye[2])
        self.yaw = math.atan2(d[0], d[2]) + 0.4 * bob
        self.pitch = math.atan2(d[1], math.hypot(d[0], d[2])) + 0.3 * bob
        self.roll = math.radians(self.rng.gauss(0, 2.5)) + 0.2 * bob
        self.fov_deg = fov_deg

    def pose(self) -> Array:
        """Rotation camera -> world (its columns: right, down, forward)."""
        cy, sy, cp, sp = math.cos(self.yaw), math.sin(self.yaw), math.cos(self.pitch), math.sin(self.pitch)
        right, forward = np.array((cy, 0.0, -sy)), np.array((sy * cp, sp, cy * cp))
        down = np.array((sy * sp, -cp, cy * sp))
        c, s = math.cos(self.roll), math.sin(self.roll)
        return np.stack([c * right + s * down, c * down - s * right, forward], 1)


# ------------------------------------------------------------------------------------------------------- people
def person(
    s: Scene,
    x: float,
    z: float,
    yaw: float,
    pose: str = "",
    *,
    ground: float = 0.0,
    detail: bool = True,
    height: float = 0.0,
) -> None:
    """A person of rounded cones and ellipsoids at x, z facing along yaw (0: away from the viewer, pi: towards).

    Poses: stand, walk, run, sit, squat, raise, reach, bend, lie, floor. Limbs swing with the scene's time.
    """
    u = s.u
    pose = pose or s.pick(("stand", "stand", "walk", "raise", "reach", "run", "bend", "squat", "sit"))
    tall = height or (u(1.5, 1.9) if s.chance(0.85) else u(0.9, 1.4))
    wide = u(0.88, 1.25)
    swing = math.sin((5.5 if pose == "walk" else 9.0 if pose == "run" else 1.7) * s.time + u(0, 6))
    legs, arms, lean = (
        [[0.05, 0.08, 0.05], [-0.05, 0.08, 0.05]],
        [[u(-0.3, 0.5), u(0.1, 0.4), u(0, 1.2)] for _ in range(2)],
        u(-0.05, 0.12),
    )
    head_turn, nod = u(-0.7, 0.7), u(-0.3, 0.3)
    if pose in ("walk", "run"):
        k = 0.45 if pose == "walk" else 0.9
        legs = [[k * swing, 0.04, 0.25 + 0.5 * k * max(0, -swing)], [-k * swing, 0.04, 0.25 + 0.5 * k * max(0, swing)]]
        arms = [[-k * swing, 0.15, 0.3 + k], [k * swing, 0.15, 0.3 + k]]
        lean += 0.2 * k
    elif pose == "sit":
        a = u(1.3, 1.7)
        legs = [[a, u(0.05, 0.4), u(1.0, 1.7)], [a, u(0.05, 0.4), u(1.0, 1.7)]]
        arms = [[u(0.2, 1.1), u(0, 0.3), u(0.3, 1.6)] for _ in range(2)]
    elif pose == "squat":
        a = 1.2 + 0.7 * (0.5 + 0.5 * swing)
        legs = [[a, u(0.1, 0.5), 1.75 * a] for _ in range(2)]
        arms = [[u(0.8, 1.7), 0.1, u(0, 0.7)] for _ in range(2)]
        lean += u(0.2, 0.6)
    elif pose == "raise":
        arms = [[u(2.0, 3.1) + 0.15 * swing, u(0, 0.5), u(0, 0.8)] for _ in range(2)]
    elif pose == "reach":
        arms = [[u(0.8, 1.7) + 0.15 * swing, u(-0.1, 0.4), u(0, 0.8)] for _ in range(2)]
        lean += u(0, 0.3)
    elif pose == "bend":
        lean += u(0.5, 1.3)
        arms = [[u(1.0, 1.9), u(0, 0.3), u(0, 0.5)] for _ in range(2)]
    elif pose == "floor":
        legs = [[1.5, u(0.1, 0.6), u(0, 2.0)], [1.5, u(0.1, 0.6), u(0, 2.0)]]
    hip_r, thigh, shin = 0.052 * tall * wide, 0.245 * tall, 0.245 * tall
    shirt = s.paint(None, CLOTH, scale=u(1, 6), contrast=u(0.1, 0.8) if s.chance(0.6) else 2.0)
    trousers = s.paint(None, CLOTH, scale=u(1, 6)) if s.chance(0.8) else shirt
    skin = s.paint(s.pick(SKIN), (1,), contrast=0.15, gloss=0.08, dirt=0.1)
    hair = s.paint(s.pick(HAIR) if s.chance(0.8) else None, (12, 13, 2), scale=4.0, contrast=0.6)
    shoes = s.paint()
    bare_arms, bare_legs = s.chance(0.45), s.chance(0.25)
    # Body axes: right, up, forward about the pelvis; lying bodies are tipped over.
    tip = u(1.4, 1.7) if pose == "lie" else 0.0
    cy, sy, ct, st = math.cos(yaw), math.sin(yaw), math.cos(tip), math.sin(tip)

    def turn(a: float, b: float, f: float) -> Vec:
        b, f = b * ct + f * st, f * ct - b * st
        return cy * a + sy * f, b, -sy * a + cy * f

    axes = (turn(1, 0, 0), turn(0, 1, 0), turn(0, 0, 1))

    def limb(angles: list[float], side: float, start: Vec, upper: float, lower: float, bend: float) -> tuple[Vec, Vec]:
        p, out, k = angles
        q = p + bend * k
        joint = (
            start[0] + side * math.sin(out) * upper,
            start[1] - math.cos(p) * math.cos(out) * upper,
            start[2] + math.sin(p) * math.cos(out) * upper,
        )
        return joint, (
            joint[0] + 0.3 * side * math.sin(out) * lower,
            joint[1] - math.cos(q) * lower,
            joint[2] + math.sin(q) * lower,
        )

    leg_points = []
    for i, side in enumerate((-1.0, 1.0)):
        start = (side * 0.055 * tall * wide, 0.0, 0.0)
        leg_points.append((start, *limb(legs[i], side, start, thigh, shin, -1.0)))
    lowest = min(min(p[1] for p in points) for points in leg_points) - 0.03 * tall
    lowest = min(lowest, -hip_r)
    rise = ground - lowest if pose != "lie" else ground + hip_r * 1.3

    def world(p: Vec) -> Vec:
        a, b, f = turn(*p)
        return x + a, b + rise, z + f

    cl, sl = math.cos(lean), math.sin(lean)

    def torso(a: float, b: float, f: float) -> Vec:
        return a, b * cl - f * sl, b * sl + f * cl

    for start, knee, ankle in leg_points:
        s.rod(world(start), world(knee), 0.048 * tall * wide, 0.034 * tall * wide, trousers)
        s.rod(world(knee), world(ankle), 0.033 * tall * wide, 0.024 * tall, skin if bare_legs else trousers)
        if detail:
            s.rod(
                world(ankle),
                world((ankle[0], ankle[1] - 0.01 * tall, ankle[2] + 0.1 * tall)),
                0.024 * tall,
                0.018 * tall,
                shoes,
            )
    tilted = (axes[0], turn(*torso(0, 1, 0)), turn(*torso(0, 0, 1)))
    s.add(ELLIPSOID, world((0, 0.0, 0)), (0.09 * tall * wide, 0.075 * tall, 0.07 * tall * wide), trousers, tilted)
    s.add(
        ELLIPSOID,
        world(torso(0, 0.10 * tall, 0)),
        (0.085 * tall * wide, 0.12 * tall, 0.065 * tall * wide),
        shirt,
        tilted,
    )
    s.add(
        ELLIPSOID,
        world(torso(0, 0.20 * tall, 0)),
        (0.098 * tall * wide, 0.12 * tall, 0.07 * tall * wide),
        shirt,
        tilted,
    )
    shoulders = [torso(side * 0.098 * tall * wide, 0.275 * tall, 0) for side in (-1, 1)]
    s.rod(world(shoulders[0]), world(shoulders[1]), 0.042 * tall, 0.042 * tall, shirt)
    for i, side in enumerate((-1.0, 1.0)):
        arms[i][0] += lean * 0.5
        start = (shoulders[i][0] + side * 0.015 * tall, shoulders[i][1], shoulders[i][2])
        elbow, wrist = limb(arms[i], side, start, 0.165 * tall, 0.145 * tall, 1.0)
        s.rod(world(start), world(elbow), 0.033 * tall * wide, 0.025 * tall * wide, shirt)
        s.rod(world(elbow), world(wrist), 0.024 * tall * wide, 0.017 * tall, skin if bare_arms else shirt)
        s.ball(world(along(elbow, wrist, 1.18)), 0.024 * tall, skin)
    turned = head_turn + yaw
    neck, head = torso(0, 0.30 * tall, 0), torso(0, 0.385 * tall, 0.02 * tall)
    s.rod(world(neck), world(head), 0.03 * tall * wide, 0.028 * tall * wide, skin)
    c = world(head)
    right, forward = (math.cos(turned), 0.0, -math.sin(turned)), (math.sin(turned), 0.0, math.cos(turned))
    if pose == "lie":
        head_axes = axes
    else:
        cn, sn = math.cos(nod + 0.5 * lean), math.sin(nod + 0.5 * lean)
        upward = (forward[0] * sn, cn, forward[2] * sn)
        head_axes = (right, upward, (forward[0] * cn, -sn, forward[2] * cn))
    _head(s, c, head_axes, tall if tall > 1.4 else tall * 1.25, skin, hair, detail)


def _head(
    s: Scene, c: Vec, axes: tuple[Vec, Vec, Vec], tall: float, skin: Material, hair: Material, detail: bool
) -> None:
    r = 0.068 * tall
    rx, up, fw = axes

    def at(a: float, b: float, f: float) -> Vec:
        return tuple(c[k] + r * (a * rx[k] + b * up[k] + f * fw[k]) for k in range(3))  # type: ignore[return-value]

    s.add(ELLIPSOID, c, (r * 0.76, r, r * 0.92), skin, axes)
    style = s.rng.random()
    if style < 0.87:
        s.add(ELLIPSOID, at(0, 0.25, -0.22), (r * 0.86, r * 0.95, r * 0.95), hair, axes)
    if 0.4 < style < 0.65:  # long hair
        s.rod(at(0, 0.1, -0.5), at(0, -1.6, -0.6), r * 0.75, r * 0.6, hair)
    if style > 0.87:  # cap or helmet
        hat = s.paint(None, CLOTH, gloss=0.3)
        s.add(ELLIPSOID, at(0, 0.45, -0.1), (r * 0.9, r * 0.75, r * 1.05), hat, axes)
        s.add(ELLIPSOID, at(0, 0.45, 0.9), (r * 0.6, r * 0.08, r * 0.55), hat, axes)
    if not detail:
        return
    dark, lips = s.paint((0.03, 0.02, 0.02), (0,)), s.paint((0.35, 0.1, 0.09), (0,))
    for side in (-1.0, 1.0):
        s.add(ELLIPSOID, at(side * 0.33, 0.08, 0.83), (r * 0.13, r * 0.07, r * 0.1), dark, axes)
        s.add(ELLIPSOID, at(side * 0.33, 0.27, 0.82), (r * 0.2, r * 0.04, r * 0.1), hair, axes)
        s.add(ELLIPSOID, at(side * 0.78, 0.0, -0.05), (r * 0.1, r * 0.24, r * 0.17), skin, axes)
    s.rod(at(0, 0.12, 0.88), at(0, -0.2, 1.02), r * 0.09, r * 0.14, skin)
    s.add(ELLIPSOID, at(0, -0.48, 0.78), (r * 0.26, r * 0.06, r * 0.1), lips, axes)
    if s.chance(0.2):
        s.add(ELLIPSOID, at(0, -0.62, 0.45), (r * 0.55, r * 0.38, r * 0.45), hair, axes)


# -------------------------------------------------------------------------------------------------------- things
def chair(s: Scene, x: float, z: float, yaw: float) -> None:
    at, m, seat = s.place(x, z, yaw), s.paint(s.pick(WOOD), PLANKS), s.paint(None, CLOTH)
    w, h = s.u(0.4, 0.5), s.u(0.42, 0.5)
    s.box(x, h - 0.06, z, w, 0.06, w, seat, yaw)
    back = at(0, 0, -w / 2)
    s.box(back[0], h, back[2], w, s.u(0.35, 0.6), 0.05, seat if s.chance(0.5) else m, yaw)
    for a in (-0.45, 0.45):
        for f in (-0.45, 0.45):
            s.rod(at(a * w, 0, f * w), at(a * w, h, f * w), 0.02, 0.02, m, CONE)


def table(s: Scene, x: float, z: float, yaw: float, w: float, d: float, h: float, m: Material | None = None) -> None:
    at, m = s.place(x, z, yaw), m or s.paint(s.pick(WOOD) if s.chance(0.7) else WHITE, PLANKS + PLAIN, gloss=0.2)
    if s.chance(0.2):
        s.add(CONE, (x, h - 0.02, z), (w / 2, 0.02, w / 2), m, p=w / 2)
        s.rod((x, 0, z), (x, h, z), 0.05, 0.05, m, CONE)
        return
    s.box(x, h - 0.05, z, w, 0.05, d, m, yaw)
    for a in (-0.46, 0.46):
        for f in (-0.46, 0.46):
            s.rod(at(a * w, 0, f * d), at(a * w, h, f * d), 0.03, 0.025, m, CONE)


def sofa(s: Scene, x: float, z: float, yaw: float) -> None:
    at, m = s.place(x, z, yaw), s.paint(None, CLOTH + CELLS, scale=s.u(0.5, 4))
    w, d = s.u(1.0, 2.4), s.u(0.8, 1.0)
    s.box(x, 0.05, z, w, 0.37, d, m, yaw)
    back = at(0, 0, -d / 2 + 0.1)
    s.box(back[0], 0.1, back[2], w, s.u(0.6, 0.85), 0.22, m, yaw, 0.05, 0.3)
    for side in (-1, 1):
        a = at(side * w / 2, 0, 0)
        s.box(a[0], 0.0, a[2], 0.2, 0.6, d, m, yaw, 0.2, 0.05)
        if s.chance(0.6):
            p = at(side * w * 0.3, 0, -0.15)
            s.ball((p[0], 0.56, p[2]), (0.22, 0.2, 0.1), s.paint(None, CLOTH, contrast=2.0), yaw)


def bed(s: Scene, x: float, z: float, yaw: float) -> None:
    at, w, d, h = s.place(x, z, yaw), s.u(0.9, 1.9), 2.05, s.u(0.4, 0.6)
    sheet = s.paint(WHITE if s.chance(0.5) else None, CLOTH, scale=s.u(0.5, 3))
    s.box(x, 0.0, z, w, h * 0.6, d, s.paint(s.pick(WOOD), PLANKS), yaw)
    s.box(x, h * 0.6, z, w * 0.98, h * 0.4, d * 0.98, sheet, yaw, 0.03, 0.03)
    foot, head = at(0, 0, 0.25), at(0, 0, -d / 2)
    s.box(
        foot[0],
        h - 0.05,
        foot[2],
        w * 1.03,
        0.1,
        d * 0.72,
        s.paint(None, CLOTH, contrast=s.u(0.1, 1.2)),
        yaw,
        0.03,
        0.03,
    )
    s.box(head[0], 0.0, head[2], w * 1.05, s.u(0.7, 1.3), 0.08, s.paint(s.pick(WOOD), PLANKS), yaw)
    for a in (-0.25, 0.25):
        p = at(a * w, 0, -d / 2 + 0.35)
        s.ball((p[0], h + 0.05, p[2]), (0.3 * w / 1.4, 0.1, 0.2), s.paint(WHITE if s.chance(0.7) else None, CLOTH), yaw)


def cabinet(s: Scene, x: float, y: float, z: float, w: float, h: float, d: float, yaw: float) -> None:
    """A cupboard with doors and handles, or open shelves with things on them."""
    at = s.place(x, z, yaw)
    m = s.paint(WHITE if s.chance(0.5) else s.pick(WOOD) if s.chance(0.7) else None, PLAIN + PLANKS, gloss=0.15)
    s.box(x, y, z, w, h, d, m, yaw)
    doors = max(1, round(w / s.u(0.4, 0.7)))
    shade = s.paint((m[3] * 0.9, m[4] * 0.9, m[5] * 0.9), PLAIN)
    for i in range(doors):
        a = (i + 0.5 - doors / 2) * w / doors
        p = at(a, 0, d / 2 + 0.008)
        if s.chance(0.75):
            s.box(p[0], y + 0.03, p[2], w / doors - 0.03, h - 0.06, 0.016, shade, yaw)
            k = at(a + 0.35 * w / doors, 0, d / 2 + 0.03)
            s.box(k[0], y + h * 0.45, k[2], 0.02, 0.14, 0.02, s.paint((0.4, 0.4, 0.4), (0,), gloss=0.8), yaw)
        else:
            s.wall(
                (p[0], y + h / 2, p[2]),
                (math.sin(yaw), 0, math.cos(yaw)),
                w / doors - 0.04,
                h - 0.06,
                s.paint(None, COLLAGE, scale=1.0, contrast=2),
            )


def small_thing(s: Scene, x: float, y: float, z: float, size: float) -> None:
    """Something one holds or puts on a table: bottle, bowl, box, book, ball, cup, plate, fruit."""
    kind, m = (
        s.rng.random(),
        s.paint(None, ANY, scale=s.u(1, 8), contrast=s.pick((0.2, 0.6, 2.0)), gloss=s.pick((0, 0.2, 0.8))),
    )
    if kind < 0.2:
        s.rod((x, y, z), (x, y + size, z), size * 0.2, size * 0.18, m, CONE)
        s.rod((x, y + size, z), (x, y + size * 1.4, z), size * 0.17, size * 0.07, m, CONE)
    elif kind < 0.35:
        s.add(CONE, (x, y + size * 0.3, z), (size * 0.3, size * 0.3, 0), m, p=size * s.u(0.3, 0.6))
    elif kind < 0.6:
        s.box(x, y, z, size * s.u(0.3, 1.2), size * s.u(0.1, 1), size * s.u(0.3, 1), m, s.u(0, 3))
    elif kind < 0.8:
        r = size * s.u(0.2, 0.45)
        s.ball((x, y + r, z), (r, r, r * s.u(0.8, 1.6)), m, s.u(0, 3))
    else:
        s.add(CONE, (x, y + 0.012, z), (size * 0.5, 0.012, 0), m, p=size * 0.7)
        if s.chance(0.6):
            s.ball((x, y + size * 0.1, z), (size * 0.4, size * 0.2, size * 0.35), s.paint(), s.u(0, 3))


def plant(s: Scene, x: float, z: float, tall: float, ground: float = 0.0) -> None:
    """A tree or a potted plant: trunk and shells of leaves with holes."""
    bark = s.paint(s.pick(WOOD), (11, 12, 13), scale=2.0)
    kind = s.rng.random()
    green = s.paint(
        s.pick(LEAF), ROUGH + CELLS, scale=s.u(0.6, 3) / max(tall / 3, 0.4), contrast=0.7, cut=s.pick((53, 54, 2, 3))
    )
    sway = 0.02 * tall * math.sin(1.3 * s.time + x)
    s.rod((x, ground - 0.2, z), (x + sway, ground + tall * 0.6, z), tall * 0.035, tall * 0.02, bark)
    if kind < 0.25:  # conifer
        for i in range(3):
            y, r = ground + tall * (0.2 + 0.25 * i), tall * (0.24 - 0.06 * i)
            s.add(CONE, (x, y + tall * 0.15, z), (r, tall * 0.17, 0), green, p=r * 0.1)
    else:
        for _ in range(s.rng.randint(2, 5)):
            r = tall * s.u(0.12, 0.28)
            s.ball(
                (x + sway + s.u(-0.2, 0.2) * tall, ground + tall * s.u(0.55, 0.9), z + s.u(-0.2, 0.2) * tall),
                (r, r * s.u(0.6, 1), r),
                green,
                s.u(0, 3),
                cut=s.u(0.3, 0.5) if s.chance(0.7) else 0.0,
            )


def car(s: Scene, x: float, z: float, yaw: float) -> None:
    at = s.place(x, z, yaw)
    m = s.paint(s.colour(0.1), (0,), gloss=0.7, mirror=0.12, contrast=0.1, dirt=0.1)
    glass, tyre = s.paint((0.03, 0.04, 0.05), (0,), gloss=0.9, mirror=0.3), s.paint((0.02, 0.02, 0.02), (1,))
    van = s.chance(0.25)
    length, w = s.u(3.8, 4.8), s.u(1.65, 1.85)
    body, cabin = (0.95, 1.0) if van else (s.u(0.5, 0.62), s.u(0.5, 0.62))
    s.box(x, 0.3, z, w, body, length, m, yaw, 0.08, 0.05)
    c = at(0, 0, -0.1 * length)
    s.box(
        c[0],
        0.3 + body,
        c[2],
        w * 0.94,
        cabin,
        length * (0.85 if van else 0.56),
        glass if s.chance(0.7) else m,
        yaw,
        0.22,
        0.15 if van else 0.42,
    )
    s.box(c[0], 0.3 + body + cabin, c[2], w * 0.74, 0.04, length * (0.7 if van else 0.33), m, yaw)
    for a in (-1, 1):
        for f in (-0.31, 0.31):
            p, q = at(a * w * 0.5, 0.32, f * length), at(a * w * 0.38, 0.32, f * length)
            s.rod(p, q, 0.32, 0.32, tyre, CONE)
        p = at(a * w * 0.36, 0.62, length * 0.49)
        s.ball(p, (0.16, 0.09, 0.06), s.paint((0.9, 0.9, 0.8), (0,), gloss=0.9), yaw)
        p = at(a * w * 0.38, 0.68, -length * 0.49)
        s.ball(p, (0.14, 0.08, 0.05), s.paint((0.6, 0.04, 0.03), (0,), gloss=0.9), yaw)


def bicycle(s: Scene, x: float, z: float, yaw: float, rider: bool) -> None:
    at, m, tyre = s.place(x, z, yaw), s.paint(None, (0,), gloss=0.5), s.paint((0.03, 0.03, 0.03), (0,))
    for f in (-0.52, 0.52):  # a wheel is a ring of short rods
        points = [
            at(0, 0.34 + 0.33 * math.sin(k * math.pi / 5), f + 0.33 * math.cos(k * math.pi / 5)) for k in range(11)
        ]
        for a, b in pairwise(points):
            s.rod(a, b, 0.02, 0.02, tyre)
    joints = [
        at(0, 0.34, -0.52),
        at(0, 0.85, -0.2),
        at(0, 0.8, 0.35),
        at(0, 0.34, 0.0),
        at(0, 0.34, 0.52),
        at(0, 1.0, 0.33),
    ]
    for a, b in ((0, 1), (1, 2), (1, 3), (3, 2), (2, 4), (2, 5), (0, 3)):
        s.rod(joints[a], joints[b], 0.02, 0.02, m)
    s.rod(at(-0.25, 1.0, 0.33), at(0.25, 1.0, 0.33), 0.02, 0.02, m)
    if rider:
        seat = at(0, 0, -0.2)
        person(s, seat[0], seat[2], yaw, "sit", ground=0.45)


def pet(s: Scene, x: float, z: float, yaw: float, ground: float = 0.0) -> None:
    """A four-legged animal: dog, cat, horse by size."""
    size = s.pick((0.3, 0.5, 0.6, 0.7, 1.6))
    m, at = s.paint(s.pick(HAIR + WOOD + (WHITE,)), ROUGH + FOLIAGE, scale=2.0 / size), s.place(x, z, yaw)
    swing = 0.1 * size * math.sin(7 * s.time + x)
    for a in (-0.12, 0.12):
        for i, f in enumerate((-0.35, 0.35)):
            s.rod(
                at(a * size, ground + 0.5 * size, f * size),
                at(a * size, ground + 0.02, f * size + (swing if (a > 0) ^ (i > 0) else -swing)),
                0.06 * size,
                0.035 * size,
                m,
            )
    s.rod(
        at(0, ground + 0.62 * size, -0.38 * size), at(0, ground + 0.62 * size, 0.38 * size), 0.16 * size, 0.19 * size, m
    )
    s.rod(at(0, ground + 0.7 * size, 0.4 * size), at(0, ground + 0.95 * size, 0.6 * size), 0.12 * size, 0.09 * size, m)
    s.rod(
        at(0, ground + 0.98 * size, 0.58 * size), at(0, ground + 0.9 * size, 0.85 * size), 0.13 * size, 0.06 * size, m
    )
    s.rod(
        at(0, ground + 0.65 * size, -0.5 * size),
        at(swing, ground + 0.85 * size, -0.75 * size),
        0.04 * size,
        0.02 * size,
        m,
    )


def machine(s: Scene, x: float, z: float, yaw: float) -> None:
    """Gym and workshop gear: a frame of posts and bars with blocks and discs."""
    at, metal, pad = s.place(x, z, yaw), s.paint(s.colour(), (0,), gloss=0.5), s.paint(None, CLOTH)
    w, h, d = s.u(0.5, 1.4), s.u(0.6, 2.2), s.u(0.5, 1.6)
    corners = [at(a * w / 2, 0, f * d / 2) for a in (-1, 1) for f in (-1, 1)]
    for p in corners[: s.rng.randint(2, 4)]:
        s.rod((p[0], 0, p[2]), (p[0], h, p[2]), 0.04, 0.04, metal, CONE)
    y = h * s.u(0.5, 1.0)
    a, b = at(-w / 2 - 0.3, y, 0), at(w / 2 + 0.3, y, 0)
    s.rod(a, b, 0.025, 0.025, metal)
    for f in (0.02, 0.98):
        p = along(a, b, f)
        s.rod(p, along(a, b, f + 0.04), 0.2, 0.2, s.paint((0.04, 0.04, 0.04), (0,)), CONE)
    s.box(x, s.u(0.2, 0.5), z, w * 0.5, 0.1, d * 0.9, pad, yaw)
