from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest

from kdepth.errors import SourceError
from kdepth.schema import SOURCE_SCHEMA, clip_id_for, lasting_url
from kdepth.sources import read_sources

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


def test_duplicates_come_once_in_the_order_of_the_list(tmp_path: Path) -> None:
    urls = [f"https://h/{CLIP}.mp4", "https://h/b.mp4", f"https://mirror/{CLIP}.webm", "https://h/b.mp4"]
    assert read_sources(urls)["url"].to_pylist() == urls[:2]
    table = read_sources(["https://h/x.zip"], annotations=write(tmp_path, "k.csv", K400 + K400.splitlines()[1] + "\n"))
    assert table["kind"].to_pylist() == ["archive", "annotation"]


def test_a_line_ends_at_newlines_alone(tmp_path: Path) -> None:
    label = "one\u2028two\x85three"
    path = write(tmp_path, "k.csv", f"url,label\r\nhttps://h/a.mp4,{label}\r\n")
    assert [row["label"] for row in rows(read_sources(path))] == [label]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", "https://h/a.mp4\n\nftp://h/b.mp4\n", "line 3: not an http or https URL"),
        ("a.txt", "https://h/a.mp4\nb.mp4\n", "line 2: not an http or https URL"),
        ("a.txt", "http://[::1\n", "line 1: not a URL"),
        ("a.txt", "https://a b/c.mp4\n", "line 1: not an http or https URL"),
        ("a.txt", "https://www.youtube.com/@someone\n", "line 1: not the URL of a YouTube video"),
        ("a.csv", "url,label\nhttps://h/a.mp4,a,b\n", "line 2: 3 fields, expected 2 (url, label)"),
        ("a.csv", "url\nhttps://h/a.mp4\n\nnothing\n", "line 4: not an http or https URL"),
        ("a.csv", K400 + f"tying knot, not a tie,{ID},1,2,validate,0\n", "line 3: 7 fields, expected 6"),
        ("a.csv", K400 + "abseiling,#NAME?,1,2,validate,0\n", "line 3: youtube_id '#NAME?'"),
        ("a.csv", K400 + f"abseiling,{ID},x,2,validate,0\n", "line 3: time_start and time_end must be numbers"),
        ("a.csv", K400 + f"abseiling,{ID},2,nan,validate,0\n", "line 3: time_start 2 and time_end nan"),
        ("a.csv", K400 + f"abseiling,{ID},20,10,validate,0\n", "line 3: time_start 20 and time_end 10"),
        ("a.csv", K400 + f'"abseiling,{ID},1,2,validate,0\n', "line 3: "),
        ("a.csv", "label,video\nabseiling,a.mp4\n", "line 1: no column is named 'url' or 'youtube_id'"),
        ("a.txt", "\n# nothing\n", "a.txt holds no sources"),
        ("a.csv", "label,youtube_id,time_start,time_end,split\n", "a.csv holds no sources"),
    ],
)
def test_malformed_lines_name_file_and_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(SourceError) as caught:
        read_sources(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_malformed_lines_are_named_together(tmp_path: Path) -> None:
    path = write(tmp_path, "k.csv", "url\nhttps://h/a.mp4\n/data/a.mp4\na,b\nftp://h/a.mp4\n" + "x\n" * 20)
    with pytest.raises(SourceError) as caught:
        read_sources(path)
    lines = str(caught.value).splitlines()
    assert [line.rpartition("line ")[2][:1] for line in lines[:3]] == ["3", "4", "5"]
    assert "http.server" in lines[0]
    assert (len(lines), lines[-1]) == (11, "and 13 lines more")


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


def test_malformed_lists() -> None:
    with pytest.raises(SourceError, match=r"sources\[1\]: not an http or https URL"):
        read_sources(["https://h/a.mp4", "file:///etc/passwd"])
    with pytest.raises(SourceError, match="the list of URLs holds no sources"):
        read_sources([])
    with pytest.raises(ValueError, match="limit=-1"):
        read_sources(["https://h/a.mp4"], limit=-1)


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.txt can't be read"):
        read_sources(tmp_path / "none.txt")
    (tmp_path / "latin.csv").write_bytes("label\nañb".encode("latin-1"))
    with pytest.raises(SourceError, match=r"latin\.csv can't be read"):
        read_sources(["https://h/a.mp4"], annotations=tmp_path / "latin.csv")


def test_errors_do_not_show_credentials() -> None:
    with pytest.raises(SourceError) as caught:
        read_sources(["ftp://user:hunter2@h/a.mp4"])
    assert "hunter2" not in str(caught.value)


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


def test_an_archive_is_not_one_clips_source(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("url,youtube_id,time_start,time_end\nhttps://h/part_0.tar.gz,abcdefghijk,1,11\n")
    with pytest.raises(SourceError, match=r"line 2: the URL of an archive.*as annotations"):
        read_sources(path)
