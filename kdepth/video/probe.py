"""What an untrusted file is, before any work on it.

PyAV looks at it in a child process (`describe.py`), under FFmpeg's limits, and answers in numbers. No text of the file
goes any further: names are those of tables here, or FFmpeg's own.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from kdepth.errors import (
    DamagedMediaError,
    NoVideoStreamError,
    RefusedReferenceError,
    TranscodeError,
    TranscodeMemoryError,
    UnsupportedMediaError,
    printable,
)
from kdepth.video.ffmpeg import DEMUXERS, ChildResult, check_source, failure, launcher, run_child, without_paths

# FFmpeg's names of the numbers of ITU-T H.273, from 0; empty: unknown (2), else reserved.
_MATRICES = ["gbr", "bt709", "", "", "fcc", "bt470bg", "smpte170m", "smpte240m", "ycgco", "bt2020nc", "bt2020c"]
_MATRICES += ["smpte2085", "chroma-derived-nc", "chroma-derived-c", "ictcp", "ipt-c2", "ycgco-re", "ycgco-ro"]
_PRIMARIES = ["", "bt709", "", "", "bt470m", "bt470bg", "smpte170m", "smpte240m", "film", "bt2020", "smpte428"]
_PRIMARIES += ["smpte431", "smpte432", *[""] * 9, "ebu3213"]
_TRANSFERS = ["", "bt709", "", "", "bt470m", "bt470bg", "smpte170m", "smpte240m", "linear", "log100", "log316"]
_TRANSFERS += ["iec61966-2-4", "bt1361e", "iec61966-2-1", "bt2020-10", "bt2020-12", "smpte2084", "smpte428"]
_TRANSFERS += ["arib-std-b67"]
_MAX_MEMORY_BYTES = 2 << 30  # enough for a picture of 8K and those that it is made of
_DEFAULT, _NO_VIDEO = 1, 0x400 | 0x800 | 0x100000  # dispositions: attached picture, timed thumbnails, still image
# First brands of HEIF files: photographs, whose parts FFmpeg shows as tracks of one frame.
_STILL_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"mif1", b"mif2", b"avif", b"avci", b"jpeg"}
_FAILURES: dict[str, type[TranscodeError]] = {
    "MemoryError": TranscodeMemoryError,
    "DecoderNotFoundError": UnsupportedMediaError,
    "ArgumentError": UnsupportedMediaError,  # EINVAL: a format that is not on the list
    "PermissionError": TranscodeError,
    "FileNotFoundError": TranscodeError,
}


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What a file says of itself and of the video track that a player would show (cover pictures do not count)."""

    container: str  # FFmpeg's name of the format, such as ``mov,mp4,m4a,3gp,3g2,mj2``
    track: int  # index of the video track among all tracks
    codec: str  # such as ``h264``
    pixel_format: str | None  # such as ``yuv420p``; None if unknown
    # Of the first picture, in pixels, before rotation.
    width: int
    height: int
    sample_aspect_ratio: Fraction  # width of a pixel over its height
    rotation_deg: float  # how far the picture has to be turned, counter-clockwise, in [-180, 180]
    display_matrix: tuple[int, ...] | None  # the nine numbers behind it (ISO/IEC 14496-12, 8.5.2); None: there are none
    # From the first picture to the end of the last; None if unknown (times are missing, or the clock may jump, as in
    # MPEG streams).
    duration_seconds: float | None
    # When the first picture is shown, from the file's stated start on: sound may come before it; after a careless cut
    # the picture does, and this is negative.
    first_seconds: float
    num_packets: int  # of the track, that are to be shown: frames, or fields of interlaced video
    late_end_seconds: float  # by how much the last three pictures take longer than the first three, >= 0
    cut_off: bool  # whether the file ends in the middle
    color_space: str | None  # matrix, such as ``bt709``; None if not said
    color_primaries: str | None  # such as ``bt2020``; None if not said
    color_transfer: str | None  # such as ``smpte2084`` (PQ); None if not said
    interlaced: bool  # whether frames are made of two fields
    hidden_alpha: bool  # whether transparency lies beside the pictures, as in WebM, where not every decoder looks at it
    audio_track: int | None  # index, among all tracks, of the first audio track whose codec FFmpeg knows; None: none
    audio_codec: str | None  # of that track, such as ``aac``


def probe(source: str | Path, *, timeout_seconds: float = 60.0) -> MediaInfo:
    """Look at a file in a child process. All of it is read; of each video track the first picture is decoded.

    Args:
        source: Any file; it is not trusted.
        timeout_seconds: Wall-clock limit.

    Raises:
        TranscodeError: A subclass that says why it can't be used.
    """
    source = Path(source)
    check_source(source)
    confined = launcher(network=False, writable=(), memory_bytes=_MAX_MEMORY_BYTES, cpu_seconds=timeout_seconds)
    limits = confined[4:-1]  # without the program: the child itself does as they say
    script = Path(__file__).with_name("describe.py")
    packages, formats, path = str(Path(av.__file__).parents[1]), ",".join(DEMUXERS), str(source.absolute())
    command = [sys.executable, "-I", "-S", str(script), packages, formats, path, *limits]
    result = run_child(command, source=source, timeout_seconds=timeout_seconds, cpu_seconds=timeout_seconds)
    try:
        answer = json.loads(result.output)
        if result.returncode or "failed" in answer:
            raise _refusal(source, result, answer)
        return _media_info(source, answer, result)
    except TranscodeError:
        raise
    except Exception as exc:  # the child crashed, or a file took it over and it says anything
        if result.returncode < 0:
            raise failure(source, result) from exc
        reason = f"it can't be described: {type(exc).__name__}"
        raise DamagedMediaError(printable(source.name), result.returncode, reason) from exc


def _refusal(source: Path, result: ChildResult, answer: dict[str, Any]) -> TranscodeError:
    """The error for a file that PyAV does not open: by the class of its exception, then by what FFmpeg printed."""
    error = failure(source, result)
    kind = _FAILURES.get(answer["failed"], DamagedMediaError)
    if type(error) is DamagedMediaError or (kind is not DamagedMediaError and type(error) is not RefusedReferenceError):
        reason = printable(without_paths(str(answer["reason"]), source), 500)
        return kind(printable(source.name), None, f"{reason} ({answer['failed']})")
    return error


def _media_info(source: Path, answer: dict[str, Any], result: ChildResult) -> MediaInfo:
    name = printable(source.name)
    videos = [video for video in answer["videos"] if not video["disposition"] & _NO_VIDEO]
    if not videos:
        raise NoVideoStreamError(name, None, "the file has no video stream")
    # As a player chooses: the one marked as default, then the largest picture, then the most frames.
    video = max(
        videos, key=lambda v: (v["packets"] > 0, v["disposition"] & _DEFAULT, v["width"] * v["height"], v["packets"])
    )
    with source.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS and video["packets"] <= 1:
        raise UnsupportedMediaError(name, None, "a still picture (HEIF), not a video")
    if video["codec"] is None:
        raise UnsupportedMediaError(name, None, "FFmpeg does not know the video's codec")
    if not (video["width"] > 0 and video["height"] > 0):
        error = failure(source, result)
        if type(error) is not DamagedMediaError:
            raise error
        raise DamagedMediaError(name, None, f"no picture of the {video['codec']} video can be decoded")
    matrix, primaries, transfer = map(int, video["colors"])
    aspect = Fraction(*video["aspect"]) if video["aspect"] else Fraction(1)
    is_mov = answer["container"].startswith("mov")
    jumps = answer["container"] in ("mpeg", "mpegts")  # their clock may be set anew
    times = [float(time) for time in video["times"] or (0, 0)]
    first, end = times[0], times[-1]
    if end <= times[-2] and video["packets"] > 1:  # FLV and others do not say how long the last picture is shown
        end = times[-2] + (times[-2] - first) / (video["packets"] - 1)
    duration = end - first if math.isfinite(end - first) and end > first and not jumps else None
    start = (answer["start"] or 0) / 1_000_000
    begins = float(video["first"]) - start if video["first"] is not None else 0.0
    return MediaInfo(
        container=str(answer["container"]),
        track=int(video["index"]),
        codec=str(video["codec"]),
        pixel_format=video["pixel_format"] and str(video["pixel_format"]),
        width=int(video["width"]),
        height=int(video["height"]),
        sample_aspect_ratio=aspect if 0.001 < aspect < 1000 else Fraction(1),
        rotation_deg=float(video["rotation"]),
        display_matrix=tuple(map(int, video["matrix"])) if video["matrix"] else None,
        duration_seconds=duration,
        first_seconds=begins if 0.0005 < abs(begins) < 10 else 0.0,
        num_packets=int(video["packets"]),
        late_end_seconds=max(0.0, times[5] - times[3] - (times[2] - times[0])) if len(times) == 7 else 0.0,
        cut_off=bool(answer["cut_off"] or (is_mov and (answer["error"] or video["corrupt"]))),
        color_space=_name(_MATRICES, matrix),
        color_primaries=_name(_PRIMARIES, primaries),
        color_transfer=_name(_TRANSFERS, transfer),
        interlaced=bool(video["interlaced"]),
        hidden_alpha=bool(video["alpha"]),
        audio_track=int(answer["audio"][0][0]) if answer["audio"] else None,
        audio_codec=str(answer["audio"][0][1]) if answer["audio"] else None,
    )


def _name(names: list[str], number: int) -> str | None:
    known = names[number] if 0 <= number < len(names) else ""
    return known or (None if number == 2 else "reserved")
