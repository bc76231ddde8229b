"""Read URL lists and Kinetics annotation files into a table of sources."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from yarl import URL

from kdepth import lists
from kdepth.errors import SourceError, printable
from kdepth.schema import (
    ARCHIVE_SUFFIXES,
    SOURCE_SCHEMA,
    clip_id_for,
    file_key,
    hashed_clip_id,
    kinetics_clip_id,
    parse_kinetics_name,
)

YOUTUBE_HOSTS = frozenset({"youtube.com", "www.youtube.com", "m.youtube.com", "music.youtube.com", "youtu.be"})
_HOST = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?|[0-9A-Fa-f]*:[0-9A-Fa-f:.]+(%\w+)?", re.ASCII)
# Key of the table's metadata: what `read_sources` was asked for and what it counted, as JSON. See `read_sources`.
ASKED_KEY = b"kdepth.asked"


@dataclass(frozen=True, slots=True)
class _Source:
    """One row of `SOURCE_SCHEMA`."""

    clip_id: str
    url: str | None
    kind: str
    youtube_id: str | None = None
    time_start_seconds: float | None = None
    time_end_seconds: float | None = None
    label: str | None = None
    split: str | None = None
    max_clips: int | None = None
    cut_start_seconds: float | None = None
    cut_end_seconds: float | None = None
    problem: str | None = None
    # The list says which clip it is (id and times in columns), so that equal names mean one clip. Not a column.
    is_named: bool = False

    @property
    def times(self) -> tuple[float | None, ...]:
        return self.time_start_seconds, self.time_end_seconds, self.cut_start_seconds, self.cut_end_seconds


def read_sources(
    sources: str | Path | Sequence[str],
    *,
    annotations: str | Path | None = None,
    limit: int = 0,
    sample_seed: int | None = None,
) -> pa.Table:
    """Read what is to be downloaded.

    Args:
        sources: A list of URLs; or a file: one URL a line, with a label after it if you like; a table (``,``, tab or
            ``;`` between its columns) with a ``url`` column; or a Kinetics annotation file
            (``label,youtube_id,time_start,time_end,split[,is_cc]``, labels may be missing), whose clips are then
            fetched from YouTube. Blank lines and lines that begin with ``#`` are skipped. A URL leads to a video, or
            to an archive of videos by its suffix (``schema.ARCHIVE_SUFFIXES``). With the columns ``time_start`` and
            ``time_end`` (seconds) only that segment of the video is taken.
        annotations: A Kinetics annotation file, joined by ``clip_id`` with the URLs here and with what archives hold.
        limit: At most so many clips; 0: all. Each URL gives one first; if there are fewer URLs than that, the archives
            share the rest evenly (``max_clips``).
        sample_seed: Shuffle the clips, always in the same way for the same seed; None: keep their order.

    Returns:
        Rows of ``schema.SOURCE_SCHEMA``. Several URLs of one clip are several rows with its ``clip_id``, one after the
        other, in the order of the list. A line that can't be used is a row with the kind ``"invalid"`` and its
        ``problem``. Neither these nor annotated clips without a URL (``"annotation"``) count for `limit`.

        The metadata has, under ``ASKED_KEY``, JSON with the arguments and with counts of the whole list: ``lines``,
        which are ``clips`` + ``archives`` + ``alternatives`` (further URLs of a clip) + ``merged`` (the same URL again)
        + ``invalid``; ``renamed`` (of the clips: the name was that of another one's file, so that it got a name of its
        own); ``annotations_merged`` (annotations of a clip that had one) and ``annotations_invalid``.

    Raises:
        SourceError: A file can't be read, or no line of it can be used.
        ValueError: `limit` is negative.
        TypeError: `limit` or `sample_seed` is no whole number, or `sources` no list.
    """
    for name, value in (("limit", limit), ("sample_seed", sample_seed or 0)):
        if not isinstance(value, int):
            raise TypeError(f"{name}={value!r} must be a whole number")
    if limit < 0:
        raise ValueError(f"limit={limit} must be 0 (all) or more")
    notes = _read_annotations(annotations) if annotations is not None else []
    annotated: dict[str, _Source] = {}
    for row in notes:
        if row.problem is None:
            annotated.setdefault(row.clip_id, row)
    where, rows = _read(sources, annotated)
    invalid, invalid_notes = ([row for row in found if row.problem] for found in (rows, notes))
    clips, counts = _by_clip([row for row in rows if row.problem is None], annotated)
    if annotated and not any(row.clip_id in annotated or row.kind == "archive" for row in rows):
        warnings.warn(
            f"{annotations} names none of the {len(clips)} clips of {where}: a file's name must be that of its clip, "
            "{youtube_id}_{start:06d}_{end:06d}",
            stacklevel=2,
        )
    entries = list(clips.values())
    if sample_seed is not None:
        random.Random(sample_seed).shuffle(entries)
    if limit:
        entries = _limited(entries, limit)
    found = [_with_annotation(row, annotated.get(row.clip_id)) for entry in entries for row in entry]
    found += invalid + invalid_notes + [row for row in annotated.values() if row.clip_id not in clips]
    counts |= {"lines": len(rows), "invalid": len(invalid), "annotations_invalid": len(invalid_notes)}
    counts["annotations_merged"] = len(notes) - len(invalid_notes) - len(annotated)
    by = str(annotations) if annotations else None
    asked = {"sources": where, "annotations": by, "limit": limit, "sample_seed": sample_seed, **counts}
    columns = {name: [getattr(row, name) for row in found] for name in SOURCE_SCHEMA.names}
    return pa.table(columns, schema=SOURCE_SCHEMA.with_metadata({ASKED_KEY: json.dumps(asked)}))


def _read(sources: str | Path | Iterable[str], annotated: Mapping[str, _Source]) -> tuple[str, list[_Source]]:
    """What the list is called, and its rows."""
    if not isinstance(sources, str | Path | Iterable):
        raise TypeError(f"sources must be a list of URLs or the path of one, not {type(sources).__name__}")
    if not isinstance(sources, str | Path):
        where = "the list of URLs"
        rows = [_tried(lists.Line("", index, str(url)), url, _from_url, annotated) for index, url in enumerate(sources)]
    elif "://" in (where := str(sources)):
        raise SourceError("sources is a URL: put it into a .txt file, or into a list")
    elif (table := lists.find_table(lines := lists.read_lines(Path(sources)))) is not None:
        read = _from_url_fields if "url" in table.columns else _youtube_from_fields
        rows = [_tried(*record, read, annotated) for record in table.records()]
    else:
        rows = [_tried(line, line.text, _from_text, annotated) for line in lines]
        if lines and where.lower().endswith((".csv", ".tsv")) and all(row.problem for row in rows):
            raise lists.no_column(where, lines[0], "'url' or 'youtube_id'")
    lists.require_usable(where, [row.problem for row in rows])
    return where, rows


def _read_annotations(path: str | Path) -> list[_Source]:
    table = lists.find_table(lines := lists.read_lines(Path(path)))
    if lines and (table is None or "youtube_id" not in table.columns):
        raise lists.no_column(str(path), lines[0], "'youtube_id'")
    rows = [_tried(*record, _from_annotation) for record in (table.records() if table else ())]
    lists.require_usable(str(path), [row.problem for row in rows])
    return rows


def _by_clip(rows: list[_Source], annotated: Mapping[str, _Source]) -> tuple[dict[str, list[_Source]], dict[str, int]]:
    """Group the sources by clip, in the order of the list, and count them.

    Two URLs whose files have one name are sources of one clip where the list or the annotations say which clip it is.
    Without that they are two clips: the first keeps the name, the others get a `hashed_clip_id`.
    """
    named = {row.clip_id for row in rows if row.is_named}.union(annotated)
    clips: dict[str, dict[tuple[object, ...], _Source]] = {}
    counts = Counter(clips=0, archives=0, alternatives=0, merged=0, renamed=0)
    for row in rows:
        key = (file_key(str(row.url)), *row.times)
        group = clips.get(row.clip_id, {})
        other_times = row.is_named and any(one.is_named and one.times != row.times for one in group.values())
        if group and key not in group and (other_times or row.clip_id not in named):
            segment = (row.times[0] or 0.0, row.times[1] or 0.0) if other_times else None
            row = replace(row, clip_id=hashed_clip_id(row.clip_id, str(row.url), segment=segment))
            counts["renamed"] += row.clip_id not in clips
        group = clips.setdefault(row.clip_id, {})
        first = "archives" if row.kind == "archive" else "clips"
        counts["merged" if key in group else "alternatives" if group else first] += 1
        group.setdefault(key, row)
    return {clip_id: list(group.values()) for clip_id, group in clips.items()}, dict(counts)


def _limited(entries: list[list[_Source]], limit: int) -> list[list[_Source]]:
    entries = entries[:limit]
    num_archives = sum(entry[0].kind == "archive" for entry in entries)
    each, more = divmod(limit - len(entries), max(num_archives, 1))
    shares = iter([1 + each + (index < more) for index in range(num_archives)])
    return [[replace(entry[0], max_clips=next(shares))] if entry[0].kind == "archive" else entry for entry in entries]


def _with_annotation(row: _Source, found: _Source | None) -> _Source:
    if found is None or row.kind == "archive":
        return row
    return replace(found, url=row.url, kind=row.kind, label=row.label or found.label, split=row.split or found.split)


def _tried(line: lists.Line, what: Any, read: Callable[..., _Source], *more: Any) -> _Source:
    """What `read` makes of a line's text or fields, or a row that says what is wrong with the line."""
    try:
        if isinstance(what, SourceError):
            raise what
        return read(what, *more)
    except SourceError as exc:
        digest = hashlib.sha256(f"{line.file}\n{line.text}".encode(errors="replace")).hexdigest()[:10]
        return _Source(f"invalid_line_{line.number:06d}_{digest}", None, "invalid", problem=f"{line}: {exc}")


def _times(fields: Mapping[str, str]) -> tuple[float, float]:
    try:
        start, end = float(fields.get("time_start", "")), float(fields.get("time_end", ""))
    except ValueError as exc:
        raise SourceError("time_start and time_end must be numbers of seconds") from exc
    if not (0 <= start < end and math.isfinite(end)):
        raise SourceError(f"time_start {start:g} and time_end {end:g} must be 0 <= start < end")
    return start, end


def _from_annotation(fields: Mapping[str, str]) -> _Source:
    youtube_id = fields.get("youtube_id", "")
    if not lists.ANNOTATED_ID.fullmatch(youtube_id):
        shown = printable(youtube_id, 100)
        raise SourceError(f"youtube_id {shown!r} must be 11 letters, digits, '-' or '_'; of other videos up to 64")
    start, end = _times(fields)
    clip_id = kinetics_clip_id(youtube_id, start, end)
    label, split = fields.get("label") or None, fields.get("split") or None
    return _Source(clip_id, None, "annotation", youtube_id, start, end, label, split, is_named=True)


def _youtube_from_fields(fields: Mapping[str, str], annotated: Mapping[str, _Source]) -> _Source:
    row = _from_annotation(fields)
    if not lists.YOUTUBE_ID.fullmatch(str(row.youtube_id)):
        raise SourceError(f"{row.youtube_id!r} can't be a YouTube id: give a list of URLs, and this as annotations")
    return replace(row, url=f"https://www.youtube.com/watch?v={row.youtube_id}", kind="youtube")


def _from_url_fields(fields: Mapping[str, str], annotated: Mapping[str, _Source]) -> _Source:
    row = _from_url(fields["url"], annotated)
    if fields.get("time_start") or fields.get("time_end"):
        if row.kind == "archive":
            raise SourceError("an archive with one clip's times: list it by its URL, and give this file as annotations")
        row = _segment(row, fields, annotated)
    return replace(row, label=fields.get("label") or None, split=fields.get("split") or None)


def _segment(row: _Source, fields: Mapping[str, str], annotated: Mapping[str, _Source]) -> _Source:
    """The part of a video that the times in its line say."""
    start, end = _times(fields)
    youtube_id = row.youtube_id if row.kind == "youtube" else fields.get("youtube_id")
    if youtube_id:  # the URL is YouTube's, or that of the clip itself
        named = _from_annotation({**fields, "youtube_id": youtube_id})
        return replace(named, url=row.url, kind=row.kind)
    known = annotated.get(row.clip_id, row)
    if known.youtube_id and kinetics_clip_id(known.youtube_id, start, end) == row.clip_id:
        return row  # the file was cut already
    stem = PurePosixPath(unquote(urlsplit(str(row.url)).path)).stem
    clip_id = hashed_clip_id(stem, str(row.url), segment=(start, end))
    return _Source(clip_id, row.url, row.kind, cut_start_seconds=start, cut_end_seconds=end)


def _from_text(text: str, annotated: Mapping[str, _Source]) -> _Source:
    """A line of a plain list: a URL, and perhaps a label after it."""
    url, label = lists.split_label(text.strip(' \t"<>,;'))
    row = _from_url(url, annotated)
    return replace(row, label=label.strip(' "') or None) if label else row


def _from_url(text: str, annotated: Mapping[str, _Source]) -> _Source:
    """Errors do not show the URL: it may hold a password."""
    try:
        url = URL(text)
        host, spelled = url.raw_host or "", lists.spelled_url(text, url)
        is_youtube = url.host in YOUTUBE_HOSTS  # also decodes the name of a host that begins with xn--
    except (ValueError, TypeError, IndexError) as exc:  # the last is what yarl makes of "http://[::1]@"
        raise SourceError("not a URL") from exc
    if url.scheme not in ("http", "https") or not _HOST.fullmatch(host):
        raise SourceError(f"not an http or https URL{lists.remedy(text)}")
    if is_youtube:
        youtube_id = url.query.get("v") or url.name
        if not lists.YOUTUBE_ID.fullmatch(youtube_id):
            raise SourceError("not the URL of a YouTube video")
        watched = f"https://www.youtube.com/watch?v={youtube_id}"  # of all spellings one
        return _Source(clip_id_for(watched, youtube_id), watched, "youtube", youtube_id)
    if url.path.lower().endswith(ARCHIVE_SUFFIXES):
        return _Source(clip_id_for(spelled), spelled, "archive")
    clip_id = clip_id_for(spelled, annotated=annotated)
    return _Source(clip_id, spelled, "video", *(parse_kinetics_name(clip_id) or ()))
