"""Runs that are killed, that lose workers, that fill the disk: nothing is lost, nothing is there twice."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_server import Server, serve
from pipeline_run import run_here, run_pipeline

import kdepth
from kdepth import samples
from kdepth.dataset.table import read_rows
from kdepth.errors import StorageError
from kdepth.video.ffmpeg import ffmpeg_path

SCRIPT = Path(__file__).parent / "pipeline_run.py"
# The full size, by hand: KDEPTH_KILLS=10 KDEPTH_KILL_CLIPS=60.
NUM_KILLS = int(os.environ.get("KDEPTH_KILLS", "1"))
NUM_CLIPS = int(os.environ.get("KDEPTH_KILL_CLIPS", "24"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Short clips under many names, which are downloaded, transcoded and estimated each."""
    folder = tmp_path / "served"
    folder.mkdir()
    clip = folder / "0.mp4"
    command = [ffmpeg_path(), "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=10:duration=2", str(clip)]
    subprocess.run(command, check=True)
    for number in range(1, NUM_CLIPS):
        shutil.copy(clip, folder / f"{number}.mp4")
    with serve(folder) as running:
        yield running


def start(root: Path, urls: list[str], folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    url_list = folder / "urls.txt"
    url_list.write_text("\n".join(urls))
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), str(root), str(url_list), "all"],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **environment},
        )


def check_whole(root: Path, num_clips: int, folder: Path) -> None:
    log = (folder / "log.txt").read_text(errors="replace")
    ds = kdepth.open_dataset(root)
    assert ds.table(columns=["status"])["status"].to_pylist() == ["ok"] * num_clips, log
    assert ds.verify().num_rows == 0
    assert not list(root.rglob("*.part"))


def descendants(pid: int) -> list[tuple[int, str]]:
    """``(pid, command line)`` of all processes below one."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            number = int(entry.name)
            parents[number] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            commands[number] = (entry / "cmdline").read_text().replace("\0", " ")
        except (ValueError, OSError):
            continue
    found: list[tuple[int, str]] = []
    below = {pid}
    while below:
        below = {child for child, parent in parents.items() if parent in below}
        found += [(child, commands.get(child, "")) for child in below]
    return found


def committed(root: Path) -> int:
    return read_rows(root, ["clip_id"]).num_rows


@pytest.mark.slow
def test_killed_runs_go_on(server: Server, tmp_path: Path) -> None:
    root, rng = tmp_path / "root", random.Random(5)
    urls = [server.url(f"{number}.mp4") for number in range(NUM_CLIPS)]
    before, killed_at = 0, []
    for to_come in range(NUM_KILLS, 0, -1):
        process = start(root, urls, tmp_path)
        # At once, or after some more clips; so that a fast machine has work left, and a slow one gets on.
        goal = before + rng.randint(0, (NUM_CLIPS - before) // (to_come + 1))
        while process.poll() is None and committed(root) < goal:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, 2))
        assert process.poll() is None, "it ended before it was killed: more clips are needed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = committed(root)
        assert now >= before
        before = now
        killed_at.append(now)
    print("committed when killed:", killed_at)
    assert start(root, urls, tmp_path).wait(300) == 0, (tmp_path / "log.txt").read_text(errors="replace")
    check_whole(root, NUM_CLIPS, tmp_path)


@pytest.mark.slow
def test_a_run_outlives_its_workers(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "root"
    urls = [server.url(f"{number}.mp4") for number in range(NUM_CLIPS)]
    process = start(root, urls, tmp_path)
    killed: set[str] = set()
    # Whoever works: the process that downloads, and the actor that transcodes and estimates.
    while process.poll() is None and len(killed) < 2:
        for pid, command in descendants(process.pid):
            for name in ("_download_block", "_DepthStage"):
                if command.startswith("ray::") and name in command and name not in killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(name)
    assert process.wait(300) == 0, (tmp_path / "log.txt").read_text(errors="replace")
    assert "_DepthStage" in killed
    check_whole(root, NUM_CLIPS, tmp_path)


@pytest.mark.slow
def test_a_clip_that_kills_its_worker_fails_and_the_others_are_done(server: Server, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "served" / "0.mp4", tmp_path / "served" / "poison.mp4")
    killer = tmp_path / "ffmpeg"
    killer.write_text(f'#!/bin/sh\ncase "$*" in *poison*) kill -9 $PPID; exit 1;; esac\nexec "{ffmpeg_path()}" "$@"\n')
    killer.chmod(0o755)
    urls = [server.url("0.mp4"), server.url("poison.mp4"), server.url("1.mp4")]
    process = start(tmp_path / "root", urls, tmp_path, KDEPTH_FFMPEG=str(killer))
    assert process.wait(300) == 0, (tmp_path / "log.txt").read_text(errors="replace")
    ds = kdepth.open_dataset(tmp_path / "root")
    assert sorted(ds.table(columns=["status"])["status"].to_pylist()) == ["failed", "ok", "ok"]
    (failure,) = ds.failures().to_pylist()
    assert (failure["failed_stage"], failure["error_type"]) == ("transcode", "WorkerDiedError")
    assert "died 3 times" in failure["error_message"]


@pytest.mark.slow
def test_a_cluster_that_is_empty_is_waited_for_grows_and_loses_a_node(server: Server, tmp_path: Path) -> None:
    url_list, root = tmp_path / "urls.txt", tmp_path / "root"
    num_clips = 8 * NUM_CLIPS  # so that much is left to do when both nodes are at work
    url_list.write_text("\n".join(server.url(f"{n % NUM_CLIPS}.mp4") + f"?{n}" for n in range(num_clips)))
    command = [sys.executable, str(SCRIPT.with_name("growing_cluster.py")), str(root), str(url_list)]
    done = subprocess.run(command, capture_output=True, text=True)
    (tmp_path / "log.txt").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stderr
    said = ["waiting for a node with a CPU: the cluster has 1 nodes, 0 CPUs", "the run waits", "a node is at work"]
    said += ["two nodes are at work", "the first node is lost, and the run goes on", f"{num_clips} clips ok, 0 failed"]
    places = [done.stdout.find(text) for text in said]
    assert -1 not in places, done.stdout
    assert places == sorted(places)
    check_whole(root, num_clips, tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own of a few megabytes."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(path)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_space(
    ray_cluster: None, sample_server: samples.SampleServer, small_disk: Path
) -> None:
    sources = kdepth.read_sources(sample_server.url_list, annotations=sample_server.annotations, limit=5)
    root = small_disk / "root"
    with pytest.raises(StorageError, match=r"no space left on device .* make space and run the same again"):
        run_pipeline(sources, root, frames="middle")
    before = committed(root)
    assert len(kdepth.open_dataset(root)) == before
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    run_here(sources, root, frames="middle")
    ds = kdepth.open_dataset(root)
    assert len(ds) == 5
    assert set(ds.table(columns=["status"])["status"].to_pylist()) == {"ok"}
    assert ds.verify().num_rows == 0


def test_damaged_files_are_found_made_again_and_named(
    ray_cluster: None, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    url_list = tmp_path / "urls.txt"
    url_list.write_text("\n".join(server.url(f"{number}.mp4") for number in range(4)))
    sources = kdepth.read_sources(url_list)
    run_here(sources, root)
    ds = kdepth.open_dataset(root)
    cut, flipped, deleted, good = list(ds)
    before = {clip.clip_id: clip.row for clip in ds}
    cut.video_path.write_bytes(cut.video_path.read_bytes()[:-1000])
    content = bytearray(flipped.depth_path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    flipped.depth_path.write_bytes(content)
    deleted.depth_path.unlink()

    problems = {row["clip_id"]: row["problem"] for row in ds.verify(delete=True).to_pylist()}
    assert set(problems) == {cut.clip_id, flipped.clip_id, deleted.clip_id}
    assert problems[flipped.clip_id] == "1 of 20 frames are not what was written"
    report = run_here(sources, root)
    assert set(report.damage) == set(problems)
    assert f"{flipped.clip_id} ({flipped.row['depth_path']} is missing)" in str(report)
    ds = kdepth.open_dataset(root)
    assert ds.verify().num_rows == 0
    for clip in ds:
        assert clip.row["frames"] == before[clip.clip_id]["frames"]
    assert good.row["committed_at"] == ds[good.clip_id].row["committed_at"]

    # Without looking inside: a size that is not the row's is enough.
    cut = ds[cut.clip_id]  # made anew under another name
    cut.video_path.write_bytes(cut.video_path.read_bytes()[:-1000])
    report = run_here(sources, root)
    assert list(report.damage) == [cut.clip_id]
    assert kdepth.open_dataset(root).verify().num_rows == 0
