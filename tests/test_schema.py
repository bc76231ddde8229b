import pytest

from kdepth.schema import (
    CLIP_SCHEMA,
    COLUMNS,
    clip_id_for,
    file_key,
    hashed_clip_id,
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
    ("start", "end", "is_clip"), [(0, 10, True), (0, 600, True), (0, 601, False), (9, 9, False), (240131, 93000, False)]
)
def test_a_kinetics_name_has_the_times_of_a_clip(start: int, end: int, is_clip: bool) -> None:
    name = kinetics_clip_id("GarageCam01", start, end)
    assert parse_kinetics_name(name) == (("GarageCam01", start, end) if is_clip else None)
    for url, member in ((f"https://h/{name}.mp4", None), ("https://h/a.tar", f"day1/{name}.mp4")):
        assert (clip_id_for(url, member) == name) is is_clip
        assert clip_id_for(url, member).startswith(name)
        assert clip_id_for(url, member, annotated={name}) == name


def test_names_do_not_change_from_one_version_to_the_next() -> None:
    known = {
        ("https://h/a clip.mp4", None): "a_clip_c832f83600",
        ("https://h/a%20clip.mp4", None): "a_clip_c832f83600",
        ("https://h/val/x%2Cy%28z%29.tar.gz", "val/b c.mp4"): "b_c_ce16f0c412",
        ("https://me:secret@h/get?id=5", None): "get_170a721348",
    }
    for (url, member), name in known.items():
        assert clip_id_for(url, member) == name


def test_one_file_has_one_key_in_every_spelling_of_its_url() -> None:
    assert file_key("https://me@h/a%2Cb%27.mp4?x=1") == file_key("https://h/a,b'.mp4?x=1")
    assert file_key("https://h/a.mp4?x=1") != file_key("https://h/a.mp4?x=2")


def test_segments_of_a_file_have_names_of_their_own() -> None:
    names = {hashed_clip_id("a", "https://h/a.mp4", segment=segment) for segment in (None, (0.0, 1.0), (0.0, 1.5))}
    assert len(names) == 3
    assert clip_id_for("https://h/a.mp4") in names


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
