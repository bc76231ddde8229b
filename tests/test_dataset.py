import math
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Run

import kdepth
from kdepth import plots
from kdepth.dataset.table import read_rows
from kdepth.dataset.writer import ClipWriter
from kdepth.errors import DatasetError
from kdepth.schema import CLIP_SCHEMA, FAILED, OK, new_row, rows_to_table


def rows(names: str, **columns: object) -> list[dict[str, object]]:
    return [new_row(**{"clip_id": name, "status": OK} | columns) for name in names]


def test_rows_come_back_as_they_were_committed_with_the_run_that_did(tmp_path: Path) -> None:
    writer = ClipWriter(tmp_path, "run-1")
    before = datetime.now(UTC)
    frames = [
        {
            **dict.fromkeys(("focal_length_px", "min", "p05", "median", "p95", "max"), 0.5),
            "index": 0,
            "time_seconds": 0.0,
            "crc32": 2**32 - 1,
        }
    ]
    writer.add(new_row(clip_id="a", status=OK, label="it's", frames=frames, depth_thumbnail=[0.25] * 144, width=640))
    writer.add(new_row(clip_id="b", status=FAILED, failed_stage="download", error_type="HttpStatusError"))
    writer.finish()
    ds = kdepth.open_dataset(tmp_path)
    assert [clip.clip_id for clip in ds] == ["a"]
    assert (len(ds), ds.lance.count_rows()) == (1, 2)
    assert ds.table().schema == CLIP_SCHEMA
    row = ds["a"].row
    assert (row["label"], row["width"], row["frames"], row["depth_thumbnail"]) == ("it's", 640, frames, [0.25] * 144)
    assert row["run_id"] == "run-1"
    assert before <= row["committed_at"] <= datetime.now(UTC)
    assert pq.read_table(tmp_path / "clips.parquet").equals(ds.lance.to_table())
    assert ds.failures().to_pylist()[0]["clip_id"] == "b"


def test_a_row_replaces_the_one_of_an_earlier_run_and_counts_once_within_a_run(tmp_path: Path) -> None:
    first = ClipWriter(tmp_path, "run-1")
    assert [first.add(row) for row in rows("abca", label="old")] == [True, True, True, False]
    first.finish()
    second = ClipWriter(tmp_path, "run-2")
    for row in rows("cd", label="new"):
        second.add(row)
    second.finish()
    table = kdepth.open_dataset(tmp_path).table(columns=["clip_id", "label", "run_id"])
    assert table.to_pydict() == {
        "clip_id": ["a", "b", "c", "d"],
        "label": ["old", "old", "new", "new"],
        "run_id": ["run-1", "run-1", "run-2", "run-2"],
    }


def test_a_failed_row_replaces_none_that_is_ok(tmp_path: Path) -> None:
    first = ClipWriter(tmp_path, "run-1")
    assert [first.add(row) for row in rows("ab", status=FAILED)] == [True, True]
    assert [first.add(row) for row in rows("ab", status=OK)] == [True, True]  # in the same commit, from another archive
    first.commit()
    second = ClipWriter(tmp_path, "run-2")
    for row in rows("abc", status=FAILED):
        second.add(row)
    second.finish()
    assert second.add(*rows("d", status=OK))
    assert not second.add(*rows("d", status=FAILED), replace=True)  # of a second archive
    second.commit()
    assert read_rows(tmp_path, ["status"], "clip_id = 'd'")["status"].to_pylist() == ["ok"]
    other = ClipWriter(tmp_path, "run-4")
    other.add(*rows("d", status=FAILED), replace=True)
    other.commit()
    assert read_rows(tmp_path, ["status"], "clip_id = 'd'")["status"].to_pylist() == ["failed"]
    other.discard("d")
    third = ClipWriter(tmp_path, "run-3")
    for row in rows("bc", status=OK):
        third.add(row)
    third.finish()
    table = kdepth.open_dataset(tmp_path).table(columns=["clip_id", "status", "run_id"])
    assert table.to_pydict() == {
        "clip_id": ["a", "b", "c"],
        "status": ["ok", "ok", "ok"],
        "run_id": ["run-1", "run-3", "run-3"],
    }


def test_two_runs_with_the_same_clips_have_each_once(tmp_path: Path) -> None:
    one, two = ClipWriter(tmp_path, "one"), ClipWriter(tmp_path, "two")
    for row in rows("abc"):
        one.add(row)
        one.commit()
    for row in rows("abcd"):
        two.add(row)
    two.commit()
    one.finish()
    two.finish()
    assert read_rows(tmp_path, ["clip_id"])["clip_id"].to_pylist().count("a") == 1
    assert len(kdepth.open_dataset(tmp_path)) == 4


def test_commits_are_small_transactions_and_are_there_at_once(tmp_path: Path) -> None:
    writer = ClipWriter(tmp_path, "run")
    for index in range(600):
        writer.add(new_row(clip_id=f"{index:03d}", status=OK))
    visible = read_rows(tmp_path, ["clip_id"]).num_rows
    assert 512 <= visible < 600  # without finish or commit
    writer.commit()
    assert read_rows(tmp_path, ["clip_id"]).num_rows == 600


def test_two_writers_on_one_root_lose_nothing(tmp_path: Path) -> None:
    one, two = ClipWriter(tmp_path, "one"), ClipWriter(tmp_path, "two")
    for index in range(20):
        one.add(new_row(clip_id=f"one-{index}", status=OK))
        two.add(new_row(clip_id=f"two-{index}", status=OK))
        one.commit()
        two.commit()
    one.finish()
    two.finish()
    ids = kdepth.open_dataset(tmp_path).table(columns=["clip_id"])["clip_id"].to_pylist()
    assert sorted(ids) == sorted({f"{who}-{index}" for who in ("one", "two") for index in range(20)})


def test_rows_that_vanished_are_noticed(tmp_path: Path) -> None:
    import lance

    writer = ClipWriter(tmp_path, "run")
    for row in rows("abc"):
        writer.add(row)
    writer.commit()
    dataset = lance.dataset(str(tmp_path / "clips.lance"))
    dataset.delete("clip_id = 'b'")
    with pytest.raises(DatasetError, match="of 3 rows of this run 1 are missing, and 0 names are there twice"):
        writer.finish()


def test_rows_that_are_there_twice_are_noticed(tmp_path: Path) -> None:
    import lance

    writer = ClipWriter(tmp_path, "run")
    for row in rows("abc"):
        writer.add(row)
    writer.commit()
    lance.dataset(str(tmp_path / "clips.lance")).insert(rows_to_table(rows("b")))
    with pytest.raises(DatasetError, match="of 3 rows of this run 0 are missing, and 1 names are there twice"):
        writer.finish()


def test_a_row_that_is_no_longer_true_can_be_taken_back(tmp_path: Path) -> None:
    writer = ClipWriter(tmp_path, "run-1")
    writer.add(new_row(clip_id="part'_0", status=FAILED))
    writer.finish()
    writer = ClipWriter(tmp_path, "run-2")
    writer.discard("part'_0")
    writer.finish()
    assert len(kdepth.open_dataset(tmp_path)) == 0


def test_a_query_is_pushed_down_and_a_wrong_one_says_which_columns_there_are(sample_run: Run) -> None:
    ds = kdepth.open_dataset(sample_run.root)
    some = ds.table(where="num_frames > 100 AND label IS NOT NULL", columns=["label"])
    assert some.column_names == ["label"]
    assert 0 < some.num_rows < len(ds)
    with pytest.raises(ValueError, match="average_fps"):
        ds.table(where="fps > 10")
    with pytest.raises(ValueError, match="average_fps"):
        ds.table(columns=["fps"])
    with pytest.raises(KeyError, match="no clip 'x'"):
        ds["x"]
    with pytest.raises(DatasetError, match="run the pipeline"):
        kdepth.open_dataset(sample_run.root / "nowhere")


def test_similar_clips_are_those_whose_depth_is_laid_out_alike(tmp_path: Path) -> None:
    near_left, near_right = np.linspace(1, 0, 144), np.linspace(0, 1, 144)
    writer = ClipWriter(tmp_path, "run")
    for name, thumbnail in (("a", near_left), ("b", near_right), ("c", 3 * near_left), ("d", near_left + 0.2)):
        writer.add(new_row(clip_id=name, status=OK, label=f"label {name}", depth_thumbnail=thumbnail))
    writer.add(new_row(clip_id="e", status=FAILED))
    writer.finish()
    ds = kdepth.open_dataset(tmp_path)
    found = ds.similar("a").to_pydict()
    assert (found["clip_id"], found["label"]) == (["c", "d", "b"], ["label c", "label d", "label b"])
    np.testing.assert_allclose(found["distance"][0], 0, atol=1e-5)  # the scale of a relative model says nothing
    assert ds.similar("a", k=1)["clip_id"].to_pylist() == ["c"]
    with pytest.raises(KeyError, match="no clip 'x'"):
        ds.similar("x")
    with pytest.raises(DatasetError, match="e has no depth"):
        ds.similar("e")


def test_depth_without_a_layout_is_not_compared(tmp_path: Path) -> None:
    writer = ClipWriter(tmp_path, "run")
    for name, thumbnail in (("a", np.linspace(1, 0, 144)), ("b", np.linspace(1, 0.1, 144)), ("sky", np.zeros(144))):
        writer.add(new_row(clip_id=name, status=OK, depth_thumbnail=thumbnail))
    writer.finish()
    ds = kdepth.open_dataset(tmp_path)
    with pytest.raises(DatasetError, match="the depth of sky is 0 everywhere"):
        ds.similar("sky")
    assert ds.similar("a").to_pydict()["clip_id"][0] == "b"


def test_frames_and_their_depth_belong_together(sample_run: Run) -> None:
    clip = next(iter(kdepth.open_dataset(sample_run.root)))
    assert len(clip.depth_indices) == clip.row["num_depth_frames"] > 1
    index = clip.depth_indices[1]
    assert index == math.ceil(clip.row["average_fps"] / 2)  # the first at or after 0.5 s
    rgb, inverse_depth = clip.frame(index), clip.inverse_depth(index)
    assert (rgb.dtype, inverse_depth.dtype) == (np.uint8, np.float32)
    assert rgb.shape == (*inverse_depth.shape, 3) == (clip.row["height"], clip.row["width"], 3)
    assert inverse_depth.max() == clip.row["frames"][1]["max"]
    for number, frame in enumerate(clip.frames()):
        if number == index:
            assert np.array_equal(frame, rgb)
    capture = cv2.VideoCapture(str(clip.depth_path))
    capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
    assert capture.read()[0]
    bits = capture.read()[1]
    assert np.array_equal(bits.view(np.float16).reshape(inverse_depth.shape).astype(np.float32), inverse_depth)
    with pytest.raises(IndexError, match="has no depth"):
        clip.inverse_depth(index + 1)
    with pytest.raises(IndexError, match="it has frames 0 to"):
        clip.frame(10_000)
    with pytest.raises(DatasetError, match="no metres"):
        clip.depth_m(index)


def test_versions_can_be_gone_back_to_and_runs_are_remembered(tmp_path: Path) -> None:
    first = ClipWriter(tmp_path, "run-1")
    for row in rows("ab"):
        first.add(row)
    version = first.finish({"model": "small", "seconds": 1.5})
    second = ClipWriter(tmp_path, "run-2")
    for row in rows("c"):
        second.add(row)
    second.finish({"model": "depth-pro"})
    killed = ClipWriter(tmp_path, "run-3", {"model": "depth-pro", "limit": 2})
    killed.add(rows("a")[0])
    killed.commit()
    ds = kdepth.open_dataset(tmp_path)
    assert ds.runs() == {
        "run-1": {"model": "small", "seconds": 1.5},
        "run-2": {"model": "depth-pro"},
        "run-3": {"model": "depth-pro", "limit": 2},
    }
    assert [entry["version"] for entry in ds.versions] == sorted(entry["version"] for entry in ds.versions)
    assert ds.versions[-1]["num_rows"] == len(ds) == 3
    assert len(kdepth.open_dataset(tmp_path, as_of=version)) == 2
    then = next(entry["committed_at"] for entry in ds.versions if entry["version"] == version)
    assert len(kdepth.open_dataset(tmp_path, as_of=then)) == 2
    with pytest.raises(DatasetError, match="as of 10000"):
        kdepth.open_dataset(tmp_path, as_of=10_000)
    assert {name for index in ds.lance.describe_indices() for name in index.field_names} == {
        *("clip_id", "label", "status"),
    }


def test_a_clip_by_its_times_and_as_files(sample_run: Run, tmp_path: Path) -> None:
    clip = next(iter(kdepth.open_dataset(sample_run.root)))
    frames = list(clip.frames())
    middle = len(frames) // 2
    seconds = middle / clip.row["average_fps"]
    assert np.array_equal(clip.rgb_at(seconds + 0.01), frames[middle])
    assert np.array_equal(clip.rgb_at(0), frames[0])
    assert np.array_equal(clip.rgb_at(clip.row["duration_seconds"]), frames[-1])
    with pytest.raises(IndexError, match=r"11\.0 s of .* it ends at 10\.000 s"):
        clip.rgb_at(clip.row["duration_seconds"] + 1)
    for index in clip.depth_indices:
        assert np.array_equal(clip.frame(index), frames[index])

    index = clip.depth_indices[-1]
    assert np.array_equal(np.load(clip.save_depth(tmp_path / "a.npy", index)), clip.inverse_depth(index))
    grey = cv2.imread(str(clip.save_depth(tmp_path / "a.png", index)), cv2.IMREAD_UNCHANGED)
    assert grey is not None
    greatest = max(frame["max"] for frame in clip.row["frames"])
    assert grey.dtype == np.uint16
    np.testing.assert_allclose(grey / 65535 * greatest, clip.inverse_depth(index), atol=1e-4 * greatest)
    with np.load(clip.save_depth(tmp_path / "a.npz")) as all_depth:
        assert all_depth["index"].tolist() == clip.depth_indices
        assert np.array_equal(all_depth["inverse_depth"][-1], clip.inverse_depth(index))
    video = kdepth.read_frames(plots.depth_video(clip, tmp_path / "a.mp4"))
    assert sum(1 for _ in video) == len(clip.depth_indices)
    with pytest.raises(ValueError, match="must end in"):
        clip.save_depth(tmp_path / "a.jpg", 0)
    with pytest.raises(ValueError, match="hold one frame"):
        clip.save_depth(tmp_path / "a.npy")
