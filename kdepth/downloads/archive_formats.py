"""What an archive holds, whatever it is named and however hostile it is: videos, one after the other.

A further format has its reader here, its first bytes in `file_types`, and its suffix in `schema.ARCHIVE_SUFFIXES`.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from kdepth.downloads.file_types import HEAD_BYTES, archive_format
from kdepth.downloads.growing_file import GrowingFile
from kdepth.schema import VIDEO_SUFFIXES

_CHUNK_BYTES = 2**18
_BLOCK_BYTES = 512  # of a tar
# Videos hardly compress. What unpacks to more than this is a bomb.
_MAX_EXPANSION = 100
_FREE_EXPANSION_BYTES = 64 * 2**20
# No video has fewer bytes than this: an archive with more members holds no videos, but makes rows.
_FREE_MEMBERS = 1000
_LEAST_BYTES_A_MEMBER = 1024
_MAX_NAME_BYTES = 4096  # Linux' longest path
_MAX_HEADER_BYTES = 16 * 2**10  # of a tar: long names and PAX records before one member
# A zip's table of contents is read into memory: 50 to 100 bytes for each member.
_FREE_DIRECTORY_BYTES = 2**21
_BYTES_A_DIRECTORY_BYTE = 1000
# Zeros mark a tar's end; behind them another may follow (`cat`, `tar --concatenate`).
_MAX_EMPTY_BLOCKS = 2048
_MAX_SUFFIXES = 100


class BadArchiveError(Exception):
    """The archive breaks a rule of its format, or a limit of ours."""


# What a damaged archive raises.
READ_ERRORS = (
    *(BadArchiveError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError),
    *(NotImplementedError, ValueError),  # of zipfile: an unknown compression; numbers that are none
)


class MemberError(Exception):
    """One member can't be read, the next ones can."""


class Stream(Protocol):
    """Something to read bytes from; none are left when it gives none."""

    def read(self, num_bytes: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A member that may be a file; the content is to be read before the next entry is asked for."""

    name: str  # as the archive has it, with "/" between folders: never a path to write to
    num_bytes: int  # as the archive claims
    problem: str | None  # why it can't be taken
    content: AbstractContextManager[Stream]  # raises `MemberError` or `READ_ERRORS`


def read_members(file: GrowingFile, passed_over: Counter[str]) -> Iterator[Entry]:
    """Give the videos of a tar, a gzipped tar or a zip, in its order; the first bytes say what it is.

    Files without a video suffix (``passed_over`` counts them by suffix) and what macOS leaves beside files
    (``._name.mp4``) are passed over. Raises `READ_ERRORS` where it is damaged, or breaks a limit.
    """
    kind = archive_format(file.peek(HEAD_BYTES))
    if kind == "zip":
        file.wait_until_whole()
        members, position = _zip_members(file.path, file.size()), file.size
    else:
        unzipped = gzip.GzipFile(fileobj=file, mode="rb") if kind == "gzip" else file  # type: ignore[call-overload]
        members, position = _tar_members(_TarStream(unzipped, file)), file.tell
    num_videos = 0
    for entry in members:
        if len(entry.name.encode("utf-8", "replace")) > _MAX_NAME_BYTES:
            raise BadArchiveError(f"a name of {len(entry.name)} characters")
        if _is_video(entry.name, passed_over):
            num_videos += 1
            if num_videos > _FREE_MEMBERS + position() / _LEAST_BYTES_A_MEMBER:
                raise BadArchiveError(f"{num_videos} videos in {position()} bytes")
            yield entry


def _is_video(name: str, passed_over: Counter[str]) -> bool:
    path = PurePosixPath(name)
    if path.name.startswith("._") or "__MACOSX" in path.parts:
        return False
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return True
    if len(passed_over) < _MAX_SUFFIXES:  # names may be anything
        passed_over[suffix[:16]] += 1
    return False


class _TarStream:
    """The bytes of a tar, unzipped, with an end to what unpacks without end."""

    def __init__(self, stream: Stream, file: GrowingFile) -> None:
        self._stream, self._file, self._num_bytes = stream, file, 0

    def read(self, num_bytes: int, /) -> bytes:
        """So many bytes; fewer only at the end."""
        parts, left = [], num_bytes
        while left and (data := self._stream.read(left)):
            parts.append(data)
            left -= len(data)
        self._num_bytes += num_bytes - left
        if self._num_bytes > _FREE_EXPANSION_BYTES + _MAX_EXPANSION * self._file.tell():
            raise BadArchiveError("it unpacks to far more than its size")
        return b"".join(parts)


class _TarMember:
    def __init__(self, tar: _TarStream, num_bytes: int) -> None:
        self._tar, self._left, self._padding = tar, num_bytes, -num_bytes % _BLOCK_BYTES

    def read(self, num_bytes: int, /) -> bytes:
        data = self._tar.read(min(num_bytes, self._left))
        self._left -= len(data)
        return data

    def skip(self) -> None:
        while self.read(_CHUNK_BYTES):
            pass
        if self._left or len(self._tar.read(self._padding)) < self._padding:
            raise EOFError("it ends in the middle of a member")


def _tar_members(tar: _TarStream) -> Iterator[Entry]:
    """Give each member that may be a file.

    tarfile reads one header here, of 512 bytes, but not the archive: it would hold whatever headers pile up, and search
    PAX records in quadratic time (CVE-2024-6232, in Python before 3.11.10: 10 s for 128 KiB).
    """
    more: dict[str, bytes] = {}  # what headers before a member say of it
    num_header_bytes = num_empty = num_headers = 0
    while block := tar.read(_BLOCK_BYTES):
        if block == bytes(_BLOCK_BYTES):
            num_empty += 1
            if num_empty <= _MAX_EMPTY_BLOCKS:
                continue
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as exc:
            if num_empty and num_headers:
                break  # what follows the end mark is no tar
            raise BadArchiveError(f"broken header ({exc})") from exc
        num_headers, num_empty = num_headers + 1, 0
        if info.type in b"xgXLK":
            num_header_bytes += _BLOCK_BYTES + info.size
            if num_header_bytes > _MAX_HEADER_BYTES or info.size < 0:
                raise BadArchiveError(f"a header of {info.size} bytes, {num_header_bytes} with those before it")
            member = _TarMember(tar, info.size)
            more |= _more(info.type, member.read(info.size))
            member.skip()
            continue
        is_sparse = info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in more)
        flag = 482  # of more blocks that say where the bytes of a sparse file go
        while info.type == tarfile.GNUTYPE_SPARSE and block[flag:] and block[flag]:
            block, flag = tar.read(_BLOCK_BYTES), 504
        size = int(more.get("size", info.size))
        if size < 0:
            raise BadArchiveError(f"a member of {size} bytes")
        has_bytes = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        member = _TarMember(tar, size if has_bytes else 0)
        raw_name = more.get("GNU.sparse.name") or more.get("path") or info.name.encode("utf-8", "surrogateescape")
        # Names are bytes; those that are not UTF-8 could not be stored.
        name = raw_name.decode("utf-8", "replace").replace("\\", "/")
        problem = None
        if not info.isreg():
            problem = "is a link or a device, not a file"
        elif is_sparse:  # a few bytes that become any number of zeros
            problem = "is a sparse file"
        if not info.isdir() and not name.endswith("/"):
            yield Entry(name, size, problem, contextlib.nullcontext(member))
        member.skip()
        more, num_header_bytes = {}, 0
    while tar.read(_CHUNK_BYTES):  # to the end, where gzip has its checksum
        pass


def _more(kind: bytes, data: bytes) -> dict[str, bytes]:
    """What an extended header says of the next member."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0")}
    records: dict[str, bytes] = {}
    position = 0
    while kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE) and position < len(data) and data[position]:
        length, _, _ = data[position : position + 8].partition(b" ")  # "27 path=a/b.mp4\n"
        if not length.isdigit() or int(length) <= len(length):
            raise BadArchiveError("a broken PAX header")
        key, _, value = data[position + len(length) + 1 : position + int(length) - 1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value
        position += int(length)
    return records


class _ZipFile(io.BufferedReader):
    """A zip that zipfile reads nothing large of at once: its table of contents is as long as it claims."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        super().__init__(io.FileIO(path))
        self._most_bytes = most_bytes

    def read(self, num_bytes: int | None = -1, /) -> bytes:
        most = self._most_bytes + 1
        data = super().read(most if num_bytes is None or num_bytes < 0 else min(num_bytes, most))
        if len(data) == most:
            raise BadArchiveError(f"a table of contents of more than {self._most_bytes} bytes")
        return data


def _zip_members(path: Path, num_bytes: int) -> Iterator[Entry]:
    most_bytes = _FREE_DIRECTORY_BYTES + num_bytes // _BYTES_A_DIRECTORY_BYTE
    with _ZipFile(path, most_bytes) as file, zipfile.ZipFile(file) as archive:
        budget = _FREE_EXPANSION_BYTES + _MAX_EXPANSION * num_bytes
        for info in archive.infolist():
            budget -= info.file_size
            if budget < 0:
                raise BadArchiveError("it unpacks to far more than its size")
            problem = None
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                problem = "is a link or a device, not a file"
            elif info.flag_bits & 0x1:
                problem = "is encrypted"
            name = info.filename.replace("\\", "/")  # as Windows' own tools write it
            if name and not name.endswith("/"):
                yield Entry(name, info.file_size, problem, _zip_open(archive, info))


@contextlib.contextmanager
def _zip_open(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[Stream]:
    try:
        with archive.open(info) as stream:
            yield stream
    except (*READ_ERRORS, OSError) as exc:
        # Of the disk; bzip2's own have no number, and a place before the file's beginning is the archive's fault.
        if isinstance(exc, OSError) and exc.errno not in (None, errno.EINVAL):
            raise
        raise MemberError(f"is damaged ({exc})") from exc
