"""Where a dataset's files are: a folder, or a prefix in an object store.

FFmpeg and the downloads need files on a disk. In a folder they work on the dataset's own files. For an object store
there is a work folder on the node's disk; whole files are moved from there to the store, by PyArrow. Credentials,
region and endpoint come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``), where Lance finds them too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock
from pyarrow import fs

from kdepth.errors import DatasetError, StorageError, printable
from kdepth.schema import lasting_url

_LITTLE_BYTES = 64 * 2**20
_DEAD_AFTER_SECONDS = 600.0
_FOLDERS = ("raw", "360p", "depth")
# What a row may name, and the other files that kdepth itself keeps.
_ROW_FILE = re.compile(rf"({'|'.join(_FOLDERS)})/(?!\.\.?$)[^/\x00-\x1f\x7f]+")
_OWN_FILE = re.compile(r"archives/[^/\0]+\.json|runs/[\w-]+|clips\.parquet|README\.md")
_MADE = re.compile(r"[\w-]+\.[0-9a-f]{10}-[0-9a-f]{8}\.\w+")


def source_key(url: str, member: str | None = None) -> str:
    """Ten hex digits for a source: its URL without what changes from time to time, and the archive's member."""
    return key_of(lasting_url(url), member or "")


def key_of(*parts: object) -> str:
    """Ten hex digits for what a file is made of: the same for the same source and settings."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:10]


def made_name(folder: str, clip_id: str, key: str, suffix: str) -> str:
    """Make a new name for a file of a clip: ``<folder>/<clip_id>.<key>-<8 random hex digits><suffix>``.

    A file that a committed row names is never written again: whoever makes it anew writes a file of another name, and
    the new row names that one. The key is from `key_of` or `source_key`, the suffix has its dot.
    """
    return f"{folder}/{clip_id}.{key}-{uuid.uuid4().hex[:8]}{suffix}"


class Root:
    """The root of a dataset: a folder, or a URI such as ``s3://bucket/kinetics``.

    Attributes:
        uri, lance_uri: As given, of a folder its absolute path; where the Lance dataset is.
        is_local: Whether it is a folder.
        work: The folder to work in: the root itself, or for an object store a folder on this node's disk that only
            this user may enter.

    Raises:
        ValueError: A URI that went through `Path`, which takes one of its slashes away.
        StorageError: Others could exchange the files in the work folder.
    """

    def __init__(self, root: str | Path | Root) -> None:
        self.uri: str = root.uri if isinstance(root, Root) else str(root)
        self.is_local = "://" not in self.uri
        if self.is_local:
            if re.match(r"\w+:/", self.uri):
                raise ValueError(f"root={self.uri!r}: give a URI as a str, not as a Path")
            # Absolute: workers have working directories of their own, and a notebook may change its.
            self.work = Path(self.uri).expanduser().absolute()
            self.uri = str(self.work)
        else:
            self.uri = self.uri.rstrip("/")
            self.work = Path(tempfile.gettempdir()) / f"kdepth-{os.getuid()}-{key_of(self.uri)}"
            self._make_private_work_folder()
        self.lance_uri = f"{self.uri}/clips.lance"

    def _make_private_work_folder(self) -> None:
        with contextlib.suppress(OSError):  # it exists, or this reader can't write there and need not
            self.work.mkdir(mode=0o700)
        if not os.path.lexists(self.work):
            return
        found = self.work.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise StorageError(
                f"{self.work} is a link, belongs to somebody else or is open to others (mode "
                f"{stat.S_IMODE(found.st_mode):o}), who could exchange files there: remove it, or set TMPDIR"
            )

    def __reduce__(self) -> tuple[type[Root], tuple[str]]:
        return Root, (self.uri,)  # each process opens connections of its own

    @cached_property
    def _files(self) -> Any:
        """The files of the root, by the names that they have in it."""
        store, base = (fs.LocalFileSystem(), str(self.work)) if self.is_local else fs.FileSystem.from_uri(self.uri)
        return fs.SubTreeFileSystem(base, store)

    def _checked(self, name: str) -> str:
        self.path(name, own=True)
        return name

    def path(self, name: str, *, own: bool = False) -> Path:
        """Where a file is on this node's disk; it need not exist.

        Rows may come from elsewhere, and are not believed: nothing outside the root is read or deleted. Raises
        DatasetError unless the name is ``raw/<file>``, ``360p/<file>`` or ``depth/<file>`` (or, if `own`, that of
        another file that kdepth keeps), or if the file or its folder is a link.
        """
        if not (_ROW_FILE.fullmatch(name) or (own and _OWN_FILE.fullmatch(name))):
            raise DatasetError(f"{printable(name)!r} is no file of a dataset: raw/, 360p/ or depth/ and a file's name")
        path = self.work / name
        for part in (path.parent, path) if "/" in name else (path,):
            if part.is_symlink():
                raise DatasetError(f"{printable(str(part))} is a link; kdepth reads and deletes only files in the root")
        return path

    def _infos(self, folder: str) -> list[Any]:
        """What the store says of each file of a folder, its path relative to the root. Links are not files."""
        if self.is_local and (self.work / folder).is_symlink():
            return []
        infos = self._files.get_file_info(fs.FileSelector(folder, allow_not_found=True))
        return [info for info in infos if info.is_file and not (self.is_local and (self.work / info.path).is_symlink())]

    def sizes(self, folder: str) -> dict[str, int]:
        """List the files of a folder: name relative to the root -> bytes."""
        return {info.path: info.size for info in self._infos(folder)}

    def find_made(self, folder: str, clip_id: str, key: str) -> str | None:
        """A whole file that a killed run left: of this clip, and of this source and settings. None if there is none."""
        # To list an object store's folder for each clip takes longer than to make the file again.
        if not self.is_local or (self.work / folder).is_symlink():
            return None
        names = (path.name for path in (self.work / folder).glob(f"{clip_id}.{key}-*"))
        return next((f"{folder}/{name}" for name in sorted(names) if _MADE.fullmatch(name)), None)

    def made_before(self, moment: float) -> dict[str, int]:
        """List files that `made_name` named and that were written before a time (``time.time()``): name -> bytes."""
        made = [info for folder in _FOLDERS for info in self._infos(folder) if _MADE.fullmatch(info.base_name)]
        return {info.path: info.size for info in made if info.mtime_ns / 1e9 <= moment}

    def is_empty(self) -> bool:
        """Whether there is nothing at the root: no file, and no folder with something in it."""
        # Below the root nothing is to be seen of a file in its place.
        there = self._files.base_fs.get_file_info(self._files.base_path.rstrip("/"))
        return not there.is_file and not self._files.get_file_info(fs.FileSelector("", allow_not_found=True))

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if it is not there."""
        info = self._files.get_file_info(self._checked(name))
        return int(info.size) if info.is_file else None

    def open(self, name: str) -> str | BinaryIO:
        """Give PyAV what it opens: the path of a row's file, or a file object that fetches parts as they are read.

        Raises as `path`; OSError if it is not there.
        """
        path = self.path(name)
        if self.is_local:
            path.open("rb").close()  # the system's errors (not there, too many open files) are not the file's
            return str(path)
        remote: BinaryIO = self._files.open_input_file(name)
        return remote

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """Have a file on this node's disk while the block runs."""
        if self.is_local:
            yield self.path(name, own=True)
            return
        with tempfile.TemporaryDirectory(prefix="kdepth-") as folder:
            path = Path(folder) / Path(name).name
            fs.copy_files(self._checked(name), str(path), self._files, fs.LocalFileSystem())
            yield path

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give the path for a file, which the caller makes whole or not at all; a store gets it at the block's end."""
        path = self.path(name, own=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        self.publish(name)

    def publish(self, name: str) -> None:
        """Move a whole file from `work` into the store."""
        if not self.is_local:
            path = self.path(name, own=True)
            try:
                fs.copy_files(str(path), name, fs.LocalFileSystem(), self._files)
            finally:
                path.unlink(missing_ok=True)  # also where the store can't be reached: nothing would find the file here

    def delete(self, name: str) -> None:
        """Delete a file of a row, if it is there. Raises as `path`."""
        self.path(name).unlink(missing_ok=True)
        if not self.is_local:
            with contextlib.suppress(FileNotFoundError):
                self._files.delete_file(name)

    @contextlib.contextmanager
    def in_use(self, run_id: str, *, heartbeat_seconds: float = 30.0) -> Iterator[None]:
        """Register a run while the block runs; if no other run is alive, delete what dead runs left half done.

        The run counts as alive (`others`) as long as it renews its mark, the file ``runs/<run_id>``. Raises ValueError
        for a root with the name of a Lance dataset, StorageError if one of the root's folders is a link.
        """
        if self.uri.endswith(".lance"):
            raise ValueError(f"root={self.uri!r}: give the folder that is to hold clips.lance, or another name")
        for folder in (*_FOLDERS, "archives", "runs", "at_work"):
            if (self.work / folder).is_symlink():
                raise StorageError(f"{self.work / folder} is a link: files are deleted there; make the root itself one")
        self._mark(run_id)
        stop = threading.Event()

        def renew() -> None:
            while not stop.wait(heartbeat_seconds):
                with contextlib.suppress(OSError):  # a store may be away for a while; the mark is good for ten minutes
                    self._mark(run_id)

        renewing = threading.Thread(target=renew, name="kdepth-alive", daemon=True)
        renewing.start()
        try:
            self._clear_if_alone(run_id)
            yield
            self._clear_if_alone(run_id)  # of workers that died meanwhile
        finally:
            stop.set()
            renewing.join()
            with contextlib.suppress(OSError):
                self._files.delete_file(self._checked(f"runs/{run_id}"))

    def _mark(self, run_id: str) -> None:
        if self.is_local:
            (self.work / "runs").mkdir(parents=True, exist_ok=True)
        with self._files.open_output_stream(self._checked(f"runs/{run_id}")) as file:
            file.write(f"{socket.gethostname()} {os.getpid()}".encode())

    def others(self, run_id: str = "") -> list[str]:
        """Runs that are alive here, apart from one's own: marks younger than ten minutes, of no process that ended."""
        marked = {info.base_name: info.mtime_ns / 1e9 for info in self._infos("runs")}
        # Compared with one's own mark where there is one: the store's clock may differ from this machine's.
        dead = marked.get(run_id, time.time()) - _DEAD_AFTER_SECONDS
        return sorted(name for name, at in marked.items() if name != run_id and at > dead and not self._has_ended(name))

    def _has_ended(self, run_id: str) -> bool:
        try:
            with self._files.open_input_stream(self._checked(f"runs/{run_id}")) as file:
                host, _, pid = file.read().decode().partition(" ")
            if host == socket.gethostname() and pid.isdecimal():
                os.kill(int(pid), 0)
        except (FileNotFoundError, ProcessLookupError):
            return True
        except (OSError, OverflowError, ValueError):  # another user's process; or the mark is being written
            pass
        return False

    def check_space(self, error: BaseException) -> None:
        """Raise `StorageError` if an error of a stage, or what it came from, is that the disk is full."""
        cause: BaseException | None = error
        while cause is not None:
            # The words may come from a video's own text: they count only if the disk is nearly full.
            free = shutil.disk_usage(self.work).free
            told = os.strerror(errno.ENOSPC) in str(cause) and free < _LITTLE_BYTES
            if told or getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(
                    f"no space left on device for {self.uri} ({free / 1e6:.1f} MB free at {self.work}). What is "
                    "committed stays; make space and run the same again: it goes on where it stopped"
                ) from error
            cause = cause.__cause__ or cause.__context__

    def _clear_if_alone(self, run_id: str) -> None:
        """Delete what nobody will use, if no other run is alive. (A download that broke will be continued.)"""
        if self.others(run_id):
            return
        files = ("raw/*.??????????.part", "360p/*.part", "depth/*.part", "archives/*.json.*.part", "*.parquet.*.part")
        # In the work folder of a store whole files, too: they did not get there, and are not looked for here.
        unpublished = () if self.is_local else [f"{folder}/*.??????????-????????.*" for folder in _FOLDERS]
        for pattern in (*files, *unpublished, "at_work/*"):
            for path in self.work.glob(pattern):
                path.unlink(missing_ok=True)
        for path in (*self.work.glob("raw/*.lock"), *self.work.glob("archives/*.lock")):
            with contextlib.suppress(OSError), FileLock(path, timeout=0):  # fails where a worker lives on and holds it
                path.unlink(missing_ok=True)
        for folder in self.work.glob("raw/*.yt-dlp"):
            shutil.rmtree(folder, ignore_errors=True)
