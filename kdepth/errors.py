"""Every error that kdepth raises on purpose.

    KdepthError
    ├── SourceError
    ├── DownloadError(url, reason, http_status)
    │   ├── HttpStatusError, HostUnreachableError, RefusedAddressError, DownloadTimeoutError, DownloadTooLargeError
    │   └── IncompleteDownloadError, NotAVideoError, ArchiveError, VideoUnavailableError
    ├── TranscodeError(path, returncode, stderr_tail)
    │   ├── NoVideoStreamError, UnsupportedMediaError, DamagedMediaError, RefusedReferenceError
    │   └── MediaTooLargeError, MediaTooLongError, TranscodeTimeoutError, TranscodeMemoryError
    ├── DepthError
    ├── WorkerDiedError
    └── DatasetError
        └── StorageError

A caller's mistake is a ``ValueError`` or ``TypeError``. All of these survive pickling, because they cross Ray: each
passes its fields to ``super().__init__`` and formats them in ``__str__``.
"""

from __future__ import annotations

from pathlib import PurePath


def printable(text: str, most_chars: int = 2000) -> str:
    """Make text that we did not write (a file name, a server's reason phrase) safe to print.

    What a terminal or a table would obey (control characters, line ends, lone surrogates, invisible characters) becomes
    Python escapes (``\\x1b``). What is too long is cut, and ends in ``...``.
    """
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[:most_chars]
    )
    return shown if len(text) <= most_chars and len(shown) <= most_chars else shown[: most_chars - 3] + "..."


class KdepthError(Exception):
    """Base of all errors that kdepth raises on purpose. Their messages are safe to print, whatever a server said."""

    def __str__(self) -> str:
        return "\n".join(map(printable, super().__str__().split("\n")))


class SourceError(KdepthError):
    """A URL list or annotation file can't be read; the message names file and line."""


class DownloadError(KdepthError):
    """A URL could not be fetched.

    Args:
        url: The URL, without credentials (`public_url`).
        reason: What went wrong, and what to do where there is something to do.
        http_status: Status of the last answer; None if there was none.
    """

    def __init__(self, url: str, reason: str, http_status: int | None = None) -> None:
        super().__init__(url, reason, http_status)
        self.url = url
        self.reason = reason
        self.http_status = http_status

    def __str__(self) -> str:
        return printable(f"{self.reason} ({self.url})", 4000)


class HttpStatusError(DownloadError):
    """The server answered with an error status."""


class HostUnreachableError(DownloadError):
    """The host name does not resolve, or nobody answers at its address."""


class RefusedAddressError(DownloadError):
    """A scheme, a host or a redirect target that kdepth does not connect to."""


class DownloadTimeoutError(DownloadError):
    """The transfer took longer than allowed."""


class DownloadTooLargeError(DownloadError):
    """The answer has more bytes than allowed."""


class IncompleteDownloadError(DownloadError):
    """The transfer broke, and could not be continued."""


class NotAVideoError(DownloadError):
    """The bytes are something else than a video (an HTML page named .mp4)."""


class ArchiveError(DownloadError):
    """An archive is damaged, or one of its members can't be taken.

    Args:
        url, reason, http_status: As for `DownloadError`.
        member: Name inside the archive; None if it is about the archive as a whole.
    """

    def __init__(self, url: str, reason: str, http_status: int | None = None, member: str | None = None) -> None:
        super().__init__(url, reason, http_status)
        self.args = (url, reason, http_status, member)
        self.member = member


class VideoUnavailableError(DownloadError):
    """A video site refuses the video (private, removed, region, rate limit)."""


class TranscodeError(KdepthError):
    """FFmpeg could not make a clip of a file.

    Args:
        path: The source file; the message has its name alone, as it goes into the dataset.
        returncode: Exit status of FFmpeg; negative for a signal; None if it was not started.
        stderr_tail: The last lines that FFmpeg printed, or what was wrong before it was started.
    """

    def __init__(self, path: str, returncode: int | None, stderr_tail: str) -> None:
        super().__init__(path, returncode, stderr_tail)
        self.path = path
        self.returncode = returncode
        self.stderr_tail = stderr_tail

    def __str__(self) -> str:
        status = "" if self.returncode is None else f" (FFmpeg exit status {self.returncode})"
        lines = f"{self.stderr_tail}{status}".split("\n")
        return "\n".join(map(printable, [f"{PurePath(self.path).name}: {lines[0]}", *lines[1:]]))


class NoVideoStreamError(TranscodeError):
    """The file has no video stream: audio or data only."""


class UnsupportedMediaError(TranscodeError):
    """A container or codec that FFmpeg, or our list, does not take."""


class DamagedMediaError(TranscodeError):
    """The file is truncated or broken, so that too few of its pictures can be decoded."""


class RefusedReferenceError(TranscodeError):
    """The file points at other files or addresses (playlists, external tracks), which are never opened."""


class MediaTooLargeError(TranscodeError):
    """The pictures have more pixels than allowed."""


class MediaTooLongError(TranscodeError):
    """The clip is longer than allowed."""


class TranscodeTimeoutError(TranscodeError):
    """FFmpeg was stopped at its limit of time, by the clock or of the CPU."""


class TranscodeMemoryError(TranscodeError):
    """FFmpeg was stopped at its memory limit."""


class DepthError(KdepthError):
    """A model can't be loaded, or can't give what was asked of it."""


class DatasetError(KdepthError):
    """A dataset, clip or frame is not there, or is not whole."""


class StorageError(DatasetError):
    """There is no space left for the dataset; the run stops, and can be gone on with."""


class WorkerDiedError(KdepthError):
    """The process that worked on a clip died each time: out of memory, or a crash."""
