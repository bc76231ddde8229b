"""On a CUDA GPU; skipped without one, unless FAIL_WITHOUT_CUDA=1 is set. What Ray makes of GPUs is tested anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_models import make_frames
from tiny_checkpoints import FAMILIES, save_checkpoint

import kdepth
from kdepth import samples
from kdepth.models.load import load_model
from kdepth.samples import rendered_clips
from kdepth.video.frames import read_frames

on_a_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("FAIL_WITHOUT_CUDA") != "1", reason="there is no CUDA GPU"
)


@pytest.fixture(scope="module")
def exact_products() -> Iterator[None]:
    """Float32 as CPUs have it; by default cuDNN takes 10 bits of a factor."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def clip_frames() -> NDArray[np.uint8]:
    video = rendered_clips()["kdepthShow1_000007_000010"]
    return np.stack([frame.rgb for frame in islice(read_frames(video), 20)])


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float32]:
    error: NDArray[np.float32] = np.abs(found - expected) / expected
    return error


@on_a_gpu
@pytest.mark.parametrize(
    ("dtype", "median", "p99"), [("float32", 0.005, 0.03), ("bfloat16", 0.01, 0.05), ("float16", 0.01, 0.05)]
)
def test_small(dtype: str, median: float, p99: float, clip_frames: NDArray[np.uint8], exact_products: None) -> None:
    """A GPU resizes frames as floats, a CPU as bytes: most of the error in float32."""
    expected = load_model("small", device="cpu", dtype="float32").estimate(clip_frames)
    model = load_model("small", device="cuda", dtype=dtype)
    first = model.estimate(clip_frames[:7])
    found = np.concatenate([first.inverse_depth, model.estimate(clip_frames[7:], after=first).inverse_depth])
    error = relative_error(found, expected.inverse_depth)
    print(dtype, np.median(error), np.quantile(error, 0.99), error.max())
    assert np.median(error) <= median
    assert np.quantile(error, 0.99) <= p99


@on_a_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, dtype: str, tmp_path: Path, exact_products: None) -> None:
    family = FAMILIES[name]
    save_checkpoint(tmp_path, family.make_config())
    frames = make_frames(3, 90, 160)
    expected = load_model(tmp_path, device="cpu", dtype="float32", depth_kind=family.asked).estimate(frames)
    found = load_model(tmp_path, device="cuda", dtype=dtype, depth_kind=family.asked).estimate(frames)
    error = relative_error(found.inverse_depth, expected.inverse_depth)
    print(name, dtype, np.median(error), np.quantile(error, 0.99), error.max())
    # All networks but these two see frames resized as bytes, of which some differ by a level between CPU and GPU.
    is_exact = dtype == "float32" and name.startswith(("depth-pro", "zoedepth"))
    median, p99 = (1e-4, 1e-3) if is_exact else (0.01, 0.05)
    assert np.median(error) <= median
    assert np.quantile(error, 0.99) <= p99
    if expected.focal_length_px is not None:
        np.testing.assert_allclose(found.focal_length_px, expected.focal_length_px, rtol=p99)


@on_a_gpu
def test_depth_pro_is_compiled_for_one_number_of_frames(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, FAMILIES["depth-pro"].make_config())
    model, frames = load_model(tmp_path, device="cuda", dtype="float16"), make_frames(7, 90, 160)
    alone = model.estimate(frames[:1]).inverse_depth
    together = model.estimate(frames).inverse_depth
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert relative_error(together[:1], alone).max() <= 0.02
    for number in (1, 2, 3, 4, 7):
        found = model.estimate(frames[:number]).inverse_depth
        assert relative_error(found, together[:number]).max() <= 0.02
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    assert compiled > 0, "there is no compiler: Triton needs a C compiler and Python's headers"


PIPELINE = """
import sys, ray, kdepth
from pipeline_run import run_pipeline
ray.init(num_cpus=3, num_gpus={num_gpus}, include_dashboard=False, log_to_driver=False)
kdepth.start_ray()
assert ray.cluster_resources()["GPU"] == 1
root, url_list = sys.argv[1:]
report = run_pipeline(kdepth.read_sources(url_list), root, frames={frames!r}, concurrency=2)
print(report.num_ok, report.num_failed)
"""


@pytest.mark.parametrize("num_gpus", [1, pytest.param(None, marks=on_a_gpu)], ids=["declared", "real"])
def test_pipeline_with_actors_that_share_a_gpu(
    num_gpus: int | None, sample_server: samples.SampleServer, tmp_path: Path
) -> None:
    """Two actors with half a GPU each; `test_actors_fit_on_the_gpus` is about their share."""
    urls = [url for url in Path(sample_server.url_list).read_text().split() if url.endswith(".mp4")][:2]
    url_list = tmp_path / "urls.txt"
    url_list.write_text("\n".join(urls))
    frames = "1" if num_gpus else "all"
    program = PIPELINE.format(num_gpus=num_gpus, frames=frames)
    command = [sys.executable, "-c", program, str(tmp_path / "root"), str(url_list)]
    environment = os.environ | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}  # see start_ray
    done = subprocess.run(
        command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-2:] == [str(len(urls)), "0"]
    assert kdepth.open_dataset(tmp_path / "root").verify().num_rows == 0
