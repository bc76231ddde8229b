"""Seeded scenes of the kinds that video shows: people near and far, rooms, streets, fields, water, snow, table tops.

`build_scene(kind, seed, time)` fills the tables of `render`; the same seed at another time is the same scene, moved on:
people walk, balls bounce, the camera drifts. `render_scene` gives a picture with its depth, `degrade` what cameras
and codecs
do to a picture, `write_sample_clips` the clips in ``kdepth/data/samples``.
"""

import csv
import math
import subprocess
from pathlib import Path
from typing import Any

import cv2
import imageio_ffmpeg
import numpy as np

from train_small import render
from train_small.render import BOX, CAPSULE, CONE, ELLIPSOID, TERRAIN
from train_small.things import (
    ANY,
    BRICKS,
    CELLS,
    CLOTH,
    COLLAGE,
    FACADES,
    FOLIAGE,
    LEAF,
    PLAIN,
    PLANKS,
    PRINTS,
    ROUGH,
    SKIN,
    STONE,
    TILES,
    UP,
    WHITE,
    WOOD,
    Array,
    Material,
    Scene,
    Vec,
    along,
    bed,
    bicycle,
    cabinet,
    car,
    chair,
    cross,
    machine,
    person,
    pet,
    plant,
    small_thing,
    sofa,
    table,
    turned,
    unit,
)


# -------------------------------------------------------------------------------------------------------- scenes
def _shell(s: Scene, w: float, h: float, d: float, front: float, *, white: float = 0.5) -> None:
    """Floor, ceiling and walls of a room, x in +-w/2, z from front to d; windows, doors, pictures, lamps on them."""

    def wall_paint() -> Material:
        if s.chance(white):
            return s.paint(
                (s.u(0.6, 0.85),) * 3 if s.chance(0.5) else WHITE, PLAIN, contrast=0.06, scale=0.3, dirt=s.u(0, 0.2)
            )
        return s.paint(
            s.colour(0.15), PLAIN * 4 + BRICKS + TILES + PLANKS + ROUGH + (22, 24, 31, 33), scale=s.u(0.3, 1.2)
        )

    ground = s.pick(
        (
            lambda: s.paint(
                s.pick(WOOD), PLANKS, scale=s.u(0.5, 1.0), gloss=0.2, mirror=s.pick((0, 0, 0.06, 0.15)), ripple=0.03
            ),
            lambda: s.paint(
                s.pick(STONE), TILES, scale=s.u(0.4, 1.2), gloss=0.3, mirror=s.pick((0, 0, 0.08, 0.2)), ripple=0.02
            ),
            lambda: s.paint(None, ROUGH + CLOTH, scale=s.u(0.4, 2.0)),
            lambda: s.paint(WHITE, PLAIN, mirror=s.pick((0, 0.1)), contrast=0.1),
        )
    )()
    s.floor(ground)
    side, mid = wall_paint(), (front + d) / 2
    s.wall(
        (0, h, mid),
        (0, -1, 0),
        w,
        d - front,
        s.paint(WHITE, PLAIN + TILES, contrast=0.1, scale=0.5) if s.chance(0.8) else side,
    )
    s.wall((0, h / 2, d), (0, 0, -1), w, h, side if s.chance(0.6) else wall_paint())
    s.wall((-w / 2, h / 2, mid), (1, 0, 0), d - front, h, side)
    s.wall((w / 2, h / 2, mid), (-1, 0, 0), d - front, h, side if s.chance(0.7) else wall_paint())
    s.wall((0, h / 2, front), (0, 0, 1), w, h, side)
    frame = s.paint(WHITE if s.chance(0.6) else s.pick(WOOD), PLAIN)
    for _ in range(s.rng.randint(0, 5)):
        face = s.rng.randint(0, 2)
        a = s.u(-0.4, 0.4) * w if face == 0 else s.u(front + 0.6, d - 0.6)
        normal = ((0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (-1.0, 0.0, 0.0))[face]

        def on(y: float, off: float, a: float = a, face: int = face) -> Vec:
            return (a, y, d - off) if face == 0 else ((-w / 2 + off) if face == 1 else (w / 2 - off), y, a)

        kind = s.rng.random()
        if kind < 0.35:  # a window: the outside is far
            ww, wh, y = s.u(0.6, 2.0), s.u(0.7, 1.5), h * s.u(0.5, 0.62)
            if s.chance(0.7):
                s.wall(on(y, 0.012), normal, ww, wh, s.paint(emission=-1.0))
            else:  # blinds, or frosted glass: flat and bright
                s.wall(on(y, 0.012), normal, ww, wh, s.paint(WHITE, (0, 23, 25, 27), scale=1.0, emission=s.u(0.7, 2)))
            yaw = 0.0 if face == 0 else math.pi / 2
            for dx in (-0.5, 0.0, 0.5):
                p = on(y - wh / 2, 0.03)
                p = (p[0] + dx * ww, p[1], p[2]) if face == 0 else (p[0], p[1], p[2] + dx * ww)
                s.box(*p, 0.06, wh, 0.06, frame, yaw)
            for dy in (-0.5, 0.5):
                p = on(y + dy * wh - 0.03, 0.03)
                s.box(*p, ww + 0.06, 0.06, 0.06, frame, yaw)
            if s.chance(0.4):
                curtain = s.paint(None, (13, 22, 24, 0), scale=s.u(0.5, 3))
                for dx in (-0.62, 0.62):
                    p = on(y - wh * 0.7, 0.1)
                    p = (p[0] + dx * ww, p[1], p[2]) if face == 0 else (p[0], p[1], p[2] + dx * ww)
                    s.box(*p, 0.4, wh * 1.3, 0.1, curtain, yaw)
        elif kind < 0.55:  # a door
            s.box(
                *on(0.0, 0.02),
                0.9,
                min(2.05, h * 0.9),
                0.06,
                s.paint(WHITE if s.chance(0.5) else s.pick(WOOD), PLAIN + PLANKS),
                0.0 if face == 0 else math.pi / 2,
            )
        else:  # picture, poster, screen, mirror-like panel
            pw, ph = s.u(0.3, 1.6), s.u(0.3, 1.1)
            s.box(
                *on(h * s.u(0.5, 0.65) - ph / 2, 0.02),
                pw + 0.06,
                ph + 0.06,
                0.03,
                frame,
                0.0 if face == 0 else math.pi / 2,
            )
            s.wall(
                on(h * 0.58, 0.045),
                normal,
                pw,
                ph,
                s.paint(None, COLLAGE + PRINTS + ROUGH, scale=1.0 / pw, contrast=2.0, emission=s.pick((0, 0, 0, 0.8))),
            )
    for _ in range(s.rng.randint(0, 3)):
        s.box(
            s.u(-0.4, 0.4) * w,
            h - 0.04,
            s.u(0.2, 0.9) * d,
            s.u(0.2, 1.2),
            0.04,
            s.u(0.1, 0.6),
            s.paint((1, 1, 0.95), (0,), emission=s.u(0.9, 2.0)),
        )


def _people(
    s: Scene, count: int, x: tuple[float, float], z: tuple[float, float], pose: str = "", detail: bool = True
) -> None:
    for _ in range(count):
        px, pz, yaw = s.u(*x), s.u(*z), s.u(0, 6.3) if s.chance(0.5) else math.pi + s.u(-0.8, 0.8)
        speed = s.u(0.3, 1.2) if s.chance(0.5) else 0.0
        person(
            s,
            px + math.sin(yaw) * speed * s.time,
            pz + math.cos(yaw) * speed * s.time,
            yaw,
            "walk" if speed and not pose else pose,
            detail=detail,
        )


def room(s: Scene, kitchen: bool = False) -> None:
    w, h, d = s.u(2.8, 6.5), s.u(2.3, 3.2), s.u(3.0, 8.0)
    front = -s.u(0.4, 3.0)
    _shell(s, w, h, d, front)
    s.lamplight(w, h, d)
    if kitchen:
        y, depth = s.u(0.85, 0.95), 0.6
        for side, yaw in ((0, math.pi), (1, math.pi / 2), (2, -math.pi / 2)):
            if not s.chance(0.65):
                continue
            n, unit = s.rng.randint(2, 5), s.u(0.5, 0.9)
            for i in range(n):
                a = (i - n / 2 + 0.5) * unit
                px, pz = (
                    (a, d - depth / 2)
                    if side == 0
                    else ((-w / 2 + depth / 2) if side == 1 else (w / 2 - depth / 2), d * 0.55 + a)
                )
                if s.chance(0.12):
                    cabinet(s, px, 0, pz, unit, s.u(1.7, 2.1), depth, yaw)
                    continue
                cabinet(s, px, 0, pz, unit, y, depth, yaw)
                if s.chance(0.6):
                    off = 0.12 if side else 0.0
                    cabinet(
                        s, px - (off if side == 1 else -off), 1.45, pz + (0 if side else 0.12), unit, 0.7, 0.35, yaw
                    )
                for _ in range(s.rng.randint(0, 2)):
                    small_thing(s, px + s.u(-0.2, 0.2), y, pz + s.u(-0.2, 0.2), s.u(0.1, 0.3))
    for _ in range(s.rng.randint(2, 7)):
        x, z, yaw = (
            s.u(-0.42, 0.42) * w,
            s.u(1.3, d - 0.5),
            s.pick((0, 0.5, 1, 1.5)) * math.pi + s.u(-0.3, 0.3) * (s.rng.random() ** 2),
        )
        kind = s.rng.random()
        if kind < 0.22:
            tw, td, th = s.u(0.6, 1.8), s.u(0.5, 1.0), s.u(0.4, 0.8)
            table(s, x, z, yaw, tw, td, th)
            for _ in range(s.rng.randint(0, 5)):
                p = s.place(x, z, yaw)(s.u(-0.4, 0.4) * tw, 0, s.u(-0.4, 0.4) * td)
                small_thing(s, p[0], th, p[2], s.u(0.08, 0.3))
        elif kind < 0.4:
            chair(s, x, z, yaw)
        elif kind < 0.55 and not kitchen:
            sofa(s, x, z, yaw)
        elif kind < 0.65 and not kitchen:
            bed(s, x, z, yaw)
        elif kind < 0.8:
            side = s.pick((-1, 1))
            cabinet(s, side * (w / 2 - 0.25), 0, z, s.u(0.5, 1.5), s.u(0.5, 2.1), 0.45, -side * math.pi / 2)
        elif kind < 0.87:
            plant(s, x, z, s.u(0.6, 1.8))
        elif kind < 0.93:
            s.rod((x, 0, z), (x, 1.5, z), 0.02, 0.02, s.paint())
            s.add(CONE, (x, 1.6, z), (0.22, 0.16, 0), s.paint((1, 0.9, 0.7), (0,), emission=1.2), p=0.13)
        else:
            s.box(x, 0, z, s.u(0.3, 0.8), s.u(0.2, 0.7), s.u(0.3, 0.8), s.paint(None, ANY), yaw)
    if s.chance(0.35):
        s.box(
            s.u(-1, 1),
            0.0,
            s.u(1.5, d - 1),
            s.u(1, 2.5),
            0.012,
            s.u(0.8, 2),
            s.paint(None, CLOTH + CELLS, contrast=2),
            s.u(-0.3, 0.3),
        )
    if s.chance(0.65):
        _people(s, s.rng.randint(1, 3), (-0.35 * w, 0.35 * w), (1.2, d - 0.7))
    if s.chance(0.15):
        pet(s, s.u(-1, 1), s.u(1.2, 3), s.u(0, 6))
    s.camera(
        (s.u(-0.3, 0.3) * w, s.u(0.9, 1.8), front + 0.3 + s.u(0, 0.3)),
        (s.u(-0.3, 0.3) * w, s.u(0.2, 1.5), d * s.u(0.5, 1)),
        s.u(42, 88),
    )


def gym(s: Scene) -> None:
    w, h, d = s.u(8, 24), s.u(3.5, 9), s.u(10, 32)
    _shell(s, w, h, d, -2.0, white=0.35)
    s.lamplight(w, h, d)
    s.light[20] = s.u(8, 20)
    for _ in range(s.rng.randint(0, 9)):
        x, z = s.u(-0.45, 0.45) * w, s.u(2.5, d - 1)
        if s.chance(0.6):
            machine(s, x, z, s.u(0, 6))
        else:
            s.box(x, 0, z, s.u(1, 2.5), s.u(0.04, 0.5), s.u(1, 2.5), s.paint(None, CLOTH), s.u(0, 6))
    _people(s, s.rng.randint(1, 6), (-0.3 * w, 0.3 * w), (1.8, d * 0.7))
    for _ in range(s.rng.randint(0, 4)):
        r = s.u(0.1, 0.35)
        s.ball(
            (s.u(-3, 3), r + 1.2 * abs(math.sin(3 * s.time + s.u(0, 3))) * s.pick((0, 1)), s.u(1.5, 9)),
            r,
            s.paint(None, ANY, contrast=2),
        )
    s.camera((s.u(-2, 2), s.u(0.8, 3.0), -1.5), (s.u(-2, 2), s.u(0.3, 1.5), s.u(4, 10)), s.u(35, 75))


def stage(s: Scene) -> None:
    w, h, d = s.u(6, 16), s.u(4, 8), s.u(6, 16)
    _shell(s, w, h, d, -6.0, white=0.1)
    s.lamplight(w, h, d, s.u(0.2, 1.0))
    s.light[:8] = [1, s.u(-2, 2), h * 0.95, s.u(3, 7), 4.0 * s.u(0.6, 1), 4.0 * s.u(0.5, 1), 4.0 * s.u(0.5, 1), 0.1]
    s.light[20:22] = [s.u(4, 8), s.pick((-2.0, 0.6, 0.8))]
    rise = s.u(0, 1.2)
    s.box(0, 0, d * 0.5 + 2.5, w, rise + 0.01, d - 5 + 5, s.paint(s.pick(WOOD), PLANKS, mirror=s.pick((0, 0.1))))
    s.wall(
        (0, h / 2, d - 0.3),
        (0, 0, -1),
        w,
        h,
        s.paint(s.pick(((0.02, 0.02, 0.03), (0.3, 0.02, 0.03), (0.05, 0.05, 0.2))), (13, 22, 24, 0), scale=0.7),
    )
    for _ in range(s.rng.randint(1, 6)):
        person(s, s.u(-0.3, 0.3) * w, s.u(d * 0.5 - 1.5, d - 1), math.pi + s.u(-1, 1), ground=rise)
    for _ in range(s.rng.randint(0, 4)):
        small_thing(s, s.u(-3, 3), rise, s.u(d * 0.5 - 1, d - 1), s.u(0.4, 1.3))
    if s.chance(0.55):  # the audience's heads
        for _ in range(s.rng.randint(3, 14)):
            person(
                s, s.u(-3, 3), s.u(-2.3, d * 0.5 - 3), s.u(-0.2, 0.2), s.pick(("stand", "sit", "raise")), detail=False
            )
    s.camera((s.u(-1, 1), s.u(1.4, 2.4), -s.u(3.2, 5.5)), (s.u(-1, 1), rise + s.u(0.7, 1.8), d * 0.6), s.u(30, 65))


def corridor(s: Scene) -> None:
    w, h, d = s.u(1.3, 3.5), s.u(2.2, 3.4), s.u(7, 30)
    _shell(s, w, h, d, -1.0, white=0.6)
    s.lamplight(w, h, d)
    door = s.paint(s.pick(WOOD) if s.chance(0.6) else None, PLAIN + PLANKS)
    step = s.u(1.8, 3.5)
    for i in range(int(d / step)):
        for side in (-1, 1):
            if s.chance(0.7):
                s.box(side * w / 2, 0, 1.5 + i * step, 0.08, 2.05, 0.9, door)
        if s.chance(0.7):
            s.box(0, h - 0.05, 1.0 + i * step, 0.5, 0.05, 0.5, s.paint((1, 1, 1), (0,), emission=1.5))
    for _ in range(s.rng.randint(0, 3)):
        s.box(s.pick((-1, 1)) * (w / 2 - 0.2), 0, s.u(2, d - 1), 0.35, s.u(0.4, 1.9), s.u(0.3, 0.9), s.paint(None, ANY))
    _people(s, s.rng.randint(0, 4), (-0.3 * w, 0.3 * w), (1.6, d * 0.7))
    s.camera(
        (s.u(-0.25, 0.25) * w, s.u(1.0, 1.8), -0.7 + 0.9 * s.time), (s.u(-0.3, 0.3) * w, s.u(0.7, 1.5), d), s.u(45, 85)
    )


def street(s: Scene) -> None:
    s.daylight()
    road = s.u(3, 8)
    s.floor(s.paint(s.pick(STONE), ROUGH + BRICKS[:1], scale=s.u(0.2, 0.8), mirror=s.pick((0, 0, 0, 0.1)), ripple=0.02))
    for side in (-1, 1):
        s.box(side * (road + 2), 0, 60, 4, 0.14, 160, s.paint(s.pick(STONE), TILES + ROUGH, scale=0.6))
        z = s.u(-6, 6)
        setback = s.u(0, 3)
        for _ in range(9):
            width, tall = s.u(5, 18), s.u(3, 18)
            if s.chance(0.75):
                s.box(
                    side * (road + 4 + setback + 5),
                    0,
                    z + width / 2,
                    10,
                    tall,
                    width - s.u(0, 0.6),
                    s.paint(s.colour(0.1), FACADES + FACADES + BRICKS, scale=s.u(0.12, 0.3)),
                    0.0,
                    *s.pick(((0, 0), (0, 0), (0, 0), (0.1, 0.1))),
                )
            elif s.chance(0.7):
                plant(s, side * (road + 6), z + width / 2, s.u(3, 9))
            z += width
        for _ in range(s.rng.randint(0, 5)):
            kind, z = s.rng.random(), s.u(3, 40)
            if kind < 0.4:
                s.rod(
                    (side * road, 0, z), (side * road, s.u(3, 7), z), 0.08, 0.05, s.paint((0.2, 0.2, 0.2), (0,)), CONE
                )
            elif kind < 0.7:
                plant(s, side * (road + 0.8), z, s.u(3, 7))
            else:
                small_thing(s, side * (road + 0.5), 0.14, z, s.u(0.5, 1.2))
    for z in range(0, 60, 6):
        s.box(0, 0.0, z + 2, 0.15, 0.006, 2.5, s.paint(WHITE, (1,)))
    for _ in range(s.rng.randint(0, 7)):
        lane = s.pick((-1, 1))
        z = s.u(4, 45)
        parked = s.chance(0.6)
        car(
            s,
            lane * (road - 1.1 if parked else road * 0.45),
            z + (0 if parked else -lane * 4 * s.time),
            (0 if lane > 0 else math.pi) + s.u(-0.05, 0.05),
        )
    _people(s, s.rng.randint(0, 5), (-road - 3, road + 3), (2.5, 22))
    for _ in range(s.rng.randint(0, 2)):
        z, yaw = s.u(2.5, 12), s.pick((0, math.pi)) + s.u(-0.6, 0.6)
        bicycle(s, s.u(-0.8, 0.8) * road, z + math.cos(yaw) * 2.5 * s.time, yaw, s.chance(0.8))
    s.camera(
        (s.u(-0.9, 0.9) * (road + 2), s.u(1.2, 2.6), s.u(-4, 0) + 0.6 * s.time),
        (s.u(-4, 4), s.u(-0.2, 2.2), 20),
        s.u(38, 80),
    )


def field(s: Scene) -> None:
    """Grass, sand or earth under a sky: sport, farms, parks, hills, stands."""
    s.daylight()
    base = s.pick(LEAF[:3]) if s.chance(0.65) else s.pick(((0.5, 0.4, 0.25), (0.35, 0.25, 0.15), (0.6, 0.55, 0.45)))
    ground = s.paint(base, ROUGH + FOLIAGE, scale=s.u(0.1, 0.8), contrast=0.5)
    wavy = s.chance(0.35)
    if wavy:
        s.add(TERRAIN, (0, -0.3, 0), (1e5, s.u(0.1, 0.6), 1e5), ground, p=s.u(0, 6), q=s.u(0.08, 0.25))
    else:
        s.floor(ground)
    if s.chance(0.5):
        for _ in range(s.rng.randint(2, 8)):
            r = s.u(30, 90)
            s.ball(
                (s.u(-150, 150), -r * 0.6, s.u(90, 300)),
                (r * s.u(1, 3), r, r),
                s.paint(s.pick(LEAF), ROUGH + FOLIAGE, scale=0.03, contrast=0.5),
            )
    for _ in range(s.rng.randint(0, 16)):
        plant(s, s.u(-30, 30), s.u(9, 70), s.u(2, 10))
    kind = s.rng.random()
    if kind < 0.25:  # a stand of seats with people as coloured dots
        z = s.u(18, 50)
        for i in range(6):
            s.box(0, 0, z + i * 1.5, 90, 1 + i * 0.9, 1.5, s.paint(None, COLLAGE + CELLS, scale=0.4, contrast=2))
    elif kind < 0.45:  # a goal or frame
        z, gw, gh, m = s.u(6, 25), s.u(2, 7), s.u(1, 3), s.paint(WHITE, (0,))
        for side in (-1, 1):
            s.rod((side * gw / 2, 0, z), (side * gw / 2, gh, z), 0.06, 0.06, m)
        s.rod((-gw / 2, gh, z), (gw / 2, gh, z), 0.06, 0.06, m)
    elif kind < 0.65:  # a fence
        m, z = s.paint(s.pick(WOOD), PLANKS), s.u(5, 20)
        for i in range(-8, 9):
            s.box(i * 1.6, -0.2, z, 0.1, 1.4, 0.1, m)
        for y in (0.4, 0.95):
            s.box(0, y, z, 26, 0.1, 0.05, m)
    elif kind < 0.75:
        s.box(
            s.u(-15, 15),
            0,
            s.u(15, 40),
            s.u(5, 12),
            s.u(3, 6),
            s.u(5, 10),
            s.paint(None, BRICKS + PLANKS + FACADES, scale=0.3),
            s.u(-0.5, 0.5),
        )
    for _ in range(s.rng.randint(0, 5)):
        r = s.u(0.15, 0.8)
        s.ball(
            (s.u(-6, 6), r * 0.3, s.u(2.5, 15)),
            (r, r * 0.7, r * s.u(0.7, 1.3)),
            s.paint(s.pick(STONE), ROUGH),
            s.u(0, 3),
        )
    _people(s, s.rng.randint(0, 7), (-5, 5), (2.0, 20))
    if s.chance(0.3):
        pet(s, s.u(-3, 3), s.u(2, 8), s.u(0, 6))
    if s.chance(0.4):
        s.ball(
            (s.u(-2, 2), 0.11 + 1.5 * abs(math.sin(2.5 * s.time + s.u(0, 3))), s.u(2, 8)),
            0.11,
            s.paint(WHITE, (28, 35), scale=5, contrast=0.9),
        )
    s.camera((s.u(-2, 2), s.u(0.9, 2.6), -0.5), (s.u(-3, 3), s.u(-0.5, 2.2), 12), s.u(30, 75))


def water(s: Scene) -> None:
    """Sea, lake or pool: a mirror with ripples, shores, boats and swimmers."""
    s.daylight()
    tint = s.pick(((0.02, 0.1, 0.15), (0.03, 0.25, 0.35), (0.05, 0.12, 0.1), (0.1, 0.4, 0.5)))
    s.floor(s.paint(tint, (8, 7, 23), scale=s.u(0.1, 0.5), mirror=s.u(0.1, 0.4), ripple=s.u(0.05, 0.4), gloss=0.3))
    pool = s.chance(0.35)
    if pool:
        edge = s.paint(s.pick(STONE), TILES, scale=0.5)
        w = s.u(4, 12)
        for side in (-1, 1):
            s.box(side * (w + 5), -0.5, 20, 10, 0.65, 60, edge)
        s.box(0, -0.5, s.u(14, 25) + 4, 40, 0.65, 8, edge)
        for i in range(-2, 3):
            s.rod((i * 2.2, 0, 0), (i * 2.2, 0, 25), 0.06, 0.06, s.paint(None, (22, 28), scale=1, contrast=2))
    else:
        for _ in range(s.rng.randint(2, 7)):
            r = s.u(10, 60)
            s.ball(
                (s.u(-150, 150), -r * 0.3, s.u(60, 250)),
                (r * s.u(1, 4), r * s.u(0.4, 0.9), r),
                s.paint(s.pick(LEAF + STONE), ROUGH, scale=0.05, contrast=0.5),
            )
        if s.chance(0.5):
            s.add(
                TERRAIN,
                (0, -0.35, -8),
                (1e5, 0.15, 1e5),
                s.paint((0.6, 0.5, 0.35), ROUGH, scale=0.5),
                p=s.u(0, 6),
                q=0.2,
            )
            s.box(0, -6, 54 + s.u(3, 8), 400, 6.0, 100, s.material[0])
    for _ in range(s.rng.randint(0, 3)):
        x, z, yaw, m = s.u(-8, 8), s.u(4, 30), s.u(0, 6), s.paint(None, PLANKS + PLAIN)
        s.add(ELLIPSOID, (x, 0.1 + 0.05 * math.sin(2 * s.time), z), (0.7, 0.45, s.u(1.5, 3)), m, turned(yaw))
        if s.chance(0.6):
            person(s, x, z, yaw, "sit", ground=0.1)
    for _ in range(s.rng.randint(0, 4)):
        person(s, s.u(-5, 5), s.u(2.5, 15), s.u(0, 6), s.pick(("reach", "raise", "stand")), ground=-s.u(0.5, 1.2))
    s.camera((s.u(-1, 1), s.u(0.8, 2.8), -1), (s.u(-3, 3), s.u(-0.5, 1.2), 12), s.u(35, 75))


def snow(s: Scene) -> None:
    s.daylight()
    s.add(
        TERRAIN,
        (0, -0.2, 0),
        (1e5, s.u(0.1, 0.5), 1e5),
        s.paint((0.82, 0.85, 0.9), (1, 5, 7), contrast=0.12, scale=0.2),
        p=s.u(0, 6),
        q=s.u(0.08, 0.3),
    )
    for _ in range(s.rng.randint(0, 6)):
        r = s.u(40, 140)
        s.add(
            CONE,
            (s.u(-250, 250), r * 0.2, s.u(120, 400)),
            (r, r * s.u(0.4, 0.8), 0),
            s.paint(s.pick(((0.8, 0.83, 0.88), (0.4, 0.42, 0.45))), ROUGH + FOLIAGE, scale=0.02, contrast=0.5),
            p=r * 0.05,
        )
    for _ in range(s.rng.randint(0, 20)):
        plant(s, s.u(-25, 25), s.u(7, 60), s.u(2, 8), ground=-0.3)
    for _ in range(s.rng.randint(1, 5)):
        x, z, yaw = s.u(-4, 4), s.u(2.5, 16), s.u(0, 6)
        person(s, x, z, yaw, s.pick(("squat", "walk", "stand", "bend")))
        at, m = s.place(x, z, yaw), s.paint(None, CLOTH, contrast=2)
        for side in (-0.12, 0.12):
            s.rod(at(side, 0.03, -0.8), at(side, 0.03, 0.9), 0.03, 0.03, m)
    s.camera((s.u(-1, 1), s.u(1.0, 2.5), -0.5), (s.u(-3, 3), s.u(-0.6, 1.6), 12), s.u(35, 75))


def forest(s: Scene) -> None:
    s.daylight()
    s.add(
        TERRAIN,
        (0, -0.3, 0),
        (1e5, s.u(0.05, 0.35), 1e5),
        s.paint(s.pick(LEAF + WOOD), ROUGH + FOLIAGE + CELLS, scale=s.u(0.3, 1), contrast=0.6),
        p=s.u(0, 6),
        q=s.u(0.15, 0.5),
    )
    bark = s.paint(s.pick(WOOD + STONE), (11, 12, 13), scale=1.0, contrast=0.6)
    for _ in range(s.rng.randint(8, 30)):
        x, z, r = s.u(-14, 14), s.u(2, 40), s.u(0.08, 0.35)
        s.rod((x, -0.5, z), (x + s.u(-0.7, 0.7), s.u(5, 14), z + s.u(-0.5, 0.5)), r, r * 0.6, bark, CONE)
    for _ in range(s.rng.randint(2, 14)):
        plant(s, s.u(-12, 12), s.u(3, 30), s.u(0.6, 7))
    for _ in range(s.rng.randint(0, 9)):
        r = s.u(0.1, 0.9)
        s.ball(
            (s.u(-6, 6), r * 0.2, s.u(1.5, 15)),
            (r, r * 0.7, r * s.u(0.6, 1.4)),
            s.paint(s.pick(STONE), ROUGH, scale=1),
            s.u(0, 3),
        )
    _people(s, s.rng.randint(0, 3), (-3, 3), (2, 12))
    s.camera((s.u(-1, 1), s.u(0.8, 1.9), -0.5), (s.u(-3, 3), s.u(-0.3, 2.5), 12), s.u(38, 75))


def _backdrop(s: Scene, d: float) -> None:
    """What is behind people close to the camera: a wall, a room, the open."""
    kind = s.rng.random()
    if kind < 0.55:
        w, h = s.u(2.5, 7), s.u(2.3, 3.2)
        _shell(s, w, h, d, -1.5, white=0.45)
        s.lamplight(w, h, d)
        for _ in range(s.rng.randint(0, 4)):
            cabinet(s, s.u(-0.4, 0.4) * w, s.pick((0, 0, 1.2)), d - 0.25, s.u(0.4, 1.4), s.u(0.5, 1.1), 0.4, math.pi)
        if s.chance(0.4):
            plant(s, s.u(-1, 1), d - 0.5, s.u(0.8, 1.9))
        if s.chance(0.3):
            sofa(s, s.u(-1, 1), d - 0.7, math.pi)
    else:
        s.daylight()
        s.floor(s.paint(s.pick(LEAF + STONE), ROUGH, scale=0.4))
        for _ in range(s.rng.randint(0, 8)):
            plant(s, s.u(-10, 10), s.u(4, 30), s.u(1.5, 7))
        for _ in range(s.rng.randint(0, 3)):
            s.box(
                s.u(-15, 15),
                0,
                s.u(8, 40),
                s.u(4, 12),
                s.u(3, 12),
                s.u(4, 9),
                s.paint(None, FACADES + BRICKS, scale=0.25),
                s.u(-0.5, 0.5),
            )


def portrait(s: Scene) -> None:
    """Heads and shoulders, one to three, talking to the camera; something held up; a table edge."""
    _backdrop(s, s.u(1.6, 6.0))
    count = s.pick((1, 1, 1, 2, 2, 3))
    eye_y = s.u(1.2, 1.6)
    z = s.u(0.55, 1.3)
    for i in range(count):
        tall = s.u(1.55, 1.85)
        x = (i - (count - 1) / 2) * s.u(0.45, 0.6) + s.u(-0.12, 0.12)
        person(
            s,
            x + 0.03 * math.sin(1.1 * s.time + i),
            z + s.u(0, 0.35) + 0.02 * math.sin(1.7 * s.time),
            math.pi + s.u(-0.6, 0.6),
            s.pick(("stand", "reach", "sit", "raise", "stand")),
            ground=eye_y - s.u(0.85, 0.95) * tall + s.u(-0.03, 0.1),
            height=tall,
        )
    if s.chance(0.3):
        table(s, 0, 0.5, 0, s.u(1, 2), 0.5, eye_y - s.u(0.35, 0.6))
    if s.chance(0.25):
        small_thing(s, s.u(-0.3, 0.3), eye_y - s.u(0.1, 0.4), s.u(0.35, 0.6), s.u(0.1, 0.25))
    s.camera(
        (s.u(-0.15, 0.15), eye_y, -s.u(0.0, 0.4)),
        (s.u(-0.15, 0.15), eye_y + s.u(-0.25, 0.1), z + 0.2),
        s.u(35, 75),
        0.4,
    )


def seated_in_car(s: Scene) -> None:
    """Inside a car: a person in a seat, headrests, windows with the world outside."""
    s.daylight()
    s.portal_m = s.u(6, 60)
    dark = s.paint(s.pick(((0.05, 0.05, 0.05), (0.3, 0.27, 0.23), (0.12, 0.12, 0.13))), (0, 1, 36), scale=3)
    s.light[14:20] = [v * s.u(0.6, 1.0) for v in s.light[14:20]]
    s.floor(s.paint(s.pick(STONE), ROUGH, scale=0.3), -0.4)
    for _ in range(s.rng.randint(3, 9)):
        z = s.u(-10, 25) - s.time * 3
        if s.chance(0.5):
            plant(s, s.pick((-1, 1)) * s.u(4, 25), z, s.u(3, 9), ground=-0.4)
        else:
            s.box(
                s.pick((-1, 1)) * s.u(9, 25),
                -0.4,
                z,
                6,
                s.u(3, 9),
                s.u(4, 12),
                s.paint(None, FACADES + BRICKS, scale=0.2),
            )
    z0, w = s.u(0.7, 1.1), s.u(1.3, 1.6)
    for x in (-0.38, 0.38) if s.chance(0.7) else (s.u(-0.2, 0.2),):
        seat = s.paint(None, (*CLOTH, 36), scale=3) if s.chance(0.4) else dark
        s.box(x, 0.0, z0 + 0.15, 0.5, 0.75, 0.16, seat, 0, 0.25, 0.2)
        s.box(x, 0.78, z0 + 0.15, 0.27, 0.2, 0.12, seat, 0, 0.2, 0.1)
        if s.chance(0.8) or len(s.kinds) < 20:
            person(s, x, z0 - 0.12, math.pi + s.u(-0.5, 0.5), "sit", ground=-0.25, height=s.u(1.6, 1.85))
    back = z0 + s.u(0.5, 1.2)
    s.wall((0, 1.28, 0.5), (0, -1, 0), w, 4, s.paint(s.pick(((0.4, 0.38, 0.35), (0.05, 0.05, 0.05))), (1,)))
    for side in (-1, 1):
        s.box(side * w / 2, -0.3, 0.5, 0.06, s.u(0.75, 0.95), 4, dark)
        for z in (z0 - 0.45, z0 + 0.3, back):
            s.rod((side * w / 2, 0.4, z), (side * (w / 2 - 0.1), 1.28, z + 0.1), 0.05, 0.05, dark)
    if s.chance(0.7):
        s.box(0, 0, back, w, 0.65, 0.3, dark)
    if s.chance(0.35):
        s.add(ELLIPSOID, (s.u(-0.4, 0.4), 0.75, 0.28), (0.19, 0.19, 0.02), dark)
    s.camera((s.u(-0.35, 0.35), s.u(0.75, 1.1), -s.u(0, 0.35)), (s.u(-0.2, 0.2), s.u(0.65, 0.95), z0), s.u(45, 80), 0.3)


def tabletop(s: Scene, steep: float = 0.0) -> None:
    """A table or counter seen from above its edge, with things and hands; steep = 1: straight down."""
    w, h, d = s.u(3, 6), 2.5, s.u(2.5, 5)
    _shell(s, w, h, d, -1.5)
    s.lamplight(w, h, d)
    s.portal_m = 10
    top, tz = s.u(0.7, 0.95), s.u(0.45, 0.7)
    tw, td = s.u(0.8, 2.2), s.u(0.6, 1.1)
    m = s.paint(
        s.pick((*WOOD, WHITE, (0.03, 0.03, 0.03), (0.4, 0.4, 0.4))) if s.chance(0.8) else None,
        PLANKS + PLAIN + CLOTH + TILES,
        scale=s.u(0.8, 2),
        gloss=0.3,
    )
    table(s, 0, tz, s.u(-0.2, 0.2), tw, td, top, m)
    for _ in range(s.rng.randint(1, 12)):
        small_thing(s, s.u(-0.4, 0.4) * min(tw, 1.4), top, tz + s.u(-0.4, 0.4) * td, s.u(0.05, 0.28))
    skin, sleeve = s.paint(s.pick(SKIN), (1,), contrast=0.15), s.paint(None, CLOTH, scale=4)
    for side in (-1, 1):
        if not s.chance(0.7):
            continue
        opposite = s.chance(0.3)
        start = (side * s.u(0.2, 0.4), top + s.u(0.1, 0.35), tz + td / 2 + 0.3 if opposite else tz - td / 2 - 0.15)
        move = 0.05 * math.sin(3 * s.time + side)
        hand = (side * s.u(0.02, 0.25) + move, top + s.u(0.03, 0.12), tz + s.u(-0.25, 0.15))
        elbow = along(start, hand, 0.45)
        s.rod(start, elbow, 0.05, 0.042, sleeve)
        s.rod(elbow, hand, 0.04, 0.028, skin)
        ahead = unit((hand[0] - elbow[0], hand[1] - elbow[1], hand[2] - elbow[2]))
        palm = (hand[0] + 0.05 * ahead[0], hand[1] + 0.05 * ahead[1], hand[2] + 0.05 * ahead[2])
        s.ball(palm, (0.045, 0.025, 0.055), skin, math.atan2(ahead[0], ahead[2]))
        for f in (-1.5, -0.5, 0.5, 1.5):
            base = (palm[0] + 0.02 * f * ahead[2], palm[1], palm[2] - 0.02 * f * ahead[0])
            tip = (
                base[0] + 0.1 * ahead[0] + 0.012 * f,
                max(base[1] - s.u(0, 0.05), top + 0.01),
                base[2] + 0.1 * ahead[2],
            )
            s.rod(base, tip, 0.011, 0.009, skin)
        if s.chance(0.4):
            small_thing(s, tip[0], top + 0.02, tip[2], s.u(0.08, 0.2))
    if s.chance(0.4):
        person(
            s,
            s.u(-0.3, 0.3),
            tz + td / 2 + 0.25,
            math.pi,
            s.pick(("reach", "sit", "stand")),
            ground=s.pick((0.0, -0.3)),
        )
    a = math.radians(80) if steep > 0.5 else s.u(0.25, 1.25)
    r = s.u(0.5, 1.2)
    target = (s.u(-0.1, 0.1), top, tz + s.u(-0.1, 0.1))
    s.camera(
        (target[0] + s.u(-0.3, 0.3) * r, top + r * math.sin(a), target[2] - r * math.cos(a)), target, s.u(40, 75), 0.4
    )


def topdown(s: Scene) -> None:
    """Straight down or nearly so: floor, ground or water with people, animals and things on it."""
    if s.chance(0.4):
        tabletop(s, 1.0)
        return
    s.daylight()
    s.floor(s.paint(None, ROUGH + TILES + PLANKS + CLOTH, scale=s.u(0.2, 1.5)))
    height = s.u(1.5, 9)
    for _ in range(s.rng.randint(1, 4)):
        person(
            s,
            s.u(-0.3, 0.3) * height,
            s.u(-0.3, 0.3) * height,
            s.u(0, 6),
            s.pick(("lie", "floor", "walk", "stand", "squat", "bend")),
        )
    for _ in range(s.rng.randint(1, 9)):
        small_thing(s, s.u(-0.5, 0.5) * height, 0, s.u(-0.5, 0.5) * height, s.u(0.1, 0.9))
    if s.chance(0.3):
        table(s, s.u(-1, 1), s.u(-1, 1), s.u(0, 3), s.u(0.8, 1.6), 0.8, 0.7)
    if s.chance(0.3):
        pet(s, s.u(-0.8, 0.8), s.u(-0.8, 0.8), s.u(0, 6))
    s.camera((s.u(-0.3, 0.3) * height, height, -height * s.u(0.02, 0.5)), (0.0, 0.0, 0.02), s.u(40, 70))
    s.roll = s.u(0, 6.28) if s.chance(0.3) else s.roll


def group(s: Scene) -> None:
    """Several people a few metres away: dancing, in rows, round a table, in a crowd."""
    _backdrop(s, s.u(4, 12))
    rows, columns = s.rng.randint(1, 3), s.rng.randint(2, 6)
    pose = s.pick(("", "stand", "sit", "raise", "reach"))
    first, gap = s.u(1.5, 3.5), s.u(0.5, 1.0)
    for j in range(rows):
        for i in range(columns):
            if s.chance(0.85):
                person(
                    s,
                    (i - (columns - 1) / 2) * gap + s.u(-0.15, 0.15),
                    first + j * s.u(0.7, 1.3),
                    math.pi + s.u(-0.9, 0.9),
                    pose,
                    detail=j == 0,
                    ground=0.25 * j if pose == "sit" else 0.0,
                )
    s.camera((s.u(-0.8, 0.8), s.u(1.0, 2.2), -s.u(0, 1.2)), (s.u(-0.5, 0.5), s.u(0.8, 1.5), first + 1), s.u(38, 75))


def clutter(s: Scene) -> None:
    """Anything anywhere: shapes of all sizes in front of each other, so that context alone never decides."""
    _backdrop(s, s.u(4, 12))
    for _ in range(s.rng.randint(5, 40)):
        z = math.exp(s.u(-0.2, 2.3))
        x, y, r = s.u(-0.7, 0.7) * z, s.u(0, 1.5) if s.chance(0.5) else 0.0, z * s.u(0.03, 0.2)
        m = s.paint(
            None,
            ANY,
            scale=s.u(0.3, 3) / r,
            contrast=s.pick((0.3, 0.7, 2)),
            gloss=s.pick((0, 0.3, 0.8)),
            mirror=s.pick((0, 0, 0, 0.2)),
        )
        kind = s.pick((BOX, BOX, ELLIPSOID, CONE, CAPSULE))
        axes = turned(s.u(0, 6))
        if s.chance(0.4):
            x_axis = unit((s.u(-1, 1), s.u(-1, 1), s.u(-1, 1)))
            y_axis = unit(cross(x_axis, (0.3, 0.5, 0.8)))
            axes = (x_axis, y_axis, cross(x_axis, y_axis))
        size = (r * s.u(0.3, 1.5), r * s.u(0.3, 1.5), r * s.u(0.3, 1.5))
        shape = s.u(0, 0.5) if kind == BOX else size[0] * s.u(0.6, 1.0)
        if kind == CAPSULE:
            size = (size[0] * 0.5, size[1] + size[0], size[2])
            shape *= 0.5
        s.add(kind, (x, y + r, z), size, m, axes, shape)
    s.camera((s.u(-0.3, 0.3), s.u(0.8, 1.8), -0.6), (s.u(-0.5, 0.5), s.u(0.3, 1.5), 4), s.u(40, 80))


def _kitchen(s: Scene) -> None:
    room(s, kitchen=True)


# Kind -> (builder, share of the training set). People are in almost all of them.
SCENES: dict[str, tuple[Any, float]] = {
    "room": (room, 0.17),
    "kitchen": (_kitchen, 0.08),
    "gym": (gym, 0.06),
    "stage": (stage, 0.05),
    "corridor": (corridor, 0.05),
    "street": (street, 0.12),
    "field": (field, 0.10),
    "water": (water, 0.05),
    "snow": (snow, 0.04),
    "forest": (forest, 0.05),
    "portrait": (portrait, 0.08),
    "car": (seated_in_car, 0.03),
    "tabletop": (tabletop, 0.06),
    "topdown": (topdown, 0.04),
    "group": (group, 0.06),
    "clutter": (clutter, 0.04),
}


def build_scene(kind: str, seed: int, time: float = 0.0) -> Scene:
    """Builds a scene of a kind in `SCENES`; the same seed gives the same scene, ``time`` (seconds) moves what moves."""
    s = Scene(f"{kind} {seed}", time)
    SCENES[kind][0](s)
    if kind not in ("portrait", "car", "tabletop", "topdown") and s.chance(
        0.12
    ):  # something close in front of the camera
        c, f, r = s.pose()[:, 0], s.pose()[:, 2], s.u(0.06, 0.25)
        p = np.array(s.eye) + f * s.u(0.4, 0.9) + c * s.u(-0.5, 0.5) + np.array(UP) * s.u(-0.5, 0.0)
        m = s.paint(WHITE if s.chance(0.4) else None, ANY, scale=s.u(2, 8), contrast=s.pick((0.2, 2)))
        if s.chance(0.5):
            s.ball(tuple(p), (r, r * s.u(0.5, 2), r), m)
        else:
            s.rod(tuple(p), tuple(p + np.array((s.u(-0.3, 0.3), -s.u(0.3, 1.0), s.u(-0.1, 0.3)))), r * 0.5, r * 0.5, m)
    return s


def draw(s: Scene, width: int, height: int, samples: int = 2, seed: int = 0) -> tuple[Array, Array, Array, Array]:
    """Casts a built scene: linear RGB float32, depth in metres float32 (``inf``: sky), index int32, intrinsics (3,
    3).
    """
    focal = 0.5 * max(width, height * 4 / 3) / math.tan(math.radians(s.fov_deg) / 2)
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    rgb, depth, index = render.cast(
        np.array(s.kinds),
        np.array(s.geometry, float),
        np.array(s.material, float),
        np.array(s.light),
        np.array(s.sky, float),
        intrinsics=intrinsics,
        rotation=s.pose(),
        eye=np.array(s.eye),
        width=width,
        height=height,
        samples=samples,
        fog=np.array(s.fog),
        portal_m=s.portal_m,
        seed=seed,
    )
    return rgb, depth, index, intrinsics


def develop(linear: Array, gain: float) -> Array:
    """Linear light to sRGB bytes with a soft shoulder (highlights burn out slowly, as on film)."""
    x = np.maximum(linear * np.float32(gain), 0)
    x = np.where(x > 0.7, 0.7 + 0.3 * np.tanh((x - 0.7) / 0.45), x)
    return (
        (np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.power(x, 1 / 2.4, dtype=np.float32) - 0.055) * 255 + 0.5)
        .clip(0, 255)
        .astype(np.uint8)
    )


def exposure(linear: Array, target: float) -> float:
    """Gain that brings the mean luminance to a target, not letting bright windows darken everything."""
    luminance = np.minimum(linear @ np.array([0.2126, 0.7152, 0.0722], np.float32), 1.5)
    return float(target / (luminance.mean() + 0.02))


def render_scene(kind: str, seed: int, width: int, height: int, *, samples: int = 2) -> tuple[Array, Array, Array]:
    """One picture with its depth.

    Args:
        kind: A key of `SCENES`.
        seed: Decides everything; a view that is blocked is replaced by the next try of the same seed.
        width: Pixels.
        height: Pixels.
        samples: Rays a pixel side at edges.

    Returns:
        ``(rgb, depth, intrinsics)``: uint8 (H, W, 3); float32 (H, W) metres along the optical axis, ``inf`` for sky;
        (3, 3) pixels.
    """
    for attempt in range(8):
        s = build_scene(kind, seed * 8 + attempt)
        linear, depth, index, intrinsics = draw(s, width, height, samples, seed)
        blocked = (depth < 0.3).mean() > 0.35 or np.bincount(index.ravel() + 1).max() > 0.9 * index.size
        if not blocked:
            break
    return develop(linear, exposure(linear, s.u(0.16, 0.42))), depth, intrinsics


# -------------------------------------------------------------------------------------- what cameras do to a picture
def degrade(rgb: Array, depth: Array, seed: int) -> tuple[Array, Array]:
    """What lenses, light, sensors, codecs and editors do to a picture.

    Relighting by depth, haze and darkness break the shortcut "bright is far"; bars and captions are part of real video.

    Args:
        rgb: uint8 (H, W, 3).
        depth: float32 (H, W), metres, ``inf`` for sky.
        seed: Decides what is done.

    Returns:
        ``(rgb, depth)``: new arrays; depth is NaN under black bars.
    """
    rng = np.random.default_rng(seed)
    height, width = depth.shape
    image: Any = rgb.astype(np.float32)
    depth = depth.copy()
    inverse = np.clip(1 / depth, 0, 10)
    if rng.random() < 0.3:  # light that falls with (or grows with) distance
        rank = np.clip(inverse / (np.percentile(inverse, 95) + 1e-6), 0, 1) ** rng.uniform(0.4, 1.2) - 0.5
        image *= np.exp(rng.uniform(-1.3, 1.3) * rank)[..., None]
    if rng.random() < 0.3:  # uneven light: a few large blobs
        small = rng.normal(0, rng.uniform(0.1, 0.4), (4, 5, 1 if rng.random() < 0.6 else 3)).astype(np.float32)
        image *= np.exp(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)).reshape(height, width, -1)
    if rng.random() < 0.12:  # haze, smoke or darkness
        amount = 1 - np.exp(-rng.uniform(0.02, 0.25) / np.maximum(inverse, 0.005))
        image += (rng.choice([0.0, 20.0, 230.0, 250.0]) - image) * (amount * rng.uniform(0.4, 1.0))[..., None]
    if rng.random() < 0.2:  # focus on one distance
        focus, sigma = rng.choice(inverse.ravel()), rng.uniform(1.0, 4.0)
        blur = cv2.GaussianBlur(image, (0, 0), sigma)
        image += (blur - image) * np.clip(np.abs(inverse - focus) / (0.3 + 0.5 * focus) * 1.5, 0, 1)[..., None]
    if rng.random() < 0.12:  # motion of the camera
        length, angle = int(rng.integers(3, 10)), rng.uniform(0, math.pi)
        kernel = np.zeros((length, length), np.float32)
        c, dx, dy = (length - 1) / 2, math.cos(angle) * length / 2, math.sin(angle) * length / 2
        cv2.line(kernel, (round(c - dx), round(c - dy)), (round(c + dx), round(c + dy)), (1.0,))
        image = cv2.filter2D(image, -1, kernel / max(kernel.sum(), 1))
    if rng.random() < 0.35:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.3))
    if rng.random() < 0.15:  # low resolution, or sharpened edges
        f = rng.uniform(0.35, 0.8)
        small = cv2.resize(image, None, fx=f, fy=f, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    elif rng.random() < 0.15:
        image += (image - cv2.GaussianBlur(image, (0, 0), 1.0)) * rng.uniform(0.3, 1.2)
    if rng.random() < 0.2:
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        image *= (1 - rng.uniform(0.1, 0.6) * (x * x + y * y) / 2)[..., None]
    if rng.random() < 0.45:
        image += rng.normal(0, rng.uniform(1, 11), image.shape if rng.random() < 0.6 else (height, width, 1))
    out: Any = np.clip(image, 0, 255).astype(np.uint8)
    if rng.random() < 0.05:  # caption or logo
        text, at = (
            "".join(rng.choice(list("ABCDEFGHKLMNORSTUWY 0123456789"), 9)),
            (int(rng.integers(0, width // 2)), int(rng.choice([14, height - 8]))),
        )
        cv2.putText(
            out,
            text,
            at,
            cv2.FONT_HERSHEY_SIMPLEX,
            rng.uniform(0.3, 0.9),
            [int(v) for v in rng.choice([0, 255], 3)],
            int(rng.integers(1, 3)),
            cv2.LINE_AA,
        )
    if rng.random() < 0.05:  # letterbox, pillarbox
        bar = int(rng.uniform(0.05, 0.2) * (height if rng.random() < 0.5 else width))
        upright = rng.random() < 0.6
        for part in (
            ((slice(0, bar), slice(None)), (slice(-bar, None), slice(None)))
            if upright
            else ((slice(None), slice(0, bar)), (slice(None), slice(-bar, None)))
        ):
            out[part], depth[part] = 0, np.nan
    if rng.random() < 0.5:
        _, code = cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 92))])
        out = cv2.imdecode(code, cv2.IMREAD_COLOR)
    if rng.random() < 0.03:
        out = np.repeat(cv2.cvtColor(out, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    return np.ascontiguousarray(out), depth


# ---------------------------------------------------------------------------------------------------- sample clips
# id and times in the Kinetics form, label, kind, seed (none is trained on), camera's velocity right / up / forward in
# m/s, turn in rad/s.
SAMPLE_CLIPS: tuple[tuple[str, int, int, str, str, int, Vec, float], ...] = (
    ("kdepthHall1", 10, 13, "walking in a corridor", "corridor", 20_000_003, (0.0, 0.0, 0.15), 0.03),
    ("kdepthRoad1", 4, 7, "riding a bike", "street", 20_000_000, (0.5, 0.05, 0.9), 0.02),
    ("kdepthCrew1", 22, 25, "cheering, outdoors", "group", 20_000_000, (0.35, 0.0, 0.0), -0.07),
    ("kdepthRoom1", 31, 34, "talking in a living room", "room", 20_000_007, (0.3, 0.0, 0.2), -0.06),
    ("kdepthShow1", 7, 10, "dancing on a stage", "stage", 20_000_000, (0.4, 0.1, 0.2), -0.03),
    ("kdepthDesk1", 15, 18, "setting a table", "tabletop", 20_000_000, (0.06, 0.05, 0.03), -0.05),
)
SAMPLE_FPS, SAMPLE_FRAMES = 24, 72
_H264 = (
    *("-c:v", "libx264", "-preset", "veryslow", "-crf", "25", "-threads", "1", "-g", "48", "-pix_fmt", "yuv420p"),
    *("-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709", "-movflags", "+faststart"),
)
_FFV1 = ("-c:v", "ffv1", "-level", "3", "-g", "1", "-slicecrc", "1", "-slices", "4")


def sample_frame(clip: int, frame: int, width: int, height: int) -> tuple[Array, Array]:
    """Linear RGB float32 (H, W, 3) and depth in metres float32 (H, W) of a frame of a sample clip."""
    _, _, _, _, kind, seed, (right, up, ahead), turn = SAMPLE_CLIPS[clip]
    t = frame / SAMPLE_FPS
    s = build_scene(kind, seed * 8, t)
    s.light[7] = min(s.light[7], 0.03)  # sharp shadows: soft ones are grainy, and grain is dear in H.264
    a = s.pose()
    s.eye = tuple((np.array(s.eye) + t * (right * a[:, 0] + up * np.array(UP) + ahead * a[:, 2])).tolist())
    s.yaw += turn * t
    linear, depth, _, _ = draw(s, width, height, seed=1)
    return linear, depth


def _encode(frames: Array, path: Path, pixel_format: str, codec: tuple[str, ...]) -> None:
    height, width = frames.shape[1:3]
    command = [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", pixel_format),
        *("-s", f"{width}x{height}", "-r", str(SAMPLE_FPS), "-i", "pipe:", *codec),
        *("-fflags", "+bitexact", "-flags", "+bitexact", str(path)),
    ]
    subprocess.run(command, input=frames.tobytes(), check=True)


def write_sample_clips(folder: Path) -> None:
    """Renders the sample clips again: H.264 640x360, true inverse depth 160x90, and the annotation file ``val.csv``.

    The depth file is FFV1 in Matroska whose 16-bit samples are half floats of 1/m (sky: 0), rounded to eight
    significant bits
    (0.4 %), which makes it three times smaller.

    Args:
        folder: Where to write; made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for k, (name, start, end, *_) in enumerate(SAMPLE_CLIPS):
        stem = f"{name}_{start:06d}_{end:06d}"
        video = np.empty((SAMPLE_FRAMES, 360, 640, 3), np.uint8)
        inverse = np.empty((SAMPLE_FRAMES, 90, 160), np.float16)
        gain = exposure(sample_frame(k, 0, 320, 180)[0], 0.3)
        for n in range(SAMPLE_FRAMES):
            large = develop(sample_frame(k, n, 960, 540)[0], gain)
            video[n] = cv2.resize(large, (640, 360), interpolation=cv2.INTER_AREA)
            inverse[n] = 1 / sample_frame(k, n, 160, 90)[1]
        bits = np.minimum(inverse.view(np.uint16).astype(np.uint32) + 4, 0x7BFF) & 0xFFF8
        _encode(video, folder / f"{stem}.mp4", "rgb24", _H264)
        _encode(bits.astype("<u2"), folder / f"{stem}.depth.mkv", "gray16le", _FFV1)
    with (folder / "val.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("label", "youtube_id", "time_start", "time_end", "split"))
        writer.writerows((label, name, start, end, "validate") for name, start, end, label, *_ in SAMPLE_CLIPS)
