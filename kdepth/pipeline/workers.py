"""What each stage does to one clip's row, in a worker: files are made, columns filled, errors become a failed row."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import queue
import shutil
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from kdepth.downloads.archive import Member, index_name, read_archive
from kdepth.downloads.http import fetch
from kdepth.downloads.network import client_session
from kdepth.downloads.youtube import fetch_youtube
from kdepth.errors import DamagedMediaError, SourceError, StorageError, printable
from kdepth.pipeline.deaths import counted
from kdepth.schema import (
    COLUMNS,
    FAILED,
    SOURCE_SCHEMA,
    SUPERSEDED,
    VIDEO_COLUMNS,
    VIDEO_SUFFIXES,
    clip_id_for,
    file_key,
    new_row,
    parse_kinetics_name,
)
from kdepth.storage import Root, key_of, made_name, source_key
from kdepth.video.transcode import VideoInfo, encoding_of, transcode_file, video_info

if TYPE_CHECKING:
    import aiohttp

Row = dict[str, Any]
T = TypeVar("T")

_YOUTUBE_AT_ONCE = 2  # each is a process


def failure(root: Root, stage: str, error: BaseException) -> Row:
    """The columns of a failed row. Its message does not say where the root is.

    Raises:
        StorageError: The disk is full, which concerns the run and not the clip.
    """
    if isinstance(error, StorageError):
        raise error
    columns: Row = {
        "status": FAILED,
        "failed_stage": stage,
        "error_type": type(error).__name__,
        "error_message": printable(str(error).replace(f"{root.work}/", "")),
    }
    if stage == "download":
        columns["http_status"] = getattr(error, "http_status", None)
    return columns


def run_stage(row: Row, stage: str, root: Root, work: Callable[[], Mapping[str, Any]]) -> Row:
    """One stage of one clip: its columns and times go into the row; any error makes it a failed row."""
    row[f"{stage}_started_at"] = datetime.now(UTC)
    started = time.perf_counter()
    try:
        with counted(root, f"{row['clip_id']}.{stage}"):
            row.update(work())
    except Exception as error:  # of a clip: whatever it is, the others go on
        root.check_space(error)
        row.update(failure(root, stage, error))
    row[f"{stage}_seconds"] = time.perf_counter() - started
    return row


# --- download ---------------------------------------------------------------------------------------------------------


class Downloads:
    """Fetch files and archives in one session, many files at once.

    Args:
        root: Of the dataset.
        session: From `client_session`.
        at_once: Files fetched at once, apart from YouTube's.
    """

    def __init__(self, root: Root, session: aiohttp.ClientSession, at_once: int) -> None:
        self._root, self._session = root, session
        self._turns = {"youtube": asyncio.Semaphore(_YOUTUBE_AT_ONCE), "video": asyncio.Semaphore(at_once)}
        self._whole_files: dict[str, asyncio.Task[Row]] = {}  # of which several clips are cut, by `file_key`

    async def files(self, rows: list[Row]) -> AsyncGenerator[Row]:
        """Rows of videos, in the order given: if the process dies, Ray asks another one to go on after the last."""
        tasks = [asyncio.create_task(self._file(row)) for row in rows]
        try:
            for task in tasks:
                yield await task
            for whole in self._whole_files.values():  # each clip has its own link to it
                if whole.exception() is None:
                    await asyncio.to_thread(self._root.delete, whole.result()["raw_path"])
        finally:
            for task in (*tasks, *self._whole_files.values()):
                task.cancel()

    async def _file(self, row: Row) -> Row:
        if row["video_path"] or row["raw_path"]:
            return row
        if row["kind"] == "invalid":
            return row | failure(self._root, "source", SourceError(row["problem"]))
        row["download_started_at"] = datetime.now(UTC)
        started = time.perf_counter()
        try:
            row.update(await (self._clip(row) if row["cut_end_seconds"] is None else self._cut(row)))
        except Exception as error:
            self._root.check_space(error)
            row.update(failure(self._root, "download", error))
        row["download_seconds"] = time.perf_counter() - started
        return row

    async def _cut(self, row: Row) -> Row:
        """A file that several clips are cut out of: fetched once, and each clip has a link to it for its own."""
        url = row["url"]
        first = file_key(url) not in self._whole_files
        if first:
            # Of a name that no other clip's file has, not even one that is this file: it will be deleted.
            fetching = self._fetched(row, clip_id_for(url), key_of(source_key(url), "to be cut"))
            self._whole_files[file_key(url)] = asyncio.create_task(fetching)
        whole = await asyncio.shield(self._whole_files[file_key(url)])
        own = made_name("raw", row["clip_id"], source_key(url), PurePosixPath(whole["raw_path"]).suffix)
        await asyncio.to_thread(self._link, whole["raw_path"], own)
        return {**whole, "raw_path": own} if first else {**whole, "raw_path": own, "download_attempts": 0}

    def _link(self, name: str, own: str) -> None:
        with self._root.reading(name) as source, self._root.writing(own) as path:
            try:
                os.link(source, path)
            except OSError:  # a file system without links, or another one
                shutil.copyfile(source, path)

    async def _clip(self, row: Row) -> Row:
        """A file that is a clip: one that a killed run left, or fetched."""
        key = source_key(row["url"])
        if row["kind"] == "youtube":
            key = key_of(key, row["time_start_seconds"], row["time_end_seconds"])
        if row["committed_at"] is None and (name := self._root.find_made("raw", row["clip_id"], key)):
            size, sha256 = await asyncio.to_thread(_sha256, self._root, name)
            return {"raw_path": name, "raw_bytes": size, "raw_sha256": sha256, "download_attempts": 0}
        return await self._fetched(row, row["clip_id"], key)

    async def _fetched(self, row: Row, clip_id: str, key: str) -> Row:
        url, kind = row["url"], row["kind"]
        suffix = PurePosixPath(urlsplit(url).path).suffix.lower()
        suffix = suffix if suffix in VIDEO_SUFFIXES else ".video"
        span = row["time_start_seconds"], row["time_end_seconds"]
        name, path = made_name("raw", clip_id, key, suffix), self._root.work / f"raw/{clip_id}.{key}{suffix}"
        async with self._turns["youtube" if kind == "youtube" else "video"]:  # its time begins with its turn
            if kind == "youtube":
                fetched = await fetch_youtube(url, path, time_span_seconds=span)
            else:
                fetched = await fetch(url, path, session=self._session)
        os.rename(path, self._root.work / name)
        await asyncio.to_thread(self._root.publish, name)
        return {
            "raw_path": name,
            "raw_bytes": fetched.num_bytes,
            "raw_sha256": fetched.sha256,
            "http_status": fetched.http_status,
            "download_attempts": fetched.attempts,
        }

    async def archive(self, row: Row, annotations: Mapping[str, Row], *, keep: bool) -> AsyncGenerator[Row]:
        """Rows of an archive's members, in its order; a failed one for itself if it is damaged or can't be had."""
        url, source_url, root = row["url"], row["source_url"], self._root
        itself = new_row(clip_id=row["clip_id"], source_url=source_url)
        started_at, started = datetime.now(UTC), time.perf_counter()
        try:
            members = read_archive(
                url,
                root.work,
                session=self._session,
                skip=frozenset(row["skip_members"] or ()),
                annotated=annotations.keys(),
                max_clips=row["max_clips"],
                keep=keep,
                afresh=row["status"] == FAILED,
            )
            for number in itertools.count():
                with counted(root, f"{row['clip_id']}.{number}.download"):  # a death counts for the member it was at
                    member = await anext(members, None)
                if member is None:
                    break
                clip = new_row(source_url=source_url, download_started_at=started_at)
                if isinstance(member, Member):
                    name = f"raw/{member.path.name}"
                    await asyncio.to_thread(root.publish, name)
                    clip.update(clip_id=member.clip_id, archive_member=member.name, raw_path=name)
                    clip.update(raw_bytes=member.num_bytes, raw_sha256=member.sha256)
                else:
                    clip_id = clip_id_for(url, member.member, annotated=annotations)
                    clip.update(clip_id=clip_id, archive_member=member.member, **failure(root, "download", member))
                clip.update(_annotation(clip["clip_id"], annotations))
                # The time since the last member: what this one made the pipeline wait.
                clip["download_seconds"] = time.perf_counter() - started
                started_at, started = datetime.now(UTC), time.perf_counter()
                yield clip
            if (root.work / index_name(url)).exists():  # it was read to its end
                await asyncio.to_thread(root.publish, index_name(url))
        except Exception as error:
            root.check_space(error)
            yield itself | failure(root, "download", error)
        else:
            if row["status"] == FAILED:
                yield itself | {"status": SUPERSEDED}


def _sha256(root: Root, name: str) -> tuple[int, str]:
    with root.reading(name) as path, path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _annotation(clip_id: str, annotations: Mapping[str, Row]) -> Row:
    if clip_id in annotations:
        return {name: annotations[clip_id][name] for name in SOURCE_SCHEMA.names if name in COLUMNS}
    parsed = parse_kinetics_name(clip_id)
    return dict(zip(("youtube_id", "time_start_seconds", "time_end_seconds"), parsed, strict=True)) if parsed else {}


def download_rows(
    rows: list[Row], root: Root, annotations: Mapping[str, Row], *, allow_private_hosts: bool, keep: bool, at_once: int
) -> Iterator[Row]:
    """The rows of some files and archives, each as soon as it and those before it are there."""

    async def found() -> AsyncGenerator[Row]:
        async with client_session(allow_private_hosts=allow_private_hosts) as session:
            downloads = Downloads(root, session, at_once)
            async with contextlib.aclosing(downloads.files([row for row in rows if row["kind"] != "archive"])) as files:
                async for row in files:
                    yield row
            for row in rows:
                if row["kind"] == "archive":
                    async with contextlib.aclosing(downloads.archive(row, annotations, keep=keep)) as members:
                        async for clip in members:
                            yield clip

    return from_async(found, at_most=at_once)


def from_async(items: Callable[[], AsyncGenerator[T]], *, at_most: int) -> Iterator[T]:
    """The items of an async generator, whose event loop runs on in a thread of its own while nobody asks for them.

    Args:
        items: Makes the generator.
        at_most: Items that wait to be asked for; then the generator pauses.
    """
    waiting: queue.Queue[T | _End] = queue.Queue(at_most)
    cancel: Future[Callable[[], object]] = Future()
    left = threading.Event()
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    runner.get_loop()  # fails here, not in the thread: too many open files, say

    def put(item: T | _End) -> None:
        while not left.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put(item, timeout=1.0)
                return

    async def pump() -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        cancel.set_result(lambda: loop.call_soon_threadsafe(task.cancel))
        async with contextlib.aclosing(items()) as found:
            async for item in found:
                await asyncio.to_thread(put, item)

    def work() -> None:
        end = _End()
        try:
            with runner:
                runner.run(pump())
        except BaseException as error:
            end = _End(error)
        put(end)

    thread = threading.Thread(target=work, name="kdepth-downloads", daemon=True)
    thread.start()
    try:
        while not isinstance(item := waiting.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        left.set()
        with contextlib.suppress(RuntimeError):  # the loop is closed: all was there
            cancel.result()()
        thread.join()


@dataclass(frozen=True, slots=True)
class _End:
    """After the last item: the error that ended them, if there was one."""

    error: BaseException | None = None


# --- transcode --------------------------------------------------------------------------------------------------------


def transcode_row(row: Row, root: Root, *, height: int, **limits: Any) -> Row:
    """Transcode a clip that was downloaded; `limits` are those of `transcode_file`."""
    if row["status"] is None and row["raw_path"] and not row["video_path"]:
        row = run_stage(row, "transcode", root, lambda: _transcoded(row, root, height, limits))
    return row


def _transcoded(row: Row, root: Root, height: int, limits: Mapping[str, Any]) -> Row:
    cut = row["cut_start_seconds"], row["cut_end_seconds"]
    key = key_of(row["raw_sha256"], height, *cut, encoding_of())  # what a killed run encoded in another way is not used
    if name := root.find_made("360p", row["clip_id"], key):  # of a run that was killed before it could commit the row
        with root.reading(name) as path, contextlib.suppress(DamagedMediaError):  # a damaged one is made anew
            return _video_columns(name, path, video_info(path))
    name = made_name("360p", row["clip_id"], key, ".mp4")
    with root.reading(row["raw_path"]) as source, root.writing(name) as path:
        info = transcode_file(
            source, path, height=height, threads=1, start_seconds=cut[0], end_seconds=cut[1], **limits
        )
        return _video_columns(name, path, info)


def _video_columns(name: str, path: Path, info: VideoInfo) -> Row:
    columns = {column: getattr(info, column) for column in VIDEO_COLUMNS}
    return {"video_path": name, "video_bytes": path.stat().st_size, **columns}
