"""What one row of ``clips.lance`` holds, and how a clip gets its name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import pyarrow as pa
from yarl import URL

OK = "ok"
FAILED = "failed"
# Marks, on its way to the dataset, a failed row of an earlier run that is no longer true.
SUPERSEDED = "superseded"

THUMBNAIL_WIDTH = 16
THUMBNAIL_HEIGHT = 9

_VIDEOS = (
    "3g2 3gp asf av1 avi divx dv f4v flv gif h264 h265 hevc ivf m1v m2t m2ts m2v m4v mkv mov mp4 mpe mpeg mpg mpv "
    "mts mxf nut ogg ogv qt rm rmvb swf ts vob webm wmv wtv y4m"
)
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _VIDEOS.split())
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")

_TIMESTAMP = pa.timestamp("us", tz="UTC")

# A further field would change the type of `frames`, which existing datasets refuse. A further column is fine.
FRAME_STRUCT = pa.struct(
    [
        ("index", pa.int32()),  # of the frame in the 360p file, from 0
        ("time_seconds", pa.float64()),  # presentation time in the 360p file
        ("focal_length_px", pa.float32()),  # at the 360p file's size; null for relative models
        # Of the inverse depth: 1/m for metric models.
        *((name, pa.float32()) for name in ("min", "p05", "median", "p95", "max")),
        ("crc32", pa.uint32()),  # of the frame's packet in the depth file
    ]
)

# Column -> (type, meaning). The README's table is this dictionary; a test holds the two together.
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "clip_id": (pa.string(), "unique: `{youtube_id}_{start:06d}_{end:06d}`, else file stem + `_` + 10 hex digits"),
    "source_url": (pa.string(), "where it came from, without credentials"),
    "archive_member": (pa.string(), "name inside the archive, null for a direct URL"),
    "youtube_id": (pa.string(), "id in the annotations, of YouTube 11 characters; null if unknown"),
    "time_start_seconds": (pa.float64(), "start within the YouTube video"),
    "time_end_seconds": (pa.float64(), "end within the YouTube video"),
    "cut_start_seconds": (
        pa.float64(),
        "where the clip begins in the file at `source_url`; null: it was not cut out of it",
    ),
    "cut_end_seconds": (pa.float64(), "where it ends there"),
    "label": (pa.string(), "action class, from the list or the annotations"),
    "split": (pa.string(), "`train`, `validate`, `test`, from the list or the annotations"),
    "status": (pa.string(), "`ok` or `failed`"),
    "failed_stage": (pa.string(), "`source` (a line of the list), `download`, `transcode` or `depth`; null when ok"),
    "error_type": (pa.string(), "class name of the error; null when ok"),
    "error_message": (pa.string(), "its message; null when ok"),
    "tried_sources": (pa.list_(pa.string()), "of a failed clip: the sources that failed, 10 hex digits each"),
    "raw_path": (pa.string(), "downloaded file, relative to the root; null if it was not kept"),
    "raw_bytes": (pa.int64(), "its size"),
    "raw_sha256": (pa.string(), "its SHA-256, hex"),
    "http_status": (pa.int32(), "status of the last answer"),
    "download_attempts": (pa.int32(), "requests made for it"),
    "video_path": (pa.string(), "the 360p file, relative to the root"),
    "video_bytes": (pa.int64(), "its size"),
    "width": (pa.int32(), "px"),
    "height": (pa.int32(), "px"),
    "average_fps": (pa.float64(), "frames per second"),
    "num_frames": (pa.int32(), "frames in the 360p file"),
    "duration_seconds": (pa.float64(), "of the 360p file"),
    "has_audio": (pa.bool_(), "whether it carries AAC audio"),
    "depth_path": (pa.string(), "the depth file, relative to the root"),
    "depth_bytes": (pa.int64(), "its size"),
    "depth_model": (pa.string(), "`name@revision` of the checkpoint"),
    "depth_kind": (pa.string(), "`metric` (1/m) or `relative`"),
    "depth_frames": (pa.string(), "which frames were asked for: `all`, `middle`, `first` or frames per second"),
    "num_depth_frames": (pa.int32(), "frames in the depth file"),
    "frames": (
        pa.list_(FRAME_STRUCT),
        "per depth frame: `index`, `time_seconds`, `focal_length_px`, inverse depth `min p05 median p95 max`, `crc32`",
    ),
    "depth_thumbnail": (
        pa.list_(pa.float32(), THUMBNAIL_WIDTH * THUMBNAIL_HEIGHT),
        "16 x 9 mean inverse depth, row by row, for similarity search",
    ),
    "shots": (pa.list_(pa.int32()), "first frame of each shot; null if not all frames have depth"),
    "flicker": (pa.float32(), "mean jump of the depth's scale between neighbouring frames (log ratio)"),
    "download_seconds": (pa.float64(), "time the stage took"),
    "transcode_seconds": (pa.float64(), "time the stage took"),
    "depth_seconds": (pa.float64(), "time the stage took"),
    "download_started_at": (_TIMESTAMP, "when the stage began"),
    "transcode_started_at": (_TIMESTAMP, "when the stage began"),
    "depth_started_at": (_TIMESTAMP, "when the stage began"),
    "node": (pa.string(), "host of the depth stage"),
    "run_id": (pa.string(), "the run that committed the row"),
    "committed_at": (_TIMESTAMP, "when it did"),
}

# Which stage fills in what.
DOWNLOAD_COLUMNS = ("raw_path", "raw_bytes", "raw_sha256", "http_status", "download_attempts")
VIDEO_COLUMNS = ("width", "height", "average_fps", "num_frames", "duration_seconds", "has_audio")
TRANSCODE_COLUMNS = ("video_path", "video_bytes", *VIDEO_COLUMNS)

CLIP_SCHEMA = pa.schema([pa.field(name, dtype, nullable=name != "clip_id") for name, (dtype, _) in COLUMNS.items()])

# What `read_sources` gives: one row a source. Rows with the same `clip_id` are alternatives: the first that works is
# the clip. `kind` is "video" (the URL of one), "archive", "youtube", "annotation" (an annotated clip without a URL: it
# is looked for in the archives), or "invalid" (a line that can't be used, for the reason in `problem`).
SOURCE_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("url", pa.string()),
        ("kind", pa.string()),
        ("youtube_id", pa.string()),
        ("time_start_seconds", pa.float64()),
        ("time_end_seconds", pa.float64()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("max_clips", pa.int32()),  # of an archive: take so many members; null: all
        ("cut_start_seconds", pa.float64()),  # of a video: cut this segment out of it; null: take the whole file
        ("cut_end_seconds", pa.float64()),
        ("problem", pa.string()),  # of an invalid line: file, line number and what is wrong; null otherwise
    ]
)

_KINETICS_NAME = re.compile(r"(?P<youtube_id>[A-Za-z0-9_-]{11})_(?P<start>[0-9]{6})_(?P<end>[0-9]{6})")
# Kinetics' clips have 10 s. A longer span than this is something else: a camera's date and time look the same.
_MAX_CLIP_SECONDS = 600
# Keys that together tell a signed URL, and the keys that may be others the next time. In small letters.
_SIGNED = (
    ({"x-amz-signature"}, "x-amz-.*"),  # Amazon S3 and all that speak its language
    ({"x-goog-signature"}, "x-goog-.*"),
    *(
        ({"signature", key}, f"signature|expires|policy|{key}|security-token|x-(amz|cos|obs)-security-token")
        # S3 before 2014, Google's store, CloudFront, Alibaba OSS, Huawei OBS, Google's Cloud CDN.
        for key in ("awsaccesskeyid", "googleaccessid", "key-pair-id", "ossaccesskeyid", "accesskeyid", "keyname")
    ),
    # Not what they make of the file, such as x-oss-process.
    ({"x-oss-signature"}, "x-oss-(signature.*|credential|date|expires|security-token|additional-headers)"),  # Alibaba
    # Volcano
    ({"x-tos-signature"}, "x-tos-(signature|signedheaders|algorithm|credential|date|expires|security-token)"),
    ({"q-signature", "q-ak"}, "q-(signature|sign-algorithm|ak|.*time|.*-list)|x-cos-security-token"),  # Tencent COS
    # Azure: with times of its own, or with those of a stored policy.
    *(({"sig", "sv", key}, "sig|sv|se|st|sp|sr|spr|si|sip|ss|srt|skoid|sktid|skt|ske|sks|skv") for key in ("se", "si")),
    *(({key}, key) for key in ("hdnts", "hdnea", "hdntl")),  # Akamai
    *(({key, "expires"}, f"{key}|expires|token_path") for key in ("token", "md5")),  # Bunny; nginx
    *(({f"{cdn}secret", f"{cdn}time"}, f"{cdn}(secret|time)") for cdn in ("ws", "tx")),  # Wangsu; Tencent's CDN
)
# CDNs with one parameter for time, place and hash: known by its value (Alibaba, Tencent; Cloudflare).
_SIGNED_VALUE = re.compile(r"(?i)(auth_key|sign)=[0-9]{10}-[^-]+-[^-]+-[0-9a-f]{32}|verify=[0-9]{10}-.+")


def kinetics_clip_id(youtube_id: str, time_start_seconds: float, time_end_seconds: float) -> str:
    """Name of a Kinetics clip as the CVDF archives spell it, in whole seconds (fractions are cut off)."""
    return f"{youtube_id}_{int(time_start_seconds):06d}_{int(time_end_seconds):06d}"


def parse_kinetics_name(stem: str) -> tuple[str, float, float] | None:
    """``(youtube_id, time_start_seconds, time_end_seconds)`` of a file stem in Kinetics' form.

    None if it has another form, or if the times can't be those of a clip: it must end after its start, and within
    600 s of it.
    """
    match = _KINETICS_NAME.fullmatch(stem)
    if match is None:
        return None
    start, end = float(match["start"]), float(match["end"])
    return (match["youtube_id"], start, end) if start < end <= start + _MAX_CLIP_SECONDS else None


def lasting_url(url: str) -> str:
    """A URL without what may be another for the same file the next time: user name, password, signature."""
    parts = urlsplit(url)
    found = {parameter: parameter.partition("=")[0].lower() for parameter in parts.query.split("&")}
    signed = "|".join(names for keys, names in _SIGNED if keys <= set(found.values())) or "(?!)"
    changing = {parameter for parameter, key in found.items() if re.fullmatch(signed, key)}
    changing |= {parameter for parameter in found if _SIGNED_VALUE.fullmatch(parameter)}
    if not changing and "@" not in parts.netloc:
        return url
    query = "&".join(parameter for parameter in found if parameter not in changing)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query))


def file_key(url: str) -> str:
    """`lasting_url` in one spelling (``%2C`` is ``,``): equal for all URLs of one file."""
    return lasting_url(str(URL(url)))


def clip_id_for(url: str, member: str | None = None, *, annotated: Container[str] = frozenset()) -> str:
    """Name of the clip behind a URL or an archive member; the names of its files begin with it.

    The stem of the file's name is the clip's name where it is in Kinetics' form (`parse_kinetics_name`) or the
    ``clip_id`` of an annotated clip. Any other stem becomes a `hashed_clip_id`.
    """
    name = member if member is not None else unquote(urlsplit(url).path)
    stem = PurePosixPath(name).stem
    if stem in annotated or parse_kinetics_name(stem):
        return stem
    return hashed_clip_id(stem, url, member)


def hashed_clip_id(stem: str, url: str, member: str | None = None, segment: tuple[float, float] | None = None) -> str:
    """A clip's name that tells it from all others: ``{stem}_{10 hex digits}``.

    The digits are of SHA-256 of the URL (`file_key`), the archive's member and, for a part of the file, the segment in
    seconds, so that no two sources meet in one name. The stem, which makes it readable, is cut to 60 harmless
    characters: nothing of an untrusted name reaches the file system.
    """
    harmless = re.sub(r"[^A-Za-z0-9-]+", "_", stem).strip("_-")[:60] or "clip"
    identity = [file_key(url), member or "", *([f"{segment[0]} {segment[1]}"] if segment else [])]
    return f"{harmless}_{hashlib.sha256(chr(10).join(identity).encode()).hexdigest()[:10]}"


def new_row(**known: Any) -> dict[str, Any]:
    """A row of `CLIP_SCHEMA` with everything unknown but what is given."""
    return dict.fromkeys(COLUMNS) | known


def rows_to_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as an Arrow table of `CLIP_SCHEMA`: every column there, nulls typed, whatever is unknown; no others."""
    return pa.Table.from_pylist(list(rows), schema=CLIP_SCHEMA)
