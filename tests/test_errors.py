import pickle

import pytest

from kdepth import errors
from kdepth.errors import ArchiveError, DownloadError, KdepthError, TranscodeError, printable


def every_error() -> list[KdepthError]:
    made: list[KdepthError] = []
    for kind in vars(errors).values():
        if not (isinstance(kind, type) and issubclass(kind, KdepthError)):
            continue
        if issubclass(kind, ArchiveError):
            made.append(kind("http://host/a.tar", "is a link", 200, "a/b.mp4"))
        elif issubclass(kind, DownloadError):
            made.append(kind("http://host/a.mp4", "HTTP 404", 404))
        elif issubclass(kind, TranscodeError):
            made.append(kind("a.mp4", -9, "moov atom not found"))
        else:
            made.append(kind("what went wrong"))
    return made


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_errors_cross_process_boundaries_whole(error: KdepthError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)
    assert str(error)
    assert type(error).__name__ in (errors.__doc__ or "")


HOSTILE = "a\x1b]0;owned\x07\r\nb\u202ec\u200b\ud800\x9b31m"


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_no_message_obeys_what_came_from_outside(error: KdepthError) -> None:
    kind = type(error)
    if isinstance(error, ArchiveError):
        hostile: KdepthError = kind(f"http://h/{HOSTILE}", HOSTILE, 200, HOSTILE)
    elif isinstance(error, DownloadError):
        hostile = kind(f"http://h/{HOSTILE}", HOSTILE, 404)
    elif isinstance(error, TranscodeError):
        hostile = kind(f"/home/alice/{HOSTILE}.mp4", 1, HOSTILE)
    else:
        hostile = kind(HOSTILE)
    message = str(hostile)
    assert message.encode()
    assert all(line.isprintable() for line in message.split("\n"))
    assert "\\x1b]0;owned\\x07\\r" in message
    assert "alice" not in message
    assert str(pickle.loads(pickle.dumps(hostile))) == message


def test_long_messages_are_cut() -> None:
    assert printable("a" * 3000) == "a" * 1997 + "..."
    assert printable("\x1b" * 600) == ("\\x1b" * 600)[:1997] + "..."
    assert printable("é ok ü") == "é ok ü"
    assert len(str(DownloadError("http://h/", "r" * 2**20))) == 4000
