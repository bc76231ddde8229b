"""Depth frames as training data: what a PyTorch ``DataLoader`` takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from kdepth.dataset.dataset import ClipDataset
from kdepth.errors import DatasetError
from kdepth.schema import OK
from kdepth.video.depth_file import read_depth_at
from kdepth.video.frames import read_frame_at

Pair = tuple[NDArray[np.uint8], NDArray[np.float32], dict[str, Any]]


class FramePairs:
    """Pairs of picture and inverse depth, by number; a map-style dataset of PyTorch's.

    For instance ``DataLoader(torch_dataset(root, size=(180, 320), seed=0), batch_size=16, num_workers=2,
    multiprocessing_context="spawn")``.

    The list of all frames is kept in flat arrays (24 bytes a frame), the files are opened as pairs are asked for.

    Args:
        root: Folder or URI of a dataset, or of a packed one.
        where: SQL condition over the clips' columns, as for `ClipDataset.table`.
        size: ``(H, W)`` that all pairs are brought to, so that they can be stacked; None: as they are.
        seed: Shuffles the pairs, the same way for the same seed and dataset; None: in the order of ``clip_id``.

    Raises:
        DatasetError: No dataset, or no depth frame in it.
        ValueError: `where` is no condition over the columns, or `size` no two positive whole numbers.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        where: str | None = None,
        size: tuple[int, int] | None = None,
        seed: int | None = None,
    ) -> None:
        if size is not None and not (isinstance(size, (tuple, list)) and len(size) == 2 and min(size) >= 1):
            raise ValueError(f"size={size!r}: must be (H, W) in pixels, or None")
        ds = ClipDataset(root)
        self._root = ds.root  # absolute: a worker may have another working directory
        self._size = None if size is None else (int(size[0]), int(size[1]))
        condition = f"status = '{OK}' AND num_depth_frames > 0" + (f" AND ({where})" if where else "")
        names = ["clip_id", "label", "depth_kind", "video_path", "depth_path", "frames"]
        clips = ds.table(condition, names).combine_chunks()
        if not clips.num_rows:
            raise DatasetError(f"no depth frame in {root} where {condition}")
        self._clips = clips.drop_columns("frames")
        frames = clips["frames"]
        self._clip_of = pc.list_parent_indices(frames).to_numpy()
        flat = pc.list_flatten(frames)
        self._index, self._time_seconds, self._crc32, self._focal_px = (
            pc.struct_field(flat, name).to_numpy(zero_copy_only=False)
            for name in ("index", "time_seconds", "crc32", "focal_length_px")
        )
        self._order = np.arange(len(self._clip_of))
        if seed is not None:
            np.random.default_rng(seed).shuffle(self._order)
        self._made_in = os.getpid()
        # Lance has threads, which a fork leaves behind: a folder's files are read without it.
        self._ds = ds

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ds": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ds = ClipDataset(self._root)
        self._made_in = os.getpid()

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, number: int) -> Pair:
        """A pair.

        Returns:
            ``(rgb, inverse_depth, meta)``: uint8 ``(H, W, 3)``; float32 ``(H, W)``, 1/m for a metric model, near is
            large; ``clip_id``, ``label`` (empty if unknown), ``index``, ``time_seconds``, ``depth_kind``, and
            ``intrinsics``: float32 ``(3, 3)`` at the pair's size, in pixels, the principal point in the middle; NaN if
            no focal length is known.

        Raises:
            IndexError: There are fewer pairs.
            DatasetError: A file is missing or damaged; or a worker process was forked, and the dataset is packed or in
                an object store.
        """
        pair = int(self._order[number])
        if not self._ds.has_paths and os.getpid() != self._made_in:
            raise DatasetError(
                "Lance and object stores can't be read in forked processes: give the DataLoader "
                'multiprocessing_context="spawn"'
            )
        (row,) = self._clips.slice(int(self._clip_of[pair]), 1).to_pylist()
        time_seconds = float(self._time_seconds[pair])
        rgb = read_frame_at(self._ds.open_file(row, "video"), time_seconds).rgb
        depth = read_depth_at(self._ds.open_file(row, "depth"), time_seconds, int(self._crc32[pair]))
        inverse_depth = depth.astype(np.float32)
        stored = rgb.shape
        if self._size is not None:
            size = self._size[::-1]
            rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
            inverse_depth = cv2.resize(inverse_depth, size, interpolation=cv2.INTER_AREA).astype(np.float32, copy=False)
        meta = {
            "clip_id": row["clip_id"],
            "label": row["label"] or "",
            "index": int(self._index[pair]),
            "time_seconds": time_seconds,
            "depth_kind": row["depth_kind"],
            "intrinsics": _intrinsics(float(self._focal_px[pair]), stored, rgb.shape),
        }
        return rgb, inverse_depth, meta

    def __repr__(self) -> str:
        size = "" if self._size is None else f", {self._size[1]}x{self._size[0]}"
        return f"FramePairs({len(self)} frames of {self._clips.num_rows} clips{size})"


def _intrinsics(focal_length_px: float, stored: tuple[int, ...], shown: tuple[int, ...]) -> NDArray[np.float32]:
    """Of a picture that was brought from one size ``(H, W, ...)`` to another."""
    focal_x, focal_y = (focal_length_px * shown[axis] / stored[axis] for axis in (1, 0))
    return np.array([[focal_x, 0, shown[1] / 2], [0, focal_y, shown[0] / 2], [0, 0, 1]], np.float32)


torch_dataset = FramePairs  # the name that `kdepth` exports
