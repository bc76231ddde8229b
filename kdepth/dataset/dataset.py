"""Reading a dataset: its rows, its clips, what is wrong with their files."""

from __future__ import annotations

import contextlib
import json
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from kdepth.dataset.clip import Clip
from kdepth.dataset.table import (
    KINDS,
    Cleaned,
    at_version,
    column_names,
    is_blob,
    open_lance,
    quoted,
    read_columns,
    remove_unnamed_files,
)
from kdepth.dataset.writer import RUN_KEY
from kdepth.errors import DatasetError, printable
from kdepth.html import card
from kdepth.schema import FAILED, OK
from kdepth.storage import Root

_DICTS_AT_ONCE = 8  # rows as dictionaries take ten times the memory


class ClipDataset:
    """Open the dataset of a root, finished or growing, or a packed one (`pack`).

    Args:
        root: Folder or URI.
        as_of: A version's number, a version's tag, or a time: the rows as they were then (`versions`; those of the last
            day are kept, and those with a tag). Files that only older rows name may be gone (`clean`).

    Attributes:
        root, files: Its folder or URI, and the same as a `Root`.
        lance: The Lance dataset underneath.
        is_packed: Whether the files are in the Lance dataset itself.
        column_names: The columns of `CLIP_SCHEMA`, then those that users added.

    Raises:
        DatasetError: There is none.
    """

    def __init__(self, root: str | Path, *, as_of: int | str | datetime | None = None) -> None:
        self.files = Root(root)
        self.root: str | Path = self.files.work if self.files.is_local else self.files.uri
        found = open_lance(self.files.lance_uri)
        self.is_packed = found is None
        if found is None and (found := open_lance(self.files.uri)) is None:
            raise DatasetError(
                f"no dataset at {self.files.lance_uri}: run the pipeline with this root first (a path relative to the "
                "project, as the notebooks take it, is kdepth.project_path(root) in Python)"
            )
        if self.is_packed and not {field.name for field in found.schema if is_blob(field)}.issuperset(KINDS):
            raise DatasetError(f"{root} is the table of a dataset, whose files lie beside it: give the folder it is in")
        self.lance = found if as_of is None else at_version(found, as_of)
        self.column_names = column_names(self.lance)

    def __len__(self) -> int:
        """Clips with status ok: those that iteration gives."""
        return int(self.lance.count_rows(f"status = '{OK}'"))

    def __contains__(self, clip_id: object) -> bool:
        return isinstance(clip_id, str) and self.lance.count_rows(f"clip_id = {quoted(clip_id)}") > 0

    def table(self, where: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows as an Arrow table, in order of ``clip_id``.

        Args:
            where: SQL condition over the columns, for instance ``"label = 'abseiling' AND status = 'ok'"``.
            columns: Which columns; default: all, those that users added too.

        Raises:
            ValueError: `where` or `columns` names something that is no column, or is no condition.
            DatasetError: The table can't be read.
        """
        columns = [columns] if isinstance(columns, str) else columns
        if unknown := sorted(set(columns or ()).difference(self.column_names)):
            raise ValueError(f"columns={unknown} are not there; the columns are {self._columns()}")
        wanted = list(columns) if columns is not None else self.column_names
        try:
            rows = read_columns(self.lance, list(dict.fromkeys([*wanted, "clip_id"])), where)
        except (OSError, ValueError) as exc:
            if where is None:  # the table itself can't be read
                raise DatasetError(f"{self.files.lance_uri} can't be read: {exc}") from exc
            raise ValueError(f"where={where!r}: {printable(str(exc))}; the columns are {self._columns()}") from exc
        return rows.sort_by("clip_id").select(wanted)

    def _columns(self) -> str:
        return printable(", ".join(self.column_names))

    def __getitem__(self, clip_id: str) -> Clip:
        return self._clip(self._row(clip_id, self.column_names))

    def __iter__(self) -> Iterator[Clip]:
        """Clips with status ok, in order of ``clip_id``."""
        yield from map(self._clip, self._rows(f"status = '{OK}'"))

    def _rows(self, where: str) -> Iterator[dict[str, Any]]:
        """Rows in order of ``clip_id``."""
        for batch in self.table(where).to_batches(max_chunksize=_DICTS_AT_ONCE):
            yield from batch.to_pylist()

    def _row(self, clip_id: str, columns: list[str]) -> dict[str, Any]:
        if not isinstance(clip_id, str):
            raise TypeError(f"a clip is found by its clip_id, a str, not by {clip_id!r}")
        for row in read_columns(self.lance, columns, f"clip_id = {quoted(clip_id)}").to_pylist():
            return dict(row)
        raise KeyError(f"no clip {clip_id!r} among the {self.lance.count_rows()} of {self.root}")

    def _clip(self, row: dict[str, Any]) -> Clip:
        return Clip(self.files if self.has_paths else None, row, partial(self.open_file, row))

    @property
    def has_paths(self) -> bool:
        """Whether the clips' files lie in a folder (else: in an object store, or packed)."""
        return self.files.is_local and not self.is_packed

    def open_file(self, row: Mapping[str, Any], kind: str) -> Any:
        """A clip's ``"video"`` or ``"depth"`` file: its path, or a file object that reads from afar as it is used."""
        if self.is_packed:
            return self._open_blob(row["clip_id"], kind)
        name = row[f"{kind}_path"]
        try:
            return self.files.open(name)
        except FileNotFoundError as exc:
            raise DatasetError(
                f"{name} of {row['clip_id']} is not there any more: somebody deleted it, or a later run made the clip "
                "anew; open the dataset again, without as_of"
            ) from exc
        except OSError as exc:
            raise DatasetError(f"{name} of {row['clip_id']} can't be opened: {exc}") from exc

    def _open_blob(self, clip_id: str, kind: str) -> Any:
        where = f"clip_id = {quoted(clip_id)}"
        found = self.lance.to_table(columns=[kind], filter=where, with_row_id=True).to_pylist()
        if not found or found[0][kind] is None:
            raise DatasetError(f"{clip_id} has no {kind} in {self.root}")
        if elsewhere := found[0][kind].get("blob_uri"):
            raise DatasetError(f"{clip_id}: its {kind} is not in the packed dataset, but at {printable(elsewhere)}")
        return self.lance.take_blobs(kind, ids=[found[0]["_rowid"]])[0]

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
        """Parameters, versions, counts and seconds of the runs that wrote here, by ``run_id``.

        Of a run that was killed, or goes on, there are only the parameters.
        """
        metadata: dict[str, str] = self.lance.metadata
        found = {key[len(RUN_KEY) :]: json.loads(text) for key, text in metadata.items() if key.startswith(RUN_KEY)}
        return dict(sorted(found.items()))

    def verify(self, *, delete: bool = False) -> pa.Table:
        """Read every file to its end: are the frames there, and is the depth what was written?

        Of depth each frame's checksum is known, of 360p files only how many frames they have.

        Args:
            delete: Delete files that are not, so that the next run makes the clips again. What can't be read (too many
                open files, a network that fails) stays.

        Returns:
            What is wrong, one row a file: ``clip_id``, ``path``, ``problem``. No rows: all is well.

        Raises:
            ValueError: ``delete`` with a packed dataset, whose files can't be made again.
        """
        if delete and self.is_packed:
            raise ValueError("delete=True: a packed dataset has no files of its own; pack the root again")
        found = []
        rows = self._rows(f"status = '{OK}'")
        for row in tqdm(rows, total=len(self), desc="verify", unit="clip", file=sys.stdout, ncols=110):
            clip = self._clip(row)
            for kind, error in clip.problems():
                name, cause = row[f"{kind}_path"], error.__cause__
                found.append({"clip_id": clip.clip_id, "path": name, "problem": str(error)})
                is_unreadable = isinstance(cause, OSError | MemoryError) and not isinstance(cause, FileNotFoundError)
                # A file is never written again under its name, so it is not another run's good one by now.
                if delete and not is_unreadable:
                    with contextlib.suppress(DatasetError):  # a name outside the root, which is told above
                        self.files.delete(name)
        schema = pa.schema([("clip_id", pa.string()), ("path", pa.string()), ("problem", pa.string())])
        return pa.Table.from_pylist(found, schema=schema)

    def clean(self) -> Cleaned:
        """Remove the files that no row names any more, at once; a run's end does so with those older than an hour.

        Kept is what the newest version of the dataset names, or a version with a tag: who has an older version open
        can't read its replaced files after this. Files that kdepth did not name itself are never removed.

        Raises:
            DatasetError: A run is alive, whose new files no row names yet.
            ValueError: The dataset is packed: there is nothing to clean.
        """
        if self.is_packed:
            raise ValueError("a packed dataset holds only what its rows name")
        run_id = f"clean-{uuid.uuid4().hex}"
        with self.files.in_use(run_id):
            if alive := self.files.others(run_id):
                raise DatasetError(
                    f"{self.root} is in use by {', '.join(alive)}: clean it when that has ended (what was killed on "
                    "another machine counts as ended after ten minutes)"
                )
            return remove_unnamed_files(self.files)

    def failures(self) -> pa.Table:
        """What failed: ``clip_id, failed_stage, error_type, error_message, source_url``."""
        columns = ["clip_id", "failed_stage", "error_type", "error_message", "source_url"]
        return self.table(where=f"status = '{FAILED}'", columns=columns)

    def similar(self, clip: str | Clip, k: int = 5) -> pa.Table:
        """The ``k`` clips whose depth is laid out most alike: nearest in cosine distance of ``depth_thumbnail``.

        Returns:
            ``clip_id``, ``label``, ``distance`` (0: alike, 2: opposite), nearest first, the clip itself left out.

        Raises:
            KeyError: No such clip.
            DatasetError: The clip has no depth, or depth of 0 everywhere, which has no layout to compare.
        """
        clip_id = clip.clip_id if isinstance(clip, Clip) else clip
        query = self._row(clip_id, ["depth_thumbnail"])["depth_thumbnail"]
        if query is None:
            raise DatasetError(f"{clip_id} has no depth to compare with")
        if not any(query):
            raise DatasetError(f"the depth of {clip_id} is 0 everywhere (infinitely far): there is nothing to compare")
        nearest = {"column": "depth_thumbnail", "q": query, "k": k + 1, "metric": "cosine", "use_index": False}
        found = self.lance.to_table(columns=["clip_id", "label", "_distance"], nearest=nearest)
        others = found.filter(pc.not_equal(found["clip_id"], clip_id)).slice(0, k)
        return others.rename_columns(["clip_id", "label", "distance"])

    def sql(self, query: str) -> pa.Table:
        """Answer an SQL query over the rows, which are the table ``dataset``; ValueError if it is no such query.

        ``select label, avg(f['median']) from (select label, unnest(frames) f from dataset) group by label``
        """
        try:
            return self.lance.sql(query).build().to_stream_reader().read_all()
        except (OSError, ValueError) as exc:
            reason = str(exc).partition(", /")[0]
            raise ValueError(f"{printable(reason)} (the table is `dataset`; its columns: {self._columns()})") from exc

    def __repr__(self) -> str:
        return f"ClipDataset({str(self.root).rstrip('/').rpartition('/')[2]}, {len(self)} clips)"

    def _repr_html_(self) -> str:
        """For a notebook: how many clips by status and label, and the columns."""
        ok = self.lance.to_table(columns=["label", "num_depth_frames", "duration_seconds"], filter=f"status = '{OK}'")
        labels = Counter(ok["label"].to_pylist()).most_common()
        labels = labels if labels and labels != [(None, ok.num_rows)] else []
        shown = [f"{label or 'no label'} ({count})" for label, count in labels[:12]]
        more = [f"and {len(labels) - 12} more"] if len(labels) > 12 else []
        seconds = pc.sum(ok["duration_seconds"]).as_py() or 0.0
        facts = {
            "clips": f"{ok.num_rows:,} ok, {self.lance.count_rows() - ok.num_rows:,} failed",
            "depth": f"{pc.sum(ok['num_depth_frames']).as_py() or 0:,} frames of {seconds / 60:,.1f} minutes of video",
            f"{len(labels):,} labels": ", ".join(shown + more) or None,
            f"{len(self.column_names)} columns": ", ".join(self.column_names),
        }
        return card(repr(self), facts)


open_dataset = ClipDataset  # the name of the verb, as it stands in the notebooks
