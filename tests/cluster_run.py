"""Three nodes on this machine; one is lost when the first clips are committed. A program, run by test_survival.

python tests/cluster_run.py ROOT URL_LIST
"""

from __future__ import annotations

import sys
import threading

import ray
from pipeline_run import run_pipeline
from ray.cluster_utils import Cluster

import kdepth
from kdepth.dataset.table import read_rows


def lose_node(cluster: Cluster, node: object, root: str, over: threading.Event) -> None:
    while not over.wait(0.2):
        if read_rows(root, ["clip_id"]).num_rows:
            cluster.remove_node(node, allow_graceful=False)
            print("one node lost")
            while sum(node["Alive"] for node in ray.nodes()) == 3:  # until the head has noticed
                threading.Event().wait(0.2)
            print(f"{sum(node['Alive'] for node in ray.nodes())} nodes left")
            return


if __name__ == "__main__":
    root, url_list = sys.argv[1:]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    kdepth.start_ray(cluster.address)
    print(f"{len(ray.nodes())} nodes")
    over = threading.Event()
    watcher = threading.Thread(target=lose_node, args=(cluster, nodes[-1], root, over))
    watcher.start()
    print(run_pipeline(kdepth.read_sources(url_list), root, concurrency=3))
    over.set()
    watcher.join()
    ray.shutdown()
    cluster.shutdown()
