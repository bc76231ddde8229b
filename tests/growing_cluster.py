"""A cluster that is empty at first: nodes come while the run waits, and one goes. A program, run by test_survival.

python tests/growing_cluster.py ROOT URL_LIST
"""

from __future__ import annotations

import sys
import threading

import ray
from pipeline_run import run_pipeline
from ray.cluster_utils import Cluster

import kdepth
from kdepth.dataset.table import read_rows


def grow(cluster: Cluster, root: str, over: threading.Event) -> None:
    first = cluster.add_node(num_cpus=2) if not over.wait(20) else None
    print("first node")
    while not over.wait(0.2) and not read_rows(root, ["clip_id"]).num_rows:
        pass
    cluster.add_node(num_cpus=2)
    print("second node")
    nodes: set[str] = set()
    while not over.wait(0.2) and len(nodes) < 2:
        nodes = set(read_rows(root, ["node"])["node"].to_pylist()) | {row["node"] for row in []}
        if len(read_rows(root, ["clip_id"])) > 40:
            break
    if first is not None and "lose" in sys.argv:
        cluster.remove_node(first, allow_graceful=False)
        print("first node lost")


if __name__ == "__main__":
    root, url_list = sys.argv[1:3]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    kdepth.start_ray(cluster.address)
    over = threading.Event()
    growing = threading.Thread(target=grow, args=(cluster, root, over))
    growing.start()
    print(run_pipeline(kdepth.read_sources(url_list), root, concurrency=None))
    over.set()
    growing.join()
    ray.shutdown()
    cluster.shutdown()
