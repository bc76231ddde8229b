from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pyarrow as pa
import pytest

from kdepth.errors import SourceError
from kdepth.schema import SOURCE_SCHEMA, clip_id_for, kinetics_clip_id, lasting_url
from kdepth.sources import ASKED_KEY, read_sources

ID = "0wR5jVB-WPk"
CLIP = f"{ID}_000417_000427"
K400 = f"label,youtube_id,time_start,time_end,split,is_cc\nabseiling,{ID},417,427,validate,0\n"


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text(text, encoding=encoding)
    return path


def rows(table: pa.Table) -> list[dict[str, object]]:
    assert table.schema.equals(SOURCE_SCHEMA)
    return list(table.to_pylist())


def counts(table: pa.Table) -> dict[str, int]:
    """What was counted, without what is none."""
    asked = json.loads(table.schema.metadata[ASKED_KEY])
    parts = sum(asked[name] for name in ("clips", "archives", "alternatives", "merged", "invalid"))
    assert asked["lines"] == parts
    arguments = ("sources", "annotations", "limit", "sample_seed")
    return {name: count for name, count in asked.items() if name not in arguments and count}


def problems(table: pa.Table) -> list[str]:
    """What is wrong with the lines that can't be used."""
    invalid = [row for row in rows(table) if row["kind"] == "invalid"]
    assert all(str(row["clip_id"]).startswith("invalid_line_") and row["url"] is None for row in invalid)
    assert table["problem"].null_count == table.num_rows - len(invalid)
    return [str(row["problem"]) for row in invalid]


def test_k400_list_is_twenty_numbered_parts(tmp_path: Path) -> None:
    urls = [f"https://s3.amazonaws.com/kinetics/400/val/part_{i}.tar.gz" for i in range(20)]
    table = read_sources(write(tmp_path, "k400_val_path.txt", "\n".join(urls) + "\n"))
    assert table["url"].to_pylist() == urls
    assert set(table["kind"].to_pylist()) == {"archive"}
    assert len(set(table["clip_id"].to_pylist())) == 20


@pytest.mark.parametrize("spelling", ["acting%20in%20play%20%5Bx%5D (y)", "acting in play [x] (y)"])
def test_k600_list_has_spaces_and_brackets_which_are_quoted(tmp_path: Path, spelling: str) -> None:
    base = "https://s3.amazonaws.com/kinetics/600/val/"
    table = read_sources(write(tmp_path, "k600_val_path.txt", f"{base}{spelling}.tar.gz\n{base}archery.tar.gz\n"))
    assert table["url"].to_pylist() == [base + "acting%20in%20play%20%5Bx%5D%20(y).tar.gz", base + "archery.tar.gz"]
    assert table["clip_id"][0].as_py().startswith("acting_in_play_x_y_tar_")


def test_k700_list_is_numbered_by_class(tmp_path: Path) -> None:
    urls = [f"https://s3.amazonaws.com/kinetics/700_2020/val/k700_val_{i:03d}.tar.gz" for i in range(3)]
    text = "# the list\r\n\r\n" + "\r\n".join(urls + urls) + "\r\n"
    assert read_sources(write(tmp_path, "k700_2020_val_path.txt", text))["url"].to_pylist() == urls


@pytest.mark.parametrize(
    ("name", "text", "label", "split"),
    [
        ("k400.csv", K400, "abseiling", "validate"),
        ("k400_bom.csv", "\ufeff" + K400, "abseiling", "validate"),
        ("k400_crlf.csv", K400.replace("\n", "\r\n"), "abseiling", "validate"),
        ("k600.txt", f"label,youtube_id,time_start,time_end,split\nabseiling,{ID},417,427,val\n", "abseiling", "val"),
        ("k600_test.csv", f"youtube_id,time_start,time_end,split\n{ID},417,427,test\n", None, "test"),
        ("k700.csv", f'label,youtube_id,time_start,time_end,split\n"a, ""b""",{ID},417.0,427.0,val\n', 'a, "b"', "val"),
        ("bare.txt", f"abseiling,{ID},417,427,validate,0\n", "abseiling", "validate"),
        ("order.csv", f"split,time_end,time_start,youtube_id\nval,427,417,{ID}\n", None, "val"),
    ],
)
def test_annotation_variants(tmp_path: Path, name: str, text: str, label: str | None, split: str) -> None:
    annotations = write(tmp_path, name, text)
    fields = {
        "clip_id": CLIP,
        "youtube_id": ID,
        "time_start_seconds": 417.0,
        "time_end_seconds": 427.0,
        "label": label,
        "split": split,
        "max_clips": None,
        "cut_start_seconds": None,
        "cut_end_seconds": None,
        "problem": None,
    }
    lookup, archive = rows(read_sources(["https://h/part_0.tar.gz"], annotations=annotations))[::-1]
    assert archive["kind"] == "archive"
    assert lookup == fields | {"kind": "annotation", "url": None}
    # The same file as the list itself: clips to fetch from YouTube.
    youtube = rows(read_sources(annotations))
    assert youtube == [fields | {"kind": "youtube", "url": f"https://www.youtube.com/watch?v={ID}"}]


def test_direct_urls_take_their_annotation_and_are_no_lookups(tmp_path: Path) -> None:
    annotations = write(tmp_path, "val.csv", K400 + "archery,abcdefghijk,1,11,validate,1\n")
    urls = [f"https://h/{CLIP}.mp4", "https://h/some clip.webm"]
    direct, unknown, lookup = rows(read_sources(urls, annotations=str(annotations)))
    assert (direct["clip_id"], direct["label"], direct["split"]) == (CLIP, "abseiling", "validate")
    assert (direct["kind"], direct["url"]) == ("video", urls[0])
    assert unknown["url"] == "https://h/some%20clip.webm"
    assert unknown["clip_id"] == clip_id_for("https://h/some%20clip.webm")
    assert unknown["label"] is None
    assert (lookup["kind"], lookup["clip_id"]) == ("annotation", "abcdefghijk_000001_000011")


def test_kinetics_names_are_understood_without_annotations() -> None:
    (row,) = rows(read_sources([f"https://h/val/{CLIP}.mp4?download=1"]))
    assert (row["youtube_id"], row["time_start_seconds"], row["time_end_seconds"]) == (ID, 417.0, 427.0)


def test_csv_with_a_url_column(tmp_path: Path) -> None:
    text = f'URL,label,split\nhttps://h/a.mp4,"one, two",train\nhttps://h/b.tar.gz,,\nhttps://h/{CLIP}.mp4,,\n'
    video, archive, annotated = rows(
        read_sources(write(tmp_path, "urls.csv", text), annotations=write(tmp_path, "k.csv", K400))
    )
    assert (video["kind"], video["label"], video["split"]) == ("video", "one, two", "train")
    assert (archive["kind"], archive["label"]) == ("archive", None)
    assert (annotated["label"], annotated["split"]) == ("abseiling", "validate")


def test_csv_with_url_and_kinetics_columns(tmp_path: Path) -> None:
    text = f"url,youtube_id,time_start,time_end,label\nhttps://h/1.mp4,{ID},417,427,abseiling\n"
    (row,) = rows(read_sources(write(tmp_path, "urls.csv", text)))
    assert (row["clip_id"], row["url"], row["kind"], row["label"]) == (CLIP, "https://h/1.mp4", "video", "abseiling")


def test_youtube_urls() -> None:
    spellings = (
        "www.youtube.com/watch?v={}",
        "youtu.be/{}?t=3",
        "m.youtube.com/shorts/{}",
        "music.youtube.com/signin?v={}",
    )
    (row,) = rows(read_sources(["https://" + spelling.format(ID) for spelling in spellings]))
    assert (row["kind"], row["youtube_id"], row["url"]) == ("youtube", ID, f"https://www.youtube.com/watch?v={ID}")


def test_a_url_comes_once_in_the_order_of_the_list(tmp_path: Path) -> None:
    urls = ["https://h/c.mp4", "https://h/b.mp4", "https://h/%63.mp4", "https://me:secret@h/b.mp4"]
    table = read_sources(urls)
    assert table["url"].to_pylist() == urls[:2]
    assert counts(table) == {"lines": 4, "clips": 2, "merged": 2}
    repeated = write(tmp_path, "k.csv", K400 + K400.splitlines()[1] + "\n")
    table = read_sources(["https://h/x.zip"], annotations=repeated)
    assert table["kind"].to_pylist() == ["archive", "annotation"]
    assert counts(table) == {"lines": 1, "archives": 1, "annotations_merged": 1}


MIRRORS = [f"https://{host}/{CLIP}.{suffix}" for host, suffix in (("a", "mp4"), ("b", "mp4"), ("a", "webm"))]


def test_urls_of_one_annotated_clip_are_alternatives(tmp_path: Path) -> None:
    urls = [MIRRORS[0], "https://h/x.mp4", *MIRRORS[1:], MIRRORS[0]]
    table = read_sources(urls, annotations=write(tmp_path, "k.csv", K400))
    assert table["url"].to_pylist() == [*MIRRORS, "https://h/x.mp4"]
    assert table["clip_id"].to_pylist()[:3] == [CLIP] * 3
    assert table["label"].to_pylist() == ["abseiling"] * 3 + [None]
    assert counts(table) == {"lines": 5, "clips": 2, "alternatives": 2, "merged": 1}
    # A limit counts clips, and so does a sample.
    for limit, kept in ((1, MIRRORS), (2, [*MIRRORS, "https://h/x.mp4"])):
        assert read_sources(urls, annotations=tmp_path / "k.csv", limit=limit)["url"].to_pylist() == kept
    many = [*urls, *(f"https://h/{i}.mp4" for i in range(20))]
    sample = read_sources(many, annotations=tmp_path / "k.csv", sample_seed=1)["url"].to_pylist()
    at = sample.index(MIRRORS[0])
    assert sample[at : at + 3] == MIRRORS
    assert sorted(sample) == sorted(set(many))


def test_a_youtube_segment_and_a_file_of_its_name_are_one_clip(tmp_path: Path) -> None:
    text = f"url,time_start,time_end\n{MIRRORS[0]},,\nhttps://youtu.be/{ID},417,427\n{MIRRORS[1]},417,427\n"
    table = read_sources(write(tmp_path, "u.csv", text))
    assert table["clip_id"].to_pylist() == [CLIP] * 3
    assert table["kind"].to_pylist() == ["video", "youtube", "video"]
    assert table["cut_start_seconds"].null_count == 3
    assert counts(table) == {"lines": 3, "clips": 1, "alternatives": 2}


def test_files_of_one_name_are_clips_of_their_own() -> None:
    left, right = (f"https://h/{scene}/camera_left_000000_000010.mp4" for scene in ("scene1", "scene2"))
    table = read_sources([left, right, MIRRORS[0], MIRRORS[1], right])
    first, second, a, b = table["clip_id"].to_pylist()
    assert (first, a) == ("camera_left_000000_000010", CLIP)
    # Their names tell what they are called, and are the same in the next run.
    assert second.startswith("camera_left_000000_000010_")
    assert b.startswith(CLIP + "_")
    assert [second, b] == read_sources([left, MIRRORS[0], MIRRORS[1], right])["clip_id"].to_pylist()[:-3:-1]
    assert counts(table) == {"lines": 5, "clips": 4, "merged": 1, "renamed": 2}


@pytest.mark.parametrize("stem", ["GarageCam01_240131_093000", f"{ID}_000010_000010", f"{ID}_000010_000611"])
def test_a_name_whose_times_are_no_clips_is_no_kinetics_name(stem: str) -> None:
    north, south = rows(read_sources([f"https://h/north/{stem}.mp4", f"https://h/south/{stem}.mp4"]))
    assert str(north["clip_id"]).startswith(stem + "_")
    assert north["clip_id"] != south["clip_id"]
    assert (north["youtube_id"], north["time_start_seconds"]) == (None, None)
    assert read_sources([f"https://h/{ID}_000010_000610.mp4"])["youtube_id"].to_pylist() == [ID]


def test_the_times_of_a_csv_are_segments(tmp_path: Path) -> None:
    film, tube = "https://h/long film.mp4", f"https://www.youtube.com/watch?v={ID}"
    text = f"""url,time_start,time_end,label
{tube},10,20,run
{tube},30,40.5,jump
{film},10,20,walk
{film},50,60,sit
{film},10.0,20.0,again
{film},,,all of it
{MIRRORS[0]},417,427,cut already
{MIRRORS[0]},1,2,a part of it
"""
    table = read_sources(write(tmp_path, "u.csv", text))
    run, jump, walk, sit, whole, already, part = rows(table)
    assert (run["clip_id"], jump["clip_id"]) == (f"{ID}_000010_000020", f"{ID}_000030_000040")
    assert (jump["kind"], jump["url"], jump["youtube_id"]) == ("youtube", tube, ID)
    assert (jump["time_start_seconds"], jump["time_end_seconds"], jump["cut_start_seconds"]) == (30.0, 40.5, None)
    assert (walk["cut_start_seconds"], walk["cut_end_seconds"], walk["label"]) == (10.0, 20.0, "walk")
    assert (sit["cut_start_seconds"], sit["cut_end_seconds"]) == (50.0, 60.0)
    assert walk["url"] == sit["url"] == whole["url"] == "https://h/long%20film.mp4"
    # Written down, because a run goes on with them.
    assert [row["clip_id"] for row in (walk, sit)] == ["long_film_bc3b9c50b0", "long_film_ee8d64df31"]
    assert (whole["clip_id"], whole["cut_start_seconds"]) == (clip_id_for("https://h/long%20film.mp4"), None)
    assert (already["clip_id"], already["cut_start_seconds"]) == (CLIP, None)
    assert (part["cut_start_seconds"], part["youtube_id"], part["time_start_seconds"]) == (1.0, None, None)
    assert counts(table) == {"lines": 8, "clips": 7, "merged": 1}


def test_segments_within_one_second_are_clips_of_their_own(tmp_path: Path) -> None:
    tube = f"https://www.youtube.com/watch?v={ID}"
    text = f"url,time_start,time_end\n{tube},10.2,10.7\n{tube},10.8,10.9\n{tube},10.2,10.7\n"
    table = read_sources(write(tmp_path, "u.csv", text))
    first, second = table["clip_id"].to_pylist()
    assert first == f"{ID}_000010_000010"
    assert second.startswith(first + "_")
    assert table["time_start_seconds"].to_pylist() == [10.2, 10.8]


def test_annotations_of_videos_from_elsewhere_are_matched_by_name(tmp_path: Path) -> None:
    text = "label,youtube_id,time_start,time_end,split\nrun,cam-7,3,13,val\nsit,my_long_film_of_2021,0,700,val\n"
    annotations = write(tmp_path, "own.csv", text)
    names = [kinetics_clip_id("cam-7", 3, 13), kinetics_clip_id("my_long_film_of_2021", 0, 700)]
    assert names == ["cam-7_000003_000013", "my_long_film_of_2021_000000_000700"]
    table = read_sources([f"https://h/{name}.mp4" for name in names], annotations=annotations)
    assert table["clip_id"].to_pylist() == names
    assert table["label"].to_pylist() == ["run", "sit"]
    assert table["youtube_id"].to_pylist() == ["cam-7", "my_long_film_of_2021"]
    # In an archive they are looked for by the same name.
    table = read_sources(["https://h/a.zip"], annotations=annotations)
    assert table["clip_id"].to_pylist()[1:] == names
    assert clip_id_for("https://h/a.zip", f"val/{names[0]}.mp4", annotated=set(names)) == names[0]
    assert clip_id_for("https://h/a.zip", f"val/{names[0]}.mp4") != names[0]
    # YouTube is asked only for what can be there.
    table = read_sources(write(tmp_path, "mixed.csv", text + f"jump,{ID},1,11,val\n"))
    assert table["kind"].to_pylist() == ["youtube", "invalid", "invalid"]
    assert "line 2: 'cam-7' can't be a YouTube id" in problems(table)[0]


@pytest.mark.parametrize("youtube_id", ["../../etc/x", "a b", "", "x" * 65, "#NAME?", "a.b", "日本"])
def test_an_annotated_id_becomes_a_file_name_and_must_be_fit_for_it(youtube_id: str, tmp_path: Path) -> None:
    annotations = write(tmp_path, "own.csv", K400 + f"run,{youtube_id},3,13,val,0\n")
    (problem,) = problems(read_sources(["https://h/a.zip"], annotations=annotations))
    assert problem.startswith("own.csv, line 3: youtube_id '")


@pytest.mark.parametrize(
    ("line", "url", "label"),
    [
        ("https://h/a.mp4\triding a bike", "a.mp4", "riding a bike"),
        ("https://h/a.mp4 riding a bike", "a.mp4", "riding a bike"),
        ("https://h/a.mp4, riding a bike", "a.mp4", "riding a bike"),
        ("https://h/a.mp4,tying knot, not a tie", "a.mp4", "tying knot, not a tie"),
        ("https://h/a.mp4;bike", "a.mp4", "bike"),
        ('https://h/a.mp4 | "bike"', "a.mp4", "bike"),
        ("https://h/my clip.mp4?x=1 riding", "my%20clip.mp4?x=1", "riding"),
        ("https://h/get?id=5\tbike", "get?id=5", "bike"),
        ("https://h/get?id=5 bike", "get?id=5", "bike"),
        ("https://h/clip/5 bike", "clip/5", "bike"),
        ("https://h/b.tar.gz val", "b.tar.gz", "val"),
        ('"https://h/a.mp4",', "a.mp4", None),
        ("<https://h/a.mp4>", "a.mp4", None),
        # These are part of a URL, as they were.
        ("https://h/acting in play [x] (y).tar.gz", "acting%20in%20play%20%5Bx%5D%20(y).tar.gz", None),
        ("https://h/a,b;c|d.mp4", "a,b;c%7Cd.mp4", None),
        ("https://h/File:Foo.webm,_part_2.mp4", "File:Foo.webm,_part_2.mp4", None),
        ("https://h/a.mp4 copy.mp4", "a.mp4%20copy.mp4", None),
        ("https://h/get?name=my clip.mp4", "get?name=my%20clip.mp4", None),
        ("https://h/a.mp4?policy=a,b", "a.mp4?policy=a,b", None),
        ("https://h/g?how=attachment; name=x&signature=y", "g?how=attachment;%20name=x&signature=y", None),
    ],
)
def test_a_label_may_follow_a_url(line: str, url: str, label: str | None, tmp_path: Path) -> None:
    (row,) = rows(read_sources(write(tmp_path, "list.txt", line + "\n")))
    assert (row["url"], row["label"]) == ("https://h/" + url, label)


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("name", ["list.csv", "list.txt", "list.tsv"])
def test_tables_are_told_by_their_first_line(name: str, delimiter: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["Label", " URL"], ["a,\tb;\nc", "https://h/a.mp4"], ["d", "https://h/b.mp4"]])
        file.write("  # a comment, as in any list\n" + delimiter + "\n" + f"e{delimiter}https://h/c.mp4{delimiter}\n")
    table = read_sources(path)
    assert table["label"].to_pylist() == ["a,\tb;\nc", "d", "e"]
    assert counts(table) == {"lines": 3, "clips": 3}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_csv_of_bare_urls_needs_no_first_line(encoding: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(end.join(["https://h/a.mp4,é", "# https://h/no.mp4", "https://h/b.mp4,run", ""]).encode(encoding))
    assert read_sources(path)["label"].to_pylist() == ["é", "run"]


@pytest.mark.parametrize(
    "url",
    [
        "https://h/a%27b%2Fc%2C%3A%28.mp4?X-Amz-SignedHeaders=host%3Brange&name=a%20b+c&x[]=%C3%A9",
        "https://h:8443/a.mp4?sig=a%2Bb%3D%3D",
        "https://user:pass%40word@h/a.mp4?q=1",
        "http://[2001:db8::1]:8080/a.mp4",
        "http://[::ffff:10.0.0.1]/a.mp4",
        "http://under_score.h.org./a.mp4",
    ],
)
def test_a_url_keeps_its_spelling_and_its_name(url: str) -> None:
    (row,) = rows(read_sources([url]))
    assert row["url"] == url
    # Its name is that of any other spelling, and of the one that was stored in former times.
    assert row["clip_id"] == read_sources([url.replace("%2C", ",").replace("%28", "(")])["clip_id"][0].as_py()
    assert row["clip_id"] == clip_id_for(url)


def test_what_can_not_stand_in_a_url_is_quoted() -> None:
    (row,) = rows(read_sources(['https://münchen.de/ü 100%.mp4?q=ü "x"']))
    assert row["url"] == "https://xn--mnchen-3ya.de/%C3%BC%20100%25.mp4?q=%C3%BC%20%22x%22"


def test_a_line_ends_at_newlines_alone(tmp_path: Path) -> None:
    label = "one\u2028two\x85three"
    path = write(tmp_path, "k.csv", f"url,label\r\nhttps://h/a.mp4,{label}\r\n")
    assert [row["label"] for row in rows(read_sources(path))] == [label]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", "https://h/a.mp4\n\nftp://h/b.mp4\n", "line 3: not an http or https URL"),
        ("a.txt", "https://h/a.mp4\nb.mp4\n", "line 2: not an http or https URL; serve the folder"),
        ("a.txt", "https://h/a.mp4\nC:\\clips\\b\n", "line 2: not an http or https URL; serve the folder"),
        (
            "a.txt",
            f"https://h/a.mp4\n{ID}\n",
            "line 2: not an http or https URL; of a YouTube id it is https://www.you",
        ),
        ("a.txt", "https://h/a.mp4\nwww.h.org/b.mp4\n", "line 2: not an http or https URL; begin it with https://"),
        ("a.txt", "https://h/a.mp4\nrun https://h/b.mp4\n", "line 2: the URL must come first in its line"),
        ("a.txt", "https://h/a.mp4\nhttps://h/b.mp4 https://h/c.mp4\n", "line 2: the URL must come first in its line"),
        ("a.txt", "https://h/a.mp4\nhttp://[::1\n", "line 2: not a URL"),
        ("a.txt", "https://h/a.mp4\nhttp://h:99999/\n", "line 2: not a URL"),
        ("a.txt", "https://h/a.mp4\nhttps://a b/c.mp4\n", "line 2: not an http or https URL"),
        ("a.txt", "https://h/a.mp4\nhttps://a..b/c.mp4\n", "line 2: not an http or https URL"),
        ("a.txt", "https://h/a.mp4\nhttps://www.youtube.com/@someone\n", "line 2: not the URL of a YouTube video"),
        ("a.txt", "https://h/a.mp4\n" + "a," * 70_000 + "\n", "line 2: over 65536 characters"),
        ("a.csv", "url,label\nhttps://h/b.mp4,a\nhttps://h/a.mp4,a,b\n", "line 3: 3 fields, expected 2 (url, label)"),
        ("a.csv", "url\nhttps://h/a.mp4\n\nnothing\n", "line 4: not an http or https URL"),
        (
            "a.csv",
            "url,time_end\nhttps://h/a.mp4,\nhttps://h/b.mp4,3\n",
            "line 3: time_start and time_end must be numbers",
        ),
        ("a.csv", "url,x\nhttps://h/a.mp4,\n" + "x" * 140_000 + ",\n", "line 3: no line of a table: a quote"),
        ("a.csv", K400 + f"tying knot, not a tie,{ID},1,2,validate,0\n", "line 3: 7 fields, expected 6"),
        ("a.csv", K400 + "abseiling,#NAME?,1,2,validate,0\n", "line 3: youtube_id '#NAME?'"),
        ("a.csv", K400 + f"abseiling,{ID},x,2,validate,0\n", "line 3: time_start and time_end must be numbers"),
        ("a.csv", K400 + f"abseiling,{ID},2,nan,validate,0\n", "line 3: time_start 2 and time_end nan"),
        ("a.csv", K400 + f"abseiling,{ID},20,10,validate,0\n", "line 3: time_start 20 and time_end 10"),
        ("a.csv", K400 + f'"abseiling,{ID},1,2,validate,0\n', "line 3: no line of a table: a quote"),
        ("a.csv", f"abseiling,{ID},1,2\nabseiling,{ID},20,10\n", "line 2: time_start 20 and time_end 10"),
    ],
)
def test_a_line_that_can_not_be_used_is_a_row(tmp_path: Path, name: str, text: str, says: str) -> None:
    table = read_sources(write(tmp_path, name, text), limit=1)
    (problem,) = problems(table)
    assert problem.startswith(f"{name}, {says}")
    # The line that is right is there.
    assert table["kind"].to_pylist() in (["video", "invalid"], ["youtube", "invalid"])


def test_bad_annotations_are_rows_too(tmp_path: Path) -> None:
    annotations = write(tmp_path, "k.csv", K400 + f"abseiling,{ID},x,2,validate,0\n,\n")
    table = read_sources(["https://h/a.zip", "nothing"], annotations=annotations, limit=1)
    assert table["kind"].to_pylist() == ["archive", "invalid", "invalid", "annotation"]
    assert [problem.partition(":")[0] for problem in problems(table)] == ["sources[1]", "k.csv, line 3"]
    assert counts(table) == {"lines": 2, "archives": 1, "invalid": 1, "annotations_invalid": 1}


def test_the_row_of_a_line_is_the_same_in_the_next_run_and_in_another_folder(tmp_path: Path) -> None:
    text = "https://h/a.mp4\nx\nx\ny\n"
    ids = read_sources(write(tmp_path, "a.txt", text))["clip_id"].to_pylist()
    (tmp_path / "other").mkdir()
    assert read_sources(write(tmp_path / "other", "a.txt", text))["clip_id"].to_pylist() == ids
    assert len(set(ids)) == 4
    assert ids[1].startswith("invalid_line_000002_")
    assert not set(read_sources(write(tmp_path, "b.txt", text))["clip_id"].to_pylist()[1:]) & set(ids)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.txt", b"\n# nothing\n", "a.txt holds no sources"),
        ("a.csv", b"label,youtube_id,time_start,time_end,split\n", "a.csv holds no sources"),
        ("a.csv", b"label,video\nabseiling,a.mp4\n", "line 1: no column is named 'url' or 'youtube_id'"),
        ("a.csv", b"label;link\nabseiling;https://h/a.mp4\n", "line 1: no column is named 'url' or 'youtube_id'"),
        ("a.csv", b"youtube_id,label\nabcdefghijk,a\n", "line 2: time_start and time_end must be numbers"),
        ("a.txt", b"abcdefghijk\n-bcdefghij_\n", "no line of .* can be used:\n.*of a YouTube id it is https"),
        ("a.tsv", b"abcdefghijk\trun\n", "no column is named"),
        ("a.txt", b'[\n "https://h/a.mp4"\n]', "it is JSON: write its URLs to a csv"),
        ("a.json", b'{"url": "https://h/a.mp4"}\n{"url": "https://h/b.mp4"}\n', "it is JSON: write its URLs to a csv"),
        ("a.parquet", b"PAR1\x15\x04", "it is a Parquet or Arrow file"),
        ("a.csv.gz", b"\x1f\x8b\x08", "it is compressed: unpack it first"),
        ("a.csv.zst", b"\x28\xb5\x2f\xfd", "it is compressed: unpack it first"),
        ("a.xlsx", b"PK\x03\x04", "Excel's tables are: save it as csv"),
        ("a.html", b"\n<!DOCTYPE html><p>https://h/a.mp4", "it is an HTML page"),
        ("a.mp4", b"\0\0\0\x20ftypisom", "it is no text"),
        ("a.txt", "label\nañb".encode("latin-1"), "a.txt can't be read .*: save it as UTF-8"),
    ],
)
def test_a_file_that_is_no_list_is_an_error_with_a_fitting_hint(
    tmp_path: Path, name: str, data: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=says) as caught:
        read_sources(tmp_path / name)
    assert "http.server" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(SourceError, match=r"no column is named 'youtube_id'|" + says.replace("'url' or ", "")):
        read_sources(["https://h/a.zip"], annotations=tmp_path / name)


def test_problems_are_named_together(tmp_path: Path) -> None:
    path = write(tmp_path, "k.csv", "url\n/data/a.mp4\na,b\nftp://h/a.mp4\n" + "x\n" * 20)
    with pytest.raises(SourceError) as caught:
        read_sources(path)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines[1:4]] == ["k.csv, line 2", "k.csv, line 3", "k.csv, line 4"]
    assert "http.server" in lines[1]
    assert (lines[0], len(lines), lines[-1]) == (f"no line of {path} can be used:", 12, "and 13 lines more")


def test_messages_obey_nothing_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, "a\x1b[2J.csv", "url,\x1b]0;x\x07\nhttps://h/a.mp4,\nhttps://h/b.mp4\n")
    (problem,) = problems(read_sources(path))
    assert problem == r"a\x1b[2J.csv, line 3: 1 fields, expected 2 (url, \x1b]0;x\x07)"
    (problem,) = problems(read_sources(write(tmp_path, "k.csv", K400 + "run,\x1b[2J,1,2,val,0\n")))
    assert "\x1b" not in problem


def test_annotations_that_name_no_clip_are_told(tmp_path: Path) -> None:
    annotations = write(tmp_path, "k.csv", K400)
    with pytest.warns(UserWarning, match=r"names none of the 1 clips of the list of URLs: .*\{youtube_id\}"):
        read_sources(["https://h/a.mp4"], annotations=annotations)


def test_only_what_signs_a_url_is_no_part_of_its_name() -> None:
    base = "https://h/get.mp4?sku=1"
    signed = (
        "&X-Amz-Date=1&X-Amz-Expires=9&X-Amz-Signature=2",
        "&Expires=1&AWSAccessKeyId=2&Signature=3",
        "&Expires=1&Signature=2&Key-Pair-Id=3",
        "&sv=1&se=2&sp=r&sr=b&sig=3",
    )
    for more in signed:
        assert lasting_url(base + more) == lasting_url(base.replace("://", "://me:secret@") + more) == base
    others = ["sku=1&sig=a", "sku=2&sig=a", "sku=1&sig=b", "st=1&signature=a", "st=2&signature=a", "key=1", "key=2"]
    assert read_sources([f"https://h/get.mp4?{query}" for query in others]).num_rows == len(others)
    for url in ("https://h/a.mp4", "https://h/a.mp4?", "https://h/a%20b.mp4?x=1&&y#z"):
        assert lasting_url(url) == url


def test_lists_of_python() -> None:
    mixed = ["https://h/a.mp4", "file:///etc/passwd", None, float("nan"), 3, Path("a.mp4"), b"https://h/a.mp4"]
    found = problems(read_sources(mixed))  # type: ignore[arg-type]
    assert found[0].startswith("sources[1]: not an http or https URL; serve the folder")
    assert found[1:] == [f"sources[{index}]: not a URL" for index in range(2, 7)]
    for host in ("xn--a.com", "xn--.com", f"xn--{'a' * 59}.com", "me:x@xn--a.com", "[::1]@", "[::1]]", "ä" * 70):
        found = problems(read_sources(["https://h/a.mp4", f"http://{host}/a.mp4"]))
        assert found == ["sources[1]: not a URL"], host
    for host in ("a" * 300, "a..b", ".a", "[fe80::1%25xn--a]"):
        found = problems(read_sources(["https://h/a.mp4", f"http://{host}/a.mp4"]))
        assert found[0].startswith("sources[1]: not an http or https URL"), host
    with pytest.raises(SourceError, match="the list of URLs holds no sources"):
        read_sources([])
    with pytest.raises(SourceError, match=r"no line of the list of URLs can be used:\nsources\[0\]"):
        read_sources(["x"])
    with pytest.raises(TypeError, match="sources must be a list of URLs or the path of one, not NoneType"):
        read_sources(None)  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="sources is a URL: put it into a"):
        read_sources("https://me:hunter2@h/a.mp4")


@pytest.mark.parametrize(("name", "value"), [("limit", 1e3), ("limit", "5"), ("limit", None), ("sample_seed", 1.5)])
def test_numbers_of_another_type_are_named(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{name}={value!r} must be a whole number"):
        read_sources(["https://h/a.mp4"], **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit=-1"):
        read_sources(["https://h/a.mp4"], limit=-1)


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.txt can't be read"):
        read_sources(tmp_path / "none.txt")
    (tmp_path / "latin.csv").write_bytes("label\nañb".encode("latin-1"))
    with pytest.raises(SourceError, match=r"latin\.csv can't be read"):
        read_sources(["https://h/a.mp4"], annotations=tmp_path / "latin.csv")


def test_errors_do_not_show_credentials(tmp_path: Path) -> None:
    bad = ["ftp://user:hunter2@h/a.mp4", "user:hunter2@h/a.mp4", "https://user:hunter2@h:x/a.mp4"]
    assert "hunter2" not in str(problems(read_sources(["https://h/a.mp4", *bad])))
    text = "https://h/a.mp4\n" + "\n".join(bad)
    assert "hunter2" not in str(problems(read_sources(write(tmp_path, "a.txt", text))))


@pytest.mark.parametrize(
    ("num_videos", "num_archives", "limit", "expected"),
    [
        (5, 0, 3, [None, None, None]),
        (5, 0, 9, [None] * 5),
        (0, 4, 2, [1, 1]),
        (0, 3, 8, [3, 3, 2]),
        (2, 2, 7, [None, None, 3, 2]),
        (1, 1, 1, [None]),
    ],
)
def test_limit_takes_one_of_each_and_shares_the_rest(
    num_videos: int, num_archives: int, limit: int, expected: list[int | None]
) -> None:
    urls = [f"https://h/{i}.mp4" for i in range(num_videos)] + [f"https://h/{i}.tar.gz" for i in range(num_archives)]
    table = read_sources(urls, limit=limit)
    assert table["max_clips"].to_pylist() == expected
    assert sum(share or 1 for share in expected) <= limit


def test_limit_leaves_annotations(tmp_path: Path) -> None:
    annotations = write(tmp_path, "k.csv", K400 + "archery,abcdefghijk,1,11,validate,1\n")
    table = read_sources(["https://h/a.zip", "https://h/b.zip"], annotations=annotations, limit=1)
    assert table["kind"].to_pylist() == ["archive", "annotation", "annotation"]


def test_sample_is_the_same_for_the_same_seed() -> None:
    urls = [f"https://h/{i}.mp4" for i in range(100)]
    sample = read_sources(urls, limit=10, sample_seed=7)["url"].to_pylist()
    assert sample == read_sources(urls, limit=10, sample_seed=7)["url"].to_pylist()
    assert sample != read_sources(urls, limit=10, sample_seed=8)["url"].to_pylist()
    assert sample != urls[:10]
    assert set(sample) <= set(urls)
    random.seed(1)
    assert sample == read_sources(urls, limit=10, sample_seed=7)["url"].to_pylist()


def test_many_sources(tmp_path: Path) -> None:
    ids = [f"{i:011d}" for i in range(5_000)]
    annotations = write(tmp_path, "k.csv", K400 + "".join(f"a{i[-2:]},{i},1,11,validate,0\n" for i in ids))
    urls = write(tmp_path, "k.txt", "".join(f"https://h/{i}_000001_000011.mp4\n" for i in ids))
    table = read_sources(urls, annotations=annotations)
    assert table.num_rows == 5_001
    assert table.filter(pa.compute.equal(table["kind"], "video"))["label"].null_count == 0


@pytest.mark.parametrize("header", ["url,youtube_id,time_start,time_end", "url,other,time_start,time_end"])
def test_an_archive_is_not_one_clips_source(header: str, tmp_path: Path) -> None:
    path = write(tmp_path, "list.csv", f"{header}\nhttps://h/part_0.tar.gz,abcdefghijk,1,11\nhttps://h/a.zip,,,\n")
    table = read_sources(path)
    assert "list.csv, line 2: an archive with one clip's times: list it by its URL" in problems(table)[0]
    assert table["kind"].to_pylist() == ["archive", "invalid"]


PIECES = (
    *(
        "https://",
        "http://",
        "ftp://",
        "h/",
        "h.org/",
        "[::1]",
        "a.mp4",
        "a b.mp4",
        ".tar.gz",
        "?x=1",
        "&y=",
        "%",
        "%2",
        "%zz",
    ),
    *(
        ",",
        "\t",
        ";",
        "|",
        '"',
        "'",
        "#",
        "\\",
        " ",
        "\n",
        "\n",
        "\r",
        "\r\n",
        "\0",
        "\x1b[2J",
        "\u2028",
        "é",
        "日",
        "\ud800",
    ),
    *(
        "url",
        "label",
        "youtube_id",
        "time_start",
        "time_end",
        "417",
        "-1",
        "nan",
        "1e9",
        "inf",
        ID,
        CLIP,
        "youtu.be/",
        "@",
        ":",
    ),
)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_a_list_holds_is_a_row_or_one_error(seed: int, tmp_path: Path) -> None:
    generator = random.Random(seed)
    for _ in range(60):
        text = "".join(generator.choices(PIECES, k=generator.randrange(60)))
        if generator.random() < 0.5:
            text = "https://h/a.mp4\n" + text
        name = generator.choice(["a.txt", "a.csv", "a.tsv"])
        (tmp_path / name).write_bytes(
            text.encode("utf-8", errors="surrogatepass" if generator.random() < 0.1 else "replace")
        )
        urls = ["https://h/a.zip"]
        for sources, annotated in ((tmp_path / name, None), (text.split("\n"), None), (urls, tmp_path / name)):
            try:
                table = read_sources(sources, annotations=annotated)  # type: ignore[arg-type]
            except SourceError:
                continue
            counts(table)
            rows(table)
            for clip_id in table["clip_id"].to_pylist():
                assert set(clip_id) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
            for url in filter(None, table["url"].to_pylist()):
                assert url.isascii()
                assert url.isprintable()
                assert " " not in url
