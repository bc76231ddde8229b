import pytest

from kdepth.schema import (
    CLIP_SCHEMA,
    COLUMNS,
    clip_id_for,
    kinetics_clip_id,
    new_row,
    parse_kinetics_name,
    rows_to_table,
)


def test_a_kinetics_name_is_kept() -> None:
    name = kinetics_clip_id("0wR5jVB-WPk", 417, 427)
    assert name == "0wR5jVB-WPk_000417_000427"
    assert clip_id_for(f"http://host/val/{name}.mp4") == name
    assert clip_id_for("http://host/part_0.tar.gz", f"k400/val/{name}.mp4") == name
    assert parse_kinetics_name(name) == ("0wR5jVB-WPk", 417.0, 427.0)
    assert parse_kinetics_name("holiday") is None


@pytest.mark.parametrize(
    "member",
    ["../../etc/passwd.mp4", "/absolute.mp4", "a b\n'; drop.mp4", "-rf.mp4", "x" * 400 + ".mp4", ".mp4", "日本.mp4"],
)
def test_nothing_of_an_untrusted_name_reaches_the_file_system(member: str) -> None:
    clip_id = clip_id_for("http://host/a.tar", member)
    assert clip_id.replace("_", "").replace("-", "").isalnum()
    assert clip_id.isascii()
    assert len(clip_id) <= 71
    assert not clip_id.startswith("-")


def test_two_sources_of_one_name_are_two_clips() -> None:
    ids = {clip_id_for("http://a/x.mp4"), clip_id_for("http://b/x.mp4"), clip_id_for("http://a/x.tar", "x.mp4")}
    assert len(ids) == 3
    assert clip_id_for("http://a/x.mp4") == clip_id_for("http://a/x.mp4")


def test_rows_have_every_column_typed_whatever_is_unknown() -> None:
    table = rows_to_table([new_row(clip_id="a"), {"clip_id": "b"}])
    assert table.schema == CLIP_SCHEMA
    assert table.column_names == list(COLUMNS)
    assert table["frames"].to_pylist() == [None, None]
    assert rows_to_table([]).schema == CLIP_SCHEMA
