"""What is left to do: sources and the dataset as it is -> the rows that a run starts from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kdepth.dataset.table import read_rows
from kdepth.downloads.archive import index_name, read_index
from kdepth.downloads.network import public_url
from kdepth.models.load import DepthKind, model_identity
from kdepth.pipeline.clip_depth import frame_selector, frames_name
from kdepth.schema import CLIP_SCHEMA, COLUMNS, FAILED, OK, SOURCE_SCHEMA, clip_id_for, lasting_url
from kdepth.sources import ASKED_KEY
from kdepth.storage import Root
from kdepth.video.transcode import has_height

# Of a clip's row: what each stage fills in.
DOWNLOAD_COLUMNS = ("raw_path", "raw_bytes", "raw_sha256", "http_status", "download_attempts")
VIDEO_COLUMNS = ("width", "height", "average_fps", "num_frames", "duration_seconds", "has_audio")
TRANSCODE_COLUMNS = ("video_path", "video_bytes", *VIDEO_COLUMNS)
# And what tells whether its depth is as asked for.
_DEPTH_COLUMNS = ("depth_path", "depth_bytes", "depth_model", "depth_kind", "depth_frames")
# What `pending` gives and `download` takes: of a clip's row what is known already and of use, and how to get the rest.
PLAN_SCHEMA = pa.schema(
    [
        *(CLIP_SCHEMA.field(name) for name in COLUMNS if name in SOURCE_SCHEMA.names),
        *(CLIP_SCHEMA.field(name) for name in ("source_url", "archive_member", "status", "failed_stage")),
        *(CLIP_SCHEMA.field(name) for name in DOWNLOAD_COLUMNS + TRANSCODE_COLUMNS),
        ("url", pa.string()),  # with credentials if there are any, which `source_url` has not
        ("kind", pa.string()),
        ("max_clips", pa.int32()),
        ("skip_members", pa.list_(pa.string())),
        ("why", pa.string()),  # there is something to do: "new", "retry", "frames 2 -> all", ...
        ("damage", pa.string()),  # what is wrong with the files of a committed clip; null: nothing
    ]
)
_ROWS_AT_ONCE = 1024
# Of the plan's metadata: what was asked for, as JSON.
PARAMETERS_KEY = b"kdepth.parameters"
STAY_FAILED_KEY = b"kdepth.stay_failed"  # how many failed clips were not taken up
LABELS_KEY = b"kdepth.labels"  # clip_id -> label and split of committed clips that have others, as JSON


def plan_all(sources: pa.Table) -> pa.Table:
    """Sources as a plan, with nothing known of any clip yet."""
    return _plan_table(map(_planned, _rows(sources)))


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as dicts, not all at once: of a long list they would take a hundred times the table's memory."""
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        yield from batch.to_pylist()


def _plan_table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    rows = iter(rows)
    parts = [PLAN_SCHEMA.empty_table()]
    while part := list(islice(rows, _ROWS_AT_ONCE)):
        parts.append(pa.Table.from_pylist(part, schema=PLAN_SCHEMA))
    return pa.concat_tables(parts)


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
    """What is left to do of what was asked for: the first step of a run that may have been here before.

    Clips that are committed as asked for are dropped. Another `height` redoes transcode and depth of a clip, another
    `model`, `frames` or `depth_kind` the depth alone; a file whose size is not what its row says is made again, and
    named in the report (`ClipDataset.verify` looks inside the files too). A clip that has another label or split now
    gets it from `write_lance`, whether there is more to do for it or not.

    Args:
        sources: From `read_sources`.
        root: Folder of the dataset.
        height, model, frames, depth_kind: As they will be given to `transcode` and `estimate_depth`.
        retry_failed: Take up failed clips too. One that could not be downloaded is taken up without it when its URL is
            another now.

    Returns:
        Rows for `download`, in the order of `sources`: the columns of a clip with what is known already, and ``kind``,
        ``max_clips``, ``skip_members``, ``damage`` and ``why``: ``"new"``, ``"retry"``, or what of a clip will be
        replaced, such as ``"frames 2 -> all"``.

    Raises:
        ValueError: `frames` is not one of the allowed values, or `depth_kind` can't be.
        DepthError: The model can't be had, or needs `depth_kind`.
    """
    frames = frames_name(frames)
    frame_selector(frames, 1)
    files = Root(root)
    identity = model_identity(model, depth_kind=depth_kind)
    columns = [name for name in COLUMNS if name in (*PLAN_SCHEMA.names, *_DEPTH_COLUMNS)]
    known = {row["clip_id"]: row for row in _rows(read_rows(root, columns))}

    sizes = {name: size for folder in ("raw", "360p", "depth") for name, size in files.sizes(folder).items()}

    def is_whole(row: Mapping[str, Any], path_column: str, bytes_column: str) -> bool:
        return row[path_column] is not None and sizes.get(row[path_column]) == row[bytes_column]

    def damage(row: Mapping[str, Any]) -> str | None:
        """What is wrong with the files of a clip that is ok."""
        for path_column, bytes_column in (("video_path", "video_bytes"), ("depth_path", "depth_bytes")):
            if row["status"] == OK and row[path_column] and not is_whole(row, path_column, bytes_column):
                name, size = row[path_column], sizes.get(row[path_column])
                return f"{name} is missing" if size is None else f"{name} has {size} bytes, not {row[bytes_column]}"
        return None

    num_stay_failed = 0

    def why(row: Mapping[str, Any], url: str | None = None) -> str | None:
        """What there is to do for a clip, whose source is given where it may be another than the row's; or None."""
        model_and_frames = (row["depth_model"], row["depth_frames"])
        if row["status"] == FAILED:
            is_other = url is not None and public_url(url) != row["source_url"] and row["failed_stage"] == "download"
            is_other |= row["failed_stage"] == "depth" and model_and_frames != (identity, frames)
            return "retry" if retry_failed or is_other else None
        if damage(row) is not None:
            return "damaged"
        if row["depth_model"] is None:  # of a pipeline that ended before
            return "no depth yet"
        if not has_height(row["width"], row["height"], height):
            return f"height {min(row['width'], row['height'])} -> {height}"
        names = ("model", "frames", "depth_kind")
        wanted = (identity, frames, depth_kind or row["depth_kind"])
        changes = zip(names, (*model_and_frames, row["depth_kind"]), wanted, strict=True)
        return ", ".join(f"{name} {old} -> {new}" for name, old, new in changes if old != new) or None

    def resumed(row: Mapping[str, Any]) -> dict[str, Any]:
        """What of a committed row can be used again."""
        keep = ["clip_id", "source_url", "archive_member"]
        if row["failed_stage"] == "transcode":  # the bytes were bad: they are had again
            return {name: row[name] for name in (*keep, "failed_stage")} | {"why": "retry"}
        keep += DOWNLOAD_COLUMNS if is_whole(row, "raw_path", "raw_bytes") else ["raw_bytes"]
        if is_whole(row, "video_path", "video_bytes") and has_height(row["width"], row["height"], height):
            keep += DOWNLOAD_COLUMNS + TRANSCODE_COLUMNS
        return {name: row[name] for name in keep} | {"damage": damage(row), "why": why(row)}

    by_archive: dict[str, list[dict[str, Any]]] = {}
    for row in known.values():
        if row["archive_member"] is not None:
            by_archive.setdefault(lasting_url(row["source_url"]), []).append(row)

    labels: dict[str, list[str | None]] = {}
    # Archives that only what is not to be shown tells apart.
    archives = sources.filter(pc.equal(sources["kind"], "archive"))["url"].to_pylist()
    alike = {url for url, count in Counter(map(public_url, archives)).items() if count > 1}

    def plan_rows() -> Iterator[dict[str, Any]]:
        nonlocal num_stay_failed
        for source in _rows(sources):
            fields = _planned(source)
            if source["kind"] != "archive" and (row := known.get(source["clip_id"])) is not None:
                fields["label"], fields["split"] = (source[name] or row[name] for name in ("label", "split"))
                if (fields["label"], fields["split"]) != (row["label"], row["split"]):
                    labels[row["clip_id"]] = [fields["label"], fields["split"]]
            if source["kind"] == "archive":
                members = by_archive.get(lasting_url(fields["source_url"]), [])
                if fields["source_url"] in alike:
                    members = [
                        row for row in members if row["clip_id"] == clip_id_for(source["url"], row["archive_member"])
                    ]
                else:  # a token in it may be another each time
                    fields["clip_id"] = clip_id_for(fields["source_url"])
                yield from _plan_archive(fields, members, known, files, why, resumed)
                itself = [known[fields["clip_id"]]] if fields["clip_id"] in known else []
                num_stay_failed += sum(row["status"] == FAILED and why(row) is None for row in members + itself)
                continue
            row = known.get(source["clip_id"])
            if row is None:
                yield fields
            elif reason := why(row, source["url"]):
                yield fields if source["kind"] == "annotation" else resumed(row) | fields | {"why": reason}
            else:
                num_stay_failed += row["status"] == FAILED and source["kind"] != "annotation"

    plan = _plan_table(plan_rows())
    kinds = set(pc.unique(plan["kind"]).to_pylist())
    if "annotation" in kinds and "archive" not in kinds:  # nothing left to look the annotations up for
        plan = plan.filter(pc.not_equal(plan["kind"], "annotation"))
    asked = json.loads((sources.schema.metadata or {}).get(ASKED_KEY, b"{}"))
    asked |= {"height": height, "model": identity, "frames": frames, "depth_kind": depth_kind}
    asked["retry_failed"] = retry_failed
    metadata = {PARAMETERS_KEY: json.dumps(asked), STAY_FAILED_KEY: str(num_stay_failed)}
    metadata[LABELS_KEY] = json.dumps(labels)
    return plan.replace_schema_metadata(metadata)


def _planned(source: Mapping[str, Any]) -> dict[str, Any]:
    """A source as a row of the plan, with nothing known of its clip yet."""
    return {**source, "source_url": source["url"] and public_url(source["url"]), "why": "new"}


def _plan_archive(
    archive: dict[str, Any],
    members: list[dict[str, Any]],
    known: Mapping[str, Mapping[str, Any]],
    root: Root,
    why: Callable[[Mapping[str, Any]], str | None],
    resumed: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> list[dict[str, Any]]:
    """What is left of an archive: its members that need no reading of it, and itself if there is more in it."""
    earlier = known.get(archive["clip_id"])
    plan, skip, status = [], [], earlier and earlier["status"]
    for row in members:
        if why(row) is None:
            skip.append(row["archive_member"])
        elif (state := resumed(row)).get("raw_path") or state.get("video_path"):
            skip.append(row["archive_member"])
            kinetics = {name: row[name] for name in SOURCE_SCHEMA.names if name in COLUMNS}
            plan.append(kinetics | state | {"kind": "video"})
        elif row["status"] == FAILED:  # maybe for the archive's sake
            status = FAILED
    if earlier is not None and why(earlier) is None:  # it failed, and is not to be tried again
        return plan
    index = None
    if root.size(name := index_name(archive["url"])) is not None:
        with root.reading(name) as path:
            index = read_index(path)
    limit = archive["max_clips"]
    # What another archive held too: the clip's row names that one.
    rows = {name: known.get(clip_id_for(archive["url"], name)) for name in set(index or ()).difference(skip)}
    twins = sorted(name for name, row in rows.items() if row is not None and why(row) is None)
    if (index is not None and not set(index).difference(skip, twins)) or (limit is not None and len(skip) >= limit):
        return plan
    rest = {
        "max_clips": limit and limit - len(skip),
        "skip_members": skip + twins,
        "status": status,
        "why": "retry" if status == FAILED else "new" if index is None and not skip else "more of it",
    }
    return [*plan, archive | rest]
