"""Datasets that somebody else made: whatever their rows say, nothing outside the root is read or deleted."""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from tiny_dataset import tiny_clip

import kdepth
from kdepth.dataset.writer import ClipWriter
from kdepth.errors import DatasetError, StorageError
from kdepth.schema import CLIP_SCHEMA
from kdepth.storage import Root


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, Any]:
    """A row whose files are whole, in a folder that is not the root."""
    return tiny_clip(tmp_path / "outside", "secret")


def committed(root: Path, *rows: dict[str, Any]) -> kdepth.ClipDataset:
    writer = ClipWriter(root, "run")
    for row in rows:
        writer.add(row)
    writer.finish()
    return kdepth.open_dataset(root)


def whole_tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


OUTSIDE = ("{absolute}", "../outside/{name}", "360p/../../outside/{name}", "360p/link.mp4", "file://{absolute}", "..")
NOT_A_ROWS = ("depth/folder/a.mp4", "archives/a.json", "clips.parquet", "360p/", "360p/..", "", ".")


@pytest.mark.parametrize("pattern", OUTSIDE + NOT_A_ROWS)
@pytest.mark.parametrize("kind", ["video", "depth"])
def test_a_row_that_names_a_file_outside_the_root(
    tmp_path: Path, outside: dict[str, Any], pattern: str, kind: str
) -> None:
    root, secret = tmp_path / "root", tmp_path / "outside" / outside[f"{kind}_path"]
    good = tiny_clip(root, "good")
    (root / "360p" / "link.mp4").symlink_to(secret)
    (root / "archives").mkdir()
    (root / "archives" / "a.json").write_text("{}")
    name = pattern.format(absolute=secret, name=outside[f"{kind}_path"])
    ds = committed(root, good, {**tiny_clip(root, "bad"), f"{kind}_path": name})
    before = whole_tree(tmp_path / "outside") | whole_tree(root / "archives")
    clip = ds["bad"]
    read = clip.frame if kind == "video" else clip.inverse_depth
    for call in (
        lambda: read(2),
        lambda: clip.file_bytes(kind),
        lambda: getattr(clip, f"{kind}_path"),
        lambda: kdepth.torch_dataset(root, where="clip_id = 'bad'")[0],
        lambda: kdepth.pack(root, tmp_path / "packed.lance"),
    ):
        with pytest.raises(DatasetError):
            call()
    assert not (tmp_path / "packed.lance").exists()
    assert [row["clip_id"] for row in ds.verify(delete=True).to_pylist()] == ["bad"]
    assert "DatasetError" in clip._repr_html_()
    ds.clean()
    assert whole_tree(tmp_path / "outside") | whole_tree(root / "archives") == before
    assert (root / "clips.parquet").is_file()
    assert ds["good"].frame(2).shape == (36, 64, 3)


def test_a_folder_of_the_root_that_is_a_link(tmp_path: Path, outside: dict[str, Any]) -> None:
    root = tmp_path / "root"
    ds = committed(root, {**outside, "clip_id": "a"})
    for folder in ("360p", "depth"):
        (root / folder).symlink_to(tmp_path / "outside" / folder)
    before = whole_tree(tmp_path / "outside")
    for call in (lambda: ds["a"].frame(0), lambda: ds["a"].inverse_depth(0), lambda: ds["a"].video_path):
        with pytest.raises(DatasetError, match="is a link"):
            call()
    with pytest.raises(DatasetError, match="is not there"):
        kdepth.pack(root, tmp_path / "packed.lance")
    assert ds.verify(delete=True).num_rows == 2
    with pytest.raises(StorageError, match="is a link"):
        ds.clean()
    assert whole_tree(tmp_path / "outside") == before


@pytest.mark.parametrize("folder", ["raw", "360p", "depth", "archives", "runs"])
def test_a_run_deletes_nothing_behind_a_link(tmp_path: Path, folder: str) -> None:
    home = tmp_path / "home"
    (home / "mine.yt-dlp").mkdir(parents=True)
    for name in ("thesis.part", "a.lock", "b.0123456789.part", "c.json.1.part", "mine.yt-dlp/film", "run"):
        (home / name).write_text("mine")
    root = tmp_path / "root"
    root.mkdir()
    (root / folder).symlink_to(home)
    before = whole_tree(home)
    with pytest.raises(StorageError, match="is a link"), Root(root).in_use("run"):
        pass
    assert whole_tree(home) == before


def test_links_among_the_files_are_not_files(tmp_path: Path, outside: dict[str, Any]) -> None:
    root = Root(tmp_path / "root")
    (root.work / "360p").mkdir(parents=True)
    video = tmp_path / "outside" / outside["video_path"]
    (root.work / outside["video_path"]).symlink_to(video)
    (root.work / "360p" / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    assert root.sizes("360p") == {}
    assert root.made_before(math.inf) == {}
    with pytest.raises(DatasetError, match="is a link"):
        root.delete(outside["video_path"])
    assert video.is_file()


def test_blobs_that_lie_outside_a_packed_dataset(tmp_path: Path, outside: dict[str, Any]) -> None:
    rows = [{**outside, "clip_id": "a"}]
    schema = pa.schema([*CLIP_SCHEMA, lance.blob_field("video"), lance.blob_field("depth")])
    paths = [tmp_path / "outside" / outside[name] for name in ("video_path", "depth_path")]
    files = [lance.blob_array([path.as_uri()]) for path in paths]
    columns = pa.Table.from_pylist(rows, schema=CLIP_SCHEMA).combine_chunks().to_batches()[0].columns
    table = pa.Table.from_arrays([*columns, *files], schema=schema)
    uri = tmp_path / "packed.lance"
    lance.write_dataset(table, uri, data_storage_version="2.2", allow_external_blob_outside_bases=True)
    clip = kdepth.open_dataset(uri)["a"]
    for call in (lambda: clip.frame(0), lambda: clip.inverse_depth(0), lambda: clip.file_bytes("depth")):
        with pytest.raises(DatasetError, match="not in the packed dataset, but at file:///"):
            call()


def test_a_table_that_takes_its_rows_from_elsewhere(tmp_path: Path, outside: dict[str, Any]) -> None:
    ds = committed(tmp_path / "root", outside)
    ds.lance.shallow_clone(str(tmp_path / "clone" / "clips.lance"), ds.lance.version)
    for call in (lambda: kdepth.open_dataset(tmp_path / "clone"), lambda: ClipWriter(tmp_path / "clone", "run")):
        with pytest.raises(DatasetError, match="takes its data from other places"):
            call()


def test_a_columns_name_does_not_reach_the_terminal_raw(tmp_path: Path, outside: dict[str, Any]) -> None:
    ds = committed(tmp_path / "root", outside)
    ds.lance.add_columns(pa.schema([pa.field("\x1b[31mred\n", pa.int32())]))
    ds = kdepth.open_dataset(tmp_path / "root")
    for options in ({"columns": ["x"]}, {"where": "rde = 1"}):
        with pytest.raises(ValueError, match=r"\\x1b\[31mred\\n") as raised:
            ds.table(**options)
        assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_a_work_folder_in_which_others_could_exchange_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    work = Root("s3://bucket/kinetics").work
    assert work.stat().st_mode & 0o777 == 0o700
    assert Root("s3://bucket/kinetics").work == work
    if kind == "open to others":
        work.chmod(0o777)
    else:
        shutil.rmtree(work)
        if kind == "a link":
            (tmp_path / "elsewhere").mkdir(mode=0o700)
            work.symlink_to(tmp_path / "elsewhere")
        else:
            work.write_text("")
    with pytest.raises(StorageError, match="who could exchange files there"):
        Root("s3://bucket/kinetics")
