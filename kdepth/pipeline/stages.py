"""The pipeline's verbs over Ray Data: one row a clip, streaming, a failure is a row.

Each verb maps a pure function of one clip over the rows, and hands on each row as soon as it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from kdepth.downloads.archive import Member, index_name, read_archive
from kdepth.downloads.http import fetch
from kdepth.downloads.network import client_session
from kdepth.downloads.youtube import fetch_youtube
from kdepth.errors import DamagedMediaError, KdepthError
from kdepth.models.load import DepthKind, load_model, model_identity
from kdepth.pipeline.attempts import counted, repeated
from kdepth.pipeline.clip_depth import estimate_clip_depth, frame_selector, frames_name
from kdepth.pipeline.pending import PLAN_SCHEMA, VIDEO_COLUMNS, plan_all
from kdepth.pipeline.run import start_ray
from kdepth.pipeline.traffic import published
from kdepth.schema import (
    CLIP_SCHEMA,
    COLUMNS,
    FAILED,
    OK,
    SOURCE_SCHEMA,
    SUPERSEDED,
    VIDEO_SUFFIXES,
    clip_id_for,
    new_row,
    parse_kinetics_name,
    rows_to_table,
)
from kdepth.storage import Root
from kdepth.video.transcode import VideoInfo, check_height, has_height, transcode_file, video_info

if TYPE_CHECKING:
    import aiohttp

# Ray Data fuses neighbouring stages that ask for the same: on a machine without GPU, transcode and depth become one
# worker process a core. What they leave of a core is for downloads, which wait more than they compute.
_STAGE_CPUS = 0.9
_DOWNLOAD_CPUS = 0.1
_MOST_ACTORS_A_GPU = 8
_MAX_DOWNLOAD_TASKS = 1000  # each costs the driver a few milliseconds before anything starts
# What is done faster than this goes on together: Ray Data takes some 20 ms for each block, and a block's clips are one
# worker's.
_BLOCK_SECONDS = 0.5
_MAX_BLOCK_CLIPS = 16
_YOUTUBE_AT_ONCE = 2


def download(
    sources: pa.Table,
    root: str | Path,
    *,
    allow_private_hosts: bool = False,
    keep_archives: bool = True,
    concurrency: int = 4,
    batch_size: int = 16,
) -> ray.data.Dataset:
    """Fetch every source into ``<root>/raw``. Lazy: nothing happens before `write_lance` or another consumer.

    Args:
        sources: From `read_sources`, or what `pending` left of it.
        root: Folder of the dataset, shared by all nodes; or a URI such as ``s3://bucket/kinetics``, for which PyArrow
            and Lance take credentials and endpoint from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``).
        allow_private_hosts: Connect to loopback, private and link-local addresses too.
        keep_archives: Keep an archive when it was read to its end; before an object store none is kept.
        concurrency: Tasks at once; each reads one archive, or `batch_size` files.
        batch_size: Files that a task fetches at once (2 from YouTube, as each is a process). With long lists a task has
            more of them, so that there are 1,000 tasks.

    Returns:
        One row a clip with `CLIP_SCHEMA`; rows that could not be fetched have status ``failed``.
    """
    start_ray()
    if "skip_members" not in sources.column_names:
        sources = plan_all(sources)
    # Or to take rows would look through all chunks, a thousand times, and copy what `write_lance` is told beside them.
    sources = sources.combine_chunks().replace_schema_metadata(None)
    kinds = sources["kind"].to_pylist()
    annotations = sources.filter(pc.equal(sources["kind"], "annotation"))
    archives = [i for i, kind in enumerate(kinds) if kind == "archive"]
    files = [i for i, kind in enumerate(kinds) if kind not in ("archive", "annotation")]
    size = max(batch_size, math.ceil(len(files) / _MAX_DOWNLOAD_TASKS))
    chunks = [files[i : i + size] for i in range(0, len(files), size)] + [[i] for i in archives]
    # In the order of the list, so that a run is the same each time.
    chunks.sort(key=lambda chunk: chunk[0])
    # Long lists in larger portions; in short ones each clip is for whoever is free.
    limits = [sources["max_clips"][i].as_py() for i in archives]
    num_clips = len(files) + sum(filter(None, limits)) + (annotations.num_rows if None in limits else 0)
    cpus = max(1.0, ray.cluster_resources().get("CPU", 1.0))
    at_most = min(max(1, int(num_clips / (32 * cpus))), _MAX_BLOCK_CLIPS)
    # In Ray's memory, which counts as the driver's, without the columns in which nothing is known.
    sources = sources.select([name for name in sources.column_names if sources[name].null_count < sources.num_rows])
    blocks = [sources.take(chunk) for chunk in chunks] or [sources.schema.empty_table()]
    # Not `from_arrow`, which has a task look at each block first, and waits until a worker could start for it.
    return ray.data.from_blocks(blocks).map_batches(
        _download_block,
        fn_kwargs={
            "root": Root(root),
            "annotations": annotations,
            "allow_private_hosts": allow_private_hosts,
            "keep_archives": keep_archives,
            "batch_size": batch_size,
            "at_most": at_most,
        },
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=_DOWNLOAD_CPUS,
        compute=ray.data.TaskPoolStrategy(size=max(1, min(concurrency, len(blocks)))),
    )


def transcode(
    clips: ray.data.Dataset, root: str | Path, *, height: int = 360, keep_raw: bool = True
) -> ray.data.Dataset:
    """Transcode every downloaded clip to ``<root>/360p``. Lazy.

    Args:
        clips: From `download`.
        root: Folder of the dataset.
        height: The shorter side of the result in pixels, even, 32 to 2160.
        keep_raw: Keep what was downloaded; otherwise it is deleted once transcoded, or found to be no video.

    Raises:
        ValueError: `height` is not one of these.
    """
    check_height(height)
    return clips.map_batches(
        _transcode_block,
        fn_kwargs={"root": Root(root), "height": height, "keep_raw": keep_raw},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=_STAGE_CPUS,
    )


def estimate_depth(
    clips: ray.data.Dataset,
    root: str | Path,
    *,
    model: str = "small",
    frames: str | float = "all",
    device: str = "auto",
    depth_kind: DepthKind | None = None,
    concurrency: int | None = None,
) -> ray.data.Dataset:
    """Estimate depth of every transcoded clip into ``<root>/depth``. Lazy.

    Args:
        clips: From `transcode`.
        root: Folder of the dataset.
        model: As for `load_model`.
        frames: As for `estimate_clip_depth`.
        device: ``"auto"``: the GPUs if the cluster has any; else ``"cpu"`` or ``"cuda"``.
        depth_kind: As for `load_model`: a DPT checkpoint needs it.
        concurrency: Actors, each with the model loaded once; more than GPUs share them. Default: one a GPU, for
            ``small`` one for every two cores (up to 8 a GPU); without GPU one a core for ``small``, and for larger
            networks one that uses all cores.

    Raises:
        ValueError: `frames` is not one of the allowed values, `depth_kind` can't be, or there is no such `device`.
        DepthError: The model can't be had, or needs `depth_kind`.
    """
    frames = frames_name(frames)
    frame_selector(frames, 1)
    identity = model_identity(model, depth_kind=depth_kind)  # fails here, in the notebook, not in a worker
    if model != "small" and Path(model).expanduser().exists():  # workers have working directories of their own
        model = str(Path(model).expanduser().absolute())
    resources = ray.cluster_resources()
    gpus = 0 if device == "cpu" else int(resources.get("GPU", 0))
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not gpus):
        raise ValueError(f'device={device!r}: must be "auto", "cpu" or, in a cluster with {gpus} GPUs, "cuda"')
    cpus = max(1, int(resources.get("CPU", 1)))
    size, share = _actors(cpus, gpus, concurrency, small=model == "small")
    threads = max(1, cpus // size)
    return clips.map_batches(
        _DepthStage,
        fn_constructor_args=(Root(root), model, frames, device, depth_kind, identity, threads),
        batch_size=1 if gpus else None,  # with GPUs Ray Data insists on a number; these are clips
        batch_format="pyarrow",
        num_cpus=_STAGE_CPUS,
        num_gpus=share,
        compute=ray.data.ActorPoolStrategy(size=size),
    )


def _actors(cpus: int, gpus: int, concurrency: int | None, *, small: bool) -> tuple[int, float | None]:
    """How many depth actors, and how much of a GPU each gets."""
    if not gpus:
        return concurrency or (cpus if small else 1), None
    # With `small` a GPU is ten times as fast as one process decodes and encodes for it.
    size = concurrency or gpus * (min(max(1, cpus // gpus // 2), _MOST_ACTORS_A_GPU) if small else 1)
    # Ray counts ten-thousandths of a GPU: rounded up, they would not all fit.
    return size, math.floor(1e4 / math.ceil(size / gpus)) / 1e4


# --- what runs in the workers ---------------------------------------------------------------------------------------


def _run_stage(row: dict[str, Any], stage: str, root: Root, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """One stage of one clip: its columns and times go into the row; an error of kdepth's makes it a failed row."""
    row[f"{stage}_started_at"] = datetime.now(UTC)
    started = time.perf_counter()
    try:
        with counted(row["clip_id"], stage):
            row.update(work())
    except (KdepthError, OSError) as error:
        root.check_space(error)
        if not isinstance(error, KdepthError):
            raise
        row.update(_failure(stage, error))
    row[f"{stage}_seconds"] = time.perf_counter() - started
    return row


def _failure(stage: str, error: KdepthError) -> dict[str, Any]:
    failure: dict[str, Any] = {
        "status": FAILED,
        "failed_stage": stage,
        "error_type": type(error).__name__,
        "error_message": str(error)[:2000].encode("utf-8", "replace").decode(),
    }
    if stage == "download":
        failure["http_status"] = getattr(error, "http_status", None)
    return failure


def _blocks(stage: str, rows: Iterable[dict[str, Any]]) -> Iterator[pa.Table]:
    """A row that took its time is a block of its own, so that the next stage can start on it."""
    return map(rows_to_table, repeated(stage, _by_time(rows)))


def _by_time(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    done: list[dict[str, Any]] = []
    since = time.monotonic()
    for row in rows:
        done.append(row)
        if time.monotonic() - since > _BLOCK_SECONDS:
            yield done
            done, since = [], time.monotonic()
    if done:
        yield done


def _download_block(
    block: pa.Table,
    *,
    root: Root,
    annotations: pa.Table,
    allow_private_hosts: bool,
    keep_archives: bool,
    batch_size: int,
    at_most: int,
) -> Iterator[pa.Table]:
    rows = [dict.fromkeys(PLAN_SCHEMA.names) | row for row in block.to_pylist()]
    by_clip_id: dict[str, dict[str, Any]] = {}
    if any(row["kind"] == "archive" for row in rows):
        by_clip_id = {row["clip_id"]: row for row in annotations.to_pylist()}
    empty = True
    keep = keep_archives and root.is_local
    done = _drain(_download_rows(rows, root, by_clip_id, allow_private_hosts, keep, batch_size), at_most)
    for table in map(rows_to_table, repeated("download", done)):
        empty = False
        yield table
    if empty:  # Ray Data wants the schema of what there is none of
        yield CLIP_SCHEMA.empty_table()


def _drain(rows: AsyncIterator[dict[str, Any]], at_most: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of an async generator, for Ray Data's generators, which are not async: what is there, at once."""
    coming: asyncio.Task[dict[str, Any]] | None = None

    async def arrived() -> list[dict[str, Any]]:
        nonlocal coming
        found: list[dict[str, Any]] = []
        while len(found) < at_most:
            coming = coming or asyncio.ensure_future(_next(rows))
            await asyncio.wait([coming], timeout=_BLOCK_SECONDS / at_most if found else None)
            if not coming.done() or (found and coming.exception()):  # raised at the next call, when these are on
                break
            if isinstance(coming.exception(), StopAsyncIteration):
                break
            found.append(coming.result())
            coming = None
        return found

    with asyncio.Runner() as runner:
        while found := runner.run(arrived()):
            yield found


async def _next(rows: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    return await anext(rows)


async def _download_rows(
    rows: list[dict[str, Any]],
    root: Root,
    annotations: Mapping[str, Mapping[str, Any]],
    allow_private_hosts: bool,
    keep_archives: bool,
    batch_size: int,
) -> AsyncIterator[dict[str, Any]]:
    async with client_session(allow_private_hosts=allow_private_hosts) as session, published():
        turns = {"youtube": asyncio.Semaphore(_YOUTUBE_AT_ONCE)}
        files = asyncio.Semaphore(batch_size)

        async def download_file(row: dict[str, Any]) -> dict[str, Any]:
            async with turns.get(row["kind"], files):  # its time begins with its turn
                return await _download_file(row, root, session)

        for finished in asyncio.as_completed([download_file(row) for row in rows if row["kind"] != "archive"]):
            yield await finished
        for row in rows:
            if row["kind"] == "archive":
                async for clip in _download_archive(row, root, annotations, session, keep_archives):
                    yield clip


async def _download_file(row: dict[str, Any], root: Root, session: aiohttp.ClientSession) -> dict[str, Any]:
    if row["video_path"] or row["raw_path"]:
        return row
    url = row["url"]
    suffix = PurePosixPath(urlsplit(url).path).suffix.lower()
    name = f"raw/{row['clip_id']}{suffix if suffix in VIDEO_SUFFIXES else '.video'}"
    path = root.work / name
    if row["failed_stage"]:  # in an earlier run, on the bytes that are there
        root.delete(name)
        row["failed_stage"] = None
    row["download_started_at"] = datetime.now(UTC)
    started = time.perf_counter()
    try:
        size, expected, row["raw_bytes"] = root.size(name), row["raw_bytes"], None
        if size is not None and expected in (None, size):  # whole: of a run killed before its commit
            row.update(raw_bytes=size, raw_sha256=await asyncio.to_thread(_sha256, root, name), download_attempts=0)
        else:
            if row["kind"] == "youtube":
                span = row["time_start_seconds"], row["time_end_seconds"]
                fetched = await fetch_youtube(url, path, time_span_seconds=span)
            else:
                fetched = await fetch(url, path, session=session)
            row.update(raw_bytes=fetched.num_bytes, raw_sha256=fetched.sha256)
            row.update(http_status=fetched.http_status, download_attempts=fetched.attempts)
            await asyncio.to_thread(root.publish, name)
        row["raw_path"] = name
    except KdepthError as error:
        root.check_space(error)
        row.update(_failure("download", error))
    row["download_seconds"] = time.perf_counter() - started
    return row


def _sha256(root: Root, name: str) -> str:
    with root.reading(name) as path, path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _download_archive(
    row: dict[str, Any],
    root: Root,
    annotations: Mapping[str, Mapping[str, Any]],
    session: aiohttp.ClientSession,
    keep: bool,
) -> AsyncIterator[dict[str, Any]]:
    url, source_url = row["url"], row["source_url"]
    started_at, started = datetime.now(UTC), time.perf_counter()
    try:
        members = read_archive(
            url,
            root.work,
            session=session,
            skip=frozenset(row["skip_members"] or ()),
            max_clips=row["max_clips"],
            keep=keep,
            afresh=row["status"] == FAILED,
        )
        with counted(row["clip_id"], "download") as step:
            async for member in members:
                step()
                clip = new_row(source_url=source_url, download_started_at=started_at)
                if isinstance(member, Member):
                    clip.update(clip_id=member.clip_id, archive_member=member.name)
                    clip.update(raw_path=member.path.relative_to(root.work).as_posix())
                    await asyncio.to_thread(root.publish, clip["raw_path"])
                    clip.update(raw_bytes=member.num_bytes, raw_sha256=member.sha256)
                else:
                    clip.update(clip_id=clip_id_for(url, member.member), archive_member=member.member)
                    clip.update(_failure("download", member))
                clip.update(_annotation(clip["clip_id"], annotations))
                # The time since the last member: what this one made the pipeline wait.
                clip["download_seconds"] = time.perf_counter() - started
                started_at, started = datetime.now(UTC), time.perf_counter()
                yield clip
        if (root.work / index_name(url)).exists():  # it was read to its end
            await asyncio.to_thread(root.publish, index_name(url))
    except KdepthError as error:
        root.check_space(error)
        yield new_row(clip_id=row["clip_id"], source_url=source_url) | _failure("download", error)
    else:
        if row["status"] == FAILED:
            yield new_row(clip_id=row["clip_id"], source_url=source_url, status=SUPERSEDED)


def _annotation(clip_id: str, annotations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if clip_id in annotations:
        return {name: annotations[clip_id][name] for name in SOURCE_SCHEMA.names if name in COLUMNS}
    parsed = parse_kinetics_name(clip_id)
    return dict(zip(("youtube_id", "time_start_seconds", "time_end_seconds"), parsed, strict=True)) if parsed else {}


def _transcode_block(block: pa.Table, *, root: Root, height: int, keep_raw: bool) -> Iterator[pa.Table]:
    def transcoded(row: dict[str, Any]) -> dict[str, Any]:
        if row["status"] is None and row["raw_path"] and not row["video_path"]:
            row = _run_stage(row, "transcode", root, lambda: _transcode_clip(row, root, height))
        # What could not be transcoded is of no use either: another try begins with other bytes.
        if not keep_raw and row["raw_path"] and (row["status"] is None or row["failed_stage"] == "transcode"):
            root.delete(row["raw_path"])
            row["raw_path"] = None
        return row

    yield from _blocks("transcode", map(transcoded, block.to_pylist()))


def _transcode_clip(row: Mapping[str, Any], root: Root, height: int) -> dict[str, Any]:
    name = f"360p/{row['clip_id']}.mp4"
    if (num_bytes := root.size(name)) is not None:  # of a run killed before it could commit the row, or another height
        with contextlib.suppress(DamagedMediaError), root.reading(name) as path:
            info = video_info(path)
            if has_height(info.width, info.height, height):
                return _video_columns(name, num_bytes, info)
    with root.reading(row["raw_path"]) as source, root.writing(name) as path:
        info = transcode_file(source, path, height=height, threads=1)
        num_bytes = path.stat().st_size
    return _video_columns(name, num_bytes, info)


def _video_columns(name: str, num_bytes: int, info: VideoInfo) -> dict[str, Any]:
    return {"video_path": name, "video_bytes": num_bytes, **{name: getattr(info, name) for name in VIDEO_COLUMNS}}


class _DepthStage:
    """The depth actor: loads the model once, then takes clips."""

    def __init__(
        self,
        root: Root,
        model: str,
        frames: str,
        device: str,
        depth_kind: DepthKind | None,
        identity: str,
        threads: int,
    ) -> None:
        self._root, self._frames = root, frames
        self._model = load_model(model, device=device, depth_kind=depth_kind, threads=threads)
        if self._model.identity != identity:  # a resumed run would take its own clips for another model's
            raise RuntimeError(f"the worker loaded {self._model.identity}, the driver planned for {identity}")

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        yield from _blocks("depth", map(self._estimate, block.to_pylist()))

    def _estimate(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["status"] is None and row["video_path"]:
            row.update(depth_model=self._model.identity, depth_frames=self._frames, node=socket.gethostname())
            row = _run_stage(row, "depth", self._root, lambda: self._estimate_clip(row))
        return row

    def _estimate_clip(self, row: Mapping[str, Any]) -> dict[str, Any]:
        name = f"depth/{row['clip_id']}.mkv"
        with self._root.reading(row["video_path"]) as video, self._root.writing(name) as path:
            found = estimate_clip_depth(video, path, self._model, frames=self._frames, num_frames=row["num_frames"])
        return {**found, "depth_path": name, "status": OK}
