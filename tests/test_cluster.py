"""Ray's start on machines as they are, and what a run says of a Ray that it can't use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdepth.pipeline.cluster import _container_cpus, available_cpus

UV_RUN = """
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, runtime_env={"py_executable": "uv run --no-sync"})
import kdepth
try:
    kdepth.start_ray()
except RuntimeError as exc:
    print("error:", exc)
"""
ALONE = """
import os, psutil, sys, ray
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
family = lambda: {child.pid for child in psutil.Process().children(recursive=True)}
others = family()
import kdepth
kdepth.start_ray(num_cpus=1)
print("CPUs:", ray.cluster_resources()["CPU"])
ray.get(ray.remote(lambda: 1).remote())
mine = {os.getpid(), *family()} - others
found = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in mine}
print("listening:", {ip.removeprefix("::ffff:") for ip in found})
clips = kdepth.download(kdepth.read_sources(["http://127.0.0.1:9/a.mp4"]), sys.argv[1])
for again in (False, True):
    ray.shutdown()
    if again:
        kdepth.start_ray(num_cpus=1)
    try:
        kdepth.write_lance(clips, sys.argv[1])
    except kdepth.DatasetError as exc:
        print("error:", exc)
cluster.shutdown()
"""


def run(code: str, *arguments: str, before: tuple[str, ...] = (), **environment: str) -> str:
    command = [*before, sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_only_the_cpus_that_a_process_may_use_are_counted(tmp_path: Path) -> None:
    code = "from kdepth.pipeline.cluster import available_cpus; print(available_cpus())"
    assert run(code, before=("taskset", "-c", "0")) == "1\n"
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))
    assert _container_cpus(tmp_path) == float("inf")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _container_cpus(tmp_path) == float("inf")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert _container_cpus(tmp_path) == 1.5
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    for quota, cpus in (("-1", float("inf")), ("200000", 2)):
        (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota + "\n")
        (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
        assert _container_cpus(tmp_path) == cpus


def test_a_ray_whose_workers_never_come_up_is_an_error() -> None:
    out = run(UV_RUN, RAY_ENABLE_UV_RUN_RUNTIME_ENV="0")
    assert "starts its workers by `uv run --no-sync`" in out
    assert "call kdepth.start_ray() instead of ray.init(), or set RAY_ENABLE_UV_RUN_RUNTIME_ENV=0" in out


def test_ray_alone_joins_no_cluster_listens_to_itself_and_makes_no_clips_of_another(tmp_path: Path) -> None:
    out = run(ALONE, str(tmp_path), RAY_ENABLE_UV_RUN_RUNTIME_ENV="0")
    assert "CPUs: 1.0" in out
    assert "listening: {'127.0.0.1'}" in out
    assert out.count("error: Ray was stopped or started anew since these clips were planned: run again from `") == 2


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("HOME", "/proc/no/home", "/proc/no/home can't be written to: set HOME to a folder of yours"),
        ("RAY_TMPDIR", "/tmp/" + "long" * 20, "too long a path for Ray's sockets: set RAY_TMPDIR to a short one"),
        ("TMPDIR", "/tmp/" + "long" * 20, "too long a path for Ray's sockets: set RAY_TMPDIR to a short one"),
    ],
)
def test_places_that_ray_can_not_use_are_named(
    name: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "TMPDIR":
        value = str(tmp_path / ("long" * 20))
        Path(value).mkdir()  # Python takes another one otherwise
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    code = "import kdepth\ntry: kdepth.start_ray()\nexcept RuntimeError as exc: print('error:', exc)"
    assert message in run(code, **{name: value})
