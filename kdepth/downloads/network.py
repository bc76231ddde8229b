"""Which addresses kdepth connects to, through which proxy, and what of a URL may be shown."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import re
import socket
import urllib.request
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import aiohttp
from yarl import URL

_SECRET_KEY = re.compile(r"(?i)sig|token|key|pass|secret|cred|auth")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052

# Whether the connection being made is the one to a proxy, which may well have a private address.
_to_proxy: ContextVar[bool] = ContextVar("_to_proxy", default=False)


class NotPublicError(OSError):
    """A loopback, private, link-local or otherwise special address.

    An OSError, because only these come through aiohttp's connector as they are.
    """

    def __init__(self, address: str) -> None:
        super().__init__(errno.EACCES, f"{address} is not a public address (allow_private_hosts=True permits it)")

    def __str__(self) -> str:
        return str(self.strerror)


class Connector(aiohttp.TCPConnector):
    """Refuses, unless told otherwise, addresses that are not public: when the socket is made for one, whatever the name
    resolved to before."""

    def __init__(self, connections: int, connections_per_host: int, allow_private_hosts: bool) -> None:
        super().__init__(
            limit=connections,
            limit_per_host=connections_per_host,
            socket_factory=None if allow_private_hosts else _public_socket,
        )
        self.allow_private_hosts = allow_private_hosts


@contextlib.contextmanager
def connecting_to_proxy(value: bool) -> Iterator[None]:
    """Connections made in the block lead to a proxy, or not."""
    token = _to_proxy.set(value)
    try:
        yield
    finally:
        _to_proxy.reset(token)


async def proxy_for(url: URL, session: aiohttp.ClientSession) -> str | None:
    """The proxy that the environment names (``http_proxy``, ``https_proxy``, ``no_proxy``) for a URL, or None.

    A proxy resolves the name itself, so what it connects to can't be seen from here. Names that resolve to an address
    that is not public from here are refused all the same.

    Raises:
        NotPublicError: The session does not connect to such addresses.
    """
    host = url.host or ""
    proxy = urllib.request.getproxies().get(url.scheme)
    # No proxy can reach this machine's loopback.
    if not proxy or _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    if isinstance(session.connector, Connector) and not session.connector.allow_private_hosts:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError:
            found = []  # behind a proxy names need not resolve
        for info in found:
            _require_public(str(info[4][0]))
    return proxy


def public_url(url: str) -> str:
    """The URL as it may be shown and stored: without user name, password, and values that look like keys."""
    try:
        parsed = URL(url).with_user(None).with_fragment(None)
        secrets = {key: "..." for key in parsed.query if _SECRET_KEY.search(key)}
        return str(parsed.update_query(secrets) if secrets else parsed)
    except (ValueError, TypeError):
        return "(not a URL)"


def _public_socket(addr_info: Any) -> socket.socket:
    family, kind, protocol, _, address = addr_info
    if not _to_proxy.get():
        _require_public(address[0])
    return socket.socket(family, kind, protocol)


def _require_public(address: str) -> None:
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # What counts is the IPv4 address that such an address leads to.
        nat64 = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or nat64 or ip
    site_local = isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local
    if not ip.is_global or ip.is_multicast or ip.is_reserved or site_local:
        raise NotPublicError(address)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
