"""Frames and short clips with their depth as training data: what a PyTorch ``DataLoader`` takes."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kdepth.dataset.dataset import ClipDataset
from kdepth.errors import DatasetError
from kdepth.schema import OK
from kdepth.video.depth_file import read_depths_at
from kdepth.video.frames import read_frames_at

Sample = tuple[NDArray[np.uint8], NDArray[np.float32], dict[str, Any]]
_COLUMNS = ["clip_id", "label", "depth_kind", "video_path", "depth_path"]


class DepthSamples:
    """Samples of picture and inverse depth, by number; a map-style dataset of PyTorch's.

    For instance ``DataLoader(torch_dataset(root, num_frames=16, step=2, size=(180, 320), seed=0), batch_size=8,
    num_workers=2, multiprocessing_context="spawn")``. A sample does not cross the border of a shot (column ``shots``).

    Args:
        root: Folder or URI of a dataset, or of a packed one.
        num_frames: Frames in a sample. Samples of a clip do not overlap.
        step: Take every so many of the frames that have depth.
        where: SQL condition over the clips' columns, as for `ClipDataset.table`.
        size: ``(H, W)`` that all samples are brought to, so that they can be stacked; None: as they are.
        seed: Shuffles the samples, the same way for the same seed and dataset; None: in the order of ``clip_id``.

    Attributes:
        labels: The labels of all clips of the dataset, sorted; ``label_index`` counts in it.
        num_too_short: Clips that were left out, as none of their shots has frames enough.

    Raises:
        DatasetError: There is no dataset, or no sample in it.
        ValueError: `where` is no condition over the columns, or another argument is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        num_frames: int = 1,
        step: int = 1,
        where: str | None = None,
        size: tuple[int, int] | None = None,
        seed: int | None = None,
    ) -> None:
        if size is not None and not (isinstance(size, (tuple, list)) and len(size) == 2 and min(size) >= 1):
            raise ValueError(f"size={size!r}: must be (H, W) in pixels, or None")
        for name, value in (("num_frames", num_frames), ("step", step)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: must be a whole number >= 1")
        ds = ClipDataset(root)
        self._root = ds.root  # absolute: a worker may have another working directory
        self._size = None if size is None else (int(size[0]), int(size[1]))
        self._num_frames, self._step = num_frames, step
        condition = f"status = '{OK}' AND num_depth_frames > 0" + (f" AND ({where})" if where else "")
        clips = ds.table(condition, [*_COLUMNS, "frames", "shots"]).combine_chunks()
        self.labels: list[str] = sorted(pc.unique(ds.table(columns=["label"])["label"].drop_null()).to_pylist())
        self._clips = clips.select(_COLUMNS)
        frames = clips["frames"]
        self._clip_of = pc.list_parent_indices(frames).to_numpy()
        flat = pc.list_flatten(frames)
        self._index, self._time_seconds, self._crc32, self._focal_px = (
            pc.struct_field(flat, name).to_numpy(zero_copy_only=False)
            for name in ("index", "time_seconds", "crc32", "focal_length_px")
        )
        self._shot = self._shots(clips["shots"])
        self._starts = self._first_frames()
        if not len(self._starts):
            few = f" with {num_frames} frames of one shot, {step} apart" if num_frames > 1 else ""
            raise DatasetError(f"no depth frame{few} in {root} where {condition}")
        self.num_too_short = clips.num_rows - len(np.unique(self._clip_of[self._starts]))
        if seed is not None:
            np.random.default_rng(seed).shuffle(self._starts)
        self._made_in = os.getpid()
        # Lance has threads, which a fork leaves behind: a folder's files are read without it.
        self._ds = ds

    def _shots(self, shots: pa.ChunkedArray) -> NDArray[np.int32]:
        """Number of the shot that each frame is in, from 0; a clip of unknown shots is one shot."""
        found = np.zeros(len(self._index), np.int32)
        begins = np.searchsorted(self._clip_of, np.arange(len(shots) + 1))
        for clip, firsts in enumerate(shots.to_pylist()):
            if firsts:
                frames = slice(begins[clip], begins[clip + 1])
                found[frames] = np.searchsorted(firsts, self._index[frames], side="right") - 1
        return found

    def _first_frames(self) -> NDArray[np.int64]:
        """Where in the list of all frames the samples begin."""
        is_border = (np.diff(self._clip_of) != 0) | (np.diff(self._shot) != 0)
        borders = [0, *(np.flatnonzero(is_border) + 1).tolist(), len(self._clip_of)]
        span, stride = (self._num_frames - 1) * self._step, self._num_frames * self._step
        starts = [np.arange(begin, end - span, stride) for begin, end in pairwise(borders)]
        return np.concatenate(starts).astype(np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ds": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ds = ClipDataset(self._root)
        self._made_in = os.getpid()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Sample:
        """Read a sample.

        Returns:
            ``(rgb, inverse_depth, meta)``. With ``num_frames=1`` uint8 ``(H, W, 3)`` and float32 ``(H, W)``, else uint8
            ``(T, 3, H, W)`` and float32 ``(T, H, W)``; inverse depth is 1/m for a metric model, near is large. In
            ``meta``: ``clip_id``; ``label`` (empty if unknown) and ``label_index`` (-1 if unknown); ``shot``;
            ``depth_kind``; ``index`` and ``time_seconds`` of the frame, or int64 and float64 ``(T,)`` of the frames;
            ``intrinsics``: float32 ``(3, 3)`` at the sample's size, in pixels, the principal point in the middle, of
            the median focal length of the frames; NaN if none is known.

        Raises:
            IndexError: There are fewer samples.
            DatasetError: A file is missing or damaged; or a worker process was forked, and the dataset is packed or in
                an object store.
        """
        start = int(self._starts[number])
        if not self._ds.has_paths and os.getpid() != self._made_in:
            raise DatasetError(
                "Lance and object stores can't be read in forked processes: give the DataLoader "
                'multiprocessing_context="spawn"'
            )
        frames = start + self._step * np.arange(self._num_frames)
        (row,) = self._clips.slice(int(self._clip_of[start]), 1).to_pylist()
        times = self._time_seconds[frames].tolist()
        rgb = np.stack(read_frames_at(self._ds.open_file(row, "video"), times))
        depth = read_depths_at(self._ds.open_file(row, "depth"), times, self._crc32[frames].tolist())
        inverse_depth = np.stack(list(depth)).astype(np.float32)
        stored = rgb.shape[1:]
        if self._size is not None:
            rgb, inverse_depth = _resized(rgb, self._size), _resized(inverse_depth, self._size)
        is_one = self._num_frames == 1
        meta = {
            "clip_id": row["clip_id"],
            "label": row["label"] or "",
            "label_index": self.labels.index(row["label"]) if row["label"] is not None else -1,
            "shot": int(self._shot[start]),
            "index": int(self._index[start]) if is_one else self._index[frames].astype(np.int64),
            "time_seconds": times[0] if is_one else np.array(times),
            "depth_kind": row["depth_kind"],
            "intrinsics": _intrinsics(float(np.median(self._focal_px[frames])), stored, rgb.shape[1:]),
        }
        return (rgb[0], inverse_depth[0], meta) if is_one else (rgb.transpose(0, 3, 1, 2).copy(), inverse_depth, meta)

    def __repr__(self) -> str:
        size = "" if self._size is None else f", {self._size[1]}x{self._size[0]}"
        what = "frames" if self._num_frames == 1 else f"samples of {self._num_frames} frames"
        short = f", {self.num_too_short} too short" if self.num_too_short else ""
        return f"DepthSamples({len(self)} {what} of {self._clips.num_rows - self.num_too_short} clips{short}{size})"


def _resized(pictures: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Pictures ``(T, H, W, ...)`` at another size ``(H, W)``."""
    return np.stack([cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA) for picture in pictures])


def _intrinsics(focal_length_px: float, stored: tuple[int, ...], shown: tuple[int, ...]) -> NDArray[np.float32]:
    """Intrinsics of a picture that was brought from one size ``(H, W, ...)`` to another."""
    focal_x, focal_y = (focal_length_px * shown[axis] / stored[axis] for axis in (1, 0))
    return np.array([[focal_x, 0, shown[1] / 2], [0, focal_y, shown[0] / 2], [0, 0, 1]], np.float32)


torch_dataset = DepthSamples  # the name that `kdepth` exports
