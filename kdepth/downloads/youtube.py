"""Clips that are known by their YouTube id only, through yt-dlp (extra ``kdepth[youtube]``)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from kdepth.downloads.http import Fetched
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
from kdepth.video.ffmpeg import ffmpeg_path, launcher

# Larger pictures only where there are no smaller ones.
_FORMAT = "bv*[height<=720]+ba/b[height<=720]/bv*+ba/b"
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
    time_span_seconds: tuple[float | None, float | None] = (None, None),
    allow_private_hosts: bool = False,
    max_bytes: int = 4 * 2**30,
    timeout_seconds: float = 3600,
    attempts: int = 5,
) -> Fetched:
    """Download a clip of a YouTube video.

    yt-dlp runs as a process of its own: it can be stopped, and what it loads is gone afterwards. It connects by itself,
    without kdepth's address rules, and so only to YouTube.

    Args:
        url: Of a YouTube video.
        path: The file to make, whatever container it is.
        time_span_seconds: Start and end within the video; cut there exactly, for which FFmpeg encodes the clip anew.
        allow_private_hosts: Take URLs of other hosts too, whatever they are.
        max_bytes: Limit for the files on the way.
        timeout_seconds: Limit for the whole.
        attempts: yt-dlp's tries for each request.

    Returns:
        Path, size and SHA-256; ``attempts`` is 1.

    Raises:
        VideoUnavailableError: The site refuses it: the message begins with ``private``, ``removed``, ``region``,
            ``sign-in`` or ``rate limit``.
        HttpStatusError: Another HTTP error status.
        DownloadError: It failed otherwise, or yt-dlp is not installed.
    """
    started = time.monotonic()
    path, shown = Path(path), public_url(url)
    if not allow_private_hosts and urlsplit(url).hostname not in YOUTUBE_HOSTS:
        raise RefusedAddressError(shown, "not a URL of YouTube")
    if importlib.util.find_spec("yt_dlp") is None:
        raise DownloadError(shown, "YouTube needs yt-dlp: pip install 'yt-dlp[default]'")
    folder = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.yt-dlp")
    try:
        folder.mkdir(parents=True)
        arguments = _arguments(url, folder, time_span_seconds, max_bytes, attempts)
        log = await _run(arguments, folder, shown, max_bytes, timeout_seconds)
        files = [file for file in folder.iterdir() if file.suffix != ".part"]
        if len(files) != 1:
            if "max-filesize" in log:
                raise DownloadTooLargeError(shown, f"more than the {max_bytes} bytes allowed")
            raise _failure(shown, log)
        sha256, num_bytes = await asyncio.to_thread(_sha256, files[0]), files[0].stat().st_size
        os.replace(files[0], path)
    except OSError as exc:
        raise DownloadError(shown, f"can't write {path.name}: {exc.strerror}") from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Fetched(path, num_bytes, sha256, 200, 1, time.monotonic() - started)


def _arguments(
    url: str, folder: Path, span: tuple[float | None, float | None], max_bytes: int, attempts: int
) -> list[str]:
    start, end = span
    section = (
        []
        if start is None and end is None
        else [
            *("--download-sections", f"*{start or 0:.3f}-{'inf' if end is None else format(end, '.3f')}"),
            "--force-keyframes-at-cuts",
        ]
    )
    return [
        *(sys.executable, "-m", "yt_dlp", "--ignore-config", "--no-playlist", "--no-cache-dir", "--no-progress"),
        *("--no-mtime", "--no-part", "--socket-timeout", "60", "--max-filesize", str(max_bytes)),
        *("--retries", str(attempts), "--fragment-retries", str(attempts), "--extractor-retries", str(attempts)),
        *("--ffmpeg-location", ffmpeg_path(), "--merge-output-format", "mp4/mkv"),
        *("--format", _FORMAT, *section),
        *("--output", str(folder / "clip.%(ext)s"), "--", url),
    ]


def _size(folder: Path) -> int:
    total = 0
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # yt-dlp has just deleted or renamed it
            total += file.stat().st_size
    return total


async def _run(arguments: list[str], folder: Path, shown: str, max_bytes: int, timeout_seconds: float) -> str:
    """yt-dlp's messages; an error if it fails, or grows over a limit."""
    process = await asyncio.create_subprocess_exec(
        *launcher(),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # so that its FFmpeg goes with it
    )
    output = asyncio.create_task(process.communicate())
    deadline = time.monotonic() + timeout_seconds
    try:
        while not (await asyncio.wait([output], timeout=min(1.0, max(0.0, deadline - time.monotonic()))))[0]:
            if time.monotonic() >= deadline:
                raise DownloadTimeoutError(shown, f"not whole after {timeout_seconds:g} s")
            if _size(folder) > max_bytes:
                raise DownloadTooLargeError(shown, f"more than the {max_bytes} bytes allowed")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await asyncio.wait([output])
    log = output.result()[0].decode("utf-8", "replace")
    if process.returncode:
        raise _failure(shown, log)
    return log


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


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
