"""Which addresses kdepth connects to, through which proxy, how a URL is sent, and what of it may be shown."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import re
import socket
import urllib.request
from contextvars import ContextVar
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import aiohttp
from yarl import URL

from kdepth.lists import spelled_url

_CONNECT_SECONDS = 30
_READ_BUFFER_BYTES = 2**18
_MAX_HEADER_BYTES = 2**16  # of a line; aiohttp's own 8,190 are fewer than some CDNs send
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
_SECRET_KEY = re.compile(
    r"(?i)sig|token|key|pass|pwd|secret|cred|auth|jwt|hmac|md5|hdn|policy|sess|ticket|bearer|otp|"
    r"(?<!en)(?<!de)(?<!bar)code(?!c)"
)
_JSON_WEB_TOKEN = re.compile(r"eyJ[\w-]{8,2000}\.[\w-]+\.[\w-]*")  # RFC 7519; whatever its key
_MAX_NESTED_URLS = 5

# Whether the connection being made is the one to a proxy, which may well have a private address.
_to_proxy: ContextVar[bool] = ContextVar("_to_proxy", default=False)


class NotPublicError(OSError):
    """A special address. An OSError, because only these come through aiohttp's connector as they are."""


class PublicConnector(aiohttp.TCPConnector):
    """Refuse addresses that are not public: whenever a socket is made for one."""

    def __init__(self, *, limit: int, limit_per_host: int) -> None:
        super().__init__(limit=limit, limit_per_host=limit_per_host, socket_factory=_public_socket)


def client_session(
    *,
    connections: int = 64,
    connections_per_host: int = 16,
    stall_seconds: float = 60,
    allow_private_hosts: bool = False,
) -> aiohttp.ClientSession:
    """Make a session for `fetch` and `read_archive`, inside a running event loop; close it after use.

    Args:
        connections: Connections open at once.
        connections_per_host: Connections open at once to one host.
        stall_seconds: A transfer without a byte for so long, or with too few, counts as broken.
        allow_private_hosts: Connect to loopback, private, link-local and other addresses that are not public, too.

    Returns:
        A session whose connector refuses such addresses otherwise. The check is made on the address of each connection,
        so a name can't first resolve to one address and then to another. With ``http_proxy``/``https_proxy`` set it is
        the proxy who resolves names: then names that resolve to such an address here are refused.
    """
    connector = aiohttp.TCPConnector if allow_private_hosts else PublicConnector
    return aiohttp.ClientSession(
        connector=connector(limit=connections, limit_per_host=connections_per_host),
        cookie_jar=aiohttp.DummyCookieJar(),  # each transfer has its own
        headers={"Accept-Encoding": "identity", "User-Agent": "kdepth"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=stall_seconds),
        read_bufsize=_READ_BUFFER_BYTES,
        max_line_size=_MAX_HEADER_BYTES,
        max_field_size=_MAX_HEADER_BYTES,
    )


async def get(
    session: aiohttp.ClientSession, url: URL, headers: dict[str, str], cookies: aiohttp.CookieJar
) -> aiohttp.ClientResponse:
    """Ask for one URL, through the environment's proxy, and follow no redirect.

    aiohttp's ``trust_env`` would send the passwords of ``~/.netrc`` to whatever host a redirect names, and its own
    redirects spell URLs anew. Raises `NotPublicError`, aiohttp's errors, and the ValueError of Python's resolver.
    """
    proxy = await _proxy_for(url, session)
    held = "; ".join(f"{cookie.key}={cookie.coded_value}" for cookie in cookies.filter_cookies(url).values())
    token = _to_proxy.set(proxy is not None)
    try:
        response = await session.get(
            url,
            headers=headers | ({"Cookie": held} if held else {}),
            allow_redirects=False,
            auto_decompress=not stays_gzip(url),
            proxy=proxy,
        )
    finally:
        _to_proxy.reset(token)
    cookies.update_cookies(response.cookies, url)
    return response


def stays_gzip(url: URL) -> bool:
    """Whether the file is gzipped anyway: a ``.tar.gz`` stays as it is, and can be continued, with an encoding, too."""
    return url.path.lower().endswith((".gz", ".tgz"))


async def _proxy_for(url: URL, session: aiohttp.ClientSession) -> str | None:
    """The proxy that the environment names for a URL; refuses names that lead to special addresses from here."""
    host = url.host or ""
    proxy = urllib.request.getproxies().get(url.scheme)
    # No proxy can reach this machine's loopback.
    if not proxy or _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    if isinstance(session.connector, PublicConnector):
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError:
            found = []  # behind a proxy names need not resolve
        for info in found:
            _require_public(str(info[4][0]))
    return proxy


def sendable_url(text: str, base: URL | None = None) -> URL:
    """A URL, or a ``Location`` value relative to `base`, as it is sent (`spelled_url`); ValueError if it is none."""
    text = (text if base is None else urljoin(str(base), text)).strip()
    url = URL(text)
    return URL(spelled_url(text, url), encoded=True) if url.host else url


def public_url(url: str) -> str:
    """The URL as it may be shown and stored: without user name, password, and values that look like keys.

    Everything else stays as it was written. URLs within the URL are looked through, too.
    """
    try:
        parts = urlsplit(url.strip())
        if not parts.scheme or not parts.netloc:
            return "(not a URL)"
        _ = parts.port, URL(url)
    except (ValueError, TypeError):
        return "(not a URL)"
    return _without_secrets(url.strip().partition("#")[0])


def _without_secrets(url: str, depth: int = 0) -> str:
    head, mark, query = url.partition("?")
    scheme, slashes, rest = head.partition("://")
    host, slash, path = rest.partition("/")
    path = re.sub("(?<=://)[^/]*@", "", path)

    def public(parameter: re.Match[str]) -> str:
        return _without_secret(parameter[0], depth)

    # One path parameter or one segment, which may be a URL, at a time.
    path, query = re.sub("[^/;]+", public, path), re.sub("[^&;]+", public, query)
    return _JSON_WEB_TOKEN.sub("...", f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}{mark}{query}")


def _without_secret(parameter: str, depth: int) -> str:
    key, equals, value = parameter.partition("=")
    if equals and _SECRET_KEY.search(unquote(key)):
        return f"{key}=..."
    value = inner = value if equals else key
    while (unquoted := unquote(inner)) != inner:
        inner = unquoted
    if "://" in inner:
        shown = _without_secrets(inner, depth + 1) if depth < _MAX_NESTED_URLS else "..."
        if shown != inner:
            value = quote(shown, safe=".") if "%" in value else shown
    return f"{key}={value}" if equals else value


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
        raise NotPublicError(errno.EACCES, f"{address} is not a public address (allow_private_hosts=True permits it)")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
