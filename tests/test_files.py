"""Files that are never written twice: who uses a root, what is kept, what is removed; in a folder and in a store."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lance
import numpy as np
import pytest
from tiny_dataset import tiny_clip

import kdepth
from kdepth.dataset.table import remove_unnamed_files
from kdepth.dataset.writer import ClipWriter
from kdepth.errors import DatasetError
from kdepth.schema import FAILED, OK, new_row
from kdepth.storage import Root, key_of, made_name

FOLDERS = ("raw", "360p", "depth")
OTHER_RUN = """
import sys
from kdepth.storage import Root
with Root(sys.argv[1]).in_use("other"):
    print("in use", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["folder", "store"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    if request.param == "folder":
        return Root(tmp_path / "root")
    return Root(f"{request.getfixturevalue('s3')}/{request.node.name[:20]}-{tmp_path.name}")


def run(root: Root, run_id: str, *rows: dict[str, object]) -> int:
    writer = ClipWriter(root.uri, run_id)
    for row in rows:
        writer.add(row)
    return writer.finish()


def files_in(root: Root) -> set[str]:
    return {name for folder in FOLDERS for name in root.sizes(folder)}


def put(root: Root, *names: str) -> None:
    for name in names:
        with root.writing(name) as path:
            path.write_text(name)


def other_run(root: Root) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OTHER_RUN, root.uri]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in use\n"
    return process


def test_a_run_is_seen_while_it_lives(root: Root) -> None:
    assert root.others() == []
    with root.in_use("mine"):
        assert root.others("mine") == []
        assert root.others() == ["mine"]
        with other_run(root) as process:
            assert root.others("mine") == ["other"]
            process.kill()
            process.wait()
            assert root.others("mine") == []  # its process has ended, although its mark is new
            assert root.sizes("runs").keys() == {"runs/mine", "runs/other"}
    assert root.others() == []
    assert root.sizes("runs").keys() == {"runs/other"}


def test_a_mark_that_is_not_renewed_is_a_dead_runs(tmp_path: Path) -> None:
    root = Root(tmp_path)
    mark = tmp_path / "runs" / "elsewhere"
    with root.in_use("mine"):
        mark.write_text("another-machine 1")
        assert root.others("mine") == ["elsewhere"]
        os.utime(mark, (time.time() - 500,) * 2)
        assert root.others("mine") == ["elsewhere"]
        os.utime(mark, (time.time() - 700,) * 2)
        assert root.others("mine") == []
        # Only the store's own clock counts, whatever this machine's says.
        for path, age in ((mark, 90_700), (tmp_path / "runs" / "mine", 90_600)):
            os.utime(path, (time.time() - age,) * 2)
        assert root.others("mine") == ["elsewhere"]


def test_a_mark_is_renewed_while_the_run_lives(tmp_path: Path) -> None:
    mark = tmp_path / "runs" / "mine"
    with Root(tmp_path).in_use("mine", heartbeat_seconds=0.01):
        os.utime(mark, (0, 0))
        for _ in range(3000):
            if mark.stat().st_mtime > 0:
                break
            threading.Event().wait(0.01)
        assert mark.stat().st_mtime > 0
    assert not mark.exists()


def test_what_dead_runs_left_half_done_goes_when_nobody_else_is_alive(root: Root) -> None:
    parts = ["360p/a.mp4.0.part", "depth/a.mkv.0.part", "raw/a.mp4.0123456789.part", "raw/a.mp4.lock"]
    others = ["raw/a.mp4.part", "raw/a.mp4", "360p/a.mp4", "depth/a.part.mkv"]
    with other_run(root) as process:
        for name in (*parts, *others):
            (root.work / name).parent.mkdir(parents=True, exist_ok=True)
            (root.work / name).write_text(name)
        with root.in_use("mine"):
            pass
        assert all((root.work / name).exists() for name in (*parts, *others))
        process.communicate("")
    with root.in_use("mine"):
        assert not any((root.work / name).exists() for name in parts)
    assert all((root.work / name).exists() for name in others)


def test_whole_files_are_found_by_what_they_were_made_of(root: Root) -> None:
    key, other = key_of("http://x", 360), key_of("http://x", 480)
    names = [made_name("360p", "a_-1", key, ".mp4") for _ in range(2)] + [made_name("360p", "a_-1", other, ".mp4")]
    assert len(set(names)) == 3
    put(root, *names, "360p/old.mp4", f"360p/b.{key}-0123456.mp4")
    is_searched = root.is_local  # to list a store's folder for each clip would take longer than to make the file again
    assert root.find_made("360p", "a_-1", key) == (min(names[:2]) if is_searched else None)
    assert root.find_made("360p", "a_-1", other) == (names[2] if is_searched else None)
    assert root.find_made("360p", "b", key) is None
    assert root.find_made("depth", "a_-1", key) is None


def test_runs_that_alternate_leave_what_rows_name_and_old_readers_go_on(root: Root) -> None:
    first = run(root, "run 0", *(tiny_clip(root, name) for name in "ab"))
    before = kdepth.open_dataset(root.uri)
    opened, pairs = before["a"], kdepth.torch_dataset(root.uri)
    depth, picture = opened.inverse_depth(3), opened.frame(3)
    for number in range(1, 10):
        run(root, f"run {number}", tiny_clip(root, "a", scale=1.0 + number % 2))
    assert np.array_equal(opened.inverse_depth(3), depth)
    assert np.array_equal(opened.frame(3), picture)
    ds = kdepth.open_dataset(root.uri)
    np.testing.assert_allclose(ds["a"].inverse_depth(3), 2 * depth)
    named = {row[column] for row in ds.table().to_pylist() for column in ("video_path", "depth_path")}
    assert len(files_in(root)) == 22 > len(named) == 4
    cleaned = ds.clean()
    assert files_in(root) == named
    assert cleaned.num_files == 18
    assert str(cleaned).startswith("18 files removed, ")
    assert cleaned.num_bytes > 18 * 500
    assert ds.clean() == (0, 0)
    assert ds.verify().num_rows == 0
    # Rows of old versions are there, and say that their files are not.
    then = kdepth.open_dataset(root.uri, as_of=first)
    assert np.array_equal(then["b"].frame(0), ds["b"].frame(0))
    calls: list[Callable[[], object]] = [
        lambda: then["a"].frame(0),
        lambda: then["a"].inverse_depth(0),
        lambda: opened.frame(3),
        lambda: pairs[0],
    ]
    for call in calls:
        with pytest.raises(DatasetError, match=r"is not there any more: .*; open the dataset again, without as_of"):
            call()


def test_nothing_is_removed_while_a_run_is_alive(root: Root) -> None:
    run(root, "run", tiny_clip(root, "a"))
    name = made_name("depth", "b", key_of(1), ".mkv")
    put(root, name)
    with other_run(root) as process:
        with pytest.raises(DatasetError, match="is in use by other: clean it when that has ended"):
            kdepth.open_dataset(root.uri).clean()
        assert name in files_in(root)
        process.communicate("")
    assert kdepth.open_dataset(root.uri).clean() == (1, len(name))


def test_the_end_of_a_run_removes_what_is_old_and_named_by_nobody(tmp_path: Path) -> None:
    root = Root(tmp_path)
    kept = ["360p/a.mp4", "depth/notes.txt", "raw/a.0123456789-01234567.mp4.part", "raw/a.012345678-01234567.mp4"]
    old, new = (made_name("raw", "b", key_of(1), ".mp4") for _ in range(2))
    put(root, *kept, old, new)
    rows = [tiny_clip(root, "a", raw_path=made_name("raw", "a", key_of(2), ".webm"))]
    put(root, str(rows[0]["raw_path"]))
    for name in files_in(root) - {new}:
        os.utime(tmp_path / name, (time.time() - 4000,) * 2)
    with other_run(root) as process:
        run(root, "run 1", *rows)
        assert old in files_in(root)
        process.communicate("")
    run(root, "run 2", new_row(clip_id="c", status=FAILED))
    assert files_in(root) == {*kept, new, rows[0]["raw_path"], rows[0]["video_path"], rows[0]["depth_path"]}


def test_files_are_kept_for_who_has_an_older_version_open_or_gave_it_a_tag(root: Root) -> None:
    rows = [tiny_clip(root, "a", scale=scale) for scale in (1, 2, 3, 4)]
    versions = [run(root, f"run {number}", row) for number, row in enumerate(rows)]
    ds = kdepth.open_dataset(root.uri)
    committed_at = {entry["version"]: entry["committed_at"] for entry in ds.versions}
    lance.dataset(root.lance_uri).tags.create("paper", versions[0])
    hour = timedelta(hours=1)
    for name in files_in(root) if root.is_local else ():
        os.utime(root.work / name, ((datetime.now(UTC) - 2 * hour).timestamp(),) * 2)
    if root.is_local:  # a store gives files the time at which they came
        remove_unnamed_files(root, committed_at[versions[2]])
        assert files_in(root) == {row[kind] for row in (rows[0], *rows[2:]) for kind in ("video_path", "depth_path")}
    ds.clean()
    assert files_in(root) == {row[kind] for row in (rows[0], rows[3]) for kind in ("video_path", "depth_path")}
    assert kdepth.open_dataset(root.uri, as_of="paper")["a"].inverse_depth(0)[0, 0] == 1
    with pytest.raises(DatasetError, match="has no tag 'none'; its tags: paper"):
        kdepth.open_dataset(root.uri, as_of="none")


def test_two_runs_at_once_have_each_clip_once(root: Root) -> None:
    errors: list[BaseException] = []

    def one(run_id: str) -> None:
        try:
            with root.in_use(run_id):
                writer = ClipWriter(root.uri, run_id, {"who": run_id})
                for number in range(12):
                    writer.add(new_row(clip_id=f"{number}", status=OK if number % 2 else FAILED, label=run_id))
                    writer.commit()
                writer.relabel({"1": ["other", None]})
                writer.finish({"seconds": 1})
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(f"run-{number}",)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    ds = kdepth.open_dataset(root.uri)
    ids = ds.table(columns=["clip_id"])["clip_id"].to_pylist()
    assert sorted(ids, key=int) == [str(number) for number in range(12)]
    assert ds.runs() == {f"run-{number}": {"who": f"run-{number}", "seconds": 1} for number in range(2)}
    assert ds["1"].row["label"] == "other"
