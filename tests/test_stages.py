"""The verbs over a real Ray, a real server and real files."""

import contextlib
import math
import os
import re
import shutil
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
from conftest import Run
from pipeline_run import run_here, run_pipeline
from tiny_checkpoints import FAMILIES, save_checkpoint, save_constant_checkpoint

import kdepth
from kdepth import samples
from kdepth.dataset import writer
from kdepth.dataset.writer import ClipWriter
from kdepth.downloads.network import public_url
from kdepth.errors import DatasetError, WorkerDiedError
from kdepth.models.load import model_identity
from kdepth.pipeline import cluster, run, stages
from kdepth.pipeline.deaths import counted, num_deaths
from kdepth.pipeline.workers import from_async
from kdepth.schema import OK, clip_id_for, new_row, rows_to_table
from kdepth.storage import Root
from kdepth.video.ffmpeg import ffmpeg_path

HTML = b"<!DOCTYPE html><html><body>This video is not here any more.</body></html>" * 20


def statuses(root: Path) -> Counter[str]:
    return Counter(kdepth.open_dataset(root).table(columns=["status"])["status"].to_pylist())


def test_every_sample_clip_arrives_once_whole_and_labelled(sample_run: Run) -> None:
    rendered, real = samples.rendered_clips(), samples.real_clips()
    assert len(rendered) == 6
    assert len(real) == 3
    ds = kdepth.open_dataset(sample_run.root)
    table = ds.table()
    assert table["clip_id"].to_pylist() == sorted([*rendered, *real])
    assert set(table["status"].to_pylist()) == {"ok"}
    assert None not in table["label"].to_pylist()
    assert sum(member is not None for member in table["archive_member"].to_pylist()) == 3
    for clip in ds:
        row = clip.row
        assert min(row["width"], row["height"]) == 360
        assert (ds.root / row["raw_path"]).stat().st_size == row["raw_bytes"]
        assert clip.video_path.stat().st_size == row["video_bytes"]
        assert clip.depth_path.stat().st_size == row["depth_bytes"]
        seconds = row["duration_seconds"]
        assert row["num_depth_frames"] == len(clip.depth_indices) == pytest.approx(seconds * 2, abs=1)
        for stage in ("download", "transcode", "depth"):
            assert row[f"{stage}_seconds"] > 0
        assert row["download_started_at"] <= row["transcode_started_at"] <= row["depth_started_at"]
    assert sample_run.report.num_ok == 9
    assert sample_run.report.num_failed == 0
    assert sample_run.report.annotated_without_clip == 0
    assert sample_run.report.clips_without_annotation == 0
    assert not list(ds.root.rglob("*.part"))


def test_the_same_again_does_nothing_and_says_so(sample_run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    version = kdepth.open_dataset(sample_run.root).lance.version
    assert kdepth.pending(sample_run.sources, sample_run.root, frames="2").num_rows == 0
    report = run_pipeline(sample_run.sources, sample_run.root, frames="2")
    assert str(report).startswith("Nothing to do")
    assert kdepth.open_dataset(sample_run.root).lance.version == version


def test_downloads_wait_for_who_takes_their_clips(
    ray_cluster: None, sample_server: samples.SampleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_up = threading.Semaphore(0)  # one more each time that no new download may start
    can_add_input = cluster._FarEnoughAhead.can_add_input

    def watch(self: cluster._FarEnoughAhead, op: Any) -> bool:
        answer = can_add_input(self, op)
        if not answer:
            held_up.release()
        return answer

    monkeypatch.setattr(cluster._FarEnoughAhead, "can_add_input", watch)
    monkeypatch.setattr(cluster, "_AHEAD_BYTES", 1)
    base = sample_server.url_list.read_text().splitlines()[0].rpartition("/")[0]
    path = next(iter(samples.rendered_clips().values()))
    urls = [f"{base}/ahead{i:02d}.mp4" for i in range(24)]
    for url in urls:
        sample_server.serve(url.rpartition("/")[2], path)
    clips = kdepth.download(kdepth.read_sources(urls), tmp_path, batch_size=1, concurrency=1, allow_private_hosts=True)
    rows = iter(clips.iter_rows())
    next(rows)
    # Ray Data asks some ten times a second. Five are here, with what the iterator took; without a limit all were.
    assert all(held_up.acquire(timeout=60) for _ in range(40))
    assert len(list(tmp_path.glob("raw/**/*.mp4"))) < 12
    assert len(list(rows)) == 23


def test_bad_sources_are_failed_rows_and_stop_nobody(
    ray_cluster: None, sample_server: samples.SampleServer, tmp_path: Path
) -> None:
    base = sample_server.url_list.read_text().splitlines()[0].rpartition("/")[0]
    good = next(iter(samples.rendered_clips()))
    page = Path(sample_server.url_list).with_name("page.mp4")
    page.write_bytes(HTML)
    sample_server.serve("page.mp4", page)
    urls = tmp_path / "urls.txt"
    urls.write_text(
        f"{base}/missing.mp4\nhttp://no-such-host.invalid/a.mp4\n{base}/page.mp4\n# the good one\n{base}/{good}.mp4\n"
    )
    root = tmp_path / "root"
    report = run_pipeline(kdepth.read_sources(urls), root, frames="middle")
    assert (report.num_ok, report.num_failed) == (1, 3)
    failures = {row["clip_id"].rsplit("_", 1)[0]: row for row in kdepth.open_dataset(root).failures().to_pylist()}
    assert {name: (row["failed_stage"], row["error_type"]) for name, row in failures.items()} == {
        "missing": ("download", "HttpStatusError"),
        "a": ("download", "HostUnreachableError"),
        "page": ("download", "NotAVideoError"),
    }
    assert "404" in failures["missing"]["error_message"]
    assert "HTML" in failures["page"]["error_message"]
    clip = kdepth.open_dataset(root)[good]
    assert clip.depth_indices == [clip.row["num_frames"] // 2]
    assert "3 failed" in str(report)

    # Again: nothing. With retry_failed: the failed ones. After the page became a video: it is ok.
    sources = kdepth.read_sources(urls)
    todo = kdepth.pending(sources, root, frames="middle")
    assert todo.num_rows == 0
    clips = kdepth.download(todo, root)
    assert "but for 3 that failed in earlier runs (retry_failed=True takes them up)" in str(
        kdepth.write_lance(clips, root, sources=todo)
    )
    todo = kdepth.pending(sources, root, frames="middle", retry_failed=True)
    assert todo["why"].to_pylist() == ["retry"] * 3
    again = todo["clip_id"].to_pylist()
    assert sorted(name.rsplit("_", 1)[0] for name in again) == ["a", "missing", "page"]
    # Where the list now has another address for a clip, that one is tried.
    moved = sources.set_column(
        sources.schema.get_field_index("url"), "url", pc.replace_substring(sources["url"], "missing", "moved")
    )
    assert kdepth.pending(moved, root, frames="middle")["url"].to_pylist() == [f"{base}/moved.mp4"]
    sample_server.serve("page.mp4", samples.rendered_clips()[good])
    run_here(sources, root, frames="middle", retry_failed=True)
    assert statuses(root) == {"ok": 2, "failed": 2}


def test_limits_of_a_clip_are_set_where_a_notebook_calls_the_stage(
    ray_cluster: None, sample_server: samples.SampleServer, tmp_path: Path
) -> None:
    sources = kdepth.read_sources(sample_server.url_list, limit=1)
    downloaded = kdepth.download(sources, tmp_path, allow_private_hosts=True).materialize()
    limits = {"max_duration_seconds": 0.5, "timeout_seconds": 0.01, "max_pixels": 64, "max_fps": 0.5}
    for name, limit in limits.items():
        (row,) = kdepth.transcode(downloaded, tmp_path, **{name: limit}).take_all()  # type: ignore[arg-type]
        assert row["failed_stage"] == "transcode"
        assert name in row["error_message"]


def test_a_later_run_redoes_what_it_must_and_no_more(
    ray_cluster: None, sample_server: samples.SampleServer, tmp_path: Path
) -> None:
    sources = kdepth.read_sources(sample_server.url_list, limit=2)
    run_here(sources, tmp_path, frames="middle")
    before = {clip.clip_id: clip.row for clip in kdepth.open_dataset(tmp_path)}
    assert len(before) == 2

    # Other frames: depth alone. A file that is not what its row says: that one too, and nothing else.
    first, second = before
    (tmp_path / before[first]["video_path"]).write_bytes(b"not a video")
    todo = {row["clip_id"]: row for row in kdepth.pending(sources, tmp_path, frames="middle").to_pylist()}
    assert {clip_id: row["why"] for clip_id, row in todo.items()} == {first: "damaged"}
    whys = kdepth.pending(sources, tmp_path, frames="first")["why"].to_pylist()
    assert sorted(whys) == ["damaged", "frames middle -> first"]
    # What is transcoded already skips that stage; the damaged clip needs it.
    plan = kdepth.pending(sources, tmp_path, frames="first")
    for rows, skips in ((plan, False), (plan.filter(pc.not_equal(plan["why"], "damaged")), True)):
        clips = kdepth.download(rows, tmp_path)
        assert (kdepth.transcode(clips, tmp_path) is clips) == skips
    assert todo[first]["raw_path"] == before[first]["raw_path"]
    run_here(sources, tmp_path, frames="first")
    after = {clip.clip_id: clip.row for clip in kdepth.open_dataset(tmp_path)}
    assert [frame["index"] for frame in after[second]["frames"]] == [0]
    assert after[second]["video_bytes"] == before[second]["video_bytes"]
    assert after[second]["transcode_started_at"] is None  # not by this run
    assert after[first]["transcode_started_at"] > before[first]["depth_started_at"]
    assert after[first]["num_frames"] == before[first]["num_frames"]

    # Another height: transcode and depth, but no download.
    todo = kdepth.pending(sources, tmp_path, frames="first", height=180).to_pylist()
    assert [row["why"] for row in todo] == ["height 360 -> 180"] * 2
    assert [(row["raw_path"] is None, row["video_path"]) for row in todo] == [(False, None)] * 2
    run_here(sources, tmp_path, frames="first", height=180)
    assert kdepth.open_dataset(tmp_path).table(columns=["height"])["height"].to_pylist() == [180, 180]
    assert kdepth.open_dataset(tmp_path)[first].inverse_depth(0).shape == (180, 320)
    assert kdepth.pending(sources, tmp_path, frames="first", height=180).num_rows == 0

    # What can't be had again stays as it was, while it is whole.
    for path in (tmp_path / "raw").iterdir():
        path.unlink()
    base = sample_server.url_list.read_text().splitlines()[0].rpartition("/")[0]
    gone = kdepth.read_sources([f"{base}/gone/{first}.mp4"])
    report = run_here(gone, tmp_path, frames="first")
    assert (report.num_ok, report.num_failed, report.num_kept) == (0, 1, 1)
    assert "had been ok, and stay as they were: 1" in str(report)
    clip = kdepth.open_dataset(tmp_path)[first]
    assert clip.inverse_depth(0).shape == (180, 320)
    clip.video_path.unlink()
    report = run_here(gone, tmp_path, frames="first", height=180)
    assert (report.num_failed, report.num_kept) == (1, 0)
    assert statuses(tmp_path) == {"ok": 1, "failed": 1}


def test_an_archive_that_broke_is_a_failed_row_until_it_is_whole(
    ray_cluster: None, sample_server: samples.SampleServer, tmp_path: Path
) -> None:
    base = sample_server.url_list.read_text().splitlines()[0].rpartition("/")[0]
    whole = Path(sample_server.url_list).with_name("part_0.tar.gz").read_bytes()
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(whole[: len(whole) // 2] + bytes(1000) + whole[len(whole) // 2 + 1000 :])
    sample_server.serve("val.tar.gz", broken)
    sources = kdepth.read_sources([f"{base}/val.tar.gz"])
    root = tmp_path / "root"
    run_here(sources, root, frames="middle")
    # Members that were read before the damage was noticed may be damaged too: they fail at transcode.
    failures = {row["error_type"]: row for row in kdepth.open_dataset(root).failures().to_pylist()}
    assert set(failures) <= {"ArchiveError", "DamagedMediaError"}
    assert "near byte" in failures["ArchiveError"]["error_message"]
    assert 1 <= statuses(root)["failed"] <= 2
    # Its members are not forgotten for it: another depth is had from what is there.
    assert kdepth.pending(sources, root, frames="middle").num_rows == 0
    assert kdepth.pending(sources, root, frames="first").num_rows == statuses(root)["ok"]

    (tmp_path / "whole.tar.gz").write_bytes(whole)
    sample_server.serve("val.tar.gz", tmp_path / "whole.tar.gz")
    run_here(sources, root, frames="middle", retry_failed=True)
    assert statuses(root) == {"ok": 3}
    assert kdepth.pending(sources, root, frames="middle").num_rows == 0


def test_one_clip_needs_one_worker(
    ray_cluster: None, sample_server: samples.SampleServer, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    report = run_pipeline(kdepth.read_sources(sample_server.url_list, limit=1), tmp_path, frames="1", concurrency=None)
    assert (report.num_ok, report.num_failed) == (1, 0)
    assert not recwarn.list  # Ray's, of more actors than clips


def test_labels_that_come_later_are_taken_over(
    ray_cluster: None, sample_server: samples.SampleServer, tmp_path: Path
) -> None:
    sources = kdepth.read_sources(sample_server.url_list, limit=2)
    run_here(sources, tmp_path, frames="middle")
    before = kdepth.open_dataset(tmp_path).table()
    assert before["label"].null_count == 2
    labelled = kdepth.read_sources(sample_server.url_list, annotations=sample_server.annotations)
    labels = {row["clip_id"]: (row["label"], row["split"]) for row in labelled.to_pylist()}
    (run,) = kdepth.open_dataset(tmp_path).runs().values()
    assert (run["sources"], run["limit"], run["frames"]) == (str(sample_server.url_list), 2, "middle")
    sources = kdepth.read_sources(sample_server.url_list, annotations=sample_server.annotations, limit=2)
    todo = kdepth.pending(sources, tmp_path, frames="middle")
    assert todo.num_rows == 0
    report = run_here(sources, tmp_path, frames="middle")
    assert str(report) == "No clip to make. 2 clips have another label or split now."
    ds = kdepth.open_dataset(tmp_path)
    assert {row["clip_id"]: (row["label"], row["split"]) for row in ds.table().to_pylist()} == {
        clip_id: labels[clip_id] for clip_id in before["clip_id"].to_pylist()
    }
    assert ds.table().drop_columns(["label", "split"]).equals(before.drop_columns(["label", "split"]))
    assert pq.read_table(tmp_path / "clips.parquet").sort_by("clip_id").equals(ds.table())
    version = ds.lance.version
    assert str(run_here(sources, tmp_path, frames="middle")).startswith("Nothing to do: every clip")
    assert kdepth.open_dataset(tmp_path).lance.version == version
    # Whoever changes the dataset by hand finds the change in the copy, too, after the next run.
    ds.lance.delete(f"clip_id = '{before['clip_id'][0]}'")
    rest = sources.filter(pc.equal(sources["clip_id"], before["clip_id"][1]))
    run_here(rest, tmp_path, frames="middle")
    assert pq.read_metadata(tmp_path / "clips.parquet").num_rows == 1


def test_archives_are_told_apart_and_known_again(tmp_path: Path) -> None:
    base = "http://127.0.0.1:9/get.tar"

    def skipped(root: str, *queries: str) -> list[list[str] | None]:
        todo = kdepth.pending(kdepth.read_sources([base + query for query in queries]), tmp_path / root)
        assert {row["why"] for row in todo.to_pylist()} == {"more of it"} or len(queries) == 2
        return [row["skip_members"] for row in todo.to_pylist()]

    for root, url in (("token", f"{base}?token=1"), ("password", base.replace("://", "://me:one@"))):
        writer = ClipWriter(tmp_path / root, "run-1")
        for name in ("a.mp4", "b.mp4"):
            row = new_row(clip_id=clip_id_for(url, name), source_url=public_url(url), archive_member=name, status=OK)
            files: dict[str, Any] = {"video_bytes": 1, "depth_bytes": 1}
            for kind, folder in (("video", "360p"), ("depth", "depth")):
                files[f"{kind}_path"] = f"{folder}/{name}"
                (tmp_path / root / folder).mkdir(exist_ok=True)
                (tmp_path / root / folder / name).write_bytes(b"x")
            depth = {"depth_model": model_identity("small"), "depth_frames": "all", "depth_kind": "relative"}
            writer.add(row | files | depth | {"width": 640, "height": 360})
        writer.commit()
    assert skipped("token", "?token=1") == skipped("token", "?token=2") == [["a.mp4", "b.mp4"]]
    assert skipped("token", "?token=1", "?token=2") == [["a.mp4", "b.mp4"], []]
    assert skipped("password", "") == [["a.mp4", "b.mp4"]]


def test_raw_files_need_not_be_kept(ray_cluster: None, sample_server: samples.SampleServer, tmp_path: Path) -> None:
    sources = kdepth.read_sources(sample_server.url_list, limit=1)
    clips = kdepth.transcode(kdepth.download(sources, tmp_path, allow_private_hosts=True), tmp_path, keep_raw=False)
    (row,) = clips.take_all()
    assert (tmp_path / row["raw_path"]).exists()  # a worker that dies from here on has its clip transcoded again
    run_here(sources, tmp_path, frames="middle", keep_raw=False)
    assert list((tmp_path / "raw").iterdir()) == []
    assert kdepth.open_dataset(tmp_path).table(columns=["raw_path", "status"]).to_pylist() == [
        {"raw_path": None, "status": "ok"}
    ]
    assert kdepth.pending(sources, tmp_path, frames="middle").num_rows == 0


def test_a_caller_is_told_what_is_allowed(ray_cluster: None, sample_run: Run, tmp_path: Path) -> None:
    clips = kdepth.download(sample_run.sources, tmp_path)
    with pytest.raises(ValueError, match="height=361"):
        kdepth.transcode(clips, tmp_path, height=361)
    with pytest.raises(ValueError, match="frames="):
        kdepth.estimate_depth(clips, tmp_path, frames="nth")
    with pytest.raises(kdepth.DepthError):
        kdepth.estimate_depth(clips, tmp_path, model="no-such/model")


@pytest.mark.slow  # each model has workers of its own
def test_every_family_of_models(ray_cluster: None, sample_server: samples.SampleServer, tmp_path: Path) -> None:
    sources = kdepth.read_sources(sample_server.url_list, annotations=sample_server.annotations)
    root = tmp_path / "run"
    for name, family in FAMILIES.items():
        if family.last_layer:
            save_constant_checkpoint(tmp_path / name, family)
        else:
            save_checkpoint(tmp_path / name, family.make_config())
        model = str(tmp_path / name)
        report = run_pipeline(sources.slice(0, 2), root, model=model, frames="middle", depth_kind=family.asked)
        assert report.num_ok == 2
        for clip in kdepth.open_dataset(root):
            (index,) = clip.depth_indices
            inverse_depth = clip.inverse_depth(index)
            assert clip.row["depth_kind"] == family.kind
            assert clip.row["depth_model"].startswith(f"{name}@sha256:")
            assert (clip.row["frames"][0]["focal_length_px"] is not None) == (name == "depth-pro")
            if family.last_layer:  # known, up to bfloat16, which the networks compute in where the processor has it
                np.testing.assert_allclose(inverse_depth, family.inverse_depth, rtol=5e-3)
            if family.kind == "metric":
                np.testing.assert_allclose(clip.depth_m(index), 1 / inverse_depth)
            else:
                with pytest.raises(DatasetError, match="no metres"):
                    clip.depth_m(index)


@pytest.mark.parametrize("rows_a_block", [1, 4])
def test_no_row_is_lost_or_doubled_with_a_worker(ray_cluster: None, tmp_path: Path, rows_a_block: int) -> None:
    """A process that dies in mid-task: another one gives the same rows in the same blocks."""
    died = tmp_path / "died"

    def dies_once(block: pa.Table) -> Iterator[pa.Table]:
        def rows() -> Iterator[dict[str, Any]]:
            for number, row in enumerate(block.to_pylist()):
                if number == rows_a_block - 1 and not died.exists() and row["clip_id"] > "clip3":
                    died.touch()
                    os._exit(1)
                yield row

        yield from stages._blocks(rows(), rows_a_block)

    names = [f"clip{number}" for number in range(8)]
    blocks = [pa.table({"clip_id": names[i : i + rows_a_block]}) for i in range(0, 8, rows_a_block)]
    rows = ray.data.from_blocks(blocks)
    rows.context.target_max_block_size = 1 if rows_a_block == 1 else None
    done = rows.map_batches(dies_once, batch_size=None, batch_format="pyarrow")
    lengths = [len(block) for block in done.iter_batches(batch_size=None, batch_format="pyarrow")]
    assert (sum(lengths), set(lengths)) == (8, {rows_a_block})
    assert died.exists()


def test_rows_are_committed_while_no_other_comes(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "COMMIT_SECONDS", 0.1)
    monkeypatch.setattr(writer, "COMMIT_SECONDS", 0.1)
    seen = tmp_path / "seen"

    def waits(block: pa.Table) -> Iterator[pa.Table]:
        yield rows_to_table([new_row(clip_id=name, status=OK) for name in "ab"])
        while not seen.exists():
            threading.Event().wait(0.05)
        yield rows_to_table([new_row(clip_id="c", status=OK)])

    clips = ray.data.from_blocks([pa.table({"clip_id": ["all"]})])
    clips.context.target_max_block_size = 1
    clips = clips.map_batches(waits, batch_size=None, batch_format="pyarrow")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(kdepth.write_lance, clips, tmp_path / "root")
        while not running.done():
            with contextlib.suppress(DatasetError):
                if len(kdepth.open_dataset(tmp_path / "root")) == 2:
                    seen.touch()
            threading.Event().wait(0.05)
        assert running.result().num_ok == 3
    assert seen.exists()


def test_each_row_leaves_its_stage_at_once_and_long_lists_go_in_blocks(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [f"http://127.0.0.1:9/{number}.mp4" for number in range(40)]
    sources = kdepth.read_sources(urls)
    clips = kdepth.download(sources, tmp_path)
    assert {len(block) for block in clips.iter_batches(batch_size=None, batch_format="pyarrow")} == {1}
    monkeypatch.setattr(stages, "_LONG_LIST_CLIPS_A_CPU", 1)
    blocks = kdepth.download(sources, tmp_path).iter_batches(batch_size=None, batch_format="pyarrow")
    assert sorted(len(block) for block in blocks) == [8, 16, 16]


def test_an_async_generator_runs_on_while_nobody_asks(tmp_path: Path) -> None:
    made: list[int] = []
    enough, closed = threading.Event(), threading.Event()

    async def numbers() -> AsyncIterator[int]:
        try:
            for number in range(100):
                made.append(number)
                if number == 5:
                    enough.set()
                yield number
        finally:
            closed.set()

    items = from_async(numbers, at_most=5)
    assert next(items) == 0
    assert enough.wait(30)  # not asked for, but made
    assert len(made) <= 8  # the queue is full
    items.close()  # type: ignore[attr-defined]
    assert closed.wait(30)

    async def broken() -> AsyncIterator[int]:
        yield 1
        raise OSError("no more")

    items = from_async(broken, at_most=5)
    assert next(items) == 1
    with pytest.raises(OSError, match="no more"):
        next(items)


@pytest.mark.parametrize("gpus", [1, 2, 3])
@pytest.mark.parametrize("concurrency", [None, *range(1, 20)])
def test_actors_fit_on_the_gpus(gpus: int, concurrency: int | None) -> None:
    size, share = stages._actors(16, gpus, concurrency, small=True)
    assert size == (concurrency or {1: 8, 2: 8, 3: 6}[gpus])
    assert share is not None
    assert math.ceil(size / gpus) * round(share * 1e4) <= 1e4


def test_actors_by_default() -> None:
    assert stages._actors(16, 0, None, small=True) == (16, None)
    assert stages._actors(16, 0, None, small=False) == (1, None)
    assert stages._actors(64, 0, None, small=False, nodes=4) == (4, None)
    assert stages._actors(16, 2, None, small=False) == (2, 1.0)
    assert stages._actors(64, 1, None, small=True) == (8, 0.125)
    assert stages._actors(2, 4, None, small=True) == (4, 1.0)
    assert stages._actors(16, 0, None, small=True, most=3) == (3, None)
    assert stages._actors(16, 8, None, small=True, most=3) == (3, 1.0)
    assert stages._actors(16, 0, 5, small=True, most=3) == (5, None)


def test_what_can_not_be_is_found_before_anything_runs(ray_cluster: None, tmp_path: Path) -> None:
    clips = kdepth.download(kdepth.read_sources(["http://127.0.0.1:9/a.mp4"]), tmp_path)
    for height in (30, 361, 2162):
        with pytest.raises(ValueError, match="32 to 2160 pixels"):
            kdepth.transcode(clips, tmp_path, height=height)
    with pytest.raises(ValueError, match=r"the configuration of small says .relative."):
        kdepth.estimate_depth(clips, tmp_path, depth_kind="metric")
    for device in ("gpu", *(["cuda"] if not ray.cluster_resources().get("GPU") else [])):
        with pytest.raises(ValueError, match=f"device='{device}': must be"):
            kdepth.estimate_depth(clips, tmp_path, device=device)
    with pytest.raises(ValueError, match=r"the configuration of small says .relative."):
        kdepth.pending(kdepth.read_sources(["http://127.0.0.1:9/a.mp4"]), tmp_path, depth_kind="metric")


AT_WORK = """
import pathlib, time
import kdepth

def load(device):
    def predict(frames, focal_length_px, before):
        folder = pathlib.Path({root!r}) / "at_work"
        for _ in range(3000):  # the network computes for as long as it takes until others are at work beside it
            if len(list(folder.iterdir())) == {clips} or (folder.parent / "seen").exists():
                break
            time.sleep(0.01)
        with open({root!r} + "/seen", "a") as seen:
            seen.write(f"{{len(list(folder.iterdir()))}} {{len(frames)}}\\n")
        return frames[:, 0] / 255 + 1, None, None

    return kdepth.DepthModel(predict, kind="relative", batch_size=8)
"""


@pytest.mark.parametrize("at_once", [1, 3])
def test_on_a_gpu_other_clips_are_at_work_while_the_network_computes(
    sample_run: Run, tmp_path: Path, at_once: int
) -> None:
    shutil.copytree(sample_run.root / "360p", tmp_path / "360p")
    net = tmp_path / "net.py"
    net.write_text(AT_WORK.format(root=str(tmp_path), clips=at_once))
    stage = stages._DepthStage(
        Root(tmp_path), str(net), "middle", "cpu", None, model_identity(net), threads=1, at_once=at_once, limits={}
    )
    columns = ["clip_id", "video_path", "num_frames"]
    rows = [new_row(**row) for row in kdepth.open_dataset(sample_run.root).table(columns=columns).to_pylist()]
    with ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(lambda row: list(stage(rows_to_table([row]))), rows))
    found = [table.to_pylist()[0] for (table,) in tables]
    assert [row["status"] for row in found] == [OK] * len(rows)
    assert [row["num_depth_frames"] for row in found] == [1] * len(rows)
    seen = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    assert max(int(num_clips) for num_clips, _ in seen) == at_once
    assert sum(int(num_frames) for _, num_frames in seen) == len(rows)


def test_a_work_that_three_processes_died_at_is_refused(ray_cluster: None, tmp_path: Path) -> None:
    root = Root(tmp_path)
    dead = [counted(root, "clip.depth") for _ in range(3)]
    for deaths, work in enumerate(dead):
        assert num_deaths(root, "clip.depth") == deaths
        work.__enter__()  # what nobody leaves is a death
    with pytest.raises(WorkerDiedError, match="died 3 times"), counted(root, "clip.depth"):
        pass
    with counted(root, "other.depth"):
        assert num_deaths(root, "other.depth") == 1
    assert num_deaths(root, "other.depth") == 0
    with root.in_use("run"):  # alone on its root: nothing counts of earlier runs
        assert num_deaths(root, "clip.depth") == 0


def test_a_network_of_ones_own_in_the_pipeline(
    ray_cluster: None, sample_server: samples.SampleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (code,) = re.findall(r"```python\n(import kdepth\nimport torch\n.*?)```", readme, re.DOTALL)
    (tmp_path / "my_net.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    sources = kdepth.read_sources(sample_server.url_list, limit=1)
    report = run_pipeline(sources, "root", model="my_net.py", frames="middle")
    assert (report.num_ok, report.num_failed) == (1, 0)
    assert kdepth.pending(sources, "root", model="my_net.py", frames="middle").num_rows == 0
    (tmp_path / "my_net.py").write_text(code + "# another\n")
    (why,) = kdepth.pending(sources, "root", model="my_net.py", frames="middle")["why"].to_pylist()
    assert re.fullmatch(r"model my_net\.py@sha256:\w+ -> my_net\.py@sha256:\w+", why)


def test_no_cluster_at_the_address() -> None:
    with socket.socket() as unused:  # bound, and not listening
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionError, match=r"no Ray cluster answers at .*ray start --head"):
            cluster._require_reachable(f"127.0.0.1:{unused.getsockname()[1]}")


def test_a_root_is_no_lance_dataset(ray_cluster: None, tmp_path: Path) -> None:
    sources = kdepth.read_sources(["http://127.0.0.1:9/a.mp4"])
    with pytest.raises(ValueError, match=r"give the folder that is to hold clips\.lance"):
        run_pipeline(sources, tmp_path / "clips.lance")
    assert list(tmp_path.iterdir()) == []


def test_a_clip_too_narrow_for_the_model_is_a_failed_row(
    ray_cluster: None, sample_server: samples.SampleServer, tmp_path: Path
) -> None:
    narrow = tmp_path / "narrow.mp4"
    picture = ["-f", "lavfi", "-i", "testsrc2=size=4096x16:rate=5:duration=1"]
    subprocess.run([ffmpeg_path(), "-v", "error", *picture, "-c:v", "libx264", str(narrow)], check=True)
    sample_server.serve("narrow.mp4", narrow)
    base = sample_server.url_list.read_text().splitlines()[0].rpartition("/")[0]
    sources = kdepth.read_sources([f"{base}/narrow.mp4"])
    report = run_here(sources, tmp_path / "root")
    assert report.failures == {("depth", "DepthError"): 1}
    (row,) = kdepth.open_dataset(tmp_path / "root").failures().to_pylist()
    assert "the clip is 4096x16, a ratio of 256.0; max_aspect_ratio=10" in row["error_message"]


def test_a_number_of_frames_has_one_name(sample_run: Run) -> None:
    for frames in (2, 2.0, "2", "2.0"):
        assert kdepth.pending(sample_run.sources, sample_run.root, frames=frames).num_rows == 0
    assert kdepth.pending(sample_run.sources, sample_run.root, frames=2.5).num_rows > 0
