"""What a list of sources became, as a notebook may show it."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.compute as pc

from kdepth.downloads.network import public_url
from kdepth.sources import ASKED_KEY

# Count -> what it counts, one and several.
_COUNTS = {
    "clips": ("clip", "clips"),
    "archives": ("archive", "archives"),
    "alternatives": ("further URL of a clip", "further URLs of clips"),
    "merged": ("URL that is there twice", "URLs that are there twice"),
    "invalid": ("line that can't be used", "lines that can't be used"),
}


def public_sources(sources: pa.Table) -> pa.Table:
    """The table of `read_sources` as it may be shown and saved in a notebook.

    Args:
        sources: From `read_sources`, whose ``url`` is what will be asked for, with passwords and signatures.

    Returns:
        The same rows, with ``url`` as in the dataset's column ``source_url``: without what gives access.
    """
    shown = [url and public_url(url) for url in sources["url"].to_pylist()]
    return sources.set_column(sources.schema.get_field_index("url"), "url", pa.array(shown, pa.string()))


def describe_sources(sources: pa.Table) -> str:
    """Say how many lines of a list became how many clips, and what became of the others.

    Args:
        sources: From `read_sources`.

    Returns:
        One line, and one more for each thing to know.

    Raises:
        ValueError: The table is not from `read_sources`.
    """
    if ASKED_KEY not in (sources.schema.metadata or {}):
        raise ValueError("sources must come from read_sources")
    counted = json.loads(sources.schema.metadata[ASKED_KEY])
    parts = [f"{counted[name]:,} {words[counted[name] != 1]}" for name, words in _COUNTS.items() if counted[name]]
    lines = [f"{counted['lines']:,} {'line' if counted['lines'] == 1 else 'lines'}: {', '.join(parts)}"]
    if limit := counted["limit"]:
        taken = sources.filter(pc.is_in(sources["kind"], pa.array(["video", "youtube", "archive"])))["clip_id"]
        lines.append(f"taken, as limit={limit}: {len(pc.unique(taken)):,} clips or archives")
    if renamed := counted["renamed"]:
        lines.append(
            f"got a name of their own, as another URL's file has theirs: {renamed:,} (one clip? give annotations)"
        )
    if repeated := counted["annotations_merged"]:
        lines.append(f"further annotations of a clip, which are not used: {repeated:,}")
    problems = sources.filter(pc.equal(sources["kind"], "invalid"))["problem"].to_pylist()
    lines += [f"not usable: {problem}" for problem in problems[:3]]
    if len(problems) > 3:
        lines.append(f"not usable: {len(problems) - 3:,} more; they become failed rows")
    return "\n".join(lines)
