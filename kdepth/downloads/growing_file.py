"""A file that is still being downloaded, read by a thread while it grows."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import IO

from kdepth.downloads.http import Transfer


class RestartedError(Exception):
    """The file that was being read is no more: the transfer began again."""


class StoppedError(Exception):
    """Nobody wants more of it."""


class GrowingFile:
    """The file of a `Transfer`, for one thread to read: `read` waits for bytes. `stop` may come from another thread."""

    def __init__(self, transfer: Transfer) -> None:
        self.path = transfer.path
        self._transfer, self._stopped = transfer, False
        self._restarts = self._position = 0
        self._file: IO[bytes] | None = None

    def stop(self) -> None:
        """Have whoever reads or waits get a `StoppedError`."""
        with self._transfer.changed:
            self._stopped = True
            self._transfer.changed.notify_all()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Read from the beginning, in the block."""
        self._restarts, self._position = self._transfer.restarts, 0
        self._wait_beyond(0)
        try:
            self._file = self._transfer.part.open("rb")
        except FileNotFoundError:  # it is whole, or became so just now, or failed, or began again
            self.wait_until_whole()
            self._file = self.path.open("rb")
        with self._file:
            yield

    def read(self, num_bytes: int) -> bytes:
        """At least one byte, except at the end."""
        assert self._file is not None
        there = self._wait_beyond(self._position)
        data = self._file.read(max(0, min(num_bytes, there - self._position)))
        self._position += len(data)
        return data

    def peek(self, num_bytes: int) -> bytes:
        """The first bytes; as many as there are, if there are fewer. To be called before `read`."""
        assert self._file is not None
        self._wait_beyond(num_bytes - 1)
        head = self._file.read(num_bytes)
        self._file.seek(0)
        return head

    def tell(self) -> int:
        return self._position

    @property
    def has_failed(self) -> bool:
        """Whether it will never be whole."""
        return self._transfer.state == "failed"

    def size(self) -> int:
        """How many bytes it has or, where the server did not say, how many there are so far."""
        return self._transfer.total_bytes or self._transfer.num_bytes

    def wait_until_whole(self) -> None:
        self._wait_beyond(sys.maxsize)

    def _wait_beyond(self, position: int) -> int:
        """How many bytes there are, once there are more than ``position`` or the file is whole."""
        transfer = self._transfer
        with transfer.changed:
            while True:
                if self._stopped:
                    raise StoppedError
                if transfer.restarts != self._restarts:
                    raise RestartedError
                if transfer.state == "whole" or transfer.num_bytes > position:
                    return transfer.num_bytes
                if transfer.state == "failed":
                    raise EOFError("the transfer broke off")
                transfer.changed.wait()
