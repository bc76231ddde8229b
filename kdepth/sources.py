"""URL lists and Kinetics annotation files -> a table of sources."""

from __future__ import annotations

import csv
import json
import math
import random
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from yarl import URL

from kdepth.errors import SourceError
from kdepth.schema import ARCHIVE_SUFFIXES, SOURCE_SCHEMA, clip_id_for, kinetics_clip_id, parse_kinetics_name

_YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
YOUTUBE_HOSTS = frozenset({"youtube.com", "www.youtube.com", "m.youtube.com", "music.youtube.com", "youtu.be"})
# What an annotation file without a header line looks like.
_MOST_ERRORS = 10  # named at once
ASKED_KEY = b"kdepth.asked"  # of the table's metadata: what `read_sources` was asked for, as JSON
_ANNOTATION_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split", "is_cc")


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


def read_sources(
    sources: str | Path | Sequence[str],
    *,
    annotations: str | Path | None = None,
    limit: int = 0,
    sample_seed: int | None = None,
) -> pa.Table:
    """Read what is to be downloaded.

    Args:
        sources: A list of URLs; or a file: ``.txt`` with one URL a line (blank lines and ``#`` ignored), a csv with a
            ``url`` column, or a Kinetics annotation file (``label,youtube_id,time_start,time_end,split[,is_cc]``,
            labels may be missing), whose clips are then fetched from YouTube. A URL leads to a video file, or to an
            archive of them by its suffix (``schema.ARCHIVE_SUFFIXES``).
        annotations: A Kinetics annotation file, joined by ``clip_id`` with the URLs here and with what archives hold.
        limit: At most so many clips; 0: all. Each URL gives one first; if there are fewer URLs than that, the archives
            share the rest evenly (``max_clips``).
        sample_seed: Shuffle the URLs, always in the same way for the same seed; None: keep their order.

    Returns:
        One row a source with ``schema.SOURCE_SCHEMA``, each once. ``kind`` is ``"video"``, ``"archive"``, ``"youtube"``
        or, for annotated clips that no URL here provides, ``"annotation"`` (``url`` is null): they are looked up when
        archives are read, and do not count for ``limit``.

    Raises:
        SourceError: A file can't be read or holds nothing, or lines are malformed; names file and lines.
        ValueError: ``limit`` is negative.
    """
    if limit < 0:
        raise ValueError(f"limit={limit} must be 0 (all) or more")
    annotated = _once(_read_annotations(Path(annotations))) if annotations is not None else {}
    if isinstance(sources, str | Path):
        if "://" in str(sources):
            raise SourceError(f"sources={str(sources)!r} is a URL: put it into a .txt file, or into a list")
        rows = _once(_read_file(Path(sources)))
        where = str(sources)
    else:
        where = "the list of URLs"
        rows = _once(_tried(_from_url, url, f"sources[{index}]") for index, url in enumerate(sources))
    if not rows:
        raise SourceError(f"{where} holds no sources")

    if annotated and not any(row.clip_id in annotated or row.kind == "archive" for row in rows.values()):
        warnings.warn(
            f"{annotations} names none of the {len(rows)} clips of {where}: a file's name must be that of its clip, "
            "{youtube_id}_{start:06d}_{end:06d}",
            stacklevel=2,
        )
    entries = [_with_annotation(row, annotated.get(row.clip_id)) for row in rows.values()]
    if sample_seed is not None:
        random.Random(int(sample_seed)).shuffle(entries)
    if limit:
        entries = _limited(entries, limit)
    lookups = [replace(row, kind="annotation", url=None) for row in annotated.values() if row.clip_id not in rows]
    found = entries + lookups
    columns = {name: [getattr(row, name) for row in found] for name in SOURCE_SCHEMA.names}
    asked = {
        "sources": where,
        "annotations": annotations and str(annotations),
        "limit": int(limit),
        "sample_seed": None if sample_seed is None else int(sample_seed),
    }
    return pa.table(columns, schema=SOURCE_SCHEMA.with_metadata({ASKED_KEY: json.dumps(asked)}))


def _limited(entries: list[_Source], limit: int) -> list[_Source]:
    entries = entries[:limit]
    num_archives = sum(row.kind == "archive" for row in entries)
    if not num_archives:
        return entries
    each, more = divmod(limit - len(entries), num_archives)
    shares = iter([1 + each + (index < more) for index in range(num_archives)])
    return [replace(row, max_clips=next(shares)) if row.kind == "archive" else row for row in entries]


def _once(rows: Iterable[_Source | SourceError]) -> dict[str, _Source]:
    """By clip_id; of several the first."""
    found: dict[str, _Source] = {}
    wrong: list[str] = []
    for row in rows:
        if isinstance(row, SourceError):
            wrong.append(str(row))
        else:
            found.setdefault(row.clip_id, row)
    if wrong:
        more = [f"and {len(wrong) - _MOST_ERRORS} lines more"] if len(wrong) > _MOST_ERRORS else []
        raise SourceError("\n".join(wrong[:_MOST_ERRORS] + more))
    return found


def _tried(read: Callable[[Any, str], _Source], what: Any, where: str) -> _Source | SourceError:
    """A line as a source, or what is wrong with it: all lines are looked at, so that a list is mended at once."""
    try:
        return what if isinstance(what, SourceError) else read(what, where)
    except SourceError as exc:
        return exc


def _with_annotation(row: _Source, found: _Source | None) -> _Source:
    if found is None or row.kind == "archive":
        return row
    return replace(found, url=row.url, kind=row.kind, label=row.label or found.label, split=row.split or found.split)


def _read_lines(path: Path) -> list[str]:
    try:
        # Not `splitlines`, for which a line ends at some characters of labels, too.
        text = path.read_text(encoding="utf-8-sig")
        return [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
    except UnicodeDecodeError as exc:
        raise SourceError(f"{path} can't be read ({exc}): save it as UTF-8") from exc
    except OSError as exc:
        raise SourceError(f"{path} can't be read: {exc}") from exc


def _read_file(path: Path) -> Iterator[_Source | SourceError]:
    lines = _read_lines(path)
    # K600's annotation files are named .txt: the first line tells, not the name.
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    columns = [name.strip().lower() for name in next(csv.reader([first]), [])]
    if "url" in columns:
        yield from _read_url_csv(path, lines)
    elif "youtube_id" in columns or (len(columns) >= 4 and "://" not in first) or path.suffix.lower() == ".csv":
        for row in _read_annotations(path):
            if isinstance(row, _Source):
                row = replace(row, url=f"https://www.youtube.com/watch?v={row.youtube_id}", kind="youtube")
            yield row
    else:
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.lstrip().startswith("#"):
                yield _tried(_from_url, line.strip(), f"{path}, line {number}")


def _read_url_csv(path: Path, lines: list[str]) -> Iterator[_Source | SourceError]:
    for where, fields in _records(path, lines):
        yield _tried(_from_url_fields, fields, where)


def _from_url_fields(fields: dict[str, str], where: str) -> _Source:
    row = _from_url(fields.get("url", ""), where)
    if row.kind == "archive" and fields.get("youtube_id"):
        raise SourceError(
            f"{where}: the URL of an archive, with one clip's youtube_id: list archives by URL alone, and "
            "give this file as annotations"
        )
    if fields.get("youtube_id") and fields.get("time_start"):
        row = replace(_from_annotation(fields, where), url=row.url, kind=row.kind)
    return replace(row, label=fields.get("label") or None, split=fields.get("split") or None)


def _read_annotations(path: Path) -> Iterator[_Source | SourceError]:
    for where, fields in _records(path, _read_lines(path)):
        yield _tried(_from_annotation, fields, where)


def _records(path: Path, lines: list[str]) -> Iterator[tuple[str, dict[str, str] | SourceError]]:
    """``(place, {column: value})`` of each line of a csv; the column names may be missing in an annotation file."""
    reader = csv.reader(lines, strict=True)
    columns: list[str] = []
    try:
        for values in reader:
            where = f"{path}, line {reader.line_num}"
            values = [value.strip() for value in values]
            if not any(values):
                continue
            if not columns:
                columns = [value.lower() for value in values]
                if "url" in columns or "youtube_id" in columns:
                    continue
                columns = list(_ANNOTATION_COLUMNS[: len(values)])
                if len(values) < 4 or not _YOUTUBE_ID.fullmatch(values[1]):
                    raise SourceError(f"{where}: no column is named 'url' or 'youtube_id'; commas are between columns")
            if len(values) == len(columns):
                yield where, dict(zip(columns, values, strict=True))
            else:
                wrong = f"{len(values)} fields, expected {len(columns)} ({', '.join(columns)})"
                yield where, SourceError(f"{where}: {wrong}")
    except csv.Error as exc:
        raise SourceError(f"{path}, line {reader.line_num}: {exc}") from exc


def _from_annotation(fields: dict[str, str], where: str) -> _Source:
    youtube_id = fields.get("youtube_id", "")
    if not _YOUTUBE_ID.fullmatch(youtube_id):
        raise SourceError(f"{where}: youtube_id {youtube_id!r} is not 11 letters, digits, '-' or '_'")
    try:
        start, end = float(fields.get("time_start", "")), float(fields.get("time_end", ""))
    except ValueError as exc:
        raise SourceError(f"{where}: time_start and time_end must be numbers of seconds") from exc
    if not (0 <= start < end and math.isfinite(end)):
        raise SourceError(f"{where}: time_start {start:g} and time_end {end:g} must be 0 <= start < end")
    clip_id = kinetics_clip_id(youtube_id, start, end)
    label, split = fields.get("label") or None, fields.get("split") or None
    return _Source(clip_id, None, "annotation", youtube_id, start, end, label, split)


def _from_url(text: str, where: str) -> _Source:
    """A URL with spaces, brackets and the like quoted. Errors do not show it: it may hold a password."""
    try:
        url = URL(text)
    except (ValueError, TypeError) as exc:
        raise SourceError(f"{where}: not a URL") from exc
    if url.scheme not in ("http", "https") or not url.host or re.search(r"\s", url.host):
        mend = ""
        if url.scheme in ("", "file"):
            mend = "; serve the folder of your own files (`python -m http.server`), and give allow_private_hosts"
        raise SourceError(f"{where}: not an http or https URL{mend}")
    if url.host in YOUTUBE_HOSTS:
        youtube_id = url.query.get("v") or url.name
        if not _YOUTUBE_ID.fullmatch(youtube_id):
            raise SourceError(f"{where}: not the URL of a YouTube video")
        watched = f"https://www.youtube.com/watch?v={youtube_id}"  # of all spellings one
        return _Source(clip_id_for(watched, youtube_id), watched, "youtube", youtube_id)
    kind = "archive" if url.path.lower().endswith(ARCHIVE_SUFFIXES) else "video"
    clip_id = clip_id_for(str(url))
    youtube_id_and_times = parse_kinetics_name(clip_id) if kind == "video" else None
    return _Source(clip_id, str(url), kind, *(youtube_id_and_times or ()))
