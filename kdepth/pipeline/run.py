"""Running the pipeline: Ray's start, and the driver's loop that commits rows and reports."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import tempfile
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray._private import ray_constants
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.exceptions import RayTaskError
from tqdm import tqdm

from kdepth.dataset.writer import ClipWriter
from kdepth.errors import StorageError
from kdepth.html import card
from kdepth.pipeline.attempts import one_run
from kdepth.pipeline.pending import LABELS_KEY, PARAMETERS_KEY, STAY_FAILED_KEY
from kdepth.pipeline.traffic import watched
from kdepth.schema import OK, SUPERSEDED, AsYielded
from kdepth.storage import Root
from kdepth.video.ffmpeg import ffmpeg_version

_AHEAD_BYTES = 2**20  # of rows that wait for a stage, a core: some 700 clips, with `small` hours of work


def start_ray(address: str = "", *, num_cpus: int | None = None, verbose: bool = False) -> None:
    """Start Ray on this machine, or join a cluster; does nothing if it runs already.

    Args:
        address: Of a running cluster that this machine belongs to (``"auto"``, ``"host:6379"``); empty: this machine
            alone.
        num_cpus: CPUs of this machine to use; default: all.
        verbose: Let Ray report what it does.

    Raises:
        ConnectionError: Nothing answers at `address`.
    """
    if not ray.is_initialized():
        # Started under `uv run`, Ray would pack the project and start each worker in an environment of its own, which
        # never comes up. It looked at the variable when it was imported, maybe before kdepth was.
        os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
        options: dict[str, Any] = {
            "log_to_driver": verbose,
            "logging_level": logging.INFO if verbose else logging.ERROR,
        }
        if address:
            _require_reachable(address)
        # Without "local" Ray would join whatever cluster this machine happens to belong to.
        alone = {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
        options |= {"address": address} if address else alone
        with contextlib.nullcontext() if verbose else _quiet_start():
            _init_ray(options)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = verbose
    context.print_on_execution_start = verbose
    # A finished clip leaves its stage at once, instead of waiting for a block of 128 MB to fill.
    context.target_max_block_size = AsYielded(1)
    # Ray Data looks for finished blocks ten times a second, and lets a stage be ahead by no more than these.
    context._max_num_blocks_in_streaming_gen_buffer = 16
    policies = [*ENABLED_BACKPRESSURE_POLICIES, _FarEnoughAhead]
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
    logging.getLogger("ray.data").setLevel(logging.INFO if verbose else logging.ERROR)


class _FarEnoughAhead(BackpressurePolicy):  # type: ignore[misc]  # Ray has no types for it
    """No new task of a stage that is some hundred clips a core ahead of the next one.

    Clips that wait take the disk's space as files, and as rows the driver's memory; Ray Data looks at its object store
    alone. Tasks that run are not held up: a download would break off.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._most_bytes = _AHEAD_BYTES * max(1.0, ray.cluster_resources().get("CPU", 1.0))

    def can_add_input(self, op: Any) -> bool:
        return bool(self._resource_manager.get_mem_op_outputs(op) < self._most_bytes)


def _require_reachable(address: str) -> None:
    """Ray itself would try for a quarter of an hour."""
    host, _, port = address.rpartition("//")[2].partition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as exc:
            raise ConnectionError(
                f"no Ray cluster answers at {address} ({exc}): `ray start --head --port 6379` starts one"
            ) from exc


def _init_ray(options: Mapping[str, Any]) -> None:
    """Start Ray; again if its node was not up within the 30 s that Ray gives it, as on a busy machine."""
    for attempt in range(4):
        try:
            ray.init(**options)
            return
        except Exception as exc:  # Ray raises no class of its own here
            if "timed out during startup" not in str(exc) or attempt == 3:
                raise
            ray.shutdown()


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """Keep the notes that Ray's core writes while it starts off the screen, unless it fails."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with tempfile.TemporaryFile() as notes, warnings.catch_warnings():
        # Lance warns at any fork; Ray's are followed by an exec.
        warnings.filterwarnings("ignore", message="lance is not fork-safe")
        stderr = os.dup(2)
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            notes.seek(0)
            os.write(stderr, notes.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


@dataclass(slots=True)
class RunReport:
    """What a run did.

    Attributes:
        run_id: In the rows that it committed.
        num_ok, num_failed: Clips committed by it.
        num_kept: Failed clips that had been ok, and stay as they were.
        num_depth_frames: Depth frames written.
        seconds: Wall time from the first stage's start to the last commit.
        version: Of the Lance dataset afterwards.
        failures: How many failed by ``(stage, error class)``.
        damage: What was wrong with the files of clips that had been ok, and were made again: ``clip_id`` -> problem.
        num_sources: What there was to do: URLs, archives.
        num_stay_failed: Clips that failed in an earlier run, and were not taken up.
        num_relabelled: Clips of earlier runs that got another label or split.
        num_missing: Rows of `pending` that no row came of, archives apart: none, unless the pipeline filters.
        annotated_without_clip: Annotated clips, not in the dataset yet, that no source held; None if there were no
            archives to look in, or not the whole of them was wanted.
        clips_without_annotation: Clips of archives that no annotation names; None without annotations.
    """

    run_id: str
    num_ok: int = 0
    num_failed: int = 0
    num_kept: int = 0
    num_depth_frames: int = 0
    seconds: float = 0.0
    version: int = 0
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    damage: dict[str, str] = field(default_factory=dict)
    num_sources: int = 0
    num_stay_failed: int = 0
    num_relabelled: int = 0
    num_missing: int = 0
    annotated_without_clip: int | None = None
    clips_without_annotation: int | None = None

    def __str__(self) -> str:
        if not self.num_ok + self.num_failed:
            return self._why_nothing()
        rate = self.num_depth_frames / max(self.seconds, 1e-9)
        lines = [
            f"{self.num_ok} clips ok, {self.num_failed} failed, {self.num_depth_frames} depth frames "
            f"in {self.seconds:.0f} s ({rate:.1f} frames/s); dataset version {self.version}"
        ]
        lines += [f"  {count} x {stage}: {error}" for (stage, error), count in self.failures.most_common()]
        if self.num_kept:
            lines.append(f"  failed, but had been ok, and stay as they were: {self.num_kept}")
        if self.num_stay_failed:
            lines.append(f"  failed in earlier runs, not taken up: {self.num_stay_failed} (retry_failed=True does)")
        lines += [f"  made again: {clip_id} ({problem})" for clip_id, problem in list(self.damage.items())[:10]]
        if len(self.damage) > 10:
            lines.append(f"  made again: {len(self.damage) - 10} more")
        if self.num_relabelled:
            lines.append(f"  another label or split: {self.num_relabelled}")
        if self.num_missing:
            lines.append(f"  sources without a row: {self.num_missing} (run again to do them)")
        if self.annotated_without_clip is not None:
            lines.append(f"  annotated, but in no archive: {self.annotated_without_clip}")
        if self.clips_without_annotation is not None:
            lines.append(f"  in an archive, but not annotated: {self.clips_without_annotation}")
        return "\n".join(lines)

    def _why_nothing(self) -> str:
        more = f" {self.num_relabelled} clips have another label or split now." if self.num_relabelled else ""
        if self.num_sources:
            what = "archives without videos, or without any that was missing"
            return f"No clip came of {self.num_sources} sources: {what}.{more}"
        if more:
            return f"No clip to make.{more}"
        if self.num_stay_failed:
            return (
                f"Nothing to do: every clip is in the dataset as asked for, but for {self.num_stay_failed} that failed "
                "in earlier runs (retry_failed=True takes them up)."
            )
        return "Nothing to do: every clip is in the dataset as asked for."

    def _repr_html_(self) -> str:
        """For a notebook: the lines of a lab book."""
        if not self.num_ok + self.num_failed:
            return card(self, {})
        per_second = self.num_depth_frames / max(self.seconds, 1e-9)
        per_minute = 60 * (self.num_ok + self.num_failed) / max(self.seconds, 1e-9)
        failures = [f"{count} x {stage}: {error}" for (stage, error), count in self.failures.most_common()]
        packages = ", ".join(f"{name} {version(name)}" for name in ("kdepth", "torch", "ray", "pylance"))
        facts = {
            "clips": f"{self.num_ok:,} ok, {self.num_failed:,} failed",
            "failures": "\n".join(failures) or None,
            "failed, but had been ok, and stay as they were": self.num_kept or None,
            "failed in earlier runs, not taken up": self.num_stay_failed or None,
            "another label or split": self.num_relabelled or None,
            "made again": "\n".join(f"{name} ({why})" for name, why in list(self.damage.items())[:10]) or None,
            "made again, too": len(self.damage) - 10 if len(self.damage) > 10 else None,
            "sources without a row": self.num_missing or None,
            "annotated, but in no archive": self.annotated_without_clip,
            "in an archive, but not annotated": self.clips_without_annotation,
            "depth frames": f"{self.num_depth_frames:,}",
            "time": f"{self.seconds:,.0f} s: {per_second:.1f} depth frames/s, {per_minute:.1f} clips/min",
            "dataset": f"version {self.version}",
            "rows": "ds.table(where=f\"run_id = '{report.run_id}'\")",
            "made with": packages,
        }
        return card("kdepth run", facts)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For IPython without HTML: as `print` shows it."""
        printer.text(str(self))


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
        DatasetError: The dataset does not hold what the stages emitted.
        StorageError: The disk is full.
    """
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    with Root(root).in_use(run_id), one_run():
        return _write_lance(clips, root, sources, run_id)


def _write_lance(clips: ray.data.Dataset, root: str | Path, sources: pa.Table | None, run_id: str) -> RunReport:
    started = time.perf_counter()
    report = RunReport(run_id=run_id)
    parameters: dict[str, Any] = {"kdepth": version("kdepth"), "ffmpeg": ffmpeg_version()}
    writer = ClipWriter(root, report.run_id, parameters)
    labels: dict[str, list[str | None]] = {}
    if sources is not None and "damage" in sources.column_names:
        damaged = sources.filter(pc.is_valid(sources["damage"]))
        report.damage = dict(zip(damaged["clip_id"].to_pylist(), damaged["damage"].to_pylist(), strict=True))
        metadata = sources.schema.metadata or {}
        parameters |= json.loads(metadata.get(PARAMETERS_KEY, b"{}"))
        report.num_stay_failed = int(metadata.get(STAY_FAILED_KEY, 0))
        labels = json.loads(metadata.get(LABELS_KEY, b"{}"))
    kinds = Counter(sources["kind"].to_pylist()) if sources is not None else Counter[str]()
    annotated: set[str] = set()
    if kinds["annotation"] and sources is not None:
        annotated = {row["clip_id"] for row in sources.to_pylist() if row["kind"] == "annotation"}
    num_annotated, found, unannotated = len(annotated), 0, 0
    report.num_sources = kinds.total() - kinds["annotation"]
    limits: list[int | None] = []  # how many clips of each archive are wanted
    if sources is not None and "max_clips" in sources.column_names:
        limits = sources.filter(pc.equal(sources["kind"], "archive"))["max_clips"].to_pylist()
    failed: dict[str, tuple[str, str]] = {}  # clip_id -> stage, error class
    if sources is None or sources.num_rows:
        # How many clips an archive holds is known once it was read; until then the annotations are the best guess.
        unknown = sources is None or (kinds["archive"] and not kinds["annotation"])
        wanted = num_annotated if None in limits else min(num_annotated, sum(filter(None, limits)))
        total = None if unknown else report.num_sources - kinds["archive"] + wanted
        downloads = ""

        def show(text: str, *, refresh: bool = False) -> None:
            seconds = time.perf_counter() - started
            # A notebook that was run headless keeps each line: the longer a run, the fewer.
            bar.mininterval = min(max(1.0, seconds / 100), 60.0)
            rate = report.num_depth_frames / seconds
            known = [f"{report.num_failed} failed", f"{rate:.1f} frames/s", text]
            refresh = refresh and time.time() - bar.last_print_t >= bar.mininterval
            bar.set_postfix_str(", ".join(filter(None, known)), refresh=refresh)

        def show_downloads(text: str) -> None:
            nonlocal downloads
            downloads = text
            show(text, refresh=True)

        bar = tqdm(total=total, desc="clips", unit="clip", file=sys.stdout, mininterval=1.0, ncols=120)
        with bar, watched(show_downloads), _committing(writer):
            for row in _stream_rows(clips):
                if row["status"] == SUPERSEDED:
                    writer.discard(row["clip_id"])
                    continue
                row["status"] = row["status"] or OK  # a pipeline may end before the depth stage
                clip_id, is_ok = row["clip_id"], row["status"] == OK
                if is_ok and row["depth_model"]:  # what was done, not what the plan was made for
                    parameters |= {"model": row["depth_model"], "frames": row["depth_frames"]}
                # Of a clip with damaged files the row is not true any more.
                if not writer.add(row, replace=not is_ok and clip_id in report.damage):
                    continue
                before = failed.pop(clip_id, None)  # of the same clip in another archive
                if before is not None:
                    report.num_failed -= 1
                    report.failures[before] -= 1
                report.num_ok += is_ok
                report.num_failed += not is_ok
                report.num_depth_frames += (row["num_depth_frames"] or 0) if is_ok else 0
                if not is_ok:
                    failed[clip_id] = row["failed_stage"], row["error_type"]
                    report.failures[failed[clip_id]] += 1
                if row["archive_member"] is not None and before is None:
                    found += clip_id in annotated
                    unannotated += clip_id not in annotated
                show(downloads)
                bar.update(before is None)
        report.failures = +report.failures
        if sources is not None and "damage" in sources.column_names:  # what is left, not what was ever asked for
            is_file = pc.invert(pc.is_in(sources["kind"], pa.array(["archive", "annotation"])))
            report.num_missing = writer.missing(name.as_py() for name in sources["clip_id"].filter(is_file))
    writer.relabel(labels)
    report.num_relabelled = len(labels)
    report.seconds = time.perf_counter() - started
    report.version = writer.finish(
        {
            **{name: getattr(report, name) for name in ("num_ok", "num_failed", "num_depth_frames")},
            "seconds": round(report.seconds, 1),
        }
    )
    if failed:
        report.num_kept = writer.num_ok(failed)
    if num_annotated:
        report.annotated_without_clip = None if any(limits) else num_annotated - found
        report.clips_without_annotation = unannotated
    return report


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
