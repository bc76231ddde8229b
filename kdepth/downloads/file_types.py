"""What the first bytes of a file say about it."""

from __future__ import annotations

import contextlib
import tarfile
from typing import Literal

from kdepth.schema import ARCHIVE_SUFFIXES

HEAD_BYTES = 512  # so much of a file tells what it is

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
# QuickTime and MP4 begin with a box: its size, which may be any four bytes, and its type.
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


def not_a_video(head: bytes) -> str | None:
    """Say what is wrong with the first bytes of a file that plainly is no video; FFmpeg judges the rest."""
    what = _describe(head)
    hint = f" (archives are known by URLs that end in {', '.join(ARCHIVE_SUFFIXES)})" if what in _ARCHIVES else ""
    return f"this is {what}, not a video{hint}" if what else None


def not_an_archive(head: bytes) -> str | None:
    """Say what is wrong with the first bytes of a file that is neither tar, gzip nor zip."""
    if archive_format(head):
        return None
    what = _describe(head) or "something else"
    return f"this is {what} with a broken header" if what == "a tar archive" else f"this is {what}, not an archive"


def archive_format(head: bytes) -> Literal["tar", "gzip", "zip"] | None:
    """Tell from its first 512 bytes which archive a file is, if it is one."""
    with contextlib.suppress(tarfile.HeaderError):
        # First: a tar begins with a name, which may be that of a clip whose id begins with PK.
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        return "tar"
    if head == bytes(HEAD_BYTES):  # an empty one
        return "tar"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    return "gzip" if head.startswith(b"\x1f\x8b") else None


def _describe(head: bytes) -> str | None:
    """What a file is, if it is no video: for messages ("an HTML page")."""
    if not head:
        return "an empty file"
    # Videos that may begin like something else: of dark bare pictures, of QuickTime, and of M2TS, whose packets of 192
    # bytes begin with four bytes of a clock.
    if head.startswith(b"YUV4MPEG2") or head[4:8] in _FIRST_BOXES or head[4::192][:3] == b"GGG":
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
