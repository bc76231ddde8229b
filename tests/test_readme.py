"""What the README shows, runs."""

from __future__ import annotations

import base64
import re
import shutil
import sys
from itertools import groupby
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import cv2
import huggingface_hub
import nbformat
import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import Run

import kdepth

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text()
CARD = PROJECT / "notebooks" / "train_small" / "README.md"


def block(word: str) -> str:
    """The one block of Python that has this word."""
    (found,) = (code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if word in code)
    return str(found)


@pytest.fixture
def root(sample_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the samples' dataset where the README has it, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(sample_run.root, tmp_path / "outputs" / "kinetics"))


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 230


def test_ci_runs_the_command_that_the_readme_gives() -> None:
    command = "pip install uv && uv run pytest"
    assert f"\n{command}\n" in README
    assert (PROJECT / ".ci" / "run").read_text().rstrip().endswith(command)
    assert "\npip install uv && uv run papermill notebooks/pipeline.ipynb outputs/pipeline.ipynb\n" in README


def test_the_api_that_it_shows_works(root: Path) -> None:
    first = block("clip.inverse_depth(0)")
    assert len(first.splitlines()) <= 16
    clip_id = next(iter(kdepth.open_dataset(root))).clip_id
    # The dataset of the tests has other clips and two frames a second.
    first = re.sub(r'ds\["[^"]+"\]', f"ds[{clip_id!r}]", first)
    names: dict[str, Any] = {}
    exec(compile(first, "README.md", "exec"), names)
    assert names["clip"].row["status"] == "ok"

    exec(compile(block("save_depth"), "README.md", "exec"), names)
    clip, frame = names["clip"], names["index"]
    every = ((frame["p95"], clip.clip_id, frame["index"]) for clip in names["ds"] for frame in clip.row["frames"])
    assert max(every)[1:] == (clip.clip_id, frame)
    grey = cv2.imread("outputs/nearest.png", cv2.IMREAD_UNCHANGED)
    assert grey.dtype == np.uint16
    depth = clip.inverse_depth(frame)
    greatest = max(frame["max"] for frame in clip.row["frames"])
    assert np.abs(grey / 65535 * greatest - depth).max() < 1e-4 * greatest
    assert Path("outputs/nearest.mp4").stat().st_size > 1000
    assert names["points"].shape == names["colours"].shape
    assert Path("outputs/nearest.glb").read_bytes()[:4] == b"glTF"

    # How any program reads a depth file; the README has it in a sentence.
    assert "capture.read()[1].view(np.float16)" in README
    capture = cv2.VideoCapture(str(clip.depth_path))
    capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
    assert np.array_equal(capture.read()[1].view(np.float16), clip.inverse_depth(clip.depth_indices[0]))


def test_a_dataset_is_kept_moved_and_trained_on_as_it_shows(root: Path) -> None:
    ds = kdepth.open_dataset(root)
    code = block("ds.clean()")
    # The dataset of the tests has six depth frames a clip.
    short = code.replace("num_frames=16, step=2", "num_frames=3, step=2")
    assert short != code
    names: dict[str, Any] = {"kdepth": kdepth, "ds": ds}
    # Only a call that the hub's own function would take is no error.
    hub = {name: mock.create_autospec(getattr(huggingface_hub, name)) for name in ("create_repo", "upload_folder")}
    with mock.patch.multiple(huggingface_hub, **hub):
        exec(compile(short, "README.md", "exec"), names)
    assert ds.lance.tags.list()["paper"]["version"] == ds.lance.version
    assert kdepth.open_dataset("outputs/packed").table().equals(ds.table())
    assert len(names["pairs"]) == sum(clip.row["num_depth_frames"] for clip in ds)
    assert names["rgb"].shape == (3, 3, 180, 320)
    assert names["inverse_depth"].shape == (3, 180, 320)
    assert {"label_index", "intrinsics"} <= set(names["meta"])
    assert Path(hub["upload_folder"].call_args.kwargs["folder_path"], "README.md").is_file()
    assert hub["create_repo"].call_args.kwargs["repo_type"] == hub["upload_folder"].call_args.kwargs["repo_type"]


def test_apples_package_is_asked_as_its_interface_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on no package index. This stand-in has the functions, arguments and results of its code."""

    class Network(torch.nn.Module):
        def infer(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            assert x.shape == (3, 4, 6)
            assert not self.training
            return {"depth": 5 * x[0], "focallength_px": torch.tensor(7.0)}

    config = SimpleNamespace(checkpoint_uri="checkpoints/depth_pro.pt")

    def create(config: Any = config, device: torch.device | None = None) -> tuple[Network, Any]:
        assert config.checkpoint_uri == "/path/to/depth_pro.pt"
        assert device == torch.device("cpu")
        return Network(), lambda picture: torch.from_numpy(picture).permute(2, 0, 1) / 255

    package = ModuleType("depth_pro")
    vars(package).update(depth_pro=SimpleNamespace(DEFAULT_MONODEPTH_CONFIG_DICT=config))
    vars(package).update(create_model_and_transforms=create)
    monkeypatch.setitem(sys.modules, "depth_pro", package)
    (tmp_path / "apple.py").write_text(block("import depth_pro"))
    model = kdepth.load_model(tmp_path / "apple.py", device="cpu")
    assert model.kind == "metric"
    found = model.estimate(np.full((2, 4, 6, 3), 255, np.uint8))
    assert found.inverse_depth == pytest.approx(1 / 5)
    assert found.focal_length_px is not None
    assert found.focal_length_px.tolist() == [7, 7]


def type_name(dtype: pa.DataType) -> str:
    return re.sub(r"struct<.*>(?=>)", "struct", str(dtype)).replace("item: ", "")


def test_its_table_of_columns_is_the_schema() -> None:
    kinds = {name: (type_name(dtype), meaning) for name, (dtype, meaning) in kdepth.COLUMNS.items()}
    lines = [
        f"| {', '.join(f'`{name}`' for name in names)} | `{dtype}` | {meaning} |"
        for (dtype, meaning), names in groupby(kinds, kinds.__getitem__)
    ]
    assert "\n".join(["| column | type | meaning |", "|---|---|---|", *lines, ""]) in README


def test_files_that_it_points_to_are_there() -> None:
    for page in (PROJECT / "README.md", CARD):
        for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", page.read_text()):
            assert (page.parent / target).exists(), target


def test_its_pictures_are_what_the_notebooks_show() -> None:
    shown = set()
    for path in (PROJECT / "notebooks").rglob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                shown.add(base64.b64decode(output.get("data", {}).get("image/jpeg", "")))
    pictures = set((PROJECT / "notebooks" / "figures").iterdir())
    pages = README + CARD.read_text()
    assert {picture.name for picture in pictures} == set(re.findall(r"!\[[^]]*\]\(\S*figures/([^)]+)\)", pages))
    for picture in pictures:
        assert picture.read_bytes() in shown, picture
