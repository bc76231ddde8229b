"""Lists as the CVDF mirror has them, with annotation files of each version, through the pipeline over a bad network."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest
from http_server import Fault, serve
from pipeline_run import run_here, run_pipeline

import kdepth
from kdepth.video.ffmpeg import ffmpeg_path


class Style(NamedTuple):
    """What a version's list and annotations look like."""

    list_name: str
    archive: str
    annotations: str
    columns: str


STYLES = {
    "k400": Style("k400_val_path.txt", "part_{}.tar.gz", "val.csv", "label,youtube_id,time_start,time_end,split,is_cc"),
    "k600": Style(
        "k600_val_path.txt", "playing [{}] (indoors).tar.gz", "val.txt", "label,youtube_id,time_start,time_end,split"
    ),
    "k700": Style(
        "k700_2020_val_path.txt", "k700_val_{:03d}.tar.gz", "val.csv", "label,youtube_id,time_start,time_end,split"
    ),
}
LABELS = ['"catching, or throwing, baseball"', "tying knot (not on a tie)", "abseiling"]
NOWHERE, UNKNOWN = 5, 8  # annotated and in no archive; in an archive and not annotated


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    picture = ["-f", "lavfi", "-i", "testsrc2=size=320x240:rate=10:duration=1", "-c:v", "libx264"]
    subprocess.run([ffmpeg_path(), "-v", "error", *picture, str(path)], check=True)
    return path.read_bytes()


def tar_gz(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("style", STYLES)
def test_every_clip_of_a_list_arrives_once_with_its_label(
    ray_cluster: None, video: bytes, tmp_path: Path, style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    list_name, archive, annotation_name, columns = STYLES[style]
    ids = [f"{style}-{i:06d}" for i in range(12)]
    names = [archive.format(i) for i in range(3)]
    folder, root = tmp_path / "www", tmp_path / "root"
    folder.mkdir()
    for i, name in enumerate(names):
        # Four of twelve in each, the first of them in the archive before it too, and what macOS leaves beside files.
        held = [ids[k] for k in range(4 * i - (i > 0), 4 * i + 4) if k != NOWHERE]
        members = {f"val/{clip}_000001_000011.mp4": video for clip in held}
        (folder / name).write_bytes(tar_gz({"val/._x.mp4": b"mac"} | members))
    lines = [columns]
    for k, clip in enumerate(ids):
        fields = {"label": LABELS[k % 3], "youtube_id": clip, "time_start": "1", "time_end": "11", "split": "val"}
        if k != UNKNOWN:
            lines.append(",".join((fields | {"is_cc": "0"})[column] for column in columns.split(",")))
    (tmp_path / annotation_name).write_text("\ufeff" + "\r\n".join(lines) + "\r\n")
    faults = {
        names[0]: [Fault(503, {"Retry-After": "2"}), Fault(reset_at=0.5), Fault(reset_at=0.7)],
        names[1]: [Fault(extra_length=1000), Fault(429)],
        names[2]: [Fault(chunked=True, reset_at=0.3)],
    }
    is_rough = style == "k400"  # once is enough
    with serve(folder, faults=faults if is_rough else {}) as server:
        base = f"http://127.0.0.1:{server.port}"
        (tmp_path / list_name).write_text("".join(f"{base}/{name}\n" for name in names))
        sources = kdepth.read_sources(tmp_path / list_name, annotations=tmp_path / annotation_name)
        report = (run_pipeline if is_rough else run_here)(sources, root, frames="middle")
        assert server.bytes_sent <= 1.6 * sum((folder / name).stat().st_size for name in names)
        num_requests = len(server.requests)
        assert kdepth.pending(sources, root, frames="middle").num_rows == 0
        assert len(server.requests) == num_requests

    rows = {row["clip_id"]: row for row in kdepth.open_dataset(root).table().to_pylist()}
    present = {f"{clip}_000001_000011": k for k, clip in enumerate(ids) if k != NOWHERE}
    assert sorted(rows) == sorted(present)
    for clip_id, k in present.items():
        row = rows[clip_id]
        assert (row["status"], row["num_frames"], row["height"]) == ("ok", 10, 360)
        assert row["youtube_id"] == ids[k]
        assert (row["time_start_seconds"], row["time_end_seconds"]) == (1, 11)
        assert row["label"] == (None if k == UNKNOWN else LABELS[k % 3].strip('"'))
        assert row["split"] == (None if k == UNKNOWN else "val")
    assert (report.num_ok, report.num_failed) == (11, 0)
    assert (report.annotated_without_clip, report.clips_without_annotation) == (1, 1)
    assert "annotated, but in no archive: 1" in str(report)
    assert num_requests == (9 if is_rough else 3)
    shown = capsys.readouterr().out
    assert " MB/s" in shown


def test_a_failure_of_a_list_is_counted_by_its_class(ray_cluster: None, video: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(tar_gz({f"k400-{i:06d}_000001_000011.mp4": video for i in range(2)}))
    (tmp_path / "b.tar.gz").write_bytes(tar_gz({"k400-000002_000001_000011.mp4": b""}))
    with serve(tmp_path, faults={"d.mp4": [Fault(410)], "e.mp4": [Fault(body=b"<html>sorry</html>")]}) as server:
        urls = [server.url(name) for name in ("a.tar.gz", "b.tar.gz", "c.tar.gz", "d.mp4", "e.mp4", "f.mp4")]
        clips = kdepth.download(kdepth.read_sources(urls), tmp_path / "root", allow_private_hosts=True)
        report = kdepth.write_lance(clips, tmp_path / "root")
    assert (report.num_ok, report.num_failed) == (2, 5)
    assert report.failures == {
        ("download", "HttpStatusError"): 3,
        ("download", "ArchiveError"): 1,
        ("download", "NotAVideoError"): 1,
    }
    assert str(report).splitlines()[1].split() == ["3", "x", "download:", "HttpStatusError"]
