"""A cluster that is empty when the run begins: two nodes of 2 CPUs come, and the first of them goes again.

A program, run by test_survival: python tests/growing_cluster.py ROOT URL_LIST [SECONDS_TO_FIRST SECONDS_TO_SECOND]
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import ray
from pipeline_run import run_pipeline
from ray.cluster_utils import Cluster

import kdepth
from kdepth.dataset.table import read_rows

NODE_CPUS = 2


class Listener:
    """Standard output; and whether the run has said that it waits for a node."""

    def __init__(self) -> None:
        self.is_waiting = threading.Event()

    def write(self, text: str) -> int:
        if "waiting for a node with a CPU" in text:
            self.is_waiting.set()
        return sys.__stdout__.write(text)  # type: ignore[union-attr]

    def flush(self) -> None:
        sys.__stdout__.flush()  # type: ignore[union-attr]


def num_clips(root: str) -> int:
    return read_rows(root, ["clip_id"]).num_rows


def most_at_once(root: str) -> int:
    """The most clips that were at the depth stage at one moment: one an actor, and a node has room for two actors.

    (All nodes of a local `Cluster` have this machine's name, so the rows' ``node`` does not tell them apart.)
    """
    rows = read_rows(root, ["depth_started_at", "depth_seconds"], "status = 'ok'").to_pylist()
    begun = [(row["depth_started_at"].timestamp(), row["depth_seconds"]) for row in rows]
    events = sorted([(start, 1) for start, _ in begun] + [(start + seconds, -1) for start, seconds in begun])
    most = now = 0
    for _, step in events:
        now += step
        most = max(most, now)
    return most


if __name__ == "__main__":
    root, url_list, *delays = sys.argv[1:]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    kdepth.start_ray(cluster.address)
    began, listener = time.monotonic(), Listener()
    with ThreadPoolExecutor(1) as thread, contextlib.redirect_stdout(listener):  # type: ignore[type-var]
        run = thread.submit(run_pipeline, kdepth.read_sources(url_list), root, concurrency=None)

        def wait_for(what: str, is_there: Callable[[], bool], seconds: float = 0.0) -> None:
            """Wait until something is so, and so many seconds since the start are over."""
            while not is_there() or time.monotonic() < began + seconds:
                if run.done():
                    raise RuntimeError(f"the run was over before {what}: {run.result()}")
                threading.Event().wait(0.5)
            print(f"\n{what} after {time.monotonic() - began:.0f} s, {num_clips(root)} clips")

        wait_for("the run waits", listener.is_waiting.is_set, float(delays[0]) if delays else 0.0)
        first = cluster.add_node(num_cpus=NODE_CPUS)
        wait_for("a node is at work", lambda: num_clips(root) > 0, float(delays[1]) if delays else 0.0)
        cluster.add_node(num_cpus=NODE_CPUS)
        wait_for("two nodes are at work", lambda: most_at_once(root) > NODE_CPUS)
        cluster.remove_node(first, allow_graceful=False)
        # The head notices within some seconds.
        wait_for("the first node is lost, and the run goes on", lambda: sum(n["Alive"] for n in ray.nodes()) == 2)
        print(run.result())
    ray.shutdown()
    cluster.shutdown()
