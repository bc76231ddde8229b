"""Fixtures that everything shares: one local Ray, one sample server, one finished run over the sample clips."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import ray

# Before any part of kdepth is imported: nothing here may look at a hub.
os.environ["HF_HUB_OFFLINE"] = "1"

import kdepth
from kdepth import samples


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests run one after the other in one of the two processes: a file's, all that use Ray, the notebooks.

    The long ones first, so that none is left alone at the end.
    """

    def group(item: pytest.Item) -> str:
        if item.path.suffix == ".ipynb":  # one looks into what another made
            return "notebooks"
        return "ray" if "ray_cluster" in getattr(item, "fixturenames", ()) else item.path.name

    first = {"notebooks": 0, "ray": 1}
    items.sort(key=lambda item: first.get(group(item), 2))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray on this machine."""
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


def run_pipeline(
    sources: pa.Table,
    root: Path,
    *,
    height: int = 360,
    model: str = "small",
    frames: str = "all",
    retry_failed: bool = False,
    keep_raw: bool = True,
) -> kdepth.RunReport:
    """What the notebook does, in one call; with one depth actor: starting another takes longer than it saves."""
    todo = kdepth.pending(sources, root, height=height, model=model, frames=frames, retry_failed=retry_failed)
    clips = kdepth.download(todo, root, allow_private_hosts=True)
    clips = kdepth.transcode(clips, root, height=height, keep_raw=keep_raw)
    clips = kdepth.estimate_depth(clips, root, model=model, frames=frames, concurrency=1)
    return kdepth.write_lance(clips, root, sources=todo)


@pytest.fixture(scope="session")
def sample_run(ray_cluster: None, sample_server: samples.SampleServer, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All sample clips with depth for two frames a second. Read it, don't write to it."""
    root = tmp_path_factory.mktemp("samples")
    sources = kdepth.read_sources(sample_server.url_list, annotations=sample_server.annotations)
    return Run(root, sources, run_pipeline(sources, root, frames="2"))


@pytest.fixture
def random_generator() -> np.random.Generator:
    return np.random.default_rng(20)
