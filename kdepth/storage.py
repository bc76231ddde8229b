"""Where a dataset's files are: a folder, or a prefix in an object store.

FFmpeg and the downloads need files on a disk. In a folder they work on the dataset's own files; before an object store
there is a folder on the node's disk, out of which whole files are moved to the store. PyArrow's file systems do the
transport; credentials, region and endpoint come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` and
so on), where Lance looks for them too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pyarrow import fs

from kdepth.errors import StorageError
from kdepth.schema import lasting_url

_LITTLE_BYTES = 64 * 2**20


def source_key(url: str, member: str | None = None) -> str:
    """Ten hex digits that tell a source: a URL without what changes from time to time, and an archive's member."""
    return key_of(lasting_url(url), member or "")


def key_of(*parts: object) -> str:
    """Ten hex digits that tell what a file was made of: the same for the same source and settings."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:10]


def made_name(folder: str, clip_id: str, key: str, suffix: str) -> str:
    """A new name for a file of a clip, relative to the root; no file has it yet, and none will be given it again.

    ``<folder>/<clip_id>.<key>-<8 random hex digits><suffix>``. A row names its files, so that a file that a committed
    row names is never written again: whoever makes it anew makes a file of another name.

    Args:
        folder: ``raw``, ``360p`` or ``depth``.
        clip_id: The clip's name.
        key: From `key_of` or `source_key`.
        suffix: With its dot.
    """
    return f"{folder}/{clip_id}.{key}-{uuid.uuid4().hex[:8]}{suffix}"


class Root:
    """The root of a dataset.

    Args:
        root: A folder, or a URI such as ``s3://bucket/kinetics``; another `Root` is taken as it is.

    Attributes:
        uri: As given; of a folder its absolute path.
        is_local: Whether it is a folder.
        work: The folder to work in: the root itself, or the one on this node's disk, which is this user's alone.

    Raises:
        ValueError: A URI that went through `Path`, which takes one of its slashes away.
        StorageError: The one on this node's disk is another user's.
    """

    def __init__(self, root: str | Path | Root) -> None:
        self.uri: str = root.uri if isinstance(root, Root) else str(root)
        self.is_local = "://" not in self.uri
        self._fs: Any = None
        if self.is_local:
            if re.match(r"\w+:/", self.uri):
                raise ValueError(f"root={self.uri!r}: give a URI as a str, not as a Path")
            # Absolute, as workers have working directories of their own, and a notebook may change its.
            self.work = Path(self.uri).expanduser().absolute()
            self.uri = str(self.work)
        else:
            self.uri = self.uri.rstrip("/")
            digest = hashlib.sha256(self.uri.encode()).hexdigest()[:10]
            self.work = Path(tempfile.gettempdir()) / f"kdepth-{os.getuid()}-{digest}"
            with contextlib.suppress(OSError):  # it is there, or nothing can be written there, as a reader need not
                self.work.mkdir(mode=0o700)
            if os.path.lexists(self.work) and self.work.lstat().st_uid != os.getuid():
                raise StorageError(f"{self.work} belongs to somebody else, who could exchange files: remove it")

    def __str__(self) -> str:
        return self.uri

    def __reduce__(self) -> tuple[type[Root], tuple[str]]:
        return Root, (self.uri,)  # each process opens connections of its own

    @property
    def lance_uri(self) -> str:
        """Where the Lance dataset is."""
        return f"{self.uri}/clips.lance"

    def _store(self) -> tuple[Any, str]:
        if self._fs is None:
            here = fs.LocalFileSystem(), str(self.work.absolute())
            self._fs = here if self.is_local else fs.FileSystem.from_uri(self.uri)
        store: tuple[Any, str] = self._fs
        return store

    def _path(self, name: str) -> str:
        return f"{self._store()[1]}/{name}"

    def sizes(self, folder: str) -> dict[str, int]:
        """Files of a folder: name relative to the root -> bytes."""
        store, base = self._store()
        found = store.get_file_info(fs.FileSelector(f"{base}/{folder}", allow_not_found=True))
        return {f"{folder}/{info.base_name}": info.size for info in found if info.is_file}

    def size(self, name: str) -> int | None:
        """Bytes of a file, by its name relative to the root; None if it is not there."""
        store, _ = self._store()
        info = store.get_file_info(self._path(name))
        return int(info.size) if info.is_file else None

    def open(self, name: str) -> str | BinaryIO:
        """What PyAV opens: the file's path, or a file whose parts are fetched as they are read.

        Raises:
            OSError: It is not there.
        """
        if self.is_local:
            return str(self.work / name)
        remote: BinaryIO = self._store()[0].open_input_file(self._path(name))
        return remote

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """A file on this node's disk while the block runs."""
        if self.is_local:
            yield self.work / name
            return
        with tempfile.TemporaryDirectory(prefix="kdepth-") as folder:
            path = Path(folder) / Path(name).name
            fs.copy_files(self._path(name), str(path), self._store()[0], fs.LocalFileSystem())
            yield path

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Where to make a file, under that name only when it is whole; an object store gets it at the block's end."""
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        self.publish(name)

    def publish(self, name: str) -> None:
        """Move a whole file from `work` into the store."""
        if not self.is_local:
            path = self.work / name
            fs.copy_files(str(path), self._path(name), fs.LocalFileSystem(), self._store()[0])
            path.unlink()

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        (self.work / name).unlink(missing_ok=True)
        if not self.is_local:
            with contextlib.suppress(FileNotFoundError):
                self._store()[0].delete_file(self._path(name))

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Mark a run as going on here while the block runs; if it is alone, what was left half done is cleared.

        The folder itself is locked, and the system unlocks it however the process ends. An object store has no locks,
        and nothing half done can be seen in it.

        Raises:
            ValueError: It has the name of a Lance dataset.
        """
        if self.uri.endswith(".lance"):
            raise ValueError(f"root={self.uri!r}: give the folder that is to hold clips.lance, or another name")
        if not self.is_local:
            yield
            return
        self.work.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.work, os.O_RDONLY)
        try:
            self._clear_if_alone(handle)
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_SH)
            yield
            self._clear_if_alone(handle)  # of workers that died meanwhile
        finally:
            os.close(handle)

    def _clear_if_alone(self, handle: int) -> None:
        with contextlib.suppress(OSError):  # others are at work here, or the file system has no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._clear()

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Alone with a file or folder while the block runs. Not in an object store, which has no locks."""
        if not self.is_local:
            yield
            return
        handle = os.open(self.work / name, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def check_space(self, error: BaseException) -> None:
        """Tell a full disk from a bad clip: what to call with any error of a stage.

        Raises:
            StorageError: The error, or what it came from, is that the disk is full.
        """
        cause: BaseException | None = error
        while cause is not None:
            # A video's own words can be in the message: then only if it is true.
            told = os.strerror(errno.ENOSPC) in str(cause) and shutil.disk_usage(self.work).free < _LITTLE_BYTES
            if told or getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                free = shutil.disk_usage(self.work).free / 1e6
                raise StorageError(
                    f"no space left on device for {self.uri} ({free:.1f} MB free at {self.work}). What is committed "
                    "stays; make space and run the same again: it goes on where it stopped"
                ) from error
            cause = cause.__cause__ or cause.__context__

    def _clear(self) -> None:
        """Delete what nobody will go on with (a broken download is gone on with)."""
        files = ("raw/*.??????????.part", "360p/*.part", "depth/*.part", "archives/*.json.*.part", "*.parquet.*.part")
        for pattern in files:
            for path in self.work.glob(pattern):
                path.unlink(missing_ok=True)
        for pattern in ("raw/*.lock", "archives/*.lock"):
            for path in self.work.glob(pattern):
                with contextlib.suppress(OSError), path.open() as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a worker that lives on has it
                    path.unlink(missing_ok=True)
        for folder in self.work.glob("raw/*.yt-dlp"):
            shutil.rmtree(folder, ignore_errors=True)
