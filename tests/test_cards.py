"""What a notebook shows of a clip, a dataset and a report. Labels, URLs and messages are not ours: they are text."""

import base64
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
from conftest import Run

import kdepth
from kdepth.dataset.writer import ClipWriter
from kdepth.schema import FAILED, OK, new_row

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """The elements and the text of a page, as a browser understands them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.pieces: list[str] = []  # what is between two tags
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"
        self.pieces.append(data)


def assert_harmless(html: str) -> Page:
    page = Page(html)
    assert {tag for tag, _ in page.elements} <= {"div", "b", "br", "img", "table", "tr", "th", "td", "span"}
    assert {name for _, attributes in page.elements for name in attributes} <= {"style", "width", "alt", "src"}
    return page


def test_a_clip_shows_a_frame_its_depth_and_its_facts(sample_run: Run) -> None:
    clip = next(iter(kdepth.open_dataset(sample_run.root)))
    page = assert_harmless(clip._repr_html_())
    for fact in (clip.clip_id, clip.row["label"], clip.row["source_url"], clip.row["depth_model"], "relative"):
        assert fact in page.text
    source = dict(page.elements)["img"]["src"] or ""
    jpeg = base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))
    assert len(jpeg) < 100_000
    picture = cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    height, width = picture.shape[:2]
    # Left the frame, right its depth, neither mirrored: near, the brightest, is where inverse depth is largest.
    middle = clip.depth_indices[len(clip.depth_indices) // 2]
    frame = cv2.resize(clip.frame(middle), (width // 2, height), interpolation=cv2.INTER_AREA)
    assert np.abs(picture[:, : width // 2].astype(int) - frame).mean() < 8
    depth = cv2.resize(clip.inverse_depth(middle), (width // 2, height), interpolation=cv2.INTER_AREA)
    brightness = picture[:, width // 2 :].astype(float).sum(axis=2)
    assert np.corrcoef(brightness.ravel(), depth.clip(*np.percentile(depth, (1, 99))).ravel())[0, 1] > 0.9


def test_what_comes_from_elsewhere_is_shown_as_text(tmp_path: Path) -> None:
    writer = ClipWriter(tmp_path / "<i>root</i>", "run")
    writer.add(new_row(clip_id="a", status=OK, label=HOSTILE, source_url=f"http://x/{HOSTILE}", num_depth_frames=0))
    failure = {"failed_stage": "download", "error_type": "HttpStatusError", "error_message": HOSTILE}
    writer.add(new_row(clip_id="b", status=FAILED, label=HOSTILE, archive_member=HOSTILE, **failure))
    writer.finish()
    ds = kdepth.open_dataset(tmp_path / "<i>root</i>")
    for thing in (ds, ds["a"], ds["b"]):
        assert HOSTILE in assert_harmless(thing._repr_html_()).text
    assert "failed at download" in ds["b"]._repr_html_()
    report = kdepth.RunReport("run", num_failed=1, failures=Counter({("download", HOSTILE): 1}))
    assert HOSTILE in assert_harmless(report._repr_html_()).text


def test_a_label_is_no_formula_for_mathjax(tmp_path: Path) -> None:
    label = r"pay $\alpha$, $$\beta$$, \(x\), \[y\] or \begin{equation}z\end{equation}"
    writer = ClipWriter(tmp_path, "run")
    writer.add(new_row(clip_id="a", status=OK, label=label, source_url=label))
    writer.add(new_row(clip_id="b", status=FAILED, failed_stage="download", error_type=label, error_message=label))
    writer.finish()
    ds = kdepth.open_dataset(tmp_path)
    for thing in (ds, ds["a"], ds["b"]):
        page = assert_harmless(thing._repr_html_())
        assert label in "".join(page.pieces)
        # MathJax looks for its delimiters in the text between two tags.
        assert not [piece for piece in page.pieces if len(piece) > 1 and re.search(r"[$\\]", piece)]


def test_a_clip_whose_files_are_gone_still_shows_its_facts(sample_run: Run, tmp_path: Path) -> None:
    row = next(iter(kdepth.open_dataset(sample_run.root))).row
    page = assert_harmless(kdepth.Clip(tmp_path, row)._repr_html_())
    assert row["label"] in page.text
    assert "DatasetError" in page.text


def test_a_dataset_counts_its_clips_by_status_and_label(tmp_path: Path) -> None:
    writer = ClipWriter(tmp_path / "set", "run")
    for k in range(40):
        label = None if k == 0 else "abseiling" if k < 20 else f"label {k}"
        writer.add(new_row(clip_id=f"clip{k}", status=OK, label=label, num_depth_frames=300, duration_seconds=9.0))
    writer.add(new_row(clip_id="bad", status=FAILED, label="abseiling"))
    writer.finish()
    ds = kdepth.open_dataset(tmp_path / "set")
    text = assert_harmless(ds._repr_html_()).text
    for fact in ("40 ok, 1 failed", "12,000 frames of 6.0 minutes", "abseiling (19)", "no label (1)", "and 10 more"):
        assert fact in text
    assert all(name in text for name in kdepth.COLUMNS)
    assert str(tmp_path) not in text + repr(ds)  # a notebook that is given away tells nothing of the machine
    empty = ClipWriter(tmp_path / "empty", "run")
    empty.finish()
    assert "0 ok, 0 failed" in assert_harmless(kdepth.open_dataset(tmp_path / "empty")._repr_html_()).text


def test_a_report_is_fit_for_a_lab_book(sample_run: Run) -> None:
    text = assert_harmless(sample_run.report._repr_html_()).text
    report = sample_run.report
    for fact in (f"{report.num_ok} ok, 0 failed", f"{report.num_depth_frames:,}", f"kdepth {kdepth.__version__}"):
        assert fact in text
    assert re.search(r"\d+ s: \d+\.\d depth frames/s, \d+\.\d clips/min", text)
    assert f"version {report.version}" in text
    assert "Nothing to do" in kdepth.RunReport("run")._repr_html_()
