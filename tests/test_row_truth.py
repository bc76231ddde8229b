"""Rows that tell the truth: clips with several sources, segments of a film, lines that can't be used, files in use."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from http_server import Server, serve
from pipeline_run import run_here, run_pipeline

import kdepth
from kdepth.errors import DatasetError
from kdepth.pipeline.deaths import counted
from kdepth.pipeline.pending import PlanRecord, plan_all
from kdepth.pipeline.workers import download_rows
from kdepth.storage import Root
from kdepth.video.ffmpeg import ffmpeg_path

IDS = [f"abcdefghij{i}" for i in range(4)]
NAMES = [f"{youtube_id}_000001_000011" for youtube_id in IDS]


def film(path: Path, picture: str) -> bytes:
    command = [ffmpeg_path(), "-v", "error", "-f", "lavfi", "-i", picture, "-c:v", "libx264", "-pix_fmt", "yuv420p"]
    subprocess.run([*command, str(path)], check=True)
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return film(tmp_path_factory.mktemp("films") / "whole.mp4", "testsrc2=size=160x120:rate=10:duration=1")


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return film(tmp_path_factory.mktemp("films") / "longer.mp4", "testsrc2=size=160x120:rate=10:duration=2")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    with serve(tmp_path / "www") as running:
        yield running


def put(tmp_path: Path, name: str, content: bytes | dict[str, bytes]) -> None:
    """A file on the server, or a tar of members."""
    path = tmp_path / "www" / name
    path.parent.mkdir(exist_ok=True, parents=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    with tarfile.open(path, "w:gz") as tar:
        for member, data in content.items():
            info = tarfile.TarInfo(f"val/{member}" if "." in member else f"val/{member}.mp4")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def annotate(tmp_path: Path) -> Path:
    path = tmp_path / "val.csv"
    path.write_text("label,youtube_id,time_start,time_end,split\n" + "".join(f"run,{i},1,11,val\n" for i in IDS))
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("keep_raw", [True, False])
@pytest.mark.parametrize("order", [("part.tgz", "replacement.tgz"), ("replacement.tgz", "part.tgz")])
def test_a_replacement_archive_mends_what_is_broken_whatever_the_order(
    ray_cluster: None, server: Server, whole: bytes, tmp_path: Path, order: tuple[str, str], keep_raw: bool
) -> None:
    broken = whole[: len(whole) // 3]
    put(tmp_path, "part.tgz", {name: broken if i % 2 else whole for i, name in enumerate(NAMES)})
    put(tmp_path, "replacement.tgz", dict.fromkeys(NAMES[1::2], whole))
    sources = kdepth.read_sources([server.url(name) for name in order], annotations=annotate(tmp_path))
    root = tmp_path / "root"
    report = run_here(sources, root, frames="first", keep_raw=keep_raw)
    assert (report.num_ok, report.num_failed, report.other_content) == (4, 0, [])
    for row in kdepth.open_dataset(root).table().to_pylist():
        assert (row["status"], row["raw_sha256"], row["tried_sources"]) == ("ok", sha256(whole), None)
        assert row["label"] == "run"
    assert kdepth.pending(sources, root, frames="first").num_rows == 0


def test_a_later_run_mends_from_another_source_and_does_not_try_the_same_again(
    ray_cluster: None, server: Server, whole: bytes, tmp_path: Path
) -> None:
    put(tmp_path, "part.tgz", dict.fromkeys(NAMES, whole[: len(whole) // 3]))
    put(tmp_path, "broken.tgz", {NAMES[0]: whole[: len(whole) // 4]})
    put(tmp_path, "replacement.tgz", {NAMES[0]: whole})
    put(tmp_path, f"mirror/{NAMES[1]}.mp4", whole)
    notes, root = annotate(tmp_path), tmp_path / "root"

    def sources(*names: str) -> pa.Table:
        return kdepth.read_sources([server.url(name) for name in names], annotations=notes)

    assert run_here(sources("part.tgz"), root, frames="first").num_failed == 4
    assert kdepth.pending(sources("part.tgz"), root, frames="first").num_rows == 0
    # Another archive holds one of them, broken too: both are remembered, and neither is tried again.
    assert run_here(sources("part.tgz", "broken.tgz"), root, frames="first").num_failed == 1
    rows = {row["clip_id"]: row for row in kdepth.open_dataset(root).table().to_pylist()}
    assert [len(rows[name]["tried_sources"]) for name in NAMES] == [2, 1, 1, 1]
    assert kdepth.pending(sources("part.tgz", "broken.tgz"), root, frames="first").num_rows == 0
    plan = kdepth.pending(sources("part.tgz", f"mirror/{NAMES[1]}.mp4"), root, frames="first")
    assert [plan.num_rows, PlanRecord.of(plan).num_stay_failed] == [1, 3]
    # The replacement alone, and a URL of another one.
    report = run_here(sources("replacement.tgz", f"mirror/{NAMES[1]}.mp4"), root, frames="first")
    assert (report.num_ok, report.num_failed) == (2, 0)
    rows = {row["clip_id"]: row for row in kdepth.open_dataset(root).table().to_pylist()}
    assert [rows[name]["status"] for name in NAMES] == ["ok", "ok", "failed", "failed"]
    assert rows[NAMES[0]]["source_url"] == server.url("replacement.tgz")
    assert (rows[NAMES[1]]["source_url"], rows[NAMES[1]]["archive_member"]) == (
        server.url(f"mirror/{NAMES[1]}.mp4"),
        None,
    )


def test_the_first_of_other_contents_is_kept_and_the_report_names_the_clips(
    ray_cluster: None, server: Server, whole: bytes, longer: bytes, tmp_path: Path
) -> None:
    put(tmp_path, "day1.tgz", dict.fromkeys(NAMES[:2], longer))
    put(tmp_path, "day2.tgz", dict.fromkeys(NAMES[:2], whole))
    frames = {sha256(longer): 20, sha256(whole): 10}
    root = tmp_path / "root"
    report = run_here(kdepth.read_sources([server.url("day1.tgz"), server.url("day2.tgz")]), root, frames="first")
    assert sorted(report.other_content) == NAMES[:2]
    assert "2 clips are in more than one source with other content; kept the first: " in str(report)
    rows = kdepth.open_dataset(root).table().to_pylist()
    assert len(rows) == 2
    assert all(row["num_frames"] == frames[row["raw_sha256"]] for row in rows)
    # In a later run, too; but its own source makes a clip anew.
    put(tmp_path, "day3.tgz", {NAMES[0]: whole[:-1] + b"x"})
    report = run_here(kdepth.read_sources([server.url("day3.tgz")]), root, frames="first")
    assert report.other_content == NAMES[:1]
    assert kdepth.open_dataset(root).table().to_pylist() == rows


def test_urls_of_one_clip_are_alternatives(ray_cluster: None, server: Server, whole: bytes, tmp_path: Path) -> None:
    put(tmp_path, f"a/{NAMES[0]}.mp4", whole[: len(whole) // 3])
    put(tmp_path, f"b/{NAMES[0]}.mp4", whole)
    urls = [server.url(f"{folder}/{NAMES[0]}.mp4") for folder in "abc"]  # the last is not there
    sources = kdepth.read_sources(urls, annotations=annotate(tmp_path))
    report = run_pipeline(sources, tmp_path / "root", frames="first")
    assert (report.num_ok, report.num_failed, report.num_missing) == (1, 0, 0)
    (row,) = kdepth.open_dataset(tmp_path / "root").table().to_pylist()
    assert (row["source_url"], row["raw_sha256"], row["status"]) == (urls[1], sha256(whole), "ok")


def test_segments_of_a_film_are_clips_and_it_is_fetched_once(ray_cluster: None, server: Server, tmp_path: Path) -> None:
    # Grey that grows by 10 levels a second.
    grey = "color=black:size=64x48:rate=10:duration=20,geq=lum='20+10*floor(T)':cb=128:cr=128"
    put(tmp_path, "film.mp4", film(tmp_path / "film.mp4", grey))
    root = tmp_path / "root"
    run_here(kdepth.read_sources([server.url("film.mp4")]), root, frames="first")  # all of it is a clip, too
    (whole,) = kdepth.open_dataset(root).table().to_pylist()
    server.requests.clear()
    table = tmp_path / "segments.csv"
    spans = [(2, 4), (11, 12), (15, 18)]
    table.write_text(
        "url,time_start,time_end,label\n"
        + "".join(f"{server.url('film.mp4')},{start},{end},from{start}\n" for start, end in spans)
    )
    report = run_pipeline(kdepth.read_sources(table), root, frames="first", keep_raw=False)
    assert (report.num_ok, report.num_failed) == (3, 0)
    assert len([request for request in server.requests if request.path.endswith("film.mp4")]) == 1
    ds = kdepth.open_dataset(root)
    by_label = {clip.row["label"]: clip for clip in ds}
    for start, end in spans:
        clip = by_label[f"from{start}"]
        assert (clip.row["cut_start_seconds"], clip.row["cut_end_seconds"]) == (start, end)
        assert clip.row["num_frames"] == 10 * (end - start)
        assert clip.row["duration_seconds"] == pytest.approx(end - start)
        for index, second in ((0, start), (10 * (end - start) - 1, end - 1)):
            expected = (20 + 10 * second - 16) * 255 / 219  # limited range
            assert np.abs(clip.frame(index).astype(float).mean() - expected) < 4
    assert [path.name for path in (root / "raw").iterdir()] == [Path(whole["raw_path"]).name]
    assert ds[whole["clip_id"]].row == whole
    assert kdepth.pending(kdepth.read_sources(table), root, frames="first").num_rows == 0


def test_a_line_that_is_no_source_is_a_failed_row_and_the_rest_runs(
    ray_cluster: None, server: Server, whole: bytes, tmp_path: Path
) -> None:
    put(tmp_path, "a.mp4", whole)
    urls = tmp_path / "urls.txt"
    urls.write_text(f"ftp://h/x.mp4\n{server.url('a.mp4')}\nhttp://a..b/c.mp4\n")
    sources, root = kdepth.read_sources(urls), tmp_path / "root"
    report = run_here(sources, root, frames="first")
    assert (report.num_ok, report.num_failed) == (1, 2)
    assert report.failures == {("source", "SourceError"): 2}
    failures = kdepth.open_dataset(root).failures().to_pylist()
    assert [row["failed_stage"] for row in failures] == ["source", "source"]
    for row, line in zip(failures, (1, 3), strict=True):
        assert f"urls.txt, line {line}: " in row["error_message"]
    assert kdepth.pending(sources, root, frames="first").num_rows == 0


def test_files_of_rows_are_never_written_again_and_cleaned_when_no_row_names_them(
    ray_cluster: None, server: Server, whole: bytes, tmp_path: Path
) -> None:
    for name in NAMES[:2]:
        put(tmp_path, f"{name}.mp4", whole)
    sources, root = kdepth.read_sources([server.url(f"{name}.mp4") for name in NAMES[:2]]), tmp_path / "root"
    run_here(sources, root, frames="5")
    before = kdepth.open_dataset(root)
    clip = before[NAMES[0]]
    files = {path: path.read_bytes() for folder in ("raw", "360p", "depth") for path in (root / folder).iterdir()}
    depth = clip.inverse_depth(2)
    for _ in range(2):
        run_here(sources, root, frames="10")
        run_here(sources, root, frames="5")
    assert all(path.read_bytes() == content for path, content in files.items())
    np.testing.assert_array_equal(clip.inverse_depth(2), depth)  # opened before these runs
    ds = kdepth.open_dataset(root)
    assert ds.verify().num_rows == 0
    num_files, num_bytes = ds.clean()
    named = {row[f"{kind}_path"] for row in ds.table().to_pylist() for kind in ("raw", "video", "depth")}
    found = {str(path.relative_to(root)) for folder in ("raw", "360p", "depth") for path in (root / folder).iterdir()}
    assert found == named
    assert (num_files, num_bytes > 0) == (8, True)
    with pytest.raises(DatasetError, match="open the dataset again"):
        clip.inverse_depth(2)


def test_whole_files_of_a_killed_run_are_used_again_and_no_others(
    ray_cluster: None, server: Server, whole: bytes, tmp_path: Path
) -> None:
    put(tmp_path, "a.mp4", whole)
    sources, root = kdepth.read_sources([server.url("a.mp4")]), tmp_path / "root"
    run_here(sources, root, frames="first")
    (row,) = kdepth.open_dataset(root).table().to_pylist()
    kdepth.open_dataset(root).lance.delete("true")  # as if it had been killed before its commit
    run_here(sources, root, frames="first")
    (again,) = kdepth.open_dataset(root).table().to_pylist()
    assert (again["raw_path"], again["video_path"]) == (row["raw_path"], row["video_path"])
    assert again["download_attempts"] == 0
    assert again["depth_path"] != row["depth_path"]
    kdepth.open_dataset(root).lance.delete("true")
    run_here(sources, root, frames="first", height=180)
    (other,) = kdepth.open_dataset(root).table().to_pylist()
    assert other["video_path"] != row["video_path"]
    assert Root(root).size(row["video_path"]) == row["video_bytes"]


def test_a_damaged_file_of_an_archives_clip_is_made_anew(
    ray_cluster: None, server: Server, whole: bytes, tmp_path: Path
) -> None:
    """Its key is that of the file that is wanted, but it is not whole."""
    put(tmp_path, "part.tgz", dict.fromkeys(NAMES[:2], whole))
    sources, root = kdepth.read_sources([server.url("part.tgz")]), tmp_path / "root"
    run_here(sources, root, frames="first", keep_raw=False)
    clip = kdepth.open_dataset(root)[NAMES[0]]
    clip.video_path.write_bytes(clip.video_path.read_bytes()[:-500])
    report = run_here(sources, root, frames="first", keep_raw=False)
    assert (report.num_ok, report.num_failed, list(report.damage)) == (1, 0, NAMES[:1])
    ds = kdepth.open_dataset(root)
    assert ds[NAMES[0]].row["video_path"] != clip.row["video_path"]
    assert ds.verify().num_rows == 0
    # Its own source is not in the list any more: another one will do.
    ds[NAMES[0]].video_path.write_bytes(b"")
    put(tmp_path, "other.tgz", {NAMES[0]: whole})
    report = run_here(kdepth.read_sources([server.url("other.tgz")]), root, frames="first", keep_raw=False)
    assert (report.num_ok, report.num_failed, report.other_content) == (1, 0, [])
    ds = kdepth.open_dataset(root)
    assert ds[NAMES[0]].row["source_url"] == server.url("other.tgz")
    assert ds.verify().num_rows == 0
    # And if there is none, the row says so.
    ds[NAMES[0]].video_path.write_bytes(b"")
    put(tmp_path, "other.tgz", {NAMES[0]: whole[: len(whole) // 3]})
    for path in (root / "archives").iterdir():
        path.unlink()
    run_here(kdepth.read_sources([server.url("other.tgz")]), root, frames="first", keep_raw=False)
    rows = kdepth.open_dataset(root).table(columns=["clip_id", "status", "failed_stage"]).to_pylist()
    assert rows[0] == {"clip_id": NAMES[0], "status": "failed", "failed_stage": "transcode"}


def test_a_message_does_not_say_where_the_root_is(
    ray_cluster: None, server: Server, whole: bytes, tmp_path: Path
) -> None:
    put(tmp_path, "a.mp4", whole)
    sources, root = kdepth.read_sources([server.url("a.mp4")]), tmp_path / "root"
    net = tmp_path / "net.py"
    net.write_text(
        "import kdepth\n\ndef load(device):\n    def predict(frames, focal, before):\n"
        f"        open({str(root / 'depth' / 'no' / 'file')!r})\n"
        "    return kdepth.DepthModel(predict, kind='metric')\n"
    )
    report = run_here(sources, root, model=str(net))
    assert report.failures == {("depth", "FileNotFoundError"): 1}  # any error of a clip is that clip's
    (row,) = kdepth.open_dataset(root).failures().to_pylist()
    assert "depth/no/file" in row["error_message"]
    assert str(root) not in row["error_message"]
    # Mended, it is another model, and nothing of the failure stays in the row.
    prediction = "    return frames[:, 0].float() / 255 + 1, None, None"
    net.write_text(net.read_text().replace(net.read_text().splitlines()[4], f"    {prediction}"))
    assert run_here(sources, root, model=str(net)).num_ok == 1
    (row,) = kdepth.open_dataset(root).table().to_pylist()
    assert row["status"] == "ok"
    assert [row[name] for name in ("failed_stage", "error_type", "error_message", "tried_sources")] == [None] * 4


def test_an_archive_without_videos_is_read_again_when_asked_for(
    ray_cluster: None, server: Server, whole: bytes, tmp_path: Path
) -> None:
    put(tmp_path, "part.tgz", {"read.me": b"moved"})
    sources, root = kdepth.read_sources([server.url("part.tgz")]), tmp_path / "root"
    assert run_here(sources, root, frames="first").failures == {("download", "ArchiveError"): 1}
    assert "but for 1 that failed" in str(run_here(sources, root, frames="first"))
    put(tmp_path, "part.tgz", {NAMES[0]: whole})
    assert run_here(sources, root, frames="first", retry_failed=True).num_ok == 1
    assert kdepth.open_dataset(root).table(columns=["status"]).to_pylist() == [{"status": "ok"}]


def test_a_member_that_workers_die_on_is_given_up(
    ray_cluster: None, server: Server, whole: bytes, tmp_path: Path
) -> None:
    """The members before it are read again each time, and that takes none of its deaths back."""
    put(tmp_path, "part.tgz", dict.fromkeys(NAMES[:3], whole))
    root = Root(tmp_path / "root")
    row = plan_all(kdepth.read_sources([server.url("part.tgz")])).to_pylist()[0]
    deaths = [counted(root, f"{row['clip_id']}.1.download") for _ in range(3)]
    for death in deaths:
        death.__enter__()  # and never left
    rows = list(download_rows([row], root, {}, allow_private_hosts=True, keep=True, at_once=1))
    assert [(row["clip_id"], row["error_type"]) for row in rows] == [
        (NAMES[0], None),
        (row["clip_id"], "WorkerDiedError"),
    ]
