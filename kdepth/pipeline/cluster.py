"""Ray: its start on this machine, and what a cluster has."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.data

# Private: Ray reads two constants from the environment when it is imported, maybe before kdepth was. Without the one,
# a driver under `uv run` waits for ever: Ray starts its workers by `uv run` in a copy of the project, where none comes
# up.
# Without the other, seven of Ray's sockets listen on all addresses of this machine, where they take commands.
from ray._private import ray_constants

# Private: Ray Data has no public limit for files on a disk that wait for the next stage; its own limits look at its
# object store alone, where a row takes 1.5 kB. Without it a long list is downloaded as a whole while its first clips
# are transcoded (`test_downloads_wait_for_who_takes_their_clips`: 24 of 24 files instead of under 12).
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)

_AHEAD_BYTES = 2**20  # of rows that wait for a stage, a core: some 700 clips, with `small` hours of work
_SOCKET_PATH_BYTES = 107  # of Linux; Ray adds some 60 to its folder


def start_ray(address: str = "", *, num_cpus: int | None = None, verbose: bool = False) -> None:
    """Start Ray on this machine, or join a cluster; use the Ray that runs already if there is one.

    Args:
        address: Of a running cluster that this machine belongs to (``"auto"``, ``"host:6379"``); empty: this machine
            alone, bound to its loopback address.
        num_cpus: CPUs of this machine to use; default: all that this process may use (`available_cpus`).
        verbose: Let Ray report what it does.

    Raises:
        ConnectionError: Nothing answers at `address`.
        RuntimeError: A Ray is there whose workers can't come up, or this machine does not let Ray start.
    """
    if ray.is_initialized():
        _require_usable()
    else:
        options: dict[str, Any] = {
            "log_to_driver": verbose,
            "logging_level": logging.INFO if verbose else logging.ERROR,
        }
        if address:
            _require_reachable(address)
            options["address"] = address
        else:
            _require_places()
            # Without "local" Ray would join whatever cluster this machine happens to belong to.
            options |= {"address": "local", "num_cpus": num_cpus or available_cpus(), "include_dashboard": False}
        with contextlib.nullcontext() if verbose else _quiet_start(), _ray_settings(alone=not address):
            _init_ray(options)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = verbose
    context.print_on_execution_start = verbose
    policies = [*ENABLED_BACKPRESSURE_POLICIES, _FarEnoughAhead]
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
    logging.getLogger("ray.data").setLevel(logging.INFO if verbose else logging.ERROR)


class _FarEnoughAhead(BackpressurePolicy):  # type: ignore[misc]  # Ray has no types for it
    """Start no new task of a stage that is some hundred clips a core ahead of the next one.

    Clips that wait take the disk's space as files. Tasks that run are not held up: a download would break off.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._most_bytes = _AHEAD_BYTES * max(1, cluster_size()[0])

    def can_add_input(self, op: Any) -> bool:
        return bool(self._resource_manager.get_mem_op_outputs(op) < self._most_bytes)


def cluster_size() -> tuple[int, int]:
    """CPUs and GPUs that the cluster has now."""
    resources = ray.cluster_resources()
    return int(resources.get("CPU", 0)), int(resources.get("GPU", 0))


def num_nodes() -> int:
    """Nodes of the cluster that have a CPU now."""
    return sum(bool(node["Alive"] and node["Resources"].get("CPU")) for node in ray.nodes())


def can_grow() -> bool:
    """Whether other nodes may join: not if Ray was started for this machine alone."""
    return not ray.get_runtime_context().gcs_address.startswith("127.")


def what_is_missing(*, gpu: bool) -> str | None:
    """What the cluster lacks for a run to begin, in words; None if it has a CPU, and a GPU if one is wanted."""
    cpus, gpus = cluster_size()
    lacking = [name for name, there in (("CPU", cpus > 0), ("GPU", gpus > 0 or not gpu)) if not there]
    if not lacking:
        return None
    nodes = sum(node["Alive"] for node in ray.nodes())
    return (
        f"waiting for a node with a {' and a '.join(lacking)}: the cluster has {nodes} nodes, {cpus} CPUs, {gpus} GPUs"
    )


def available_cpus() -> int:
    """CPUs that this process may use: its affinity (``taskset``, Slurm) and its container's quota count."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _container_cpus(Path("/sys/fs/cgroup")))))


def _container_cpus(cgroup: Path) -> float:
    """The quota of CPUs of a control group; infinite if there is none (cgroups of version 2, then 1)."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError):
            quota, period = " ".join((cgroup / name).read_text() for name in names).split()
            if quota not in ("max", "-1"):
                return int(quota) / int(period)
    return math.inf


def _require_usable() -> None:
    """Ray hands ``uv run`` to its workers as their Python if it was started under ``uv run`` by somebody else."""
    command = str(ray.get_runtime_context().runtime_env.get("py_executable", ""))
    if command.split()[:2] == ["uv", "run"]:
        raise RuntimeError(
            f"Ray was started before kdepth, and starts its workers by `{command}`, which never come up here: call "
            "kdepth.start_ray() instead of ray.init(), or set RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 before Ray is imported"
        )


def _require_reachable(address: str) -> None:
    """Ray itself would try for a quarter of an hour."""
    host, _, port = address.rpartition("//")[2].partition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as exc:
            raise ConnectionError(
                f"no Ray cluster answers at {address} ({exc}): `ray start --head --port 6379` starts one"
            ) from exc


def _require_places() -> None:
    """Ray writes a token to HOME, and sockets to its temporary folder, whose paths have a limit."""
    home = Path.home()
    if not os.access(home, os.W_OK):
        raise RuntimeError(f"Ray keeps a token in HOME, and {home} can't be written to: set HOME to a folder of yours")
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("RAY_TMP_DIR") or tempfile.gettempdir())
    sockets = f"{folder}/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
    if len(sockets.encode()) > _SOCKET_PATH_BYTES:
        raise RuntimeError(f"{folder} is too long a path for Ray's sockets: set RAY_TMPDIR to a short one, as /tmp")


@contextlib.contextmanager
def _ray_settings(*, alone: bool) -> Iterator[None]:
    """Start no worker by ``uv run``; and bind to the loopback address if this machine is to work alone."""
    values = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": False}
    if alone:
        values[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = False
    constants = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": False, "ENABLE_RAY_CLUSTER": not alone}
    environment = {name: os.environ.get(name) for name in values}
    before = {name: getattr(ray_constants, name) for name in constants}
    os.environ.update({name: str(int(value)) for name, value in values.items()})  # for Ray's other processes
    vars(ray_constants).update(constants)
    try:
        yield
    finally:
        vars(ray_constants).update(before)
        for name, value in environment.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _init_ray(options: Mapping[str, Any]) -> None:
    """Start Ray; again if its node was not up within the 30 s that Ray gives it, as on a busy machine."""
    for attempt in range(4):
        try:
            ray.init(**options)
            return
        except Exception as exc:  # Ray raises no class of its own here
            if "timed out during startup" not in str(exc) or attempt == 3:
                raise
            ray.shutdown()


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """Keep the notes that Ray's core writes while it starts off the screen, unless it fails."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with tempfile.TemporaryFile() as notes, warnings.catch_warnings():
        # Lance warns at any fork; Ray's are followed by an exec.
        warnings.filterwarnings("ignore", message="lance is not fork-safe")
        stderr = os.dup(2)
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            notes.seek(0)
            os.write(stderr, notes.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
