"""What C's allocator does with memory that was freed. Of use with glibc; other C libraries have none of this."""

import contextlib
import ctypes

# mallopt's names for its numbers. 32 MiB is the most that glibc takes for the second.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Use again what was freed, instead of giving it to the system at once: for a process that computes.

    A network's layers ask for the same megabytes with every patch and frame. Else the kernel has to clear them each
    time, for Depth Pro a twentieth of all.
    """
    _call("mallopt", _M_MMAP_THRESHOLD, 2**25)
    _call("mallopt", _M_TRIM_THRESHOLD, 2**29)


def return_freed_memory() -> None:
    """Give to the system what was freed by C and Rust libraries, whose threads' heaps keep it: for one that waits."""
    _call("malloc_trim", 0)


def _call(name: str, *numbers: int) -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        getattr(ctypes.CDLL(None), name)(*numbers)
