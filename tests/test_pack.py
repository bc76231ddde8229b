"""A dataset in one piece: where it may be written, what it costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import datasets
import lance
import numpy as np
import pyarrow as pa
import pytest
from tiny_dataset import tiny_clip

import kdepth
from kdepth.dataset.writer import ClipWriter
from kdepth.errors import DatasetError
from kdepth.schema import FAILED, OK, new_row

PACK = r"""
import re, sys
import kdepth
kdepth.pack(sys.argv[1], sys.argv[2])
# Not getrusage's: that begins with the size of the process that started this one.
print(int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) // 1024)
"""


def committed(root: str | Path, *rows: dict[str, object]) -> None:
    writer = ClipWriter(root, "run")
    for row in rows:
        writer.add(row)
    writer.finish()


def test_the_datasets_library_opens_what_was_packed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    committed(
        root,
        tiny_clip(root, "a", label="x"),
        tiny_clip(root, "b", kind="relative"),
        new_row(clip_id="c", status=FAILED, error_message="no"),
    )
    table = lance.dataset(str(root / "clips.lance"))
    table.add_columns(pa.schema([("mine", pa.list_(pa.float64())), ("day", pa.date32())]))
    kdepth.pack(root, tmp_path / "packed")
    ds = kdepth.open_dataset(tmp_path / "packed")
    loaded = datasets.load_dataset(str(tmp_path / "packed"), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.column_names == [*ds.column_names, "video", "depth"]
    rows = {row["clip_id"]: row for row in loaded}
    assert sorted(rows) == ["a", "b", "c"]
    for clip in ds:
        row = rows[clip.clip_id]
        assert {name: row[name] for name in ds.column_names} == clip.row
        assert (row["video"], row["depth"]) == (clip.file_bytes("video"), clip.file_bytes("depth"))
    assert (rows["c"]["video"], rows["c"]["error_message"]) == (None, "no")
    card = (tmp_path / "packed" / "README.md").read_text()
    assert "# 2 video clips with depth" in card
    assert "- ramp@0 (metric): 1 clips" in card
    assert all(f"| `{name}` | " in card for name in loaded.column_names)


def test_memory_does_not_grow_with_the_clips(tmp_path: Path) -> None:
    rows = []
    for number in range(2):
        names = {"video_path": f"360p/{number}.mp4", "depth_path": f"depth/{number}.mkv"}
        for name, num_bytes in zip(names.values(), (10_000, 300 * 2**20), strict=True):
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.truncate(path, num_bytes)
        rows.append(new_row(clip_id=f"{number}", status=OK, **names))
    committed(tmp_path / "root", *rows, new_row(clip_id="failed", status=FAILED))
    command = [sys.executable, "-c", PACK, str(tmp_path / "root"), str(tmp_path / "packed.lance")]
    peak_mb = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert peak_mb < 500
    packed = kdepth.open_dataset(tmp_path / "packed.lance")
    assert [packed.open_file(row, "depth").size() for row in rows] == [300 * 2**20] * 2
    assert packed["failed"].file_bytes("depth") is None


@pytest.mark.parametrize("place", ["folder", "store"])
def test_a_place_that_is_not_empty_is_refused(request: pytest.FixtureRequest, tmp_path: Path, place: str) -> None:
    base = str(tmp_path / "a # b%20") if place == "folder" else f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    committed(f"{base}/root", tiny_clip(f"{base}/root", "a"))
    for target in (f"{base}/root", f"{base}/root/clips.lance", f"{base}/root/360p", base):
        with pytest.raises(DatasetError, match="exists already"):
            kdepth.pack(f"{base}/root", target)
    if place == "folder":
        (tmp_path / "file").write_text("")
        (tmp_path / "empty").mkdir()
        with pytest.raises(DatasetError, match="exists already"):
            kdepth.pack(f"{base}/root", tmp_path / "file")
        kdepth.pack(f"{base}/root", tmp_path / "empty")
    kdepth.pack(f"{base}/root", f"{base}/packed.lance")
    there, here = kdepth.open_dataset(f"{base}/packed.lance")["a"], kdepth.open_dataset(f"{base}/root")["a"]
    assert np.array_equal(there.inverse_depth(2), here.inverse_depth(2))
    assert there.file_bytes("video") == here.file_bytes("video")
    with pytest.raises(DatasetError, match="is packed already"):
        kdepth.pack(f"{base}/packed.lance", f"{base}/again.lance")
