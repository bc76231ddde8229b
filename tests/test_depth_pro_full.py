"""Depth Pro with its 952 M parameters (random ones) against transformers: 15 minutes, 13 GB of memory, 8 GB of disk.

`uv run pytest -m slow -n0 -s tests/test_depth_pro_full.py` prints seconds, memory and errors of each way, in turns.
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

    def measure(way: str, dtype: str, path: Path, frames: Path, reference: Path | None, *focal: float) -> Path:
        out = tmp_path / f"{len(rows)}.npz"
        row = {"way": way, "dtype": dtype, "path": path.name, "frames": frames.stem}
        row |= run(way, dtype, path, frames, out, *focal)
        rows.append(row | (relative_error(out, reference) if reference else {}))
        print(json.dumps(rows[-1]), flush=True)
        return out

    for height, width in ((360, 640), (640, 360)):  # two turns
        frames = tmp_path / f"{width}x{height}.npy"
        np.save(frames, make_frames(1, height, width))
        reference = measure("eager", "float32", folder, frames, None)
        measure("kdepth", "float32", folder, frames, reference)
        measure("kdepth", "bfloat16", folder, frames, reference)
        apple = measure("kdepth", "float32", apple_of(folder), frames, reference)
        # The comparison means something: the depth is not flat.
        expected = np.load(reference)["inverse_depth"]
        assert expected.std() > 0.01 * expected.mean()
    focal = float(np.load(apple)["focal_length_px"][0])
    given = measure("kdepth", "bfloat16", apple_of(folder), frames, reference, focal)
    assert np.load(given)["focal_length_px"] == np.float32(focal)

    for row in rows:
        if row["way"] == "kdepth":
            is_exact = row["dtype"] == "float32"
            assert row["peak_resident_GB"] <= (10 if is_exact else 6.5), row
            limits = (1e-4, 1e-4, 1e-4) if is_exact else (0.01, 0.05, 0.05)
            assert all(row[of] <= limit for of, limit in zip(("median", "p99", "focal"), limits, strict=True)), row
            assert not is_exact or row["max"] <= 1e-4, row
