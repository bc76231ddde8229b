"""Depth Pro with its 952 M parameters (random ones) against transformers: 10 minutes, 13 GB of memory, 8 GB of disk.

`uv run pytest -m slow -n0 -s tests/test_depth_pro_full.py` prints seconds, memory and errors.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from depth_pro_run import apple_of
from test_models import make_frames

pytestmark = pytest.mark.slow
pytest.importorskip("torchvision", reason="the reference processor needs it; it is in the test group")

SCRIPT = str(Path(__file__).with_name("depth_pro_run.py"))


def run(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1]) if arguments[0] != "make" else {}


def relative_error(way: Path, reference: Path) -> dict[str, float]:
    """Of a frame's inverse depth, and of its focal length."""
    found, expected = np.load(way), np.load(reference)
    error = np.abs(found["inverse_depth"] / expected["inverse_depth"] - 1)
    return {
        "median": float(np.median(error)),
        "p99": float(np.quantile(error, 0.99)),
        "max": float(error.max()),
        "focal": float(abs(found["focal_length_px"] / expected["focal_length_px"] - 1)[0]),
    }


def test_full_size(tmp_path: Path) -> None:
    folder, rows = tmp_path / "DepthPro", []
    run("make", folder)

    def measure(way: str, dtype: str, path: Path, reference: Path | None, *focal: float) -> Path:
        out = tmp_path / f"{len(rows)}.npz"
        row = {"way": way, "dtype": dtype, "path": path.name, **run(way, dtype, path, frames, out, *focal)}
        rows.append(row | (relative_error(out, reference) if reference else {}))
        print(json.dumps(rows[-1]), flush=True)
        return out

    frames = tmp_path / "frames.npy"
    np.save(frames, make_frames(1, 360, 640))
    reference = measure("eager", "float32", folder, None)
    measure("kdepth", "float32", folder, reference)
    port = measure("kdepth", "bfloat16", folder, reference)
    focal = float(np.load(reference)["focal_length_px"][0])
    apple = measure("kdepth", "bfloat16", apple_of(folder), reference, focal)

    for row in rows:
        if row["way"] == "kdepth":
            assert row["peak_GB"] <= 5, row
            limits = (1e-4, 1e-4, 1e-4) if row["dtype"] == "float32" else (0.01, 0.05, 0.05)
            assert all(row[of] <= limit for of, limit in zip(("median", "p99", "focal"), limits, strict=True)), row
            assert row["dtype"] != "float32" or row["max"] <= 1e-4, row
    np.testing.assert_allclose(np.load(apple)["inverse_depth"], np.load(port)["inverse_depth"], rtol=0.05)
    # The comparison means something: the depth is not flat.
    expected = np.load(reference)["inverse_depth"]
    assert expected.std() > 0.01 * expected.mean()
