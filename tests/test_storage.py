"""A root in an object store, against a real S3 server on this machine; a packed dataset; pairs for training."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from http_server import serve
from pipeline_run import run_here, run_pipeline

import kdepth
from kdepth import samples
from kdepth.dataset.torch_dataset import _intrinsics
from kdepth.errors import DatasetError, StorageError
from kdepth.storage import Root


def test_files_of_a_store_behave_like_those_of_a_folder(s3: str, tmp_path: Path) -> None:
    for root in (Root(tmp_path / "root"), Root(f"{s3}/files")):
        copy = pickle.loads(pickle.dumps(root))
        assert copy.uri == root.uri
        assert root.size("raw/a.mp4") is None
        assert root.sizes("raw") == {}
        with root.writing("raw/a.mp4") as path:
            path.write_bytes(b"0123456789")
        assert copy.size("raw/a.mp4") == 10
        assert root.sizes("raw") == {"raw/a.mp4": 10}
        with root.reading("raw/a.mp4") as path:
            assert path.read_bytes() == b"0123456789"
        with pytest.raises(RuntimeError), root.writing("raw/b.mp4") as path:
            raise RuntimeError
        assert root.size("raw/b.mp4") is None
        root.delete("raw/a.mp4")
        root.delete("raw/a.mp4")
        assert root.size("raw/a.mp4") is None


def test_no_whole_file_stays_in_the_work_folder_of_a_store(s3: str) -> None:
    root, name = Root(f"{s3}-that-is-not-there/files"), "raw/a.0123456789-01234567.mp4"
    with pytest.raises(OSError, match="bucket"), root.writing(name) as path:
        path.write_bytes(b"whole")
    assert not path.exists()
    root = Root(f"{s3}/left")
    broken = ["raw/a.0123456789.mp4.part", "raw/a.0123456789.mp4.part.json"]  # of a download, which goes on
    for left in (name, "360p/a.0123456789-01234567.mp4", "depth/a.0123456789-01234567.mkv", *broken):
        (root.work / left).parent.mkdir(exist_ok=True)
        (root.work / left).touch()
    with root.in_use("run"):
        pass
    assert sorted(str(path.relative_to(root.work)) for path in root.work.rglob("*") if path.is_file()) == broken


@pytest.mark.skipif(os.getuid() != 0, reason="gives a folder to another user")
def test_a_folder_that_another_user_made_is_not_worked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    work = Root("s3://bucket/kinetics").work
    assert work.stat().st_mode & 0o777 == 0o700
    os.chown(work, 12345, 12345)
    with pytest.raises(StorageError, match="somebody else"):
        Root("s3://bucket/kinetics")


def test_the_whole_pipeline_on_an_object_store(ray_cluster: None, s3: str, tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    (first, path), (second, packed), *_ = samples.rendered_clips().items()
    shutil.copy(path, served / f"{first}.mp4")
    with tarfile.open(served / "part.tar.gz", "w:gz") as tar:
        tar.add(packed, f"{second}.mp4")
    (served / "page.mp4").write_text("<html>not a video</html>")
    url_list = tmp_path / "urls.txt"
    roots = (f"{s3}/kinetics", str(tmp_path / "local"))
    with serve(served) as server:
        url_list.write_text("\n".join(server.url(path.name) for path in sorted(served.iterdir())))
        report = run_pipeline(kdepth.read_sources(url_list), roots[0], frames="2")
        assert (report.num_ok, report.num_failed) == (2, 1)
        run_here(kdepth.read_sources(url_list), roots[1], frames="2")
    assert kdepth.pending(kdepth.read_sources(url_list), roots[0], frames="2").num_rows == 0
    remote, local = (kdepth.open_dataset(root) for root in roots)
    passing = ("seconds", "_at", "run_id", "download_attempts", "_path")  # names of files are made anew each time
    columns = [name for name in kdepth.COLUMNS if not name.endswith(passing) or name == "duration_seconds"]
    assert remote.table(columns=columns).to_pylist() == local.table(columns=columns).to_pylist()
    for there, here in zip(remote, local, strict=True):
        assert there.file_bytes("video") == here.file_bytes("video")
        assert there.file_bytes("depth") == here.file_bytes("depth")
        index = here.depth_indices[-1]
        assert np.array_equal(there.frame(index), here.frame(index))
        assert np.array_equal(there.inverse_depth(index), here.inverse_depth(index))
        with pytest.raises(DatasetError, match="has no files in a folder"):
            _ = there.video_path
    assert remote.verify().num_rows == 0
    assert Root(roots[0]).size("clips.parquet")
    with contextlib.suppress(FileNotFoundError):
        assert not [path for path in Root(roots[0]).work.rglob("*") if path.is_file()]


def test_a_packed_dataset_reads_like_a_root(sample_run: Run, tmp_path: Path) -> None:
    uri = tmp_path / "packed.lance"
    kdepth.pack(sample_run.root, uri)
    moved = (tmp_path / "elsewhere.lance").resolve()
    shutil.move(uri, moved)
    packed, root = kdepth.open_dataset(moved), kdepth.open_dataset(sample_run.root)
    assert packed.table().equals(root.table())
    for there, here in zip(packed, root, strict=True):
        assert there.file_bytes("video") == here.video_path.read_bytes()
        assert there.file_bytes("depth") == here.depth_path.read_bytes()
        index = here.depth_indices[1]
        assert np.array_equal(there.frame(index), here.frame(index))
        assert np.array_equal(there.inverse_depth(index), here.inverse_depth(index))
    assert packed.verify().num_rows == 0
    with pytest.raises(ValueError, match="pack the root again"):
        packed.verify(delete=True)
    with pytest.raises(DatasetError, match="exists already"):
        kdepth.pack(sample_run.root, moved)


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_pairs_for_a_data_loader(sample_run: Run, context: str) -> None:
    import torch
    from torch.utils.data import DataLoader

    pairs = kdepth.torch_dataset(sample_run.root, size=(90, 160), seed=3)
    ds = kdepth.open_dataset(sample_run.root)
    assert len(pairs) == sum(clip.row["num_depth_frames"] for clip in ds)
    seen = []
    loader = DataLoader(pairs, batch_size=4, num_workers=2, multiprocessing_context=context)  # type: ignore[arg-type]
    for rgb, inverse_depth, meta in loader:
        assert (rgb.dtype, inverse_depth.dtype) == (torch.uint8, torch.float32)
        assert rgb.shape[1:] == (90, 160, 3)
        assert inverse_depth.shape[1:] == (90, 160)
        seen += list(zip(meta["clip_id"], meta["index"].tolist(), strict=True))
    assert len(set(seen)) == len(pairs)
    assert repr(pairs).endswith("clips, 160x90)")
    for size in ((0, 5), 180, (3,)):
        with pytest.raises(ValueError, match="must be"):
            kdepth.torch_dataset(sample_run.root, size=size)  # type: ignore[arg-type]
    same, other = (kdepth.torch_dataset(sample_run.root, seed=seed) for seed in (3, 4))
    assert [(same[n][2]["clip_id"], same[n][2]["index"]) for n in range(6)] == seen[:6]
    assert [(other[n][2]["clip_id"], other[n][2]["index"]) for n in range(6)] != seen[:6]
    rgb, inverse_depth, meta = same[0]
    clip = ds[meta["clip_id"]]
    assert np.array_equal(rgb, clip.frame(meta["index"]))
    assert np.array_equal(inverse_depth, clip.inverse_depth(meta["index"]))


def test_intrinsics_follow_the_size() -> None:
    found = _intrinsics(500.0, (360, 640, 3), (180, 160, 3))
    np.testing.assert_array_equal(found, [[125, 0, 80], [0, 250, 90], [0, 0, 1]])
    assert np.isnan(_intrinsics(float("nan"), (360, 640, 3), (180, 160, 3))[0, 0])


def test_pairs_of_a_packed_dataset_need_processes_that_are_not_forked(sample_run: Run, tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    kdepth.pack(sample_run.root, tmp_path / "packed.lance")
    pairs = kdepth.torch_dataset(tmp_path / "packed.lance", where="label = 'setting a table'", size=(90, 160))
    with pytest.raises(DatasetError, match="spawn"):
        list(DataLoader(pairs, num_workers=1, multiprocessing_context="fork"))
    with pytest.raises(DatasetError, match="no depth frame"):
        kdepth.torch_dataset(tmp_path / "packed.lance", where="label = 'no such'")


def test_project_path_leaves_uris_alone() -> None:
    assert kdepth.project_path("s3://bucket/kinetics") == "s3://bucket/kinetics"
    assert kdepth.project_path("outputs") == Path(os.getcwd()) / "outputs"
