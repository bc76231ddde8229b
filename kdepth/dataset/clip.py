"""One clip of a dataset: its frames, their depth, and a steady view of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kdepth.dataset.points import pinhole_intrinsics, unproject
from kdepth.dataset.temporal import sampled, scale_steps, stabilising_scales, steady_focal_length, steady_grey
from kdepth.errors import DatasetError, KdepthError
from kdepth.html import card, rgb_and_depth
from kdepth.schema import FAILED
from kdepth.storage import Root
from kdepth.video.depth_file import read_checksums, read_depths_at
from kdepth.video.frames import count_frames, read_frame_at, read_frames


class Clip:
    """One clip: its row, its frames and their depth. Frames are numbered as in the 360p file, from 0.

    Args:
        root: Where the row's files are. A `Root` refuses paths that lead out of it. None: they are in no folder.
        row: All columns of the clip's row.
        open_file: ``"video"`` or ``"depth"`` -> the file's path, or a file object. Default: the path below `root`.
    """

    def __init__(
        self, root: Root | Path | None, row: dict[str, Any], open_file: Callable[[str], Any] | None = None
    ) -> None:
        self._root = root
        self.row = row
        self._open_file = open_file or (lambda kind: str(self._path(kind)))
        self._depth_frames: dict[int, Mapping[str, Any]] = {frame["index"]: frame for frame in row["frames"] or ()}

    @property
    def clip_id(self) -> str:
        return str(self.row["clip_id"])

    @property
    def video_path(self) -> Path:
        """The 360p file; DatasetError if the clip failed, or in a packed dataset or an object store, without paths."""
        return self._path("video")

    @property
    def depth_path(self) -> Path:
        """The depth file; raises as `video_path`."""
        return self._path("depth")

    @property
    def depth_indices(self) -> list[int]:
        """Numbers of the frames that have depth, ascending."""
        return list(self._depth_frames)

    @property
    def shots(self) -> list[int]:
        """Numbers of the first frame of each shot, ascending, from 0; of a clip whose shots are unknown ``[0]``."""
        return list(self.row.get("shots") or [0])

    def frame(self, index: int) -> NDArray[np.uint8]:
        """A frame: uint8 ``(H, W, 3)`` RGB.

        Raises:
            IndexError: There is no such frame.
            DatasetError: The clip failed, or its file is missing or broken.
        """
        video = self.open("video")
        if index in self._depth_frames:  # then its time is known, which is faster to find
            return read_frame_at(video, self._depth_frames[index]["time_seconds"]).rgb
        for frame in read_frames(video, lambda i, time_seconds: i == index):
            return frame.rgb
        raise IndexError(f"frame {index} of {self.clip_id}: it has frames 0 to {self.row['num_frames'] - 1}")

    def rgb_at(self, time_seconds: float) -> NDArray[np.uint8]:
        """The frame that a player shows at a time: uint8 ``(H, W, 3)`` RGB; IndexError if the clip is not so long."""
        video = self.open("video")
        # The length counts from the first frame, which may come late: where sound begins before the picture.
        begins = self._depth_frames[0]["time_seconds"] if 0 in self._depth_frames else 0.0
        if not 0 <= time_seconds <= (end := begins + self.row["duration_seconds"]):
            raise IndexError(f"{time_seconds} s of {self.clip_id}: it ends at {end:.3f} s")
        return read_frame_at(video, time_seconds).rgb

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """All frames in order, each uint8 ``(H, W, 3)`` RGB."""
        for frame in read_frames(self.open("video")):
            yield frame.rgb

    def inverse_depth(self, index: int, *, stable: bool = False) -> NDArray[np.float32]:
        """Inverse depth of a frame: float32 ``(H, W)``, >= 0, near is large.

        1/m for a metric model, without unit or scale for a relative one (``row["depth_kind"]`` says which).

        Args:
            index: Number of the frame.
            stable: Remove jumps from frame to frame: of the focal length for a metric model, of the scale for a
                relative one (`dataset.temporal`), whose first call reads all frames of the clip. Only neighbouring
                frames are compared: where few frames have depth, it does nothing.

        Raises:
            IndexError: The frame has no depth.
            DatasetError: As `frame`.
        """
        (stored,) = self._stored_depth(index)
        inverse_depth = stored.astype(np.float32)
        return np.float32(self._stable_scales[index]) * inverse_depth if stable else inverse_depth

    def _stored_depth(self, *indices: int) -> Iterator[NDArray[np.float16]]:
        """Read the depth of these frames, ascending, or of all that have depth, as it is in the file."""
        file = self.open("depth")
        frames = [self._frame_with_depth(index) for index in indices or self._depth_frames]
        return read_depths_at(file, [f["time_seconds"] for f in frames], [f["crc32"] for f in frames])

    def _frame_with_depth(self, index: int) -> Mapping[str, Any]:
        if index not in self._depth_frames:
            have = self.depth_indices
            some = f"{have[0]} to {have[-1]}" if len(have) > 8 else ", ".join(map(str, have))
            raise IndexError(f"frame {index} of {self.clip_id} has no depth; {len(have)} frames have: {some}")
        return self._depth_frames[index]

    @cached_property
    def _scale_steps(self) -> NDArray[np.float64]:
        stored = self._stored_depth()
        shown = read_frames(self.open("video"), lambda index, time_seconds: index in self._depth_frames)
        pairs = ((f.index, steady_grey(f.rgb), sampled(depth)) for f, depth in zip(shown, stored, strict=True))
        return scale_steps(pairs, self.shots)

    @cached_property
    def _stable_scales(self) -> dict[int, float]:
        """Scale of each frame's stable view, by frame number."""
        frames = list(self._depth_frames.values())
        if self.row["depth_kind"] == "metric":
            steady = self._steady_focal_lengths
            # inverse depth = canonical inverse depth * width / focal length (Depth Pro, section 3)
            return {f["index"]: f["focal_length_px"] / steady[f["index"]] if steady else 1.0 for f in frames}
        scales = stabilising_scales(self._scale_steps, np.array([frame["time_seconds"] for frame in frames]))
        return dict(zip(self._depth_frames, scales.tolist(), strict=True))

    @cached_property
    def _steady_focal_lengths(self) -> dict[int, float]:
        """Each frame's focal length smoothed within its shot, by frame number; empty where one is not known."""
        frames = list(self._depth_frames.values())
        if any(frame["focal_length_px"] is None for frame in frames):
            return {}
        found: dict[int, float] = {}
        for first, end in pairwise([*self.shots, math.inf]):
            shot = [frame for frame in frames if first <= frame["index"] < end]
            focal = np.array([frame["focal_length_px"] for frame in shot])
            smooth = steady_focal_length(focal, np.array([frame["time_seconds"] for frame in shot]))
            found |= zip((frame["index"] for frame in shot), smooth.tolist(), strict=True)
        return found

    def scale_jumps(self, *, stable: bool = False) -> NDArray[np.float64]:
        """How much the scale of depth jumps from each frame to the next (`dataset.temporal`); raises as `frame`.

        Returns:
            ``(N,)`` absolute log ratios, one for each frame that has depth: 0 is steady, 0.05 a jump of 5 %; NaN where
            nothing can be compared. The mean without NaN is ``flicker``.
        """
        steps = self._scale_steps
        if stable:
            steps = steps + np.diff(np.log(list(self._stable_scales.values())), prepend=np.nan)
        return np.abs(steps)

    def depth_m(self, index: int, *, stable: bool = False) -> NDArray[np.float32]:
        """Depth of a frame in metres along the optical axis: float32 ``(H, W)``; infinite where inverse depth is 0.

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

    def intrinsics(
        self, index: int, *, focal_length_px: float | None = None, fov_deg: float | None = None, stable: bool = False
    ) -> NDArray[np.float64]:
        """Intrinsics of a frame at the 360p file's size: float64 ``(3, 3)`` px, the principal point in the middle.

        Args:
            index: Number of the frame.
            focal_length_px: The focal length, if you know it; default: what the model found.
            fov_deg: The horizontal field of view instead, in (0, 180).
            stable: Smooth the focal length that the model found within the shot.

        Raises:
            DatasetError: The model found no focal length, and none is given; or the frame has no depth.
            ValueError: Both are given, or one is out of range.
        """
        if focal_length_px is None and fov_deg is None:
            self.require("depth")
            focal_length_px = self._frame_with_depth(index)["focal_length_px"]
            if focal_length_px is None:
                raise DatasetError(
                    f"{self.clip_id}: {self.row['depth_model']} finds no focal length; give focal_length_px or fov_deg"
                )
            if stable and self._steady_focal_lengths:
                focal_length_px = self._steady_focal_lengths[index]
        return pinhole_intrinsics(focal_length_px, self.row["width"], self.row["height"], fov_deg)

    def points(
        self,
        index: int,
        stride: int = 1,
        *,
        focal_length_px: float | None = None,
        fov_deg: float | None = None,
        stable: bool = False,
        max_jump: float = 0.1,
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """A frame as coloured points in space.

        Args:
            index, focal_length_px, fov_deg, stable: As for `intrinsics` and `inverse_depth`.
            stride, max_jump: Which pixels become points; see `dataset.points.unproject`.

        Returns:
            float32 ``(N, 3)`` points, x right, y down, z forward, and uint8 ``(N, 3)`` RGB. In metres; of a relative
            model in the model's own unit (1 / its inverse depth), and distorted by the offset that its depth may have.

        Raises:
            DatasetError: As `intrinsics` and `inverse_depth`.
        """
        intrinsics = self.intrinsics(index, focal_length_px=focal_length_px, fov_deg=fov_deg, stable=stable)
        inverse_depth = self.inverse_depth(index, stable=stable)
        points, kept = unproject(inverse_depth, intrinsics, stride=stride, max_jump=max_jump)
        return points, self.frame(index)[::stride, ::stride][kept]

    def save_points(self, path: str | Path, index: int, **options: Any) -> Path:
        """Write a frame's `points` for other programs.

        Args:
            path: ``.ply`` (x right, y down, z forward) or ``.glb`` (glTF's axes: y up, z backward); it is returned.
            index, **options: As for `points`.

        Raises:
            ValueError: Another suffix. Otherwise as `points`.
        """
        import trimesh  # takes 0.3 s, which other uses of a clip must not wait for

        path = Path(path)
        if path.suffix not in (".ply", ".glb"):
            raise ValueError(f"path={str(path)!r}: must end in .ply or .glb")
        points, rgb = self.points(index, **options)
        if path.suffix == ".glb":
            points = points * np.array([1, -1, -1], np.float32)
        path.parent.mkdir(parents=True, exist_ok=True)
        trimesh.PointCloud(points, colors=rgb).export(path)
        return path

    def save_depth(self, path: str | Path, index: int | None = None) -> Path:
        """Write depth for other programs.

        Args:
            path: Its suffix says what is written; it is returned. ``.npy``: float32 inverse depth of a frame. ``.png``:
                16 bit grey of a frame, depth in millimetres for a metric model (0: farther than 65.535 m), else inverse
                depth scaled to 0-65535 by the clip's maximum. ``.npz``: of all frames that have depth ``inverse_depth``
                float16 ``(N, H, W)``, ``index``, ``time_seconds``, ``focal_length_px`` (NaN for relative models).
            index: Number of the frame, for ``.npy`` and ``.png``.

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
            frames = self._depth_frames.values()
            np.savez_compressed(
                path,
                inverse_depth=np.stack(list(self._stored_depth())),
                index=np.array(self.depth_indices),
                time_seconds=np.array([frame["time_seconds"] for frame in frames]),
                focal_length_px=np.array([frame["focal_length_px"] for frame in frames], np.float32),
            )
        elif path.suffix == ".npy":
            np.save(path, self.inverse_depth(index))
        else:
            if self.row["depth_kind"] == "metric":
                millimetres = self.depth_m(index) * 1000
                grey = np.where(millimetres <= 65535, millimetres, 0)
            else:
                greatest = max(frame["max"] for frame in self.row["frames"])
                grey = self.inverse_depth(index) * (65535 / max(greatest, 1e-9))
            if not cv2.imwrite(str(path), grey.round().astype(np.uint16)):
                raise OSError(f"{path} could not be written")
        return path

    def problems(self) -> Iterator[tuple[str, DatasetError]]:
        """Read the clip's files to their ends, and say what is wrong: ``"video"`` or ``"depth"``, and the problem."""
        for kind in ("video", "depth"):
            if self.row[f"{kind}_path"] is not None:
                try:
                    self._check(kind)
                except DatasetError as exc:
                    yield kind, exc

    def _check(self, kind: str) -> None:
        if kind == "video":
            if (num_frames := count_frames(self.open(kind))) != self.row["num_frames"]:
                raise DatasetError(f"has {num_frames} frames, not {self.row['num_frames']}")
            return
        written, stored = [frame["crc32"] for frame in self._depth_frames.values()], read_checksums(self.open(kind))
        if changed := sum(a != b for a, b in zip_longest(written, stored)):
            raise DatasetError(f"{changed} of {len(written)} frames are not what was written")

    def file_bytes(self, kind: str) -> bytes | None:
        """Read the whole ``"video"`` or ``"depth"`` file; None if the clip has none."""
        if self.row["status"] == FAILED or self.row[f"{kind}_path"] is None:
            return None
        file = self.open(kind)
        try:
            with open(file, "rb") if isinstance(file, str) else file as content:
                return bytes(content.read())
        except OSError as exc:
            raise DatasetError(f"{self.clip_id}: {exc}") from exc

    def open(self, kind: str) -> Any:
        """Open the ``"video"`` or ``"depth"`` file: its path, or a file object."""
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

    def require(self, kind: str) -> None:
        """Raise DatasetError if the row names no ``"video"`` or ``"depth"`` file: it failed, or ended before."""
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
