"""What the downloads of all workers are doing now, for the driver's line of progress.

Each worker leaves a few numbers in the key-value store of Ray's control service once a second, the driver reads them
there. That needs no process of its own, as an actor would. It is a figure to look at: whatever goes wrong with it, the
run goes on without.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import ray
from ray.experimental import internal_kv

from kdepth.downloads.http import TRAFFIC, Traffic

_NAMESPACE = "kdepth-traffic"
_SHOW_SECONDS = 2.0
_PUBLISH_SECONDS = 1.0
_AVERAGED_OVER = 4  # readings: a rate of single ones jumps with the moment at which workers publish


@contextlib.asynccontextmanager
async def published() -> AsyncIterator[None]:
    """In the block the driver can see this worker's downloads."""
    context = ray.get_runtime_context()
    key = f"{context.get_job_id()}/{context.get_worker_id()}"

    async def again_and_again() -> None:
        while True:
            await asyncio.to_thread(_publish, key)
            await asyncio.sleep(_PUBLISH_SECONDS)

    publishing = asyncio.create_task(again_and_again())
    try:
        yield
    finally:
        publishing.cancel()
        _publish(key)


def _publish(key: str) -> None:
    with contextlib.suppress(Exception):
        value = json.dumps([TRAFFIC.num_bytes, dict(TRAFFIC.retrying)])
        internal_kv._internal_kv_put(key, value, namespace=_NAMESPACE)


def collected() -> Traffic:
    """The traffic of all workers of this job so far."""
    everything = Traffic()
    for key in internal_kv._internal_kv_list(_prefix(), namespace=_NAMESPACE):
        value = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
        if value is not None:
            num_bytes, retrying = json.loads(value)
            everything.num_bytes += num_bytes
            everything.retrying |= retrying
    return everything


def _prefix() -> str:
    return f"{ray.get_runtime_context().get_job_id()}/"


@contextlib.contextmanager
def watched(show: Callable[[str], None]) -> Iterator[None]:
    """In the block ``show`` is called, from a thread, whenever there is something new to say about downloads.

    Args:
        show: Takes text such as ``12.3 MB/s, again: part_3.tar.gz (HTTP 503 Service Unavailable)``, or ``""``.
    """
    stop = threading.Event()

    def watch() -> None:
        readings = deque[tuple[float, int]](maxlen=_AVERAGED_OVER)
        said = ""
        while True:
            try:
                traffic = collected()
            except Exception:  # classes of Ray's core that it does not export; the run itself will tell
                traffic = Traffic()
            readings.append((time.monotonic(), traffic.num_bytes))
            text = describe(traffic, _rate(readings))
            if text != said:
                show(text)
                said = text
            if stop.wait(_SHOW_SECONDS):
                return

    thread = threading.Thread(target=watch, name="kdepth-traffic", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_SHOW_SECONDS)
        with contextlib.suppress(Exception):
            internal_kv._internal_kv_del(_prefix(), del_by_prefix=True, namespace=_NAMESPACE)


def _rate(readings: deque[tuple[float, int]]) -> float:
    """Bytes per second over the readings, ``(seconds, bytes)``."""
    (first_time, first), (last_time, last) = readings[0], readings[-1]
    return max(0, last - first) / max(last_time - first_time, 1e-9)


def describe(traffic: Traffic, bytes_per_second: float) -> str:
    """One line on what downloads do: ``12.3 MB/s, again: a.mp4 (HTTP 503 Service Unavailable) and 3 more``."""
    parts = [f"{bytes_per_second / 1e6:.1f} MB/s"] if bytes_per_second else []
    if traffic.retrying:
        url, why = min(traffic.retrying.items())
        others = f" and {len(traffic.retrying) - 1} more" if len(traffic.retrying) > 1 else ""
        parts.append(f"again: {PurePosixPath(unquote(urlsplit(url).path)).name} ({why}){others}")
    return ", ".join(parts)
