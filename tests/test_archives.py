from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from http_server import Fault, Server, serve

import kdepth
from kdepth.downloads.archive import ARCHIVE_LIMITS, Member, archive_path, index_name, read_archive, read_index
from kdepth.downloads.network import client_session
from kdepth.errors import ArchiveError, DownloadError, DownloadTimeoutError, HttpStatusError, IncompleteDownloadError
from kdepth.schema import clip_id_for
from kdepth.sources import read_sources

# Eight clips of 300 kB that do not compress, as videos don't.
CLIPS = {f"val/{i:011d}_000001_000011.mp4": random.Random(i).randbytes(300_000) for i in range(8)}
NAMES = list(CLIPS)
QUICK = replace(ARCHIVE_LIMITS, backoff_seconds=0.001)


def tar_bytes(members: Mapping[str, bytes] | list[tuple[str, bytes]], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_bytes(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "www").mkdir()
    return tmp_path / "www"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serve(folder) as server:
        yield server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


async def read(url: str, root: Path, **options: Any) -> tuple[list[Member], list[ArchiveError]]:
    """All members and member errors; what the archive raises at its end is appended to the errors."""
    members, errors = [], []
    async with client_session(allow_private_hosts=True) as session:
        try:
            async for item in read_archive(url, root, session=session, **{"limits": QUICK} | options):
                (members if isinstance(item, Member) else errors).append(item)
        except ArchiveError as error:
            errors.append(error)
    return members, errors


def check(members: list[Member], clips: Mapping[str, bytes], root: Path) -> None:
    """Each clip is there once, whole, and nothing else is."""
    assert [member.name for member in members] == list(clips)
    for member, data in zip(members, clips.values(), strict=True):
        assert member.path.parent == root / "raw"
        assert member.path.read_bytes() == data
        assert (member.num_bytes, member.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert sorted(os.listdir(root / "raw")) == sorted(member.path.name for member in members)


def archive_files(root: Path) -> list[str]:
    return sorted(path.name.split("_", 1)[1][10:] for path in (root / "archives").iterdir())


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("part_0.tar.gz", tar_bytes(CLIPS)),
        ("riding a bike [x].tgz", tar_bytes(CLIPS)),
        ("part.tar", tar_bytes(CLIPS, "w")),
        ("part.zip", zip_bytes(CLIPS)),
        ("deflated.zip", zip_bytes(CLIPS, zipfile.ZIP_DEFLATED)),
        ("unzipped on the way.tar.gz", tar_bytes(CLIPS, "w")),
        (
            "two streams.tar.gz",
            gzip.compress(tar_bytes(CLIPS, "w")[:900_000]) + gzip.compress(tar_bytes(CLIPS, "w")[900_000:]),
        ),
    ],
)
async def test_every_kind_of_archive(server: Server, folder: Path, root: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    url = server.url(name)
    assert read_index(root / index_name(url))[0] is None
    members, errors = await read(url, root)
    assert errors == []
    check(members, CLIPS, root)
    assert [member.clip_id for member in members] == [Path(name).stem for name in NAMES]
    assert read_index(root / index_name(url))[0] == NAMES
    assert archive_path(url, root).read_bytes() == data
    assert server.bytes_sent == len(data)
    # Nothing more is asked for, whether members are missing or not.
    assert await read(url, root, skip=NAMES) == ([], [])
    again, _ = await read(url, root, skip=NAMES[1:])
    assert [member.name for member in again] == NAMES[:1]
    assert len(server.requests) == 1


def test_archive_path_holds_nothing_of_a_hostile_name(root: Path) -> None:
    for url in (
        "http://h/..%2F..%2Fetc%2Fpasswd.tar.gz",
        "http://h/" + "a" * 300 + ".zip",
        "http://h/.tar",
        "http://h/",
    ):
        path = archive_path(url, root)
        assert path.parent == root / "archives"
        assert len(path.name) <= 80
        assert ".." not in path.name
    assert archive_path("http://h/a.zip", root) != archive_path("http://g/a.zip", root)


async def test_members_come_before_the_archive_has_ended(server: Server, folder: Path, root: Path) -> None:
    (folder / "part.tar.gz").write_bytes(tar_bytes(CLIPS))
    server.fail_next("part.tar.gz", Fault(hold_at=0.51))
    found = []
    async with client_session(allow_private_hosts=True) as session:
        async for member in read_archive(server.url("part.tar.gz"), root, session=session):
            assert isinstance(member, Member)
            found.append(member)
            if len(found) == 4:  # all that half of the archive holds
                assert await asyncio.to_thread(server.held.wait, 60)
                assert read_index(root / index_name(server.url("part.tar.gz")))[0] is None
                server.release()
    check(found, CLIPS, root)


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_broken_transfer_gives_every_member_once(folder: Path, root: Path, ranges: bool) -> None:
    data = tar_bytes(CLIPS)
    (folder / "part.tar.gz").write_bytes(data)
    faults = [Fault(reset_at=0.3), Fault(503), Fault(reset_at=0.6), Fault(extra_length=10)]
    with serve(folder, ranges=ranges, faults={"part.tar.gz": faults}) as server:
        members, errors = await read(server.url("part.tar.gz"), root)
        assert errors == []
        check(members, CLIPS, root)
        if ranges:
            assert server.bytes_sent == len(data)
    assert archive_files(root) == [".tar.gz", ".tar.gz.members.json"]


async def test_an_archive_that_changes_meanwhile(server: Server, folder: Path, root: Path) -> None:
    other = {name: data[::-1] for name, data in CLIPS.items()}
    (folder / "part.tar").write_bytes(tar_bytes(CLIPS, "w"))
    server.fail_next("part.tar", Fault(hold_at=0.6, reset_at=0.6))
    found = []
    async with client_session(allow_private_hosts=True) as session:
        async for member in read_archive(server.url("part.tar"), root, session=session, limits=QUICK):
            assert isinstance(member, Member)
            found.append(member)
            if len(found) == 4:
                assert await asyncio.to_thread(server.held.wait, 60)
                (folder / "part.tar").write_bytes(tar_bytes(other, "w"))
                server.release()
    check(found, {name: (CLIPS if i < 4 else other)[name] for i, name in enumerate(NAMES)}, root)


async def test_skip_by_name_and_by_clip_id(server: Server, folder: Path, root: Path) -> None:
    (folder / "part.tar").write_bytes(tar_bytes(CLIPS, "w"))
    members, _ = await read(server.url("part.tar"), root, skip={NAMES[0], clip_id_for("", NAMES[5])})
    assert [member.name for member in members] == [*NAMES[1:5], *NAMES[6:]]
    assert read_index(root / index_name(server.url("part.tar")))[0] == NAMES


async def test_max_clips_stops_early_and_does_not_claim_to_be_complete(
    server: Server, folder: Path, root: Path
) -> None:
    data = tar_bytes(CLIPS | {"val/last.mp4": random.Random(99).randbytes(5_000_000)})
    (folder / "part.tar.gz").write_bytes(data)
    url = server.url("part.tar.gz")
    server.fail_next("part.tar.gz", Fault(hold_at=0.3))
    members, errors = await read(url, root, skip=NAMES[:1], max_clips=6)
    assert [member.name for member in members] == NAMES[1:7]
    assert errors == []
    assert read_index(root / index_name(url))[0] is None
    assert archive_files(root) == [".tar.gz.part", ".tar.gz.part.json"]
    sent = server.bytes_sent
    assert sent < 0.5 * len(data)
    # The rest is taken up from what is on the disk.
    members, _ = await read(url, root, skip=NAMES[:7])
    assert [member.name for member in members] == [NAMES[7], "val/last.mp4"]
    assert server.requests[-1].status == 206
    assert len(read_index(root / index_name(url))[0] or []) == 9


async def test_keep_false_leaves_the_index_only(server: Server, folder: Path, root: Path) -> None:
    (folder / "part.zip").write_bytes(zip_bytes(CLIPS))
    members, _ = await read(server.url("part.zip"), root, keep=False)
    check(members, CLIPS, root)
    assert archive_files(root) == [".zip.members.json"]
    assert await read(server.url("part.zip"), root, skip=NAMES) == ([], [])
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", [b"x", b"g", b"L"])
async def test_hundreds_of_headers_for_one_member_are_damage(
    server: Server, folder: Path, root: Path, kind: bytes
) -> None:
    record = b"11 a=bcdef\n"
    header = tarfile.TarInfo("more")
    header.type, header.size = kind, len(record)
    data = (header.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")) * 1000 + tar_bytes(CLIPS, "w")
    (folder / "deep.tar").write_bytes(data)
    members, errors = await read(server.url("deep.tar"), root)
    assert members == []
    assert [error.member for error in errors] == [None]
    assert archive_files(root) == []


def header(kind: bytes, data: bytes) -> bytes:
    """An extended header of a tar."""
    info = tarfile.TarInfo("more")
    info.type, info.size = kind, len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


async def test_pax_records_are_not_searched_for_ever(server: Server, folder: Path, root: Path) -> None:
    # CVE-2024-6232: tarfile took 10 s for 128 KiB of digits, and held the interpreter.
    for data in (
        b"1" * 2**17,
        b"1" * 15_000,
        b"9" * 4000 + b" hdrcharset=",
        b"0 a=b\n",
        b"1 =\n",
        b"99 a=b\n" + b"1" * 10_000,
    ):
        (folder / "x.tar").write_bytes(header(b"x", data) * 50 + tar_bytes(CLIPS, "w"))
        members, (error,) = await read(server.url("x.tar"), root)
        assert members == []
        assert "a broken PAX header" in error.reason or f"a header of {len(data)} bytes" in error.reason
        assert archive_files(root) == []


async def test_global_headers_do_not_pile_up(server: Server, folder: Path, root: Path) -> None:
    # tarfile copies all of them for each member: over 90 s for 4.4 MB.
    clips = {f"{i:04d}.mp4": b"\0%d" % i for i in range(2000)}
    parts = [
        header(b"g", f"1200 key{i}={'v' * 1185}\n".encode()[:1199] + b"\n") + tar_bytes({name: data}, "w")[:1024]
        for i, (name, data) in enumerate(clips.items())
    ]
    # Nothing of them is held: one that tarfile holds gives all members after it this name.
    (folder / "x.tar").write_bytes(b"".join([header(b"g", b"18 path=other.mp4\n"), *parts]) + bytes(1024))
    members, errors = await read(server.url("x.tar"), root)
    assert errors == []
    check(members, clips, root)


@pytest.mark.parametrize("kind", ["tar", "zip"])
async def test_so_many_small_members_are_no_videos(server: Server, folder: Path, root: Path, kind: str) -> None:
    names = {f"{i}.mp4": b"" for i in range(20_000)}  # 125,000 made as many failed rows of 1.1 MB
    (folder / "x").write_bytes(tar_bytes(names) if kind == "tar" else zip_bytes(names))
    size = (folder / "x").stat().st_size
    members, errors = await read(server.url("x"), root)
    assert members == []
    assert len(errors) <= 1002 + size / 1024
    assert f"{len(errors)} videos in " in errors[-1].reason


async def test_a_table_of_contents_is_bounded(server: Server, folder: Path, root: Path) -> None:
    # 45 MB of it took 444 MB of memory.
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0) + b"a.mp4"
    first = zip_bytes({"a.mp4": b"\0"})[:36]
    table = entry * 60_000
    for end in (
        struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 60_000, 60_000, len(table), len(first), 0),
        # Its size in a record of its own, as of a zip of many gigabytes.
        struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 60_000, 60_000, len(table), len(first))
        + struct.pack("<4sLQL", b"PK\6\7", 0, len(first + table), 1)
        + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0),
    ):
        (folder / "x.zip").write_bytes(first + table + end)
        with zipfile.ZipFile(folder / "x.zip") as archive:
            assert len(archive.infolist()) == 60_000
        members, (error,) = await read(server.url("x.zip"), root)
        assert members == []
        assert "a table of contents of more than 21" in error.reason


@pytest.mark.parametrize("kind", ["gnu", "pax", "zip"])
async def test_names_of_a_mebibyte_are_refused(server: Server, folder: Path, root: Path, kind: str) -> None:
    for length in (4000, 5000, 2**20):
        name = "n" * (length - 4) + ".mp4"
        if kind == "zip":
            data = zip_bytes({name[-65_000:]: b"\0data"})
        else:
            buffer = io.BytesIO()
            with tarfile.open(
                fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT if kind == "gnu" else tarfile.PAX_FORMAT
            ) as tar:
                info = tarfile.TarInfo(name)
                info.size = 5
                tar.addfile(info, io.BytesIO(b"\0data"))
            data = buffer.getvalue()
        (folder / f"{length}").write_bytes(data)
        members, errors = await read(server.url(f"{length}"), root)
        assert [member.name for member in members] == ([name] if length == 4000 else [])
        assert len(errors) == (length > 4000)
        assert all(re.search("a name of (5000|65000) char|a header of 1048", error.reason) for error in errors)
        assert all(len(str(error)) < 500 for error in errors)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
async def test_every_format_of_tar(server: Server, folder: Path, root: Path, form: int) -> None:
    names = ["a.mp4", "d" * 90 + "/" + "e" * 60 + ".mp4", "é.mp4"]
    names += [] if form == tarfile.USTAR_FORMAT else ["f/" * 100 + "ü" * 200 + ".mp4", "g" * 100 + ".mp4"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, pax_headers={"comment": "of all"}) as tar:
        for name in names:
            folder_info, info = tarfile.TarInfo(name.removesuffix(".mp4") + "_d.mp4"), tarfile.TarInfo(name)
            folder_info.type = tarfile.DIRTYPE
            tar.addfile(folder_info)
            info.size, info.mtime, info.uid, info.uname = 1000, 1.25 if form == tarfile.PAX_FORMAT else 1, 2**20, "ñ"
            tar.addfile(info, io.BytesIO(name.encode().ljust(1000, b"\0")))
    (folder / "x.tar").write_bytes(buffer.getvalue())
    members, errors = await read(server.url("x.tar"), root)
    assert errors == []
    check(members, {name: name.encode().ljust(1000, b"\0") for name in names}, root)


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "posix", "v7", "ustar"])
async def test_what_tar_itself_makes(server: Server, folder: Path, root: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "in").mkdir()
    for name, data in CLIPS.items():
        (tmp_path / "in" / Path(name).name).write_bytes(data)
    is_sparse = form in ("gnu", "oldgnu", "posix")
    with open(tmp_path / "in" / "0sparse.mp4", "wb") as file:  # more pieces than a header has room for
        for i in range(40):
            file.seek(i * 2**16)
            file.write(b"piece")
    options = ["--sparse"] if is_sparse else []
    subprocess.run(
        ["tar", "--sort=name", f"--format={form}", *options, "-cf", folder / "x.tar", "in"], cwd=tmp_path, check=True
    )
    members, errors = await read(server.url("x.tar"), root)
    expected = [f"in/{Path(name).name}" for name in NAMES]
    assert [(error.member, error.reason) for error in errors] == [
        ("in/0sparse.mp4", "in/0sparse.mp4 is a sparse file")
    ] * is_sparse
    assert sorted(member.name for member in members) == sorted(expected + ["in/0sparse.mp4"] * (not is_sparse))
    for member in members:
        assert member.path.read_bytes() == (tmp_path / member.name).read_bytes()


@pytest.mark.parametrize("kind", ["tar", "zip"])
async def test_archives_made_on_windows(server: Server, folder: Path, root: Path, kind: str) -> None:
    clips = {name.replace("/", "\\"): data for name, data in CLIPS.items()}
    others = {"__MACOSX\\val\\b.mp4": b"mac", "val\\._c.mp4": b"mac", "val\\folder.mp4\\": b""}
    data = (tar_bytes if kind == "tar" else zip_bytes)(clips | others)
    (folder / f"x.{kind}").write_bytes(data)
    members, errors = await read(server.url(f"x.{kind}"), root)
    assert errors == []
    check(members, CLIPS, root)
    assert [member.clip_id for member in members] == [Path(name).stem for name in NAMES]


async def test_an_archive_that_is_said_to_be_compressed(server: Server, folder: Path, root: Path) -> None:
    for name, data in {
        "as it is.tar.gz": tar_bytes(CLIPS),
        "on the way.tar": tar_bytes(CLIPS),
        "on the way.zip": gzip.compress(zip_bytes(CLIPS)),
    }.items():
        headers = {"Content-Encoding": "gzip"}
        faults = [Fault(headers=headers, reset_at=0.5), Fault(headers=headers), Fault(headers=headers)]
        (folder / name).write_bytes(data)
        server.fail_next(name, *faults)
        members, errors = await read(server.url(name), root)
        assert errors == []
        assert [member.path.read_bytes() for member in members] == list(CLIPS.values())
        # What is a gzip file anyway is continued where it broke.
        statuses = [request.status for request in server.of(name)]
        assert statuses == ([200, 206] if name.endswith("gz") else [200, 206, 200])


async def test_an_archive_that_drips_is_broken_off(server: Server, folder: Path, root: Path) -> None:
    (folder / "x.tar").write_bytes(tar_bytes(CLIPS, "w"))
    server.fail_next("x.tar", *[Fault(drip_seconds=0.005)] * 3)
    async with client_session(allow_private_hosts=True, stall_seconds=0.3) as session:
        for limits, says in (
            (replace(QUICK, attempts=2), "fewer than 300 bytes"),
            (replace(QUICK, min_bytes_per_second=0, timeout_seconds=1), "not whole after 1 s"),
        ):
            with pytest.raises(DownloadTimeoutError, match=says):
                async for _ in read_archive(server.url("x.tar"), root, session=session, limits=limits):
                    pass
    assert len(server.requests) == 3


async def test_an_archive_that_leads_nowhere_is_a_failed_download(server: Server, folder: Path, root: Path) -> None:
    (folder / "x.tar").write_bytes(tar_bytes(CLIPS, "w"))
    await read(server.url("x.tar"), root)
    server.fail_next("x.tar", Fault(302, {"Location": "http://a..b/"}))
    members, errors = await read(server.url("x.tar"), root, skip=NAMES[1:], afresh=True)
    assert ([member.name for member in members], errors) == (NAMES[:1], [])


async def test_a_member_that_bzip2_refuses_is_one_member(server: Server, folder: Path, root: Path) -> None:
    data = bytearray(zip_bytes(CLIPS, zipfile.ZIP_BZIP2))
    begin = data.index(b"BZh")
    data[begin + 4 : begin + 10] = bytes(6)
    (folder / "part.zip").write_bytes(data)
    members, errors = await read(server.url("part.zip"), root)
    assert len(members) == len(CLIPS) - 1
    assert [error.member for error in errors] == [next(iter(CLIPS))]


async def test_a_name_comes_once_and_a_clip_as_often_as_it_is_there(server: Server, folder: Path, root: Path) -> None:
    clip = NAMES[0]
    copy = {"test/" + Path(clip).name: b"another"}
    others = {"a.mp4": b"1", "b/a.mp4": b"2"}
    (folder / "part.tar").write_bytes(tar_bytes([(clip, CLIPS[clip]), (clip, b"2nd"), *(copy | others).items()], "w"))
    members, _ = await read(server.url("part.tar"), root)
    check(members, {clip: CLIPS[clip], **copy, **others}, root)
    assert members[0].clip_id == members[1].clip_id


async def test_what_was_unpacked_is_never_written_again(server: Server, folder: Path, root: Path) -> None:
    other = {name: data[::-1] for name, data in CLIPS.items()}
    for name, clips in {"a.tar": CLIPS, "b.tar": other}.items():
        (folder / name).write_bytes(tar_bytes(clips, "w"))
    first, _ = await read(server.url("a.tar"), root)
    again, _ = await read(server.url("a.tar") + "?X-Amz-Signature=1", root)
    second, _ = await read(server.url("b.tar"), root)
    for members, clips in ((first, CLIPS), (again, CLIPS), (second, other)):
        assert [member.path.read_bytes() for member in members] == list(clips.values())
    assert len(os.listdir(root / "raw")) == 3 * len(CLIPS)
    for one, two, three in zip(first, again, second, strict=True):
        name = re.fullmatch(rf"{one.clip_id}\.([0-9a-f]{{10}})-[0-9a-f]{{8}}\.mp4", one.path.name)
        assert name is not None
        key = hashlib.sha256(f"{server.url('a.tar')}\n{one.name}".encode()).hexdigest()[:10]
        assert name[1] == key == two.path.name.split(".")[1][:10] != three.path.name.split(".")[1][:10]


HOSTILE = {
    "../../evil.mp4": "evil",
    "/etc/evil2.mp4": "evil2",
    "a/b/../../../x.mp4": "x",
    "spaces and [brackets].MP4": "spaces_and_brackets",
    "new\nline.webm": "new_line",
    "C:\\windows\\y.avi": "y",
    "…ünï.mkv": "n",
    "n" * 240 + ".mp4": "n" * 60,
    " .mp4": "clip",
    "..mp4": "clip",
}


@pytest.mark.parametrize("kind", ["tar", "zip"])
async def test_names_never_reach_the_file_system(server: Server, folder: Path, root: Path, kind: str) -> None:
    clips = {name: name.encode() + b"\0data" for name in HOSTILE}
    (folder / f"x.{kind}").write_bytes(tar_bytes(clips, "w") if kind == "tar" else zip_bytes(clips))
    before = {path for path in root.parent.rglob("*") if root not in path.parents}
    members, errors = await read(server.url(f"x.{kind}"), root)
    assert errors == []
    names = {member.name: member.path.name for member in members}
    assert len(members) == len(set(names.values())) == len(HOSTILE)
    for name, stem in HOSTILE.items():
        (file_name,) = [file for member, file in names.items() if member.endswith(name.split("\\")[-1])]
        assert file_name.split("_")[0] == stem.split("_")[0]
        assert file_name.isascii()
    assert {path for path in root.parent.rglob("*") if root not in path.parents} == before | {root}


async def test_tar_names_that_are_not_utf8(server: Server, folder: Path, root: Path) -> None:
    data = tar_bytes({"caf#.mp4": b"\0data"}, "w")
    header = bytearray(data[:512].replace(b"#", b"\xe9"))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (folder / "x.tar").write_bytes(bytes(header) + data[512:])
    (member,), errors = await read(server.url("x.tar"), root)
    assert (member.name, errors) == ("caf\ufffd.mp4", [])
    assert json.loads(json.dumps(read_index(root / index_name(server.url("x.tar")))[0])) == ["caf\ufffd.mp4"]


async def test_only_regular_files_with_a_video_suffix(server: Server, folder: Path, root: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in [
            *[("link.mp4", tarfile.SYMTYPE), ("hard.mp4", tarfile.LNKTYPE), ("fifo.mp4", tarfile.FIFOTYPE)],
            *[("disk.mp4", tarfile.BLKTYPE), ("tty.mp4", tarfile.CHRTYPE), ("folder.mp4", tarfile.DIRTYPE)],
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name, data in [
            *[
                ("._a.mp4", b"mac"),
                ("__MACOSX/b.mp4", b"mac"),
                ("notes.txt", b"no"),
                ("mp4", b"no"),
                ("c.mp4.part", b"no"),
            ],
            *[("empty.mp4", b""), ("good.mp4", b"\0good")],
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (folder / "x.tar").write_bytes(buffer.getvalue())
    members, errors = await read(server.url("x.tar"), root)
    check(members, {"good.mp4": b"\0good"}, root)
    assert [(error.member, error.reason) for error in errors] == [
        *[
            (f"{name}.mp4", f"{name}.mp4 is a link or a device, not a file")
            for name in ("link", "hard", "fifo", "disk", "tty")
        ],
        ("empty.mp4", "empty.mp4 is empty"),
    ]
    assert read_index(root / index_name(server.url("x.tar")))[0] == [
        "link.mp4",
        "hard.mp4",
        "fifo.mp4",
        "disk.mp4",
        "tty.mp4",
        "empty.mp4",
        "good.mp4",
    ]


async def test_zip_members_that_can_not_be_taken(server: Server, folder: Path, root: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("link.mp4")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("secret.mp4", b"\0secret")
        archive.writestr("broken.mp4", b"\0broken" * 1000)
        archive.writestr("folder.mp4/", b"")
        archive.writestr("empty.mp4", b"")
        archive.writestr("good.mp4", b"\0good")
        archive.getinfo("secret.mp4").flag_bits |= 1
    data = buffer.getvalue().replace(b"\0broken\0broken", b"\0broken\0brokeN", 1)
    (folder / "x.zip").write_bytes(data)
    members, errors = await read(server.url("x.zip"), root)
    check(members, {"good.mp4": b"\0good"}, root)
    reasons = {error.member: error.reason for error in errors}
    assert reasons["link.mp4"] == "link.mp4 is a link or a device, not a file"
    assert reasons["secret.mp4"] == "secret.mp4 is encrypted"
    assert reasons["broken.mp4"].startswith("broken.mp4 is damaged (Bad CRC-32")
    assert reasons["empty.mp4"] == "empty.mp4 is empty"
    assert len(errors) == 4


async def test_member_limit(server: Server, folder: Path, root: Path) -> None:
    (folder / "x.tar.gz").write_bytes(tar_bytes({"big.mp4": bytes(300_000), "good.mp4": b"\0good"}))
    members, errors = await read(server.url("x.tar.gz"), root, max_member_bytes=200_000)
    check(members, {"good.mp4": b"\0good"}, root)
    assert [error.reason for error in errors] == ["big.mp4 claims 300000 bytes, allowed are 200000"]


async def test_a_member_that_claims_terabytes(server: Server, folder: Path, root: Path) -> None:
    huge = tarfile.TarInfo("huge.mp4")
    huge.size = 2**42
    (folder / "x.tar").write_bytes(tar_bytes({"good.mp4": b"\0good"}, "w")[:1024] + huge.tobuf() + bytes(100_000))
    members, errors = await read(server.url("x.tar"), root)
    check(members, {"good.mp4": b"\0good"}, root)
    assert [error.member for error in errors] == ["huge.mp4", None]
    assert "claims 4398046511104 bytes" in errors[0].reason
    assert "damaged after huge.mp4" in errors[1].reason


def gzipped_zeros(before: bytes, num_bytes: int) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb") as file:
        file.write(before)
        for _ in range(num_bytes // 2**20):
            file.write(bytes(2**20))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["video", "other", "after the end", "long name", "pax header"])
async def test_gzip_bombs(server: Server, folder: Path, root: Path, kind: str) -> None:
    good = tar_bytes({"good.mp4": b"\0good"}, "w")[:1024]
    bomb = tarfile.TarInfo("bomb.mp4" if kind == "video" else "bomb.bin")
    bomb.size = 2**40
    bomb.type = {"long name": tarfile.GNUTYPE_LONGNAME, "pax header": tarfile.XHDTYPE}.get(kind, tarfile.REGTYPE)
    header = b"" if kind == "after the end" else bomb.tobuf(tarfile.GNU_FORMAT)
    data = gzipped_zeros(good + header, 100 * 2**20)
    assert len(data) < 2**20
    (folder / "x.tar.gz").write_bytes(data)
    members, errors = await read(server.url("x.tar.gz"), root, max_member_bytes=2**41)
    check(members, {"good.mp4": b"\0good"}, root)
    (error,) = errors
    expected = (
        "a header of 1099511627776 bytes" if "name" in kind or "pax" in kind else "unpacks to far more than its size"
    )
    assert expected in error.reason
    assert archive_files(root) == []  # not to be taken for whole


async def test_zip_bombs(server: Server, folder: Path, root: Path) -> None:
    clips = {"good.mp4": b"\0good"} | {f"{i}.mp4": bytes(50 * 2**20) for i in range(2)}
    (folder / "x.zip").write_bytes(zip_bytes(clips, zipfile.ZIP_DEFLATED))
    members, (error,) = await read(server.url("x.zip"), root)
    assert members[0].name == "good.mp4"
    assert "unpacks to far more than its size" in error.reason


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "changed"])
async def test_what_was_whole_before_the_damage_stays(
    server: Server, folder: Path, root: Path, mode: str, damage: str
) -> None:
    data = tar_bytes(CLIPS, mode)
    fifth = data.index(NAMES[4].encode()) if mode == "w" else round(0.55 * len(data))
    bad = {
        "cut": data[: fifth + 10_000],
        "garbage": data[:fifth] + b"\xff" * (len(data) - fifth),
        "changed": data[:fifth] + b"\xff" + data[fifth + 1 :],
    }[damage]
    (folder / "x.tar").write_bytes(bad)
    members, errors = await read(server.url("x.tar"), root)
    # A gzip has one checksum, at its end: it may be noticed only there that something was changed.
    num_whole = 8 if mode == "w:gz" and damage == "changed" else 4
    assert [member.name for member in members] == NAMES[:num_whole]
    for member in members[:4]:
        assert member.path.read_bytes() == CLIPS[member.name]
    assert len(os.listdir(root / "raw")) == num_whole
    (error,) = errors
    assert error.member is None
    last = NAMES[num_whole - 1 : num_whole + 1]
    assert any(f"damaged after {name}, near byte" in error.reason for name in last)
    assert f"of {len(bad)}: " in error.reason
    assert read_index(root / index_name(server.url("x.tar")))[0] is None
    # The server may have a good one later: it is asked for again.
    assert archive_files(root) == []
    (folder / "x.tar").write_bytes(data)
    members, errors = await read(server.url("x.tar"), root, skip=[member.name for member in members])
    assert errors == []
    assert [member.name for member in members] == NAMES[num_whole:]
    assert read_index(root / index_name(server.url("x.tar")))[0] == NAMES


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"<html>Sign in</html>", "an HTML page, not an archive"),
        (b'{"error": 1}', "text or JSON, not an archive"),
        (b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 4, "something else, not an archive"),
        (b"", "an empty file, not an archive"),
        (b"PK\x03\x04" + bytes(1000), "zip"),
        (b"\x1f\x8b" + bytes(1000), "damaged before the first video"),
    ],
)
async def test_what_is_not_an_archive(server: Server, root: Path, body: bytes, what: str) -> None:
    server.fail_next("x.tar.gz", Fault(body=body))
    members, (error,) = await read(server.url("x.tar.gz"), root)
    assert members == []
    assert what in error.reason
    assert archive_files(root) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize("start", ["PK\3\4", "PKabc", "BZh", "<html>", "{"])
async def test_a_tar_whose_first_name_begins_as_another_file_does(
    server: Server, folder: Path, root: Path, start: str
) -> None:
    data = tar_bytes({f"{start}.mp4": CLIPS[NAMES[0]], NAMES[1]: CLIPS[NAMES[1]]}, "w")
    (folder / "x.tar").write_bytes(data)
    members, errors = await read(server.url("x.tar"), root)
    assert errors == []
    assert [member.path.read_bytes() for member in members] == [CLIPS[name] for name in NAMES[:2]]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
async def test_tars_one_behind_the_other(server: Server, folder: Path, root: Path, mode: str) -> None:
    parts = [tar_bytes({name: CLIPS[name]}, mode) for name in NAMES[:3]]
    (folder / "x.tar").write_bytes(b"".join(parts))
    (folder / "y.tar").write_bytes(parts[0] + (b"" if mode == "w:gz" else b"something else" * 1000))
    members, errors = await read(server.url("x.tar"), root)
    assert (errors, [member.name for member in members]) == ([], NAMES[:3])
    members, errors = await read(server.url("y.tar"), root)
    assert (errors, [member.name for member in members]) == ([], NAMES[:1])


async def test_zeros_without_end_are_not_looked_through(server: Server, folder: Path, root: Path) -> None:
    (folder / "x.tar").write_bytes(bytes(2**22) + tar_bytes(CLIPS, "w"))
    (folder / "y.tar").write_bytes(tar_bytes({NAMES[0]: CLIPS[NAMES[0]]}, "w") + bytes(2**22) + tar_bytes(CLIPS, "w"))
    members, (error,) = await read(server.url("x.tar"), root)
    assert (members, "damaged before the first video" in error.reason) == ([], True)
    members, errors = await read(server.url("y.tar"), root)
    assert ([member.name for member in members], errors) == (NAMES[:1], [])


async def test_one_bad_entry_of_a_zip_is_not_the_end(server: Server, folder: Path, root: Path) -> None:
    data = bytearray(zip_bytes({name: CLIPS[name] for name in NAMES[:3]} | {"x": b"", "y.txt": b"text"}))
    names = [match.start() for match in re.finditer(b"PK\x01\x02", data)]
    data[names[1] + 42 : names[1] + 46] = b"\xff\xff\xff\x7f"  # where it claims to be
    data[names[3] + 46] = 0  # a name that is empty, as Python reads it
    (folder / "x.zip").write_bytes(data)
    members, (error,) = await read(server.url("x.zip"), root)
    assert [member.name for member in members] == [NAMES[0], NAMES[2]]
    assert f"{NAMES[1]} is damaged" in error.reason


async def test_an_archive_that_may_be_bad_is_asked_for_again(server: Server, folder: Path, root: Path) -> None:
    (folder / "x.tar").write_bytes(tar_bytes(CLIPS, "w"))
    await read(server.url("x.tar"), root)
    for faults in ([], [Fault(503)]):  # it is the same, or can't be asked for
        server.fail_next("x.tar", *faults)
        members, errors = await read(server.url("x.tar"), root, skip=NAMES[1:], afresh=True)
        assert (errors, [member.name for member in members]) == ([], NAMES[:1])
    assert [request.headers.get("Range") for request in server.requests] == [None, "bytes=0-0", "bytes=0-0"]
    assert [request.status for request in server.requests] == [200, 206, 503]
    other = dict(zip(NAMES, reversed(CLIPS.values()), strict=True))
    (folder / "x.tar").write_bytes(tar_bytes(other, "w"))
    members, errors = await read(server.url("x.tar"), root, skip=NAMES[1:], afresh=True)
    assert members[0].path.read_bytes() == other[NAMES[0]]


async def test_a_new_password_makes_no_other_clip_of_it(server: Server, folder: Path, root: Path) -> None:
    (folder / "x.tar").write_bytes(tar_bytes({"a.mp4": b"a" * 1000}, "w"))
    url = server.url("x.tar")
    first, _ = await read(url.replace("://", "://me:one@"), root)
    again, _ = await read(url.replace("://", "://me:two@") + "?X-Amz-Date=1&X-Amz-Signature=2", root, skip=["a.mp4"])
    assert [member.clip_id for member in first] == [clip_id_for(url, "a.mp4")]
    assert (again, len(server.requests)) == ([], 1)
    assert clip_id_for(url + "?key=1", "a.mp4") != clip_id_for(url + "?key=2", "a.mp4")


async def test_an_archive_without_videos_says_what_is_in_it(server: Server, folder: Path, root: Path) -> None:
    (folder / "x.zip").write_bytes(zip_bytes({"a.tar.gz": b"x", "b.tar.gz": b"x", "README": b"x"}))
    members, (error,) = await read(server.url("x.zip"), root)
    assert members == []
    assert "no file in it has the name of a video; their suffixes are: 2 x .gz, 1 x none" in error.reason
    again = await read(server.url("x.zip"), root, afresh=True)
    assert (again[0], again[1][0].reason, len(archive_files(root))) == ([], error.reason, 2)


async def test_nothing_is_kept_of_an_archive_of_which_enough_was_had(server: Server, folder: Path, root: Path) -> None:
    (folder / "x.tar").write_bytes(tar_bytes(CLIPS, "w"))
    for keep, left in ((False, []), (True, [".tar.part", ".tar.part.json"])):
        server.fail_next("x.tar", Fault(hold_at=0.6))
        members, errors = await read(server.url("x.tar"), root, max_clips=2, keep=keep)
        assert (len(members), errors, archive_files(root)) == (2, [], left)


async def test_an_empty_archive_is_complete(server: Server, folder: Path, root: Path) -> None:
    for name, data in {"x.tar": tar_bytes({}, "w"), "y.tar.gz": tar_bytes({}), "z.zip": zip_bytes({})}.items():
        (folder / name).write_bytes(data)
        assert await read(server.url(name), root) == ([], [])
        assert read_index(root / index_name(server.url(name)))[0] == []


async def test_errors_of_the_transfer(server: Server, folder: Path, root: Path) -> None:
    (folder / "x.tar").write_bytes(tar_bytes(CLIPS, "w"))
    with pytest.raises(HttpStatusError, match="HTTP 404"):
        await read(server.url("none.tar"), root)
    server.fail_next("x.tar", Fault(reset_at=0.6), *[Fault(reset_at=0.6)] * 3)
    found = []

    async def collect() -> None:
        async with client_session(allow_private_hosts=True) as session:
            limits = replace(QUICK, attempts=3)
            async for member in read_archive(server.url("x.tar"), root, session=session, limits=limits):
                found.append(member)

    with pytest.raises(IncompleteDownloadError):
        await collect()
    # What had come is given all the same, and stays for the next call.
    assert [member.name for member in found if isinstance(member, Member)] == NAMES[:4]
    assert archive_files(root) == [".tar.part", ".tar.part.json"]


async def test_a_full_or_unusable_folder(server: Server, folder: Path, root: Path) -> None:
    (folder / "x.tar").write_bytes(tar_bytes(CLIPS, "w"))
    root.mkdir()
    (root / "raw").write_text("not a folder")
    with pytest.raises(DownloadError, match=r"can't be unpacked here: File exists \(http"):
        await read(server.url("x.tar"), root)


async def test_leaving_early_stops_everything(server: Server, folder: Path, root: Path) -> None:
    (folder / "x.tar").write_bytes(tar_bytes(CLIPS, "w"))
    server.fail_next("x.tar", Fault(hold_at=0.6))
    threads = threading.active_count()
    async with client_session(allow_private_hosts=True) as session:
        archive = read_archive(server.url("x.tar"), root, session=session)
        member = await anext(archive)
        await archive.aclose()  # type: ignore[attr-defined]
        # And while it waits for bytes that do not come.
        server.held.clear()
        server.fail_next("x.tar", Fault(hold_at=0.6))
        waiting = asyncio.create_task(anext(read_archive(server.url("x.tar"), root, session=session, skip=NAMES[:4])))
        await asyncio.to_thread(server.held.wait)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(asyncio.all_tasks()) == 1
    assert isinstance(member, Member)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("archive")] == []
    assert threading.active_count() <= threads + 2  # asyncio's own pool


async def test_many_archives_at_once(server: Server, folder: Path, root: Path) -> None:
    names = [f"{i}.tar.gz" for i in range(16)]
    for name in names:
        (folder / name).write_bytes(tar_bytes(CLIPS))  # the same clips in all of them
        server.fail_next(name, Fault(hold_at=0.4))
    async with client_session(allow_private_hosts=True, connections_per_host=64) as session:

        async def collect(name: str) -> list[Member | ArchiveError]:
            found = []
            async for item in read_archive(server.url(name), root, session=session):
                found.append(item)
                if len(found) == 3:
                    half_way.release()
            return found

        half_way = asyncio.Semaphore(0)
        readers = [asyncio.create_task(collect(name)) for name in names]
        for _ in names:
            await half_way.acquire()
        server.release()
        for found in await asyncio.gather(*readers):
            members = [item for item in found if isinstance(item, Member)]
            assert {member.name: member.path.read_bytes() for member in members} == CLIPS
    assert len(os.listdir(root / "raw")) == 16 * len(CLIPS)


LISTS = {
    # As CVDF has them: name of the list, of its archives, of the annotations, and the columns of these.
    "k400": ("k400_val_path.txt", "part_{}.tar.gz", "val.csv", "label,youtube_id,time_start,time_end,split,is_cc"),
    "k600": (
        "k600_val_path.txt",
        "playing [{}] (indoors).tar.gz",
        "val.txt",
        "label,youtube_id,time_start,time_end,split",
    ),
    "k700": (
        "k700_2020_val_path.txt",
        "k700_val_{:03d}.tar.gz",
        "val.csv",
        "label,youtube_id,time_start,time_end,split",
    ),
    "test": ("k700_2020_test_path.txt", "k700_test_{:03d}.tar.gz", "test.csv", "youtube_id,time_start,time_end,split"),
}


@pytest.mark.parametrize("style", LISTS)
async def test_a_kinetics_list_with_its_annotations(
    server: Server, folder: Path, root: Path, tmp_path: Path, style: str
) -> None:
    list_name, archive_name, annotation_name, columns = LISTS[style]
    ids = [f"{style}-{i:06d}" for i in range(30)]
    names = [archive_name.format(i) for i in range(5)]
    for i, name in enumerate(names):
        # Six of 30 in each, of which the first is in the archive before it too; two are annotated and nowhere.
        held = [ids[k] for k in range(6 * i - (i > 0), 6 * i + 6) if k not in (3, 17)]
        clips = {f"val/{clip}_000001_000011.mp4": clip.encode() + bytes(10_000) for clip in held}
        (folder / name).write_bytes(tar_bytes(clips))
    (tmp_path / list_name).write_text("".join(f"http://127.0.0.1:{server.port}/{name}\n" for name in names))
    fields = {"label": "tying knot (not on a tie)", "time_start": "1", "time_end": "11", "split": "val", "is_cc": "0"}
    lines = [",".join((fields | {"youtube_id": clip})[column] for column in columns.split(",")) for clip in ids]
    (tmp_path / annotation_name).write_text("\ufeff" + "\r\n".join([columns, *lines]) + "\r\n")

    sources = read_sources(tmp_path / list_name, annotations=tmp_path / annotation_name).to_pylist()
    lookup = {source["clip_id"]: source for source in sources if source["kind"] == "annotation"}
    found: dict[str, str | None] = {}
    for source in sources:
        if source["kind"] == "archive":
            members, errors = await read(source["url"], root, skip=found)
            assert errors == []
            for member in members:
                assert member.clip_id not in found
                found[member.clip_id] = lookup[member.clip_id]["label"]
    assert set(found) == {f"{clip}_000001_000011" for k, clip in enumerate(ids) if k not in (3, 17)}
    assert set(found.values()) == {None if style == "test" else fields["label"]}
    assert set(lookup) - set(found) == {f"{ids[3]}_000001_000011", f"{ids[17]}_000001_000011"}
    assert len(server.requests) == len(names)


CHILD = """
import asyncio, sys, types
from pathlib import Path
# Without what the package as a whole imports, which takes seconds.
sys.modules["kdepth"] = types.ModuleType("kdepth")
sys.modules["kdepth"].__path__ = [sys.argv[3]]
import kdepth
from kdepth.downloads.archive import Member, index_name, read_archive, read_index
from kdepth.downloads.network import client_session

async def main(url, root):
    done = set(root.joinpath("done").read_text().split("\\n")) if root.joinpath("done").exists() else set()
    async with client_session(allow_private_hosts=True) as session:
        with open(root / "done", "a") as log:
            async for member in read_archive(url, root, session=session, skip=done):
                assert isinstance(member, Member), member
                print(member.name, file=log, flush=True)

asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
"""


def test_a_killed_process_goes_on_from_the_disk(server: Server, folder: Path, root: Path) -> None:
    # KDEPTH_TEST_ARCHIVE_BYTES=200000000 for the size of a real one.
    size = int(os.environ.get("KDEPTH_TEST_ARCHIVE_BYTES", 20_000_000)) // 20
    clips = {f"{i:011d}_000001_000011.mp4": random.Random(i).randbytes(size) for i in range(20)}
    data = tar_bytes(clips)
    (folder / "x.tar.gz").write_bytes(data)
    root.mkdir()
    url = server.url("x.tar.gz")
    command = [sys.executable, "-c", CHILD, url, str(root), str(Path(kdepth.__file__).parent)]
    part = archive_path(url, root).with_suffix(".gz.part")
    for fraction in (0.3, 0.6):
        server.held.clear()
        server.fail_next("x.tar.gz", Fault(hold_at=fraction))
        child = subprocess.Popen(command)
        assert server.held.wait(120)
        while not part.exists() or part.stat().st_size < server.bytes_sent:  # it has what was sent
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert subprocess.run(command, check=True).returncode == 0
    assert sorted((root / "done").read_text().split()) == list(clips)
    # A kill leaves a part, or a file that nobody names; none of these is half.
    unpacked = [(path.name.partition(".")[0] + ".mp4", path.read_bytes()) for path in (root / "raw").glob("*.mp4")]
    assert {(name, hashlib.sha256(data).digest()) for name, data in unpacked} == {
        (name, hashlib.sha256(data).digest()) for name, data in clips.items()
    }
    assert len(unpacked) <= len(clips) + 2
    assert [request.status for request in server.requests] == [200, 206, 206]
    assert server.bytes_sent == len(data)
    assert read_index(root / index_name(url))[0] == list(clips)
