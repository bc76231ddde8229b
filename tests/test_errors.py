import pickle

import pytest

from kdepth import errors
from kdepth.errors import ArchiveError, DownloadError, KdepthError, TranscodeError


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
