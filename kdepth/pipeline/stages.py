"""The pipeline's verbs over Ray Data: one row a clip, streaming, a failure is a row.

Each verb maps what `workers` and `clip_depth` do to one clip over the rows.
"""

from __future__ import annotations

import gc
import math
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from kdepth.models.base import DepthKind
from kdepth.models.load import load_model, model_identity
from kdepth.pipeline.batches import SharedModel
from kdepth.pipeline.clip_depth import (
    MAX_ASPECT_RATIO,
    MAX_CLIP_PIXELS,
    estimate_clip_depth,
    frame_selector,
    frames_name,
)
from kdepth.pipeline.cluster import can_grow, cluster_size, num_nodes, start_ray
from kdepth.pipeline.deaths import num_deaths
from kdepth.pipeline.pending import PLAN_SCHEMA, plan_all
from kdepth.pipeline.workers import Row, download_rows, run_stage, transcode_row
from kdepth.schema import OK, file_key, rows_to_table
from kdepth.storage import Root, key_of, made_name
from kdepth.video.ffmpeg import MAX_PIXELS
from kdepth.video.transcode import check_height

# Ray Data fuses neighbouring stages that ask for the same: on a machine without GPU, transcode and depth become one
# worker process a core. What they leave of a core is for downloads, which wait more than they compute.
_STAGE_CPUS = 0.9
_DOWNLOAD_CPUS = 0.1
_MOST_ACTORS_A_GPU = 8
# Clips that a GPU's worker has at once: while the network computes for one, others are decoded and encoded.
_CLIPS_AT_ONCE_ON_GPU = 8
_MAX_DOWNLOAD_TASKS = 1000  # each costs the driver a few milliseconds before anything starts
# Ray Data takes 12 ms of CPU time for a block of one clip, and on two cores 20 to 44 ms until the next; in blocks of 16
# it is 3 ms a clip. In a list that is this long for a core, 16 clips are a five-hundredth of the work; in others each
# clip is a block, and leaves for the driver as soon as it is done.
_LONG_LIST_CLIPS_A_CPU = 8000
_ROWS_A_BLOCK = 16
# Keys in a Ray dataset's context: the Ray node that it was made for, and whether it can't begin without a GPU.
SESSION_KEY, NEEDS_GPU_KEY = "kdepth.session", "kdepth.needs_gpu"
NOTE_KEY = "kdepth.note"  # what the progress line says at the start
KEEP_RAW_KEY = "kdepth.keep_raw"
_TRANSCODED_KEY = "kdepth.transcoded"  # whether all clips are, by the plan
_NUM_CLIPS_KEY = "kdepth.num_clips"  # infinite: what archives hold is not known


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
    # Or each `take` would look through all chunks, and copy the plan's record.
    sources = sources.combine_chunks().replace_schema_metadata(None)
    annotations = sources.filter(pc.equal(sources["kind"], "annotation"))
    chunks, is_long = _chunks(sources, batch_size)
    is_transcoded = sources.filter(pc.not_equal(sources["kind"], "annotation"))["video_path"].null_count == 0
    has_archives = pc.any(pc.equal(sources["kind"], "archive")).as_py()
    num_clips = math.inf if has_archives else sum(map(len, chunks))
    # In Ray's memory, which counts as the driver's, without the columns in which nothing is known.
    sources = sources.select([name for name in sources.column_names if sources[name].null_count < sources.num_rows])
    blocks = [sources.take(chunk) for chunk in chunks] or [sources.schema.empty_table()]
    # Not `from_arrow`, which has a task look at each block first, and waits until a worker could start for it.
    clips = ray.data.from_blocks(blocks)
    # In bytes. 1: each row leaves its stage at once, as a block of its own. None: each block stays as it is. Either way
    # a task that is run again, because its process died, gives the same rows in the same blocks, as Ray expects.
    clips.context.target_max_block_size = None if is_long else 1
    clips.context.set_config(_TRANSCODED_KEY, is_transcoded)
    clips.context.set_config(_NUM_CLIPS_KEY, num_clips)
    clips.context.set_config(SESSION_KEY, ray.get_runtime_context().get_node_id())
    return clips.map_batches(
        _download_block,
        fn_kwargs={
            "root": Root(root),
            "annotations": annotations,
            "allow_private_hosts": allow_private_hosts,
            "keep": keep_archives and Root(root).is_local,
            "at_once": batch_size,
            "rows_a_block": _ROWS_A_BLOCK if is_long else 1,
        },
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=_DOWNLOAD_CPUS,
        compute=ray.data.TaskPoolStrategy(size=max(1, min(concurrency, len(blocks)))),
    )


def _chunks(sources: pa.Table, batch_size: int) -> tuple[list[list[int]], bool]:
    """Row numbers for each download task, in the order of the list; and whether blocks are to hold several clips.

    Clips that are cut out of one file are one task's, which fetches it once.
    """
    kinds = sources["kind"].to_pylist()
    archives = [[i] for i, kind in enumerate(kinds) if kind == "archive"]
    files = [i for i, kind in enumerate(kinds) if kind not in ("archive", "annotation")]
    is_long = not archives and len(files) >= _LONG_LIST_CLIPS_A_CPU * max(1, cluster_size()[0])
    size = _ROWS_A_BLOCK if is_long else max(batch_size, math.ceil(len(files) / _MAX_DOWNLOAD_TASKS))
    ends = sources["cut_end_seconds"].to_pylist()
    groups: dict[object, list[int]] = {}
    for i in files:
        groups.setdefault(i if ends[i] is None else file_key(sources["url"][i].as_py()), []).append(i)
    chunks: list[list[int]] = [[]]
    for group in groups.values():
        if chunks[-1] and len(chunks[-1]) + len(group) > size:
            chunks.append([])
        chunks[-1] += group
    return sorted([chunk for chunk in chunks if chunk] + archives), is_long


def transcode(
    clips: ray.data.Dataset,
    root: str | Path,
    *,
    height: int = 360,
    keep_raw: bool = True,
    timeout_seconds: float | None = None,
    max_duration_seconds: float = 600.0,
    max_pixels: int = MAX_PIXELS,
    max_fps: float = 120.0,
) -> ray.data.Dataset:
    """Transcode every downloaded clip to ``<root>/360p``. Lazy.

    Args:
        clips: From `download`.
        root: Folder of the dataset.
        height: The shorter side of the result in pixels, even, 32 to 2160.
        keep_raw: Keep what was downloaded; otherwise `write_lance` deletes it once the clip's row is committed.
        timeout_seconds, max_duration_seconds, max_pixels, max_fps: As for `transcode_file`.

    Raises:
        ValueError: `height` is not one of these.
    """
    check_height(height)
    clips.context.set_config(KEEP_RAW_KEY, keep_raw)
    if clips.context.get_config(_TRANSCODED_KEY, False):
        return clips  # Ray would take a tenth of a second for each, as a core beside a GPU's worker has one at a time
    return clips.map_batches(
        _transcode_block,
        fn_kwargs={
            "root": Root(root),
            "height": height,
            "timeout_seconds": timeout_seconds,
            "max_duration_seconds": max_duration_seconds,
            "max_pixels": max_pixels,
            "max_fps": max_fps,
        },
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
    max_aspect_ratio: float = MAX_ASPECT_RATIO,
    max_clip_pixels: float = MAX_CLIP_PIXELS,
    concurrency: int | None = None,
) -> ray.data.Dataset:
    """Estimate depth of every transcoded clip into ``<root>/depth``. Lazy.

    Args:
        clips: From `transcode`.
        root: Folder of the dataset.
        model: As for `load_model`.
        frames: As for `estimate_clip_depth`.
        device: ``"auto"``: the GPUs if the cluster has any now; ``"cpu"``; or ``"cuda"``, also for a cluster whose GPUs
            are still to come.
        depth_kind: As for `load_model`: a DPT checkpoint needs it.
        max_aspect_ratio, max_clip_pixels: As for `estimate_clip_depth`.
        concurrency: Actors, each with the model loaded once; more than GPUs share them. Default: as many as the cluster
            has room for, also when it grows: one a GPU, for ``small`` one for every two cores (up to 8 a GPU); without
            GPU one a core for ``small``, and for larger networks one a node that uses all its cores; never more than
            clips.

    Raises:
        ValueError: `frames` is not one of the allowed values, `depth_kind` can't be, or there is no such `device`.
        DepthError: The model can't be had, or needs `depth_kind`.
    """
    frames = frames_name(frames)
    frame_selector(frames, 1)
    identity = model_identity(model, depth_kind=depth_kind)  # fails here, in the notebook, not in a worker
    if model not in ("small", "depth-pro") and Path(model).expanduser().exists():
        # Workers have working directories of their own.
        model = str(Path(model).expanduser().absolute())
    cpus, gpus = cluster_size()
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not gpus and not can_grow()):
        raise ValueError(f'device={device!r}: must be "auto", "cpu" or, in a cluster with {gpus} GPUs, "cuda"')
    gpus = {"auto": gpus, "cpu": 0, "cuda": max(1, gpus)}[device]
    clips.context.set_config(NEEDS_GPU_KEY, gpus > 0)
    if gpus and re.search("depth.?pro", identity, re.IGNORECASE):
        clips.context.set_config(
            NOTE_KEY, "Depth Pro is compiled for the GPU first: its first frames take half a minute"
        )
    # Ray Data spreads a pool's actors over the nodes.
    most = clips.context.get_config(_NUM_CLIPS_KEY, math.inf)
    nodes = max(1, num_nodes())
    size, share = _actors(max(1, cpus), gpus, concurrency, small=model == "small", nodes=nodes, most=max(1, most))
    threads = max(1, cpus // max(size, nodes))
    at_once = _CLIPS_AT_ONCE_ON_GPU if gpus and model != "small" else 1
    grows = concurrency is None and (gpus > 0 or model == "small")
    # Never smaller: an actor that waits for downloads keeps its model, which takes up to a minute to load and compile.
    pool = {"min_size": size, "max_size": None} if grows else {"size": size}
    limits = {"max_aspect_ratio": max_aspect_ratio, "max_clip_pixels": max_clip_pixels}
    # Ray hands an actor its next clip early, which saves 0.2 s a clip. Of a few clips the first actor would have all.
    return clips.map_batches(
        _DepthStage,
        fn_constructor_args=(Root(root), model, frames, device, depth_kind, identity, threads, at_once, limits),
        batch_size=1 if gpus else None,  # with GPUs Ray Data insists on a number; these are clips
        batch_format="pyarrow",
        num_cpus=_STAGE_CPUS,
        num_gpus=share,
        compute=ray.data.ActorPoolStrategy(
            **pool,
            max_tasks_in_flight_per_actor=1 if at_once == 1 and most <= 2 * size else None,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=at_once > 1,
        ),
    )


def _actors(
    cpus: int, gpus: int, concurrency: int | None, *, small: bool, nodes: int = 1, most: float = math.inf
) -> tuple[int, float | None]:
    """How many depth actors, at most `most` unless `concurrency` says it, and how much of a GPU each gets."""
    if not gpus:
        return concurrency or int(min(cpus if small else nodes, most)), None
    # With `small` a GPU is ten times as fast as one process decodes and encodes for it.
    size = concurrency or int(min(gpus * (min(max(1, cpus // gpus // 2), _MOST_ACTORS_A_GPU) if small else 1), most))
    # Ray counts ten-thousandths of a GPU: rounded up, they would not all fit.
    return size, math.floor(1e4 / math.ceil(size / gpus)) / 1e4


# --- what Ray runs in the workers -------------------------------------------------------------------------------------


def _blocks(rows: Iterator[Row], size: int) -> Iterator[pa.Table]:
    """Rows as blocks of so many: a table of 16 rows costs 0.3 ms, 16 tables of one row cost 6 ms and Ray Data more."""
    yield rows_to_table(list(islice(rows, size)))  # if there is no row, Ray Data still wants the schema
    while some := list(islice(rows, size)):
        yield rows_to_table(some)


def _download_block(
    block: pa.Table, *, root: Root, annotations: pa.Table, rows_a_block: int, **options: Any
) -> Iterator[pa.Table]:
    rows = [dict.fromkeys(PLAN_SCHEMA.names) | row for row in block.to_pylist()]
    has_archive = any(row["kind"] == "archive" for row in rows)
    by_clip_id = {row["clip_id"]: row for row in annotations.to_pylist()} if has_archive else {}
    yield from _blocks(download_rows(rows, root, by_clip_id, **options), rows_a_block)


def _transcode_block(block: pa.Table, *, root: Root, **options: Any) -> Iterator[pa.Table]:
    rows = (transcode_row(row, root, **options) for row in block.to_pylist())
    yield from _blocks(rows, block.num_rows)


class _DepthStage:
    """The depth actor: loads the model once, then takes clips, on a GPU several at once, each in a thread."""

    def __init__(
        self,
        root: Root,
        model: str,
        frames: str,
        device: str,
        depth_kind: DepthKind | None,
        identity: str,
        threads: int,
        at_once: int,
        limits: dict[str, float],
    ) -> None:
        self._root, self._frames, self._limits = root, frames, limits
        # Importing torch makes 230,000 objects. Looking for garbage among them is a fifth of the 1.5 s that this takes.
        gc.disable()
        try:
            self._model = load_model(model, device=device, depth_kind=depth_kind, threads=threads)
        finally:
            gc.enable()
        if self._model.identity != identity:  # a resumed run would take its own clips for another model's
            raise RuntimeError(f"the worker loaded {self._model.identity}, the driver planned for {identity}")
        self._shared = SharedModel(self._model, threads) if at_once > 1 else None
        self._at_once, self._free = at_once, threading.Semaphore(at_once)
        self._turn = threading.Lock()

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        yield from _blocks(map(self._estimate, block.to_pylist()), block.num_rows)

    @contextmanager
    def _place(self, row: Row) -> Iterator[None]:
        """Room for one clip; for one that a process has died on, all of it, so that it takes no other clip along."""
        places = self._at_once if num_deaths(self._root, f"{row['clip_id']}.depth") else 1
        with self._turn:
            for _ in range(places):
                self._free.acquire()
        try:
            yield
        finally:
            self._free.release(places)

    def _estimate(self, row: Row) -> Row:
        if row["status"] is None and row["video_path"]:
            row.update(depth_model=self._model.identity, depth_frames=self._frames, node=socket.gethostname())
            with self._place(row):
                row = run_stage(row, "depth", self._root, lambda: self._estimate_clip(row))
        return row

    def _estimate_clip(self, row: Row) -> Row:
        key = key_of(row["video_path"], self._model.identity, self._frames, self._model.kind)
        name = made_name("depth", row["clip_id"], key, ".mkv")
        with self._root.reading(row["video_path"]) as video, self._root.writing(name) as path:
            found = estimate_clip_depth(
                video,
                path,
                self._model,
                frames=self._frames,
                num_frames=row["num_frames"],
                shared=self._shared,
                **self._limits,
            )
        return {**found, "depth_path": name, "status": OK}
