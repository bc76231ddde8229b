"""The one place that starts FFmpeg, and any other program that opens untrusted files.

Downloaded bytes are hostile. They are opened only in a child process (`sandbox.py`) that may read files but use no
network and write nothing but its target, and that has limits of time, memory and output size. FFmpeg is told a list of
containers, none of which points at other files. The child gets an environment of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

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
    printable,
)

# Containers that hold their own pictures. Not on it: playlists and lists of files (hls, dash, concat, image2, sdp),
# still pictures, devices and generators (lavfi), scripts (avisynth), and raw formats that take any bytes for a picture.
DEMUXERS = (
    *("asf", "avi", "dv", "flv", "matroska", "mov", "mpeg", "mpegts", "mxf", "nut", "ogg", "rm", "swf", "wtv"),
    *("av1", "h261", "h263", "h264", "hevc", "ivf", "m4v", "mjpeg", "mpegvideo", "obu", "vc1", "vvc"),  # bare streams
    *("apng", "gif", "yuv4mpegpipe"),
    *("aac", "ac3", "aiff", "eac3", "flac", "mp3", "wav"),  # only to say that there are no pictures
)
# What every clip, or some clip, needs of an FFmpeg. (Of demuxers an older one may lack the youngest.)
_NEEDED = {
    "encoders": {"libx264", "aac"},
    "filters": {"bwdif", "format", "pad", "premultiply", "scale", "setparams", "setpts", "tonemap", "trim", "zscale"},
    "demuxers": set(DEMUXERS) - {"av1", "obu", "vvc"},
}

MAX_PIXELS = 8192 * 4320  # DCI 8K
MAX_MEMORY_BYTES = 4 << 30
_MAX_ALLOCATION_BYTES = 1 << 30  # any single one
_MAX_OUTPUT_BYTES = 2 << 30
_TAIL_BYTES = 1 << 16  # of what a child prints
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "LIBVA_DRIVER_NAME")


class ChildResult(NamedTuple):
    """What a child process left behind."""

    output: bytes  # the last 64 KiB that it wrote to its standard output
    log: str  # the last 64 KiB of its messages
    returncode: int  # negative for a signal


@cache
def ffmpeg_path() -> str:
    """The FFmpeg in use: ``KDEPTH_FFMPEG`` if set, else the first that can do what is needed.

    Tried are those on ``PATH``, in its order, and then the one of imageio-ffmpeg.

    Raises:
        TranscodeError: None can; the message says what each of them lacks.
    """
    if chosen := os.environ.get("KDEPTH_FFMPEG"):
        candidates = [shutil.which(chosen) or chosen]
    else:
        folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
        candidates = [found for folder in folders if folder and (found := shutil.which("ffmpeg", path=folder))]
        with contextlib.suppress(RuntimeError):  # it has none for this machine
            candidates.append(imageio_ffmpeg.get_ffmpeg_exe())
    problems = []
    for path in dict.fromkeys(map(os.path.abspath, candidates)):
        if not (lacks := _lacks(path)):
            return path
        problems.append(f"{path}: {lacks}")
    found = "; ".join(problems) or "none was found"
    raise TranscodeError("ffmpeg", None, f"{found}. Set KDEPTH_FFMPEG to an FFmpeg with libx264 and zscale")


@cache
def ffmpeg_version() -> str:
    """Version of the FFmpeg in use, such as ``5.1.9-0+deb12u1``."""
    return _version_of(ffmpeg_path())


def _version_of(path: str) -> str:
    answer = _answer(path, "-version").split()
    return answer[2] if answer[:2] == ["ffmpeg", "version"] else "unknown"


def _answer(path: str, question: str) -> str:
    with contextlib.suppress(OSError):
        command = [path, "-hide_banner", question]
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout
    return ""


def _lacks(path: str) -> str:
    """What an FFmpeg lacks of what is needed; nothing if it will do."""
    version = _version_of(path)
    if version == "unknown" or re.match(r"n?([0-4]\.|5\.0)", version):
        return f"version {version}; 5.1 or newer is needed"
    missing = []
    for kind, needed in _NEEDED.items():
        # A line: flags (of demuxers perhaps a second one, "d"), name or names, what it is.
        lines = re.findall(r"^ *\S+ +(?:d +)?(\S+)", _answer(path, f"-{kind}"), re.MULTILINE)
        known = {name for names in lines for name in names.split(",")}
        missing += sorted(needed - known)
    return f"lacks {', '.join(missing)}" if missing else ""


@cache
def can_encode(arguments: tuple[str, ...]) -> bool:
    """Whether the FFmpeg in use, on this machine and confined, encodes a few frames with these output arguments."""
    pictures = ("-f", "lavfi", "-i", "testsrc2=size=640x360:duration=0.2")
    confined = launcher(network=False, writable=(), memory_bytes=MAX_MEMORY_BYTES)
    command = [*confined, ffmpeg_path(), "-nostdin", "-loglevel", "quiet", *pictures, *arguments, "-f", "null", "-"]
    try:
        return subprocess.run(command, timeout=30, env=child_environment(), check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def launcher(
    *,
    network: bool = True,
    writable: Sequence[Path] | None = None,
    memory_bytes: int | None = None,
    output_bytes: int | None = None,
    cpu_seconds: float | None = None,
) -> tuple[str, ...]:
    """Make the words to put before a command, so that it dies with its parent and has these rights and limits.

    Not by `preexec_fn`: that runs Python in a fork of a process full of threads.

    Args:
        network: Whether it may open sockets.
        writable: The only files, which must exist, that it may write to; None leaves it everything.
        memory_bytes: Limit of its private writable memory.
        output_bytes: Limit of each file that it writes.
        cpu_seconds: Limit of its CPU time.
    """
    limits = {"data": memory_bytes, "size": output_bytes, "cpu": cpu_seconds and int(cpu_seconds) + 1}
    options = [f"{name}={value}" for name, value in limits.items() if value is not None]
    options += [] if network else ["network=no"]
    options += [] if writable is None else ["write=", *(f"write={path.absolute()}" for path in writable)]
    return (sys.executable, "-I", "-S", str(Path(__file__).with_name("sandbox.py")), *options, "--")


@cache
def confinement() -> tuple[str, ...]:
    """What this system enforces of "dies with its parent", "no network" and "writes only its target"."""
    command = launcher(network=False, writable=())
    return tuple(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())


def child_environment() -> dict[str, str]:
    """The environment of a child: what FFmpeg needs of ours, so that no credentials go with it."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return environment | {"AV_LOG_FORCE_NOCOLOR": "1", "LC_ALL": "C"}


def input_arguments(
    source: Path, *, threads: int, max_pixels: int = MAX_PIXELS, options: Sequence[str] = ()
) -> list[str]:
    """Arguments that open an untrusted file, with every limit that FFmpeg itself knows."""
    return [
        *("-protocol_whitelist", "file", "-format_whitelist", ",".join(DEMUXERS)),
        *("-probesize", "10M", "-analyzeduration", "10M", "-max_streams", "64"),
        *("-max_pixels", str(max_pixels), "-threads", str(threads), *options),
        # "file:" takes the rest as it is: no name is an option, another protocol or a pattern.
        *("-i", f"file:{source.absolute()}"),
    ]


def run_ffmpeg(
    arguments: Sequence[str],
    *,
    source: Path,
    target: Path | None = None,
    timeout_seconds: float,
    threads: int = 1,
    max_cpu_seconds: float | None = None,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
    max_output_bytes: int = _MAX_OUTPUT_BYTES,
) -> ChildResult:
    """Run FFmpeg in a process group of its own, which does not outlive this call, nor this process.

    Args:
        arguments: What follows the global options.
        source: The untrusted file, for messages and for the class of the error.
        target: The only file that it may write.
        timeout_seconds: Wall-clock limit.
        threads: Threads that the arguments ask for.
        max_cpu_seconds: Limit of CPU time; None: ``timeout_seconds * threads``.
        max_memory_bytes: Limit of its private memory.
        max_output_bytes: Limit of the file that it writes.

    Raises:
        TranscodeError: A subclass that says what the file did.
    """
    check_source(source)
    if target:
        try:
            target.touch()  # a right to write is given for a file that is there
        except OSError as exc:
            raise TranscodeError(printable(source.name), None, f"the clip can't be written: {exc.strerror}") from exc
    confined = launcher(
        network=False,
        writable=[target] if target else [],
        memory_bytes=max_memory_bytes,
        output_bytes=max_output_bytes,
        cpu_seconds=(cpu_seconds := max_cpu_seconds or timeout_seconds * threads),
    )
    command = [*confined, ffmpeg_path(), "-nostdin", "-hide_banner", "-nostats", "-filter_threads", str(threads)]
    command += ["-max_alloc", str(_MAX_ALLOCATION_BYTES), *arguments]
    result = run_child(command, source=source, timeout_seconds=timeout_seconds, cpu_seconds=cpu_seconds)
    if result.returncode:
        raise failure(source, result, target)
    return result


def check_source(source: Path) -> None:
    """Raises TranscodeError, or a subclass, for what is no file with something in it."""
    name = printable(source.name)
    if not source.exists():
        raise TranscodeError(name, None, "no such file")
    if not source.is_file():
        # A FIFO or a device could feed bytes for ever.
        raise UnsupportedMediaError(name, None, "not a regular file")
    if source.stat().st_size == 0:
        raise DamagedMediaError(name, None, "the file is empty")


def run_child(command: Sequence[str], *, source: Path, timeout_seconds: float, cpu_seconds: float) -> ChildResult:
    """Run a command that sets its own limits, and kill its process group at the end, or when the time is over.

    Raises:
        TranscodeTimeoutError: It took longer, or as much CPU time as it had.
    """
    deadline = time.monotonic() + timeout_seconds
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env=child_environment(),
        start_new_session=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        try:
            output, log, in_time = _collect(process.stdout, process.stderr, deadline)
        finally:
            # Also on KeyboardInterrupt. The group's leader is not reaped yet, so the number is still ours.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    if not in_time or usage.ru_utime + usage.ru_stime >= cpu_seconds:
        spent = f"{cpu_seconds:.3g} s of CPU time" if in_time else f"{timeout_seconds:.3g} s"
        reason = f"stopped after {spent}; timeout_seconds allows more"
        raise TranscodeTimeoutError(printable(source.name), process.returncode, reason)
    return ChildResult(output, log.decode("utf-8", "replace"), process.returncode)


def _collect(output: IO[bytes], messages: IO[bytes], deadline: float) -> tuple[bytes, bytes, bool]:
    """Read both pipes to their end, which is the end of the process; keep their tails. False: not in time."""
    tails = {output.fileno(): b"", messages.fileno(): b""}
    in_time = True
    with selectors.DefaultSelector() as selector:
        for descriptor in tails:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map() and in_time:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            in_time = bool(ready)
            for key, _ in ready:
                if not (chunk := os.read(key.fd, 1 << 16)):
                    selector.unregister(key.fd)
                tails[key.fd] = (tails[key.fd] + chunk)[-_TAIL_BYTES:]
    return tails[output.fileno()], tails[messages.fileno()], in_time


# What FFmpeg says when it fails -> the class of the error; the first that is found counts. Only a run that has failed
# is asked, so that what a file makes FFmpeg say changes the name of a failure at most.
_MEANINGS: tuple[tuple[str, type[TranscodeError]], ...] = (
    (r"Cannot allocate memory|[mc]alloc.* failed|pthread_create.* failed|bad_alloc", TranscodeMemoryError),
    (r"exceeds specified max pixel count|Picture size \d+x\d+ is invalid|File too large", MediaTooLargeError),
    (r"Skipped opening external track|Protocol .* not on whitelist", RefusedReferenceError),
    (r"Stream map .* matches no streams|does not contain any stream", NoVideoStreamError),
    (r"Format not on whitelist|[Dd]ecoder .*not found|no decoder found|Unsupported codec", UnsupportedMediaError),
    (r"not implemented|patches welcome|no path between colorspaces", UnsupportedMediaError),
    # Ours, not the file's: these stay plain TranscodeErrors.
    (r"No space left|Permission denied|No such file", TranscodeError),
    (r"Unknown encoder|Unrecognized option|No such filter", TranscodeError),
)

# SIGKILL not by us: by the kernel, out of memory.
_SIGNALS: dict[int, type[TranscodeError]] = {signal.SIGKILL: TranscodeMemoryError, signal.SIGXFSZ: MediaTooLargeError}

# Lines of a log that only say that an earlier one stopped the work.
_CONSEQUENCES = re.compile(
    r"Task finished|Terminating thread|Could not open encoder|Nothing was written|Error opening input file"
)

# How text that lists other files begins. FFmpeg refuses it with the same words as any other format it may not open.
_PLAYLIST = re.compile(
    rb"#EXTM3U|<MPD|^ffconcat|<svg|<smil|<asx|^\[playlist\]|^\[reference\]|<SmoothStreaming|\Av=0\s|^(file|https?|rtsp):",
    re.IGNORECASE | re.MULTILINE,
)


def failure(source: Path, result: ChildResult, target: Path | None = None) -> TranscodeError:
    """The error that the log and the exit status of a failed run amount to."""
    # The last lines say what came of it, and are often the same line many times.
    lines = list(dict.fromkeys(_problems(result.log, source, target)))
    kind: type[TranscodeError] = RefusedReferenceError if _is_playlist(source) else DamagedMediaError
    if -result.returncode in _SIGNALS:
        kind = _SIGNALS[-result.returncode]
    else:
        found = (meaning for pattern, meaning in _MEANINGS if any(re.search(pattern, line) for line in lines))
        meaning = next(found, kind)
        if kind is DamagedMediaError or meaning is not UnsupportedMediaError:
            kind = meaning
    tail = "\n".join(printable(line) for line in lines[-6:]) or "FFmpeg crashed without a word"
    return kind(printable(source.name), result.returncode, tail)


def _problems(log: str, source: Path, target: Path | None) -> list[str]:
    """Lines of a log without addresses and paths; of one with levels, only warnings and errors."""
    log = without_paths(log, source, target).replace(f" '{','.join(DEMUXERS)}'", "")
    found = re.findall(r"^(?:\[[^\]]*\] )*\[(?:warning|error|fatal|panic)\] (.*)$", log, re.MULTILINE)
    lines = [line for line in found if not _CONSEQUENCES.match(line)]
    return lines or [re.sub(r"^(\[[^\]]*\] )+", "", line) for line in log.splitlines()]


def without_paths(text: str, source: Path, target: Path | None = None) -> str:
    """A message in which the source has its name only, and the target none: messages go into the dataset."""
    for path, name in ((target, "the clip"), (source, source.name)):
        if path:
            text = text.replace(f"file:{path.absolute()}", name).replace(str(path.absolute()), name)
    return text


def _is_playlist(source: Path) -> bool:
    with source.open("rb") as file:
        head = file.read(2048)
    return b"\0" not in head and _PLAYLIST.search(head) is not None
