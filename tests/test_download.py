from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gzip
import hashlib
import logging
import pickle
import random
import socket
import socketserver
import ssl
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from http_server import Fault, Server, serve

from kdepth.downloads import network as addresses
from kdepth.downloads.http import Fetched, Limits, Transfer, fetch
from kdepth.downloads.http_answers import content_range, retry_after_seconds
from kdepth.downloads.network import client_session, public_url
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
from kdepth.schema import clip_id_for, lasting_url

# What a file of 3 MB looks like from outside: an MP4's first bytes, then noise.
VIDEO = b"\0\0\0\x18ftypmp42" + random.Random(4).randbytes(3_000_000)
SHA256 = hashlib.sha256(VIDEO).hexdigest()
NAME = "some clip [1].mp4"
PUBLIC = "http://93.184.215.14"  # an address that nothing here connects to


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / NAME).write_bytes(VIDEO)
    return tmp_path / "www"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serve(folder) as server:
        yield server


async def get(url: str, path: Path, **options: Any) -> Fetched:
    return await fetch(url, path, **{"allow_private_hosts": True, "backoff_seconds": 0.001} | options)


def leftovers(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir() if file.is_file())


async def test_a_file_arrives_whole(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "clip.mp4"
    fetched = await get(server.url(NAME), path)
    assert path.read_bytes() == VIDEO
    assert (fetched.path, fetched.num_bytes, fetched.sha256) == (path, len(VIDEO), SHA256)
    assert (fetched.http_status, fetched.attempts) == (200, 1)
    assert leftovers(path) == ["clip.mp4"]
    assert server.bytes_sent == len(VIDEO)


RESETS = [Fault(reset_at=0.5), Fault(reset_at=0.75), Fault(reset_at=0.9)]


@pytest.mark.parametrize(
    "validators", [{}, {"etag": False}, {"etag": False, "last_modified": False}], ids=["etag", "date", "nothing"]
)
@pytest.mark.parametrize(
    ("faults", "attempts"),
    [
        (RESETS, 4),
        ([Fault(reset_at=0.5)] * 3, 4),
        ([Fault(extra_length=100)], 2),
        ([Fault(chunked=True, reset_at=0.5)], 2),
        ([Fault(503, {"Retry-After": "0"}), Fault(503), Fault(reset_at=0.5)], 4),
        ([Fault(reset_at=0.5), Fault(500), Fault(429)], 4),
    ],
    ids=["resets", "resets-at-once", "length", "chunked", "503", "mixed"],
)
async def test_a_transfer_goes_on_where_it_broke(
    folder: Path, tmp_path: Path, faults: list[Fault], attempts: int, validators: dict[str, bool]
) -> None:
    with serve(folder, faults={NAME: faults}, **validators) as server:
        fetched = await get(server.url(NAME), tmp_path / "clip.mp4")
        assert (fetched.sha256, fetched.attempts) == (SHA256, attempts)
        assert server.bytes_sent == len(VIDEO)
    assert (tmp_path / "clip.mp4").read_bytes() == VIDEO
    assert leftovers(tmp_path / "clip.mp4") == ["clip.mp4"]


async def test_halves_of_two_files_are_not_put_together(folder: Path, tmp_path: Path) -> None:
    faults = [Fault(reset_at=0.5, headers={"ETag": 'W/"1"'}), Fault(headers={"ETag": 'W/"2"'})]
    with serve(folder, etag=False, last_modified=False, faults={NAME: faults}) as server:
        fetched = await get(server.url(NAME), tmp_path / "clip.mp4")
    assert (fetched.sha256, fetched.http_status, fetched.attempts) == (SHA256, 200, 3)


async def test_mirrors_may_have_weak_etags_of_their_own(folder: Path, tmp_path: Path) -> None:
    faults = [Fault(reset_at=0.5, headers={"ETag": 'W/"1"'}), Fault(headers={"ETag": 'W/"2"'})]
    with serve(folder, etag=False, faults={NAME: faults}) as server:
        fetched = await get(server.url(NAME), tmp_path / "clip.mp4")
    assert (fetched.sha256, fetched.http_status, fetched.attempts) == (SHA256, 206, 2)


async def test_requests_that_bring_something_are_no_failures(server: Server, tmp_path: Path) -> None:
    server.fail_next(NAME, *[Fault(reset_at=n / 8) for n in range(1, 8)])
    assert (await get(server.url(NAME), tmp_path / "clip.mp4", attempts=2)).sha256 == SHA256


async def test_a_transfer_that_drips_is_broken_off(server: Server, tmp_path: Path) -> None:
    server.fail_next(NAME, *[Fault(drip_seconds=0.005)] * 4)  # 200 bytes a second
    async with client_session(allow_private_hosts=True, stall_seconds=0.5) as session:
        with pytest.raises(DownloadTimeoutError, match=r"fewer than 500 bytes in 0\.5 s"):
            await get(server.url(NAME), tmp_path / "clip.mp4", session=session, attempts=2)
        assert len(server.requests) == 2
        # Whoever waits for it all the same: until the limit of the whole.
        with pytest.raises(DownloadTimeoutError, match="not whole after 1 s"):
            await get(server.url(NAME), tmp_path / "b.mp4", session=session, min_bytes_per_second=0, timeout_seconds=1)
    assert len(server.requests) == 3


async def test_two_at_once_on_a_file_have_it_from_one_transfer(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked, flock = asyncio.Event(), fcntl.flock

    def told(*arguments: Any) -> None:
        try:
            flock(*arguments)
        except BlockingIOError:
            blocked.set()
            raise

    monkeypatch.setattr(fcntl, "flock", told)
    with serve(folder, faults={NAME: [Fault(hold_at=0.5)]}) as server:
        one = asyncio.create_task(get(server.url(NAME), tmp_path / "clip.mp4"))
        await asyncio.to_thread(server.held.wait)
        two = asyncio.create_task(get(server.url(NAME), tmp_path / "clip.mp4"))
        await blocked.wait()
        server.release()
        assert [(fetched.sha256, fetched.attempts) for fetched in (await one, await two)] == [(SHA256, 1), (SHA256, 0)]
        assert len(server.requests) == 1
    assert leftovers(tmp_path / "clip.mp4") == ["clip.mp4"]


async def test_who_waited_in_vain_downloads_by_itself(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked, flock, path = asyncio.Event(), fcntl.flock, tmp_path / "clip.mp4"
    path.write_bytes(b"of an earlier time")

    def told(*arguments: Any) -> None:
        try:
            flock(*arguments)
        except BlockingIOError:
            blocked.set()
            raise

    monkeypatch.setattr(fcntl, "flock", told)
    with serve(folder, faults={NAME: [Fault(hold_at=0.5, reset_at=0.5)]}) as server:
        one = asyncio.create_task(get(server.url(NAME), path, attempts=1))
        await asyncio.to_thread(server.held.wait)
        two = asyncio.create_task(get(server.url(NAME), path))
        await blocked.wait()
        server.release()
        with pytest.raises(IncompleteDownloadError):
            await one
        assert (await two).sha256 == SHA256
    assert path.read_bytes() == VIDEO


@pytest.mark.parametrize(
    "header", ["\u00b2", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "9" * 5000, "-1", "soon"]
)
def test_a_retry_after_that_means_nothing_is_none(header: str) -> None:
    assert retry_after_seconds(header) == 0


@pytest.mark.parametrize("total", ["9" * 5000, "\u0663"])
def test_a_content_range_with_no_number_is_none(total: str) -> None:
    assert content_range(f"bytes 0-1/{total}") == (None, None)


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, Callable[[], int]]]:
    """A server that answers with these bytes, whatever is asked: its URL, and how often it was asked."""
    num_asked = 0

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            nonlocal num_asked
            while self.rfile.readline() not in (b"\r\n", b""):
                pass
            num_asked += 1
            self.wfile.write(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{other.server_address[1]}/a.mp4", lambda: num_asked
        other.shutdown()
        thread.join()


@pytest.mark.parametrize("reason", [b"N\xe3o encontrado", "N\u202eo\u200b \u2028\x85".encode(), b"N" * 5000])
async def test_an_answer_in_other_letters_is_an_error_that_can_be_stored(tmp_path: Path, reason: bytes) -> None:
    answer = b"HTTP/1.1 404 " + reason + b"\r\nContent-Length: 0\r\n\r\n"
    with answering(answer) as (url, _), pytest.raises(HttpStatusError) as caught:
        await get(url, tmp_path / "a.mp4")
    assert str(caught.value).encode()
    assert str(caught.value).isprintable()
    assert caught.value.reason.isprintable()
    assert "HTTP 404 N" in str(caught.value)
    assert len(str(caught.value)) < 300


async def test_a_server_without_ranges_is_asked_from_the_start(folder: Path, tmp_path: Path) -> None:
    with serve(folder, ranges=False, faults={NAME: RESETS}) as server:
        fetched = await get(server.url(NAME), tmp_path / "clip.mp4")
        assert [request.status for request in server.requests] == [200] * 4
    assert fetched.sha256 == SHA256
    assert (tmp_path / "clip.mp4").read_bytes() == VIDEO


async def test_many_breaks_of_a_long_file_are_no_reason_to_give_up(folder: Path, tmp_path: Path) -> None:
    data = VIDEO * 5
    (folder / "long.mp4").write_bytes(data)
    faults = [Fault(reset_at=step / 10) for step in range(1, 10)]
    with serve(folder, faults={"long.mp4": faults}) as server:
        fetched = await get(server.url("long.mp4"), tmp_path / "clip.mp4", attempts=2)
        assert server.bytes_sent == len(data)
    assert (fetched.attempts, fetched.sha256) == (10, hashlib.sha256(data).hexdigest())


async def test_a_file_that_changes_meanwhile_is_taken_anew(server: Server, folder: Path, tmp_path: Path) -> None:
    other = VIDEO[:100] + random.Random(5).randbytes(len(VIDEO) - 100)
    server.fail_next(NAME, Fault(reset_at=0.5))
    with pytest.raises(IncompleteDownloadError, match=f"of {len(VIDEO)} bytes"):
        await get(server.url(NAME), tmp_path / "clip.mp4", attempts=1)
    assert leftovers(tmp_path / "clip.mp4") == ["clip.mp4.part", "clip.mp4.part.json"]
    (folder / NAME).write_bytes(other)
    fetched = await get(server.url(NAME), tmp_path / "clip.mp4")
    assert fetched.sha256 == hashlib.sha256(other).hexdigest()
    assert (tmp_path / "clip.mp4").read_bytes() == other
    assert [request.status for request in server.requests] == [200, 200]


async def test_a_later_call_goes_on(server: Server, tmp_path: Path) -> None:
    server.fail_next(NAME, Fault(reset_at=0.6))
    with pytest.raises(IncompleteDownloadError) as caught:
        await get(server.url(NAME), tmp_path / "clip.mp4", attempts=1)
    assert caught.value.http_status == 200
    fetched = await get(server.url(NAME), tmp_path / "clip.mp4")
    assert (fetched.sha256, fetched.http_status, fetched.attempts) == (SHA256, 206, 1)
    assert server.bytes_sent == len(VIDEO)
    assert leftovers(tmp_path / "clip.mp4") == ["clip.mp4"]


async def test_without_a_validator_a_later_call_begins_again(folder: Path, tmp_path: Path) -> None:
    with serve(folder, etag=False, last_modified=False, faults={NAME: [Fault(reset_at=0.5)]}) as server:
        with pytest.raises(IncompleteDownloadError):
            await get(server.url(NAME), tmp_path / "clip.mp4", attempts=1)
        assert leftovers(tmp_path / "clip.mp4") == []
        assert (await get(server.url(NAME), tmp_path / "clip.mp4")).sha256 == SHA256


@pytest.mark.parametrize("damage", ["no state", "bad state", "too long", "state alone"])
async def test_what_an_earlier_process_left_damaged_is_not_used(server: Server, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "clip.mp4"
    server.fail_next(NAME, Fault(reset_at=0.6))
    with pytest.raises(IncompleteDownloadError):
        await get(server.url(NAME), path, attempts=1)
    part, state = tmp_path / "clip.mp4.part", tmp_path / "clip.mp4.part.json"
    if damage == "no state":
        state.unlink()
    elif damage == "bad state":
        state.write_text('{"validator": ')
    elif damage == "too long":
        part.write_bytes(VIDEO + b"more")
    else:
        part.unlink()
    assert (await get(server.url(NAME), path)).sha256 == SHA256
    assert leftovers(path) == ["clip.mp4"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
async def test_a_final_answer_is_asked_for_once(server: Server, tmp_path: Path, status: int) -> None:
    server.fail_next(NAME, Fault(status))
    with pytest.raises(HttpStatusError, match=f"HTTP {status}") as caught:
        await get(server.url(NAME), tmp_path / "clip.mp4")
    assert caught.value.http_status == status
    assert caught.value.url == server.url(NAME)
    assert len(server.requests) == 1
    assert leftovers(tmp_path / "clip.mp4") == []


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
async def test_an_answer_that_may_pass_is_asked_for_again(server: Server, tmp_path: Path, status: int) -> None:
    server.fail_next(NAME, *[Fault(status)] * 3)
    with pytest.raises(HttpStatusError, match=f"HTTP {status}"):
        await get(server.url(NAME), tmp_path / "clip.mp4", attempts=3)
    assert len(server.requests) == 3


async def test_pauses_grow_and_retry_after_is_kept(server: Server, tmp_path: Path) -> None:
    server.fail_next(NAME, Fault(503), Fault(503), Fault(429, {"Retry-After": "1"}))
    await get(server.url(NAME), tmp_path / "clip.mp4", backoff_seconds=0.1)
    times = [request.time_seconds for request in server.requests]
    pauses = [after - before for before, after in pairwise(times)]
    # Half of each is jitter. Lower bounds only: a busy machine pauses longer.
    assert [pause >= least for pause, least in zip(pauses, [0.05, 0.1, 1.0], strict=True)] == [True] * 3


async def test_a_server_that_wants_an_hour_is_not_waited_for(server: Server, tmp_path: Path) -> None:
    server.fail_next(NAME, Fault(429, {"Retry-After": "3600"}))
    with pytest.raises(HttpStatusError):
        await get(server.url(NAME), tmp_path / "clip.mp4")
    assert len(server.requests) == 1


@pytest.mark.parametrize("hops", [1, 5])
async def test_redirects_are_followed(server: Server, tmp_path: Path, hops: int) -> None:
    for hop in range(hops):
        target = f"/{hop + 1}" if hop + 1 < hops else server.url(NAME)
        server.fail_next(f"{hop}", Fault(302, {"Location": target}))
    fetched = await get(server.url("0"), tmp_path / "clip.mp4")
    assert (fetched.sha256, fetched.attempts) == (SHA256, 1)
    assert len(server.requests) == hops + 1


@pytest.mark.parametrize(
    "target",
    [
        "/a%2Fb%27c%28d%29%2C%3A.mp4?X-Amz-Credential=k%2F2026%2Fs3&x=%3a+%20&&y=a+b&empty=",
        "/~a!$&'()*+,;=:@b.mp4?q=/?:@!$'()*,;&x[0]=[y]",  # brackets in a query stand in lists and browsers as they are
        "/a//b/./c/../d.mp4?",
        "/%E9%FF.mp4?%zz",
        '/blank ü[1]|{}^`<>"\\%.mp4?a=b c',
    ],
)
async def test_a_url_is_sent_as_it_was_written(server: Server, tmp_path: Path, target: str) -> None:
    sent = {
        "/%E9%FF.mp4?%zz": "/%E9%FF.mp4?%25zz",
        "/a//b/./c/../d.mp4?": "/a//b/./c/../d.mp4",
        '/blank ü[1]|{}^`<>"\\%.mp4?a=b c': "/blank%20%C3%BC%5B1%5D%7C%7B%7D%5E%60%3C%3E%22%5C%25.mp4?a=b%20c",
    }.get(target, target)
    url = f"http://127.0.0.1:{server.port}{target}"
    with pytest.raises(HttpStatusError) as caught:
        await get(url, tmp_path / "clip.mp4")
    assert caught.value.url == public_url(url)
    server.fail_next("a", Fault(302, {"Location": target}))
    with pytest.raises(HttpStatusError):
        await get(server.url("a"), tmp_path / "clip.mp4")
    led_to = sent.replace("/./c/..", "")  # where a redirect leads is worked out (RFC 3986, 5.2)
    assert [request.target for request in server.requests] == [sent, "/a", led_to]


ODD = ["http://a..b/", "http://h:99999/", "http://h:x/", "http://[::1", "http://" + "a" * 70 + "/", "http://.h/"]
ODD += ["http://xn--a/", "http://é..x/", "http://\u2025/", "http://a b/", "http://h\\@x/", "https://[fe80::1%25eth0]/"]
ODD += [
    "http://a%00b/",
    "http://%01/",
    "http://*/",
    "//a..b/x",
    "http://@/",
    "http://:80/",
    "///",
    "http://1.2.3.4.5.6/",
]


@pytest.mark.parametrize("location", ODD)
async def test_any_odd_redirect_is_a_failed_download(server: Server, tmp_path: Path, location: str) -> None:
    server.fail_next("a", *[Fault(302, {"Location": location})] * 2)
    async with client_session(allow_private_hosts=True) as session:
        with pytest.raises(DownloadError) as caught:
            await get(server.url("a"), tmp_path / "clip.mp4", session=session, attempts=1)
        transfer = Transfer(server.url("a"), tmp_path / "b", session=session, limits=Limits())
        assert await transfer.is_still({}) in (None, False)
    assert str(caught.value)


async def test_an_odd_redirect_is_a_failed_download_behind_a_proxy(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    for location in ("http://a..b/", "http://" + "a" * 70 + "/"):
        server.fail_next("a", Fault(302, {"Location": location}))
        with pytest.raises(DownloadError):
            await get(f"{PUBLIC}/a", tmp_path / "clip.mp4", allow_private_hosts=False)


async def test_a_cookie_lasts_as_long_as_its_transfer(server: Server, folder: Path, tmp_path: Path) -> None:
    with serve(folder) as other:
        asks = Fault(302, {"Location": f"/{NAME}", "Set-Cookie": "seen=yes%2C1; Path=/"})
        server.fail_next(NAME, asks, Fault(reset_at=0.5), Fault(302, {"Location": other.url("b")}))
        other.fail_next("b", Fault(302, {"Location": server.url(NAME)}))
        async with client_session(allow_private_hosts=True) as session:
            await get(server.url(NAME), tmp_path / "clip.mp4", session=session)
            await get(server.url(NAME), tmp_path / "clip.mp4", session=session)
    cookies = [request.headers.get("Cookie") for request in server.requests]
    assert cookies == [None, "seen=yes%2C1", "seen=yes%2C1", "seen=yes%2C1", None]


async def test_large_headers_are_read_and_larger_ones_are_named(server: Server, tmp_path: Path) -> None:
    server.fail_next(NAME, Fault(headers={"X-Policy": "p" * 60_000}), Fault(headers={"X-Policy": "p" * 80_000}))
    assert (await get(server.url(NAME), tmp_path / "clip.mp4")).sha256 == SHA256
    with pytest.raises(DownloadError, match=r"not HTTP as it should be: .*65536") as caught:
        await get(server.url(NAME), tmp_path / "clip.mp4")
    assert len(server.requests) == 2  # it would be the same again
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "header"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "Expected HTTP"),
        (b"HTTP/1.1 200 OK\r\n\x1b[31m: a\r\n\r\n", "header"),
    ],
)
async def test_what_is_no_http_is_asked_for_once(tmp_path: Path, answer: bytes, says: str) -> None:
    with answering(answer) as (url, num_asked):
        with pytest.raises(DownloadError, match=f"not HTTP as it should be: .*{says}") as caught:
            await get(url, tmp_path / "a.mp4")
        assert num_asked() == 1
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP"])
async def test_a_compression_that_nobody_asked_for_is_undone(server: Server, tmp_path: Path, encoding: str) -> None:
    packed = gzip.compress(VIDEO) if encoding != "deflate" else zlib.compress(VIDEO)
    sent = Fault(body=packed, headers={"Content-Encoding": encoding})
    server.fail_next(NAME, replace(sent, reset_at=0.5), sent, sent, replace(sent, body=gzip.compress(bytes(9_000_000))))
    fetched = await get(server.url(NAME), tmp_path / "clip.mp4")
    assert (fetched.sha256, fetched.num_bytes) == (SHA256, len(VIDEO))
    assert [request.headers["Accept-Encoding"] for request in server.requests] == ["identity"] * 3


@pytest.mark.parametrize("encoding", ["x-gzip", "compress", "br, gzip", "\u00e9"])
async def test_a_compression_that_can_not_be_undone_is_named(server: Server, tmp_path: Path, encoding: str) -> None:
    server.fail_next(NAME, Fault(headers={"Content-Encoding": encoding}))
    with pytest.raises(DownloadError, match="sent with Content-Encoding: "):
        await get(server.url(NAME), tmp_path / "clip.mp4")
    assert len(server.requests) == 1


async def test_a_bomb_of_compressed_zeros_is_too_large(server: Server, tmp_path: Path) -> None:
    server.fail_next(NAME, Fault(body=gzip.compress(VIDEO[:600] + bytes(10**8)), headers={"Content-Encoding": "gzip"}))
    with pytest.raises(DownloadTooLargeError, match="5000000"):
        await get(server.url(NAME), tmp_path / "clip.mp4", max_bytes=5_000_000)
    assert leftovers(tmp_path / "clip.mp4") == []


@pytest.mark.parametrize(
    "start",
    [
        *[bytes([first, 1, 2, 3]) + (b"G" + bytes(191)) * 4 for first in b"<\t %B7P"],  # an M2TS' clock
        b"<\0\0\0mdat",  # a MOV with a first box of a gigabyte
        b"BZh9mdat",
        b" <?xmoov",
    ],
)
async def test_a_video_may_begin_like_something_else(server: Server, tmp_path: Path, start: bytes) -> None:
    server.fail_next(NAME, Fault(body=start + VIDEO))
    assert (await get(server.url(NAME), tmp_path / "clip.m2ts")).attempts == 1


async def test_redirect_loops_are_refused(server: Server, tmp_path: Path) -> None:
    server.fail_next("loop", *[Fault(307, {"Location": "/loop"})] * 20)
    with pytest.raises(RefusedAddressError, match="more than 5 redirects"):
        await get(server.url("loop"), tmp_path / "clip.mp4")
    assert len(server.requests) == 6


class LoopbackIsPublic(addresses.PublicConnector):
    """The rules for public addresses, with our server's address taken for one."""

    def __init__(self) -> None:
        super().__init__(limit=4, limit_per_host=4)
        self._socket_factory = self._make

    @staticmethod
    def _make(info: Any) -> socket.socket:
        return socket.socket(*info[:3]) if info[4][0] == "127.0.0.1" else addresses._public_socket(info)


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("http://169.254.169.254/latest/meta-data", "169.254.169.254 is not a public address"),
        ("http://10.0.0.1/a.mp4", "10.0.0.1 is not a public address"),
        ("http://[::1]/a.mp4", "::1 is not a public address"),
        ("http://[::ffff:10.0.0.1]/a.mp4", "not a public address"),
        ("http://127.0.0.2/a.mp4", "127.0.0.2 is not a public address"),
        ("//0.0.0.0/a.mp4", "0.0.0.0 is not a public address"),
        ("http://0x7f.2/a.mp4", "127.0.0.2 is not a public address"),
        ("http://2130706434/a.mp4", "not a URL that can be asked for"),
        ("file:///etc/passwd", "redirected to a file URL"),
        ("ftp://h/a.mp4", "redirected to a ftp URL"),
        ("data:video/mp4;base64,AAAA", "redirected to a data URL"),
        ("http://[", "not a URL"),
    ],
)
async def test_redirects_that_are_refused(server: Server, tmp_path: Path, location: str, says: str) -> None:
    server.fail_next(NAME, Fault(302, {"Location": location}))
    async with aiohttp.ClientSession(connector=LoopbackIsPublic()) as session:
        with pytest.raises(RefusedAddressError, match=says) as caught:
            await get(server.url(NAME), tmp_path / "clip.mp4", session=session)
    assert caught.value.http_status == 302
    assert len(server.requests) == 1


@pytest.fixture
def tls_server(folder: Path) -> Iterator[tuple[Server, ssl.SSLContext]]:
    """A server that speaks https, and the context of a client that trusts it."""
    authority = trustme.CA()
    server_context, client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server_context)
    authority.configure_trust(client_context)
    with serve(folder, tls=server_context) as server:
        yield server, client_context


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ("", "redirected from https to http"),
        ("file:///etc/passwd", "redirected to a file URL"),
        ("ftp://h/a.mp4", "redirected to a ftp URL"),
    ],
)
async def test_https_is_not_left_by_a_redirect(
    server: Server, tls_server: tuple[Server, ssl.SSLContext], tmp_path: Path, to: str, says: str
) -> None:
    secure, context = tls_server
    secure.fail_next("a", Fault(302, {"Location": to or server.url(NAME)}))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        with pytest.raises(RefusedAddressError, match=says) as caught:
            await get(secure.url("a"), tmp_path / "clip.mp4", session=session)
    assert caught.value.http_status == 302
    assert (len(secure.requests), len(server.requests)) == (1, 0)
    assert leftovers(tmp_path / "clip.mp4") == []


async def test_http_may_lead_to_https(
    server: Server, tls_server: tuple[Server, ssl.SSLContext], tmp_path: Path
) -> None:
    secure, context = tls_server
    server.fail_next("a", Fault(302, {"Location": secure.url(NAME)}))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        assert (await get(server.url("a"), tmp_path / "clip.mp4", session=session)).sha256 == SHA256


async def test_a_certificate_that_nobody_signed_is_refused_at_once(
    tls_server: tuple[Server, ssl.SSLContext], tmp_path: Path
) -> None:
    with pytest.raises(HostUnreachableError, match="certificate"):
        await get(tls_server[0].url(NAME), tmp_path / "clip.mp4")
    assert tls_server[0].requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "0x7f.1"])
async def test_private_hosts_are_refused_unless_allowed(server: Server, tmp_path: Path, host: str) -> None:
    with pytest.raises(RefusedAddressError, match="not a public address"):
        await get(f"http://{host}:{server.port}/a.mp4", tmp_path / "clip.mp4", allow_private_hosts=False)
    assert server.requests == []


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "127.0.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::a00:1",
    ],
)
def test_special_addresses_are_not_public(address: str) -> None:
    with pytest.raises(addresses.NotPublicError, match=address):
        addresses._require_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_public(address: str) -> None:
    addresses._require_public(address)


@pytest.mark.parametrize("url", ["ftp://h/a.mp4", "file:///etc/passwd", "/a.mp4", "", "http://", "http://[", "http:a"])
async def test_only_http_urls_are_fetched(tmp_path: Path, url: str) -> None:
    with pytest.raises(RefusedAddressError):
        await get(url, tmp_path / "clip.mp4")


async def test_hosts_that_do_not_answer(tmp_path: Path) -> None:
    with socket.socket() as unused:  # bound, and not listening
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(HostUnreachableError):
            await get(f"http://127.0.0.1:{unused.getsockname()[1]}/a.mp4", tmp_path / "clip.mp4", attempts=2)


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 70 + ".invalid"])
async def test_hosts_that_do_not_resolve(tmp_path: Path, host: str) -> None:
    with pytest.raises(HostUnreachableError):
        await get(f"http://{host}/a.mp4", tmp_path / "clip.mp4", attempts=2)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><title>Not found</title>" + b" " * 2000, "an HTML page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error/>", "XML"),
        (b'{"error": "nope"}', "text or JSON"),
        ("Überlastet, später noch einmal. ".encode() * 100, "text or JSON"),
        (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n", "text or JSON"),
        (b"\x1f\x8b" + bytes(1000), "a gzip file"),
        (b"BZh91AY" + bytes(1000), "a bzip2 file"),
        (bytes(257) + b"ustar" + bytes(1000), "a tar archive"),
        (b"%PDF-1.7" + bytes(1000), "a PDF file"),
        (b"\xff\xd8\xff\xe0" + bytes(1000), "a JPEG picture"),
    ],
)
async def test_what_is_not_a_video_is_refused(server: Server, tmp_path: Path, body: bytes, what: str) -> None:
    server.fail_next(NAME, Fault(body=body))
    with pytest.raises(NotAVideoError, match=f"this is {what}, not a video") as caught:
        await get(server.url(NAME), tmp_path / "clip.mp4")
    assert ("URLs that end in .tar.gz" in str(caught.value)) == what.endswith(("gzip file", "bzip2 file", "archive"))
    assert caught.value.http_status == 200
    assert len(server.requests) == 1
    assert leftovers(tmp_path / "clip.mp4") == []


async def test_dark_bare_pictures_are_no_text(server: Server, tmp_path: Path) -> None:
    server.fail_next(NAME, Fault(body=b"YUV4MPEG2 W64 H64 F25:1\nFRAME\n" + b"\x20" * 6144))
    assert (await get(server.url(NAME), tmp_path / "clip.y4m")).attempts == 1


@pytest.mark.parametrize("fault", [Fault(), Fault(chunked=True), Fault(reset_at=0.4)])
async def test_size_limit(server: Server, tmp_path: Path, fault: Fault) -> None:
    server.fail_next(NAME, fault)
    with pytest.raises(DownloadTooLargeError, match="2000000"):
        await get(server.url(NAME), tmp_path / "clip.mp4", max_bytes=2_000_000)
    assert len(server.requests) == 1
    assert leftovers(tmp_path / "clip.mp4") == []


async def test_time_limit(server: Server, tmp_path: Path) -> None:
    server.fail_next(NAME, Fault(hold_at=0.5))
    with pytest.raises(DownloadTimeoutError, match=r"not whole after 0\.5 s"):
        await get(server.url(NAME), tmp_path / "clip.mp4", timeout_seconds=0.5)
    # What came is there for the next call.
    assert leftovers(tmp_path / "clip.mp4") in (["clip.mp4.part", "clip.mp4.part.json"], [])


async def test_a_transfer_that_stalls_is_taken_up_again(server: Server, tmp_path: Path) -> None:
    server.fail_next(NAME, Fault(hold_at=0.5), Fault(hold_at=0.5))
    async with client_session(allow_private_hosts=True, stall_seconds=0.3) as session:
        fetched = await get(
            server.url(NAME), tmp_path / "clip.mp4", session=session, attempts=50
        )  # a busy machine stalls too
    assert fetched.sha256 == SHA256
    assert fetched.attempts >= 3


async def test_a_slow_body_arrives_whole(server: Server, tmp_path: Path) -> None:
    server.fail_next(NAME, Fault(hold_at=0.5))
    download = asyncio.create_task(get(server.url(NAME), tmp_path / "clip.mp4"))
    await asyncio.to_thread(server.held.wait)
    assert not (tmp_path / "clip.mp4").exists()
    server.release()
    assert (await download).sha256 == SHA256


async def test_cancelling_stops_it(server: Server, tmp_path: Path) -> None:
    server.fail_next(NAME, Fault(hold_at=0.1))
    download = asyncio.create_task(get(server.url(NAME), tmp_path / "clip.mp4"))
    await asyncio.to_thread(server.held.wait)
    download.cancel()
    with pytest.raises(asyncio.CancelledError):
        await download
    assert leftovers(tmp_path / "clip.mp4") == []


async def test_a_folder_that_can_not_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DownloadError, match=r"can't write clip\.mp4\.part"):
        await get(server.url(NAME), tmp_path / "file" / "clip.mp4")


async def test_one_host_gets_so_many_connections_at_once(server: Server, tmp_path: Path) -> None:
    async with client_session(allow_private_hosts=True, connections_per_host=3) as session:
        urls = [server.url(NAME) for _ in range(12)]
        fetched = await asyncio.gather(
            *[get(url, tmp_path / f"{i}.mp4", session=session) for i, url in enumerate(urls)]
        )
    assert {item.sha256 for item in fetched} == {SHA256}
    assert server.max_concurrent <= 3


async def test_credentials_go_to_their_server_and_nowhere_else(
    server: Server, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with serve(folder) as other:
        server.fail_next("a", Fault(302, {"Location": "/b"}))
        server.fail_next("b", Fault(503), Fault(302, {"Location": other.url("c")}))
        other.fail_next("c", Fault(403))
        secret = server.url("a?X-Amz-Signature=hunter3").replace("http://", "http://user:hunter2@").replace("%3F", "?")
        secret = secret.replace("%3D", "=")
        with pytest.raises(HttpStatusError) as caught:
            await get(secret, tmp_path / "clip.mp4")
    # "b" answered 503, so "a" was asked again; it is "c" only that must not see them.
    assert {request.headers.get("Authorization", "")[:6] for request in server.requests} == {"Basic "}
    assert [request.headers.get("Authorization") for request in other.requests] == [None] * len(other.requests)
    shown = f"{caught.value} {caught.value!r} {pickle.dumps(caught.value)!r} {caplog.text}"
    assert "again in" in caplog.text
    assert "hunter" not in shown
    assert "X-Amz-Signature" in str(caught.value)


SECRETS = ["pwd", "jwt", "code", "md5", "hmac", "hdnts", "policy", "Policy", "session", "PHPSESSID", "accessCode"]
SECRETS += ["auth_key", "x-oss-signature", "q-signature", "wsSecret", "ticket", "otp", "%74oken"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@h:8443/a.mp4?b=c#d", "https://h:8443/a.mp4?b=c"),
        ("https://h/a?X-Amz-Signature=abc&part=1", "https://h/a?X-Amz-Signature=...&part=1"),
        ("https://h/a?token=abc&ACCESS_KEY=d", "https://h/a?token=...&ACCESS_KEY=..."),
        ("https://www.youtube.com/watch?v=0wR5jVB-WPk", "https://www.youtube.com/watch?v=0wR5jVB-WPk"),
        *[(f"https://h/a?{key}=abc&part=1", f"https://h/a?{key}=...&part=1") for key in SECRETS],
        ("https://h/a?codec=h264&barcode=1&start=2", "https://h/a?codec=h264&barcode=1&start=2"),
        ("https://h/a;jsessionid=AB/b.mp4;v=1?x=1;token=2", "https://h/a;jsessionid=.../b.mp4;v=1?x=1;token=..."),
        # URLs within URLs, as they are and quoted, once or twice.
        ("https://h/get?url=https://u:p@i/a?token=b&c=1", "https://h/get?url=https://i/a?token=...&c=1"),
        ("https://h/g?u=https%3A%2F%2Fu%3Ap%40i%2Fa%3Fsig%3Db", "https://h/g?u=https%3A%2F%2Fi%2Fa%3Fsig%3D..."),
        ("https://h/g?u=https%253A%252F%252Fu%253Ap%2540i%252Fa", "https://h/g?u=https%3A%2F%2Fi%2Fa"),
        ("https://h/p/https://u:p@i/a.mp4", "https://h/p/https://i/a.mp4"),
        ("https://h/p/https%3A%2F%2Fu%3Ap%40i%2Fa.mp4", "https://h/p/https%3A%2F%2Fi%2Fa.mp4"),
        ("https://h/a?x=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "https://h/a?x=..."),
        # Everything else as it was written.
        ("https://h/@me/a%27b%2F.mp4?c=%2C%20+x&&d", "https://h/@me/a%27b%2F.mp4?c=%2C%20+x&&d"),
        ("http://[", "(not a URL)"),
        ("/a.mp4", "(not a URL)"),
        ("https://h" + "/a?u=http://i" * 5000, "https://h" + "/a?u=http://i" * 5 + "/a?u=..."),
    ],
)
def test_public_url(url: str, shown: str) -> None:
    assert public_url(url) == shown


async def test_proxy_variables_are_honoured(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("no_proxy", "10.9.9.9")
    fetched = await get(f"{PUBLIC}/{NAME}", tmp_path / "clip.mp4", allow_private_hosts=False)
    assert fetched.sha256 == SHA256
    assert server.requests[0].headers["Host"] == PUBLIC.removeprefix("http://")
    # The proxy's private address is no way around the rules.
    for host in ("10.0.0.1", "169.254.169.254", "10.9.9.9", "127.0.0.1"):
        with pytest.raises(RefusedAddressError, match=f"{host} is not a public address"):
            await get(f"http://{host}/{NAME}", tmp_path / "clip.mp4", allow_private_hosts=False)
    server.fail_next(NAME, Fault(302, {"Location": "http://10.0.0.1/"}))
    with pytest.raises(RefusedAddressError, match=r"10\.0\.0\.1 is not a public address"):
        await get(f"{PUBLIC}/{NAME}", tmp_path / "clip.mp4", allow_private_hosts=False)
    assert len(server.requests) == 2
    # This machine's own servers are not asked for through it.
    with serve(tmp_path / "www") as own:
        assert (await get(own.url(NAME), tmp_path / "clip.mp4")).sha256 == SHA256
        assert len(own.requests) == 1


def test_wrong_options(tmp_path: Path) -> None:
    for options in ({"attempts": 0}, {"max_bytes": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            asyncio.run(get("http://h/a.mp4", tmp_path / "clip.mp4", **options))


SIGNED = {
    "Amazon": "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}&X-Amz-Date={}&X-Amz-Expires=9&X-Amz-Signature={}",
    "Amazon, with a session": "AWSAccessKeyId={}&Expires={}&Signature={}&x-amz-security-token={}",
    "Google": "X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential={}&X-Goog-Date={}&X-Goog-Signature={}",
    "CloudFront": "Policy={}&Signature={}&Key-Pair-Id={}",
    "Cloud CDN": "Expires={}&KeyName={}&Signature={}",
    "Azure": "sv=2024-05-04&se={}&sr=b&sp=r&sig={}",
    "Azure, by a stored policy": "sv=2024-05-04&si={}&sr=c&sig={}",
    "Alibaba OSS": "OSSAccessKeyId={}&Expires={}&Signature={}&security-token={}",
    "Alibaba OSS, version 4": "x-oss-signature-version=OSS4-HMAC-SHA256&x-oss-credential={}&x-oss-date={}"
    "&x-oss-expires=60&x-oss-signature={}",
    "Tencent COS": "q-sign-algorithm=sha1&q-ak={}&q-sign-time={};{}&q-key-time={};{}&q-header-list=host"
    "&q-url-param-list=&q-signature={}&x-cos-security-token={}",
    "Huawei OBS": "AccessKeyId={}&Expires={}&Signature={}&x-obs-security-token={}",
    "Volcano TOS": "X-Tos-Algorithm=TOS4-HMAC-SHA256&X-Tos-Credential={}&X-Tos-Date={}&X-Tos-Expires=1"
    "&X-Tos-SignedHeaders=host&X-Tos-Signature={}",
    "Akamai": "hdnts=exp={}~acl=/*~hmac={}",
    "Bunny": "token={}&token_path=/&expires={}",
    "nginx": "md5={}&expires={}",
    "Wangsu": "wsSecret={}&wsTime={}",
    "Tencent's CDN": "txSecret={}&txTime={}",
    "Alibaba's CDN": "auth_key=17000000{}-0-0-0123456789abcdef0123456789abcdef",
    "Cloudflare": "verify=17000000{}-abc%2Fdef%3D",
}


@pytest.mark.parametrize("query", SIGNED.values(), ids=SIGNED)
def test_a_renewed_signature_makes_no_other_clip(query: str) -> None:
    base = "https://h/a%2Cb.mp4?part=2"
    number = query.count("{}")
    first, second = query.format(*range(10, 10 + number)), query.format(*range(20, 20 + number))
    assert lasting_url(f"{base}&{first}") == lasting_url(f"{base}&{second}") == base
    assert clip_id_for(f"{base}&{first}") == clip_id_for(base)
    # And it is never shown.
    if number > 1:
        assert public_url(f"{base}&{first}") != f"{base}&{first}"


@pytest.mark.parametrize(
    "query",
    [
        *("x-oss-process=video/snapshot,t_7000", "auth_key=1", "sign=abc", "verify=1", "token=a", "md5=1", "expires=1"),
        *("signature=a&expires=1", "st=1&sig=a", "q-ak=1", "x-tos-process=1", "sv=1&sig=2", "wsTime=1"),
    ],
)
def test_what_signs_nothing_stays(query: str) -> None:
    url = f"https://h/a.mp4?{query}"
    assert lasting_url(url) == url
    signed = f"{url}&x-oss-signature=1&x-oss-date=2"
    assert lasting_url(signed) == url
