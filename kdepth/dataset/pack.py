"""A dataset in one piece: the rows and the clips' files in one Lance dataset."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import lance
import pyarrow as pa
from tqdm import tqdm

from kdepth.dataset.dataset import ClipDataset
from kdepth.dataset.table import KINDS, ROWS_AT_ONCE, column_names, read_batches
from kdepth.errors import DatasetError, printable
from kdepth.schema import CLIP_SCHEMA, FAILED
from kdepth.storage import Root

_ROWS_AT_ONCE = 8  # that the progress bar takes one step for


def pack(root: str | Path, uri: str | Path) -> None:
    """Write one Lance dataset that holds everything: the rows, and each clip's 360p and depth file as blob columns.

    For clusters without a shared disk and for uploads to a hub; `open_dataset` opens it like a root, and reads a frame
    without loading the rest of its file. Lance copies the files piece by piece, so that memory does not grow with them.

    Args:
        root: Folder or URI of a dataset.
        uri: Where to write: a new or an empty folder, or a prefix of an object store with nothing below it.

    Raises:
        DatasetError: There is no dataset at `root` or it is packed already, something is at `uri`, or a file of a clip
            is missing.
    """
    ds = ClipDataset(root)
    if ds.is_packed:
        raise DatasetError(f"{root} is packed already: copy it as it is")
    target = Root(uri)
    if not target.is_empty():
        raise DatasetError(f"{uri} exists already; choose another place, or delete what is there")
    _require_files(ds)
    columns = column_names(ds.lance)
    if taken := set(KINDS).intersection(columns):
        raise DatasetError(f"rename the column {min(taken)!r}: a packed dataset keeps the files under that name")
    fields = [
        CLIP_SCHEMA.field(name) if name in CLIP_SCHEMA.names else ds.lance.schema.field(name).remove_metadata()
        for name in columns
    ]
    schema = pa.schema([*fields, *map(lance.blob_field, KINDS)])
    reader = pa.RecordBatchReader.from_batches(schema, _batches(ds, columns, schema))
    lance.write_dataset(reader, target.uri, mode="create", data_storage_version="2.2", external_blob_mode="ingest")


def _files(row: Mapping[str, Any]) -> list[str | None]:
    """The names of a row's files, relative to the root; None where it has none."""
    return [None if row["status"] == FAILED else row[f"{kind}_path"] for kind in KINDS]


def _require_files(ds: ClipDataset) -> None:
    there = {name for folder in ("360p", "depth") for name in ds.files.sizes(folder)}
    for table in read_batches(ds.lance, ["clip_id", "status", "video_path", "depth_path"], ROWS_AT_ONCE):
        for row in table.to_pylist():
            for name in _files(row):
                if name is not None and name not in there:  # or it is a name that no file of a dataset has
                    raise DatasetError(f"{printable(name)} of {row['clip_id']} is not there: run the pipeline again")


def _batches(ds: ClipDataset, columns: list[str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    base = ds.files.work.as_uri() if ds.has_paths else ds.files.uri
    with tqdm(total=ds.lance.count_rows(), desc="pack", unit="clip", file=sys.stdout, ncols=110) as bar:
        for table in read_batches(ds.lance, columns, _ROWS_AT_ONCE):
            rows = table.select(["status", "video_path", "depth_path"]).to_pylist()
            uris = [[None if name is None else f"{base}/{quote(name)}" for name in _files(row)] for row in rows]
            blobs = [lance.blob_array(list(column)) for column in zip(*uris, strict=True)]
            yield pa.RecordBatch.from_arrays([*table.combine_chunks().to_batches()[0].columns, *blobs], schema=schema)
            bar.update(len(table))
