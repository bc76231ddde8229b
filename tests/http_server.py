"""A real HTTP server in a thread, with the failures of real ones.

    with serve(folder, faults={"a.mp4": [Fault(status=503), Fault(reset_at=0.5)]}) as server:
        await fetch(server.url("a.mp4"), path)      # 503, then cut at half, then whole
        assert [request.status for request in server.requests] == [503, 200, 206]

Each request for a name takes the next of its faults; when there are no more it is answered well. ``Fault(hold_at=0.3)``
sends 30 % and waits until ``server.release()``; ``server.held`` is set meanwhile.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import re
import socket
import ssl
import struct
import termios
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

_CHUNK_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one answer.

    Args:
        status: Answer with this status and no body (the file's body for 2xx).
        headers: Added to the answer: ``Location``, ``Retry-After``, ...
        reset_at: Cut the connection (RST) when so much of the file was sent, as a fraction.
        hold_at: Wait there for ``server.release()``.
        extra_length: Content-Length claims so many bytes more than come.
        body: Send this instead of the file.
        chunked: Without Content-Length.
        drip_seconds: Send a byte, wait so long, and so on.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    reset_at: float | None = None
    hold_at: float | None = None
    extra_length: int = 0
    body: bytes | None = None
    chunked: bool = False
    drip_seconds: float = 0.0


@dataclass(slots=True)
class Request:
    """One line of the server's log."""

    path: str
    target: str  # path and query as they were sent
    headers: Mapping[str, str]
    time_seconds: float
    status: int = 0
    bytes_sent: int = 0


class Server:
    """Serves the files of a folder on a free port of 127.0.0.1. Made by `serve`."""

    def __init__(
        self,
        folder: Path,
        *,
        ranges: bool,
        etag: bool,
        last_modified: bool,
        faults: Mapping[str, Sequence[Fault]],
        tls: ssl.SSLContext | None,
    ) -> None:
        self.requests: list[Request] = []
        self.held = threading.Event()
        self.max_concurrent = 0
        self._folder, self._ranges, self._etag, self._last_modified = folder, ranges, etag, last_modified
        self._faults = {name: list(answers) for name, answers in faults.items()}
        self._concurrent = 0
        self._tls = tls
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="http-server")
        self._thread.start()
        self._ready.wait()

    def url(self, name: str) -> str:
        """The URL of a file in the folder."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}/{quote(name)}"

    @property
    def bytes_sent(self) -> int:
        """Body bytes of all answers so far."""
        return sum(request.bytes_sent for request in self.requests)

    def of(self, name: str) -> list[Request]:
        """The requests for one file."""
        return [request for request in self.requests if request.path == name]

    def fail_next(self, name: str, *faults: Fault) -> None:
        """What goes wrong with the next requests for a file."""
        self._faults.setdefault(name, []).extend(faults)

    def release(self) -> None:
        """Let all answers that wait at ``hold_at`` go on."""
        self._loop.call_soon_threadsafe(self._gate.set)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._gate, self._stop = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        application = web.Application()
        application.router.add_get("/{path:.*}", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        listening = socket.create_server(("127.0.0.1", 0))
        await web.SockSite(runner, listening, ssl_context=self._tls).start()
        self.port: int = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        self._gate.set()
        # First what was accepted in this moment becomes a connection, then all are closed: the socket of one that comes
        # to a closed server is left by Python 3.11 to the garbage collector, whose warning fails any later test.
        self._loop.remove_reader(listening)
        for _ in range(3):
            await asyncio.sleep(0)
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        log = Request(request.match_info["path"], request.raw_path, dict(request.headers), time.monotonic())
        self.requests.append(log)
        self._concurrent += 1
        self.max_concurrent = max(self.max_concurrent, self._concurrent)
        try:
            return await self._send(request, log)
        finally:
            self._concurrent -= 1

    async def _send(self, request: web.Request, log: Request) -> web.StreamResponse:
        faults = self._faults.get(log.path)
        fault = faults.pop(0) if faults else Fault()
        path = self._folder / log.path
        if fault.status >= 300 or (fault.body is None and not path.is_file()):
            log.status = fault.status or 404
            return web.Response(status=log.status, headers=fault.headers)
        body = path.read_bytes() if fault.body is None else fault.body
        headers = self._validators(path, body) | dict(fault.headers)
        start = self._start(request, headers, len(body))
        if self._ranges and request.headers.get("Range") == "bytes=0-0":  # what tells size and validators
            log.status, log.bytes_sent = 206, log.bytes_sent + 1
            headers["Content-Range"] = f"bytes 0-0/{len(body)}"
            return web.Response(status=206, headers=headers, body=body[:1])
        log.status = 206 if start else 200
        if start >= len(body) and start:
            log.status = 416
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(body)}"})
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        response = web.StreamResponse(status=log.status, headers=headers)
        if not fault.chunked:
            response.content_length = len(body) - start + fault.extra_length
        await response.prepare(request)
        position = start
        for stop, what in _stops(fault, len(body)):
            while position < stop:
                chunk = body[position : min(stop, position + (1 if fault.drip_seconds else _CHUNK_BYTES))]
                if fault.drip_seconds:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stop.wait(), fault.drip_seconds)
                    if self._stop.is_set():
                        break
                position += len(chunk)
                log.bytes_sent += len(chunk)  # first: the client may be through before `write` comes back
                await response.write(chunk)
            if what == "hold":
                self.held.set()
                await self._gate.wait()
            elif what == "reset":
                await _reset(request)
                return response
        if fault.extra_length:
            assert request.transport is not None
            request.transport.close()
        return response

    def _validators(self, path: Path, body: bytes) -> dict[str, str]:
        headers = {"Content-Type": "application/octet-stream"}
        if self._ranges:
            headers["Accept-Ranges"] = "bytes"
        if self._etag:
            headers["ETag"] = f'"{zlib.crc32(body):08x}"'
        if self._last_modified and path.is_file():
            headers["Last-Modified"] = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(path.stat().st_mtime))
        return headers

    def _start(self, request: web.Request, headers: Mapping[str, str], size: int) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        condition = request.headers.get("If-Range")
        if not self._ranges or not asked or condition not in (None, headers.get("ETag"), headers.get("Last-Modified")):
            return 0
        return int(asked[1])


def _stops(fault: Fault, size: int) -> list[tuple[int, str]]:
    stops = [(fault.hold_at, "hold"), (fault.reset_at, "reset"), (1.0, "end")]
    return sorted((round(fraction * size), what) for fraction, what in stops if fraction is not None)


async def _reset(request: web.Request) -> None:
    """Cut the connection with RST, after the client's kernel has what was sent: so it is known what that was."""
    transport = request.transport
    assert transport is not None
    connection = transport.get_extra_info("socket")
    unsent = array.array("i", [1])
    while unsent[0] or transport.get_write_buffer_size():  # type: ignore[attr-defined]
        await asyncio.sleep(0.001)
        fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, unsent)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


@contextlib.contextmanager
def serve(
    folder: Path,
    *,
    ranges: bool = True,
    etag: bool = True,
    last_modified: bool = True,
    faults: Mapping[str, Sequence[Fault]] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Server]:
    """A server for the files of a folder.

    Args:
        folder: What it serves, with its subfolders.
        ranges: It knows ``Range`` and ``If-Range``.
        etag: It sends strong ETags.
        last_modified: It sends Last-Modified.
        faults: By file name: what goes wrong with each request for it, in order.
        tls: It speaks https, with this certificate.
    """
    server = Server(folder, ranges=ranges, etag=etag, last_modified=last_modified, faults=faults or {}, tls=tls)
    try:
        yield server
    finally:
        server.close()
