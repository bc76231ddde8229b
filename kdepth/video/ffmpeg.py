"""The one place that starts FFmpeg.

Downloaded bytes are hostile. They are opened only in a child process that may read files but no network, knows a fixed
list of containers (none that points at other files), and lives under limits of time, memory and output size. Nothing
of the parent's environment but what FFmpeg needs goes with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import imageio_ffmpeg

from kdepth.errors import (
    DamagedMediaError,
    MediaTooLargeError,
    NoVideoStreamError,
    RefusedReferenceError,
    TranscodeError,
    TranscodeMemoryError,
    TranscodeTimeoutError,
    UnsupportedMediaError,
)

# Containers that hold their own pictures. Not on it: playlists and lists of files (hls, dash, concat, image2, sdp),
# still pictures, devices and generators (lavfi), scripts (avisynth), and raw formats that take any bytes for a picture.
DEMUXERS = (
    *("asf", "avi", "dv", "flv", "matroska", "mov", "mpeg", "mpegts", "mxf", "nut", "ogg", "rm", "swf", "wtv"),
    *("av1", "h261", "h263", "h264", "hevc", "ivf", "m4v", "mjpeg", "mpegvideo", "obu", "vc1", "vvc"),  # bare streams
    *("apng", "gif", "yuv4mpegpipe"),
    *("aac", "ac3", "aiff", "eac3", "flac", "mp3", "wav"),  # only to say that there are no pictures
)

MAX_PIXELS = 8192 * 4320  # DCI 8K
MAX_MEMORY_BYTES = 4 << 30
_MAX_ALLOCATION_BYTES = 1 << 30  # any single one
_MAX_OUTPUT_BYTES = 2 << 30
_HEAD_BYTES, _TAIL_BYTES = 1 << 16, 1 << 14  # of the log
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "LIBVA_DRIVER_NAME")


@dataclass(frozen=True, slots=True)
class FfmpegResult:
    """What an FFmpeg process left behind.

    Attributes:
        log: What it printed: all of it, or the first 64 KiB and the last 16 KiB.
        returncode: Exit status, negative for a signal.
        peak_memory_bytes: Largest resident set; at least what this process had when it started the other.
    """

    log: str
    returncode: int
    peak_memory_bytes: int


@cache
def ffmpeg_path() -> str:
    """The FFmpeg in use: ``KDEPTH_FFMPEG`` if set, else 5.1 or newer on ``PATH``, else the one of imageio-ffmpeg."""
    if chosen := os.environ.get("KDEPTH_FFMPEG"):
        return os.path.abspath(shutil.which(chosen) or chosen)
    found = shutil.which("ffmpeg")
    if found and not re.match(r"n?([0-4]\.|5\.0)", _version_of(found)):
        return os.path.abspath(found)
    return str(imageio_ffmpeg.get_ffmpeg_exe())


@cache
def ffmpeg_version() -> str:
    """Version of the FFmpeg in use, such as ``5.1.9-0+deb12u1``."""
    return _version_of(ffmpeg_path())


def _version_of(path: str) -> str:
    answer = subprocess.run([path, "-version"], capture_output=True, text=True, check=False).stdout.split()
    return answer[2] if answer[:2] == ["ffmpeg", "version"] else "unknown"


@cache
def can_encode(arguments: tuple[str, ...]) -> bool:
    """Whether the FFmpeg in use, on this machine, encodes a few frames with these output arguments."""
    pictures = ("-f", "lavfi", "-i", "testsrc2=size=640x360:duration=0.2")
    command = [ffmpeg_path(), "-nostdin", "-loglevel", "quiet", *pictures, *arguments, "-f", "null", "-"]
    try:
        return subprocess.run(command, timeout=30, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@cache
def launcher() -> tuple[str, ...]:
    """What makes a child die with its parent, even if that is killed; nothing where there is none (macOS, busybox).

    Not by `preexec_fn`: that runs Python in a fork of a process full of threads. Without a launcher an orphan ends at
    its CPU limit, and writes to nothing but its own ``.part`` file.
    """
    launcher = (shutil.which("setpriv") or "", "--pdeathsig", "KILL", "--no-new-privs")
    works = launcher[0] and subprocess.run([*launcher, "true"], capture_output=True, check=False).returncode == 0
    return launcher if works else ()


def input_arguments(source: Path, *, threads: int) -> list[str]:
    """Arguments that open an untrusted file, with every limit that FFmpeg itself knows."""
    return [
        *("-protocol_whitelist", "file", "-format_whitelist", ",".join(DEMUXERS)),
        *("-probesize", "10M", "-analyzeduration", "10M", "-max_streams", "64"),
        *("-max_pixels", str(MAX_PIXELS), "-threads", str(threads)),
        # "file:" takes the rest as it is: no name is an option, another protocol or a pattern.
        *("-i", f"file:{source.absolute()}"),
    ]


def run_ffmpeg(
    arguments: Sequence[str],
    *,
    source: Path,
    timeout_seconds: float,
    threads: int = 1,
    max_memory_bytes: int | None = MAX_MEMORY_BYTES,
    niceness: int = 0,
    expect_failure: bool = False,
) -> FfmpegResult:
    """Run FFmpeg in a process group of its own, which does not outlive this call, nor this process.

    Args:
        arguments: What follows the global options.
        source: The untrusted file, for messages and for the class of the error.
        timeout_seconds: Wall-clock limit; the limit of CPU time is this times ``threads``.
        threads: Threads that the arguments ask for.
        max_memory_bytes: Limit of the child's address space; None for hardware encoders, whose drivers reserve more
            than there is.
        niceness: Added to the priority number: 0 as the parent, 19 lowest.
        expect_failure: Return instead of raising when it ends with a status over 0.

    Raises:
        TranscodeError: A subclass that says what the file did.
    """
    if not source.exists():
        raise TranscodeError(str(source), None, "no such file")
    if not source.is_file():
        # A FIFO or a device could feed bytes for ever.
        raise UnsupportedMediaError(str(source), None, "not a regular file")
    if source.stat().st_size == 0:
        raise DamagedMediaError(str(source), None, "the file is empty")
    command = [*launcher(), ffmpeg_path(), "-nostdin", "-hide_banner", "-nostats", "-filter_threads", str(threads)]
    command += ["-max_alloc", str(_MAX_ALLOCATION_BYTES), *arguments]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # Each malloc arena takes 64 MB of address space.
    environment |= {"MALLOC_ARENA_MAX": "2", "AV_LOG_FORCE_NOCOLOR": "1", "LC_ALL": "C"}
    deadline = time.monotonic() + timeout_seconds
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd="/",
        env=environment,
        start_new_session=True,
    )
    try:
        _limit(process.pid, timeout_seconds * threads, max_memory_bytes, niceness)
        log, timed_out = _read_log(process, deadline)
    finally:
        # Also on KeyboardInterrupt. The group's leader is not reaped yet, so the number is still ours.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.stderr:
            process.stderr.close()
    result = FfmpegResult(log, process.returncode, usage.ru_maxrss * 1024)
    if timed_out:
        raise TranscodeTimeoutError(str(source), result.returncode, f"stopped after {timeout_seconds:g} s")
    if result.returncode < 0 or (result.returncode > 0 and not expect_failure):
        raise failure(source, result)
    return result


def _limit(pid: int, cpu_seconds: float, memory_bytes: int | None, niceness: int) -> None:
    """Set the child's limits from outside, before it has opened anything."""
    limits = {
        resource.RLIMIT_CPU: _cpu_limit(cpu_seconds),
        resource.RLIMIT_FSIZE: (_MAX_OUTPUT_BYTES, _MAX_OUTPUT_BYTES),
        resource.RLIMIT_CORE: (0, 0),
    }
    if memory_bytes is not None:
        limits[resource.RLIMIT_AS] = (memory_bytes, memory_bytes)
    with contextlib.suppress(ProcessLookupError):
        for name, limit in limits.items() if hasattr(resource, "prlimit") else ():  # Linux alone has it
            _, allowed = resource.prlimit(pid, name)
            if allowed != resource.RLIM_INFINITY:  # somebody's own limit, which only root may raise
                limit = (min(limit[0], allowed), min(limit[1], allowed))
            resource.prlimit(pid, name, limit)
        if niceness:
            os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + niceness)


def _cpu_limit(seconds: float) -> tuple[int, int]:
    """At the first FFmpeg stops by itself, at the second the kernel stops it."""
    return int(seconds) + 1, int(seconds) + 5


def _read_log(process: subprocess.Popen[bytes], deadline: float) -> tuple[str, bool]:
    """Read stderr to its end, which is the end of the process, keeping its head and tail; False when in time."""
    head, tail, timed_out = b"", b"", False
    assert process.stderr is not None
    descriptor = process.stderr.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                timed_out = True
                break
            if not (chunk := os.read(descriptor, 1 << 16)):
                break
            room = _HEAD_BYTES - len(head)
            head, tail = head + chunk[:room], (tail + chunk[room:])[-_TAIL_BYTES:]
    return (head + tail).decode("utf-8", "replace"), timed_out


# What FFmpeg says -> what it means; the first that is found counts. Both 5.1 and 9.0 use these words.
_MEANINGS: tuple[tuple[str, type[TranscodeError]], ...] = (
    (r"received signal 24", TranscodeTimeoutError),  # SIGXCPU
    (r"Cannot allocate memory|[mc]alloc.* failed|pthread_create.* failed|bad_alloc", TranscodeMemoryError),
    (r"exceeds specified max pixel count|Picture size \d+x\d+ is invalid|File too large", MediaTooLargeError),
    (r"Skipped opening external track|Protocol .* not on whitelist", RefusedReferenceError),
    (r"Stream map .* matches no streams|does not contain any stream", NoVideoStreamError),
    (r"Format not on whitelist|[Dd]ecoder .*not found|no decoder found|Unsupported codec", UnsupportedMediaError),
    # HDR needs an FFmpeg with zscale; some colours it can't convert.
    (r"not implemented|patches welcome|No such filter: 'zscale'|no path between colorspaces", UnsupportedMediaError),
    # Ours, not the file's: these stay plain TranscodeErrors.
    (
        r"No space left|Permission denied|No such file|Unknown encoder|Unrecognized option|No such filter",
        TranscodeError,
    ),
)

_SIGNALS: dict[int, type[TranscodeError]] = {
    signal.SIGKILL: TranscodeMemoryError,  # not by us: by the kernel, out of memory
    signal.SIGXCPU: TranscodeTimeoutError,
    signal.SIGXFSZ: MediaTooLargeError,
}

# Lines of a log that only say that an earlier one stopped the work.
_CONSEQUENCES = re.compile(
    r"Task finished|Terminating thread|Could not open encoder|Nothing was written|Error opening input file"
)

# How text that lists other files begins. FFmpeg refuses it with the same words as any other format it may not open.
_PLAYLIST = re.compile(
    rb"#EXTM3U|<MPD|^ffconcat|<svg|<smil|<asx|^\[playlist\]|^\[reference\]|<SmoothStreaming|\Av=0\s|^(file|https?|rtsp):",
    re.IGNORECASE | re.MULTILINE,
)


def failure(source: Path, result: FfmpegResult) -> TranscodeError:
    """The error that the log and the exit status of a failed run amount to."""
    problems = _problems(result.log, source)
    kind: type[TranscodeError] = RefusedReferenceError if _is_playlist(source) else DamagedMediaError
    if -result.returncode in _SIGNALS:
        kind = _SIGNALS[-result.returncode]
    else:
        for pattern, meaning in _MEANINGS:
            if re.search(pattern, problems):
                if kind is DamagedMediaError or meaning is not UnsupportedMediaError:
                    kind = meaning
                break
    # The last lines say what came of it, and are often the same line many times.
    tail = "\n".join(list(dict.fromkeys(problems.splitlines()))[-6:])
    return kind(str(source), result.returncode, tail or "FFmpeg crashed without a word")


def _problems(log: str, source: Path) -> str:
    """Warnings and errors of a log written with ``-loglevel level+...``, a line each, without addresses and paths."""
    found = re.findall(r"^(?:\[[^\]]*\] )*\[(?:warning|error|fatal|panic)\] (.*)$", log, re.MULTILINE)
    lines = "\n".join(line for line in found if not _CONSEQUENCES.match(line))
    lines = lines or log[-500:].strip()
    return lines.replace(f"file:{source.absolute()}", source.name).replace(f" '{','.join(DEMUXERS)}'", "")


def _is_playlist(source: Path) -> bool:
    with source.open("rb") as file:
        head = file.read(2048)
    return b"\0" not in head and _PLAYLIST.search(head) is not None
