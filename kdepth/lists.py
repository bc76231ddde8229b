"""Read the lines of a list: a text file with one thing a line, or a table with columns (csv, tsv)."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from yarl import URL

from kdepth.errors import SourceError, printable
from kdepth.schema import ARCHIVE_SUFFIXES, VIDEO_SUFFIXES

YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
# Of annotated videos from elsewhere, too. It becomes part of file names.
ANNOTATED_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ANNOTATION_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split", "is_cc")
_SUFFIXES = (*ARCHIVE_SUFFIXES, *VIDEO_SUFFIXES)
_DELIMITERS = (",", "\t", ";")
_MOST_CHARS = 65_536  # of a line of a plain list
_MOST_NAMED = 10  # problems in one message
_MOST_LINES = 20  # of one quoted value
_AS_CSV = "write its URLs to a csv with a 'url' column, or give them as a Python list"
# How files begin that are no lists, and what to do about it.
_NO_LISTS = {
    rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd": "it is compressed: unpack it first",
    rb"PK\x03\x04": "it is a zip file, as Excel's tables are: save it as csv",
    rb"PAR1|ARROW1": f"it is a Parquet or Arrow file: {_AS_CSV}",
    rb"\s*[\[{]\s*[\"\[{\]}]": f"it is JSON: {_AS_CSV}",
    rb"(?i)\s*<(!doctype|html)": "it is an HTML page, not the file behind it",
}


class Line(NamedTuple):
    """A line of a file, or an element of a Python list."""

    file: str  # empty: an element
    number: int
    text: str

    def __str__(self) -> str:
        return f"{printable(self.file)}, line {self.number}" if self.file else f"sources[{self.number}]"


class Table(NamedTuple):
    """Lines that are divided into columns."""

    delimiter: str
    columns: list[str]
    lines: list[Line]

    def records(self) -> Iterator[tuple[Line, dict[str, str] | SourceError]]:
        """Each line with its values by column, or with what is wrong with it. A quoted value may span some lines."""
        at, num_columns = 0, len(self.columns)
        while at < len(self.lines):
            for used in range(1, _MOST_LINES + 1):
                values = _values("\n".join(line.text for line in self.lines[at : at + used]), self.delimiter)
                if values is not None and (used == 1 or len(values) == num_columns):
                    break
            else:
                used, values = 1, None
            line, at = self.lines[at], at + used
            if values is None:
                most = csv.field_size_limit()
                yield line, SourceError(f"no line of a table: a quote that does not end, or over {most} characters")
            elif not any(values):
                continue
            elif any(values[num_columns:]) or len(values) < num_columns:
                names = printable(", ".join(self.columns), 200)
                yield line, SourceError(f"{len(values)} fields, expected {num_columns} ({names})")
            else:
                yield line, dict(zip(self.columns, values, strict=False))


def read_lines(path: Path) -> list[Line]:
    """Read the lines of a text file that are neither blank nor a comment (``#``); SourceError if it is no list."""
    try:
        with path.open("rb") as file:
            data = file.read(4096)
            reason = next((why for begin, why in _NO_LISTS.items() if re.match(begin, data)), None)
            is_utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))  # as Windows' shells write
            if reason is None and b"\0" in data and not is_utf16:
                reason = "it is no text"
            if reason is not None:
                raise SourceError(f"{path} is no list: {reason}")
            text = (data + file.read()).decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as exc:
        raise SourceError(f"{path} can't be read ({exc}): save it as UTF-8") from exc
    except OSError as exc:
        raise SourceError(f"{path} can't be read: {exc.strerror}") from exc
    # Not `splitlines`, for which a line ends at some characters of labels, too.
    lines = (Line(path.name, number, line) for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1))
    return [line for line in lines if line.text.strip() and not line.text.lstrip().startswith("#")]


def find_table(lines: list[Line]) -> Table | None:
    """Find the columns of a table of URLs or annotations; None: there are none, or none that is known."""
    for delimiter in _DELIMITERS if lines else ():
        columns = [name.lower() for name in _values(lines[0].text, delimiter) or ()]
        if "url" in columns or "youtube_id" in columns:
            return Table(delimiter, columns, lines[1:])
    for line in lines[:100]:  # annotations may come without the names of their columns
        for delimiter in _DELIMITERS:
            values = _values(line.text, delimiter) or []
            is_annotation = len(values) >= 4 and ANNOTATED_ID.fullmatch(values[1])
            if is_annotation and all(re.fullmatch(r"\d+(\.\d*)?", value) for value in values[2:4]):
                return Table(delimiter, list(_ANNOTATION_COLUMNS[: len(values)]), lines)
    return None


def require_usable(where: str, problems: list[str | None]) -> None:
    """Raise SourceError for a list without a line, or of which each has a problem; it names the first ten."""
    if not problems:
        raise SourceError(f"{where} holds no sources")
    wrong = [problem for problem in problems if problem]
    if len(wrong) == len(problems):
        more = [f"and {len(wrong) - _MOST_NAMED} lines more"] if len(wrong) > _MOST_NAMED else []
        raise SourceError("\n".join([f"no line of {where} can be used:", *wrong[:_MOST_NAMED], *more]))


def no_column(where: str, first: Line, names: str) -> SourceError:
    """What to raise for a file whose first line does not name a column that is needed."""
    at, begins = f"{where}, line {first.number}", printable(first.text, 100)
    return SourceError(f"{at}: no column is named {names}; commas are between columns. It begins: {begins}")


def split_label(text: str) -> tuple[str, str]:
    """Split a line into a URL and the label after it, which may be empty; SourceError if the URL is not the first.

    A URL may hold blanks and commas itself: it ends after a suffix such as ``.mp4``, or else at the first blank.
    """
    if len(text) > _MOST_CHARS:
        raise SourceError(f"over {_MOST_CHARS} characters")
    if re.search(r"\shttps?://", text):
        raise SourceError("the URL must come first in its line, and there must be only one")
    whole = text, ""
    if "\t" not in text and text.lower().endswith(_SUFFIXES):
        return whole
    for gap in re.finditer(r"\s*\t\s*|\s*[,;|]\s*|\s+", text):
        url, label = text[: gap.start()], text[gap.end() :]
        ends = url if set(gap[0]) & set(",;|") else re.split("[?#]", url)[0]
        if "\t" in gap[0] or (ends[-16:].lower().endswith(_SUFFIXES) and not ("?" in url and "=" in label)):
            return url, label
    url, _, label = text.partition(" ")
    return whole if "?" in url and "=" in label else (url, label)


def spelled_url(text: str, url: URL) -> str:
    """Keep a URL as it was written (a signature holds for this spelling); quote only what can't stand in one."""
    if re.fullmatch(r"[\w:/?#@!$&'()*+,;=.~-]+", text, re.ASCII):  # most: no % either
        return text
    parts = urlsplit(re.sub("%(?![0-9A-Fa-f]{2})", "%25", text))
    # Bytes that are no UTF-8 come from headers as surrogates.
    path = quote(parts.path, "%/:@!$&'()*+,;=~", errors="surrogateescape")
    query, fragment = (
        quote(part, "%/:@!$&'()*+,;=~?[]", errors="surrogateescape") for part in (parts.query, parts.fragment)
    )
    is_plain = re.fullmatch(r"[\w:@!$&'()*+,;=.~%\[\]-]+", parts.netloc, re.ASCII)
    netloc = parts.netloc if is_plain else url.raw_authority
    return parts._replace(netloc=netloc, path=path, query=query, fragment=fragment).geturl()


def remedy(text: str) -> str:
    """Say what to do about a line that is no URL, as far as one can tell from it; may be empty."""
    if YOUTUBE_ID.fullmatch(text):
        return "; of a YouTube id it is https://www.youtube.com/watch?v=ID"
    if re.match(r"[\w-]+(\.[\w-]+)+[/:]", text):
        return "; begin it with https://"
    if re.match(r"file:|[./~\\]|[A-Za-z]:[\\/]", text) or text.lower().endswith(_SUFFIXES):
        return "; serve the folder of your own files (`python -m http.server`), and give allow_private_hosts"
    return ""


def _values(text: str, delimiter: str) -> list[str] | None:
    """The values of a line; None: it is not whole."""
    try:
        return [value.strip() for value in next(csv.reader([text], delimiter=delimiter, strict=True))]
    except csv.Error:
        return None
