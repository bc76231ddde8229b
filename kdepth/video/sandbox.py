"""Start a program with few rights: ``python -I -S sandbox.py LIMITS -- COMMAND``.

Runs in the child, before the program that opens untrusted files. The process gives its rights up and then becomes that
program, which can't take them back. Imports nothing but the standard library: a start costs 15 ms of CPU time.
"""

import ctypes
import os
import resource
import struct
import sys

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SIGKILL, _EACCES = 1, 22, 38, 9, 13
# Machine -> AUDIT_ARCH of <linux/audit.h>, number of the system call socket().
_ARCHITECTURES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
_IO_URING_SETUP = 425  # io_uring opens sockets without the system call
# Landlock (linux/landlock.h): its three system calls, and all rights to change files, by the version that brought them.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_CHANGE = {1: _WRITE_FILE | 0b1_1111_1111 << 4, 2: 1 << 13, 3: _TRUNCATE}


def confine(options: list[tuple[str, str]]) -> list[str]:
    """Take rights from this process and all that it starts; where the system can't, leave them.

    Args:
        options: Names and values: ``data``, ``size`` (bytes of memory, of each file written), ``cpu`` (seconds),
            ``network`` (``no``), ``write`` (the only path that may be written, or nothing; again for more paths).

    Returns:
        What holds now: some of ``dies with its parent``, ``no network``, ``writes only its target``.
    """
    given = dict(options)
    limits = {"data": resource.RLIMIT_DATA, "size": resource.RLIMIT_FSIZE, "cpu": resource.RLIMIT_CPU}
    for name, limit in limits.items():
        if name in given:
            _limit(limit, int(given[name]), 4 if name == "cpu" else 0)
    _limit(resource.RLIMIT_CORE, 0)
    if sys.platform != "linux":
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    active = []
    if libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0) == 0:
        active.append("dies with its parent")
    if given.get("network") == "no" and _without_network(libc):
        active.append("no network")
    writable = [value for name, value in options if name == "write"]
    if writable and _without_writing(libc, [path for path in writable if path]):
        active.append("writes only its target")
    return active


def _limit(name: int, value: int, more: int = 0) -> None:
    """Set a limit, and ``more`` for the hard one; somebody's lower one, which only root may raise, stays."""
    _, allowed = resource.getrlimit(name)
    most = sys.maxsize if allowed == resource.RLIM_INFINITY else allowed
    resource.setrlimit(name, (min(value, most), min(value + more, most)))


def _without_network(libc: ctypes.CDLL) -> bool:
    """Forbid every socket, with a seccomp filter. Needs no privilege, and works inside containers."""
    if os.uname().machine not in _ARCHITECTURES:
        return False
    architecture, socket = _ARCHITECTURES[os.uname().machine]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06  # BPF_LD | BPF_W | BPF_ABS and so on
    program = [
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 0, 4, architecture),
        (load, 0, 0, 0),  # seccomp_data.nr
        (equal, 2, 0, socket),
        (equal, 1, 0, _IO_URING_SETUP),
        (at_least, 0, 1, 0x40000000),  # x86_64's second set of numbers
        (give, 0, 0, 0x00050000 | _EACCES),  # SECCOMP_RET_ERRNO
        (give, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    whole = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    return bool(libc.prctl(_PR_SET_SECCOMP, 2, whole, 0, 0) == 0)


def _without_writing(libc: ctypes.CDLL, paths: list[str]) -> bool:
    """Forbid every change of files but writing these, with Landlock (Linux 5.13 and newer, where it is on)."""
    version = libc.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    rights = sum(bits for since, bits in _CHANGE.items() if since <= version)
    rules = libc.syscall(_CREATE_RULESET, struct.pack("Q", rights), 8, 0)
    if rules < 0:
        return False
    devices = [f"/dev/{name}" for name in os.listdir("/dev") if name.startswith(("null", "dri", "nvidia"))]
    for path in paths + devices:  # those of hardware encoders
        there = os.open(path, os.O_PATH)
        rule = struct.pack("=Qi", rights & (_WRITE_FILE | _TRUNCATE), there)
        libc.syscall(_ADD_RULE, rules, 1, rule, 0)
        os.close(there)
    return bool(libc.syscall(_RESTRICT_SELF, rules, 0) == 0)


def main(arguments: list[str]) -> None:
    """Confine this process, then become the command; without one, print what holds, a line each."""
    split = arguments.index("--")
    active = confine([(name, value) for name, _, value in (word.partition("=") for word in arguments[:split])])
    command = arguments[split + 1 :]
    if command:
        os.execvp(command[0], command)
    print("\n".join(active))


if __name__ == "__main__":
    main(sys.argv[1:])
