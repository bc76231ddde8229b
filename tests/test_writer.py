"""What the writer does with several rows of one clip, with columns of other people, with tables of an older kdepth."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_dataset import tiny_clip

import kdepth
from kdepth.dataset.table import read_rows
from kdepth.dataset.writer import ClipWriter
from kdepth.errors import DatasetError
from kdepth.schema import CLIP_SCHEMA, FAILED, OK, new_row, rows_to_table


def row(status: str, label: str, sha256: str | None = None) -> dict[str, object]:
    return new_row(clip_id="a", status=status, label=label, raw_sha256=sha256)


def committed(root: Path) -> list[tuple[str, str]]:
    found = read_rows(root, ["status", "label"]).to_pylist()
    return [(one["status"], one["label"]) for one in found]


def test_a_row_after_a_long_pause_is_committed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    monkeypatch.setattr("kdepth.dataset.writer.time", SimpleNamespace(monotonic=lambda: seconds[0]))
    writer = ClipWriter(tmp_path, "run")
    for seconds[0] in (6.0, 9.0):  # as the watch of a run does, before any row came
        writer.commit_if_due()
    writer.add(row(OK, "first"))
    assert committed(tmp_path) == [(OK, "first")]
    writer.add(new_row(clip_id="b", status=OK, label="second"))
    assert len(committed(tmp_path)) == 1
    seconds[0] = 14.1
    writer.commit_if_due()
    assert len(committed(tmp_path)) == 2


@pytest.mark.parametrize("commit_between", [True, False])
@pytest.mark.parametrize(
    ("statuses", "winner", "taken"),
    [
        ((FAILED, OK), 1, [True, True]),
        ((OK, FAILED), 0, [True, False]),
        ((OK, OK), 0, [True, False]),
        ((FAILED, OK, FAILED, OK), 1, [True, True, False, False]),
    ],
)
def test_of_several_sources_of_a_clip_the_first_that_is_ok_counts(
    tmp_path: Path, statuses: tuple[str, ...], winner: int, taken: list[bool], commit_between: bool
) -> None:
    writer = ClipWriter(tmp_path, "run")
    for number, (status, is_taken) in enumerate(zip(statuses, taken, strict=True)):
        assert writer.add(row(status, f"{number}")) == is_taken
        if commit_between:
            writer.commit()
    writer.finish()
    assert committed(tmp_path) == [(statuses[winner], f"{winner}")]


@pytest.mark.parametrize(
    ("first", "second", "winner"), [(FAILED, OK, 1), (OK, FAILED, 0), (FAILED, FAILED, 1), (OK, OK, 1)]
)
def test_a_later_run_replaces_rows_but_none_that_is_ok_by_a_failed_one(
    tmp_path: Path, first: str, second: str, winner: int
) -> None:
    for number, status in enumerate((first, second)):
        writer = ClipWriter(tmp_path, f"run {number}")
        assert writer.add(row(status, f"{number}"))
        writer.finish()
    assert committed(tmp_path) == [((first, second)[winner], f"{winner}")]


def test_clips_with_two_contents_are_remembered(tmp_path: Path) -> None:
    writer = ClipWriter(tmp_path, "run")
    for sha256 in ("1", "1", "2", "3", "2"):
        writer.add(row(OK, sha256, sha256))
    writer.add(new_row(clip_id="b", status=OK, raw_sha256="1"))
    writer.add(new_row(clip_id="b", status=FAILED, raw_sha256="2"))
    writer.add(new_row(clip_id="c", status=FAILED, raw_sha256="1"))
    writer.add(new_row(clip_id="c", status=OK, raw_sha256="2"))
    writer.finish()
    assert list(writer.other_content) == ["a"]
    assert read_rows(tmp_path, ["raw_sha256"], "clip_id = 'a'")["raw_sha256"].to_pylist() == ["1"]


def test_a_table_of_an_older_kdepth_is_gone_on_with(tmp_path: Path) -> None:
    lacking = ("node", "flicker", "frames")
    old_schema = pa.schema([field for field in CLIP_SCHEMA if field.name not in lacking])
    old = rows_to_table([tiny_clip(tmp_path, "a", label="old", node="host")]).select(old_schema.names)
    lance.write_dataset(old, tmp_path / "clips.lance", data_storage_version="stable")
    # It is read as it is ...
    ds = kdepth.open_dataset(tmp_path)
    assert ds.table().schema == CLIP_SCHEMA
    assert (ds["a"].row["node"], ds["a"].row["label"], ds["a"].row["frames"]) == (None, "old", None)
    assert read_rows(tmp_path, ["flicker"])["flicker"].to_pylist() == [None]
    kdepth.pack(tmp_path, tmp_path / "packed.lance")
    assert kdepth.open_dataset(tmp_path / "packed.lance").table() == ds.table()
    # ... and written to.
    writer = ClipWriter(tmp_path, "run")
    writer.add(tiny_clip(tmp_path, "b", node="host"))
    writer.finish()
    ds = kdepth.open_dataset(tmp_path)
    assert ds.table(columns=["clip_id", "label", "node"]).to_pydict() == {
        "clip_id": ["a", "b"],
        "label": ["old", None],
        "node": [None, "host"],
    }
    assert pq.read_table(tmp_path / "clips.parquet").schema.names == CLIP_SCHEMA.names
    version = ds.versions[0]["version"]
    assert kdepth.open_dataset(tmp_path, as_of=version)["a"].row["node"] is None


def test_columns_that_users_add_are_kept_shown_and_copied(tmp_path: Path) -> None:
    first = ClipWriter(tmp_path, "run 1")
    first.add(tiny_clip(tmp_path, "a"))
    first.add(tiny_clip(tmp_path, "b"))
    first.finish()
    table = lance.dataset(str(tmp_path / "clips.lance"))
    table.add_columns({"score": "duration_seconds * 5"})
    table.add_columns(pa.schema([pa.field("tags", pa.list_(pa.string()))]))
    second = ClipWriter(tmp_path, "run 2")
    second.add(tiny_clip(tmp_path, "a", label="new"))
    second.add(tiny_clip(tmp_path, "c"))
    second.relabel({"b": ["label", None]})
    second.finish()
    ds = kdepth.open_dataset(tmp_path)
    wanted = {"clip_id": ["a", "b", "c"], "label": ["new", "label", None], "score": [3.0, 3.0, None]}
    assert ds.table(columns=list(wanted)).to_pydict() == wanted
    assert ds.table(where="score > 2").num_rows == 2
    assert ds.table().column_names == [*CLIP_SCHEMA.names, "score", "tags"]
    assert ds["a"].row["score"] == 3.0
    assert "score" in ds._repr_html_()
    assert pq.read_table(tmp_path / "clips.parquet").sort_by("clip_id") == ds.table()
    kdepth.pack(tmp_path, tmp_path / "packed.lance")
    packed = kdepth.open_dataset(tmp_path / "packed.lance")
    assert packed.table() == ds.table()
    assert packed["a"].frame(1).shape == (36, 64, 3)


@pytest.mark.parametrize("name", ["depth", "video"])
def test_a_users_column_may_be_called_as_a_packed_datasets_files_are(tmp_path: Path, name: str) -> None:
    writer = ClipWriter(tmp_path, "run")
    writer.add(tiny_clip(tmp_path, "a"))
    writer.finish()
    lance.dataset(str(tmp_path / "clips.lance")).add_columns({name: "'mine'"})
    ds = kdepth.open_dataset(tmp_path)
    assert ds["a"].row[name] == "mine"
    assert ds["a"].frame(0).shape == (36, 64, 3)
    assert ds.verify().num_rows == 0
    with pytest.raises(DatasetError, match=f"rename the column {name!r}"):
        kdepth.pack(tmp_path, tmp_path / "packed.lance")


def test_columns_that_can_not_be_written_to_are_named(tmp_path: Path) -> None:
    required = pa.schema([*CLIP_SCHEMA, pa.field("must", pa.int32(), nullable=False)])
    other = pa.schema([pa.field("label", pa.int64()) if field.name == "label" else field for field in CLIP_SCHEMA])
    for name, schema in (("must", required), ("label", other)):
        lance.write_dataset(schema.empty_table(), tmp_path / name / "clips.lance")
        with pytest.raises(DatasetError, match=f"can't write to: {name}; columns of your own must take nulls"):
            ClipWriter(tmp_path / name, "run")


def test_a_tag_does_not_stop_tidying(tmp_path: Path) -> None:
    for number in range(3):
        writer = ClipWriter(tmp_path, f"run {number}")
        for commit in range(5):
            writer.add(new_row(clip_id=f"{number}-{commit}", status=OK))
            writer.commit()
        version = writer.finish(keep_versions=timedelta(0))
        if number == 0:
            lance.dataset(str(tmp_path / "clips.lance")).tags.create("paper", version)
            paper = version
    ds = kdepth.open_dataset(tmp_path)
    assert ds.versions[0]["version"] == paper
    assert ds.versions[1]["version"] > paper + 10  # those between are gone
    assert len(ds) == 15
    assert len(kdepth.open_dataset(tmp_path, as_of="paper")) == 5
