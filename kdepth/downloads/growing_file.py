"""A file that is still being downloaded, read by a thread while it grows."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from kdepth.downloads.http import Transfer


class RestartedError(Exception):
    """The file that was being read is no more: the transfer began again."""


class StoppedError(Exception):
    """Nobody wants more of it."""


class GrowingFile:
    """A file that is still being downloaded, to be read from a thread: `read` waits for bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.transfer: Transfer | None = None  # None: the file is whole
        self.failed = False
        self._changed = threading.Condition()
        self._whole = self._stopped = False
        self._restarts = self._position = self._known = 0
        self._file: IO[bytes] | None = None

    # Called from the event loop.

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def finish(self, download: asyncio.Task[Any]) -> None:
        self.failed = download.cancelled() or download.exception() is not None
        self._whole = not self.failed
        self.wake()

    def stop(self) -> None:
        self._stopped = True
        self.wake()

    # Called from the reading thread.

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        self._restarts = self.transfer.restarts if self.transfer else 0
        self._position = self._known = 0
        self._wait_beyond(0)
        with self._open() as self._file:
            yield

    def _open(self) -> IO[bytes]:
        if self.transfer is not None:
            try:
                return self.transfer.part.open("rb")
            except FileNotFoundError:  # it became whole just now, or failed, or began again
                self.wait_until_whole()
        return self.path.open("rb")

    def read(self, num_bytes: int) -> bytes:
        """At least one byte, except at the end."""
        if self._position >= self._known:
            self._known = self._wait_beyond(self._position)
        assert self._file is not None
        data = self._file.read(max(0, min(num_bytes, self._known - self._position)))
        self._position += len(data)
        return data

    def peek(self, num_bytes: int) -> bytes:
        """The first bytes, without moving; as many as there are, if there are fewer."""
        head = b""
        while len(head) < num_bytes and (data := self.read(num_bytes - len(head))):
            head += data
        assert self._file is not None
        self._file.seek(0)
        self._position = 0
        return head

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        if self.transfer is not None and self.transfer.total_bytes is not None:
            return self.transfer.total_bytes
        return self._known

    def wait_until_whole(self) -> None:
        self._known = self._wait_beyond(sys.maxsize)

    def _wait_beyond(self, position: int) -> int:
        """How many bytes there are, once there are more than ``position`` or the file is whole."""
        with self._changed:
            while True:
                if self._stopped:
                    raise StoppedError
                if self.transfer is None:
                    return self.path.stat().st_size
                if self.transfer.restarts != self._restarts:
                    raise RestartedError
                if self._whole or self.transfer.num_bytes > position:
                    return self.transfer.num_bytes
                if self.failed:
                    raise EOFError("the transfer broke off")
                self._changed.wait()
