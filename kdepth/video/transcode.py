"""Any downloaded file -> a 360p H.264 clip that is safe and quick to read."""

from __future__ import annotations

import math
import os
import time
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av

from kdepth.errors import (
    DamagedMediaError,
    MediaTooLargeError,
    MediaTooLongError,
    TranscodeError,
    UnsupportedMediaError,
    printable,
)
from kdepth.video.ffmpeg import MAX_PIXELS, ChildResult, can_encode, failure, input_arguments, run_ffmpeg
from kdepth.video.filters import MAX_SIDE_PX, TIME_BASE, video_filters
from kdepth.video.probe import MediaInfo, probe

MAX_HEIGHT_PX = 2160
_KEY_FRAME_INTERVAL = 48
_MAX_SOUND_AFTER_SECONDS = 60.0  # after the last picture
_TIMEOUT_SECONDS, _MAX_TIMEOUT_SECONDS = 300.0, 3600.0
_SLOWEST_PIXELS_PER_SECOND = 20e6  # one old core decoding 4K HEVC

_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_INDEXED = ("mov", "matroska")  # containers in which FFmpeg finds the key frame before any time

# Encoder -> options before the input, last filters, options of the output. In the order that "auto" prefers.
_ENCODERS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "h264_nvenc": ((), "format=yuv420p", ("-preset", "p4", "-rc", "vbr", "-cq", "23", "-b:v", "0")),
    "h264_qsv": ((), "format=nv12", ("-preset", "faster", "-global_quality", "22")),
    "h264_vaapi": (("-vaapi_device", "/dev/dri/renderD128"), "format=nv12,hwupload", ("-qp", "22")),
    # Measured: see notebooks/stages.ipynb.
    "libx264": ((), "format=yuv420p", ("-preset", "veryfast", "-crf", "20")),
}


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """A clip that `transcode_file` wrote.

    Attributes:
        width, height: Pixels, even.
        average_fps: Frames per second, ``num_frames / duration_seconds``.
        num_frames: Frames that decoding it gives.
        duration_seconds: From the first frame to the end of the last.
        has_audio: Whether it carries AAC audio.
    """

    width: int
    height: int
    average_fps: float
    num_frames: int
    duration_seconds: float
    has_audio: bool


def transcode_file(
    source: str | Path,
    destination: str | Path,
    *,
    height: int = 360,
    encoder: str = "auto",
    threads: int = 0,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    timeout_seconds: float | None = None,
    max_duration_seconds: float = 600.0,
    max_pixels: int = MAX_PIXELS,
    max_fps: float = 120.0,
) -> VideoInfo:
    """Make a 360p clip of any video file.

    H.264 (yuv420p, BT.709, square pixels, even sizes) and AAC in MP4, upright, progressive, standard dynamic range.
    Frames keep their own times; none is invented. A key frame at least every 48 frames. If the picture's shape changes
    on the way, later pictures are fitted into the first one's shape, with black bars. Sound goes on after the last
    picture for at most 60 s.

    Args:
        source: Any file; it is not trusted.
        destination: The ``.mp4`` to make. Written beside it as ``<name>.<random>.part`` and renamed when whole.
        height: Pixels of the shorter side (a portrait clip becomes 360 x 640), even, 32 to 2160.
        encoder: ``"libx264"``, another encoder of FFmpeg's that kdepth knows, or ``"auto"``: hardware where it works.
        threads: Of decoder and encoder; 0 takes the machine's cores, at most 4 (more do not help at this size).
        start_seconds: Take the frames from this time on, as a player counts; it becomes the clip's 0.
        end_seconds: Take the frames before this time.
        timeout_seconds: Wall-clock limit of all of it; None: 300 s, and more for long and large videos, up to an hour.
        max_duration_seconds: Longer clips are refused; of a segment, only that counts.
        max_pixels: Larger pictures are refused.
        max_fps: Clips with more frames a second, on average, are refused: a small file can hold days of work.

    Returns:
        What was written.

    Raises:
        TranscodeError: A subclass that says why no clip could be made.
        ValueError: An argument is out of range.
    """
    source, destination = Path(source), Path(destination)
    check_height(height)
    if encoder != "auto" and encoder not in _ENCODERS:
        raise ValueError(f"encoder must be one of {['auto', *_ENCODERS]}, not {encoder!r}")
    began = time.monotonic()
    media = probe(source, timeout_seconds=timeout_seconds or _TIMEOUT_SECONDS)
    segment = _Segment.of(media, start_seconds, end_seconds)
    limits = _Limits(max_duration_seconds, max_pixels, max_fps)
    limits.check(source, media, segment)
    deadline = began + (timeout_seconds or _allowed_seconds(media))
    part = destination.with_name(f"{destination.name}.{uuid.uuid4().hex[:8]}.part")
    encoder = default_encoder() if encoder == "auto" else encoder
    threads = threads or min(os.cpu_count() or 1, 4)

    def encode(with_audio: bool) -> ChildResult:
        return run_ffmpeg(
            _arguments(source, part, media, segment, limits, height, encoder, threads, with_audio),
            source=source,
            target=part,
            timeout_seconds=max(0.0, deadline - time.monotonic()),
            threads=threads,
        )

    try:
        try:
            result = encode(with_audio=media.audio_track is not None)
        except (DamagedMediaError, UnsupportedMediaError):
            if media.audio_track is None:
                raise
            # A sound track that can't be decoded is no reason to lose the pictures.
            result = encode(with_audio=False)
        try:
            info = video_info(part)
        except DamagedMediaError as exc:
            raise failure(source, result, part) from exc
        limits.check_clip(source, info)
        _check_whole(source, media, segment, info)
        os.replace(part, destination)
    finally:
        part.unlink(missing_ok=True)
    return info


@dataclass(frozen=True, slots=True)
class _Segment:
    """What is taken of a file, in a player's seconds."""

    start: float
    end: float  # infinite: all the rest
    length: float | None  # as far as the file reaches; None if unknown

    @classmethod
    def of(cls, media: MediaInfo, start_seconds: float | None, end_seconds: float | None) -> _Segment:
        start, end = start_seconds or 0.0, math.inf if end_seconds is None else end_seconds
        if not (0 <= start < end and math.isfinite(start)):
            raise ValueError(f"start_seconds={start_seconds}, end_seconds={end_seconds}: must be 0 <= start < end")
        duration = None if media.duration_seconds is None else media.duration_seconds + max(0.0, media.first_seconds)
        length = None if duration is None else min(end, duration) - start
        return cls(start, end, length)


@dataclass(frozen=True, slots=True)
class _Limits:
    """What a clip may be. Each message names the parameter."""

    max_duration_seconds: float
    max_pixels: int
    max_fps: float

    def check(self, source: Path, media: MediaInfo, segment: _Segment) -> None:
        """Refuse before any work what the file says to be too large."""
        name = printable(source.name)
        if media.width * media.height > self.max_pixels:
            reason = f"{media.width} x {media.height} pixels; max_pixels={self.max_pixels} are allowed"
            raise MediaTooLargeError(name, None, reason)
        if segment.length is None:
            return
        if segment.length <= 0:
            left = f"nothing is left from start_seconds={segment.start:g} on"
            raise DamagedMediaError(name, None, f"it is {media.duration_seconds:.2f} s long: {left}")
        num_frames = media.num_packets // (2 if media.interlaced else 1)  # a packet may be a field
        self._check_length(name, segment.length)
        self._check_rate(name, num_frames, media.duration_seconds or 0.0)

    def check_clip(self, source: Path, info: VideoInfo) -> None:
        """Refuse the clip of a file that did not say how long it is, with 0.5 s of tolerance: ends are rounded."""
        name = printable(source.name)
        self._check_rate(name, info.num_frames, info.duration_seconds)
        self._check_length(name, info.duration_seconds - 0.5)

    def _check_length(self, name: str, seconds: float) -> None:
        if seconds > self.max_duration_seconds:
            reason = f"{seconds:.1f} s long; max_duration_seconds={self.max_duration_seconds:g} are allowed"
            raise MediaTooLongError(name, None, reason)

    def _check_rate(self, name: str, num_frames: int, seconds: float) -> None:
        # Of at least a second: two pictures may lie a millisecond apart. And 1 % more, as times are rounded.
        if num_frames > max(seconds, 1.0) * self.max_fps * 1.01:
            rate = num_frames / seconds if seconds else math.inf
            reason = f"{rate:.0f} frames a second on average; max_fps={self.max_fps:g} are allowed"
            raise MediaTooLongError(name, None, reason)


def _allowed_seconds(media: MediaInfo) -> float:
    """Wall time for a file: a slow machine's for its frames and pixels."""
    work = media.num_packets * media.width * media.height / _SLOWEST_PIXELS_PER_SECOND
    return min(_TIMEOUT_SECONDS + work, _MAX_TIMEOUT_SECONDS)


def _arguments(
    source: Path,
    part: Path,
    media: MediaInfo,
    segment: _Segment,
    limits: _Limits,
    height: int,
    encoder: str,
    threads: int,
    with_audio: bool,
) -> list[str]:
    before, last_filters, encoder_options = _ENCODERS[encoder]
    opening = [*before]
    if media.hidden_alpha and media.codec in _ALPHA_DECODERS:
        opening += ["-c:v", _ALPHA_DECODERS[media.codec]]
    filters, turns = video_filters(source, media, height)
    if turns:
        opening.append("-noautorotate")
    # FFmpeg counts from the file's stated start, before which the first pictures may lie.
    lead = max(0.0, -media.first_seconds)
    seek, cut = math.floor((segment.start - lead) * 1e6) / 1e6, []
    if seek > 0 and media.container.startswith(_INDEXED):
        opening += ["-ss", f"{seek:.6f}"]
    else:
        opening += ["-itsoffset", f"{lead:.6f}"] if lead else []
        cut = ["-ss", f"{segment.start:.6f}"] if segment.start else []
    most = limits.max_duration_seconds + 1
    if segment.length is not None:
        most = min(most, segment.length + _MAX_SOUND_AFTER_SECONDS)
    cut += ["-t", f"{min(most, segment.end - segment.start):.6f}"]
    max_frames = int(limits.max_duration_seconds * limits.max_fps)
    trim = f"trim=end_frame={max_frames + 1}," if not segment.start else ""
    video = [
        *("-map", f"0:{media.track}", "-vf", f"{trim}{filters},{last_filters}", "-c:v", encoder, *encoder_options),
        *("-fps_mode", "vfr", "-enc_time_base", TIME_BASE, "-g", str(_KEY_FRAME_INTERVAL)),
    ]
    # FFmpeg 7.0 leaves the last picture without a duration, and players then leave it out: it gets the others' mean.
    mean_seconds = (media.duration_seconds or 0.0) / max(1, media.num_packets) or 1 / 30
    mean = max(1, round(mean_seconds * 120_000))
    video += ["-bsf:v", f"setts=pts=PTS:dts=DTS:duration=DURATION+not(DURATION)*{mean}"]
    if media.late_end_seconds > 0.02:
        # MP4 counts a track's duration in decoding times, which B-frames let run ahead of the pictures' own by two.
        video += ["-bf", "0"]
    sound = ["-map", f"0:{media.audio_track}", "-c:a", "aac", "-aac_coder", "fast", "-b:a", "128k", "-ac", "2"]
    return [
        *("-loglevel", "level+warning"),
        *input_arguments(source, threads=threads, max_pixels=limits.max_pixels, options=opening),
        *(*video, *(sound if with_audio else ()), *cut),
        # Whether enough frames were decoded is judged afterwards, alike for all versions of FFmpeg.
        *("-max_error_rate", "1", "-sn", "-dn", "-map_metadata", "-1", "-map_chapters", "-1", "-threads", str(threads)),
        *("-movflags", "+faststart", "-f", "mp4", "-y", f"file:{part.absolute()}"),
    ]


def _check_whole(source: Path, media: MediaInfo, segment: _Segment, info: VideoInfo) -> None:
    """Refuse what FFmpeg takes without an error: a file cut off, or one most of whose frames are lost."""
    name = printable(source.name)
    if media.cut_off:
        raise DamagedMediaError(name, 0, f"cut off after {info.duration_seconds:.2f} s")
    expected = media.num_packets
    if segment.length and media.duration_seconds:
        expected = int(expected * segment.length / media.duration_seconds)
    elif segment.start or segment.end < math.inf:
        expected = 1  # how much of the file the segment is, nobody says
    # A packet of interlaced video may hold half a frame, so that up to half of them may seem lost.
    if 3 * info.num_frames < expected:
        raise DamagedMediaError(name, 0, f"only {info.num_frames} of {expected} frames can be decoded")


def check_height(height: int) -> None:
    """Raises ValueError for what no clip can be transcoded to."""
    if not 32 <= height <= MAX_HEIGHT_PX or height % 2:
        raise ValueError(f"height={height}: must be even, and 32 to {MAX_HEIGHT_PX} pixels")


def has_height(width_px: int, height_px: int, height: int) -> bool:
    """Whether a clip is as `transcode_file` makes it for a height: a very wide or tall one has less."""
    shorter = min(width_px, height_px)
    return shorter == height or (max(width_px, height_px) == MAX_SIDE_PX and shorter < height)


def encoding_of(encoder: str = "auto") -> str:
    """How `transcode_file` encodes on this machine: the encoder and its options, as FFmpeg is given them.

    Args:
        encoder: As for `transcode_file`.
    """
    encoder = default_encoder() if encoder == "auto" else encoder
    return " ".join((encoder, *_ENCODERS[encoder][2], "-g", str(_KEY_FRAME_INTERVAL)))


@cache
def default_encoder() -> str:
    """What ``encoder="auto"`` stands for on this machine: the first encoder that does encode a few frames."""
    for name, (before, last_filters, options) in _ENCODERS.items():
        if can_encode((*before, "-vf", last_filters, "-c:v", name, *options)):
            return name
    raise TranscodeError("ffmpeg", None, f"none of the encoders {', '.join(_ENCODERS)} works")


def video_info(path: str | Path) -> VideoInfo:
    """Size and length of a clip that `transcode_file` wrote; opened in this process, so never of any other file.

    Args:
        path: The clip.

    Raises:
        DamagedMediaError: It is not there or not whole.
    """
    name = printable(Path(path).name)
    try:
        with av.open(os.path.abspath(path), format="mov") as container:
            stream = container.streams.video[0]
            num_frames, begin, end = 0, math.inf, 0
            for packet in container.demux():
                if packet.is_corrupt:
                    raise DamagedMediaError(name, None, "the file is cut off")
                if packet.stream == stream and packet.size > 0 and packet.pts is not None:
                    num_frames += 1
                    begin, end = min(begin, packet.pts), max(end, packet.pts + (packet.duration or 0))
            # The index at the front says how many there were.
            if not num_frames or num_frames != stream.frames or end <= begin or not stream.time_base:
                raise DamagedMediaError(name, None, f"{num_frames} of {stream.frames} frames are there")
            duration_seconds = float((end - begin) * stream.time_base)
            return VideoInfo(
                width=stream.width,
                height=stream.height,
                average_fps=num_frames / duration_seconds,
                num_frames=num_frames,
                duration_seconds=duration_seconds,
                has_audio=bool(container.streams.audio),
            )
    except (OSError, av.error.FFmpegError, IndexError) as exc:
        raise DamagedMediaError(name, None, f"can't be read as a clip: {type(exc).__name__}") from exc
