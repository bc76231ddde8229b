"""Committing rows to ``clips.lance`` as clips finish, and its copy ``clips.parquet``."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kdepth.dataset.table import ROWS_AT_ONCE, column_names, open_lance, quoted, remove_unnamed_files
from kdepth.errors import DatasetError
from kdepth.schema import CLIP_SCHEMA, FAILED, OK, rows_to_table
from kdepth.storage import Root

# A commit costs about 15 ms and one small fragment, and lists all fragments; what is not committed is lost with the
# driver.
_COMMIT_ROWS = 512
COMMIT_SECONDS = 5.0
# Old versions are for readers that have the dataset open, and for `open_dataset(root, as_of=...)`.
_KEEP_VERSIONS = timedelta(days=1)
# Files that no row names any more are for readers that opened the dataset before.
_KEEP_FILES = timedelta(hours=1)
_INDICES = {"clip_id": "BTREE", "label": "BITMAP", "status": "BITMAP"}
_SOURCE_COLUMNS = ("source_url", "archive_member")
# Of two rows of one clip that differ in these, the later one was asked for to replace the earlier one.
_ASKED_COLUMNS = ("depth_model", "depth_kind", "depth_frames", "width", "height")
_PRIMARY_KEY = "lance-schema:unenforced-primary-key"
_PARQUET_VERSION = b"kdepth.version"
RUN_KEY = "kdepth.run."  # of the dataset's metadata; followed by the run's id


class ClipWriter:
    """Commits rows to a root's dataset in small transactions, by count and by time.

    Within a run the first row of a clip counts, or the first that is ok. A run's row replaces the one of an earlier
    run, but a failed row never one that is ok. Several writers may commit to one dataset at a time: ``clip_id`` is its
    primary key, and of two commits of one clip Lance applies the second to what the first left.

    Args:
        root: Folder or URI of the dataset. One that an older kdepth made gets the columns that it lacks, as nulls.
        run_id: Written into each row.
        run: What to remember of the run from its first commit on (`ClipDataset.runs`); anything that JSON knows.

    Attributes:
        other_content: Clips (keys) that this run had ok rows of that were made of other bytes; the first row was kept.

    Raises:
        DatasetError: A column of the dataset has another type than ours, or one that a user added can't be null.
    """

    def __init__(self, root: str | Path, run_id: str, run: Mapping[str, Any] | None = None) -> None:
        self.root = Root(root)
        self.other_content: dict[str, None] = {}
        self._run_id, self._run = run_id, run or {}
        self._is_remembered = False
        self._buffer: dict[str, dict[str, Any]] = {}  # by clip_id
        self._last_commit = time.monotonic()
        self._seen: dict[str, str | None] = {}  # clip_id -> SHA-256 of what it was made of if it is ok, else None
        self._replaced: set[str] = set()
        self._spent: list[str] = []  # files to delete after the next commit
        self._lock = threading.RLock()
        self._dataset = _open_for_writing(self.root.lance_uri)

    def add(self, row: Mapping[str, Any], *, replace: bool = False, spent: str | None = None) -> bool:
        """Take a row; commit if it is time. False if this run has had the clip already, at least as well.

        With `replace` an earlier run's row that is ok goes, whatever this one is and of which source: its files are
        damaged. `spent` is a file that is deleted with the next commit: until then the clip may have to be made again.
        """
        with self._lock:
            self._spent += [spent] if spent else []
            is_taken = self._add(row, replace=replace)
            self.commit_if_due()
        return is_taken

    def _add(self, row: Mapping[str, Any], *, replace: bool) -> bool:
        clip_id = row["clip_id"]
        content = (row["raw_sha256"] or "") if row["status"] == OK else None
        if clip_id in self._seen:
            first = self._seen[clip_id]
            if first is not None:
                if content not in (first, None):
                    self.other_content[clip_id] = None
                return False
            if content is None:  # another source failed, too: this row names all that were tried
                self._buffer[clip_id] = {**row, "run_id": self._run_id}
                return False
        if replace:
            self._replaced.add(clip_id)
            if content is None:
                self.discard(clip_id)
        self._seen[clip_id] = content
        self._buffer[clip_id] = {**row, "run_id": self._run_id}
        return True

    def _keep_earlier(self) -> None:
        """Drop ok rows of clips that an earlier run made of another source, as they are asked for now."""
        ok = [row for row in self._buffer.values() if row["status"] == OK and row["clip_id"] not in self._replaced]
        names = ", ".join(quoted(row["clip_id"]) for row in ok)
        where = f"status = '{OK}' and run_id != {quoted(self._run_id)} and clip_id in ({names})"
        columns = ["clip_id", "raw_sha256", *_SOURCE_COLUMNS, *_ASKED_COLUMNS]
        for earlier in self._dataset.to_table(columns=columns, filter=where).to_pylist() if ok else ():
            row = self._buffer[earlier["clip_id"]]
            is_other = any(row[name] != earlier[name] for name in _SOURCE_COLUMNS)
            if is_other and all(row[name] == earlier[name] for name in _ASKED_COLUMNS):
                del self._buffer[earlier["clip_id"]]
                if row["raw_sha256"] != earlier["raw_sha256"]:
                    self.other_content[row["clip_id"]] = None

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
            schema = pa.schema([CLIP_SCHEMA.field(name) for name in columns])
            self._merge().when_matched_update_all().execute(pa.Table.from_pylist(rows, schema=schema))

    def discard(self, clip_id: str) -> None:
        """Remove an earlier run's row that is no longer true."""
        with self._lock:
            self._dataset.delete(f"clip_id = {quoted(clip_id)}")

    def _merge(self) -> Any:
        self._dataset.checkout_latest()
        # Not by the index on clip_id: with it Lance does not look at what other writers insert meanwhile.
        return self._dataset.merge_insert("clip_id").use_index(False).conflict_retries(100)

    def commit_if_due(self) -> None:
        """Commit if there are many rows, or if the last commit was long ago. Any thread may ask."""
        with self._lock:
            is_due = len(self._buffer) >= _COMMIT_ROWS or time.monotonic() - self._last_commit >= COMMIT_SECONDS
            if is_due and (self._buffer or self._spent):  # a commit of nothing would make the next row wait
                self.commit()

    def commit(self) -> None:
        """Commit what was taken, in one transaction."""
        with self._lock:
            if self._buffer:
                self._dataset.checkout_latest()
                self._keep_earlier()
            if self._buffer:
                now = datetime.now(UTC)
                rows = rows_to_table([{**row, "committed_at": now} for row in self._buffer.values()])
                better = f"source.status = '{OK}' or target.status = '{FAILED}'"
                self._merge().when_matched_update_all(better).when_not_matched_insert_all().execute(rows)
                self._buffer.clear()
                if self._run and not self._is_remembered:
                    self._remember({})
            spent, self._spent = self._spent, []
            for name in spent:
                with contextlib.suppress(OSError):  # no row names it, so that `clean` removes what stays
                    self.root.delete(name)
            self._last_commit = time.monotonic()

    def _remember(self, more: Mapping[str, Any]) -> None:
        self._dataset.update_metadata({RUN_KEY + self._run_id: json.dumps({**self._run, **more})})
        self._is_remembered = True

    def finish(self, run: Mapping[str, Any] | None = None, *, keep_versions: timedelta = _KEEP_VERSIONS) -> int:
        """Commit the rest, merge small fragments, index, verify the count, write ``clips.parquet``; give the version.

        If no other run is alive, files are removed that are over an hour old and that no row names, neither now nor an
        hour ago (`remove_unnamed_files`).

        Args:
            run: What else to remember of the run, now that it is over.
            keep_versions: Older versions of the dataset are removed, but for those with a tag.

        Raises:
            DatasetError: The dataset does not hold each row of this run once.
        """
        self.commit()
        self._dataset.checkout_latest()
        if self._seen:
            if not self.root.others(self._run_id):
                remove_unnamed_files(self.root, datetime.now(UTC) - _KEEP_FILES)
            with contextlib.suppress(OSError):  # another run is at the same, whose work is as good
                self._tidy(keep_versions)
        self._verify_count()
        if self._seen and run is not None:
            self._remember(run)
        version = int(self._dataset.latest_version)
        if _parquet_version(self.root) != version:  # also of a run that was killed, or of somebody's own commit
            _write_parquet(self.root)
        return version

    def _tidy(self, keep_versions: timedelta) -> None:
        # Binary: pages are copied as they are, not decoded, which for 50,000 rows would take 45 MB more.
        self._dataset.optimize.compact_files(compaction_mode="try_binary_copy", batch_size=ROWS_AT_ONCE)
        indexed = {field for index in self._dataset.describe_indices() for field in index.field_names}
        for column, kind in _INDICES.items():
            if column not in indexed:
                self._dataset.create_scalar_index(column, kind)
        self._dataset.optimize.optimize_indices()
        self._dataset.cleanup_old_versions(older_than=keep_versions, error_if_tagged_old_versions=False)

    def _verify_count(self) -> None:
        # Another run may have replaced rows of this one since: names are compared, not run ids (50,000 take 14 MB).
        names = self._dataset.to_table(columns=["clip_id"])["clip_id"].to_pylist()
        distinct = set(names)
        num_missing, num_twice = len(self._seen.keys() - distinct), len(names) - len(distinct)
        if num_missing or num_twice:
            raise DatasetError(
                f"{self.root.lance_uri}: of {len(self._seen)} rows of this run {num_missing} are missing, and "
                f"{num_twice} names are there twice"
            )


def _open_for_writing(uri: str) -> lance.LanceDataset:
    """Open a root's dataset, or make it; add what one that an older kdepth made lacks."""
    if open_lance(uri) is None:
        with contextlib.suppress(OSError):  # another run made it in this moment
            lance.write_dataset(CLIP_SCHEMA.empty_table(), uri, mode="create", data_storage_version="stable")
    # A commit needs the newest version alone; by default Lance would keep what it read of all.
    dataset = lance.dataset(uri, metadata_cache_size_bytes=2**21)
    with contextlib.suppress(OSError):  # another run does the same in this moment
        if lacking := [field for field in CLIP_SCHEMA if field.name not in dataset.schema.names]:
            dataset.add_columns(pa.schema(lacking))
    dataset.checkout_latest()
    schema = dataset.schema
    others = [field.name for field in CLIP_SCHEMA if not schema.field(field.name).type.equals(field.type)]
    others += [field.name for field in schema if field.name not in CLIP_SCHEMA.names and not field.nullable]
    if others:
        raise DatasetError(
            f"{uri} has columns that this kdepth can't write to: {', '.join(others)}; columns of your own must take "
            "nulls (Lance: alter_columns), for the others use another root, or an older kdepth to read it"
        )
    if _PRIMARY_KEY.encode() not in (schema.field("clip_id").metadata or {}):
        with contextlib.suppress(OSError):  # as above
            dataset.update_field_metadata({"clip_id": {_PRIMARY_KEY: "true"}})
        dataset.checkout_latest()
    return dataset


def _write_parquet(root: Root) -> None:
    """Copy the dataset's rows to ``<root>/clips.parquet``, for tools without Lance."""
    with root.writing("clips.parquet") as path:
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
        dataset = lance.dataset(root.lance_uri)
        num_rows, columns = dataset.count_rows(), column_names(dataset)
        with pq.ParquetWriter(part, pa.schema([dataset.schema.field(name) for name in columns])) as writer:
            writer.add_key_value_metadata({_PARQUET_VERSION.decode(): str(dataset.version)})
            # A row group each time, which is on disk then; a scan would read ahead.
            for start in range(0, num_rows, ROWS_AT_ONCE):
                some = range(start, min(start + ROWS_AT_ONCE, num_rows))
                writer.write_table(dataset.take(some, columns=columns))
        part.replace(path)


def _parquet_version(root: Root) -> int | None:
    """The version of the dataset that ``clips.parquet`` is a copy of."""
    try:
        metadata = pq.read_metadata(f"{root.uri}/clips.parquet").metadata
    except (OSError, pa.ArrowInvalid):
        return None
    return int((metadata or {}).get(_PARQUET_VERSION, -1))
