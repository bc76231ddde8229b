"""A depth frame as points in space (pinhole camera, OpenCV's axes: x right, y down, z forward)."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray


def pinhole_intrinsics(
    focal_length_px: float | None, width: int, height: int, fov_deg: float | None = None
) -> NDArray[np.float64]:
    """Intrinsics with square pixels and the principal point in the middle of the picture: float64 ``(3, 3)``.

    The middle of the first pixel is at (0.5, 0.5). A horizontal field of view stands for a focal length of
    ``0.5 * width / tan(fov / 2)`` (Hartley & Zisserman, 6.1). ValueError if both are given, or one is out of range.
    """
    if fov_deg is not None:
        if focal_length_px is not None:
            raise ValueError(f"focal_length_px={focal_length_px}, fov_deg={fov_deg}: give one of them")
        if not 0 < fov_deg < 180:
            raise ValueError(f"fov_deg={fov_deg}: must be in (0, 180)")
        focal_length_px = 0.5 * width / math.tan(math.radians(fov_deg) / 2)
    if focal_length_px is None or not 0 < focal_length_px < math.inf:
        raise ValueError(f"focal_length_px={focal_length_px}: must be > 0")
    return np.array([[focal_length_px, 0, width / 2], [0, focal_length_px, height / 2], [0, 0, 1]], np.float64)


def unproject(
    inverse_depth: NDArray[np.float32], intrinsics: NDArray[np.float64], *, stride: int = 1, max_jump: float = 0.1
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Turn inverse depth into points: ``z = 1 / inverse depth``, ``x = (u - cx) z / fx`` (Hartley & Zisserman, 6.1).

    At silhouettes a network blends near and far, which gives points that float between the two. A pixel is dropped
    where depth changes within its 3 x 3 neighbourhood by more than ``max_jump``.

    Args:
        inverse_depth: ``(H, W)``, >= 0; 0 is infinitely far, and gives no point.
        intrinsics: ``(3, 3)`` in pixels.
        stride: Take every so many pixels in both directions.
        max_jump: Largest ratio of depths, less 1, among neighbouring pixels; infinity keeps all.

    Returns:
        float32 ``(N, 3)`` points in the unit of depth, and bool ``(ceil(H / stride), ceil(W / stride))``: which pixels
        they are of, row by row.
    """
    neighbours = np.ones((3, 3), np.uint8)
    nearest, farthest = cv2.dilate(inverse_depth, neighbours), cv2.erode(inverse_depth, neighbours)
    kept = (inverse_depth > 0) & (nearest <= (1 + max_jump) * farthest if np.isfinite(max_jump) else True)
    kept, depth = kept[::stride, ::stride], inverse_depth[::stride, ::stride]
    v, u = np.nonzero(kept)
    z = 1 / depth[kept].astype(np.float64)
    x = (u * stride + 0.5 - intrinsics[0, 2]) * z / intrinsics[0, 0]
    y = (v * stride + 0.5 - intrinsics[1, 2]) * z / intrinsics[1, 1]
    return np.stack([x, y, z], 1).astype(np.float32), kept
