"""What an archive holds, whatever it is named and however hostile it is: videos, one after the other."""

from __future__ import annotations

import contextlib
import errno
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import IO, Any, Self

from kdepth.downloads.growing_file import GrowingFile
from kdepth.downloads.http import HEAD_BYTES, describe
from kdepth.schema import VIDEO_SUFFIXES

_CHUNK_BYTES = 2**18
# Videos hardly compress. What unpacks to more than this is a bomb.
_MAX_EXPANSION = 100
_FREE_EXPANSION_BYTES = 64 * 2**20
# Zeros mark a tar's end; behind them another may follow (`cat`, `tar --concatenate`).
_MOST_EMPTY_BLOCKS = 2048
_MOST_SUFFIXES = 100
# Long names and the like precede a member in blocks that tarfile reads into memory at once.
_MAX_EXTENDED_HEADER_BYTES = 2**20

# What a damaged archive raises.
READ_ERRORS = (
    *(tarfile.TarError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError),
    *(NotImplementedError, ValueError),  # of zipfile: an unknown compression; of tarfile: numbers that are none
    RecursionError,  # of tarfile: hundreds of headers for one member
)


class MemberError(Exception):
    """One member can't be read, the next ones can."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A member with the name of a video.

    Attributes:
        name: As the archive has it: never a path to write to.
        num_bytes: As the archive claims.
        problem: Why it can't be taken, or None.
        open: Its bytes; to be read before the next entry is asked for. Raises `MemberError` or `READ_ERRORS`.
    """

    name: str
    num_bytes: int
    problem: str | None
    open: Callable[[], AbstractContextManager[IO[bytes]]]


def read_members(file: GrowingFile, passed_over: Counter[str]) -> Iterator[Entry]:
    """The videos of a tar, a gzipped tar or a zip, in its order; the first bytes say what it is.

    Files without a video suffix and what macOS leaves beside files (``._name.mp4``) are passed over. A zip's table of
    contents is at its end: it has to be whole first.

    Args:
        file: The archive.
        passed_over: Is made to count files without a video suffix, by suffix.

    Raises:
        READ_ERRORS: It is damaged here, or unpacks to far more than its size.
    """
    head = file.peek(HEAD_BYTES)
    if head.startswith(b"PK"):
        file.wait_until_whole()
        yield from _zip_members(file, passed_over)
    elif head.startswith(b"\x1f\x8b"):
        # `read1` does not wait for more than there is.
        unzipped = gzip.GzipFile(fileobj=file, mode="rb")  # type: ignore[call-overload]
        yield from _tar_members(_Source(unzipped.read1, file), passed_over)
    else:
        yield from _tar_members(_Source(file.read, file), passed_over)


def not_an_archive(head: bytes) -> str | None:
    """What is wrong with the first bytes of a file that is neither tar, gzip nor zip."""
    if head.startswith((b"\x1f\x8b", b"PK\x03\x04", b"PK\x05\x06")):
        return None
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        return None  # an empty tar
    except tarfile.HeaderError:
        what = describe(head) or "something else"
        return "this is a tar archive with a broken header" if "tar" in what else f"this is {what}, not an archive"
    return None


def _is_video(name: str, is_folder: bool, passed_over: Counter[str]) -> bool:
    path = PurePosixPath(name)
    if is_folder or path.name.startswith("._") or "__MACOSX" in path.parts:
        return False
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return True
    if len(passed_over) < _MOST_SUFFIXES:  # names may be anything
        passed_over[suffix[:16]] += 1
    return False


def _tar_members(source: _Source, passed_over: Counter[str]) -> Iterator[Entry]:
    class Header(_TarInfo):
        """With a count of its own."""

    options = {"mode": "r|", "bufsize": _CHUNK_BYTES, "tarinfo": Header, "ignore_zeros": True}
    with tarfile.open(fileobj=source, **options) as tar:  # type: ignore[call-overload]
        while (info := tar.next()) is not None:
            tar.members = []  # or it keeps them all
            # Names are bytes; those that are not UTF-8 could not be stored.
            name = info.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            if not _is_video(name, info.isdir(), passed_over):
                continue
            problem = None
            if not info.isreg():
                problem = "is a link or a device, not a file"
            elif info.issparse():  # a few bytes that become any number of zeros
                problem = "is a sparse file"
            yield Entry(name, info.size, problem, partial(_tar_open, tar, info))
    while source.read(_CHUNK_BYTES):  # to the end, where gzip has its checksum
        pass


def _tar_open(tar: tarfile.TarFile, info: tarfile.TarInfo) -> AbstractContextManager[IO[bytes]]:
    stream = tar.extractfile(info)
    assert stream is not None  # it is for what is no regular file
    return stream


class _TarInfo(tarfile.TarInfo):
    """A header, looked at before tarfile acts on it."""

    num_headers = 0
    num_empty = 0  # blocks of zeros since the last header

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        return cls._frombuf(buf, encoding, errors)

    @classmethod
    def _frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str, **options: Any) -> Self:
        # Newer Pythons have a function of this name, which tarfile calls past the public one.
        parse: Callable[..., Self] = getattr(super(), "_frombuf", super().frombuf)
        try:
            info = parse(buf, encoding, errors, **options)
        except tarfile.HeaderError as exc:
            is_end = isinstance(exc, tarfile.EmptyHeaderError)  # type: ignore[attr-defined]
            is_empty = isinstance(exc, tarfile.EOFHeaderError)  # type: ignore[attr-defined]
            if is_end or (is_empty and cls.num_empty < _MOST_EMPTY_BLOCKS):
                cls.num_empty += is_empty
                raise
            if cls.num_empty and cls.num_headers:
                raise tarfile.EmptyHeaderError("what follows the end mark is no tar") from exc  # type: ignore[attr-defined]
            # tarfile would take a broken header for the archive's end.
            raise tarfile.ReadError(f"broken header ({exc})") from exc
        cls.num_headers, cls.num_empty = cls.num_headers + 1, 0
        if info.type in (b"x", b"g", b"X", b"L", b"K") and info.size > _MAX_EXTENDED_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {info.size} bytes")
        return info


class _Source:
    """What tarfile reads from: the file or what is unzipped of it, and an end to endless archives."""

    def __init__(self, read: Callable[[int], bytes], file: GrowingFile) -> None:
        self._read, self._file = read, file
        self._num_bytes = self._num_ends = 0

    def read(self, num_bytes: int) -> bytes:
        data = self._read(num_bytes)
        self._num_bytes += len(data)
        if self._num_bytes > _FREE_EXPANSION_BYTES + _MAX_EXPANSION * self._file.tell():
            raise tarfile.ReadError("it unpacks to far more than its size")
        # To skip a member of terabytes, tarfile reads on and on at the end.
        self._num_ends += not data
        if self._num_ends > 3:
            raise EOFError("it ends in the middle of a member")
        return data


def _zip_members(file: GrowingFile, passed_over: Counter[str]) -> Iterator[Entry]:
    with zipfile.ZipFile(file.path) as archive:
        budget = _FREE_EXPANSION_BYTES + _MAX_EXPANSION * file.size()
        for info in archive.infolist():
            if not _is_video(info.filename, not info.filename or info.is_dir(), passed_over):
                continue
            budget -= info.file_size
            if budget < 0:
                raise zipfile.BadZipFile("it unpacks to far more than its size")
            problem = None
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                problem = "is a link or a device, not a file"
            elif info.flag_bits & 0x1:
                problem = "is encrypted"
            yield Entry(info.filename, info.file_size, problem, partial(_zip_open, archive, info))


@contextlib.contextmanager
def _zip_open(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    try:
        with archive.open(info) as stream:
            yield stream
    except (*READ_ERRORS, OSError) as exc:
        # Of the disk; bzip2's own have no number, and a place before the file's beginning is the archive's fault.
        if isinstance(exc, OSError) and exc.errno not in (None, errno.EINVAL):
            raise
        raise MemberError(f"is damaged ({exc})") from exc
