"""yt-dlp itself runs here, with its generic extractor and our own server: no site is asked."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from http_server import Fault, Server, serve

from kdepth.downloads import youtube
from kdepth.downloads.youtube import _failure, fetch_youtube
from kdepth.errors import (
    DownloadError,
    DownloadTimeoutError,
    DownloadTooLargeError,
    HttpStatusError,
    RefusedAddressError,
    VideoUnavailableError,
)
from kdepth.video.ffmpeg import MAX_MEMORY_BYTES, ffmpeg_path

needs_yt_dlp = pytest.mark.skipif(importlib.util.find_spec("yt_dlp") is None, reason="extra kdepth[youtube]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("www")
    # Six seconds, a key frame every two: a cut at 1 s is between them.
    picture = ["-f", "lavfi", "-i", "testsrc2=size=320x180:rate=25:duration=6", "-g", "50", "-c:v", "libx264"]
    subprocess.run([ffmpeg_path(), "-v", "error", *picture, str(folder / "v.mp4")], check=True)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serve(folder) as server:
        yield server


def seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        assert container.duration is not None
        return container.duration / av.time_base


@needs_yt_dlp
async def test_a_whole_video(server: Server, folder: Path, tmp_path: Path) -> None:
    fetched = await fetch_youtube(server.url("v.mp4"), tmp_path / "clip.video", allow_private_hosts=True)
    assert (tmp_path / "clip.video").read_bytes() == (folder / "v.mp4").read_bytes()
    assert fetched.num_bytes == (folder / "v.mp4").stat().st_size
    assert os.listdir(tmp_path) == ["clip.video"]


@needs_yt_dlp
async def test_a_clip_is_cut_where_it_should_be(server: Server, tmp_path: Path) -> None:
    span = (1.0, 3.5)
    await fetch_youtube(server.url("v.mp4"), tmp_path / "clip", time_span_seconds=span, allow_private_hosts=True)
    assert seconds(tmp_path / "clip") == pytest.approx(2.5, abs=0.1)


@needs_yt_dlp
@pytest.mark.parametrize(
    ("status", "error"), [(404, HttpStatusError), (403, HttpStatusError), (429, VideoUnavailableError)]
)
async def test_http_errors(server: Server, tmp_path: Path, status: int, error: type[DownloadError]) -> None:
    server.fail_next("v.mp4", *[Fault(status)] * 9)
    with pytest.raises(error) as caught:
        await fetch_youtube(server.url("v.mp4"), tmp_path / "clip", allow_private_hosts=True, attempts=1)
    assert caught.value.http_status == status
    assert os.listdir(tmp_path) == []


@needs_yt_dlp
async def test_limits(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadTooLargeError, match="100000"):
        await fetch_youtube(server.url("v.mp4"), tmp_path / "clip", allow_private_hosts=True, max_bytes=100_000)
    for span in ((None, None), (1, 5)):  # as it arrives; what FFmpeg makes of it
        server.fail_next("v.mp4", *[Fault(chunked=True)] * 9)
        with pytest.raises(DownloadTooLargeError, match="30000"):
            await fetch_youtube(
                *(server.url("v.mp4"), tmp_path / "clip"),
                time_span_seconds=span,
                allow_private_hosts=True,
                max_bytes=30_000,
                attempts=1,
            )
    server.fail_next("v.mp4", *[Fault(hold_at=0.1)] * 9)
    with pytest.raises(DownloadTimeoutError, match=r"not whole after 0\.5 s"):
        await fetch_youtube(server.url("v.mp4"), tmp_path / "clip", allow_private_hosts=True, timeout_seconds=0.5)
    assert os.listdir(tmp_path) == []


@needs_yt_dlp
async def test_it_gets_nothing_that_it_does_not_need(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # FFmpeg itself, with a note of what it was given.
    note, ffmpeg, here = tmp_path / "note", tmp_path / "ffmpeg", tmp_path / "here"
    ffmpeg.write_text(f'#!/bin/sh\n(env; ulimit -v; ulimit -t) >> {note}\nexec {ffmpeg_path()} "$@"\n')
    ffmpeg.chmod(0o700)
    monkeypatch.setattr(youtube, "ffmpeg_path", lambda: str(ffmpeg))
    # Modules of the folder where one happens to be.
    here.mkdir()
    for name in ("yt_dlp", "optparse", "sitecustomize"):
        (here / f"{name}.py").write_text(f"open({str(note)!r}, 'a').write('{name} was imported')")
    monkeypatch.chdir(here)
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PYTHONSTARTUP", "MY_PASSWORD"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("no_proxy", "127.0.0.1,here.example")
    monkeypatch.setenv("SSL_CERT_FILE", "/certificates")
    await fetch_youtube(server.url("v.mp4"), tmp_path / "clip", time_span_seconds=(1, 2), allow_private_hosts=True)
    noted = note.read_text()
    assert "hunter2" not in noted
    assert "was imported" not in noted
    assert "no_proxy=127.0.0.1,here.example" in noted
    assert "SSL_CERT_FILE=/certificates" in noted
    assert noted.splitlines()[-2:] == [str(MAX_MEMORY_BYTES // 1024), "3600"]
    assert sorted(os.listdir(tmp_path)) == ["clip", "ffmpeg", "here", "note"]


@needs_yt_dlp
async def test_errors_hold_no_paths_of_this_machine(server: Server, folder: Path, tmp_path: Path) -> None:
    (folder / "text.mp4").write_bytes(b"no video" * 1000)
    with pytest.raises(DownloadError) as caught:
        await fetch_youtube(server.url("text.mp4"), tmp_path / "c", time_span_seconds=(1, 2), allow_private_hosts=True)
    assert str(tmp_path) not in str(caught.value)


async def test_only_youtube_is_asked(tmp_path: Path) -> None:
    for url in (
        "http://169.254.169.254/",
        "https://youtube.com.evil.example/watch?v=0wR5jVB-WPk",
        "file:///etc/passwd",
        "http://[",
    ):
        with pytest.raises(RefusedAddressError, match="not a URL of YouTube"):
            await fetch_youtube(url, tmp_path / "clip")


async def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yt_dlp", None)
    with pytest.raises(DownloadError, match=r"pip install 'yt-dlp\[default\]'"):
        await fetch_youtube("https://www.youtube.com/watch?v=0wR5jVB-WPk", tmp_path / "clip")


# What the site itself says, which yt-dlp hands on. No site is asked here: these are from memory of people's reports.
OF_THE_SITE = [
    ("[youtube] x: Private video. Sign in if you've been granted access to this video", "private"),
    ("[youtube] x: Video unavailable. This video has been removed by the uploader", "removed"),
    ("[youtube] x: Video unavailable. This video is no longer available because the YouTube account ...", "removed"),
    (
        "[youtube] x: Video unavailable. This video contains content from X, who has blocked it in your country",
        "region",
    ),
    ("[youtube] x: Sign in to confirm your age. This video may be inappropriate for some users.", "sign-in"),
    ("[youtube] x: Sign in to confirm you’re not a bot. See https://github.com/...", "sign-in"),
]
# Words that yt-dlp looks for or adds, as they are in its source (yt_dlp/extractor/youtube/_video.py and _base.py,
# yt_dlp/extractor/common.py; 2026.08.19), around them what the site says.
OF_YT_DLP = [
    ("[youtube] x: {}", "The uploader has not made this video available in your country", "region"),
    ("[youtube] x: {}", "This video is not available from your location due to geo restriction", "region"),
    (
        "[youtube] x: Video unavailable. Try again later. The current session {} for up to ...",
        "has been rate-limited by YouTube",
        "rate limit",
    ),
    ("[youtube] x: Video unavailable. {}", "YouTube is requiring a captcha challenge before playback", "rate limit"),
    ("[youtube] x: {}. Use --cookies", "Login details are needed to download this content", "sign-in"),
    ("[youtube] x: Unable to download webpage: {}429: Too Many Requests", "HTTP Error ", "rate limit"),
]


@pytest.mark.parametrize(
    ("message", "reason"), OF_THE_SITE + [(frame.format(words), reason) for frame, words, reason in OF_YT_DLP]
)
def test_refusals_have_a_class_and_a_reason(message: str, reason: str) -> None:
    error = _failure("https://www.youtube.com/watch?v=x", f"WARNING: something\nERROR: {message}\n")
    assert isinstance(error, VideoUnavailableError)
    assert error.reason.startswith(f"{reason}: [youtube]")
    assert error.http_status == (429 if reason == "rate limit" else None)


@needs_yt_dlp
def test_yt_dlp_still_says_so() -> None:
    spec = importlib.util.find_spec("yt_dlp")
    assert spec is not None
    assert spec.submodule_search_locations
    package = Path(spec.submodule_search_locations[0])
    files = (
        "extractor/youtube/_video.py",
        "extractor/youtube/_base.py",
        "extractor/common.py",
        "networking/exceptions.py",
    )
    source = "".join((package / file).read_text(encoding="utf-8") for file in files)
    assert [words for _, words, _ in OF_YT_DLP if words not in source] == []
