"""Clips that are known by their YouTube id only, through yt-dlp (extra ``kdepth[youtube]``)."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import math
import os
import re
import shlex
import shutil
import signal
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from kdepth.downloads.http import Fetched, hashed
from kdepth.downloads.network import public_url
from kdepth.errors import (
    DownloadError,
    DownloadTimeoutError,
    DownloadTooLargeError,
    HttpStatusError,
    RefusedAddressError,
    VideoUnavailableError,
)
from kdepth.sources import YOUTUBE_HOSTS
from kdepth.video.ffmpeg import MAX_MEMORY_BYTES, ffmpeg_path, launcher

Span = tuple[float | None, float | None]
# Larger pictures only where there are no smaller ones.
_FORMAT = "bv*[height<=720]+ba/b[height<=720]/bv*+ba/b"
# Of the environment, in small letters those that are also written in large ones.
_TAKEN = frozenset(
    ("PATH", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "http_proxy", "https_proxy", "all_proxy", "no_proxy")
)
_TOO_LARGE = "max-filesize|File too large|exited with code -25"  # the last is SIGXFSZ
# What the site says when it refuses a video, which yt-dlp hands on, and what yt-dlp adds to it; the first that fits.
_REFUSALS = {
    "rate limit": r"rate.?limit|too many requests|captcha",
    "private": r"private video|video is private",
    "region": r"not (made this video )?available in your country|blocked it in your country|geo.?restrict",
    "removed": r"has been removed|account .*terminated|no longer available|removed by the uploader|video unavailable",
    "sign-in": r"sign in to|age.restricted|members.only|login (required|details)",
}


async def fetch_youtube(
    url: str,
    path: str | Path,
    *,
    time_span_seconds: Span = (None, None),
    allow_private_hosts: bool = False,
    max_bytes: int = 4 * 2**30,
    timeout_seconds: float = 3600,
    attempts: int = 5,
) -> Fetched:
    """Download a clip of a YouTube video, into a file of whatever container it is.

    yt-dlp runs as a process of its own, in an environment of its own. It connects by itself, without kdepth's address
    rules, and so only to YouTube. Its FFmpeg has kdepth's limits of memory and time.

    Args:
        url, path, max_bytes, timeout_seconds: As for `fetch`.
        time_span_seconds: Start and end within the video; cut there exactly, for which FFmpeg encodes the clip anew.
        allow_private_hosts: Take URLs of other hosts too, whatever they are.
        attempts: yt-dlp's tries for each request.

    Raises:
        VideoUnavailableError: The site refuses it: the message begins with ``private``, ``removed``, ``region``,
            ``sign-in`` or ``rate limit``.
        HttpStatusError: Another HTTP error status.
        DownloadError: It failed otherwise, or yt-dlp is not installed.
    """
    started = time.monotonic()
    path, shown = Path(path), public_url(url)
    if not allow_private_hosts and urlsplit(shown).hostname not in YOUTUBE_HOSTS:
        raise RefusedAddressError(shown, "not a URL of YouTube")
    library = importlib.util.find_spec("yt_dlp")
    if library is None or library.origin is None:
        raise DownloadError(shown, "YouTube needs yt-dlp: pip install 'yt-dlp[default]'")
    folder = path.absolute().with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.yt-dlp")
    try:
        folder.mkdir(parents=True)
        arguments = _arguments(url, folder, time_span_seconds, max_bytes, timeout_seconds, attempts)
        environment = _environment(folder, Path(library.origin).parents[1])
        returncode, log = await _run(arguments, environment, folder, max_bytes, timeout_seconds)
        files = [file for file in folder.glob("clip.*") if file.suffix != ".part"]
        if returncode is None:
            raise DownloadTimeoutError(shown, f"not whole after {timeout_seconds:g} s")
        is_whole = returncode == 0 and len(files) == 1
        num_bytes = files[0].stat().st_size if is_whole else 0
        if num_bytes > max_bytes or (not is_whole and re.search(_TOO_LARGE, log)):
            raise DownloadTooLargeError(shown, f"more than the {max_bytes} bytes allowed")
        if not is_whole:
            raise _failure(shown, log.replace(f"{folder}/", ""))
        sha256 = (await asyncio.to_thread(hashed, files[0])).hexdigest()
        os.replace(files[0], path)
    except OSError as exc:
        raise DownloadError(shown, f"can't write {path.name}: {exc.strerror}") from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Fetched(path, num_bytes, sha256, 200, 1, time.monotonic() - started)


def _arguments(url: str, folder: Path, span: Span, max_bytes: int, timeout_seconds: float, attempts: int) -> list[str]:
    """The command that leaves ``clip.<ext>`` in the folder."""
    start, end = span
    times = f"*{start or 0:.3f}-{'inf' if end is None else format(end, '.3f')}"
    section = [] if span == (None, None) else ["--download-sections", times, "--force-keyframes-at-cuts"]
    ffmpeg = folder / "ffmpeg"
    # Not for yt-dlp itself: the JavaScript engines that it starts reserve more memory than there is.
    limits = f"ulimit -v {MAX_MEMORY_BYTES // 1024}; ulimit -t {math.ceil(timeout_seconds)}"
    ffmpeg.write_text(f'#!/bin/sh\n{limits}\nexec {shlex.quote(ffmpeg_path())} "$@"\n')
    ffmpeg.chmod(0o700)
    return [
        # Without the working directory in Python's path (-P).
        *(sys.executable, "-P", "-m", "yt_dlp", "--ignore-config", "--no-playlist", "--no-cache-dir", "--no-progress"),
        *("--no-mtime", "--no-part", "--socket-timeout", "60", "--max-filesize", str(max_bytes)),
        *("--retries", str(attempts), "--fragment-retries", str(attempts), "--extractor-retries", str(attempts)),
        *("--ffmpeg-location", str(ffmpeg), "--merge-output-format", "mp4/mkv"),
        *("--format", _FORMAT, *section),
        *("--output", str(folder / "clip.%(ext)s"), "--", url),
    ]


def _environment(folder: Path, library: Path) -> dict[str, str]:
    """What yt-dlp needs of ours, which may hold keys of clouds, and a home of its own."""
    taken = {name: value for name, value in os.environ.items() if name in _TAKEN or name.lower() in _TAKEN}
    return taken | {"HOME": str(folder), "TMPDIR": str(folder), "LC_ALL": "C.UTF-8", "PYTHONPATH": str(library)}


async def _run(
    arguments: list[str], environment: dict[str, str], folder: Path, max_bytes: int, timeout_seconds: float
) -> tuple[int | None, str]:
    """Exit status, None if it was stopped at its time limit, and messages."""
    process = await asyncio.create_subprocess_exec(
        *launcher(output_bytes=max_bytes),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # so that its FFmpeg goes with it
        cwd=folder,
        env=environment,
    )
    output = asyncio.create_task(process.communicate())
    try:
        in_time, _ = await asyncio.wait([output], timeout=timeout_seconds)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await asyncio.wait([output])
    return process.returncode if in_time else None, output.result()[0].decode("utf-8", "replace")


def _failure(shown: str, log: str) -> DownloadError:
    errors = [line for line in log.splitlines() if line.startswith("ERROR")] or log.splitlines() or ["no file came"]
    # The message goes into the dataset: without the URLs in it.
    message = re.sub(r"https?://\S+", "(URL)", errors[-1].removeprefix("ERROR: "))[:500]
    for reason, pattern in _REFUSALS.items():
        if re.search(pattern, message, re.IGNORECASE):
            return VideoUnavailableError(shown, f"{reason}: {message}", 429 if reason == "rate limit" else None)
    status = re.search(r"HTTP Error (\d{3})", message)
    if status:
        return HttpStatusError(shown, message, int(status[1]))
    return DownloadError(shown, message)
