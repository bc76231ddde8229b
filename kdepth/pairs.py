"""Depth frames as training data: what a PyTorch ``DataLoader`` takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from kdepth.dataset import ClipDataset
from kdepth.depth_video import read_depth_at, read_frame_at
from kdepth.errors import DatasetError
from kdepth.schema import OK

Pair = tuple[NDArray[np.uint8], NDArray[np.float32], dict[str, Any]]


class FramePairs:
    """Pairs of picture and inverse depth, by number; a map-style dataset of PyTorch's.

    For instance ``DataLoader(torch_dataset(root, size=(180, 320), seed=0), batch_size=16, num_workers=2)``.
    The list of all frames is kept in flat arrays (20 bytes a frame), the files are opened as pairs are asked for.

    Args:
        root: Folder or URI of a dataset, or of a packed one.
        where: SQL condition over the clips' columns, as for `ClipDataset.table`.
        size: ``(H, W)`` that all pairs are brought to, so that they can be stacked; None: as they are.
        seed: Shuffles the pairs, the same way for the same seed and dataset; None: in the order of ``clip_id``.

    Raises:
        DatasetError: No dataset, or no depth frame in it.
        ValueError: `where` is no condition over the columns.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        where: str | None = None,
        size: tuple[int, int] | None = None,
        seed: int | None = None,
    ) -> None:
        self._root, self._size = root, size
        ds = ClipDataset(root)
        condition = f"status = '{OK}' AND num_depth_frames > 0" + (f" AND ({where})" if where else "")
        names = ["clip_id", "label", "depth_kind", "video_path", "depth_path", "frames"]
        clips = ds.table(condition, names).combine_chunks()
        if not clips.num_rows:
            raise DatasetError(f"no depth frame in {root} where {condition}")
        self._clips = clips.drop_columns("frames")
        frames = clips["frames"]
        self._clip_of = pc.list_parent_indices(frames).to_numpy()
        flat = pc.list_flatten(frames)
        self._index, self._time_seconds, self._crc32 = (
            pc.struct_field(flat, name).to_numpy() for name in ("index", "time_seconds", "crc32")
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
            large; ``clip_id``, ``label`` (empty if unknown), ``index``, ``time_seconds`` and ``depth_kind``.

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
        }
        return rgb, inverse_depth, meta


torch_dataset = FramePairs  # the name that `kdepth` exports
