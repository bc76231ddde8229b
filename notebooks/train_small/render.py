"""Ray casting of analytic primitives: colour, shadows, reflections and exact depth, on one CPU core.

It exists to make training pictures for the embedded network (`kdepth.models.small`) and the sample clips, whose depth
is known.
A scene is three plain float64 tables, one row a primitive, and a few light and sky vectors (`train_small.scenes` fills
them):

- ``kinds`` int64 (N,): `RECT`, `ELLIPSOID`, `BOX`, `CONE`, `CAPSULE` or `TERRAIN`.
- ``geometry`` (N, 18): centre (3), rotation world -> local, rows (9), half sizes a, b, c (3), shape parameters p, q
(2), cut-out.
- ``material`` (N, 20): three colours (9), pattern, repeats per metre, offset u, v, specular, shininess, mirror,
emission, ...

World axes: x right, y up, z away; metres. Camera axes: x right, y down, z forward (OpenCV). A ray's direction has z = 1
in camera axes, so that the ray parameter *is* the depth along the optical axis.
"""

# Elements of arrays are Any here, so every compiled function that returns one would be reported.
# mypy: disable-error-code="no-any-return"
import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

RECT, ELLIPSOID, BOX, CONE, CAPSULE, TERRAIN = range(6)
FAR_M = 1e6
NEAR_M = 0.05
PATTERN_SIZE = 128
_TILE = 16

Array = NDArray[Any]
Vec = tuple[float, float, float]


class _World(NamedTuple):
    """A scene as the compiled functions take it; `cast` says what each is."""

    kinds: Array
    geometry: Array
    material: Array
    spheres: Array
    groups: Array
    light: Array
    sky: Array
    bank: Array


class _Camera(NamedTuple):
    k: Array
    rotation: Array
    eye: Array


# No reference counting in compiled code (nothing in it allocates): its atomic increments took 60 % of the time.
_OPTIONS: dict[str, Any] = {
    "_nrt": False,
    "cache": True,
    "fastmath": {"nsz", "arcp", "contract", "reassoc"},
    "error_model": "numpy",
    "nogil": True,
}
Function = TypeVar("Function", bound=Callable[..., Any])


def njit(function: Function) -> Function:
    """Compiles a function; its types are worked out at the first call and kept on disk."""
    compiled: Function = numba.njit(**_OPTIONS)(function)
    return compiled


# ---------------------------------------------------------------------------------------------------- patterns
@cache
def pattern_bank() -> Array:
    """Tileable grey patterns with their mip levels, one after another: uint8 (patterns, 128*128 + 64*64 + ... + 1)."""
    rng = np.random.default_rng(7)
    size = PATTERN_SIZE
    y, x = np.mgrid[0:size, 0:size] / size
    freq = np.hypot(*np.meshgrid(np.fft.fftfreq(size) * size, np.fft.fftfreq(size) * size))
    freq[0, 0] = 1.0

    def noise(power: float, low: float = 1.0, stretch: float = 1.0) -> Array:
        fy, fx = np.meshgrid(np.fft.fftfreq(size) * size, np.fft.fftfreq(size) * size, indexing="ij")
        f = np.hypot(fx * stretch, fy / stretch)
        f[0, 0] = 1e9
        spectrum = np.fft.fft2(rng.normal(size=(size, size))) * np.where(f < low, 0.0, f**-power)
        return rank(np.fft.ifft2(spectrum).real)

    def rank(a: Array) -> Array:
        a = a - a.mean()
        return np.clip(0.5 + a / (4.5 * a.std() + 1e-9), 0, 1)

    def grid(nx: int, ny: int, shift: float, gap: float) -> tuple[Array, Array]:
        row = np.floor(y * ny)
        u = (x * nx + shift * row) % nx
        edge = (np.minimum(u % 1, 1 - u % 1) < gap * nx / 2) | (np.minimum(y * ny % 1, 1 - y * ny % 1) < gap * ny / 2)
        shade = rng.random((ny, nx))[row.astype(int) % ny, np.floor(u).astype(int) % nx]
        return edge, shade

    out = [np.full((size, size), 0.5), 0.5 + 0.15 * (noise(0.5) - 0.5)]
    out += [noise(p) for p in (0.4, 0.8, 1.0, 1.2, 1.5, 2.0, 2.5)]
    out += [noise(1.0, 6.0), noise(0.8, 12.0), noise(1.0, 2.0, 3.0), noise(1.2, 3.0, 4.0), noise(0.6, 2.0, 6.0)]
    for nx, ny, shift, gap in (
        (4, 8, 0.5, 0.02),
        (8, 16, 0.5, 0.012),
        (4, 4, 0, 0.015),
        (8, 8, 0, 0.015),
        (2, 2, 0, 0.02),
    ):
        edge, shade = grid(nx, ny, shift, gap)
        out.append(np.where(edge, 0.0, 0.55 + 0.35 * shade + 0.1 * noise(0.8)))
    for nx, ny in ((1, 8), (2, 10), (1, 16)):  # planks: long, with grain along x
        edge, shade = grid(nx, ny, 0.37 if nx > 1 else 0.0, 0.008)
        out.append(np.where(edge, 0.05, 0.35 + 0.4 * shade + 0.3 * (noise(1.0, 2.0, 0.3) - 0.3)))
    for k in (4, 8, 16):
        out.append(0.5 + 0.5 * np.sign(np.sin(2 * np.pi * k * x)))
        out.append(rank(np.sin(2 * np.pi * k * y) + 0.3 * noise(1.0)))
    out += [(np.floor(x * k) + np.floor(y * k)) % 2 for k in (2, 4, 8)]
    out += [((np.floor(x * k) % 2) + (np.floor(y * k) % 2)) / 2 for k in (4, 8)]  # plaid
    for k, r in ((4, 0.3), (8, 0.25), (3, 0.4)):
        u, v = x * k % 1 - 0.5, y * k % 1 - 0.5
        out.append((np.hypot(u, v) < r) * 0.9)
    for count in (12, 40, 120):  # cells: leather, pebbles, leaves
        points = rng.random((count, 2))
        d = np.stack([np.hypot((x - a + 0.5) % 1 - 0.5, (y - b + 0.5) % 1 - 0.5) for a, b in points])
        d.sort(0)
        out += [np.clip((d[1] - d[0]) * math.sqrt(count) * 1.5, 0, 1), np.clip(d[0] * math.sqrt(count) * 1.3, 0, 1)]
    out += [rank(np.sin(2 * np.pi * (k * x + 1.5 * noise(2.0)))) for k in (2, 5)]  # marble, wood
    for k in (3, 6, 9):  # facades: rows of windows
        u, v = x * k % 1, y * k % 1
        lit = rng.random((k, k))[np.floor(y * k).astype(int), np.floor(x * k).astype(int)]
        out.append(np.where((abs(u - 0.5) < 0.28) & (abs(v - 0.5) < 0.33), 0.35 * lit, 0.8 + 0.2 * noise(1.0)))
    for k in (10, 18):  # lines of print
        word = rng.random((k, 32))[np.floor(y * k).astype(int), np.floor(x * 32).astype(int)] > 0.3
        out.append(1.0 - 0.9 * ((y * k % 1 < 0.55) & word & (noise(0.3) > 0.35)))
    for count in (6, 14, 30, 60):  # posters, shelves, market stalls: heaps of rectangles
        a = np.full((size, size), 0.5)
        for _ in range(count):
            w, h = rng.uniform(0.06, 0.5, 2)
            a[((x - rng.random()) % 1 < w) & ((y - rng.random()) % 1 < h)] = rng.random()
        out.append(np.clip(a + 0.15 * (noise(1.0) - 0.5), 0, 1))
    out += [(noise(p) > 0.5) * 1.0 for p in (1.0, 1.6, 2.2)]  # camouflage, foliage
    out += [np.clip(noise(0.9) + 0.5 * (noise(2.0) - 0.5), 0, 1) for _ in range(4)]
    levels = []
    mip = np.stack(out)
    while True:
        levels.append(np.round(mip * 255).astype(np.uint8).reshape(len(out), -1))
        if mip.shape[1] == 1:
            return np.ascontiguousarray(np.concatenate(levels, 1))
        mip = mip.reshape(len(out), mip.shape[1] // 2, 2, -1, 2).mean((2, 4))


@njit
def _texel(bank: Array, pattern: int, u: float, v: float, level: int) -> float:
    """Bilinear lookup, u and v in pattern repeats, in [0, 1]."""
    size = PATTERN_SIZE
    offset = 0
    for _ in range(min(level, 7)):
        offset += size * size
        size //= 2
    fu = (u - math.floor(u)) * size - 0.5
    fv = (v - math.floor(v)) * size - 0.5
    iu, iv = math.floor(fu), math.floor(fv)
    fu -= iu
    fv -= iv
    x0, y0 = int(iu) & (size - 1), int(iv) & (size - 1)
    x1, y1 = (x0 + 1) & (size - 1), (y0 + 1) & (size - 1)
    top = bank[pattern, offset + y0 * size + x0] * (1 - fu) + bank[pattern, offset + y0 * size + x1] * fu
    bottom = bank[pattern, offset + y1 * size + x0] * (1 - fu) + bank[pattern, offset + y1 * size + x1] * fu
    return (top * (1 - fv) + bottom * fv) / 255.0


# ------------------------------------------------------------------------------------------------ intersections
@njit
def _height(geometry: Array, i: int, x: float, z: float) -> float:
    """Terrain height over its plane: two crossed waves; q is the wave number of the longer one in rad/m."""
    k, phase = geometry[i, 16], geometry[i, 15]
    h = math.sin(k * x + 1.3) * math.cos(0.8 * k * z + phase)
    return geometry[i, 13] * (h + 0.25 * math.sin(4.7 * k * x - 1.1) * math.sin(4.1 * k * z + phase))


@njit
def _root(kind: int, geometry: Array, i: int, origin: Vec, ray: Vec, lo: float, hi: float) -> float:
    """Smallest ray parameter in (lo, hi) at which a local ray enters the primitive, or -1."""
    (ox, oy, oz), (dx, dy, dz) = origin, ray
    a, b, c, p, q = geometry[i, 12], geometry[i, 13], geometry[i, 14], geometry[i, 15], geometry[i, 16]
    if kind == RECT:
        if abs(dy) < 1e-12:
            return -1.0
        t = -oy / dy
        if t <= lo or t >= hi or abs(ox + t * dx) > a or abs(oz + t * dz) > c:
            return -1.0
        return t
    if kind == ELLIPSOID:
        ux, uy, uz, vx, vy, vz = ox / a, oy / b, oz / c, dx / a, dy / b, dz / c
        vv = vx * vx + vy * vy + vz * vz
        m = -(ux * vx + uy * vy + uz * vz) / vv
        qx, qy, qz = ux + m * vx, uy + m * vy, uz + m * vz
        h = 1.0 - (qx * qx + qy * qy + qz * qz)
        if h < 0:
            return -1.0
        t = m - math.sqrt(h / vv)
        return t if lo < t < hi else -1.0
    if kind == BOX:  # six half-spaces; p, q in [0, 1]: how much narrower the top is along x and z
        near, far = lo, hi
        sx, sz = a * p / (2 * b), c * q / (2 * b)
        for plane in range(6):
            if plane == 0:
                n, d = -(oy - b), dy
            elif plane == 1:
                n, d = oy + b, -dy
            elif plane == 2:
                n, d = a - sx * (oy + b) - ox, dx + sx * dy
            elif plane == 3:
                n, d = a - sx * (oy + b) + ox, -dx + sx * dy
            elif plane == 4:
                n, d = c - sz * (oy + b) - oz, dz + sz * dy
            else:
                n, d = c - sz * (oy + b) + oz, -dz + sz * dy
            if d > 1e-12:
                far = min(far, n / d)
            elif d < -1e-12:
                near = max(near, n / d)
            elif n < 0:
                return -1.0
            if near > far:
                return -1.0
        return near if near > lo else -1.0
    if kind == CONE:  # radius a at y = -b, p at y = +b, flat caps
        slope = (p - a) / (2 * b)
        r0 = a + slope * (oy + b)
        best = hi
        rd = slope * dy
        qa = dx * dx + dz * dz - rd * rd
        qb = ox * dx + oz * dz - r0 * rd
        qc = ox * ox + oz * oz - r0 * r0
        disc = qb * qb - qa * qc
        if disc > 0 and abs(qa) > 1e-12:
            s = math.sqrt(disc)
            for sign in (-1.0, 1.0):
                t = (-qb + sign * s) / qa
                if lo < t < best and abs(oy + t * dy) <= b and r0 + t * rd >= 0:
                    best = t
        if abs(dy) > 1e-12:
            for side in (-1.0, 1.0):
                t = (side * b - oy) / dy
                r = a if side < 0 else p
                if lo < t < best and (ox + t * dx) ** 2 + (oz + t * dz) ** 2 <= r * r:
                    best = t
        return best if best < hi else -1.0
    if kind == CAPSULE:  # spheres a at y = -b and p at y = +b and the cone that touches both
        r1, r2, length = a, p, 2 * b
        best = hi
        for end in range(2):
            py = oy + b if end == 0 else oy - b
            r = r1 if end == 0 else r2
            vv = dx * dx + dy * dy + dz * dz
            m = -(ox * dx + py * dy + oz * dz) / vv
            qx, qy, qz = ox + m * dx, py + m * dy, oz + m * dz
            h = r * r - (qx * qx + qy * qy + qz * qz)
            if h > 0:
                t = m - math.sqrt(h / vv)
                if lo < t < best:
                    best = t
        sine = (r1 - r2) / length
        if abs(sine) < 1:
            cosine = math.sqrt(1 - sine * sine)
            slope = -sine / cosine  # the cone x^2 + z^2 = (r1 / cosine + slope * (y + b))^2
            r0 = r1 / cosine + slope * (oy + b)
            rd = slope * dy
            qa = dx * dx + dz * dz - rd * rd
            qb = ox * dx + oz * dz - r0 * rd
            qc = ox * ox + oz * oz - r0 * r0
            disc = qb * qb - qa * qc
            if disc > 0 and abs(qa) > 1e-12:
                t = (-qb - math.sqrt(disc)) / qa
                yy = oy + b + t * dy
                if lo < t < best and r1 * sine <= yy <= length + r2 * sine and r0 + t * rd >= 0:
                    best = t
        return best if best < hi else -1.0
    # TERRAIN: march, then bisect; the step grows with distance.
    top = 1.25 * b
    t = lo
    if oy + t * dy > top:
        if dy >= 0:
            return -1.0
        t = (top - oy) / dy
    previous = t
    while True:
        if t > hi or (dy >= 0 and oy + t * dy > top):
            return -1.0
        if t > 250:  # as good as its plane
            return -oy / dy if dy < 0 and t < -oy / dy < hi else -1.0
        gap = oy + t * dy - _height(geometry, i, ox + t * dx, oz + t * dz)
        if gap < 0:
            if t <= lo:
                return -1.0
            for _ in range(18):
                middle = 0.5 * (previous + t)
                if oy + middle * dy < _height(geometry, i, ox + middle * dx, oz + middle * dz):
                    t = middle
                else:
                    previous = middle
            return t if lo < t < hi else -1.0
        previous = t
        t += max(0.6 * gap, 0.05 + 0.06 * t)


@njit
def _local(geometry: Array, i: int, x: float, y: float, z: float) -> tuple[float, float, float]:
    """A direction in the primitive's own axes."""
    return (
        geometry[i, 3] * x + geometry[i, 4] * y + geometry[i, 5] * z,
        geometry[i, 6] * x + geometry[i, 7] * y + geometry[i, 8] * z,
        geometry[i, 9] * x + geometry[i, 10] * y + geometry[i, 11] * z,
    )


@njit
def _normal(kind: int, geometry: Array, i: int, x: float, y: float, z: float) -> tuple[float, float, float]:
    """Outward normal (not normalised) at a point of the surface, local axes."""
    a, b, c, p, q = geometry[i, 12], geometry[i, 13], geometry[i, 14], geometry[i, 15], geometry[i, 16]
    if kind == RECT:
        return 0.0, 1.0, 0.0
    if kind == ELLIPSOID:
        return x / (a * a), y / (b * b), z / (c * c)
    if kind == BOX:
        shrink = (y + b) / (2 * b)
        wx, wz = a * (1 - p * shrink) - abs(x), c * (1 - q * shrink) - abs(z)
        wy = b - abs(y)
        if wy < wx and wy < wz:
            return 0.0, math.copysign(1.0, y), 0.0
        if wx < wz:
            return math.copysign(1.0, x), a * p / (2 * b), 0.0
        return 0.0, c * q / (2 * b), math.copysign(1.0, z)
    if kind == CONE:
        slope = (p - a) / (2 * b)
        r = math.sqrt(x * x + z * z)
        if b - abs(y) < abs(a + slope * (y + b) - r):
            return 0.0, math.copysign(1.0, y), 0.0
        return x, -slope * r, z
    if kind == CAPSULE:
        sine = (a - p) / (2 * b)
        cosine = math.sqrt(max(1 - sine * sine, 1e-6))
        r = math.sqrt(x * x + z * z)
        along = min(max((y + b) - r * sine / cosine, 0.0), 2 * b)
        return x, y + b - along, z
    e = 0.02
    return (
        -(_height(geometry, i, x + e, z) - _height(geometry, i, x - e, z)) / (2 * e),
        1.0,
        -(_height(geometry, i, x, z + e) - _height(geometry, i, x, z - e)) / (2 * e),
    )


@njit
def _uv(material: Array, i: int, x: float, y: float, z: float, nx: float, ny: float, nz: float) -> tuple[float, float]:
    """Texture coordinates: projection along the axis that the normal is closest to."""
    ax, ay, az = abs(nx), abs(ny), abs(nz)
    if ay >= ax and ay >= az:
        u, v = x, z
    elif ax >= az:
        u, v = z, -y
    else:
        u, v = x, -y
    return u * material[i, 10] + material[i, 11], v * material[i, 10] + material[i, 12]


@njit
def _holes(i: int, world: _World, x: float, y: float, z: float) -> bool:
    """Whether a cut-out pattern has a hole at a point of the surface (local axes)."""
    nx, ny, nz = _normal(world.kinds[i], world.geometry, i, x, y, z)
    u, v = _uv(world.material, i, x, y, z, nx, ny, nz)
    return _texel(world.bank, int(world.material[i, 19]), u, v, 0) < world.geometry[i, 17]


@njit
def _hit(i: int, world: _World, origin: Vec, ray: Vec, lo: float, hi: float) -> float:
    """Ray parameter of the first hit of primitive i in (lo, hi), or -1; holes are seen through."""
    kind, geometry = world.kinds[i], world.geometry
    x, y, z = origin
    ox, oy, oz = _local(geometry, i, x - geometry[i, 0], y - geometry[i, 1], z - geometry[i, 2])
    dx, dy, dz = _local(geometry, i, ray[0], ray[1], ray[2])
    t = _root(kind, geometry, i, (ox, oy, oz), (dx, dy, dz), lo, hi)
    if t < 0 or geometry[i, 17] <= 0 or t > 40:  # far leaves would only alias
        return t
    if not _holes(i, world, ox + t * dx, oy + t * dy, oz + t * dz):
        return t
    if kind != ELLIPSOID:
        return -1.0
    # The far wall of the shell: mirror the entry point about the middle of the chord.
    a2, b2, c2 = geometry[i, 12] ** 2, geometry[i, 13] ** 2, geometry[i, 14] ** 2
    middle = -(ox * dx / a2 + oy * dy / b2 + oz * dz / c2) / (dx * dx / a2 + dy * dy / b2 + dz * dz / c2)
    t = 2 * middle - t
    if t <= lo or t >= hi or _holes(i, world, ox + t * dx, oy + t * dy, oz + t * dz):
        return -1.0
    return t


@njit
def _misses(table: Array, i: int, origin: Vec, ray: Vec, hi: float) -> bool:
    """Whether a ray (unit direction) surely misses a bounding sphere: row i of a table (x, y, z, radius, ...)."""
    x, y, z = origin
    cx, cy, cz, r = table[i, 0] - x, table[i, 1] - y, table[i, 2] - z, abs(table[i, 3])
    m = cx * ray[0] + cy * ray[1] + cz * ray[2]
    return m < -r or m > hi + r or cx * cx + cy * cy + cz * cz - m * m > r * r


@njit
def _occluded(world: _World, origin: Vec, ray: Vec, hi: float, skip: int) -> bool:
    """Whether anything but primitive ``skip`` lies on the way from a point along a unit direction up to hi."""
    kinds, spheres, groups = world.kinds, world.spheres, world.groups
    for n in range(len(groups)):
        if _misses(groups, n, origin, ray, hi):
            continue
        for i in range(int(groups[n, 5]), int(groups[n, 6])):
            if spheres[i, 3] < 0 or (i == skip and (kinds[i] == RECT or kinds[i] == TERRAIN)):  # < 0: casts no shadow
                continue
            if not _misses(spheres, i, origin, ray, hi) and _hit(i, world, origin, ray, 1e-3, hi) > 0:
                return True
    return False


@njit
def _nearest(world: _World, origin: Vec, ray: Vec, skip: int) -> tuple[int, float]:
    """First primitive along any ray (no tiles; unit direction): for reflections."""
    groups, best, found = world.groups, FAR_M, -1
    for n in range(len(groups)):
        if _misses(groups, n, origin, ray, best):
            continue
        for i in range(int(groups[n, 5]), int(groups[n, 6])):
            if i != skip and not _misses(world.spheres, i, origin, ray, best):
                t = _hit(i, world, origin, ray, 1e-3, best)
                if t > 0:
                    best, found = t, i
    return found, best


# ------------------------------------------------------------------------------------------------------ shading
@njit
def _sky(sky: Array, bank: Array, dx: float, dy: float, dz: float) -> tuple[float, float, float]:
    """Sky in a unit direction: horizon (0:3), zenith (3:6), ground (6:9), cloud pattern 9, amount 10, scale 11."""
    f = math.sqrt(max(dy, 0.0))
    cloud = 0.0
    if sky[10] > 0 and dy > 0.02:
        s = sky[11] / (dy + 0.15)
        cloud = min(sky[10] * max(0.0, _texel(bank, int(sky[9]), dx * s, dz * s, 0) - 0.4) * min(1.0, 6 * dy), 1.0)
    g = min(1.0, max(0.0, -4 * dy))
    r0 = (sky[0] * (1 - f) + sky[3] * f) * (1 - g) + sky[6] * g
    r1 = (sky[1] * (1 - f) + sky[4] * f) * (1 - g) + sky[7] * g
    r2 = (sky[2] * (1 - f) + sky[5] * f) * (1 - g) + sky[8] * g
    return r0 + (1.1 - r0) * cloud, r1 + (1.1 - r1) * cloud, r2 + (1.1 - r2) * cloud


@njit
def _albedo(material: Array, i: int, bank: Array, u: float, v: float, level: int) -> tuple[float, float, float]:
    p = _texel(bank, int(material[i, 9]), u, v, level)
    # A second, slow pattern breaks the repetition: dirt, wear, uneven light.
    p += material[i, 18] * (_texel(bank, 7, u * 0.137 + 0.31, v * 0.137, max(level - 3, 0)) - 0.5)
    p = 2 * min(max(p, 0.0), 1.0)
    n = 0 if p < 1 else 3
    f = p if p < 1 else p - 1
    return (
        material[i, n] + (material[i, n + 3] - material[i, n]) * f,
        material[i, n + 1] + (material[i, n + 4] - material[i, n + 1]) * f,
        material[i, n + 2] + (material[i, n + 5] - material[i, n + 2]) * f,
    )


@njit
def _openness(i: int, world: _World, at: Vec, normal: Vec) -> float:
    """Share of ambient light that small things close by let through (spheres of equal bulk; Quilez, "sphere
    occlusion").
    """
    geometry, spheres, groups = world.geometry, world.spheres, world.groups
    (x, y, z), (nx, ny, nz), left = at, normal, 1.0
    for n in range(len(groups)):
        cx, cy, cz = groups[n, 0] - x, groups[n, 1] - y, groups[n, 2] - z
        reach = groups[n, 3] + groups[n, 4]
        if groups[n, 4] <= 0 or cx * cx + cy * cy + cz * cz > reach * reach:
            continue
        for j in range(int(groups[n, 5]), int(groups[n, 6])):
            s2 = spheres[j, 4]
            if s2 > 0 and j != i:
                cx, cy, cz = geometry[j, 0] - x, geometry[j, 1] - y, geometry[j, 2] - z
                d2 = cx * cx + cy * cy + cz * cz
                c = nx * cx + ny * cy + nz * cz
                if d2 < 12 * s2 and c > 0:
                    left -= 0.6 * c / math.sqrt(d2) * min(s2 / d2, 1.0) * (1 - d2 / (12 * s2))
    return max(left, 0.25)


@njit
def _shade(
    i: int, t: float, world: _World, origin: Vec, ray: Vec, pixel: float, rnd_a: float, rnd_b: float, full: bool
) -> tuple[float, float, float, float, float, float, float, float]:
    """Primitive i along a unit ray at distance t: linear RGB, key light that arrives, normal (3), cosine to the viewer.

    ``full`` False (reflections): no shadows and no ambient occlusion.
    """
    kind, geometry, material, light, bank = world.kinds[i], world.geometry, world.material, world.light, world.bank
    (ox, oy, oz), (dx, dy, dz) = origin, ray
    x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
    lx, ly, lz = _local(geometry, i, x - geometry[i, 0], y - geometry[i, 1], z - geometry[i, 2])
    ax, ay, az = _normal(kind, geometry, i, lx, ly, lz)
    nx = geometry[i, 3] * ax + geometry[i, 6] * ay + geometry[i, 9] * az
    ny = geometry[i, 4] * ax + geometry[i, 7] * ay + geometry[i, 10] * az
    nz = geometry[i, 5] * ax + geometry[i, 8] * ay + geometry[i, 11] * az
    inverse = 1.0 / (math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12)
    facing = -(nx * dx + ny * dy + nz * dz) * inverse
    if facing < 0:
        inverse, facing = -inverse, -facing
    nx, ny, nz = nx * inverse, ny * inverse, nz * inverse
    u, v = _uv(material, i, lx, ly, lz, ax, ay, az)
    texels = t * pixel * material[i, 10] * PATTERN_SIZE / math.sqrt(max(facing, 0.02))
    level = int(math.log2(max(texels, 1.0)) + 0.5)
    r0, r1, r2 = _albedo(material, i, bank, u, v, level)
    e = material[i, 16]
    if e > 0:
        return r0 * e, r1 * e, r2 * e, 1.0, nx, ny, nz, facing
    # Key light: kind 0 (0 sun, 1 lamp), vector 1:4, colour 4:7, size 7. Fill lamp 8:11, colour 11:14. Ambient above
    # 14:17, below 17:20.
    px, py, pz = x + 2e-3 * nx, y + 2e-3 * ny, z + 2e-3 * nz
    lamp = light[0] > 0
    kx, ky, kz = light[1], light[2], light[3]
    if lamp:
        kx, ky, kz = kx - px, ky - py, kz - pz
    angle, spread = 2 * math.pi * rnd_a, light[7] * math.sqrt(rnd_b)
    c, s = math.cos(angle), math.sin(angle)
    kx, ky, kz = kx + spread * c, ky + spread * s * c, kz + spread * s
    reach = math.sqrt(kx * kx + ky * ky + kz * kz)
    kx, ky, kz = kx / reach, ky / reach, kz / reach
    lambert = nx * kx + ny * ky + nz * kz
    strength, gloss, openness = 0.0, 0.0, 1.0
    if lambert > 0:
        lit = 0.7
        if full:
            hi = reach if lamp else 300.0
            lit = 0.0 if _occluded(world, (px, py, pz), (kx, ky, kz), hi, i) else 1.0
        if lit > 0 and material[i, 13] > 0:
            hx, hy, hz = kx - dx, ky - dy, kz - dz
            h = (nx * hx + ny * hy + nz * hz) / (math.sqrt(hx * hx + hy * hy + hz * hz) + 1e-9)
            gloss = material[i, 13] * lit * max(h, 0.0) ** material[i, 14]
        strength = lit * lambert
    if lamp:
        fall = 1.0 / (1.0 + (reach / light[20]) ** 2)
        if light[21] > -1:  # a spot pointing down: cosine of its half angle
            fall *= min(max((ky - light[21]) * 8, 0.03), 1.0)
        strength, gloss = strength * fall, gloss * fall
    fx, fy, fz = light[8] - x, light[9] - y, light[10] - z
    f2 = fx * fx + fy * fy + fz * fz + 1e-6
    fill = max(0.15 + 0.85 * (nx * fx + ny * fy + nz * fz) / math.sqrt(f2), 0.0) / (1.0 + f2 / (light[20] * light[20]))
    if full:
        openness = _openness(i, world, (x, y, z), (nx, ny, nz))
    up, down = (0.5 + 0.5 * ny) * openness, (0.5 - 0.5 * ny) * openness
    r0 = r0 * (light[14] * up + light[17] * down + light[4] * strength + light[11] * fill) + light[4] * gloss
    r1 = r1 * (light[15] * up + light[18] * down + light[5] * strength + light[12] * fill) + light[5] * gloss
    r2 = r2 * (light[16] * up + light[19] * down + light[6] * strength + light[13] * fill) + light[6] * gloss
    return r0, r1, r2, strength, nx, ny, nz, facing


@njit
def _look(
    i: int, t: float, world: _World, origin: Vec, ray: Vec, pixel: float, rnd_a: float, rnd_b: float
) -> tuple[float, float, float, float]:
    """Colour along a unit ray that meets primitive i at distance t, with one reflection; and the key light there."""
    material, bank = world.material, world.bank
    (ox, oy, oz), (dx, dy, dz) = origin, ray
    r0, r1, r2, strength, nx, ny, nz, facing = _shade(i, t, world, origin, ray, pixel, rnd_a, rnd_b, True)
    mirror = material[i, 15]
    if mirror <= 0:
        return r0, r1, r2, strength
    x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
    # Ripples and polish: two patterns bend the normal.
    bend, u, v = material[i, 17], x * material[i, 10] * 2.3, z * material[i, 10] * 2.3
    level = int(math.log2(max(t * pixel * material[i, 10] * PATTERN_SIZE / max(facing, 0.02), 1.0)) + 0.5)
    mx, mz = nx + bend * (_texel(bank, 9, u, v, level) - 0.5), nz + bend * (_texel(bank, 10, v, u, level) - 0.5)
    dot = 2 * (mx * dx + ny * dy + mz * dz) / (mx * mx + ny * ny + mz * mz)
    rx, ry, rz = dx - dot * mx, dy - dot * ny, dz - dot * mz
    x, y, z = x + 2e-3 * nx, y + 2e-3 * ny, z + 2e-3 * nz
    j, s = _nearest(world, (x, y, z), (rx, ry, rz), i)
    if j >= 0 and material[j, 16] >= 0:
        s0, s1, s2, _, _, _, _, _ = _shade(j, s, world, (x, y, z), (rx, ry, rz), pixel, rnd_a, rnd_b, False)
    else:
        s0, s1, s2 = _sky(world.sky, bank, rx, ry, rz)
    # Schlick's Fresnel term, subdued on dull things.
    f = min(mirror + (1 - mirror) * (1 - facing) ** 5 * min(4 * mirror, 1.0), 1.0)
    return r0 + (s0 - r0) * f, r1 + (s1 - r1) * f, r2 + (s2 - r2) * f, strength


@njit
def _bounds(kind: int, geometry: Array, i: int, camera: _Camera, width: int, height: int, boxes: Array) -> None:
    """Screen rectangle (x0, y0, x1, y1, nearest z) that holds the primitive: its eight box corners, projected."""
    k, rotation, eye = camera
    boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3], boxes[i, 4] = 0, 0, width, height, 0.0
    a, b, c, p = geometry[i, 12], geometry[i, 13], geometry[i, 14], geometry[i, 15]
    if kind == CONE:
        a = max(a, p)
        c = a
    elif kind == CAPSULE:
        a = max(a, p)
        b, c = b + a, a
    if kind == TERRAIN or max(a, c) > 1e3:
        return
    if kind == RECT:
        b = 0.0
    x0, y0, x1, y1, z0 = 1e9, 1e9, -1e9, -1e9, 1e9
    behind = 0
    for corner in range(8):
        u = a if corner & 1 else -a
        v = b if corner & 2 else -b
        w = c if corner & 4 else -c
        wx = geometry[i, 0] + geometry[i, 3] * u + geometry[i, 6] * v + geometry[i, 9] * w - eye[0]
        wy = geometry[i, 1] + geometry[i, 4] * u + geometry[i, 7] * v + geometry[i, 10] * w - eye[1]
        wz = geometry[i, 2] + geometry[i, 5] * u + geometry[i, 8] * v + geometry[i, 11] * w - eye[2]
        cz = rotation[0, 2] * wx + rotation[1, 2] * wy + rotation[2, 2] * wz
        z0 = min(z0, cz)
        if cz < 1e-3:
            behind += 1
            continue
        px = k[0, 0] * (rotation[0, 0] * wx + rotation[1, 0] * wy + rotation[2, 0] * wz) / cz + k[0, 2]
        py = k[1, 1] * (rotation[0, 1] * wx + rotation[1, 1] * wy + rotation[2, 1] * wz) / cz + k[1, 2]
        x0, x1, y0, y1 = min(x0, px), max(x1, px), min(y0, py), max(y1, py)
    if behind == 8:
        boxes[i, 2], boxes[i, 0] = -1.0, 1e9
    elif behind == 0:
        boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3] = x0 - 1, y0 - 1, x1 + 1, y1 + 1
    boxes[i, 4] = max(z0, 0.0)


@njit
def _bound(world: _World, camera: _Camera, width: int, height: int, boxes: Array) -> None:
    for i in range(len(world.kinds)):
        _bounds(world.kinds[i], world.geometry, i, camera, width, height, boxes)


@njit
def _cast(
    world: _World,
    camera: _Camera,
    samples: int,
    fog: Array,
    portal_m: float,
    seed: int,
    boxes: Array,
    order: Array,
    members: Array,
    pictures: tuple[Array, Array, Array, Array],
) -> None:
    (k, rotation, eye), (rgb, depth, index, lit) = camera, pictures
    height, width = depth.shape
    np.random.seed(seed)
    origin = (eye[0], eye[1], eye[2])
    pixel = 1.0 / k[0, 0]
    # First one ray a pixel, then samples x samples where neighbours differ: edges, shadow borders.
    for step in range(2):
        for ty in range(0, height, _TILE):
            for tx in range(0, width, _TILE):
                num = 0
                for n in range(len(order)):
                    j = order[n]
                    if (
                        boxes[j, 0] < tx + _TILE
                        and boxes[j, 2] >= tx
                        and boxes[j, 1] < ty + _TILE
                        and boxes[j, 3] >= ty
                    ):
                        members[num] = j
                        num += 1
                for py in range(ty, min(ty + _TILE, height)):
                    for px in range(tx, min(tx + _TILE, width)):
                        side = 1
                        if step == 1:
                            edge = False
                            for n in range(4):
                                qx = px + (1 if n == 0 else -1 if n == 1 else 0)
                                qy = py + (1 if n == 2 else -1 if n == 3 else 0)
                                if 0 <= qx < width and 0 <= qy < height:
                                    edge = (
                                        edge or index[qy, qx] != index[py, px] or abs(lit[qy, qx] - lit[py, px]) > 0.12
                                    )
                            if not edge or samples < 2:
                                continue
                            side = samples
                            rgb[py, px, 0] = rgb[py, px, 1] = rgb[py, px, 2] = 0.0
                        for s in range(side * side):
                            # A pixel's sample points: its centre, or a regular grid over it.
                            cx = (px + (s % side + 0.5) / side - k[0, 2]) / k[0, 0]
                            cy = (py + (s // side + 0.5) / side - k[1, 2]) / k[1, 1]
                            dx = rotation[0, 0] * cx + rotation[0, 1] * cy + rotation[0, 2]
                            dy = rotation[1, 0] * cx + rotation[1, 1] * cy + rotation[1, 2]
                            dz = rotation[2, 0] * cx + rotation[2, 1] * cy + rotation[2, 2]
                            length = math.sqrt(dx * dx + dy * dy + dz * dz)  # per metre of depth
                            best, found = FAR_M, -1
                            for n in range(num):
                                j = members[n]
                                if boxes[j, 4] > best:
                                    break
                                t = _hit(j, world, origin, (dx, dy, dz), NEAR_M, best)
                                if t > 0:
                                    best, found = t, j
                            ux, uy, uz, amount = dx / length, dy / length, dz / length, 0.0
                            if found >= 0 and world.material[found, 16] >= 0:
                                a, b = np.random.random(), np.random.random()
                                r0, r1, r2, amount = _look(
                                    found, best * length, world, origin, (ux, uy, uz), pixel, a, b
                                )
                            else:
                                r0, r1, r2 = _sky(world.sky, world.bank, ux, uy, uz)
                                best = FAR_M if found < 0 else portal_m
                            haze = 1.0 - math.exp(-min(best, 2000.0) * fog[3]) if best < FAR_M else 0.0
                            share = 1.0 / (side * side)
                            rgb[py, px, 0] += (r0 * (1 - haze) + fog[0] * haze) * share
                            rgb[py, px, 1] += (r1 * (1 - haze) + fog[1] * haze) * share
                            rgb[py, px, 2] += (r2 * (1 - haze) + fog[2] * haze) * share
                            if step == 0:
                                depth[py, px] = best if best < FAR_M else np.inf
                                index[py, px] = found
                                lit[py, px] = amount


def cast(
    kinds: Array,
    geometry: Array,
    material: Array,
    light: Array,
    sky: Array,
    *,
    intrinsics: Array,
    rotation: Array,
    eye: Array,
    width: int,
    height: int,
    samples: int = 2,
    fog: Array | None = None,
    portal_m: float = 30.0,
    seed: int = 0,
) -> tuple[Array, Array, Array]:
    """Renders a scene.

    Args:
        kinds: int64 (N,), what each primitive is.
        geometry: float64 (N, 18), see the module's docstring.
        material: float64 (N, 20).
        light: float64 (22,): key light, fill lamp, ambient light from above and below.
        sky: float64 (12,): colours of the sky and its clouds.
        intrinsics: float64 (3, 3) in pixels; pixel centres lie at half-integers.
        rotation: float64 (3, 3), camera -> world; its columns are the camera's right, down and forward.
        eye: float64 (3,), the camera's position in metres.
        samples: Rays a pixel side where colours of neighbours come from different things (antialiasing).
        fog: float64 (4,): colour and density in 1/m.
        portal_m: Depth in metres given to what a window shows (a portal is a rectangle of negative emission).
        seed: Of the jitter that softens shadows.

    Returns:
        ``(rgb, depth, index)``: linear float32 (H, W, 3) >= 0; float32 (H, W) depth along the optical axis in metres,
        ``inf`` for sky; int32 (H, W) number of the primitive at the pixel's centre, -1 for sky.
    """
    size = np.abs(geometry[:, 12:15]).copy()
    size[kinds == CAPSULE, 1] += np.maximum(geometry[:, 12], geometry[:, 15])[kinds == CAPSULE]
    for column in (0, 2):
        cone = (kinds == CAPSULE) | (kinds == CONE)
        size[cone, column] = np.maximum(geometry[:, 12], geometry[:, 15])[cone]
    endless = (kinds == TERRAIN) | (size.max(1) > 1e3)
    # Bounding spheres: centre, radius (negative: casts no shadow), squared radius of a sphere of equal bulk (0:
    # occludes nothing).
    spheres = np.zeros((len(kinds), 5))
    spheres[:, :3], spheres[:, 3] = geometry[:, :3], np.where(endless, 1e9, np.sqrt((size**2).sum(1)) + 1e-3)
    spheres[:, 4] = np.where((spheres[:, 3] < 2.5) & (kinds != RECT), size.prod(1) ** (2 / 3), 0)
    # Groups of eight in order of construction, which is local: centre, radius, reach of occlusion, first, last.
    groups = np.zeros(((len(kinds) + 7) // 8, 7))
    for n, first in enumerate(range(0, len(kinds), 8)):
        part = spheres[first : first + 8]
        groups[n, :3] = part[:, :3].mean(0)
        groups[n, 3] = (np.linalg.norm(part[:, :3] - groups[n, :3], axis=1) + part[:, 3]).max()
        groups[n, 4:] = np.sqrt(12 * part[:, 4].max()), first, first + len(part)
    spheres[(material[:, 16] != 0) | (kinds == TERRAIN), 3] *= -1  # lamps, windows and hills cast no shadow
    rgb = np.zeros((height, width, 3), np.float32)
    depth = np.zeros((height, width), np.float32)
    index = np.zeros((height, width), np.int32)
    lit = np.zeros((height, width), np.float32)
    boxes = np.empty((len(kinds), 5))
    world = _World(kinds, geometry, material, spheres, groups, light, sky, pattern_bank())
    camera = _Camera(*(np.asarray(part, float) for part in (intrinsics, rotation, eye)))
    _bound(world, camera, width, height, boxes)
    order = np.argsort(boxes[:, 4], kind="stable")
    fog = np.zeros(4) if fog is None else fog
    _cast(world, camera, samples, fog, portal_m, seed, boxes, order, np.empty_like(order), (rgb, depth, index, lit))
    return rgb, depth, index
