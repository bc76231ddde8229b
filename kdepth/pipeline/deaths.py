"""Refuse a clip that worker processes die on: Ray would run it again without end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import ray

from kdepth.errors import WorkerDiedError
from kdepth.storage import Root, key_of

MAX_DEATHS = 3


def num_deaths(root: Root, work: str) -> int:
    """How many processes of this run began this work and died before its end."""
    with contextlib.suppress(FileNotFoundError):
        return len(_marker(root, work).read_bytes())
    return 0


@contextlib.contextmanager
def counted(root: Root, work: str) -> Iterator[None]:
    """Mark the work as begun while the block runs. A mark that is left behind is a death.

    The marks are files in the work folder, one byte for each start. A run that is alone on its root removes them.
    (Ray's own count of attempts would not do: the loss of a node, or of an actor that is starting, adds several.)

    Args:
        root: The dataset's root. Before an object store each node has a work folder, and counts for itself.
        work: Name of the work, fit for a file: clip and stage.

    Raises:
        WorkerDiedError: Three processes have died at this work.
    """
    if (deaths := num_deaths(root, work)) >= MAX_DEATHS:
        raise WorkerDiedError(
            f"the worker process died {deaths} times on this clip: out of memory, or a crash in a codec or the model; "
            "Ray's logs say which"
        )
    marker = _marker(root, work)
    marker.parent.mkdir(parents=True, exist_ok=True)
    with marker.open("ab") as file:
        file.write(b"x")
    try:
        yield
    finally:
        marker.unlink(missing_ok=True)


def _marker(root: Root, work: str) -> Path:
    context = ray.get_runtime_context()  # another cluster's or notebook's deaths are none of this one's
    return root.work / "at_work" / f"{work}.{key_of(context.gcs_address, context.get_job_id())}"
