"""What the README shows, runs."""

import base64
import re
from pathlib import Path
from typing import Any

import cv2
import nbformat
import numpy as np
import pytest
from conftest import Run

import kdepth

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text()


def test_ci_runs_the_command_that_the_readme_gives() -> None:
    command = "pip install uv && uv run pytest"
    assert f"\n{command}\n" in README
    assert (PROJECT / ".ci" / "run").read_text().rstrip().endswith(command)
    assert "\npip install uv && uv run papermill notebooks/pipeline.ipynb outputs/pipeline.ipynb\n" in README


def test_the_api_that_it_shows_works(sample_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    first = next(block for block in blocks if "open_dataset" in block)
    second = next(block for block in blocks if "save_depth" in block)
    assert len(first.splitlines()) <= 16
    clip_id = next(iter(kdepth.open_dataset(sample_run.root))).clip_id
    # The dataset of the tests has other clips and two frames a second.
    first = first.replace('"outputs/kinetics"', repr(str(sample_run.root)))
    first = re.sub(r'ds\["[^"]+"\]', f"ds[{clip_id!r}]", first)
    names: dict[str, Any] = {}
    exec(compile(first, "README.md", "exec"), names)
    assert names["clip"].row["status"] == "ok"

    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    exec(compile(second, "README.md", "exec"), names)
    clip, frame = names["clip"], names["nearest"]["frame"]
    every = ((frame["p95"], clip.clip_id, frame["index"]) for clip in names["ds"] for frame in clip.row["frames"])
    assert max(every)[1:] == (clip.clip_id, frame)
    grey = cv2.imread("outputs/nearest.png", cv2.IMREAD_UNCHANGED)
    assert grey.dtype == np.uint16
    depth = clip.inverse_depth(frame)
    greatest = max(frame["max"] for frame in clip.row["frames"])
    assert np.abs(grey / 65535 * greatest - depth).max() < 1e-4 * greatest
    assert Path("outputs/nearest.mp4").stat().st_size > 1000


def test_files_that_it_points_to_are_there() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README):
        assert (PROJECT / target).exists(), target


def test_its_pictures_are_what_the_notebooks_show() -> None:
    shown = set()
    for path in (PROJECT / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                shown.add(base64.b64decode(output.get("data", {}).get("image/jpeg", "")))
    pictures = [PROJECT / target for target in re.findall(r"!\[[^]]*\]\((notebooks/figures/[^)]+)\)", README)]
    assert len(pictures) == 4
    for picture in pictures:
        assert picture.read_bytes() in shown, picture
