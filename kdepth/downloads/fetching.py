"""URL -> file."""

from __future__ import annotations

import contextlib
from pathlib import Path

import aiohttp

from kdepth.downloads.http import Fetched, Transfer
from kdepth.downloads.network import Connector

_CONNECT_SECONDS = 30
_READ_BUFFER_BYTES = 2**18


def client_session(
    *,
    connections: int = 64,
    connections_per_host: int = 16,
    stall_seconds: float = 60,
    allow_private_hosts: bool = False,
) -> aiohttp.ClientSession:
    """A session for `fetch` and `read_archive`; to be made inside a running event loop and closed after use.

    Args:
        connections: Connections open at once.
        connections_per_host: Connections open at once to one host.
        stall_seconds: A transfer without a byte for so long counts as broken.
        allow_private_hosts: Connect to loopback, private, link-local and other addresses that are not public, too.

    Returns:
        A session without cookies whose connector refuses such addresses otherwise. The check is made on the address of
        each connection, after the name was resolved, so a name can't first resolve to one address and then to another.
        With ``http_proxy``/``https_proxy`` set it is the proxy who resolves names: then only literal addresses and
        names that resolve to such an address here are refused.
    """
    connector = Connector(connections, connections_per_host, allow_private_hosts)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        # The bytes as the server has them: ranges count in these.
        auto_decompress=False,
        headers={"Accept-Encoding": "identity", "User-Agent": "kdepth"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=stall_seconds),
        read_bufsize=_READ_BUFFER_BYTES,
    )


async def fetch(
    url: str,
    path: str | Path,
    *,
    session: aiohttp.ClientSession | None = None,
    allow_private_hosts: bool = False,
    max_bytes: int = 4 * 2**30,
    timeout_seconds: float | None = 3600,
    attempts: int = 5,
    backoff_seconds: float = 1.0,
) -> Fetched:
    """Download one video file.

    Streams to ``<path>.part`` and renames when it is whole. A transfer that breaks goes on where it broke (``Range``,
    guarded by ``If-Range``), also in a later call.

    Args:
        url: http or https. Credentials in it are used, and written nowhere.
        path: The file to make; its folder is made too.
        session: From `client_session`, whose address rules then hold; None: one of its own.
        allow_private_hosts: See `client_session`; of no effect with a ``session``.
        max_bytes: Larger answers are refused, by ``Content-Length`` or as they arrive.
        timeout_seconds: Limit for the whole, retries and their pauses included; None: none.
        attempts: Requests in a row that may bring nothing new (less than 64 KiB) before giving up.
        backoff_seconds: Pause after the first failure; doubles, with jitter, up to a minute. ``Retry-After`` is kept.

    Returns:
        Path, size, SHA-256 (hex) and how it went.

    Raises:
        DownloadError: One of its subclasses; HTTP 4xx other than 408, 425 and 429 are not asked again.
        ValueError: ``attempts`` or ``max_bytes`` is less than 1.
    """
    async with contextlib.AsyncExitStack() as stack:
        if session is None:
            session = await stack.enter_async_context(client_session(allow_private_hosts=allow_private_hosts))
        transfer = Transfer(
            url, Path(path), session=session, max_bytes=max_bytes, attempts=attempts, backoff_seconds=backoff_seconds
        )
        return await transfer.run(timeout_seconds)
