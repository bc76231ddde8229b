"""The Lance table ``clips.lance``: opening it, reading its rows, and removing files that none of its rows names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import lance
import pyarrow as pa
import pyarrow.compute as pc

from kdepth.errors import DatasetError
from kdepth.schema import CLIP_SCHEMA
from kdepth.storage import Root

ROWS_AT_ONCE = 1024  # of all rows: larger batches make the driver larger, and nothing faster
KINDS = ("video", "depth")  # of a clip's files that are read: the blob columns of a packed dataset


def open_lance(uri: str) -> lance.LanceDataset | None:
    """Open the Lance dataset at a path or URI; None if there is none.

    Raises:
        DatasetError: It takes data from other places, as a shallow clone does.
    """
    try:
        dataset = lance.dataset(uri)
    except (ValueError, OSError) as exc:  # Lance says both in words alone
        if re.search("not found|does not exist", str(exc), re.IGNORECASE):
            return None
        raise
    if bases := dataset.base_paths():
        elsewhere = ", ".join(str(base.path) for base in bases.values())
        raise DatasetError(f"{uri} takes its data from other places ({elsewhere}); kdepth reads only whole copies")
    return dataset


def quoted(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def is_blob(field: pa.Field) -> bool:
    """Whether a column holds files, which are read one by one."""
    return isinstance(field.type, pa.BaseExtensionType) or b"lance-encoding:blob" in (field.metadata or {})


def column_names(dataset: lance.LanceDataset) -> list[str]:
    """The columns of `CLIP_SCHEMA`, then those that users added."""
    added = [field.name for field in dataset.schema if field.name not in CLIP_SCHEMA.names and not is_blob(field)]
    return [*CLIP_SCHEMA.names, *added]


def read_columns(
    dataset: lance.LanceDataset, columns: Sequence[str], where: str | None = None, **part: int
) -> pa.Table:
    """Rows of a dataset (or, by ``offset`` and ``limit``, some); a column that an older kdepth did not know is null."""
    there = [name for name in columns if name in dataset.schema.names]
    found = dataset.to_table(columns=list(dict.fromkeys([*there, "clip_id"])), filter=where, **part)
    others = CLIP_SCHEMA.empty_table().select([name for name in columns if name not in there])
    return pa.concat_tables([found, others], promote_options="default").select(columns)


def read_rows(root: str | Path | Root, columns: Sequence[str], where: str | None = None) -> pa.Table:
    """Rows of a root's dataset as they are now; an empty table if nothing was ever committed."""
    dataset = open_lance(Root(root).lance_uri)
    if dataset is None:
        return CLIP_SCHEMA.empty_table().select(columns)
    return read_columns(dataset, columns, where)


def at_version(dataset: lance.LanceDataset, moment: int | str | datetime) -> lance.LanceDataset:
    """The dataset at a version's number, at a version's tag, or at the last version before a time.

    Raises:
        DatasetError: There is no such version (any more).
    """
    if isinstance(moment, bool) or not isinstance(moment, int | str | datetime):
        raise TypeError(f"as_of={moment!r}: must be a version's number (int), a tag (str) or a datetime")
    if isinstance(moment, str):
        if moment not in (tags := dataset.tags.list()):
            raise DatasetError(f"{dataset.uri} has no tag {moment!r}; its tags: {', '.join(sorted(tags)) or 'none'}")
        return lance.dataset(dataset.uri, version=moment)
    kept = {version["version"]: version["timestamp"].astimezone(UTC) for version in dataset.versions()}
    # (Lance's own `asof` leaves out a version of exactly this time, and takes no time zones.)
    last = moment if isinstance(moment, int) else max((v for v in kept if kept[v] <= moment.astimezone(UTC)), default=0)
    if last not in kept:
        raise DatasetError(f"{dataset.uri} has nothing as of {moment}; kept are versions {min(kept)} to {max(kept)}")
    return lance.dataset(dataset.uri, version=last)


class Cleaned(NamedTuple):
    """How much was removed."""

    num_files: int
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.num_files} files removed, {self.num_bytes / 1e6:.1f} MB"


def remove_unnamed_files(root: Root, before: datetime | None = None) -> Cleaned:
    """Remove files that `storage.made_name` named and no row names. No run may be making any meanwhile.

    Kept are those that the newest version of the dataset names, or a version with a tag.

    Args:
        root: With a dataset in it.
        before: Keep files that are younger, too, and those that the version that was current then names: somebody may
            still read them.
    """
    dataset = lance.dataset(root.lance_uri)
    unnamed = root.made_before(before.timestamp() if before else math.inf)
    versions: list[int | str] = [dataset.version, *dataset.tags.list()]
    if before:
        versions += [v["version"] for v in dataset.versions() if v["timestamp"].astimezone(UTC) <= before][-1:]
    for version in versions if unnamed else ():
        then = lance.dataset(dataset.uri, version=version)
        for batch in then.to_batches(columns=["raw_path", "video_path", "depth_path"], batch_size=ROWS_AT_ONCE):
            for column in batch.columns:
                for name in pc.drop_null(column).to_pylist():
                    unnamed.pop(name, None)
    for name in unnamed:
        root.delete(name)
    return Cleaned(len(unnamed), sum(unnamed.values()))
