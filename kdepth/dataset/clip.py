"""One clip of a dataset: its frames, their depth, and a steady view of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kdepth.dataset.temporal import sampled, scale_jump, stabilising_scales, steady_focal_length, steady_grey
from kdepth.errors import DatasetError, KdepthError
from kdepth.html import card, rgb_and_depth
from kdepth.schema import FAILED
from kdepth.storage import Root
from kdepth.video.depth_file import count_frames, read_checksums, read_depth, read_depth_at, read_frame_at, read_frames


class Clip:
    """One clip: its row, its frames and their depth. Frames are numbered as in the 360p file, from 0.

    Args:
        root: Where the row's files are. With a `Root` the row may come from elsewhere: paths that lead out of it are
            refused. None: the files are in no folder.
        row: All columns of the clip's row.
        open_file: ``"video"`` or ``"depth"`` -> the file's path, or a file object. Default: the path below `root`.
    """

    def __init__(
        self, root: Root | Path | None, row: dict[str, Any], open_file: Callable[[str], Any] | None = None
    ) -> None:
        self._root = root
        self.row = row
        self._open_file = open_file or self._path_of
        self._depth_frames = {frame["index"]: frame for frame in row["frames"] or ()}

    @property
    def clip_id(self) -> str:
        return str(self.row["clip_id"])

    @property
    def video_path(self) -> Path:
        """The 360p file.

        Raises:
            DatasetError: The clip failed, or the dataset is packed or in an object store, where there are no paths.
        """
        return self._path("video")

    @property
    def depth_path(self) -> Path:
        """The depth file. Raises as `video_path`."""
        return self._path("depth")

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
        video = self._open("video")
        if index in self._depth_frames:  # then its time is known, which is faster to find
            return read_frame_at(video, self._depth_frames[index]["time_seconds"]).rgb
        for frame in read_frames(video, lambda i, time_seconds: i == index):
            return frame.rgb
        raise IndexError(f"frame {index} of {self.clip_id}: it has frames 0 to {self.row['num_frames'] - 1}")

    def rgb_at(self, time_seconds: float) -> NDArray[np.uint8]:
        """The frame that a player shows at a time: uint8 ``(H, W, 3)`` RGB.

        Raises:
            IndexError: The clip is not so long, or the time is negative.
            DatasetError: As `frame`.
        """
        video = self._open("video")
        # The length counts from the first frame, which may come late: where sound begins before the picture.
        begins = self._depth_frames[0]["time_seconds"] if 0 in self._depth_frames else 0.0
        if not 0 <= time_seconds <= (end := begins + self.row["duration_seconds"]):
            raise IndexError(f"{time_seconds} s of {self.clip_id}: it ends at {end:.3f} s")
        return read_frame_at(video, time_seconds).rgb

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """All frames in order, each uint8 ``(H, W, 3)`` RGB."""
        for frame in read_frames(self._open("video")):
            yield frame.rgb

    def inverse_depth(self, index: int, *, stable: bool = False) -> NDArray[np.float32]:
        """Inverse depth of a frame: float32 ``(H, W)``, >= 0, near is large.

        1/m for a metric model, without unit or scale for a relative one (``row["depth_kind"]`` says which).

        Args:
            index: Number of the frame.
            stable: Take back jumps from frame to frame: of the focal length for a metric model, of the scale for a
                relative one (`dataset.temporal`). Only neighbouring frames are compared, so that it does nothing where
                few frames of a clip have depth. The stored depth is not changed. The first call on a clip of a relative
                model reads all its frames.

        Raises:
            IndexError: The frame has no depth.
            DatasetError: As `frame`.
        """
        file = self._open("depth")
        if index not in self._depth_frames:
            have = self.depth_indices
            some = f"{have[0]} to {have[-1]}" if len(have) > 8 else ", ".join(map(str, have))
            raise IndexError(f"frame {index} of {self.clip_id} has no depth; {len(have)} frames have: {some}")
        frame = self._depth_frames[index]
        inverse_depth = read_depth_at(file, frame["time_seconds"], frame["crc32"]).astype(np.float32)
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
        rgb = read_frames(self._open("video"), lambda index, time_seconds: index in self._depth_frames)
        pairs = (
            (frame.index, frame.time_seconds, steady_grey(frame.rgb), sampled(depth))
            for frame, depth in zip(rgb, read_depth(self._open("depth")), strict=True)
        )
        return dict(zip(self._depth_frames, stabilising_scales(pairs).tolist(), strict=True))

    def scale_jumps(self, *, stable: bool = False) -> NDArray[np.float64]:
        """How much the scale of depth jumps from each frame to the next (`kdepth.dataset.temporal.scale_jump`).

        Args:
            stable: As for `inverse_depth`.

        Returns:
            ``(N,)`` absolute log ratios, one for each frame that has depth: 0 is steady, 0.05 a jump of 5 %. NaN for
            the first frame, at cuts, and where the frame before has no depth. Its mean without NaN is what ``flicker``
            is.

        Raises:
            DatasetError: As `frame`.
        """
        scales = self._stable_scales if stable else dict.fromkeys(self._depth_frames, 1.0)
        stored = read_depth(self._open("depth"))  # in order: ten times as fast as frame by frame
        jumps: list[float] = []
        last: tuple[int, NDArray[np.int16], NDArray[np.float32]] | None = None
        for index, rgb in enumerate(self.frames()):
            if index in self._depth_frames:
                grey, depth = steady_grey(rgb), np.float32(scales[index]) * sampled(next(stored))
                jump = scale_jump(*last[1:], grey, depth) if last is not None and last[0] == index - 1 else None
                jumps.append(np.nan if jump is None else jump)
                last = index, grey, depth
        return np.array(jumps)

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

    def save_depth(self, path: str | Path, index: int | None = None) -> Path:
        """Write depth for other programs.

        Args:
            path: Its suffix says what is written. ``.npy``: float32 inverse depth of a frame. ``.png``: 16 bit grey of
                a frame, depth in millimetres for a metric model (0: farther than 65.535 m), else inverse depth scaled
                to 0-65535 by the clip's maximum, so that its frames can be compared. ``.npz``: of all frames that have
                depth ``inverse_depth`` float16 ``(N, H, W)``, ``index``, ``time_seconds``, ``focal_length_px`` (NaN
                for relative models). (A video to look at: `kdepth.plots.depth_video`.)
            index: Number of the frame, for ``.npy`` and ``.png``.

        Returns:
            The path.

        Raises:
            ValueError: Another suffix, or `index` is missing or not wanted. Otherwise as `inverse_depth`.
        """
        path = Path(path)
        if path.suffix not in (".npy", ".png", ".npz"):
            raise ValueError(f"path={str(path)!r}: must end in .npy or .png (a frame) or .npz (the clip)")
        if (index is None) != (path.suffix == ".npz"):
            raise ValueError(f"index={index}: .npy and .png hold one frame, .npz all of them")
        path.parent.mkdir(parents=True, exist_ok=True)
        if index is None:
            return self._save_all(path)
        if path.suffix == ".npy":
            np.save(path, self.inverse_depth(index))
            return path
        if self.row["depth_kind"] == "metric":
            millimetres = self.depth_m(index) * 1000
            grey = np.where(millimetres <= 65535, millimetres, 0)
        else:
            greatest = max(frame["max"] for frame in self._depth_frames.values())
            grey = self.inverse_depth(index) * (65535 / max(greatest, 1e-9))
        if not cv2.imwrite(str(path), grey.round().astype(np.uint16)):
            raise OSError(f"{path} could not be written")
        return path

    def _save_all(self, path: Path) -> Path:
        frames = list(self._depth_frames.values())
        np.savez_compressed(
            path,
            inverse_depth=np.stack(list(read_depth(self._open("depth")))),
            index=np.array([frame["index"] for frame in frames]),
            time_seconds=np.array([frame["time_seconds"] for frame in frames]),
            focal_length_px=np.array([frame["focal_length_px"] for frame in frames], np.float32),
        )
        return path

    def problems(self) -> Iterator[tuple[str, DatasetError]]:
        """Read the clip's files to their ends, and say what is wrong: ``"video"`` or ``"depth"``, and the problem."""
        for kind, check in (("video", self._check_video), ("depth", self._check_depth)):
            if self.row[f"{kind}_path"] is not None:
                try:
                    check()
                except DatasetError as exc:
                    yield kind, exc

    def _check_video(self) -> None:
        if (num_frames := count_frames(self._open("video"))) != self.row["num_frames"]:
            raise DatasetError(f"has {num_frames} frames, not {self.row['num_frames']}")

    def _check_depth(self) -> None:
        written = [frame["crc32"] for frame in self._depth_frames.values()]
        stored = read_checksums(self._open("depth"))
        if written != stored:
            changed = sum(a != b for a, b in zip(written, stored, strict=False)) + abs(len(written) - len(stored))
            raise DatasetError(f"{changed} of {len(written)} frames are not what was written")

    def file_bytes(self, kind: str) -> bytes | None:
        """Read the whole ``"video"`` or ``"depth"`` file; None if the clip has none."""
        if self.row["status"] == FAILED or self.row[f"{kind}_path"] is None:
            return None
        file = self._open(kind)
        if isinstance(file, str):
            try:
                return Path(file).read_bytes()
            except OSError as exc:
                raise DatasetError(f"{self.clip_id}: {exc}") from exc
        with file:
            content: bytes = file.read()
        return content

    def _open(self, kind: str) -> Any:
        self.require(kind)
        return self._open_file(kind)

    def _path(self, kind: str) -> Path:
        self.require(kind)
        if self._root is None:
            raise DatasetError(
                f"{self.clip_id} has no files in a folder: its dataset is packed or in an object store; use frame(), "
                "frames(), inverse_depth() or save_depth()"
            )
        name = str(self.row[f"{kind}_path"])
        return self._root.path(name) if isinstance(self._root, Root) else self._root / name

    def _path_of(self, kind: str) -> str:
        return str(self._path(kind))

    def require(self, kind: str) -> None:
        """Make sure that the row names a ``"video"`` or ``"depth"`` file.

        Raises:
            DatasetError: The clip failed, or its pipeline ended before that stage.
        """
        row = self.row
        if row["status"] == FAILED:
            why = f"{row['error_type']}: {row['error_message']}"
            raise DatasetError(f"{self.clip_id} failed at {row['failed_stage']}: {why}")
        if row[f"{kind}_path"] is None:
            raise DatasetError(f"{self.clip_id} has no {kind}: the pipeline that made it ended before that stage")

    def __repr__(self) -> str:
        row = self.row
        if row["status"] == FAILED:
            return f"Clip({self.clip_id}, failed at {row['failed_stage']}: {row['error_type']})"
        if row["depth_path"] is None:
            return f"Clip({self.clip_id}, without depth)"
        return (
            f"Clip({self.clip_id}, {row['width']}x{row['height']}, {row['num_frames']} frames, "
            f"{row['num_depth_frames']} with {row['depth_kind']} depth by {row['depth_model']})"
        )

    def _repr_html_(self) -> str:
        """For a notebook: the middle one of the frames that have depth, beside its depth, and the main facts."""
        row = self.row
        facts: dict[str, object] = {"label": row["label"], "from": row["source_url"], "member": row["archive_member"]}
        if row["status"] == FAILED:
            facts[f"failed at {row['failed_stage']}"] = f"{row['error_type']}: {row['error_message']}"
            return card(self.clip_id, facts)
        if row["video_path"]:
            times = f"{row['num_frames']} frames, {row['duration_seconds']:.1f} s, {row['average_fps']:.4g} frames/s"
            facts["video"] = f"{row['width']} x {row['height']}, {times}" + (", sound" if row["has_audio"] else "")
        if not self.depth_indices:
            return card(self.clip_id, facts | {"depth": "none"})
        facts["depth"] = f"{row['num_depth_frames']} frames, {row['depth_kind']}, by {row['depth_model']}"
        facts["flicker"] = None if row["flicker"] is None else f"{row['flicker']:.1%} a frame"
        middle = self.depth_indices[len(self.depth_indices) // 2]
        try:
            picture = rgb_and_depth(self.frame(middle), self.inverse_depth(middle))
        except (KdepthError, OSError) as error:  # a row without its files is still worth a look
            return card(self.clip_id, facts | {"picture": f"{type(error).__name__}: {error}"})
        return card(self.clip_id, facts | {"shown": f"frame {middle}, near is bright"}, html=[picture])
