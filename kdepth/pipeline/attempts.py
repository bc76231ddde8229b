"""What a task of Ray's that is run again, because its process died, has to know of the earlier attempts.

Kept in the key-value store of Ray's control service, for the time of a run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.experimental import internal_kv

from kdepth.errors import WorkerDiedError

_NAMESPACE = b"kdepth.attempts"
_MAX_DEATHS = 3


def _key(*parts: object) -> str:
    return "/".join(map(str, (ray.get_runtime_context().get_job_id(), *parts)))


@contextlib.contextmanager
def counted(clip_id: str, stage: str) -> Iterator[Callable[[], None]]:
    """Refuse a clip that workers die on: Ray runs a task again whose process died, without end.

    A start that never ended was a death. Ray's own count of attempts would not do: the loss of a node, or of an actor
    that is being started again, adds several to it.

    Yields:
        What to call at each step of long work (an archive's clips): a death that came later than all before it counts
        as the first.

    Raises:
        WorkerDiedError: The worker died three times on this clip.
    """
    key = _key("starts", stage, clip_id)
    known = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
    deaths, farthest, steps = json.loads(known) if known else (0, 0, 0)
    if steps > farthest:
        deaths, farthest = 1, steps
    if deaths >= _MAX_DEATHS:
        raise WorkerDiedError(
            f"the worker process died {deaths} times on this clip: out of memory, or a crash in a codec or the model; "
            "Ray's logs say which"
        )
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        keep()

    def keep() -> None:
        internal_kv._internal_kv_put(key, json.dumps([deaths + 1, farthest, steps]), namespace=_NAMESPACE)

    keep()
    try:
        yield step
    finally:
        internal_kv._internal_kv_del(key, namespace=_NAMESPACE)


def repeated(stage: str, blocks: Iterable[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    """The rows of a task in the blocks of the attempt before it, as far as that came; then in those given here.

    Ray tells the blocks of a task by their number alone: what was taken over from an attempt that died is not looked
    at again. Other rows under the same number would be lost.

    Args:
        stage: Tells apart what runs in one task.
        blocks: Rows by block, in any order.
    """
    task = ray.get_runtime_context().get_task_id()
    earlier: list[list[str]] = []
    while (
        ids := internal_kv._internal_kv_get(_key("blocks", task, stage, len(earlier)), namespace=_NAMESPACE)
    ) is not None:
        earlier.append(json.loads(ids))
    number = len(earlier)
    waiting: dict[str, dict[str, Any]] = {}

    def new() -> list[dict[str, Any]]:
        nonlocal number
        key = _key("blocks", task, stage, number)
        internal_kv._internal_kv_put(key, json.dumps(list(waiting)), namespace=_NAMESPACE)
        number += 1
        rows = list(waiting.values())
        waiting.clear()
        return rows

    for rows in blocks:
        for row in rows:
            waiting.setdefault(row["clip_id"], row)
        while earlier and waiting.keys() >= set(earlier[0]):
            yield [waiting.pop(clip_id) for clip_id in earlier.pop(0)]
        if waiting and not earlier:
            yield new()
    for ids in earlier:  # what was there then and is not now: only the number counts
        yield [waiting.pop(clip_id) for clip_id in ids if clip_id in waiting]
    if waiting:
        yield new()


@contextlib.contextmanager
def one_run() -> Iterator[None]:
    """In the block nothing counts that earlier runs of this driver left; and nothing is left behind."""
    internal_kv._internal_kv_del(_key(), del_by_prefix=True, namespace=_NAMESPACE)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # Ray may be gone, which is told elsewhere
            internal_kv._internal_kv_del(_key(), del_by_prefix=True, namespace=_NAMESPACE)
