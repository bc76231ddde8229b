"""What an untrusted file claims to be, before any work on it.

Asked of FFmpeg in a child process (see `video.ffmpeg`), in the words it prints: the binary that Python packages ship
has no ffprobe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from kdepth.errors import DamagedMediaError, NoVideoStreamError, TranscodeError, UnsupportedMediaError
from kdepth.video.ffmpeg import FfmpegResult, failure, input_arguments, run_ffmpeg


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What a file says of itself and of its first video stream (cover pictures do not count).

    Attributes:
        container: FFmpeg's name of the format, such as ``mov,mp4,m4a,3gp,3g2,mj2``.
        codec: Such as ``h264``.
        pixel_format: Such as ``yuv420p``; None if unknown.
        width: Coded width in pixels, before rotation.
        height: Coded height in pixels, before rotation.
        sample_aspect_ratio: Width of a pixel over its height.
        rotation_deg: How far the picture has to be turned, counter-clockwise, in [-180, 180].
        average_fps: Frames over duration; None if unknown.
        real_fps: The lowest rate that holds all timestamps, as FFmpeg guesses it; None if unknown.
        duration_seconds: Of the longest stream; None if unknown, or guessed (of MPEG streams, whose clock may jump).
        color_range: ``tv`` or ``pc``; None if not said.
        color_space: Matrix, such as ``bt709``; None if not said.
        color_primaries: Such as ``bt2020``; None if not said.
        color_transfer: Such as ``smpte2084`` (PQ); None if not said.
        interlaced: Whether frames are made of two fields.
        hidden_alpha: Whether transparency lies beside the pictures, as in WebM, where not every decoder looks at it.
        audio_codec: Of the first audio stream; None if there is none.
    """

    container: str
    codec: str
    pixel_format: str | None
    width: int
    height: int
    sample_aspect_ratio: Fraction
    rotation_deg: float
    average_fps: float | None
    real_fps: float | None
    duration_seconds: float | None
    color_range: str | None
    color_space: str | None
    color_primaries: str | None
    color_transfer: str | None
    interlaced: bool
    hidden_alpha: bool
    audio_codec: str | None


def probe(source: str | Path, *, timeout_seconds: float = 60.0) -> MediaInfo:
    """What a file claims to be, as FFmpeg sees it.

    Args:
        source: Any file; it is not trusted.
        timeout_seconds: Wall-clock limit.

    Raises:
        TranscodeError: A subclass that says why it can't be used.
    """
    source = Path(source)
    arguments = ["-loglevel", "level+info", *input_arguments(source, threads=1)]
    # Without an output FFmpeg describes the input and ends with an error.
    result = run_ffmpeg(arguments, source=source, timeout_seconds=timeout_seconds, expect_failure=True)
    return _parse(source, result)


def _parse(source: Path, result: FfmpegResult) -> MediaInfo:
    log = result.log.replace("[info] ", "")
    opened = re.search(r"^Input #0, (\S+), from '", log, re.MULTILINE)
    if not opened:
        raise failure(source, result)
    # Lines of metadata are indented deeper, so that no title can pose as a stream.
    streams = re.findall(
        r"^  Stream #0:\d+(?:\[\w+\])?(?:\(.*?\))?: (Video|Audio): (.*)\n((?:    .*\n)*)",
        log[opened.start() :],
        re.MULTILINE,
    )
    covers = re.compile(r"\((attached pic|timed thumbnails|still image)\)")
    video = next(
        ((line, details) for kind, line, details in streams if kind == "Video" and not covers.search(line)), None
    )
    if video is None:
        raise NoVideoStreamError(str(source), None, "the file has no video stream")
    line, details = video
    codec = line.split()[0].rstrip(",")
    size = re.search(r", (\d+)x(\d+)", line)
    if codec == "none" or not size:
        raise _unusable(source, result, codec)
    # h264 (High) (avc1 / 0x31637661), yuv420p(tv, bt709, progressive), 1280x720 [SAR 1:1 DAR 16:9], ...
    picture = re.search(r", (\w+)(?:\(([^)]*)\))?, \d+x\d+", line)
    notes = [note.strip() for note in (picture[2] or "").split(",")] if picture else []
    matrix, primaries, transfer = _color_names(notes)
    aspect = re.search(r"SAR (\d+):(\d+)", line)
    rotation = re.search(r"display ?matrix: rotation of (-?[\d.]+) degrees", details, re.IGNORECASE)
    return MediaInfo(
        container=opened[1],
        codec=codec,
        pixel_format=picture[1] if picture and picture[1] != "none" else None,
        width=int(size[1]),
        height=int(size[2]),
        sample_aspect_ratio=Fraction(int(aspect[1]), int(aspect[2])) if aspect and int(aspect[2]) else Fraction(1),
        rotation_deg=float(rotation[1]) if rotation else 0.0,
        average_fps=_rate(line, "fps"),
        real_fps=_rate(line, "tbr"),
        duration_seconds=_duration_seconds(opened[1], log[opened.start() :]),
        color_range=next((note for note in notes if note in ("tv", "pc")), None),
        color_space=matrix,
        color_primaries=primaries,
        color_transfer=transfer,
        hidden_alpha=re.search(r"^ +alpha_mode +: 1$", details, re.MULTILINE | re.IGNORECASE) is not None,
        interlaced=any(note.startswith(("top ", "bottom ")) for note in notes),
        audio_codec=next((line.split()[0].rstrip(",") for kind, line, _ in streams if kind == "Audio"), None),
    )


def _duration_seconds(container: str, log: str) -> float | None:
    found = re.search(r"^  Duration: (\d+):(\d\d):(\d\d\.\d+)(?:, start: (-?[\d.]+))?", log, re.MULTILINE)
    if found is None or container in ("mpeg", "mpegts"):
        return None
    duration = int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
    start = float(found[4] or 0)
    # Some containers say when they end, from 0: of what was cut out of a stream that is long after it begins.
    return duration - start if container in ("matroska,webm", "nut") and 0 < start < duration else duration


def _unusable(source: Path, result: FfmpegResult, codec: str) -> TranscodeError:
    """The error for a video stream that FFmpeg could not make out."""
    error = failure(source, result)
    if type(error) is not DamagedMediaError:
        return error
    if codec == "none":
        return UnsupportedMediaError(str(source), None, "FFmpeg does not know the video's codec")
    return DamagedMediaError(str(source), None, f"no picture of the {codec} video can be decoded")


def _color_names(notes: list[str]) -> tuple[str | None, str | None, str | None]:
    """Matrix, primaries and transfer from ``tv, bt709`` or ``tv, bt2020nc/bt2020/smpte2084, progressive``."""
    for note in notes:
        if note in ("", "tv", "pc", "progressive") or " " in note:
            continue
        names = [None if name in ("unknown", "reserved") else name for name in note.split("/")]
        matrix, primaries, transfer = names if len(names) == 3 else (names[0], names[0], names[0])
        return matrix, primaries, transfer
    return None, None, None


def _rate(line: str, unit: str) -> float | None:
    found = re.search(rf" ([\d.]+)(k?) {unit}\b", line)
    return float(found[1]) * (1000 if found[2] else 1) if found else None
