"""``clips.lance``: one row a clip, committed as clips finish, and read back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kdepth.depth_video import read_depth_at, read_frames
from kdepth.errors import DatasetError
from kdepth.schema import CLIP_SCHEMA, FAILED, OK, rows_to_table

# A commit costs about 15 ms and one small fragment; what is not committed is lost with the driver.
_COMMIT_ROWS = 64
_COMMIT_SECONDS = 5.0
# Old versions are for readers that opened the dataset a moment ago.
_KEEP_VERSIONS = timedelta(hours=1)


def project_path(path: str | Path) -> Path:
    """A path as every notebook means it: relative to the project, wherever the kernel was started.

    papermill runs a notebook in the caller's folder, nbval and Jupyter in the notebook's own.

    Args:
        path: Absolute, or relative to the nearest folder at or above the working directory that has a
            ``pyproject.toml``; to the working directory itself if none has.
    """
    here = Path.cwd()
    project = next((folder for folder in (here, *here.parents) if (folder / "pyproject.toml").is_file()), here)
    return project / Path(path).expanduser()


def lance_path(root: str | Path) -> Path:
    """Where the dataset of a root is."""
    return Path(root) / "clips.lance"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def read_rows(root: str | Path, columns: Sequence[str], where: str | None = None) -> pa.Table:
    """Rows of a root's dataset as they are now; an empty table if nothing was ever committed."""
    if not lance_path(root).exists():
        return CLIP_SCHEMA.empty_table().select(columns)
    return lance.dataset(str(lance_path(root))).to_table(columns=list(columns), filter=where)


class ClipWriter:
    """Commits rows to a root's dataset in small transactions, by count and by time.

    A row replaces the one of the same ``clip_id``. Within one run the first row of a clip counts.

    Args:
        root: Folder of the dataset.
        run_id: Written into each row.
    """

    def __init__(self, root: str | Path, run_id: str) -> None:
        self._root = Path(root)
        self._run_id = run_id
        self._buffer: list[dict[str, Any]] = []
        self._last_commit = time.monotonic()
        self._seen: set[str] = set()
        self._root.mkdir(parents=True, exist_ok=True)
        uri = str(lance_path(root))
        if not lance_path(root).exists():
            with contextlib.suppress(OSError):  # another run made it in this moment
                lance.write_dataset(CLIP_SCHEMA.empty_table(), uri, mode="create", data_storage_version="stable")
        self._dataset = lance.dataset(uri)
        if self._dataset.schema != CLIP_SCHEMA:
            raise DatasetError(f"{uri} was written with other columns; use another root, or an older kdepth to read it")

    def add(self, row: Mapping[str, Any]) -> bool:
        """Take a row; commits if it is time. False if this run has had the clip already."""
        if row["clip_id"] in self._seen:
            return False
        self._seen.add(row["clip_id"])
        self._buffer.append({**row, "run_id": self._run_id})
        if len(self._buffer) >= _COMMIT_ROWS or time.monotonic() - self._last_commit >= _COMMIT_SECONDS:
            self.commit()
        return True

    def discard(self, clip_id: str) -> None:
        """Remove an earlier run's row that is no longer true."""
        self._dataset.delete(f"clip_id = {_quoted(clip_id)}")

    def commit(self) -> None:
        """Commit what was taken, in one transaction."""
        if self._buffer:
            now = datetime.now(UTC)
            rows = rows_to_table([{**row, "committed_at": now} for row in self._buffer])
            merge = self._dataset.merge_insert("clip_id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(rows)
            self._buffer.clear()
        self._last_commit = time.monotonic()

    def finish(self) -> int:
        """Commit the rest, verify the count, merge small fragments, write ``clips.parquet``; the dataset's version.

        Raises:
            DatasetError: The dataset does not hold each row of this run once.
        """
        self.commit()
        self._dataset.checkout_latest()
        # Another run may have replaced rows of this one since: names are compared, not run ids.
        committed = self._dataset.to_table(columns=["clip_id"])["clip_id"].to_pylist()
        missing = self._seen.difference(committed)
        if missing or len(set(committed)) != len(committed):
            raise DatasetError(
                f"{lance_path(self._root)}: of {len(self._seen)} rows of this run {len(missing)} are missing, and "
                f"{len(committed) - len(set(committed))} names are there twice"
            )
        if self._seen:
            self._dataset.optimize.compact_files()
            self._dataset.cleanup_old_versions(older_than=_KEEP_VERSIONS)
        if self._seen or not (self._root / "clips.parquet").exists():
            write_parquet(self._root)
        return int(self._dataset.latest_version)


def write_parquet(root: str | Path) -> Path:
    """Copy the dataset's rows to ``<root>/clips.parquet``, for tools without Lance; the path."""
    path = Path(root) / "clips.parquet"
    part = path.with_name(path.name + ".part")
    with pq.ParquetWriter(part, CLIP_SCHEMA) as writer:
        for batch in lance.dataset(str(lance_path(root))).to_batches():
            writer.write_batch(batch)
    return part.replace(path)


def open_dataset(root: str | Path) -> ClipDataset:
    """Open the dataset of a root.

    Raises:
        DatasetError: There is none.
    """
    if not lance_path(root).exists():
        raise DatasetError(f"no dataset at {lance_path(root)}: run the pipeline with this root first")
    return ClipDataset(root)


class ClipDataset:
    """A finished or growing dataset; ``lance`` is the Lance dataset underneath."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.lance = lance.dataset(str(lance_path(root)))

    def __len__(self) -> int:
        return int(self.lance.count_rows())

    def table(self, where: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows as an Arrow table, in order of ``clip_id``.

        Args:
            where: SQL condition over the columns, for instance ``"label = 'abseiling' AND status = 'ok'"``.
            columns: Which columns; default: all.

        Raises:
            ValueError: `where` or `columns` names something that is no column, or is no condition.
        """
        unknown = sorted(set(columns or ()) - set(CLIP_SCHEMA.names))
        if unknown:
            raise ValueError(f"columns={unknown} are not there; the columns are {', '.join(CLIP_SCHEMA.names)}")
        wanted = list(columns) if columns is not None else CLIP_SCHEMA.names
        try:
            rows = self.lance.to_table(columns=list(dict.fromkeys([*wanted, "clip_id"])), filter=where)
        except (OSError, ValueError) as exc:
            raise ValueError(f"where={where!r}: {exc}; the columns are {', '.join(CLIP_SCHEMA.names)}") from exc
        return rows.sort_by("clip_id").select(wanted)

    def __getitem__(self, clip_id: str) -> Clip:
        rows = self.lance.to_table(filter=f"clip_id = {_quoted(clip_id)}").to_pylist()
        if not rows:
            raise KeyError(f"no clip {clip_id!r} among the {len(self)} of {self.root}")
        return Clip(self.root, rows[0])

    def __iter__(self) -> Iterator[Clip]:
        """Clips with status ok, in order of ``clip_id``."""
        for row in self.table(where=f"status = '{OK}'").to_pylist():
            yield Clip(self.root, row)

    def failures(self) -> pa.Table:
        """What failed: ``clip_id, failed_stage, error_type, error_message, source_url``."""
        columns = ["clip_id", "failed_stage", "error_type", "error_message", "source_url"]
        return self.table(where=f"status = '{FAILED}'", columns=columns)


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

    def inverse_depth(self, index: int) -> NDArray[np.float32]:
        """Inverse depth of a frame: float32 ``(H, W)``, >= 0, near is large.

        1/m for a metric model, without unit or scale for a relative one (``row["depth_kind"]`` says which).

        Raises:
            IndexError: The frame has no depth.
            DatasetError: As `frame`.
        """
        path = self.depth_path
        if index not in self._depth_frames:
            have = self.depth_indices
            some = f"{have[0]} to {have[-1]}" if len(have) > 8 else ", ".join(map(str, have))
            raise IndexError(f"frame {index} of {self.clip_id} has no depth; {len(have)} frames have: {some}")
        return read_depth_at(path, self._depth_frames[index]["time_seconds"]).astype(np.float32)

    def depth_m(self, index: int) -> NDArray[np.float32]:
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
            return np.reciprocal(self.inverse_depth(index))

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
