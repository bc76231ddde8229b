from pathlib import Path

import pytest

import kdepth
from kdepth.downloads.network import public_url


def test_a_notebook_shows_urls_without_what_gives_access() -> None:
    urls = ["https://alice:hunter2@h/a.mp4?x=1&X-Amz-Signature=topsecret", "https://h/b.mp4?token=topsecret", "nothing"]
    sources = kdepth.read_sources(urls)
    shown = kdepth.public_sources(sources)
    assert "topsecret" not in str(shown.to_pylist())
    assert "hunter2" not in str(shown.to_pandas())
    assert shown["url"].to_pylist() == [public_url(urls[0]), public_url(urls[1]), None]
    # What is downloaded stays as it is.
    assert sources["url"].to_pylist() == [*urls[:2], None]
    assert shown.drop_columns("url").equals(sources.drop_columns("url"))


def test_lines_and_clips_are_counted_in_words(tmp_path: Path) -> None:
    path = tmp_path / "my.txt"
    path.write_text("https://h/a.mp4\n")
    assert kdepth.describe_sources(kdepth.read_sources(path)) == "1 line: 1 clip"
    clip = "0wR5jVB-WPk_000417_000427.mp4"
    urls = ["https://h/a.mp4", "https://h/a.mp4", f"https://a/{clip}", f"https://b/{clip}", "https://h/x.zip"]
    path.write_text("\n".join([*urls, "a.mp4", "ftp://h/b", "c", "d"]))
    assert kdepth.describe_sources(kdepth.read_sources(path)).splitlines() == [
        "9 lines: 3 clips, 1 archive, 1 URL that is there twice, 4 lines that can't be used",
        "got a name of their own, as another URL's file has theirs: 1 (one clip? give annotations)",
        "not usable: my.txt, line 6: not an http or https URL; serve the folder of your own files "
        "(`python -m http.server`), and give allow_private_hosts",
        "not usable: my.txt, line 7: not an http or https URL",
        "not usable: my.txt, line 8: not an http or https URL",
        "not usable: 1 more; they become failed rows",
    ]
    limited = kdepth.describe_sources(kdepth.read_sources(path, limit=2)).splitlines()
    assert limited[:2] == [
        "9 lines: 3 clips, 1 archive, 1 URL that is there twice, 4 lines that can't be used",
        "taken, as limit=2: 2 clips or archives",
    ]
    annotations = tmp_path / "val.csv"
    annotations.write_text("label,youtube_id,time_start,time_end\n" + "run,0wR5jVB-WPk,417,427\n" * 2)
    sources = kdepth.read_sources(urls, annotations=annotations)
    assert kdepth.describe_sources(sources).splitlines() == [
        "5 lines: 2 clips, 1 archive, 1 further URL of a clip, 1 URL that is there twice",
        "further annotations of a clip, which are not used: 1",
    ]


def test_only_a_table_of_read_sources_can_be_described() -> None:
    with pytest.raises(ValueError, match="sources must come from read_sources"):
        kdepth.describe_sources(kdepth.read_sources(["https://h/a.mp4"]).replace_schema_metadata(None))
