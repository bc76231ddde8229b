"""The runner: what the child may do, how long, with how much, and what is left of it afterwards."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import pytest
from media_zoo import BUILDS, SYSTEM_FFMPEG, VALID, forget_ffmpeg, use_ffmpeg

import kdepth.video.ffmpeg
from kdepth.errors import (
    DamagedMediaError,
    MediaTooLargeError,
    TranscodeError,
    TranscodeMemoryError,
    TranscodeTimeoutError,
    UnsupportedMediaError,
)
from kdepth.video.ffmpeg import DEMUXERS, can_encode, ffmpeg_path, ffmpeg_version, input_arguments, run_ffmpeg

ENDLESS = ("-re", "-f", "lavfi", "-i", "testsrc2", "-f", "null", "-")


@pytest.fixture(autouse=True)
def _forget_ffmpeg() -> Iterator[None]:
    yield
    forget_ffmpeg()


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both FFmpegs in turn."""
    return use_ffmpeg(request.param, monkeypatch)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return VALID[0].build(tmp_path_factory.mktemp("clip"))


def script(folder: Path, text: str) -> str:
    """A program in FFmpeg's place, to see what the runner gives it."""
    path = folder / "ffmpeg"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(
    not SYSTEM_FFMPEG, reason="no ffmpeg on PATH to test beside the shipped one (apt-get install ffmpeg)"
)
def test_both_builds_are_tested() -> None:
    assert len(BUILDS) == 2


def test_which_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = imageio_ffmpeg.get_ffmpeg_exe()
    monkeypatch.delenv("KDEPTH_FFMPEG", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    use_ffmpeg(None, monkeypatch)
    assert ffmpeg_path() == shipped
    script(tmp_path, "echo ffmpeg version 4.4.2-0ubuntu0.22.04.1")
    use_ffmpeg(None, monkeypatch)
    assert ffmpeg_path() == shipped, "too old"
    newer = script(tmp_path, "echo ffmpeg version n7.1")
    use_ffmpeg(None, monkeypatch)
    assert (ffmpeg_path(), ffmpeg_version()) == (newer, "n7.1")
    assert use_ffmpeg(shipped, monkeypatch) == shipped == ffmpeg_path()


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


def test_what_the_child_is_given(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("FFREPORT", "file=/tmp/report")
    # Until the limits are there: they are set from outside just after the start.
    wait = "until ulimit -c | grep -qx 0 && [ $(ulimit -v) = 204800 ]; do :; done"
    use_ffmpeg(
        script(tmp_path, f'{wait}; (env; ulimit -v; ulimit -t; pwd; ps -o pgid= $$; echo "$$") >&2; cat'), monkeypatch
    )
    log = run_ffmpeg([], source=clip, timeout_seconds=30, threads=2, max_memory_bytes=200 << 20).log
    assert "hush" not in log
    assert "FFREPORT" not in log
    assert "204800\n61\n/\n" in log
    group, number = log.split()[-2:]
    assert group == number


def test_long_log_keeps_head_and_tail(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_ffmpeg(script(tmp_path, "(echo first; yes | head -c 9000000; echo last) >&2"), monkeypatch)
    log = run_ffmpeg([], source=clip, timeout_seconds=60).log
    assert log.startswith("first\n")
    assert log.endswith("last\n")
    assert len(log) < 100_000


def test_timeout_kills_the_group(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_ffmpeg(script(tmp_path, f"sleep 1000 & echo $! $$ > {tmp_path}/pids; wait"), monkeypatch)
    with pytest.raises(TranscodeTimeoutError, match="stopped after 1 s") as caught:
        run_ffmpeg([], source=clip, timeout_seconds=1)
    assert caught.value.returncode == -signal.SIGKILL
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        assert ends(pid)


def test_timeout_of_real_work(build: str, clip: Path) -> None:
    with pytest.raises(TranscodeTimeoutError):
        run_ffmpeg(ENDLESS, source=clip, timeout_seconds=0.5)


def test_cpu_limit(build: str, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg stops by itself when the kernel tells it that its CPU time is over."""
    monkeypatch.setattr(kdepth.video.ffmpeg, "_cpu_limit", lambda seconds: (1, 5))
    work = ("-f", "lavfi", "-i", "testsrc2=size=640x360", "-f", "null", "-")
    with pytest.raises(TranscodeTimeoutError) as caught:
        run_ffmpeg(("-loglevel", "level+info", *work), source=clip, timeout_seconds=300)
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
        run_ffmpeg(arguments, source=clip, timeout_seconds=60, max_memory_bytes=380 << 20)
    result = run_ffmpeg(arguments, source=clip, timeout_seconds=60, max_memory_bytes=2000 << 20)
    assert 180 << 20 < result.peak_memory_bytes < 2000 << 20


def test_output_limit(build: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kdepth.video.ffmpeg, "_MAX_OUTPUT_BYTES", 1 << 20)
    out = tmp_path / "out.yuv"
    with pytest.raises(MediaTooLargeError):
        run_ffmpeg(["-f", "lavfi", "-i", "testsrc2", "-f", "rawvideo", str(out)], source=clip, timeout_seconds=60)
    assert out.stat().st_size <= 1 << 20


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv (util-linux)")
def test_child_dies_with_its_parent(clip: Path, tmp_path: Path) -> None:
    """Killed without a chance to tidy up, the parent takes FFmpeg with it."""
    os.mkfifo(tmp_path / "pid")
    child = script(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 1000")
    code = (
        "import sys; from pathlib import Path; from kdepth.video.ffmpeg import run_ffmpeg; "
        "run_ffmpeg([], source=Path(sys.argv[1]), timeout_seconds=600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(clip)], env={**os.environ, "KDEPTH_FFMPEG": child})
    try:
        descriptor = os.pidfd_open(int((tmp_path / "pid").read_text()))  # waits for the child to write it
    finally:
        parent.kill()
        parent.wait()
    assert select.select([descriptor], [], [], 30)[0], "FFmpeg is still there"
    os.close(descriptor)


def test_without_setpriv(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Busybox has a setpriv that can do less, macOS none."""
    monkeypatch.setattr(kdepth.video.ffmpeg, "launcher", lambda: ())
    result = run_ffmpeg(
        ["-loglevel", "level+info", *input_arguments(clip, threads=1), "-f", "null", "-"],
        source=clip,
        timeout_seconds=60,
    )
    assert result.returncode == 0
    with pytest.raises(TranscodeTimeoutError):
        run_ffmpeg(ENDLESS, source=clip, timeout_seconds=0.5)


def test_niceness(build: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = min(os.nice(0) + 3, 19)
    use_ffmpeg(script(tmp_path, f"until [ $(nice) = {expected} ]; do :; done; nice >&2"), monkeypatch)
    assert int(run_ffmpeg([], source=clip, timeout_seconds=30, niceness=3).log) == expected


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
