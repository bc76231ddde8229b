"""One clip of a dataset: its frames, their depth, and a steady view of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kdepth.depth_video import read_depth, read_depth_at, read_frames
from kdepth.errors import DatasetError
from kdepth.schema import FAILED
from kdepth.stability import sampled, stabilising_scales, steady_focal_length, steady_grey


class Clip:
    """One clip: its row, its frames and their depth. Frames are numbered as in the 360p file, from 0.

    Attributes:
        row: All columns of the clip's row.
    """

    def __init__(self, root: Path, row: dict[str, Any]) -> None:
        self._root = root
        self.row = row
        self._depth_frames = {frame["index"]: frame for frame in row["frames"] or ()}

    @property
    def clip_id(self) -> str:
        return str(self.row["clip_id"])

    @property
    def video_path(self) -> Path:
        """The 360p file."""
        return self._path("video_path")

    @property
    def depth_path(self) -> Path:
        """The depth file."""
        return self._path("depth_path")

    @property
    def depth_indices(self) -> list[int]:
        """Numbers of the frames that have depth, ascending."""
        return list(self._depth_frames)

    def frame(self, index: int) -> NDArray[np.uint8]:
        """A frame: uint8 ``(H, W, 3)`` RGB.

        Raises:
            IndexError: There is no such frame.
            DatasetError: The clip failed, or its file is missing or broken.
        """
        for frame in read_frames(self.video_path, lambda i, time_seconds: i == index):
            return frame.rgb
        raise IndexError(f"frame {index} of {self.clip_id}: it has frames 0 to {self.row['num_frames'] - 1}")

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """All frames in order, each uint8 ``(H, W, 3)`` RGB."""
        for frame in read_frames(self.video_path):
            yield frame.rgb

    def inverse_depth(self, index: int, *, stable: bool = False) -> NDArray[np.float32]:
        """Inverse depth of a frame: float32 ``(H, W)``, >= 0, near is large.

        1/m for a metric model, without unit or scale for a relative one (``row["depth_kind"]`` says which).

        Args:
            index: Number of the frame.
            stable: Take back jumps from frame to frame: of the focal length for a metric model, of the scale for a
                relative one (`kdepth.stability`). A view: what is stored stays as it is. The first call on a clip of
                a relative model reads all its frames.

        Raises:
            IndexError: The frame has no depth.
            DatasetError: As `frame`.
        """
        path = self.depth_path
        if index not in self._depth_frames:
            have = self.depth_indices
            some = f"{have[0]} to {have[-1]}" if len(have) > 8 else ", ".join(map(str, have))
            raise IndexError(f"frame {index} of {self.clip_id} has no depth; {len(have)} frames have: {some}")
        frame = self._depth_frames[index]
        inverse_depth = read_depth_at(path, frame["time_seconds"], frame["crc32"]).astype(np.float32)
        if not stable:
            return inverse_depth
        return np.float32(self._stable_scales[index]) * inverse_depth

    @cached_property
    def _stable_scales(self) -> dict[int, float]:
        """Scale of each frame's stable view, by frame number."""
        frames = self._depth_frames.values()
        if self.row["depth_kind"] == "metric":
            if any(frame["focal_length_px"] is None for frame in frames):
                return dict.fromkeys(self._depth_frames, 1.0)
            focal = np.array([frame["focal_length_px"] for frame in frames])
            steady = steady_focal_length(focal, np.array([frame["time_seconds"] for frame in frames]))
            # inverse depth = canonical inverse depth * width / focal length (Depth Pro, section 3)
            return {index: float(f / s) for index, f, s in zip(self._depth_frames, focal, steady, strict=True)}
        rgb = read_frames(self.video_path, lambda index, time_seconds: index in self._depth_frames)
        pairs = (
            (steady_grey(frame.rgb), sampled(depth.astype(np.float32)))
            for frame, depth in zip(rgb, read_depth(self.depth_path), strict=True)
        )
        return dict(zip(self._depth_frames, stabilising_scales(pairs).tolist(), strict=True))

    def depth_m(self, index: int, *, stable: bool = False) -> NDArray[np.float32]:
        """Depth of a frame in metres along the optical axis: float32 ``(H, W)``; infinite where inverse depth is 0.

        Args:
            index, stable: As for `inverse_depth`.

        Raises:
            DatasetError: The model's depth is relative: it has no metres. Otherwise as `inverse_depth`.
        """
        if self.row["depth_kind"] == "relative":
            raise DatasetError(
                f"{self.clip_id}: {self.row['depth_model']} gives relative depth, which has no metres; use "
                'inverse_depth(), or run the pipeline with a metric model such as model="depth-pro"'
            )
        with np.errstate(divide="ignore"):
            depth_m: NDArray[np.float32] = np.reciprocal(self.inverse_depth(index, stable=stable))
        return depth_m

    def save_depth(self, path: str | Path, index: int) -> Path:
        """Write one depth frame for other programs.

        Args:
            path: ``.npy``: float32 inverse depth. ``.png``: 16 bit grey, depth in millimetres for a metric model (0:
                farther than 65.535 m), else inverse depth scaled to 0-65535 by the frame's maximum.
            index: Number of the frame.

        Returns:
            The path.

        Raises:
            ValueError: Another suffix. Otherwise as `inverse_depth`.
        """
        path = Path(path)
        if path.suffix == ".npy":
            np.save(path, self.inverse_depth(index))
        elif path.suffix == ".png":
            if self.row["depth_kind"] == "metric":
                millimetres = self.depth_m(index) * 1000
                grey = np.where(millimetres <= 65535, millimetres, 0)
            else:
                inverse_depth = self.inverse_depth(index)
                grey = inverse_depth * (65535 / max(float(inverse_depth.max()), 1e-9))
            if not cv2.imwrite(str(path), grey.round().astype(np.uint16)):
                raise OSError(f"{path} could not be written")
        else:
            raise ValueError(f"path={str(path)!r}: must end in .npy or .png")
        return path

    def _path(self, column: str) -> Path:
        if self.row["status"] == FAILED:
            row = self.row
            why = f"{row['error_type']}: {row['error_message']}"
            raise DatasetError(f"{self.clip_id} failed at {row['failed_stage']}: {why}")
        return self._root / str(self.row[column])

    def __repr__(self) -> str:
        row = self.row
        if row["status"] == FAILED:
            return f"Clip({self.clip_id}, failed at {row['failed_stage']}: {row['error_type']})"
        return (
            f"Clip({self.clip_id}, {row['width']}x{row['height']}, {row['num_frames']} frames, "
            f"{row['num_depth_frames']} with {row['depth_kind']} depth by {row['depth_model']})"
        )
