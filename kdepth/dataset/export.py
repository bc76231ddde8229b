"""Depth and points as files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from kdepth.video.depth_file import read_depth

if TYPE_CHECKING:
    from kdepth.dataset.clip import Clip


def save_depth(clip: Clip, path: Path, index: int | None) -> Path:
    """Write depth as `Clip.save_depth` says."""
    if path.suffix not in (".npy", ".png", ".npz"):
        raise ValueError(f"path={str(path)!r}: must end in .npy or .png (a frame) or .npz (the clip)")
    if (index is None) != (path.suffix == ".npz"):
        raise ValueError(f"index={index}: .npy and .png hold one frame, .npz all of them")
    path.parent.mkdir(parents=True, exist_ok=True)
    if index is None:
        frames = clip.row["frames"]
        np.savez_compressed(
            path,
            inverse_depth=np.stack(list(read_depth(clip.open("depth")))),
            index=np.array([frame["index"] for frame in frames]),
            time_seconds=np.array([frame["time_seconds"] for frame in frames]),
            focal_length_px=np.array([frame["focal_length_px"] for frame in frames], np.float32),
        )
        return path
    if path.suffix == ".npy":
        np.save(path, clip.inverse_depth(index))
        return path
    if clip.row["depth_kind"] == "metric":
        millimetres = clip.depth_m(index) * 1000
        grey = np.where(millimetres <= 65535, millimetres, 0)
    else:
        greatest = max(frame["max"] for frame in clip.row["frames"])
        grey = clip.inverse_depth(index) * (65535 / max(greatest, 1e-9))
    if not cv2.imwrite(str(path), grey.round().astype(np.uint16)):
        raise OSError(f"{path} could not be written")
    return path


def save_points(path: Path, points: NDArray[np.float32], rgb: NDArray[np.uint8]) -> Path:
    """Write coloured points with trimesh: ``.ply`` in OpenCV's axes, ``.glb`` in glTF's (y up, z backward)."""
    import trimesh  # takes 0.3 s, and is needed nowhere else

    if path.suffix not in (".ply", ".glb"):
        raise ValueError(f"path={str(path)!r}: must end in .ply or .glb")
    if path.suffix == ".glb":
        points = points * np.array([1, -1, -1], np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    trimesh.PointCloud(points, colors=rgb).export(path)
    return path
