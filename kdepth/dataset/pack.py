"""A dataset in one piece: the rows and the clips' files in one Lance dataset."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import lance
import pyarrow as pa
from tqdm import tqdm

from kdepth.dataset.dataset import ClipDataset
from kdepth.dataset.table import KINDS, read_columns
from kdepth.errors import DatasetError, printable
from kdepth.schema import CLIP_SCHEMA, COLUMNS, FAILED, OK
from kdepth.storage import Root

_ROWS_AT_ONCE = 8  # for one step of the progress bar


def pack(root: str | Path, uri: str | Path) -> None:
    """Write one Lance dataset that holds everything: the rows, and each clip's 360p and depth file as blob columns.

    For clusters without a shared disk and for uploads to a hub; `open_dataset` opens it like a root, and reads a frame
    without loading the rest of its file. Lance copies the files piece by piece, so that memory does not grow with them.
    A ``README.md`` in it is a dataset card as hubs show it, and tells ``datasets.load_dataset`` the columns' types.

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
    if taken := set(KINDS).intersection(ds.column_names):
        raise DatasetError(f"rename the column {min(taken)!r}: a packed dataset keeps the files under that name")
    fields = [
        CLIP_SCHEMA.field(name) if name in CLIP_SCHEMA.names else ds.lance.schema.field(name).remove_metadata()
        for name in ds.column_names
    ]
    schema = pa.schema([*fields, *map(lance.blob_field, KINDS)])
    reader = pa.RecordBatchReader.from_batches(schema, _batches(ds, schema))
    lance.write_dataset(reader, target.uri, mode="create", data_storage_version="2.2", external_blob_mode="ingest")
    with target.writing("README.md") as path:
        path.write_text(_dataset_card(ds, pa.schema([*fields, *((kind, pa.large_binary()) for kind in KINDS)])))


def _files(row: Mapping[str, Any]) -> list[str | None]:
    """The names of a row's files, relative to the root; None where it has none."""
    return [None if row["status"] == FAILED else row[f"{kind}_path"] for kind in KINDS]


def _require_files(ds: ClipDataset) -> None:
    there = {name for folder in ("360p", "depth") for name in ds.files.sizes(folder)}
    for row in ds.table(columns=["clip_id", "status", "video_path", "depth_path"]).to_pylist():
        for name in _files(row):
            if name is not None and name not in there:  # or it is a name that no file of a dataset has
                raise DatasetError(f"{printable(name)} of {row['clip_id']} is not there: run the pipeline again")


def _batches(ds: ClipDataset, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    base = ds.files.work.as_uri() if ds.has_paths else ds.files.uri
    for start in tqdm(range(0, ds.lance.count_rows(), _ROWS_AT_ONCE), desc="pack", file=sys.stdout, ncols=110):
        some = read_columns(ds.lance, ds.column_names, offset=start, limit=_ROWS_AT_ONCE).combine_chunks()
        rows = some.select(["status", "video_path", "depth_path"]).to_pylist()
        uris = [[None if name is None else f"{base}/{quote(name)}" for name in _files(row)] for row in rows]
        blobs = [lance.blob_array(list(column)) for column in zip(*uris, strict=True)]
        yield pa.RecordBatch.from_arrays([*some.to_batches()[0].columns, *blobs], schema=schema)


# Arrow's names of types that `datasets` calls otherwise.
_DTYPES = {"double": "float64", "float": "float32", "halffloat": "float16", "date32[day]": "date32"}


def _feature(dtype: pa.DataType) -> Any:
    """A column's type as a dataset card spells it."""
    if pa.types.is_struct(dtype):
        return {"struct": [_named(field) for field in dtype]}
    if pa.types.is_list(dtype) or pa.types.is_fixed_size_list(dtype):
        inner = _feature(dtype.value_type)
        length = {"length": dtype.list_size} if pa.types.is_fixed_size_list(dtype) else {}
        # A list of structs leaves the word out, a list of plain values as well.
        return {"list": inner.get("struct") or inner.get("dtype") or inner, **length}
    return {"dtype": _DTYPES.get(str(dtype), str(dtype))}


def _named(field: pa.Field) -> dict[str, Any]:
    return {"name": field.name, **_feature(field.type)}


def _dataset_card(ds: ClipDataset, schema: pa.Schema) -> str:
    features = "\n".join(f"  - {json.dumps(_named(field))}" for field in schema)
    blobs = {"video": "the 360p file: H.264 and AAC in MP4", "depth": "the depth file: FFV1 in Matroska, see below"}
    meanings = {name: meaning for name, (_, meaning) in COLUMNS.items()} | blobs
    columns = "\n".join(f"| `{field.name}` | {meanings.get(field.name, 'added by a user')} |" for field in schema)
    depth = ds.table(f"status = '{OK}'", ["depth_model", "depth_kind"]).group_by(["depth_model", "depth_kind"])
    models = "\n".join(
        f"- {row['depth_model'] or 'no depth'} ({row['depth_kind'] or '-'}): {row['depth_model_count']} clips"
        for row in depth.aggregate([("depth_model", "count")]).to_pylist()
    )
    return f"""---
license: other  # fill in: the licence of the videos, and of the depth model
dataset_info:
  features:
{features}
---
# {len(ds)} video clips with depth

Made with kdepth. One row a clip; a row that failed says why. Depth by:

{models}

`load_dataset` of the library `datasets` gives the rows with `video` and `depth` as bytes;
`kdepth.open_dataset` gives frames, and reads one without loading the rest of its file.

A frame of `depth` has 16 bits a pixel (`gray16le`), which are the half float of the inverse depth:
`frame.view(numpy.float16)`. It is in 1/m where `depth_kind` is `metric`, and has no unit or scale where it is
`relative`. Near is large, 0 is infinitely far. Columns end in their units (`_seconds`, `_px`, `_bytes`).

| column | meaning |
|---|---|
{columns}
"""
