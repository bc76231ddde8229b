"""One URL on its way into one file: streamed, continued where it broke, checked, and renamed into place when whole."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import random
import re
import socket
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from kdepth.downloads.network import NotPublicError, connecting_to_proxy, proxy_for, public_url
from kdepth.errors import (
    DownloadError,
    DownloadTimeoutError,
    DownloadTooLargeError,
    HostUnreachableError,
    HttpStatusError,
    IncompleteDownloadError,
    NotAVideoError,
    RefusedAddressError,
)
from kdepth.schema import ARCHIVE_SUFFIXES

_log = logging.getLogger(__name__)

MAX_REDIRECTS = 5
HEAD_BYTES = 512  # so much of a file tells what it is
_MAX_DELAY_SECONDS = 60
_MAX_RETRY_AFTER_SECONDS = 300  # a server that asks for more is not waited for
_LOCK_SECONDS = 0.5
_WORTH_RESUMING_BYTES = 2**20  # smaller files start over: not worth a second file beside each
_PROGRESS_BYTES = 2**16  # a request that brought so many was no failure; some servers answer in such pieces
_SLOW_SECONDS, _SLOW_BYTES = 60.0, 6000  # 100 bytes a second
# After these the part that came is kept for a later call.
_CAN_GO_ON = (HttpStatusError, IncompleteDownloadError, DownloadTimeoutError, HostUnreachableError)


@dataclass(slots=True)
class Traffic:
    """Bytes received, and the transfers that broke and are tried again: URL (as it may be shown) -> why."""

    num_bytes: int = 0
    retrying: dict[str, str] = field(default_factory=dict)


TRAFFIC = Traffic()  # of this process


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that arrived whole: ``attempts`` requests (redirects not counted) in ``seconds``."""

    path: Path
    num_bytes: int
    sha256: str
    http_status: int
    attempts: int
    seconds: float


def not_a_video(head: bytes) -> str | None:
    """What is wrong with the first bytes of a file that plainly is no video; FFmpeg judges the rest."""
    what = describe(head)
    hint = f" (archives are known by URLs that end in {', '.join(ARCHIVE_SUFFIXES)})" if what in _ARCHIVES else ""
    return f"this is {what}, not a video{hint}" if what else None


def describe(head: bytes) -> str | None:
    """What the first bytes of a file say it is, if that is no video: for messages ("an HTML page")."""
    if not head:
        return "an empty file"
    if head.startswith(b"YUV4MPEG2"):  # of dark pictures, which may look like text
        return None
    if head[257:262] == b"ustar":
        return "a tar archive"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, what in _MAGIC.items():
        if start.startswith(magic):
            return what
    text = head.decode("utf-8", "ignore")  # a character may be cut at the end
    if len(text.encode()) >= len(head) - 3 and all(char.isprintable() or char in "\t\r\n\f" for char in text):
        return "text or JSON"
    return None


_MAGIC = {
    b"<?xml": "XML",
    b"<": "an HTML page",
    b"%pdf": "a PDF file",
    b"\x1f\x8b": "a gzip file",
    b"pk\x03\x04": "a zip file",
    b"bzh": "a bzip2 file",
    b"\xfd7zxz": "an xz file",
    b"7z\xbc\xaf": "a 7z file",
    b"rar!": "a RAR file",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89png": "a PNG picture",
}
_ARCHIVES = ("a gzip file", "a zip file", "a tar archive", "a bzip2 file", "an xz file", "a 7z file", "a RAR file")


class Transfer:
    """One URL on its way into one file. Its public counters can be read while it runs, from any thread.

    Attributes:
        part: The file that grows, ``num_bytes`` so far; renamed to ``path`` at the end.
        restarts: How often it began again from byte 0, in a new file.
        attempts: Requests made (redirects not counted).
        http_status: Status of the last answer, or None.
    """

    def __init__(
        self,
        url: str,
        path: Path,
        *,
        session: aiohttp.ClientSession,
        max_bytes: int,
        attempts: int = 5,
        backoff_seconds: float = 1.0,
        what_is_wrong: Callable[[bytes], str | None] = not_a_video,
        refusal: type[DownloadError] = NotAVideoError,
        on_bytes: Callable[[], None] = lambda: None,
    ) -> None:
        if attempts < 1 or max_bytes < 1:
            raise ValueError(f"attempts={attempts} and max_bytes={max_bytes} must be at least 1")
        self.path, self.part = path, path.with_name(path.name + ".part")
        self.public_url = public_url(url)
        self.num_bytes = self.attempts = self.restarts = 0
        self.total_bytes: int | None = None
        self.http_status: int | None = None
        self._url, self._session = url, session
        self._max_bytes, self._max_attempts, self._backoff_seconds = max_bytes, attempts, backoff_seconds
        self._what_is_wrong, self._refusal, self._on_bytes = what_is_wrong, refusal, on_bytes
        self._state = self.part.with_name(self.part.name + ".json")
        self._validator: str | None = None
        self._etag = ""
        self._sha256 = hashlib.sha256()
        self._head = b""

    async def run(self, timeout_seconds: float | None = None) -> Fetched:
        """Transfer until the file is whole; raises as `fetch`."""
        started = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            async with asyncio.timeout(timeout_seconds), self._alone() as waited:
                if waited and self.path.exists():
                    await asyncio.to_thread(self._take)
                else:
                    await self._to_its_place()
        except TimeoutError as exc:
            raise DownloadTimeoutError(
                self.public_url, f"not whole after {timeout_seconds} s ({self.num_bytes} bytes)", self.http_status
            ) from exc
        except OSError as exc:
            raise DownloadError(self.public_url, f"can't write {self.part.name}: {exc.strerror}") from exc
        finally:
            TRAFFIC.retrying.pop(self.public_url, None)
        seconds = time.monotonic() - started
        return Fetched(
            self.path, self.num_bytes, self._sha256.hexdigest(), self.http_status or 200, self.attempts, seconds
        )

    @property
    def state(self) -> dict[str, Any]:
        """What tells this file of the server's from another one later on."""
        return {"validator": self._validator, "total_bytes": self.total_bytes}

    async def is_of(self, state: Any) -> bool | None:
        """Whether the server has the file of an earlier `state` still; None: it could not be asked."""
        try:
            async with await self._get({"Range": "bytes=0-0"}) as response:
                _, total = _content_range(response.headers.get("Content-Range", ""))
                now = {"validator": _validator(response), "total_bytes": total or response.content_length}
                return (now["validator"] is not None and now == state) if response.ok else None
        except (aiohttp.ClientError, DownloadError):
            return None

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[bool]:
        """One at a time on a file, of all processes; whether another had to be waited for."""
        lock, waited = self.part.with_name(self.part.name + ".lock"), False
        while True:
            handle = os.open(lock, os.O_CREAT | os.O_WRONLY, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(handle).st_nlink:  # else it went with the one that had it
                    break
            except BlockingIOError:
                waited = True
            except OSError:  # a file system without locks
                break
            os.close(handle)
            await asyncio.sleep(_LOCK_SECONDS if waited else 0)
        try:
            yield waited
        finally:
            lock.unlink(missing_ok=True)
            os.close(handle)

    async def _to_its_place(self) -> None:
        try:
            if self.part.exists():
                await asyncio.to_thread(self._restore)
            if self.total_bytes is None or self.num_bytes < self.total_bytes:
                await self._until_whole()
            if self.part.stat().st_size != self.num_bytes:
                self.forget()
                raise IncompleteDownloadError(self.public_url, "another process wrote to the same file")
            os.replace(self.part, self.path)
            self._state.unlink(missing_ok=True)
        except DownloadError as exc:
            if not isinstance(exc, _CAN_GO_ON):
                self.forget()
            raise
        finally:
            if self.part.exists() and not self._state.exists():
                self.part.unlink()

    def _take(self) -> None:
        """What another process has just made."""
        with open(self.path, "rb") as file:
            self._sha256 = hashlib.file_digest(file, "sha256")
        self.num_bytes = self.path.stat().st_size

    async def _until_whole(self) -> None:
        failures, best = 0, self.num_bytes
        while True:
            self.attempts += 1
            try:
                return await self._once()
            except _PassingError as broken:
                # A long file over a bad line breaks often: only requests in a row that bring nothing count.
                failures = 0 if self.num_bytes >= best + _PROGRESS_BYTES else failures
                best = max(best, self.num_bytes)
                failures += 1
                if failures >= self._max_attempts or broken.retry_after_seconds > _MAX_RETRY_AFTER_SECONDS:
                    raise broken.error from broken.__cause__
                backoff = min(self._backoff_seconds * 2 ** (failures - 1), _MAX_DELAY_SECONDS)
                # Jitter, so that what broke together does not come back together.
                delay = max(backoff * random.uniform(0.5, 1.0), broken.retry_after_seconds)
                _log.info("again in %.1f s: %s", delay, broken.error)
                TRAFFIC.retrying[self.public_url] = broken.error.reason
            await asyncio.sleep(delay)

    async def _once(self) -> None:
        headers = {"Range": f"bytes={self.num_bytes}-"} if self.num_bytes else {}
        if self.num_bytes and self._validator:
            headers["If-Range"] = self._validator
        try:
            response = await self._get(headers)
            async with response:
                if self._begin(response):
                    await self._receive(response)
        except aiohttp.ClientError as exc:
            raise self._translated(exc) from exc
        except UnicodeError as exc:  # of Python's resolver
            raise HostUnreachableError(self.public_url, "this can't be the name of a host") from exc

    async def _get(self, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """The first answer that is not a redirect. The user name and password go to their own origin only."""
        url = self._parsed(self._url)
        origin, credentials = url.origin(), f"{url.user or ''}:{url.password or ''}"
        authorization = {"Authorization": f"Basic {b64encode(credentials.encode()).decode()}"} if url.user else {}
        for _ in range(MAX_REDIRECTS + 1):
            url = url.with_user(None)
            own = authorization if url.origin() == origin else {}
            try:
                proxy = await proxy_for(url, self._session)
                with connecting_to_proxy(proxy is not None):
                    response = await self._session.get(url, headers=headers | own, allow_redirects=False, proxy=proxy)
            except NotPublicError as exc:
                raise RefusedAddressError(self.public_url, str(exc), self.http_status) from exc
            self.http_status = response.status
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                return response
            response.release()
            target = url.join(self._parsed(location, base=url))
            if target.scheme != url.scheme and target.scheme != "https":
                raise RefusedAddressError(
                    self.public_url, f"redirected from {url.scheme} to {target.scheme or 'nowhere'}", response.status
                )
            url = target
        raise RefusedAddressError(self.public_url, f"more than {MAX_REDIRECTS} redirects", self.http_status)

    def _parsed(self, url: str, base: URL | None = None) -> URL:
        try:
            parsed = URL(url)
            if base is not None:
                parsed = base.join(parsed)
        except ValueError as exc:
            raise RefusedAddressError(self.public_url, "not a URL", self.http_status) from exc
        if parsed.scheme not in ("http", "https") or not parsed.host:
            what = "redirected to" if base is not None else "this is"
            raise RefusedAddressError(
                self.public_url, f"{what} a {parsed.scheme or 'relative'} URL; only http and https", self.http_status
            )
        return parsed

    def _begin(self, response: aiohttp.ClientResponse) -> bool:
        """Look at status and headers; False if there is nothing left to receive."""
        status = response.status
        start, total = _content_range(response.headers.get("Content-Range", ""))
        if status == 416 and self.num_bytes:
            if total == self.num_bytes:
                self.total_bytes, self.http_status = total, 206
                return False
            self._restart()
            raise _PassingError(IncompleteDownloadError(self.public_url, "the file on the server changed", status))
        if status >= 400:
            reason = (response.reason or "").encode("utf-8", "replace").decode()  # bytes of any kind
            error = HttpStatusError(self.public_url, f"HTTP {status} {reason}".strip(), status)
            if status in (408, 425, 429) or status >= 500:
                raise _PassingError(error, _retry_after_seconds(response.headers.get("Retry-After")))
            raise error
        if status not in (200, 206):
            raise HttpStatusError(self.public_url, f"unexpected answer: HTTP {status}", status)
        validator = _validator(response)
        # A weak one differs between mirrors, so it counts only where there is nothing better.
        etag = "" if validator else response.headers.get("ETag", "")
        same = (self.total_bytes or total) == total and (self._validator or validator) == (validator or self._validator)
        same &= (self._etag or etag) == (etag or self._etag)
        if status == 206 and (start != self.num_bytes or not same):
            self._restart()
            raise _PassingError(IncompleteDownloadError(self.public_url, "not the range that was asked for", status))
        if status == 200:
            if self.num_bytes:  # it knows no ranges, or has another file now
                self._restart()
            total = response.content_length
            self._validator, self._etag = validator, etag
        self.total_bytes = total
        if (total or 0) > self._max_bytes:
            raise DownloadTooLargeError(self.public_url, f"{total} bytes, allowed are {self._max_bytes}", status)
        TRAFFIC.retrying.pop(self.public_url, None)
        return True

    async def _receive(self, response: aiohttp.ClientResponse) -> None:
        # Written in the loop: into the page cache, which takes less than a hop to a thread.
        since, then = time.monotonic(), self.num_bytes
        with open(self.part, "ab") as file:
            async for chunk in response.content.iter_any():
                before = self.num_bytes
                if before + len(chunk) > self._max_bytes:
                    raise DownloadTooLargeError(
                        self.public_url, f"more than the {self._max_bytes} bytes allowed", response.status
                    )
                if before < HEAD_BYTES:
                    self._head += chunk[: HEAD_BYTES - before]
                    if len(self._head) == HEAD_BYTES:
                        self._check_head()
                file.write(chunk)
                file.flush()
                self._sha256.update(chunk)
                self.num_bytes += len(chunk)
                TRAFFIC.num_bytes += len(chunk)
                if time.monotonic() - since > _SLOW_SECONDS:
                    if self.num_bytes - then < _SLOW_BYTES:
                        reason = f"fewer than {_SLOW_BYTES} bytes in {_SLOW_SECONDS:g} s"
                        raise _PassingError(DownloadTimeoutError(self.public_url, reason, response.status))
                    since, then = time.monotonic(), self.num_bytes
                if before < _WORTH_RESUMING_BYTES <= self.num_bytes and self._validator:
                    self._save()
                self._on_bytes()
        if self.total_bytes is not None and self.num_bytes < self.total_bytes:
            raise _PassingError(self._incomplete("the connection was closed"))
        if self.num_bytes < HEAD_BYTES:
            self._check_head()

    def _check_head(self) -> None:
        wrong = self._what_is_wrong(self._head)
        if wrong is not None:
            raise self._refusal(self.public_url, wrong, self.http_status)

    def _incomplete(self, what: str) -> IncompleteDownloadError:
        of_total = "" if self.total_bytes is None else f" of {self.total_bytes}"
        return IncompleteDownloadError(self.public_url, f"{what} at {self.num_bytes}{of_total} bytes", self.http_status)

    def _translated(self, exc: aiohttp.ClientError) -> Exception:
        url, status = self.public_url, self.http_status
        # Messages of aiohttp's other errors may hold the URL as it was asked for.
        what = str(exc) if isinstance(exc, OSError) else type(exc).__name__
        if isinstance(exc, aiohttp.ClientConnectorError):
            if isinstance(exc.os_error, NotPublicError):
                return RefusedAddressError(url, str(exc.os_error), status)
            unreachable = HostUnreachableError(url, what, status)
            final = isinstance(exc, aiohttp.ClientConnectorCertificateError) or (
                isinstance(exc.os_error, socket.gaierror) and exc.os_error.errno != socket.EAI_AGAIN
            )
            return unreachable if final else _PassingError(unreachable)
        if isinstance(exc, aiohttp.ConnectionTimeoutError):
            return _PassingError(HostUnreachableError(url, "no connection in time", status))
        if isinstance(exc, TimeoutError):
            return _PassingError(DownloadTimeoutError(url, f"no more bytes came after {self.num_bytes}", status))
        if isinstance(exc, aiohttp.ClientHttpProxyError):
            refused = HttpStatusError(url, f"the proxy answered HTTP {exc.status}", exc.status)
            return _PassingError(refused) if exc.status >= 500 else refused
        if isinstance(exc, aiohttp.InvalidURL):
            return RefusedAddressError(url, "not a URL that can be asked for", status)
        return _PassingError(self._incomplete(f"the transfer broke ({what})"))

    def _restart(self) -> None:
        self.forget()
        self.num_bytes, self.total_bytes = 0, None
        self.restarts += 1
        self._sha256, self._head, self._validator, self._etag = hashlib.sha256(), b"", None, ""
        self._on_bytes()

    def _save(self) -> None:
        self._state.write_text(json.dumps(self.state))

    def _restore(self) -> None:
        """Take up what an earlier process left; without a validator nobody knows whether it is the same file."""
        try:
            state = json.loads(self._state.read_text())
            validator, total = state["validator"], state["total_bytes"]
            size = self.part.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            validator = total = None
        if not isinstance(validator, str) or not isinstance(total, int) or not HEAD_BYTES <= size <= total:
            self.forget()
            return
        with open(self.part, "rb") as file:
            self._sha256 = hashlib.file_digest(file, "sha256")
        self.num_bytes, self.total_bytes, self._validator = size, total, validator
        self._on_bytes()

    def forget(self) -> None:
        """Remove what came so far."""
        self.part.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)


class _PassingError(Exception):
    """A failure that may pass."""

    def __init__(self, error: DownloadError, retry_after_seconds: float = 0.0) -> None:
        super().__init__(error, retry_after_seconds)
        self.error, self.retry_after_seconds = error, retry_after_seconds


def _validator(response: aiohttp.ClientResponse) -> str | None:
    """What says that the bytes are the same: of ETags only a strong one does."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _content_range(header: str) -> tuple[int | None, int | None]:
    """``(first byte, total)`` of a Content-Range header."""
    match = re.fullmatch(r"\s*bytes\s+(?:([0-9]{1,18})-[0-9]{1,18}|\*)/([0-9]{1,18}|\*)\s*", header)
    if not match:
        return None, None
    return (int(match[1]) if match[1] else None), (int(match[2]) if match[2] != "*" else None)


def _retry_after_seconds(header: str | None) -> float:
    if not header:
        return 0.0
    if re.fullmatch("[0-9]{1,9}", header.strip()):
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0
