"""The runner: what the child may do, how long, with how much, and what is left of it afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import pytest
from media_zoo import BUILDS, SYSTEM_FFMPEG, VALID

from kdepth.errors import (
    DamagedMediaError,
    MediaTooLargeError,
    TranscodeError,
    TranscodeMemoryError,
    TranscodeTimeoutError,
    UnsupportedMediaError,
)
from kdepth.video.ffmpeg import (
    DEMUXERS,
    can_encode,
    confinement,
    ffmpeg_path,
    ffmpeg_version,
    input_arguments,
    run_ffmpeg,
)

ENDLESS = ("-re", "-f", "lavfi", "-i", "testsrc2", "-f", "null", "-")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return VALID[0].build(tmp_path_factory.mktemp("clip"))


def script(folder: Path, text: str, version: str = "") -> str:
    """A program in FFmpeg's place, to see what the runner gives it. Asked what it can do, it answers as FFmpeg does."""
    path = folder / "ffmpeg"
    shipped = imageio_ffmpeg.get_ffmpeg_exe()
    answers = f"case $2 in -version) echo {version}; exit;; esac" if version else ""
    asked = f'case $2 in -version|-encoders|-filters|-demuxers) exec "{shipped}" "$@";; esac'
    path.write_text(f"#!/bin/sh\n{answers}\n{asked}\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(
    not SYSTEM_FFMPEG, reason="no ffmpeg on PATH to test beside the shipped one (apt-get install ffmpeg)"
)
def test_both_builds_are_tested() -> None:
    assert len(BUILDS) == 2


def test_which_ffmpeg(use_ffmpeg: Callable[[str | None], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = imageio_ffmpeg.get_ffmpeg_exe()
    monkeypatch.delenv("KDEPTH_FFMPEG", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if not SYSTEM_FFMPEG else f"{tmp_path}:/bin")
    script(tmp_path, "", version="ffmpeg version 4.4.2-0ubuntu0.22.04.1")
    assert use_ffmpeg(None) == shipped, "too old"
    newer = script(tmp_path, "", version="ffmpeg version n7.1")
    assert (use_ffmpeg(None), ffmpeg_version()) == (newer, "n7.1")
    assert use_ffmpeg(shipped) == shipped == ffmpeg_path()


@pytest.mark.parametrize(
    ("question", "lacking"), [("encoders", "libx264"), ("encoders", "aac"), ("filters", "zscale"), ("demuxers", "mov")]
)
def test_an_ffmpeg_that_lacks_something(
    use_ffmpeg: Callable[[str | None], str],
    question: str,
    lacking: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Conda's has no libx264: it is passed over; asked for by name, it is refused, by name of what it lacks."""
    shipped = imageio_ffmpeg.get_ffmpeg_exe()
    path = tmp_path / "ffmpeg"
    without = f'"{shipped}" "$@" | sed "s/ {lacking}[ ,]/ other /"'
    path.write_text(f'#!/bin/sh\nif [ "$2" = -{question} ]; then {without}; else exec "{shipped}" "$@"; fi\n')
    path.chmod(0o755)
    monkeypatch.delenv("KDEPTH_FFMPEG", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert use_ffmpeg(None) == (SYSTEM_FFMPEG or shipped)
    with pytest.raises(TranscodeError, match=rf"lacks {lacking}.*KDEPTH_FFMPEG"):
        use_ffmpeg(str(path))


def test_no_ffmpeg_at_all(tmp_path: Path, use_ffmpeg: Callable[[str | None], str]) -> None:
    with pytest.raises(TranscodeError, match="version unknown"):
        use_ffmpeg(str(tmp_path / "missing"))


def test_build_is_usable(build: str) -> None:
    assert re.match(r"n?(N-)?\d", ffmpeg_version())
    assert can_encode(("-c:v", "libx264"))
    assert not can_encode(("-c:v", "no-such-encoder"))


def test_only_listed_demuxers_exist(build: str) -> None:
    """A misspelt name would silently be a format that is refused."""
    listing = subprocess.run([build, "-hide_banner", "-demuxers"], capture_output=True, text=True, check=True).stdout
    known = {name for names in re.findall(r"^ D\S* +(?:d +)?(\S+)", listing, re.MULTILINE) for name in names.split(",")}
    assert set(DEMUXERS) - known <= {"vvc"}
    assert not {"hls", "dash", "concat", "image2", "lavfi", "sdp", "rtsp", "imf", "svg_pipe"} & set(DEMUXERS)


def test_what_the_child_is_given(
    use_ffmpeg: Callable[[str | None], str], tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("FFREPORT", "file=/tmp/report")
    use_ffmpeg(script(tmp_path, '(env; ulimit -d; ulimit -t; ulimit -c; pwd; ps -o pgid= $$; echo "$$") >&2'))
    log = run_ffmpeg([], source=clip, timeout_seconds=30, threads=2, max_memory_bytes=200 << 20).log
    assert "hush" not in log
    assert "FFREPORT" not in log
    assert "204800\n61\n0\n/\n" in log
    group, number = log.split()[-2:]
    assert group == number


def test_long_log_keeps_its_tail(tmp_path: Path, clip: Path, use_ffmpeg: Callable[[str | None], str]) -> None:
    use_ffmpeg(script(tmp_path, "(echo first; yes | head -c 9000000; echo last) >&2"))
    log = run_ffmpeg([], source=clip, timeout_seconds=60).log
    assert log.endswith("last\n")
    assert len(log) < 100_000


def test_timeout_kills_the_group(tmp_path: Path, clip: Path, use_ffmpeg: Callable[[str | None], str]) -> None:
    pids = tmp_path / "pids"
    use_ffmpeg(script(tmp_path, f"sleep 1000 & echo $! $$ > {pids}; wait"))
    with pytest.raises(TranscodeTimeoutError, match="stopped after 1 s; timeout_seconds allows more") as caught:
        run_ffmpeg([], source=clip, target=pids, timeout_seconds=1)
    assert caught.value.returncode == -signal.SIGKILL
    for pid in map(int, pids.read_text().split()):
        assert ends(pid)


def test_timeout_of_real_work(build: str, clip: Path) -> None:
    with pytest.raises(TranscodeTimeoutError):
        run_ffmpeg(ENDLESS, source=clip, timeout_seconds=0.5)


def test_cpu_limit(build: str, clip: Path) -> None:
    """FFmpeg stops by itself when the kernel tells it that its CPU time is over."""
    work = ("-f", "lavfi", "-i", "testsrc2=size=640x360", "-f", "null", "-")
    with pytest.raises(TranscodeTimeoutError, match="1 s of CPU time") as caught:
        run_ffmpeg(("-loglevel", "level+info", *work), source=clip, timeout_seconds=300, max_cpu_seconds=1)
    assert caught.value.returncode != -signal.SIGKILL


def test_memory_limit(build: str, clip: Path) -> None:
    """Work that needs more than the limit is stopped there, and ends well with more room."""
    big = (
        "-f",
        "lavfi",
        "-i",
        "testsrc2=size=4000x2000",
        "-vf",
        "scale=16000:8000",
        "-frames:v",
        "1",
        "-f",
        "null",
        "-",
    )
    arguments = ("-loglevel", "level+error", *big)
    with pytest.raises(TranscodeMemoryError):
        run_ffmpeg(arguments, source=clip, timeout_seconds=60, max_memory_bytes=150 << 20)
    run_ffmpeg(arguments, source=clip, timeout_seconds=60, max_memory_bytes=2000 << 20)


def test_output_limit(build: str, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.yuv"
    pictures = ["-f", "lavfi", "-i", "testsrc2", "-f", "rawvideo", "-y", str(out)]
    with pytest.raises(MediaTooLargeError):
        run_ffmpeg(pictures, source=clip, target=out, timeout_seconds=60, max_output_bytes=1 << 20)
    assert out.stat().st_size <= 1 << 20


@pytest.mark.skipif("no network" not in confinement(), reason="this system has no seccomp")
def test_no_network(build: str, clip: Path) -> None:
    """Even a filter of an attacker's, which no list of protocols holds, reaches nobody."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http\\\\:127.0.0.1\\\\:{server.getsockname()[1]}"
        with pytest.raises(TranscodeError):
            run_ffmpeg(
                ["-f", "lavfi", "-i", f"movie=filename={url}", "-f", "null", "-"], source=clip, timeout_seconds=60
            )
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.skipif("writes only its target" not in confinement(), reason="this system has no Landlock")
def test_writes_only_its_target(build: str, clip: Path, tmp_path: Path) -> None:
    target, other = tmp_path / "target.txt", tmp_path / "other.txt"
    for path, works in ((target, True), (other, False)):
        printed = [
            "-f",
            "lavfi",
            "-i",
            "testsrc2=duration=0.1",
            "-vf",
            f"signalstats,metadata=print:file={path}",
            "-f",
            "null",
            "-",
        ]
        with contextlib.nullcontext() if works else pytest.raises(TranscodeError):
            run_ffmpeg(["-loglevel", "level+error", *printed], source=clip, target=target, timeout_seconds=60)
    assert [path.name for path in tmp_path.iterdir()] == ["target.txt"]
    assert "frame:0" in target.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_child_dies_with_its_parent(clip: Path, tmp_path: Path) -> None:
    """Killed without a chance to tidy up, the parent takes FFmpeg with it."""
    os.mkfifo(tmp_path / "pid")
    child = script(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 1000")
    code = (
        "import sys; from pathlib import Path; from kdepth.video.ffmpeg import run_ffmpeg; "
        "run_ffmpeg([], source=Path(sys.argv[1]), target=Path(sys.argv[2]), timeout_seconds=600)"
    )
    command = [sys.executable, "-c", code, str(clip), str(tmp_path / "pid")]
    parent = subprocess.Popen(command, env={**os.environ, "KDEPTH_FFMPEG": child})
    try:
        descriptor = os.pidfd_open(int((tmp_path / "pid").read_text()))  # waits for the child to write it
    finally:
        parent.kill()
        parent.wait()
    assert select.select([descriptor], [], [], 30)[0], "FFmpeg is still there"
    os.close(descriptor)


def test_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "endless.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    for path in (tmp_path / "endless.mp4", tmp_path / "zero.mp4", tmp_path):
        with pytest.raises(UnsupportedMediaError, match="not a regular file"):
            run_ffmpeg([], source=path, timeout_seconds=5)
    with pytest.raises(TranscodeError, match="no such file") as caught:
        run_ffmpeg([], source=tmp_path / "missing.mp4", timeout_seconds=5)
    assert type(caught.value) is TranscodeError
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(DamagedMediaError, match="empty"):
        run_ffmpeg([], source=tmp_path / "empty.mp4", timeout_seconds=5)


def test_our_own_faults_are_not_the_files(build: str, clip: Path, tmp_path: Path) -> None:
    """A missing folder or encoder is a plain TranscodeError: no row may blame the file for it."""
    opening = ["-loglevel", "level+error", *input_arguments(clip, threads=1)]
    for output in (["-f", "mp4", str(tmp_path / "nowhere" / "a.mp4")], ["-c:v", "no-such-encoder", "-f", "null", "-"]):
        with pytest.raises(TranscodeError) as caught:
            run_ffmpeg([*opening, *output], source=clip, timeout_seconds=60)
        assert type(caught.value) is TranscodeError
        assert caught.value.returncode
        assert str(clip.parent) not in caught.value.stderr_tail


def ends(pid: int) -> bool:
    """Whether a process that is not a child of ours ends within ten seconds, or has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 10)[0])
    finally:
        os.close(descriptor)
