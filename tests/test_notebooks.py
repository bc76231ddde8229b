"""The notebooks as papermill runs them. That their cells give what they show is nbval's part of the suite."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import cv2
import nbformat
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Run

import kdepth
from depth_pairs import evaluate_models, sample_pairs
from kdepth import samples

PROJECT = Path(__file__).parents[1]
NOTEBOOKS = sorted((PROJECT / "notebooks").rglob("*.ipynb"))


def papermill(*arguments: str | Path, cwd: Path) -> str:
    """What papermill prints.

    Once in many runs Jupyter's client and kernel wait for each other (papermill's issue 711): it is ended then, with
    its kernel, and tried once more. Whatever of ours stood still would do so again.
    """
    command = [sys.executable, "-m", "papermill", *map(str, arguments)]
    for attempt in (1, 2):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, text=True, cwd=cwd, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
            try:
                out, err = process.communicate(timeout=300)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                if attempt == 2:
                    raise
                continue
        assert process.returncode == 0, err[-3000:]
        return str(out + err)
    raise AssertionError


def outputs(notebook: Path) -> str:
    cells = nbformat.read(notebook, as_version=4).cells
    found = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in found)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_was_run_and_is_fit_for_the_web(path: Path) -> None:
    assert path.stat().st_size < 3_000_000
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].cell_type == "markdown"
    assert code[1].metadata.tags == ["parameters"]
    for cell in code:
        assert cell.execution_count, cell.source  # nbval passes over cells that were never run
        assert len(cell.source.splitlines()) <= 16, cell.source
        assert not any(output.output_type == "error" for output in cell.outputs)
    # Training has a test of its own; its figures differ from machine to machine.
    assert path.stem == "train_small" or any("NBVAL_CHECK_OUTPUT" in cell.source for cell in code)
    text = path.read_text()
    for private in (str(PROJECT), str(Path.home()), "/tmp/"):
        assert private not in text


def test_papermill_help_reads_like_documentation() -> None:
    text = papermill("--help-notebook", "notebooks/pipeline.ipynb", cwd=PROJECT)
    for name, kind, default in [
        ("url_list", "str", '""'),
        ("annotations", "str", '""'),
        ("root", "str", '"outputs/kinetics"'),
        ("height", "int", "360"),
        ("model", "str", '"small"'),
        ("frames", "str", '"all"'),
        ("limit", "int", "0"),
        ("allow_private_hosts", "bool", "False"),
        ("retry_failed", "bool", "False"),
        ("keep_raw", "bool", "True"),
        ("num_cpus", "int", "0"),
        ("ray_address", "str", '""'),
    ]:
        line = next(i for i, line in enumerate(text.splitlines()) if line.strip().startswith(f"{name}: {kind}"))
        assert f"(default {default})" in text.splitlines()[line]
        # What it means stands beside it or below.
        assert len(" ".join(text.splitlines()[line : line + 2])) > len(f"  {name}: {kind} (default {default})") + 15


def test_the_pipeline_runs_headless_with_a_list_of_ones_own(
    sample_server: samples.SampleServer, tmp_path: Path
) -> None:
    base = sample_server.url_list.read_text().splitlines()[0].rpartition("/")[0]
    first, *_ = samples.rendered_clips()
    urls = tmp_path / "my.txt"
    urls.write_text(f"{base}/{first}.mp4\n{base}/missing.mp4\n")
    root = tmp_path / "x"
    parameters = ["-p", "url_list", "my.txt", "-p", "allow_private_hosts", "True", "-p", "model", "small"]
    parameters += ["-p", "num_cpus", "1"]  # for one worker
    parameters += ["-p", "frames", "1", "-p", "root", root]  # which papermill makes a number
    # From another folder than the project's: the list is relative to it.
    papermill(PROJECT / "notebooks" / "pipeline.ipynb", tmp_path / "out.ipynb", *parameters, cwd=tmp_path)
    ds = kdepth.open_dataset(root)
    assert sorted(ds.table(columns=["status"])["status"].to_pylist()) == ["failed", "ok"]
    assert ds[first].row["depth_frames"] == "1"
    assert len(ds[first].depth_indices) == 3
    shown = outputs(tmp_path / "out.ipynb")
    assert "1 clips ok, 1 failed" in shown
    assert "HttpStatusError" in shown

    # The same command again does no work and says so.
    papermill(PROJECT / "notebooks" / "pipeline.ipynb", tmp_path / "again.ipynb", *parameters, cwd=tmp_path)
    assert "Nothing to do" in outputs(tmp_path / "again.ipynb")
    assert kdepth.open_dataset(root).lance.version == ds.lance.version


def test_a_parameter_that_is_given_empty_stops_the_notebook(tmp_path: Path) -> None:
    """What else stops it is in test_parameters.py."""
    with pytest.raises(AssertionError, match="url_list is empty; leave it out for the default ''"):
        papermill(PROJECT / "notebooks" / "pipeline.ipynb", tmp_path / "out.ipynb", "-p", "url_list", "", cwd=tmp_path)


def tree(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file of a folder with its size and its time of change; but for what git, Python and tools keep there."""
    skip = {".git", ".venv", "outputs", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"}
    files = [path for path in folder.rglob("*") if not skip & set(path.relative_to(folder).parts) and path.is_file()]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def test_explore_runs_headless_on_a_part_of_another_dataset(sample_run: Run, tmp_path: Path) -> None:
    ds = kdepth.open_dataset(sample_run.root)
    first, *_, last = ds.table(columns=["clip_id", "label", "width"]).to_pylist()
    parameters = ["-p", "root", sample_run.root, "-p", "clip_id", last["clip_id"], "-p", "folder", tmp_path / "look"]
    parameters += ["-p", "where", f"label = '{last['label']}'"]
    before = tree(PROJECT), tree(sample_run.root)
    papermill(PROJECT / "notebooks" / "explore.ipynb", tmp_path / "out.ipynb", *parameters, cwd=tmp_path)
    assert (tree(PROJECT), tree(sample_run.root)) == before
    made = {"depth.mp4", "depth.png", "frame.glb", "joined.mkv", "joined.mp4", "jumping.mkv", "jumping.mp4"}
    assert {path.name for path in (tmp_path / "look").iterdir()} == made
    with av.open(str(tmp_path / "look" / "depth.mp4")) as video:
        assert video.streams.video[0].width == 2 * last["width"]
        assert sum(1 for _ in video.decode(video=0)) == ds[last["clip_id"]].row["num_depth_frames"]
    shown = outputs(tmp_path / "out.ipynb")
    assert f"Clip({last['clip_id']}" in shown
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    table = next(cell.outputs[0].data["text/html"] for cell in cells if cell.source.startswith("rows = "))
    assert last["clip_id"] in table
    assert first["clip_id"] not in table
    assert "Flicker is not known" in shown  # that run asked for two frames a second


def test_models_are_judged_headless_on_a_folder_of_ones_own(tmp_path: Path) -> None:
    truth = next(sample_pairs())
    for folder in ("rgb", "depth"):
        (tmp_path / "frames" / "kitchen" / folder).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "frames" / "kitchen" / "rgb" / "a.png"), truth.rgb[..., ::-1])
    with np.errstate(divide="ignore"):
        metres = np.where(truth.true_inverse_depth > 1 / 200, 1 / truth.true_inverse_depth, 0)
    cv2.imwrite(str(tmp_path / "frames" / "kitchen" / "depth" / "a.png"), np.round(256 * metres).astype(np.uint16))
    parameters = [
        "-p",
        "pairs",
        "frames",
        "-p",
        "depth_scale",
        "kitti",
        "-p",
        "max_depth_m",
        "30",
        "-p",
        "root",
        "judged",
    ]
    (tmp_path / "pyproject.toml").touch()  # paths are relative to it
    papermill(PROJECT / "notebooks" / "evaluate.ipynb", tmp_path / "out.ipynb", *parameters, cwd=tmp_path)
    (row,) = pq.read_table(tmp_path / "judged" / "results.parquet").to_pylist()
    assert (row["source"], row["name"], row["kind"]) == ("kitchen", "a", "relative")
    expected = evaluate_models([truth], ["small"], max_depth_m=30.0).to_pylist()[0]
    for score in ("abs_rel", "rmse", "delta1"):
        assert row[score] == pytest.approx(expected[score], rel=0.01)
    assert "1 frames of kitchen" in outputs(tmp_path / "out.ipynb")


@pytest.mark.slow
def test_the_benchmark_measures_everything(tmp_path: Path) -> None:
    parameters = ["-p", "quick", "True", "-p", "root", tmp_path / "b"]
    papermill(PROJECT / "notebooks" / "benchmark.ipynb", tmp_path / "out.ipynb", *parameters, cwd=tmp_path)
    results = json.loads((tmp_path / "b" / "results.json").read_text())
    asked = "dataset_ms downloads gpu long_list pairs_s pipeline samples_s script small start"
    assert sorted(results) == asked.split()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["results.json"]
    # The arithmetic of the ideal, not its size: a busy machine is no fault of the code.
    assert results["pipeline"]["ratio"] == results["pipeline"]["seconds"] / results["pipeline"]["ideal"]
    assert results["pipeline"]["peak_memory_GB"] <= 3.0
    # 4 clips of 2 s, a frame each second; and one frame of each.
    for mode, num_frames in (("1", 8), ("middle", 4)):
        assert results["gpu"][mode]["num_frames"] == num_frames
