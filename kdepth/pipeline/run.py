"""Run the pipeline: the driver's loop that commits rows as clips finish, shows progress, and reports."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.exceptions import RayTaskError
from tqdm import tqdm

from kdepth.dataset.table import read_rows
from kdepth.dataset.writer import COMMIT_SECONDS, ClipWriter
from kdepth.errors import DatasetError, StorageError
from kdepth.pipeline.cluster import what_is_missing
from kdepth.pipeline.pending import PlanRecord
from kdepth.pipeline.report import RunReport
from kdepth.pipeline.stages import KEEP_RAW_KEY, NEEDS_GPU_KEY, NOTE_KEY, SESSION_KEY
from kdepth.schema import FAILED, OK, SUPERSEDED
from kdepth.storage import Root, source_key
from kdepth.video.ffmpeg import ffmpeg_version

_WAIT_SECONDS = 60.0  # without a row, before it is said what is waited for
_RATE_SECONDS = 30.0  # over which the rate of downloads is taken


def write_lance(clips: ray.data.Dataset, root: str | Path, *, sources: pa.Table | None = None) -> RunReport:
    """Run the pipeline, and commit each clip's row as it finishes, with one line of progress.

    Args:
        clips: From the last verb.
        root: Folder of the dataset.
        sources: What `download` was given: lets the progress line know the total, the report what is missing, and the
            clips that are there already their new labels.

    Returns:
        What was done. Rows that were committed stay, whatever stops the run.

    Raises:
        DatasetError: The dataset does not hold what the stages emitted; or Ray was started anew since `pending`.
        StorageError: The disk is full.
    """
    session = clips.context.get_config(SESSION_KEY)
    if not ray.is_initialized() or session not in (None, ray.get_runtime_context().get_node_id()):
        raise DatasetError("Ray was stopped or started anew since these clips were planned: run again from `pending`")
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    with Root(root).in_use(run_id):
        run = _Run(run_id, root, sources, keep_raw=clips.context.get_config(KEEP_RAW_KEY, True))
        if sources is None or sources.num_rows:
            needs_gpu = bool(clips.context.get_config(NEEDS_GPU_KEY))
            with _Progress(run, needs_gpu) as progress, _committing(run.writer):
                if note := clips.context.get_config(NOTE_KEY):
                    progress.say(note)
                for row in _stream_rows(clips):
                    progress.update(run.take(row), row)
        return run.finish()


class _Run:
    """What one run does with the rows that the stages give.

    Args:
        run_id: In the rows that it commits.
        root: Folder of the dataset.
        sources: The plan; None if it is not known.
        keep_raw: Keep what this run downloaded, once the clip's row is committed.
    """

    def __init__(self, run_id: str, root: str | Path, sources: pa.Table | None, *, keep_raw: bool) -> None:
        self.started = time.perf_counter()
        self._keep_raw = keep_raw
        self.report = RunReport(run_id)
        self._parameters: dict[str, Any] = {"kdepth": version("kdepth"), "ffmpeg": ffmpeg_version()}
        self.writer = ClipWriter(root, run_id, self._parameters)
        self._failed: dict[str, tuple[str, str]] = {}  # clip_id -> stage, error class
        self._tried: dict[str, list[str]] = {}
        columns = ["clip_id", "tried_sources"]
        for row in read_rows(root, columns, f"status = '{FAILED}'").to_pylist():
            self._tried[row["clip_id"]] = row["tried_sources"] or []
        self._sources = sources if sources is not None else pa.table({"clip_id": [], "kind": []})
        self._is_plan = "why" in self._sources.column_names
        self._record = PlanRecord.of(self._sources)
        self._parameters |= self._record.asked
        self.report.num_stay_failed = self._record.num_stay_failed
        kinds = Counter(self._sources["kind"].to_pylist())
        self.report.num_sources = kinds.total() - kinds["annotation"]
        self._annotated: set[str] = set()
        if kinds["annotation"]:
            notes = self._sources.filter(pc.equal(self._sources["kind"], "annotation"))
            if self._is_plan:
                notes = notes.filter(pc.is_valid(notes["why"]))
            self._annotated = set(notes["clip_id"].to_pylist())
        self._num_found = self._num_unannotated = 0
        self._limits: list[int | None] = []  # how many clips of each archive are wanted
        if "max_clips" in self._sources.column_names:
            archives = self._sources.filter(pc.equal(self._sources["kind"], "archive"))
            self._limits = archives["max_clips"].to_pylist()

    @property
    def num_expected(self) -> int | None:
        """Clips that are to come. How many an archive holds is known once it was read; annotations are a good guess."""
        if not self.report.num_sources or (self._limits and not self._annotated):
            return None
        files = self._sources.filter(pc.is_in(self._sources["kind"], pa.array(["video", "youtube", "invalid"])))
        wanted = len(self._annotated)
        if None not in self._limits:
            wanted = min(wanted, sum(limit or 0 for limit in self._limits))
        return int(pc.count_distinct(files["clip_id"]).as_py()) + wanted

    def take(self, row: dict[str, Any]) -> bool:
        """Take a row for the next commit; whether it is of a clip that this run has not had yet."""
        clip_id, report = row["clip_id"], self.report
        if row["status"] == SUPERSEDED:
            self.writer.discard(clip_id)
            return False
        row["status"] = row["status"] or OK  # a pipeline may end before the depth stage
        is_ok = row["status"] == OK
        if is_ok and row["depth_model"]:  # what was done, not what the plan was made for
            self._parameters |= {"model": row["depth_model"], "frames": row["depth_frames"]}
        tried = self._tried.setdefault(clip_id, [])
        if not is_ok and (key := source_key(row["source_url"] or "", row["archive_member"])) not in tried:
            tried.append(key)
        row["tried_sources"] = None if is_ok else list(tried)
        spent = None
        if not self._keep_raw and row["download_started_at"]:
            spent, row["raw_path"] = row["raw_path"], None
        problem = self._record.damage.get(clip_id)
        # A row whose files are damaged is not true any more.
        if not self.writer.add(row, replace=problem is not None, spent=spent):
            return False
        if problem is not None:
            report.damage[clip_id] = problem
        before = self._failed.pop(clip_id, None)  # of another source
        if before is not None:
            report.num_failed -= 1
            report.failures[before] -= 1
        report.num_ok += is_ok
        report.num_failed += not is_ok
        report.num_depth_frames += (row["num_depth_frames"] or 0) if is_ok else 0
        if not is_ok:
            self._failed[clip_id] = row["failed_stage"], row["error_type"]
            report.failures[self._failed[clip_id]] += 1
        if row["archive_member"] is not None and before is None:
            self._num_found += clip_id in self._annotated
            self._num_unannotated += clip_id not in self._annotated
        return before is None

    def finish(self) -> RunReport:
        """Tidy the dataset, and complete the report."""
        report, writer = self.report, self.writer
        report.failures = +report.failures
        if self._is_plan:  # what is left, not what was ever asked for
            is_file = pc.invert(pc.is_in(self._sources["kind"], pa.array(["archive", "annotation"])))
            names = pc.unique(self._sources.filter(is_file)["clip_id"]).to_pylist()
            report.num_missing = writer.missing(names)
        writer.relabel(self._record.labels)
        report.num_relabelled = len(self._record.labels)
        report.seconds = time.perf_counter() - self.started
        facts = {name: getattr(report, name) for name in ("num_ok", "num_failed", "num_depth_frames")}
        report.version = writer.finish({**facts, "seconds": round(report.seconds, 1)})
        report.other_content = list(writer.other_content)
        if self._failed:
            report.num_kept = writer.num_ok(self._failed)
        if self._annotated:
            if self._limits and not any(self._limits):  # there were archives, and all of them was wanted
                report.annotated_without_clip = len(self._annotated) - self._num_found
            report.clips_without_annotation = self._num_unannotated
        return report


class _Progress:
    """One line of progress. While no row comes, earlier ones are committed, and a line says what the run waits for."""

    def __init__(self, run: _Run, needs_gpu: bool) -> None:
        self._run, self._needs_gpu = run, needs_gpu
        self._bar = tqdm(total=run.num_expected, desc="clips", unit="clip", file=sys.stdout, mininterval=1.0, ncols=120)
        self._received = deque[tuple[float, int]]([(time.perf_counter(), 0)])  # moments, and bytes until then
        self._last_row = time.perf_counter()
        self._stop = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="kdepth-progress", daemon=True)

    def __enter__(self) -> _Progress:
        if missing := what_is_missing(gpu=self._needs_gpu):
            self.say(missing)
        self._watching.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._watching.join()
        self._bar.close()

    def say(self, text: str) -> None:
        """Write a line above the bar."""
        self._bar.write(text, file=sys.stdout)

    def update(self, is_new: bool, row: dict[str, Any]) -> None:
        """Count a row and its download."""
        self._last_row = now = time.perf_counter()
        if row["download_started_at"] is not None and row["download_attempts"] != 0:
            self._received.append((now, self._received[-1][1] + (row["raw_bytes"] or 0)))
        while len(self._received) > 2 and self._received[0][0] < now - _RATE_SECONDS:
            self._received.popleft()
        seconds = now - self._run.started
        # A notebook that was run headless keeps each line: the longer a run, the fewer.
        self._bar.mininterval = min(max(1.0, seconds / 100), 60.0)
        report = self._run.report
        (since, before), (until, after) = self._received[0], self._received[-1]
        known = [f"{report.num_failed} failed", f"{report.num_depth_frames / seconds:.1f} frames/s"]
        if after > before:
            known.append(f"{(after - before) / 1e6 / (until - since):.3g} MB/s")
        self._bar.set_postfix_str(", ".join(known), refresh=False)
        self._bar.update(is_new)

    def _watch(self) -> None:
        said = self._last_row
        while not self._stop.wait(COMMIT_SECONDS):
            with contextlib.suppress(OSError):  # the next row's commit tells it
                self._run.writer.commit_if_due()
            now = time.perf_counter()
            silent = now - self._last_row
            if min(silent, now - said) >= _WAIT_SECONDS:
                said = now
                with contextlib.suppress(Exception):  # Ray may be gone, which the run itself tells
                    waiting = what_is_missing(gpu=self._needs_gpu) or "waiting for downloads, workers or a long clip"
                    self.say(f"no clip for {silent:.0f} s: {waiting}")


@contextlib.contextmanager
def _committing(writer: ClipWriter) -> Iterator[None]:
    """Commit what there is when the block ends, however it does; a full disk is one line, wherever it showed."""
    try:
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):  # the first error says more
                writer.commit()
            raise
        writer.commit()
    except RayTaskError as exc:
        if isinstance(exc.cause, StorageError):
            raise exc.cause from None
        raise
    except OSError as exc:
        writer.root.check_space(exc)
        raise


def _stream_rows(clips: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    for block in clips.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from block.to_pylist()
