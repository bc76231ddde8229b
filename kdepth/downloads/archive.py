"""Archive -> member files, while it arrives.

The archive is downloaded to ``<root>/archives`` and read from there by a thread that follows the growing file, so a
transfer that broke or a process that was killed goes on from the disk. Nothing of a member's name reaches the file
system but the harmless part of it that is in its clip's name.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Collection, Container, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp

from kdepth.downloads.archive_formats import READ_ERRORS, Entry, MemberError, read_members
from kdepth.downloads.growing_file import GrowingFile, RestartedError, StoppedError
from kdepth.downloads.http import Limits, Transfer
from kdepth.downloads.network import public_url
from kdepth.errors import ArchiveError, DownloadError
from kdepth.schema import ARCHIVE_SUFFIXES, clip_id_for, lasting_url
from kdepth.storage import key_of, made_name, source_key

_CHUNK_BYTES = 2**20
ARCHIVE_LIMITS = Limits(max_bytes=64 * 2**30, timeout_seconds=24 * 3600)


@dataclass(frozen=True, slots=True)
class Member:
    """A video of an archive, whole in its file ``path``."""

    name: str
    clip_id: str
    path: Path
    num_bytes: int
    sha256: str


async def read_archive(
    url: str,
    root: Path,
    *,
    session: aiohttp.ClientSession,
    skip: Collection[str] = (),
    annotated: Container[str] = (),
    max_clips: int | None = None,
    keep: bool = True,
    afresh: bool = False,
    max_member_bytes: int = 4 * 2**30,
    limits: Limits = ARCHIVE_LIMITS,
) -> AsyncIterator[Member | ArchiveError]:
    """Download an archive and give its videos, each as soon as its file is whole.

    Args:
        url: A ``.tar.gz``, ``.tgz``, ``.tar`` or ``.zip``; its first bytes say what it is.
        root: The dataset's folder: the archive goes to ``archives/``, each member to a new file of ``raw/``
            (`made_name`).
        session: From `client_session`.
        skip: Member names or clip ids that are done already: not unpacked again.
        annotated: Clip ids of annotated clips, which members are named by (`clip_id_for`).
        max_clips: Stop, and close the connection, when so many were given; None: all.
        keep: Leave the archive on disk after it was read to its end; the index stays in any case.
        afresh: What is on disk may be damaged: do not use it if the server says that it has something else now.
        max_member_bytes: Limit for each member.
        limits: Limits of the transfer.

    Yields:
        A `Member`, or an `ArchiveError` that names the ``member`` it is about (empty, a link, too large). Two members
        of one clip come both, the same name once; members without a video suffix and AppleDouble files
        (``._name.mp4``) are passed over.

    Raises:
        ArchiveError: The archive is damaged or no archive, after all that was whole before the place was given; or no
            file in it has the name of a video.
        DownloadError: Another of its subclasses; as `fetch`.
    """
    path, index = archive_path(url, root), root / index_name(url)
    unpacking = _Unpacking(url, root, frozenset(skip), annotated, max_member_bytes)
    names, known = read_index(index)
    if names is not None and not afresh and not any(map(unpacking.is_wanted, names)):
        return
    transfer = Transfer(url, path, session=session, limits=limits, is_archive=True)
    if afresh and path.exists() and await transfer.is_still(known) is False:
        path.unlink()
    if path.exists():
        transfer.take()
    download = None if transfer.state == "whole" else asyncio.create_task(transfer.run())
    growing = GrowingFile(transfer)
    num_given, is_damaged, loop = 0, False, asyncio.get_running_loop()
    # A thread of its own: the loop's pool also resolves host names, and must not be full of readers waiting for bytes.
    with ThreadPoolExecutor(1, thread_name_prefix="archive") as thread:
        found = unpacking.members(growing)
        try:
            while num_given != max_clips and (item := await loop.run_in_executor(thread, next, found, None)):
                num_given += 1
                yield item
        except ArchiveError:
            is_damaged = True
            raise
        finally:
            growing.stop()
            await asyncio.wait([loop.run_in_executor(thread, found.close)])
            if download is not None:
                if not unpacking.is_whole and transfer.state != "failed":
                    download.cancel()
                await asyncio.wait([download])
            # Another try after damage has to start from the server's bytes.
            if is_damaged or (not keep and num_given == max_clips):
                transfer.forget()
                path.unlink(missing_ok=True)
    if download is not None and not download.cancelled():
        download.result()
    if unpacking.is_whole:
        _write_index(index, url, unpacking.names, transfer.identity() if transfer.attempts else known)
        if not keep:
            path.unlink(missing_ok=True)
        unpacking.require_videos()


def read_index(path: Path) -> tuple[list[str] | None, Any]:
    """Names of the videos in an archive that was once read to its end (else None), and its `Transfer.identity`."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return [str(name) for name in known["members"]], known.get("state")
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None, None


def _write_index(path: Path, url: str, names: Collection[str], state: Any) -> None:
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    known = {"url": public_url(url), "state": state, "members": list(names)}
    part.write_text(json.dumps(known, indent=0), encoding="utf-8")
    part.replace(path)


def archive_path(url: str, root: Path) -> Path:
    """Where the archive lies: ``<root>/archives/<harmless stem>_<10 hex digits of SHA-256(lasting_url)><suffix>``."""
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    suffix = next((suffix for suffix in ARCHIVE_SUFFIXES if name.lower().endswith(suffix)), "")
    stem = re.sub(r"[^A-Za-z0-9-]+", "_", name[: len(name) - len(suffix)]).strip("_")[:60] or "archive"
    return root / "archives" / f"{stem}_{key_of(lasting_url(url))}{suffix}"


def index_name(url: str) -> str:
    """The file, relative to the root, that says what was in an archive once it was read to its end."""
    return archive_path(url, Path()).as_posix() + ".members.json"


@dataclass
class _Unpacking:
    """What `read_archive` was asked for, and what the archive holds: whole once it was read to its end."""

    url: str
    root: Path
    skip: frozenset[str]
    annotated: Container[str]
    max_member_bytes: int
    names: dict[str, None] = field(default_factory=dict)  # of videos, in order
    passed_over: Counter[str] = field(default_factory=Counter)  # other files, by suffix
    is_whole: bool = False

    def is_wanted(self, name: str) -> bool:
        return self.skip.isdisjoint((name, clip_id_for(self.url, name, annotated=self.annotated)))

    def members(self, file: GrowingFile) -> Generator[Member | ArchiveError]:
        """Unpack what is wanted. Runs in a thread."""
        given: set[str] = set()
        while not self.is_whole:
            self.names, self.passed_over = {}, Counter()
            try:
                (self.root / "raw").mkdir(parents=True, exist_ok=True)
                with file.opened():
                    for entry in read_members(file, self.passed_over):
                        is_new = entry.name not in self.names
                        self.names[entry.name] = None
                        if is_new and entry.name not in given and self.is_wanted(entry.name):
                            item = self._unpacked(entry)
                            given.add(entry.name)
                            yield item
                self.is_whole = True
            except RestartedError:
                continue  # the server began again from byte 0: what was given is not given again
            except StoppedError:
                return
            except READ_ERRORS as exc:
                if file.has_failed:
                    return  # the transfer's own error says more
                last = f"after {[*self.names][-1]}" if self.names else "before the first video"
                reason = f"damaged {last}, near byte {file.tell()} of {file.size()}: {exc or type(exc).__name__}"
                raise ArchiveError(public_url(self.url), reason) from exc
            except OSError as exc:
                raise DownloadError(public_url(self.url), f"can't be unpacked here: {exc.strerror or exc}") from exc

    def _unpacked(self, entry: Entry) -> Member | ArchiveError:
        clip_id, key = clip_id_for(self.url, entry.name, annotated=self.annotated), source_key(self.url, entry.name)
        path = self.root / made_name("raw", clip_id, key, PurePosixPath(entry.name).suffix.lower())
        try:
            if entry.problem is not None:
                raise MemberError(entry.problem)
            if entry.num_bytes <= 0:
                raise MemberError("is empty")
            if entry.num_bytes > self.max_member_bytes:
                raise MemberError(f"claims {entry.num_bytes} bytes, allowed are {self.max_member_bytes}")
            sha256 = _write(entry, path, path.with_name(f"{path.name}.{key}.part"))
        except MemberError as exc:
            return ArchiveError(public_url(self.url), f"{entry.name} {exc}", None, entry.name)
        return Member(entry.name, clip_id, path, entry.num_bytes, sha256)

    def require_videos(self) -> None:
        """Raise what else is in an archive without a video."""
        if self.passed_over and not self.names:
            most = self.passed_over.most_common(5)
            instead = ", ".join(f"{count} x {suffix or 'none'}" for suffix, count in most)
            reason = f"no file in it has the name of a video; their suffixes are: {instead}"
            raise ArchiveError(public_url(self.url), reason)


def _write(entry: Entry, path: Path, part: Path) -> str:
    """Write a member's bytes; their SHA-256, hex."""
    sha256, left = hashlib.sha256(), entry.num_bytes
    try:
        with entry.content as source, open(part, "wb") as file:
            while chunk := source.read(min(left, _CHUNK_BYTES)):
                file.write(chunk)
                sha256.update(chunk)
                left -= len(chunk)
            source.read(1)  # a zip checks its member's checksum at the end
            if left:
                raise EOFError(f"{entry.name} ends {left} bytes early")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return sha256.hexdigest()
