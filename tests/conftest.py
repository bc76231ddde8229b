"""Fixtures that everything shares: one local Ray, one sample server, one finished run over the sample clips."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import ray
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Before any part of kdepth is imported: nothing here may look at a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# Ray's workers are as urgent as the tests beside them (15: less than everything else).
os.environ.setdefault("RAY_worker_niceness", "0")

from media_zoo import BUILDS, forget_ffmpeg
from pipeline_run import run_pipeline

import kdepth
from kdepth import samples
from kdepth.video.ffmpeg import ffmpeg_path


class _Groups(LoadScopeScheduling):
    """What runs in one process, one after the other: a file's tests, all that share one Ray, the notebooks."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file.endswith(".ipynb"):  # one looks into what another made
            return "notebooks"
        source = (self.config.rootpath / file).read_text()
        return "ray" if "ray_cluster: None" in source or "sample_run: Run" in source else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Groups:
    return _Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The notebooks first: they take longest."""
    items.sort(key=lambda item: item.path.suffix != ".ipynb")


# A process of its own: a call into C++ that keeps Python's lock would wait for ever for a server in this process.
S3_SERVER = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
input()
"""


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An S3 server on this machine: the environment that says where it is."""
    log = tmp_path_factory.mktemp("s3") / "log.txt"
    command = [sys.executable, "-c", S3_SERVER]
    pipe = subprocess.PIPE
    with log.open("wb") as errors, subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors) as server:
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(server.stdout.readline())}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }
        server.kill()


@pytest.fixture(scope="module")
def s3(request: pytest.FixtureRequest, s3_server: dict[str, str]) -> Iterator[str]:
    """URI of a new bucket; the environment says where its server is, as it would of any other."""
    bucket = request.module.__name__.replace("_", "-")
    url = f"{s3_server['AWS_ENDPOINT_URL']}/{bucket}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.items():
            patch.setenv(name, value)
        urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=60).close()
        yield f"s3://{bucket}"


@pytest.fixture(scope="session")
def ray_cluster(s3_server: dict[str, str]) -> Iterator[None]:
    """Ray on this machine, whose workers know the S3 server."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.items():
            patch.setenv(name, value)
        kdepth.start_ray()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def sample_server() -> Iterator[samples.SampleServer]:
    with samples.SampleServer() as server:
        yield server


class Run(NamedTuple):
    """A finished run: where it is, what was asked for, what it reported."""

    root: Path
    sources: pa.Table
    report: kdepth.RunReport


@pytest.fixture(scope="session")
def sample_run(ray_cluster: None, sample_server: samples.SampleServer, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All sample clips with depth for two frames a second. Read it, don't write to it."""
    root = tmp_path_factory.mktemp("samples")
    sources = kdepth.read_sources(sample_server.url_list, annotations=sample_server.annotations)
    return Run(root, sources, run_pipeline(sources, root, frames="2"))


@pytest.fixture(scope="module", params=BUILDS)
def build(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both FFmpegs in turn, of which kdepth looks once in a module what they can do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDEPTH_FFMPEG", request.param)
        forget_ffmpeg()
        yield request.param
    forget_ffmpeg()


@pytest.fixture
def use_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | None], str]]:
    """Makes kdepth use the FFmpeg at a path while the test runs; None leaves the choice to it."""

    def use(path: str | None) -> str:
        monkeypatch.setenv("KDEPTH_FFMPEG", path or "")
        forget_ffmpeg()
        return ffmpeg_path()

    yield use
    forget_ffmpeg()


@pytest.fixture
def random_generator() -> np.random.Generator:
    return np.random.default_rng(20)
