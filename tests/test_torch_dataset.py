"""Short clips for training: windows of frames within a shot, in one process and in workers, from any kind of root."""

from __future__ import annotations

import sys
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from tiny_dataset import HEIGHT, RATE, WIDTH, tiny_clip
from torch.utils.data import ConcatDataset, DataLoader

import kdepth
from kdepth.dataset.writer import ClipWriter
from kdepth.errors import DatasetError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Clips of 6, 20 and 20 frames; the last one has cuts before frames 7 and 12."""
    root = tmp_path / "root"
    writer = ClipWriter(root, "run")
    writer.add(tiny_clip(root, "a", num_frames=6, label="x", split="val"))
    writer.add(tiny_clip(root, "b", num_frames=20, label="y", scale=2.0))
    writer.add(tiny_clip(root, "c", num_frames=20, kind="relative"))
    writer.finish()
    table = lance.dataset(str(root / "clips.lance"))
    if "shots" not in table.schema.names:
        table.add_columns(pa.schema([("shots", pa.list_(pa.int32()))]))
    shots = pa.table({"clip_id": ["c"], "shots": pa.array([[0, 7, 12]], pa.list_(pa.int32()))})
    table.merge_insert("clip_id").use_index(False).when_matched_update_all().execute(
        shots.cast(pa.schema([table.schema.field("clip_id").remove_metadata(), table.schema.field("shots")]))
    )
    return root


def test_a_sample_is_a_window_of_frames_with_their_depth(root: Path) -> None:
    samples = kdepth.torch_dataset(root, num_frames=4, step=2, size=(18, 48))
    ds = kdepth.open_dataset(root)
    # a: too short for 7 frames; b: from 0 and 8; c: shots of 7, 5 and 8 frames.
    where = [(meta["clip_id"], meta["index"].tolist(), meta["shot"]) for _, _, meta in samples]
    assert where == [
        ("b", [0, 2, 4, 6], 0),
        ("b", [8, 10, 12, 14], 0),
        ("c", [0, 2, 4, 6], 0),
        ("c", [12, 14, 16, 18], 2),
    ]
    assert samples.num_too_short == 1
    assert repr(samples) == "DepthSamples(4 samples of 4 frames of 2 clips, 1 too short, 48x18)"
    rgb, inverse_depth, meta = samples[1]
    assert (rgb.dtype, rgb.shape) == (np.uint8, (4, 3, 18, 48))
    assert (inverse_depth.dtype, inverse_depth.shape) == (np.float32, (4, 18, 48))
    assert meta["time_seconds"].tolist() == pytest.approx([index / RATE for index in (8, 10, 12, 14)])
    assert (meta["label"], meta["label_index"], samples.labels) == ("y", 1, ["x", "y"])
    expected = [[50 * 48 / WIDTH, 0, 24], [0, 50 * 18 / HEIGHT, 9], [0, 0, 1]]
    np.testing.assert_allclose(meta["intrinsics"], expected)
    _, _, unknown = samples[2]
    assert (unknown["label"], unknown["label_index"], unknown["depth_kind"]) == ("", -1, "relative")
    assert np.isnan(unknown["intrinsics"][0, 0])
    whole = kdepth.torch_dataset(root, num_frames=4, step=2)
    rgb, inverse_depth, meta = whole[1]
    for number, index in enumerate(meta["index"]):
        assert np.array_equal(rgb[number].transpose(1, 2, 0), ds["b"].frame(index))
        assert np.array_equal(inverse_depth[number], ds["b"].inverse_depth(index))


def test_one_frame_a_sample_is_a_pair(root: Path) -> None:
    pairs = kdepth.torch_dataset(root)
    assert len(pairs) == 46
    rgb, inverse_depth, meta = pairs[8]
    clip = kdepth.open_dataset(root)["b"]
    assert (meta["clip_id"], meta["index"], meta["time_seconds"]) == ("b", 2, 0.2)
    assert np.array_equal(rgb, clip.frame(2))
    assert np.array_equal(inverse_depth, clip.inverse_depth(2))
    rare = kdepth.torch_dataset(root, step=5, where="clip_id = 'b'")
    assert [rare[k][2]["index"] for k in range(len(rare))] == [0, 5, 10, 15]


def test_what_can_not_be_sampled_is_said(root: Path) -> None:
    for options in ({"num_frames": 0}, {"step": 0}, {"num_frames": 1.5}):
        with pytest.raises(ValueError, match="must be a whole number >= 1"):
            kdepth.torch_dataset(root, **options)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="no depth frame with 16 frames of one shot, 2 apart in"):
        kdepth.torch_dataset(root, num_frames=16, step=2)
    clip = kdepth.open_dataset(root)["b"]
    samples = kdepth.torch_dataset(root, num_frames=4, where="clip_id = 'b'")
    content = bytearray(clip.depth_path.read_bytes())
    content[len(content) // 2] ^= 255
    clip.depth_path.write_bytes(content)
    with pytest.raises(DatasetError, match="is damaged"):
        [samples[k] for k in range(len(samples))]


def test_workers_with_another_working_directory(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Spawning looks there; a process of pytest-xdist has none.
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None, raising=False)
    monkeypatch.chdir(tmp_path)
    kdepth.pack("root", "packed")
    places = ("root", "packed")
    samples, again = (
        ConcatDataset([kdepth.torch_dataset(place, num_frames=2, step=3, size=(18, 32), seed=1) for place in places])
        for _ in range(2)
    )
    monkeypatch.chdir("/")
    loader = DataLoader(samples, batch_size=2, num_workers=1, multiprocessing_context="spawn", persistent_workers=True)
    for _ in range(2):  # the workers go on for a second epoch
        batches = list(loader)
        seen = [clip_id for _, _, meta in batches for clip_id in meta["clip_id"]]
        assert seen == [again[k][2]["clip_id"] for k in range(len(again))]
        assert {tuple(rgb.shape[1:]) for rgb, _, _ in batches} == {(2, 3, 18, 32)}


def test_samples_of_an_object_store(s3: str, tmp_path: Path) -> None:
    root = f"{s3}/{tmp_path.name}"
    writer = ClipWriter(root, "run")
    writer.add(tiny_clip(root, "a", num_frames=8))
    writer.finish()
    rgb, inverse_depth, meta = kdepth.torch_dataset(root, num_frames=4)[1]
    clip = kdepth.open_dataset(root)["a"]
    assert meta["index"].tolist() == [4, 5, 6, 7]
    assert np.array_equal(rgb[3].transpose(1, 2, 0), clip.frame(7))
    assert np.array_equal(inverse_depth[3], clip.inverse_depth(7))
