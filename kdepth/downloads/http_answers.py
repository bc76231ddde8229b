"""What the answers and the failures of HTTP mean."""

from __future__ import annotations

import re
import socket
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
from yarl import URL

from kdepth.downloads.network import NotPublicError, sendable_url, stays_gzip
from kdepth.errors import (
    DownloadError,
    DownloadTimeoutError,
    HostUnreachableError,
    HttpStatusError,
    IncompleteDownloadError,
    RefusedAddressError,
    printable,
)


class PassingError(Exception):
    """A failure that may pass."""

    def __init__(self, error: DownloadError, retry_after_seconds: float = 0.0) -> None:
        super().__init__(error, retry_after_seconds)
        self.error, self.retry_after_seconds = error, retry_after_seconds


def translated(exc: Exception, url: str, status: int | None, so_far: str) -> Exception:
    """The error of ours that one of aiohttp's, or of Python's resolver, means; a `PassingError` if it may pass."""
    refusal = exc.os_error if isinstance(exc, aiohttp.ClientConnectorError) else exc
    # Messages of aiohttp's other errors may hold the URL as it was asked for.
    what = str(exc) if isinstance(exc, OSError) else type(exc).__name__
    if isinstance(refusal, NotPublicError):
        return RefusedAddressError(url, str(refusal.strerror), status)
    if isinstance(exc, UnicodeError):
        return HostUnreachableError(url, "this can't be the name of a host", status)
    if isinstance(exc, aiohttp.ClientConnectorError):
        final = isinstance(exc, aiohttp.ClientConnectorCertificateError) or (
            isinstance(refusal, socket.gaierror) and refusal.errno != socket.EAI_AGAIN
        )
        unreachable = HostUnreachableError(url, what, status)
        return unreachable if final else PassingError(unreachable)
    if isinstance(exc, ValueError):  # aiohttp.InvalidURL, too
        return RefusedAddressError(url, "not a URL that can be asked for", status)
    if isinstance(exc, aiohttp.ConnectionTimeoutError):
        return PassingError(HostUnreachableError(url, "no connection in time", status))
    if isinstance(exc, TimeoutError):
        return PassingError(DownloadTimeoutError(url, f"no more bytes came {so_far}", status))
    if isinstance(exc, aiohttp.ClientHttpProxyError):
        refused = HttpStatusError(url, f"the proxy answered HTTP {exc.status}", exc.status)
        return PassingError(refused) if exc.status >= 500 else refused
    if isinstance(exc, aiohttp.ClientResponseError):  # the same would come again
        reason = printable(" ".join(exc.message.split()), 200)
        return DownloadError(url, f"the answer is not HTTP as it should be: {reason}", status)
    return PassingError(IncompleteDownloadError(url, f"the transfer broke ({what}) {so_far}", status))


def followed(location: str, base: URL | None, shown: str, status: int | None) -> URL:
    """Where a redirect of `base` leads; without one, the URL that is asked for. `shown` and `status` are for the error.

    Raises:
        RefusedAddressError: To no URL, to another scheme than http and https, or from https to http.
    """
    what = "this is" if base is None else "redirected to"
    try:
        url = sendable_url(location, base)
    except ValueError as exc:
        raise RefusedAddressError(shown, f"{what} not a URL", status) from exc
    if url.scheme not in ("http", "https") or not url.host:
        raise RefusedAddressError(shown, f"{what} a {url.scheme or 'relative'} URL; only http and https", status)
    if base is not None and (base.scheme, url.scheme) == ("https", "http"):
        raise RefusedAddressError(shown, "redirected from https to http", status)
    return url


def check_status(response: aiohttp.ClientResponse, url: str) -> None:
    """Raise what a status means that is not success: a `PassingError` if it may pass."""
    status = response.status
    if status in (200, 206):
        return
    if status < 400:
        raise HttpStatusError(url, f"unexpected answer: HTTP {status}", status)
    # The reason may be bytes of any kind.
    reason = printable((response.reason or "").encode("utf-8", "replace").decode(), 200)
    error = HttpStatusError(url, f"HTTP {status} {reason}".strip(), status)
    if status in (408, 425, 429) or status >= 500:
        raise PassingError(error, retry_after_seconds(response.headers.get("Retry-After", "")))
    raise error


def is_decoded(response: aiohttp.ClientResponse, url: str) -> bool:
    """Whether aiohttp undoes a compression that was not asked for."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "identity" or (stays_gzip(response.url) and encoding in ("gzip", "x-gzip")):
        return False
    if encoding in ("gzip", "deflate", "br", "zstd") and not stays_gzip(response.url):
        return True
    reason = f"sent with Content-Encoding: {printable(encoding, 50)}, which kdepth neither asks for nor decodes"
    raise DownloadError(url, reason, response.status)


def validator_of(response: aiohttp.ClientResponse) -> str | None:
    """What says that the bytes are the same; a weak ETag, which differs between mirrors, if there is nothing better."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified") or etag or None


def content_range(header: str) -> tuple[int | None, int | None]:
    """``(first byte, total)`` of a Content-Range header."""
    match = re.fullmatch(r"\s*bytes\s+(?:([0-9]{1,18})-[0-9]{1,18}|\*)/([0-9]{1,18}|\*)\s*", header)
    if not match:
        return None, None
    return (int(match[1]) if match[1] else None), (int(match[2]) if match[2] != "*" else None)


def retry_after_seconds(header: str) -> float:
    if re.fullmatch("[0-9]{1,9}", header.strip()):
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0
