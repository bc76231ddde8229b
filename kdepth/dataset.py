"""``clips.lance``: one row a clip, committed as clips finish, and read back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kdepth.clip import Clip
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

    def similar(self, clip_id: str, k: int = 5) -> pa.Table:
        """Clips whose depth is laid out most alike: nearest in cosine distance of ``depth_thumbnail``.

        Args:
            clip_id: The clip to compare with.
            k: How many others.

        Returns:
            ``clip_id``, ``label``, ``distance`` (0: alike, 2: opposite), nearest first, the clip itself left out.

        Raises:
            KeyError: No such clip.
            DatasetError: The clip has no depth.
        """
        query = self[clip_id].row["depth_thumbnail"]
        if query is None:
            raise DatasetError(f"{clip_id} has no depth to compare with")
        nearest = {"column": "depth_thumbnail", "q": query, "k": k + 1, "metric": "cosine", "use_index": False}
        found = self.lance.to_table(columns=["clip_id", "label", "_distance"], nearest=nearest)
        others = found.filter(pc.not_equal(found["clip_id"], clip_id)).slice(0, k)
        return others.rename_columns(["clip_id", "label", "distance"])

    def sql(self, query: str) -> pa.Table:
        """Answer an SQL query over the rows, which are the table ``dataset``.

        For instance
        ``select label, avg(f['median']) from (select label, unnest(frames) f from dataset) group by label``.
        """
        return pa.Table.from_batches(self.lance.sql(query).build().to_batch_records())
