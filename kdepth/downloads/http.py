"""One URL into one file: streamed, continued where it broke, checked, and renamed into place when whole."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import random
import threading
import time
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import aiohttp
import filelock

from kdepth.downloads import http_answers as answers
from kdepth.downloads.file_types import HEAD_BYTES, not_a_video, not_an_archive
from kdepth.downloads.http_answers import PassingError
from kdepth.downloads.network import NotPublicError, client_session, get, public_url
from kdepth.errors import (
    ArchiveError,
    DownloadError,
    DownloadTimeoutError,
    DownloadTooLargeError,
    HostUnreachableError,
    HttpStatusError,
    IncompleteDownloadError,
    NotAVideoError,
    RefusedAddressError,
)

_log = logging.getLogger(__name__)

MAX_REDIRECTS = 5
_MAX_DELAY_SECONDS = 60
_MAX_RETRY_AFTER_SECONDS = 300  # a server that asks for more is not waited for
_LOCK_SECONDS = 1e9  # the transfer's own limit ends the waiting
_WORTH_RESUMING_BYTES = 2**20  # smaller files start over: not worth a second file beside each
_PROGRESS_BYTES = 2**16  # a request that brought so many was no failure; some servers answer in such pieces
# After these the part that came is kept for a later call.
_CAN_GO_ON = (HttpStatusError, IncompleteDownloadError, DownloadTimeoutError, HostUnreachableError)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that arrived whole: ``attempts`` requests (redirects not counted) in ``seconds``."""

    path: Path
    num_bytes: int
    sha256: str
    http_status: int
    attempts: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What a transfer may take; `fetch` says what each means."""

    max_bytes: int = 4 * 2**30
    timeout_seconds: float | None = 3600
    min_bytes_per_second: float = 1000
    attempts: int = 5
    backoff_seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.max_bytes < 1:
            raise ValueError(f"attempts={self.attempts} and max_bytes={self.max_bytes} must be at least 1")


async def fetch(
    url: str,
    path: str | Path,
    *,
    session: aiohttp.ClientSession | None = None,
    allow_private_hosts: bool = False,
    max_bytes: int = 4 * 2**30,
    timeout_seconds: float | None = 3600,
    min_bytes_per_second: float = 1000,
    attempts: int = 5,
    backoff_seconds: float = 1.0,
) -> Fetched:
    """Download one video file.

    Streams to ``<path>.part`` and renames when it is whole. A transfer that breaks goes on where it broke (``Range``,
    guarded by ``If-Range``), also in a later call.

    Args:
        url: http or https; sent as it is written. Credentials in it are used, and written nowhere.
        path: The file to make, and its folder.
        session: From `client_session`, whose address rules then hold; None: one of its own.
        allow_private_hosts: See `client_session`; of no effect with a ``session``.
        max_bytes: Larger answers are refused, by ``Content-Length`` or as they arrive.
        timeout_seconds: Limit for the whole, retries and their pauses included; None: none.
        min_bytes_per_second: What is slower for a minute (``stall_seconds`` of `client_session`) counts as broken.
        attempts: Requests in a row that may bring nothing new (less than 64 KiB) before giving up.
        backoff_seconds: Pause after the first failure; doubles, with jitter, up to a minute. ``Retry-After`` is kept.

    Returns:
        Path, size, SHA-256 (hex) and how it went.

    Raises:
        DownloadError: One of its subclasses; HTTP 4xx other than 408, 425 and 429 are not asked again.
        ValueError: ``attempts`` or ``max_bytes`` is less than 1.
    """
    limits = Limits(max_bytes, timeout_seconds, min_bytes_per_second, attempts, backoff_seconds)
    async with contextlib.AsyncExitStack() as stack:
        if session is None:
            session = await stack.enter_async_context(client_session(allow_private_hosts=allow_private_hosts))
        return await Transfer(url, Path(path), session=session, limits=limits).run()


class Transfer:
    """One URL on its way into one file. What is public can be read while it runs, from any thread.

    Attributes:
        part: The file that grows, ``num_bytes`` so far of ``total_bytes`` (None: unknown); renamed to ``path``.
        state: ``"whole"`` when the file is at its place, ``"failed"`` when it never will be.
        restarts: How often it began again from byte 0, in a new file.
        attempts: Requests made (redirects not counted).
        changed: Notified of each change of these.
    """

    def __init__(
        self, url: str, path: Path, *, session: aiohttp.ClientSession, limits: Limits, is_archive: bool = False
    ) -> None:
        self.path, self.part = path, path.with_name(path.name + ".part")
        self.public_url = public_url(url)
        self.state: Literal["running", "whole", "failed"] = "running"
        self.changed = threading.Condition()
        self.num_bytes = self.attempts = self.restarts = 0
        self.total_bytes: int | None = None
        self._url, self._session, self._limits, self._is_archive = url, session, limits, is_archive
        self._cookies = aiohttp.CookieJar(unsafe=True)  # of servers without a name, too
        self._http_status: int | None = None
        self._validator: str | None = None
        self._sha256 = hashlib.sha256()
        self._notes = self.part.with_name(self.part.name + ".json")

    async def run(self) -> Fetched:
        """Transfer until the file is whole; raises as `fetch`."""
        started = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            before = _stamp(self.path)
            # One at a time on a file, of all processes.
            lock = filelock.AsyncFileLock(f"{self.part}.lock", timeout=_LOCK_SECONDS, run_in_executor=False)
            async with asyncio.timeout(self._limits.timeout_seconds), lock:
                try:
                    if _stamp(self.path) not in (None, before):  # another has just made it
                        self._sha256 = await asyncio.to_thread(hashed, self.path)
                    else:
                        await self._to_its_place()
                finally:
                    Path(lock.lock_file).unlink(missing_ok=True)  # whoever waits for it makes a new one
            self.take()
        except TimeoutError as exc:
            reason = f"not whole after {self._limits.timeout_seconds} s ({self.num_bytes} bytes)"
            raise self._error(DownloadTimeoutError, reason) from exc
        except OSError as exc:
            raise DownloadError(self.public_url, f"can't write {self.part.name}: {exc.strerror}") from exc
        finally:
            self.state = self.state if self.state == "whole" else "failed"
            self._tell()
        seconds, status = time.monotonic() - started, self._http_status or 200
        return Fetched(self.path, self.num_bytes, self._sha256.hexdigest(), status, self.attempts, seconds)

    def take(self) -> None:
        """Find the file whole at its place."""
        self.num_bytes = self.path.stat().st_size
        self.state = "whole"

    def identity(self) -> dict[str, Any]:
        """What tells this file of the server's from another one later on."""
        return {"validator": self._validator, "total_bytes": self.total_bytes}

    async def is_still(self, identity: Any) -> bool | None:
        """Whether the server still has the file of an earlier `identity`; None: it could not be asked."""
        try:
            async with await self._get({"Range": "bytes=0-0"}) as response:
                _, total = answers.content_range(response.headers.get("Content-Range", ""))
                now = {"validator": answers.validator_of(response), "total_bytes": total or response.content_length}
                return (now["validator"] is not None and now == identity) if response.ok else None
        except (DownloadError, PassingError):
            return None

    def forget(self) -> None:
        """Remove what came so far."""
        self.part.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def _tell(self) -> None:
        with self.changed:
            self.changed.notify_all()

    async def _to_its_place(self) -> None:
        try:
            if self.part.exists():
                await asyncio.to_thread(self._restore)
            if self.num_bytes != self.total_bytes:
                await self._until_whole()
            if self.part.stat().st_size != self.num_bytes:
                self.forget()
                raise IncompleteDownloadError(self.public_url, "another process wrote to the same file")
            os.replace(self.part, self.path)
            self._notes.unlink(missing_ok=True)
        except DownloadError as exc:
            if not isinstance(exc, _CAN_GO_ON):
                self.forget()
            raise
        finally:
            if self.part.exists() and not self._notes.exists():
                self.part.unlink()

    async def _until_whole(self) -> None:
        failures, best = 0, self.num_bytes
        while True:
            self.attempts += 1
            try:
                return await self._once()
            except PassingError as broken:
                # A long file over a bad line breaks often: only requests in a row that bring nothing count.
                failures = 1 if self.num_bytes >= best + _PROGRESS_BYTES else failures + 1
                best = max(best, self.num_bytes)
                if failures >= self._limits.attempts or broken.retry_after_seconds > _MAX_RETRY_AFTER_SECONDS:
                    raise broken.error from broken.__cause__
                backoff = min(self._limits.backoff_seconds * 2 ** (failures - 1), _MAX_DELAY_SECONDS)
                # Jitter, so that what broke together does not come back together.
                delay = max(backoff * random.uniform(0.5, 1.0), broken.retry_after_seconds)
                _log.info("again in %.1f s: %s", delay, broken.error)
            await asyncio.sleep(delay)

    async def _once(self) -> None:
        headers = {"Range": f"bytes={self.num_bytes}-"} if self.num_bytes else {}
        if self.num_bytes and self._is_strong():
            headers["If-Range"] = self._validator or ""
        async with await self._get(headers) as response:
            if self._begin(response):
                try:
                    await self._receive(response)
                except aiohttp.ClientError as exc:
                    raise answers.translated(exc, self.public_url, self._http_status, self._so_far()) from exc

    async def _get(self, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """The first answer that is not a redirect. The user name and password go to their own origin only."""
        url = answers.followed(self._url, None, self.public_url, None)
        origin, own = url.origin(), {}
        if url.user is not None:
            login = b64encode(f"{url.user}:{url.password or ''}".encode()).decode()
            own = {"Authorization": f"Basic {login}"}
        for _ in range(MAX_REDIRECTS + 1):
            url, more = url.with_user(None), own if url.origin() == origin else {}
            try:
                response = await get(self._session, url, headers | more, self._cookies)
            except (aiohttp.ClientError, NotPublicError, ValueError) as exc:
                raise answers.translated(exc, self.public_url, self._http_status, self._so_far()) from exc
            self._http_status = response.status
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                return response
            response.release()
            url = answers.followed(location, url, self.public_url, response.status)
        raise self._error(RefusedAddressError, f"more than {MAX_REDIRECTS} redirects")

    def _begin(self, response: aiohttp.ClientResponse) -> bool:
        """Whether there is anything left to receive, by status and headers."""
        status = response.status
        start, total = answers.content_range(response.headers.get("Content-Range", ""))
        if status == 416 and self.num_bytes:
            if total == self.num_bytes:
                self.total_bytes, self._http_status = total, 206
                return False
            raise self._anew("the file on the server changed")
        answers.check_status(response, self.public_url)
        now, total = answers.validator_of(response), total if status == 206 else response.content_length
        if answers.is_decoded(response, self.public_url):  # what the server counts are other bytes
            now = total = start = None
        same = (self.total_bytes or total) == total and (self._validator or now) == (now or self._validator)
        if status == 206 and (start != self.num_bytes or not same):
            raise self._anew("not the range that was asked for")
        if status == 200:
            if self.num_bytes:  # it knows no ranges, or has another file now
                self._restart()
            self._validator = now
        self.total_bytes = total
        if (total or 0) > self._limits.max_bytes:
            raise self._error(DownloadTooLargeError, f"{total} bytes: max_bytes is {self._limits.max_bytes}")
        return True

    async def _receive(self, response: aiohttp.ClientResponse) -> None:
        window = self._session.timeout.sock_read or 60.0
        most, least = self._limits.max_bytes, self._limits.min_bytes_per_second * window
        since, then = time.monotonic(), self.num_bytes
        # Written in the loop: into the page cache, which takes less than a hop to a thread.
        with open(self.part, "a+b") as file:
            async for chunk in response.content.iter_any():
                before, now = self.num_bytes, self.num_bytes + len(chunk)
                if now > most:
                    raise self._error(DownloadTooLargeError, f"more than allowed: max_bytes is {most}")
                file.write(chunk)
                file.flush()
                if before < HEAD_BYTES <= now:
                    self._check_head(file)
                self._sha256.update(chunk)
                self.num_bytes = now
                if time.monotonic() - since > window:
                    if now - then < least:
                        reason = f"fewer than {least:g} bytes in {window:g} s"
                        raise PassingError(self._error(DownloadTimeoutError, reason))
                    since, then = time.monotonic(), now
                if before < _WORTH_RESUMING_BYTES <= now and self._is_strong():
                    self._notes.write_text(json.dumps(self.identity()))
                self._tell()
            if self.total_bytes is not None and self.num_bytes < self.total_bytes:
                raise PassingError(self._error(IncompleteDownloadError, f"the connection was closed {self._so_far()}"))
            if self.num_bytes < HEAD_BYTES:
                self._check_head(file)

    def _check_head(self, file: IO[bytes]) -> None:
        file.seek(0)
        wrong = (not_an_archive if self._is_archive else not_a_video)(file.read(HEAD_BYTES))
        if wrong is not None:
            raise self._error(ArchiveError if self._is_archive else NotAVideoError, wrong)

    def _error(self, kind: type[DownloadError], reason: str) -> DownloadError:
        return kind(self.public_url, reason, self._http_status)

    def _is_strong(self) -> bool:
        """Whether the server says what tells the file's bytes from others."""
        return self._validator is not None and not self._validator.startswith("W/")

    def _so_far(self) -> str:
        return f"at {self.num_bytes}{'' if self.total_bytes is None else f' of {self.total_bytes}'} bytes"

    def _anew(self, why: str) -> Exception:
        self._restart()
        return PassingError(self._error(IncompleteDownloadError, why))

    def _restart(self) -> None:
        self.forget()
        self.num_bytes, self.total_bytes, self._validator = 0, None, None
        self._sha256 = hashlib.sha256()
        self.restarts += 1
        self._tell()

    def _restore(self) -> None:
        """Take up what an earlier process left; without a validator nobody knows whether it is the same file."""
        try:
            notes = json.loads(self._notes.read_text())
            validator, total, size = notes["validator"], notes["total_bytes"], self.part.stat().st_size
            if not (isinstance(validator, str) and HEAD_BYTES <= size <= total):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            self.forget()
            return
        self._sha256 = hashed(self.part)
        self.num_bytes, self.total_bytes, self._validator = size, total, validator
        self._tell()


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when another file takes a file's place; None if there is none."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def hashed(path: Path) -> hashlib._Hash:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256")
