"""Clips and datasets in odd states, as a reader meets them: what is missing is said, nothing good is deleted."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import Run
from tiny_dataset import tiny_clip

import kdepth
from kdepth import plots
from kdepth.dataset.writer import ClipWriter
from kdepth.errors import DatasetError
from kdepth.schema import FAILED, OK, new_row
from kdepth.storage import Root
from kdepth.video.ffmpeg import ffmpeg_path
from kdepth.video.frames import read_frame_at


@pytest.fixture
def root(sample_run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_run.root, tmp_path / "copy"))


def without_depth(root: Path) -> kdepth.ClipDataset:
    """As a pipeline leaves it that ended before the depth stage, or before the transcode stage."""
    writer = ClipWriter(root, "run")
    video = {"video_path": "360p/video.mp4", "width": 64, "height": 36, "num_frames": 3, "duration_seconds": 1.0}
    writer.add(new_row(clip_id="video", status=OK, **video))
    writer.add(new_row(clip_id="raw", status=OK, raw_path="raw/raw.mp4"))
    writer.add(new_row(clip_id="failed", status=FAILED, failed_stage="download", error_type="E", error_message="no"))
    writer.finish()
    return kdepth.open_dataset(root)


def test_verify_deletes_only_what_is_damaged(root: Path) -> None:
    ds = kdepth.open_dataset(root)
    unreadable, damaged, missing, good = list(ds)[:4]
    unreadable.depth_path.unlink()
    unreadable.depth_path.mkdir()  # opening it is an error of the system's, as with too many open files
    shutil.copy(good.depth_path, damaged.depth_path)
    missing.video_path.unlink()
    found = ds.verify(delete=True)
    assert sorted(found["clip_id"].to_pylist()) == sorted(clip.clip_id for clip in (unreadable, damaged, missing))
    assert found.num_rows == 3
    assert unreadable.depth_path.is_dir()
    assert not damaged.depth_path.exists()
    assert damaged.video_path.is_file()
    assert good.depth_path.is_file()


@pytest.mark.parametrize("damage", ["cut off", "a byte changed"])
def test_depth_that_is_not_what_was_written_is_not_exported(tmp_path: Path, damage: str) -> None:
    for kind in ("metric", "relative"):
        writer = ClipWriter(tmp_path, kind)
        writer.add(tiny_clip(tmp_path, kind, kind=kind))
        writer.finish()
        path = kdepth.open_dataset(tmp_path)[kind].depth_path
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content[: len(content) // 2] if damage == "cut off" else content)
        clip = kdepth.open_dataset(tmp_path)[kind]
        with pytest.raises(DatasetError, match="is not what was written"):
            clip.save_depth(tmp_path / "depth.npz")
        with pytest.raises(DatasetError, match="is not what was written"):
            clip.scale_jumps()
    with pytest.raises(DatasetError, match="is not what was written"):
        clip.inverse_depth(0, stable=True)  # of a relative model: by the depth of all frames


def test_a_clip_is_found_by_its_id_alone(root: Path) -> None:
    ds = kdepth.open_dataset(root)
    clip_id = next(iter(ds)).clip_id
    assert clip_id in ds
    assert "it's not" not in ds
    assert 0 not in ds
    for wrong in (0, ds.table()["clip_id"][0]):
        with pytest.raises(TypeError, match="found by its clip_id"):
            ds[wrong]
    assert ds.table(columns="clip_id").column_names == ["clip_id"]
    with pytest.raises(TypeError, match=r"as_of=1\.5"):
        kdepth.open_dataset(root, as_of=1.5)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="give the folder it is in"):
        kdepth.open_dataset(root / "clips.lance")


def test_a_table_that_is_gone_is_not_blamed_on_a_condition(tmp_path: Path) -> None:
    ds = without_depth(tmp_path)
    shutil.rmtree(tmp_path / "clips.lance" / "data")
    with pytest.raises(DatasetError, match=r"clips\.lance can't be read"):
        ds.table()


def test_an_empty_answer_has_its_columns(root: Path) -> None:
    found = kdepth.open_dataset(root).sql("select clip_id, label from dataset where label = 'nothing'")
    assert (found.num_rows, found.column_names) == (0, ["clip_id", "label"])


def test_what_a_clip_lacks_is_said(tmp_path: Path) -> None:
    ds = without_depth(tmp_path)
    video, raw, failed = ds["video"], ds["raw"], ds["failed"]
    assert [clip.clip_id for clip in ds] == ["raw", "video"]
    assert len(ds) == 2
    for call in (
        lambda: video.inverse_depth(0),
        lambda: video.depth_m(0, stable=True),
        lambda: video.depth_path,
        lambda: video.save_depth(tmp_path / "a.npz"),
        lambda: plots.show_clips([video]),
        lambda: video.scale_jumps(),
        lambda: plots.statistics_over_time(video),
    ):
        with pytest.raises(DatasetError, match="video has no depth: the pipeline that made it ended before"):
            call()
    with pytest.raises(DatasetError, match="raw has no video"):
        raw.frame(0)
    for call in (
        lambda: failed.rgb_at(0),
        lambda: failed.save_depth(tmp_path / "a.npz"),
        lambda: kdepth.compare_models(failed, ["small", "other"]),
    ):
        with pytest.raises(DatasetError, match="failed failed at download: E: no"):
            call()
    assert "without depth" in repr(video)
    assert [row["path"] for row in ds.verify().to_pylist()] == ["360p/video.mp4"]  # there is no such file


def test_packing_names_the_file_that_is_missing(root: Path, tmp_path: Path) -> None:
    clip = next(iter(kdepth.open_dataset(root)))
    clip.depth_path.unlink()
    with pytest.raises(DatasetError, match=clip.depth_path.name):
        kdepth.pack(root, tmp_path / "packed.lance")


def test_a_clip_goes_to_another_process(root: Path) -> None:
    clip = next(iter(kdepth.open_dataset(root)))
    copy = pickle.loads(pickle.dumps(clip))
    index = clip.depth_indices[0]
    assert np.array_equal(copy.inverse_depth(index), clip.inverse_depth(index))


def test_jumps_are_read_from_a_packed_dataset(root: Path, tmp_path: Path) -> None:
    kdepth.pack(root, tmp_path / "packed.lance")
    packed = next(iter(kdepth.open_dataset(tmp_path / "packed.lance")))
    clip = next(iter(kdepth.open_dataset(root)))
    assert np.array_equal(packed.scale_jumps(), clip.scale_jumps(), equal_nan=True)


def test_a_root_stays_where_it_is(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    ds = kdepth.open_dataset(root.name)
    monkeypatch.chdir("/")
    clip = next(iter(ds))
    assert clip.frame(clip.depth_indices[0]).shape == (clip.row["height"], clip.row["width"], 3)
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(kdepth.open_dataset(f"~/{root.name}")) == len(ds)
    assert Root(f"~/{root.name}").work == root
    with pytest.raises(ValueError, match="not as a Path"):
        kdepth.open_dataset(Path("s3://bucket/root"))


def test_a_video_that_begins_late_shows_its_first_frame_before(tmp_path: Path) -> None:
    path = tmp_path / "late.mp4"
    pictures = ["-f", "lavfi", "-i", "testsrc2=size=64x36:rate=10:duration=1", "-vf", "setpts=PTS+0.6/TB"]
    command = [ffmpeg_path(), "-v", "error", *pictures, "-fps_mode", "passthrough", "-c:v", "libx264", str(path)]
    subprocess.run(command, check=True)
    frames = list(kdepth.read_frames(path))
    times = [frame.time_seconds for frame in frames]
    assert times[0] > 0.4
    for time_seconds, index in ((0.0, 0), (0.3, 0), (times[0], 0), (times[5] + 0.05, 5), (times[9], 9)):
        assert np.array_equal(read_frame_at(path, time_seconds).rgb, frames[index].rgb), time_seconds


def test_a_depth_video_keeps_the_frames_times(root: Path, tmp_path: Path) -> None:
    clip = next(clip for clip in kdepth.open_dataset(root) if len(clip.depth_indices) > 2)
    with av.open(str(plots.depth_video(clip, tmp_path / "depth.mp4"))) as container:
        times = [float(frame.time) for frame in container.decode(video=0)]
    assert times == pytest.approx([frame["time_seconds"] for frame in clip.row["frames"]], abs=1e-3)


def test_a_label_is_no_formula(root: Path, tmp_path: Path) -> None:
    clip = next(iter(kdepth.open_dataset(root)))
    clip.row["label"] = r"pay $\foo$ now"
    plots.show_clips([clip]).savefig(tmp_path / "a.png")
    rows = kdepth.open_dataset(root).table().slice(0, 1)
    column = rows.schema.get_field_index("label")
    rows = rows.set_column(column, rows.schema.field(column), [[r"pay $\foo$ now"]])
    plots.nearness_by_label(rows).figure.savefig(tmp_path / "b.png")
    assert os.path.getsize(tmp_path / "b.png") > 0
