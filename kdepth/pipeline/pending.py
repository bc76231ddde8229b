"""List the clips that still need work, given what the dataset already holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kdepth.dataset.table import read_rows
from kdepth.downloads.archive import index_name, read_index
from kdepth.downloads.network import public_url
from kdepth.models.base import DepthKind
from kdepth.models.load import model_identity
from kdepth.pipeline.clip_depth import frame_selector, frames_name
from kdepth.schema import (
    CLIP_SCHEMA,
    COLUMNS,
    DOWNLOAD_COLUMNS,
    FAILED,
    OK,
    SOURCE_SCHEMA,
    TRANSCODE_COLUMNS,
    clip_id_for,
    lasting_url,
)
from kdepth.sources import ASKED_KEY
from kdepth.storage import Root, source_key
from kdepth.video.transcode import has_height

Row = dict[str, Any]

# Of a committed row: what tells whether its depth is as asked for, and why it failed.
_STATE_COLUMNS = (
    *("depth_path", "depth_bytes", "depth_model", "depth_kind", "depth_frames"),
    *("failed_stage", "tried_sources"),
)
# What `pending` gives and `download` takes: of a clip's row what is known already and of use, and how to get the rest.
PLAN_SCHEMA = pa.schema(
    [
        *(CLIP_SCHEMA.field(name) for name in COLUMNS if name in SOURCE_SCHEMA.names),
        *(CLIP_SCHEMA.field(name) for name in ("source_url", "archive_member", "status")),
        CLIP_SCHEMA.field("committed_at"),  # null: there is no row yet, so that a killed run's whole file may be used
        *(CLIP_SCHEMA.field(name) for name in (*DOWNLOAD_COLUMNS, *TRANSCODE_COLUMNS)),
        ("url", pa.string()),  # with credentials if there are any, which `source_url` has not
        ("kind", pa.string()),
        ("problem", pa.string()),
        ("max_clips", pa.int32()),
        ("skip_members", pa.list_(pa.string())),
        ("why", pa.string()),  # there is something to do: "new", "retry", "frames 2 -> all", ...
    ]
)
_ROWS_AT_ONCE = 1024
_RECORD_KEY = b"kdepth.plan"


@dataclass(slots=True)
class PlanRecord:
    """What `pending` found besides its rows. It travels as JSON in the metadata of the table.

    Attributes:
        asked: The parameters of the run, for the dataset's memory of it (`ClipDataset.runs`).
        num_stay_failed: Clips that failed in an earlier run, and are not taken up.
        damage: What is wrong with the files of the dataset's clips that are ok: ``clip_id`` -> problem.
        labels: Committed clips that the list gives another label or split: ``clip_id`` -> ``[label, split]``.
    """

    asked: dict[str, Any] = field(default_factory=dict)
    num_stay_failed: int = 0
    damage: dict[str, str] = field(default_factory=dict)
    labels: dict[str, list[str | None]] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: pa.Table) -> PlanRecord:
        """The record of a table of `pending`; an empty one for other tables."""
        return cls(**json.loads((plan.schema.metadata or {}).get(_RECORD_KEY, b"{}")))

    def put_into(self, plan: pa.Table) -> pa.Table:
        """The table with this record in its metadata."""
        return plan.replace_schema_metadata({_RECORD_KEY: json.dumps(asdict(self))})


def plan_all(sources: pa.Table) -> pa.Table:
    """Sources as a plan, with nothing known of any clip yet."""
    return _plan_table(map(_planned, _rows(sources)))


def pending(
    sources: pa.Table,
    root: str | Path,
    *,
    height: int = 360,
    model: str = "small",
    frames: str | float = "all",
    depth_kind: DepthKind | None = None,
    retry_failed: bool = False,
) -> pa.Table:
    """List the clips that still need work, given what the dataset already holds.

    Clips that are committed as asked for are dropped. Another `height` redoes transcode and depth of a clip, another
    `model`, `frames` or `depth_kind` the depth alone. A file whose size is not what its row says is made again, and
    named in the report (`ClipDataset.verify` looks inside the files too). A clip that has another label or split now
    gets it from `write_lance`, whether there is more to do for it or not.

    A clip that failed is taken up if the list has a source of it that was not tried yet, another URL or another
    archive; otherwise only with `retry_failed`.

    Args:
        sources: From `read_sources`.
        root: Folder of the dataset.
        height, model, frames, depth_kind: As they will be given to `transcode` and `estimate_depth`.
        retry_failed: Take up all failed clips.

    Returns:
        Rows for `download`, in the order of `sources`: the columns of a clip with what is known already, and ``kind``,
        ``max_clips``, ``skip_members`` and ``why``: ``"new"``, ``"retry"``, ``"another source"``, or what of a clip
        will be replaced, such as ``"frames 2 -> all"``. Several rows with one ``clip_id`` are alternatives: the first
        that becomes ok is kept. The metadata holds a `PlanRecord`.

    Raises:
        ValueError: `frames` is not one of the allowed values, or `depth_kind` can't be.
        DepthError: The model can't be had, or needs `depth_kind`.
    """
    frames = frames_name(frames)
    frame_selector(frames, 1)
    identity = model_identity(model, depth_kind=depth_kind)
    asked = _Asked(height, identity, frames, depth_kind, retry_failed)
    planner = _Planner(sources, Root(root), asked)
    plan = _plan_table(planner.rows())
    if not pc.any(pc.equal(plan["kind"], "archive")).as_py():  # nothing left to look the annotations up for
        plan = plan.filter(pc.not_equal(plan["kind"], "annotation"))
    planner.record.asked = json.loads((sources.schema.metadata or {}).get(ASKED_KEY, b"{}")) | asdict(asked)
    return planner.record.put_into(plan)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The parameters of a run. Their names are those of `pending`, for `ClipDataset.runs`."""

    height: int
    model: str  # its identity
    frames: str
    depth_kind: DepthKind | None
    retry_failed: bool


class _Planner:
    """Compares sources with the rows and files of a dataset."""

    def __init__(self, sources: pa.Table, root: Root, asked: _Asked) -> None:
        self._sources, self._root, self._asked = sources, root, asked
        self.record = PlanRecord()
        columns = [name for name in COLUMNS if name in (*PLAN_SCHEMA.names, *_STATE_COLUMNS)]
        self._known: dict[str, Row] = {row["clip_id"]: row for row in _rows(read_rows(root, columns))}
        self._sizes = {name: size for folder in ("raw", "360p", "depth") for name, size in root.sizes(folder).items()}
        self._members: dict[str, list[Row]] = {}  # rows by their archive's URL
        for row in self._known.values():
            if problem := self._damage(row):
                self.record.damage[row["clip_id"]] = problem
            if row["archive_member"] is not None:
                self._members.setdefault(lasting_url(row["source_url"]), []).append(row)
        archives = sources.filter(pc.equal(sources["kind"], "archive"))["url"].to_pylist()
        # Archives whose URLs differ in their credentials alone.
        self._alike = {url for url, count in Counter(map(public_url, archives)).items() if count > 1}
        is_file = pc.is_in(sources["kind"], pa.array(["video", "youtube"]))
        urls = sources.filter(is_file).select(["clip_id", "url"]).to_pylist() if self._known else []
        self._listed = {(row["clip_id"], source_key(public_url(row["url"]))) for row in urls}
        self._archives = {lasting_url(public_url(url)) for url in archives}
        note_ids = sources.filter(pc.equal(sources["kind"], "annotation"))["clip_id"].to_pylist()
        self._annotated = frozenset(note_ids)

    def rows(self) -> Iterator[Row]:
        """The rows of the plan, in the order of the sources."""
        redone: set[str] = set()
        stay_failed: set[str] = set()
        for source in _rows(self._sources):
            fields = _planned(source)
            if source["kind"] == "archive":
                yield from self._archive(fields)
                continue
            row = self._known.get(source["clip_id"])
            if row is not None:
                self._relabel(fields, row)
            if source["kind"] == "annotation":
                # Members of archives are named by it, also those that are there already.
                yield fields if row is None or self.why(row) else fields | {"status": OK, "why": None}
            elif row is None:
                yield fields
            elif row["status"] == FAILED:
                if why := self._why_again(row, source_key(fields["source_url"] or "")):
                    redone.add(row["clip_id"])
                    yield self._resumed(row, fields) | {"why": why}
                else:
                    stay_failed.add(row["clip_id"])
            elif (why := self.why(row)) and row["clip_id"] not in redone and self._may_redo(row, fields["source_url"]):
                redone.add(row["clip_id"])
                yield self._resumed(row, fields) | {"why": why}
        self.record.num_stay_failed += len(stay_failed - redone)

    def _relabel(self, fields: Row, row: Row) -> None:
        fields["label"], fields["split"] = (fields[name] or row[name] for name in ("label", "split"))
        if (fields["label"], fields["split"]) != (row["label"], row["split"]):
            self.record.labels[row["clip_id"]] = [fields["label"], fields["split"]]

    def _is_whole(self, row: Row, kind: str) -> bool:
        return row[f"{kind}_path"] is not None and self._sizes.get(row[f"{kind}_path"]) == row[f"{kind}_bytes"]

    def _damage(self, row: Row) -> str | None:
        """What is wrong with the files of a clip that is ok."""
        for kind in ("video", "depth"):
            if row["status"] == OK and row[f"{kind}_path"] and not self._is_whole(row, kind):
                name, size = row[f"{kind}_path"], self._sizes.get(row[f"{kind}_path"])
                wanted = row[f"{kind}_bytes"]
                return f"{name} is missing" if size is None else f"{name} has {size} bytes, not {wanted}"
        return None

    def why(self, row: Row) -> str | None:
        """What there is to do for a committed clip, whatever its source; None: nothing."""
        asked = self._asked
        if row["status"] == FAILED:
            return "retry"
        if row["clip_id"] in self.record.damage:
            return "damaged"
        if row["depth_model"] is None:  # of a pipeline that ended before
            return "no depth yet"
        if not has_height(row["width"], row["height"], asked.height):
            return f"height {min(row['width'], row['height'])} -> {asked.height}"
        wanted = (asked.model, asked.frames, asked.depth_kind or row["depth_kind"])
        names = ("model", "frames", "depth_kind")
        changes = zip(names, (row["depth_model"], row["depth_frames"], row["depth_kind"]), wanted, strict=True)
        return ", ".join(f"{name} {old} -> {new}" for name, old, new in changes if old != new) or None

    def _why_again(self, row: Row, key: str) -> str | None:
        """Why a failed clip is to be tried with a source; None: it is not."""
        if self._asked.retry_failed:
            return "retry"
        if key not in _tried(row):
            return "another source"
        is_other = (row["depth_model"], row["depth_frames"]) != (self._asked.model, self._asked.frames)
        return "retry" if row["failed_stage"] == "depth" and is_other and key == _own_key(row) else None

    def _may_redo(self, row: Row, source_url: str, member: str | None = None) -> bool:
        """Whether a source is the one that an ok clip is made anew of: its own, or any if its own is not listed."""
        own = _own_key(row)
        if source_key(source_url, member) == own:
            return True
        of_listed_archive = row["archive_member"] and lasting_url(row["source_url"]) in self._archives
        return (row["clip_id"], own) not in self._listed and not of_listed_archive

    def _resumed(self, row: Row, fields: Row) -> Row:
        """A source of a committed clip, with what of the clip's files can be used again.

        The row stays of one piece: who uses its files names their source.
        """
        known = {"committed_at": row["committed_at"]}
        is_own = source_key(fields["source_url"] or "", fields.get("archive_member")) == _own_key(row)
        if row["failed_stage"] == "transcode" or (row["status"] == FAILED and not is_own):
            return fields | known  # the bytes were bad, or these are others
        keep: tuple[str, ...] = ()
        if self._is_whole(row, "raw"):
            keep = DOWNLOAD_COLUMNS
        if self._is_whole(row, "video") and has_height(row["width"], row["height"], self._asked.height):
            keep = DOWNLOAD_COLUMNS + TRANSCODE_COLUMNS
        if keep:
            keep += ("source_url", "archive_member")
        return fields | known | {name: row[name] for name in keep}

    def _archive(self, archive: Row) -> list[Row]:
        """What is left of an archive: its members that need no reading of it, and itself if there is more in it."""
        url = archive["url"]
        members = self._members.get(lasting_url(archive["source_url"]), [])
        if archive["source_url"] in self._alike:
            members = [row for row in members if row["clip_id"] == self._clip_id(url, row["archive_member"])]
        else:  # named by its URL without the token, which may be another each time
            archive["clip_id"] = clip_id_for(archive["source_url"])
        plan, skip, status = [], [], None
        for row in members:
            name = row["archive_member"]
            if row["status"] == FAILED:
                if why := self._why_again(row, _own_key(row)):
                    status = FAILED  # maybe for the archive's sake
                else:
                    self.record.num_stay_failed += 1
                    skip.append(name)
                    continue
            elif not (why := self.why(row)):
                skip.append(name)
                continue
            fields = {field: row[field] for field in SOURCE_SCHEMA.names if field in COLUMNS}
            fields |= {"source_url": row["source_url"], "archive_member": name, "kind": "video"}
            state = self._resumed(row, fields)
            if state.get("raw_path") or state.get("video_path"):
                skip.append(name)
                plan.append(state | {"why": why})
        itself = self._known.get(archive["clip_id"])
        if itself is not None:
            if not self._why_again(itself, _own_key(itself)):
                self.record.num_stay_failed += 1
                return plan
            status = FAILED
        index = self._index(url)
        # What another source made ok, or failed at with this archive's copy already.
        done = [name for name in set(index or ()).difference(skip) if not self._wants(archive, name)]
        limit = archive["max_clips"]
        is_done = index is not None and status != FAILED and not set(index).difference(skip, done)
        if is_done or (limit is not None and len(skip) >= limit):
            return plan
        why = "retry" if status == FAILED else "new" if index is None and not skip else "more of it"
        rest = {"max_clips": limit and limit - len(skip), "skip_members": skip + sorted(done)}
        return [*plan, archive | rest | {"status": status, "why": why}]

    def _clip_id(self, url: str, member: str) -> str:
        return clip_id_for(url, member, annotated=self._annotated)

    def _wants(self, archive: Row, member: str) -> bool:
        """Whether a member of an archive is to be read, given the row that its clip has."""
        row = self._known.get(self._clip_id(archive["url"], member))
        if row is None:
            return True
        if row["status"] == FAILED:
            return self._why_again(row, source_key(archive["source_url"], member)) is not None
        return self.why(row) is not None and self._may_redo(row, archive["source_url"], member)

    def _index(self, url: str) -> list[str] | None:
        if self._root.size(name := index_name(url)) is None:
            return None
        with self._root.reading(name) as path:
            return read_index(path)[0]


def _own_key(row: Row) -> str:
    """The key of the source that a row is of."""
    return source_key(row["source_url"] or "", row["archive_member"])


def _tried(row: Row) -> list[str]:
    """The keys of the sources that a failed clip was tried with; an older kdepth's rows name the last alone."""
    return row["tried_sources"] or [_own_key(row)]


def _planned(source: Mapping[str, Any]) -> Row:
    """A source as a row of the plan, with nothing known of its clip yet."""
    return {**source, "source_url": source["url"] and public_url(source["url"]), "why": "new"}


def _rows(table: pa.Table) -> Iterator[Row]:
    """Rows as dicts, not all at once: of a long list they would take a hundred times the table's memory."""
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        yield from batch.to_pylist()


def _plan_table(rows: Iterable[Row]) -> pa.Table:
    rows = iter(rows)
    parts = [PLAN_SCHEMA.empty_table()]
    while part := list(islice(rows, _ROWS_AT_ONCE)):
        parts.append(pa.Table.from_pylist(part, schema=PLAN_SCHEMA))
    return pa.concat_tables(parts)
