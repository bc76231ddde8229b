"""One run over 200 files, each hostile in some way: it ends well, and nothing outside the root is touched."""

from __future__ import annotations

import io
import os
import socket
import struct
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_server import Fault, serve
from media_zoo import X264, Clip, ffmpeg
from pipeline_run import run_pipeline

import kdepth

NUM_FILES = 200
CONTAINERS = {"mkv": X264, "mp4": X264, "avi": X264, "ogv": ("-c:v", "libtheora", "-q:v", "9")}
PLACES = (
    ("-metadata", "title"),
    ("-metadata", "comment"),
    ("-metadata:s:v", "language"),
    ("-metadata:s:v", "handler_name"),
    ("-metadata:s:v", "title"),
)


class Watch:
    """Counts who connects."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port, self.num_visitors = self.server.getsockname()[1], 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            self.num_visitors += 1
            connection.close()


def texts(port: int, name: str) -> list[str]:
    """What a file may say of itself."""
    movie = f"movie=filename=http\\\\:127.0.0.1\\\\:{port}[b];[b]nullsink"

    def stream(colors: str) -> str:
        return f"eng): Video: h264, yuv420p(tv, {colors}/bt2020/smpte2084), 64x64, 10 fps\n  x("

    return [
        stream(f"bt2020nc[a];{movie};[a]setparams=colorspace=bt2020nc"),
        stream(f"bt2020nc[a];[a]metadata=mode=print:file={name}[b];[b]setparams=colorspace=bt2020nc"),
        "display matrix: rotation of . degrees",
        "Duration: 99:99:99.99, partial file",
        "Video: h264, " + "9" * 5000 + "x1, ... fps",
        "\x1b[2J\x1b]0;title\x07\r\n\u202egnp.exe",
        f"http://127.0.0.1:{port}/{{}};$(touch {name})`touch {name}`",
    ]


def sayings(folder: Path, port: int, name: str) -> Iterator[str]:
    """Videos that say these things in each place of each container."""
    for suffix, codec in CONTAINERS.items():
        base = Clip(f"base.{suffix}", codec, size=(64, 48), num_frames=6).build(folder.parent)
        for number, text in enumerate(texts(port, name)):
            for place, (option, key) in enumerate(PLACES):
                file = f"says-{number}-{place}.{suffix}"
                ffmpeg("-i", str(base), "-c", "copy", option, f"{key}={text}", str(folder / file))
                yield file


def others(folder: Path, port: int) -> Iterator[str]:
    """Files that are something else, point elsewhere, or claim too much."""
    url = f"http://127.0.0.1:{port}/x.mp4"
    contents = {
        "playlist.mp4": f"#EXTM3U\n#EXTINF:1,\n{url}\n#EXTINF:1,\nfile:///etc/passwd\n",
        "concat.mkv": f"ffconcat version 1.0\nfile '/etc/passwd'\nfile '{url}'\n",
        "dash.webm": f'<?xml version="1.0"?><MPD><BaseURL>{url}</BaseURL></MPD>',
        "sdp.ts": f"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\n",
        "svg.mp4": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>',
        "page.mp4": "<html><script>alert(1)</script></html>",
        "empty.mp4": "",
        "json.mov": '{"error": "gone"}',
    }
    for name, text in contents.items():
        (folder / name).write_text(text)
    box = struct.pack(">I4s", 24, b"ftyp") + b"isom" + bytes(12)
    (folder / "huge.mp4").write_bytes(box + struct.pack(">I4sQ", 1, b"moov", 2**62) + os.urandom(2000))
    (folder / "noise.mp4").write_bytes(box + os.urandom(5000))
    (folder / "rate.mkv").write_bytes(
        Clip("rate.mkv", X264, size=(64, 48), fps="125000", num_frames=200).build(folder.parent).read_bytes()
    )
    wide = Clip("wide.mp4", X264, size=(364, 32), fps="120", num_frames=60).build(folder.parent).read_bytes()
    (folder / "wide.mp4").write_bytes(wide)
    (folder / "cut.mp4").write_bytes(wide[: len(wide) // 2])
    yield from (*contents, "huge.mp4", "noise.mp4", "rate.mkv", "wide.mp4", "cut.mp4")


def archives(folder: Path, video: bytes) -> Iterator[str]:
    """Archives whose members would go elsewhere, or that never end."""
    for suffix, names in {
        "tar": ["../../out.mp4", "/tmp/out.mp4", "a/../../../out.mp4", "\x1b[31mred.mp4", "x" * 3000 + ".mp4"],
        "tar.gz": ["C:\\out.mp4", "..\\out.mp4", "con.mp4", "-rf.mp4", "$(reboot).mp4"],
    }.items():
        with tarfile.open(folder / f"paths.{suffix}", f"w:{'gz' if suffix.endswith('gz') else ''}") as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(video)
                tar.addfile(info, io.BytesIO(video))
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info = tarfile.TarInfo(f"link{int(kind)}.mp4")
                info.type, info.linkname = kind, "/etc/passwd"
                tar.addfile(info)
        yield f"paths.{suffix}"
    with tarfile.open(folder / "pax.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.mp4")
        info.pax_headers = {"comment": "1" * 1_000_000}
        tar.addfile(info)
    yield "pax.tar"
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.mp4", bytes(20_000_000))
        archive.writestr("../out.mp4", video)
    yield "bomb.zip"


def below(folder: Path) -> set[str]:
    return {str(path) for path in folder.iterdir()}


@pytest.mark.slow
def test_a_run_over_hostile_files_ends_well(ray_cluster: None, tmp_path: Path) -> None:
    folder, root, watch = tmp_path / "www", tmp_path / "root", Watch()
    folder.mkdir()
    name = f"written-by-{tmp_path.name}"
    video = Clip("video.mp4", X264, size=(64, 48), num_frames=6).build(tmp_path).read_bytes()
    files = [*sayings(folder, watch.port, name), *others(folder, watch.port), *archives(folder, video)]
    targets = [
        "http://a..b/",
        "file:///etc/passwd",
        "//",
        "http://[::1",
        "http://h:99999/",
        "gopher://h/",
        "http://\x01/",
    ]
    faults = {f"to-{i}.mp4": [Fault(302, {"Location": target})] * 9 for i, target in enumerate(targets)}
    number = 0
    while len(files) + len(faults) < NUM_FILES:  # the rest is noise of every length
        files.append(f"noise-{number}.mp4")
        (folder / files[-1]).write_bytes(os.urandom(1 + number * 97))
        number += 1
    before = {where: below(where) for where in (Path("/"), Path.cwd(), Path("/tmp"))}
    with serve(folder, faults=faults) as server:
        urls = [server.url(file) for file in (*files, *faults)]
        sources = kdepth.read_sources(urls)
        report = run_pipeline(sources, root, frames="first")
    assert watch.num_visitors == 0
    for where, names in before.items():
        assert not [new for new in below(where) - names if "written-by" in new or "out.mp4" in new]
    rows = kdepth.open_dataset(root).table().to_pylist()
    assert report.num_missing == 0
    assert {row["status"] for row in rows} == {"ok", "failed"}
    assert Counter(row["error_type"] for row in rows)["WorkerDiedError"] == 0
    direct = {row["source_url"] for row in rows if row["archive_member"] is None}
    from_archives = {row["source_url"] for row in rows if row["archive_member"] is not None}
    assert direct | from_archives == set(urls)
    assert len(direct | from_archives) == NUM_FILES
    says = [row for row in rows if "/says-" in row["source_url"]]
    assert {row["status"] for row in says} == {"ok"}  # what a good video says of itself is only text
    for row in rows:
        message = row["error_message"] or ""
        assert message.isprintable()
        assert str(tmp_path) not in message
        for kind in ("raw", "video", "depth"):
            path = row[f"{kind}_path"]
            assert path is None or (root / path).resolve().is_relative_to(root)
    assert kdepth.open_dataset(root).verify().num_rows == 0
