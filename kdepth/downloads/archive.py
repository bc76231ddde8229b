"""Archive -> member files, while it arrives.

The archive is downloaded to ``<root>/archives`` and read from there by a thread that follows the growing file, so a
transfer that broke or a process that was killed goes on from the disk. Nothing of a member's name reaches the file
system.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Collection, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp

from kdepth.downloads.archive_members import READ_ERRORS, Entry, MemberError, not_an_archive, read_members
from kdepth.downloads.growing_file import GrowingFile, RestartedError, StoppedError
from kdepth.downloads.http import Transfer
from kdepth.downloads.network import public_url
from kdepth.errors import ArchiveError, DownloadError
from kdepth.schema import ARCHIVE_SUFFIXES, clip_id_for, lasting_url

_CHUNK_BYTES = 2**20


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
    max_clips: int | None = None,
    keep: bool = True,
    afresh: bool = False,
    max_bytes: int = 64 * 2**30,
    max_member_bytes: int = 4 * 2**30,
    attempts: int = 5,
    backoff_seconds: float = 1.0,
) -> AsyncIterator[Member | ArchiveError]:
    """Download an archive and give its videos, each as soon as its file is whole.

    Args:
        url: A ``.tar.gz``, ``.tgz``, ``.tar`` or ``.zip``; its first bytes say what it is.
        root: The dataset's folder: the archive goes to ``archives/``, members to ``raw/<clip_id><suffix>``.
        session: From `client_session`.
        skip: Member names or clip ids that are done already: not unpacked again.
        max_clips: Stop, and close the connection, when so many were given; None: all.
        keep: Leave the archive on disk after it was read to its end; the index stays in any case.
        afresh: What is on disk may be damaged: use it only if the server says that it still has the same.
        max_bytes: Limit for the archive.
        max_member_bytes: Limit for each member.
        attempts: As in `fetch`.
        backoff_seconds: As in `fetch`.

    Yields:
        A `Member`, or an `ArchiveError` that names the ``member`` it is about (empty, a link, too large). The same clip
        twice comes once; members without a video suffix and AppleDouble files (``._name.mp4``) are passed over.

    Raises:
        ArchiveError: The archive is damaged or no archive, after all that was whole before the place was given; or no
            file in it has the name of a video.
        DownloadError: Another of its subclasses; as `fetch`.
    """
    path = archive_path(url, root)
    known = read_index(root / index_name(url))
    if not afresh and known is not None and all(name in skip or clip_id_for(url, name) in skip for name in known):
        return
    reader = _ArchiveReader(url, root, frozenset(skip), max_clips, max_member_bytes)
    growing = GrowingFile(path)
    transfer = Transfer(
        url,
        path,
        session=session,
        max_bytes=max_bytes,
        attempts=attempts,
        backoff_seconds=backoff_seconds,
        what_is_wrong=not_an_archive,
        refusal=ArchiveError,
        on_bytes=growing.wake,
    )
    download: asyncio.Task[Any] | None = None
    if afresh and path.exists() and await transfer.is_of(_read_state(root / index_name(url))) is False:
        path.unlink()
    if not path.exists():
        growing.transfer = transfer
        download = asyncio.create_task(transfer.run())
        download.add_done_callback(growing.finish)
    damaged = False
    # A thread of its own: the loop's pool also resolves host names, and must not be full of readers waiting for bytes.
    with ThreadPoolExecutor(1, thread_name_prefix="archive") as thread:
        found = reader.read(growing)
        loop = asyncio.get_running_loop()
        try:
            while (item := await loop.run_in_executor(thread, next, found, None)) is not None:
                yield item
        except ArchiveError:
            damaged = True
            raise
        finally:
            growing.stop()
            await asyncio.wait([loop.run_in_executor(thread, found.close)])
            if download is not None:
                if damaged or not reader.complete:
                    download.cancel()
                await asyncio.wait([download])
            # Another try after damage has to start from the server's bytes.
            if damaged or (not keep and reader.has_enough):
                transfer.forget()
                path.unlink(missing_ok=True)
    if download is not None and not download.cancelled():
        download.result()
    if reader.complete:
        was_received = download is not None and transfer.attempts
        state = transfer.state if was_received else _read_state(root / index_name(url))
        _write_index(url, root, reader.names, state)
        if not keep:
            path.unlink(missing_ok=True)
        if reader.nothing:
            raise ArchiveError(public_url(url), reader.nothing)


def read_index(path: Path) -> list[str] | None:
    """Names of the videos in an archive that was once read to its end, whole or not; None if it never was."""
    try:
        members = json.loads(path.read_text(encoding="utf-8"))["members"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in members]


def _read_state(path: Path) -> Any:
    """What the server said of an archive that was read to its end."""
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("state")
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def archive_path(url: str, root: Path) -> Path:
    """Where the archive lies: ``<root>/archives/<harmless stem>_<10 hex digits of SHA-256(lasting_url)><suffix>``."""
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    suffix = next((suffix for suffix in ARCHIVE_SUFFIXES if name.lower().endswith(suffix)), "")
    stem = re.sub(r"[^A-Za-z0-9-]+", "_", name[: len(name) - len(suffix)]).strip("_")[:60] or "archive"
    return root / "archives" / f"{stem}_{_digest(url)}{suffix}"


def _digest(url: str) -> str:
    return hashlib.sha256(lasting_url(url).encode()).hexdigest()[:10]


def index_name(url: str) -> str:
    """The file, relative to the root, that says what was in an archive once it was read to its end."""
    return archive_path(url, Path()).as_posix() + ".members.json"


def _write_index(url: str, root: Path, names: list[str], state: Any) -> None:
    path = root / index_name(url)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    content = {"url": public_url(url), "state": state, "members": names}
    part.write_text(json.dumps(content, indent=0), encoding="utf-8")
    os.replace(part, path)


class _ArchiveReader:
    """What is taken of an archive, and what is not. `read` runs in a thread."""

    def __init__(
        self, url: str, root: Path, skip: frozenset[str], max_clips: int | None, max_member_bytes: int
    ) -> None:
        self.names: list[str] = []
        self.complete = self.has_enough = False
        self.nothing = ""  # why there is no video in it
        self._url, self._public_url, self._raw = url, public_url(url), root / "raw"
        self._digest = _digest(url)
        self._skip, self._max_clips, self._max_member_bytes = skip, max_clips, max_member_bytes
        self._done: set[str] = set()

    def read(self, file: GrowingFile) -> Generator[Member | ArchiveError, None, None]:
        self._raw.mkdir(parents=True, exist_ok=True)
        num_given = 0
        while True:
            self.names, seen, passed_over = [], set[str](), Counter[str]()
            try:
                with file.opened():
                    for entry in read_members(file, passed_over):
                        clip_id = clip_id_for(self._url, entry.name)
                        if clip_id in seen:
                            continue
                        seen.add(clip_id)
                        self.names.append(entry.name)
                        if clip_id in self._done or entry.name in self._skip or clip_id in self._skip:
                            continue
                        item = self._take(entry, clip_id)
                        self._done.add(clip_id)
                        yield item
                        num_given += 1
                        if num_given == self._max_clips:
                            self.has_enough = True
                            return
                if not self.names and passed_over:
                    suffixes = ", ".join(
                        f"{count} x {suffix or 'none'}" for suffix, count in passed_over.most_common(5)
                    )
                    self.nothing = f"no file in it has the name of a video; their suffixes are: {suffixes}"
                self.complete = True
                return
            except RestartedError:
                continue  # the server began again from byte 0: what was given is not given again
            except StoppedError:
                return
            except READ_ERRORS as exc:
                if file.failed:
                    return  # the transfer's own error says more
                last = f"after {self.names[-1]}" if self.names else "before the first video"
                reason = f"damaged {last}, near byte {file.tell()} of {file.size()}: {exc or type(exc).__name__}"
                raise ArchiveError(self._public_url, reason) from exc
            except OSError as exc:
                raise DownloadError(self._public_url, f"can't be unpacked here: {exc}") from exc

    def _take(self, entry: Entry, clip_id: str) -> Member | ArchiveError:
        problem = entry.problem
        if problem is None and entry.num_bytes <= 0:
            problem = "is empty"
        if problem is None and entry.num_bytes > self._max_member_bytes:
            problem = f"claims {entry.num_bytes} bytes, allowed are {self._max_member_bytes}"
        if problem is None:
            try:
                return self._unpack(entry, clip_id)
            except MemberError as exc:
                problem = str(exc)
        return ArchiveError(self._public_url, f"{entry.name} {problem}", None, entry.name)

    def _unpack(self, entry: Entry, clip_id: str) -> Member:
        path = self._raw / (clip_id + PurePosixPath(entry.name).suffix.lower())
        # Another archive may hold the same clip, and be read at the same time.
        part = path.with_name(f"{path.name}.{self._digest}.part")
        sha256, left = hashlib.sha256(), entry.num_bytes
        try:
            with entry.open() as source, open(part, "wb") as file:
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
        return Member(entry.name, clip_id, path, entry.num_bytes, sha256.hexdigest())
