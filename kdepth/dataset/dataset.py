"""``clips.lance``: one row a clip, committed as clips finish, and read back."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
import uuid
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from kdepth.dataset.clip import Clip
from kdepth.errors import DatasetError
from kdepth.html import card
from kdepth.schema import CLIP_SCHEMA, FAILED, OK, rows_to_table
from kdepth.storage import Root

# A commit costs about 15 ms and one small fragment, and lists all fragments; what is not committed is lost with the
# driver.
_COMMIT_ROWS = 512
_COMMIT_SECONDS = 5.0
# Old versions are for readers that have the dataset open, and for `open_dataset(root, as_of=...)`.
_KEEP_VERSIONS = timedelta(days=1)
_INDICES = {"clip_id": "BTREE", "label": "BITMAP", "status": "BITMAP"}
_PACK_ROWS = 8  # of clips in memory at once, each a few megabytes
_ROWS_AT_ONCE = 1024  # of all rows: larger batches make the driver larger, and nothing faster
_PARQUET_VERSION = b"kdepth.version"
_RUN_KEY = "kdepth.run."  # of the dataset's metadata; followed by the run's id


def open_lance(uri: str) -> lance.LanceDataset | None:
    """The Lance dataset at a path or URI; None if there is none."""
    try:
        return lance.dataset(uri)
    except (ValueError, OSError) as exc:  # Lance says both in words alone
        if re.search("not found|does not exist", str(exc), re.IGNORECASE):
            return None
        raise


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def read_rows(root: str | Path | Root, columns: Sequence[str], where: str | None = None) -> pa.Table:
    """Rows of a root's dataset as they are now; an empty table if nothing was ever committed."""
    dataset = open_lance(Root(root).lance_uri)
    if dataset is None:
        return CLIP_SCHEMA.empty_table().select(columns)
    return dataset.to_table(columns=list(columns), filter=where)


class ClipWriter:
    """Commits rows to a root's dataset in small transactions, by count and by time.

    A row replaces the one of the same ``clip_id``, but a failed one none that is ok: what is there is not lost because
    it could not be made anew. Within one run the first row of a clip counts, or the first that is ok.

    Args:
        root: Folder of the dataset.
        run_id: Written into each row.
        run: What to remember of the run from its first commit on (`ClipDataset.runs`); anything that JSON knows.
    """

    def __init__(self, root: str | Path, run_id: str, run: Mapping[str, Any] | None = None) -> None:
        self.root = Root(root)
        self._run_id, self._run = run_id, run or {}
        self._is_remembered = False
        self._buffer: dict[str, dict[str, Any]] = {}  # by clip_id
        self._last_commit = time.monotonic()
        self._seen: dict[str, bool] = {}  # clip_id -> whether it is ok
        uri = self.root.lance_uri
        if open_lance(uri) is None:
            with contextlib.suppress(OSError):  # another run made it in this moment
                lance.write_dataset(CLIP_SCHEMA.empty_table(), uri, mode="create", data_storage_version="stable")
        # A commit needs the newest version alone; by default Lance would keep what it read of all.
        self._dataset = lance.dataset(uri, metadata_cache_size_bytes=2**21)
        if self._dataset.schema != CLIP_SCHEMA:
            raise DatasetError(f"{uri} was written with other columns; use another root, or an older kdepth to read it")

    def add(self, row: Mapping[str, Any], *, replace: bool = False) -> bool:
        """Take a row; commits if it is time. False if this run has had the clip already, at least as well.

        Args:
            row: With the columns of `CLIP_SCHEMA`.
            replace: Even if it failed, an earlier run's row that is ok is no longer true.
        """
        clip_id = row["clip_id"]
        is_ok = row["status"] == OK
        if clip_id in self._seen and not (is_ok and not self._seen[clip_id]):
            return False
        if replace:
            self.discard(clip_id)
        self._seen[clip_id] = is_ok
        self._buffer[clip_id] = {**row, "run_id": self._run_id}
        if len(self._buffer) >= _COMMIT_ROWS or time.monotonic() - self._last_commit >= _COMMIT_SECONDS:
            self.commit()
        return True

    def missing(self, clip_ids: Iterable[str]) -> int:
        """How many of these this run has not had."""
        return sum(clip_id not in self._seen for clip_id in clip_ids)

    def num_ok(self, clip_ids: Iterable[str]) -> int:
        """How many of these are ok in the dataset."""
        ok = self._dataset.to_table(columns=["clip_id"], filter=f"status = '{OK}'")["clip_id"]
        return int(pc.sum(pc.is_in(pa.array(clip_ids, pa.string()), ok)).as_py() or 0)

    def relabel(self, labels: Mapping[str, Sequence[str | None]]) -> None:
        """Give clips that are in the dataset another label and split."""
        columns = ("clip_id", "label", "split")
        rows = [dict(zip(columns, (clip_id, *found), strict=True)) for clip_id, found in labels.items()]
        if rows:
            with self.root.locked("clips.lance"):
                self._dataset.checkout_latest()
                merge = self._dataset.merge_insert("clip_id").when_matched_update_all()
                merge.execute(
                    pa.Table.from_pylist(rows, schema=pa.schema([CLIP_SCHEMA.field(name) for name in columns]))
                )

    def discard(self, clip_id: str) -> None:
        """Remove an earlier run's row that is no longer true."""
        self._dataset.delete(f"clip_id = {_quoted(clip_id)}")

    def commit(self) -> None:
        """Commit what was taken, in one transaction."""
        if self._buffer:
            now = datetime.now(UTC)
            rows = rows_to_table([{**row, "committed_at": now} for row in self._buffer.values()])
            better = f"source.status = '{OK}' or target.status = '{FAILED}'"
            with self.root.locked("clips.lance"):
                # Lance would take what another run has committed since for new, and have it twice.
                self._dataset.checkout_latest()
                merge = self._dataset.merge_insert("clip_id").when_matched_update_all(better)
                merge.when_not_matched_insert_all().execute(rows)
            self._buffer.clear()
            if self._run and not self._is_remembered:
                self._remember({})
        self._last_commit = time.monotonic()

    def _remember(self, more: Mapping[str, Any]) -> None:
        self._dataset.update_metadata({_RUN_KEY + self._run_id: json.dumps({**self._run, **more})})
        self._is_remembered = True

    def finish(self, run: Mapping[str, Any] | None = None) -> int:
        """Commit the rest, merge small fragments, index, verify the count, write ``clips.parquet``.

        Args:
            run: What else to remember of the run, now that it is over.

        Returns:
            The dataset's version.

        Raises:
            DatasetError: The dataset does not hold each row of this run once.
        """
        self.commit()
        self._dataset.checkout_latest()
        if self._seen:
            with contextlib.suppress(OSError):  # another run is at the same, whose work is as good
                self._tidy()
        # Another run may have replaced rows of this one since: names are compared, not run ids. Few at once: as tables
        # they would make the driver larger than all the run before.
        num_found, hashes = 0, array("q")
        for batch in self._dataset.to_batches(columns=["clip_id"], batch_size=_ROWS_AT_ONCE):
            names = batch["clip_id"].to_pylist()
            num_found += sum(name in self._seen for name in names)
            hashes.extend(map(hash, names))
        if num_found != len(self._seen) or len(np.unique(hashes)) != len(hashes):
            names = self._dataset.to_table(columns=["clip_id"])["clip_id"].to_pylist()
            missing, distinct = self._seen.keys() - names, len(set(names))
            raise DatasetError(
                f"{self.root.lance_uri}: of {len(self._seen)} rows of this run {len(missing)} are missing, and "
                f"{len(names) - distinct} names are there twice"
            )
        if self._seen and run is not None:
            self._remember(run)
        version = int(self._dataset.latest_version)
        if _parquet_version(self.root) != version:  # also of a run that was killed, or of somebody's own commit
            write_parquet(self.root)
        return version

    def _tidy(self) -> None:
        # Binary: pages are copied as they are, not decoded, which for 50,000 rows would take 45 MB more.
        self._dataset.optimize.compact_files(compaction_mode="try_binary_copy", batch_size=_ROWS_AT_ONCE)
        indexed = {field for index in self._dataset.describe_indices() for field in index.field_names}
        for column, kind in _INDICES.items():
            if column not in indexed:
                self._dataset.create_scalar_index(column, kind)
        self._dataset.optimize.optimize_indices()
        self._dataset.cleanup_old_versions(older_than=_KEEP_VERSIONS)


def write_parquet(root: str | Path | Root) -> None:
    """Copy the dataset's rows to ``<root>/clips.parquet``, for tools without Lance."""
    root = Root(root)
    with root.writing("clips.parquet") as path:
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
        dataset = lance.dataset(root.lance_uri)
        num_rows = dataset.count_rows()
        with pq.ParquetWriter(part, CLIP_SCHEMA) as writer:
            writer.add_key_value_metadata({_PARQUET_VERSION.decode(): str(dataset.version)})
            # A row group each time, which is on disk then; a scan would read ahead.
            for start in range(0, num_rows, _ROWS_AT_ONCE):
                writer.write_table(dataset.take(range(start, min(start + _ROWS_AT_ONCE, num_rows))))
        part.replace(path)


def _parquet_version(root: Root) -> int | None:
    """The version of the dataset that ``clips.parquet`` is a copy of."""
    try:
        metadata = pq.read_metadata(root.open("clips.parquet")).metadata
    except (OSError, pa.ArrowInvalid):
        return None
    return int((metadata or {}).get(_PARQUET_VERSION, -1))


def open_dataset(root: str | Path, *, as_of: int | datetime | None = None) -> ClipDataset:
    """Open the dataset of a root, or a packed one (`pack`).

    Args:
        root: Folder or URI.
        as_of: A version, or a time: the dataset as it was then (`ClipDataset.versions`; a day's are kept).

    Raises:
        DatasetError: There is none.
    """
    return ClipDataset(root, as_of=as_of)


class ClipDataset:
    """A finished or growing dataset; ``lance`` is the Lance dataset underneath."""

    def __init__(self, root: str | Path, *, as_of: int | datetime | None = None) -> None:
        self._root, self._as_of = Root(root), as_of
        self.root: str | Path = self._root.work if self._root.is_local else self._root.uri
        found = open_lance(self._root.lance_uri)
        if found is None:
            found = open_lance(self._root.uri)
        if found is None:
            raise DatasetError(
                f"no dataset at {self._root.lance_uri}: run the pipeline with this root first (a path relative to the "
                "project, as the notebooks take it, is kdepth.project_path(root) in Python)"
            )
        if "depth" not in found.schema.names and found.uri.rstrip("/") == self._root.uri:
            raise DatasetError(f"{root} is the table of a dataset, whose files lie beside it: give the folder it is in")
        self.lance = found if as_of is None else _version_of(found, as_of)
        self.is_packed = "depth" in self.lance.schema.names

    def __len__(self) -> int:
        """Clips with status ok: those that iteration gives."""
        return int(self.lance.count_rows(f"status = '{OK}'"))

    def __contains__(self, clip_id: object) -> bool:
        return isinstance(clip_id, str) and self.lance.count_rows(f"clip_id = {_quoted(clip_id)}") > 0

    def table(self, where: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows as an Arrow table, in order of ``clip_id``.

        Args:
            where: SQL condition over the columns, for instance ``"label = 'abseiling' AND status = 'ok'"``.
            columns: Which columns; default: all.

        Raises:
            ValueError: `where` or `columns` names something that is no column, or is no condition.
        """
        columns = [columns] if isinstance(columns, str) else columns
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
        return self._clip(self._row(clip_id, CLIP_SCHEMA.names))

    def __iter__(self) -> Iterator[Clip]:
        """Clips with status ok, in order of ``clip_id``."""
        yield from map(self._clip, self._rows(f"status = '{OK}'"))

    def _rows(self, where: str) -> Iterator[dict[str, Any]]:
        """Rows in order of ``clip_id``; few as dictionaries at once, which are ten times as large."""
        found = self.table(where)
        for start in range(0, len(found), _PACK_ROWS):
            yield from found.slice(start, _PACK_ROWS).to_pylist()

    def _row(self, clip_id: str, columns: list[str]) -> dict[str, Any]:
        if not isinstance(clip_id, str):
            raise TypeError(f"a clip is found by its clip_id, a str, not by {clip_id!r}")
        rows: list[dict[str, Any]] = self.lance.to_table(
            columns=columns, filter=f"clip_id = {_quoted(clip_id)}"
        ).to_pylist()
        if not rows:
            raise KeyError(f"no clip {clip_id!r} among the {self.lance.count_rows()} of {self.root}")
        return rows[0]

    def _clip(self, row: dict[str, Any]) -> Clip:
        return Clip(self._root.work if self.has_paths else None, row, partial(self.open_file, row))

    @property
    def has_paths(self) -> bool:
        """Whether the clips' files lie in a folder (else: in an object store, or packed)."""
        return self._root.is_local and not self.is_packed

    def open_file(self, row: Mapping[str, Any], kind: str) -> Any:
        """A clip's ``"video"`` or ``"depth"`` file: its path, or a file object that reads from afar as it is used.

        Raises:
            OSError: It is not there.
        """
        if not self.is_packed:
            return self._root.open(row[f"{kind}_path"])
        where = f"clip_id = {_quoted(row['clip_id'])}"
        row_id = self.lance.to_table(columns=["clip_id"], filter=where, with_row_id=True)["_rowid"]
        return self.lance.take_blobs(kind, ids=row_id.to_pylist())[0]

    @property
    def versions(self) -> list[dict[str, Any]]:
        """What `as_of` can go back to: ``version``, ``committed_at`` and ``num_rows`` of each commit, oldest first."""
        return [
            {
                "version": version["version"],
                "committed_at": version["timestamp"].astimezone(UTC),
                "num_rows": int(version["metadata"]["total_rows"]),
            }
            for version in self.lance.versions()
        ]

    def runs(self) -> dict[str, dict[str, Any]]:
        """What is remembered of the runs that wrote here, by ``run_id``: parameters, versions, counts, seconds.

        Of one that was killed, or goes on, the parameters alone.
        """
        metadata: dict[str, str] = self.lance.metadata
        found = {key[len(_RUN_KEY) :]: json.loads(text) for key, text in metadata.items() if key.startswith(_RUN_KEY)}
        return dict(sorted(found.items()))

    def verify(self, *, delete: bool = False) -> pa.Table:
        """Read every file to its end: are the frames there, and is the depth what was written?

        Of depth each frame's checksum is known, of 360p files only how many frames they have.

        Args:
            delete: Delete files that are not, so that the next run makes them again. What can't be read (too many open
                files, a network that fails) stays, and so does what a run made anew meanwhile.

        Returns:
            What is wrong, one row a file: ``clip_id``, ``path``, ``problem``. No rows: all is well.

        Raises:
            ValueError: ``delete`` with a packed dataset, whose files can't be made again, or with one that was opened
                as of another time.
        """
        if delete and self.is_packed:
            raise ValueError("delete=True: a packed dataset has no files of its own; pack the root again")
        if delete and self._as_of is not None:
            raise ValueError(f"delete=True: the files may be of later rows than as of {self._as_of}")
        found = []
        rows = self._rows(f"status = '{OK}'")
        for row in tqdm(rows, total=len(self), desc="verify", unit="clip", file=sys.stdout, ncols=110):
            clip = self._clip(row)
            for kind, error in clip.problems():
                found.append({"clip_id": clip.clip_id, "path": row[f"{kind}_path"], "problem": str(error)})
                cause = error.__cause__
                is_unreadable = isinstance(cause, OSError | MemoryError) and not isinstance(cause, FileNotFoundError)
                if delete and not is_unreadable and self._is_current(row):
                    self._root.delete(row[f"{kind}_path"])
        schema = pa.schema([("clip_id", pa.string()), ("path", pa.string()), ("problem", pa.string())])
        return pa.Table.from_pylist(found, schema=schema)

    def _is_current(self, row: Mapping[str, Any]) -> bool:
        """Whether the row is still the newest of its clip."""
        where = f"clip_id = {_quoted(row['clip_id'])}"
        newest: list[datetime] = read_rows(self._root, ["committed_at"], where)["committed_at"].to_pylist()
        return newest == [row["committed_at"]]

    def failures(self) -> pa.Table:
        """What failed: ``clip_id, failed_stage, error_type, error_message, source_url``."""
        columns = ["clip_id", "failed_stage", "error_type", "error_message", "source_url"]
        return self.table(where=f"status = '{FAILED}'", columns=columns)

    def similar(self, clip: str | Clip, k: int = 5) -> pa.Table:
        """Clips whose depth is laid out most alike: nearest in cosine distance of ``depth_thumbnail``.

        Args:
            clip: The clip to compare with, or its ``clip_id``.
            k: How many others.

        Returns:
            ``clip_id``, ``label``, ``distance`` (0: alike, 2: opposite), nearest first, the clip itself left out.

        Raises:
            KeyError: No such clip.
            DatasetError: The clip has no depth.
        """
        clip_id = clip.clip_id if isinstance(clip, Clip) else clip
        query = self._row(clip_id, ["depth_thumbnail"])["depth_thumbnail"]
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

        Raises:
            ValueError: It is no such query.
        """
        try:
            return self.lance.sql(query).build().to_stream_reader().read_all()
        except (OSError, ValueError) as exc:
            reason = str(exc).partition(", /")[0]
            raise ValueError(f"{reason} (the table is `dataset`; its columns: {', '.join(CLIP_SCHEMA.names)})") from exc

    def __repr__(self) -> str:
        return f"ClipDataset({str(self.root).rstrip('/').rpartition('/')[2]}, {len(self)} clips)"

    def _repr_html_(self) -> str:
        """For a notebook: how many clips by status and label, and the columns."""
        rows = self.lance.to_table(columns=["status", "label", "num_depth_frames", "duration_seconds"])
        ok = rows.filter(pc.equal(rows["status"], OK))
        labels = Counter(ok["label"].to_pylist()).most_common()
        labels = labels if labels and labels != [(None, ok.num_rows)] else []
        shown = [f"{label or 'no label'} ({count})" for label, count in labels[:12]]
        more = [f"and {len(labels) - 12} more"] if len(labels) > 12 else []
        seconds = pc.sum(ok["duration_seconds"]).as_py() or 0.0
        facts = {
            "clips": f"{ok.num_rows:,} ok, {rows.num_rows - ok.num_rows:,} failed",
            "depth": f"{pc.sum(ok['num_depth_frames']).as_py() or 0:,} frames of {seconds / 60:,.1f} minutes of video",
            f"{len(labels):,} labels": ", ".join(shown + more) or None,
            f"{len(self.lance.schema)} columns": ", ".join(self.lance.schema.names),
        }
        return card(repr(self), facts)


def _version_of(dataset: lance.LanceDataset, moment: int | datetime) -> lance.LanceDataset:
    """The dataset at a version, or at the last one before a time."""
    if isinstance(moment, bool) or not isinstance(moment, int | datetime):
        raise TypeError(f"as_of={moment!r}: must be a version's number (int) or a datetime")
    kept = {version["version"]: version["timestamp"].astimezone(UTC) for version in dataset.versions()}
    fitting = [
        version
        for version, committed_at in kept.items()
        if (version == moment if isinstance(moment, int) else committed_at <= moment.astimezone(UTC))
    ]
    if not fitting:
        raise DatasetError(f"{dataset.uri} has nothing as of {moment}; kept are versions {min(kept)} to {max(kept)}")
    return lance.dataset(dataset.uri, version=max(fitting))


def pack(root: str | Path, uri: str | Path) -> None:
    """Write one Lance dataset that holds everything: the rows, and each clip's 360p and depth file as blob columns.

    For clusters without a shared disk and for uploads to a hub; `open_dataset` opens it like a root, and reads a frame
    without loading the rest of its file.

    Args:
        root: Folder or URI of a dataset.
        uri: Where to write; nothing may be there yet.

    Raises:
        DatasetError: There is no dataset at `root`, something is at `uri`, or a file of a clip is missing.
    """
    ds = open_dataset(root)
    target = Root(uri).uri
    if open_lance(target) is not None:
        raise DatasetError(f"{uri} exists already; choose another place, or delete it")
    failed: list[DatasetError] = []
    schema = pa.schema([*CLIP_SCHEMA, lance.blob_field("video"), lance.blob_field("depth")])

    def batches() -> Iterator[pa.RecordBatch]:
        with tqdm(total=ds.lance.count_rows(), desc="pack", unit="clip", file=sys.stdout, ncols=110) as bar:
            for batch in ds.lance.to_batches(columns=CLIP_SCHEMA.names, batch_size=_PACK_ROWS):
                rows = batch.to_pylist()
                columns = [batch.column(name) for name in CLIP_SCHEMA.names]
                try:
                    for kind in ("video", "depth"):
                        columns.append(lance.blob_array([ds._clip(row).file_bytes(kind) for row in rows]))
                except DatasetError as exc:
                    failed.append(exc)
                    raise
                yield pa.RecordBatch.from_arrays(columns, schema=schema)
                bar.update(len(rows))

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    try:
        lance.write_dataset(reader, target, mode="create", data_storage_version="2.2")
    except OSError as exc:  # Lance puts a whole traceback into its words
        raise (failed[0] if failed else exc) from None
