"""Any downloaded file -> a 360p H.264 clip that is safe and quick to read."""

from __future__ import annotations

import os
import re
import time
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av

from kdepth.errors import (
    DamagedMediaError,
    MediaTooLongError,
    TranscodeError,
    UnsupportedMediaError,
)
from kdepth.video.ffmpeg import (
    MAX_MEMORY_BYTES,
    FfmpegResult,
    can_encode,
    failure,
    ffmpeg_path,
    input_arguments,
    run_ffmpeg,
)
from kdepth.video.probe import MediaInfo, probe

MAX_HEIGHT_PX = 2160
MAX_SIDE_PX = 4096  # of a very wide or tall clip; its shorter side gives way
MAX_FPS = 120  # on average: a small file can hold frames for days of work
_TIME_BASE = "1/120000"  # s; milliseconds and the frame times of every common rate, NTSC's too, are whole numbers of it
_KEY_FRAME_INTERVAL = 48
_HIGH_DYNAMIC_RANGE = ("smpte2084", "arib-std-b67")  # PQ and HLG

_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

# Encoder -> options before the input, last filters, options of the output. In the order that "auto" prefers.
_ENCODERS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "h264_nvenc": ((), "format=yuv420p", ("-preset", "p4", "-rc", "vbr", "-cq", "23", "-b:v", "0")),
    "h264_qsv": ((), "format=nv12", ("-preset", "faster", "-global_quality", "22")),
    "h264_vaapi": (("-vaapi_device", "/dev/dri/renderD128"), "format=nv12,hwupload", ("-qp", "22")),
    # Measured: see the README.
    "libx264": ((), "format=yuv420p", ("-preset", "veryfast", "-crf", "20")),
}


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """A clip that `transcode_file` wrote.

    Attributes:
        width: Pixels, even.
        height: Pixels, even.
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
    timeout_seconds: float = 300.0,
    max_duration_seconds: float = 600.0,
    niceness: int = 0,
) -> VideoInfo:
    """Make a 360p clip of any video file.

    H.264 (yuv420p, BT.709, square pixels, even sizes) and AAC in MP4, upright, progressive, standard dynamic range.
    Frames keep their own times; none is invented. A key frame at least every 48 frames.

    Args:
        source: Any file; it is not trusted.
        destination: The ``.mp4`` to make. Written beside it as ``<name>.<random>.part`` and renamed when whole.
        height: Pixels of the shorter side (a portrait clip becomes 360 x 640), even, 32 to 2160.
        encoder: ``"libx264"``, another encoder of FFmpeg's that kdepth knows, or ``"auto"``: hardware where it works.
        threads: Of decoder and encoder; 0 takes the machine's cores, at most 4 (more do not help at this size).
        timeout_seconds: Wall-clock limit of all of it.
        max_duration_seconds: Longer clips are refused, and those with more than 120 frames for each of these seconds.
        niceness: Added to the priority number: 0 as the caller, 19 lowest.

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
    threads = threads or min(os.cpu_count() or 1, 4)
    encoder = default_encoder() if encoder == "auto" else encoder
    deadline = time.monotonic() + timeout_seconds
    media = probe(source, timeout_seconds=timeout_seconds)
    if media.duration_seconds is not None and media.duration_seconds > max_duration_seconds:
        reason = f"{media.duration_seconds:.0f} s long; {max_duration_seconds:g} s are allowed"
        raise MediaTooLongError(str(source), None, reason)
    max_frames = int(max_duration_seconds * MAX_FPS)
    part = destination.with_name(f"{destination.name}.{uuid.uuid4().hex[:8]}.part")
    before, last_filters, encoder_options = _ENCODERS[encoder]
    decoder = ("-c:v", _ALPHA_DECODERS[media.codec]) if media.hidden_alpha and media.codec in _ALPHA_DECODERS else ()
    opening = ["-loglevel", "level+verbose", *before, *decoder, *input_arguments(source, threads=threads)]
    video = [
        *("-map", "0:V:0", "-vf", f"{_filters(media, height)},{last_filters}", "-c:v", encoder, *encoder_options),
        *("-fps_mode", "vfr", "-enc_time_base", _TIME_BASE, "-g", str(_KEY_FRAME_INTERVAL)),
        *("-frames:v", str(max_frames + 1)),
    ]
    audio = (
        ["-map", "0:a:0", "-c:a", "aac", "-aac_coder", "fast", "-b:a", "128k", "-ac", "2"] if media.audio_codec else []
    )
    closing = [
        # Whether enough frames were decoded is judged below, alike for all versions of FFmpeg.
        *("-max_error_rate", "1", "-sn", "-dn", "-map_metadata", "-1", "-map_chapters", "-1", "-threads", str(threads)),
        *("-t", str(max_duration_seconds + 1), "-movflags", "+faststart", "-f", "mp4", "-y", f"file:{part.absolute()}"),
    ]

    def encode(arguments: list[str]) -> FfmpegResult:
        return run_ffmpeg(
            [*opening, *arguments, *closing],
            source=source,
            timeout_seconds=max(0.0, deadline - time.monotonic()),
            threads=threads,
            max_memory_bytes=MAX_MEMORY_BYTES if encoder == "libx264" else None,
            niceness=niceness,
        )

    try:
        try:
            result = encode([*video, *audio])
        except (DamagedMediaError, UnsupportedMediaError):
            if not audio:
                raise
            # A sound track that can't be decoded is no reason to lose the pictures.
            result = encode(video)
        try:
            info = video_info(part)
        except DamagedMediaError as exc:
            raise failure(source, result) from exc
        if info.num_frames > max_frames or info.duration_seconds > max_duration_seconds + 0.5:
            reason = f"more than {max_duration_seconds:g} s or {max_frames} frames"
            raise MediaTooLongError(str(source), 0, reason)
        _check_whole(source, result, info)
        os.replace(part, destination)
    finally:
        part.unlink(missing_ok=True)
    return info


def _check_whole(source: Path, result: FfmpegResult, info: VideoInfo) -> None:
    """Refuse what FFmpeg takes without an error: a file cut off, or one most of whose frames are lost."""
    if re.search(r"partial file|File ended prematurely", result.log):
        raise DamagedMediaError(str(source), 0, f"cut off after {info.duration_seconds:.2f} s")
    if "Cannot allocate memory" in result.log:
        raise failure(source, result)
    counts = re.search(r"\(video\): (\d+) packets read \(\d+ bytes\); (\d+) frames decoded", result.log)
    # A packet of interlaced video may hold half a frame, so that up to half of them may seem lost.
    if counts and 3 * int(counts[2]) < int(counts[1]):
        raise DamagedMediaError(str(source), 0, f"only {counts[2]} of {counts[1]} frames can be decoded")


def _filters(media: MediaInfo, height: int) -> str:
    """The filter chain. FFmpeg itself puts the display matrix's rotation and mirroring before it."""
    chain = []
    if media.interlaced:
        chain.append("bwdif=mode=send_frame:deint=interlaced")
    if media.hidden_alpha or re.match(r"yuva|gbrap|rgba|bgra|argb|abgr|ya8|ya16|pal8", media.pixel_format or ""):
        # On black: what lies under a transparent pixel is arbitrary.
        chain.append("format=gbrap,premultiply=inplace=1")
    # dar: display aspect ratio, of the frame as it arrives here: upright, and with its pixels' shape.
    short = f"min({height},{MAX_SIDE_PX}/max(dar,1/dar))"
    width_height = f"w='2*max(1,round({short}*max(1,dar)/2))':h='2*max(1,round({short}*max(1,1/dar)/2))'"
    if media.color_primaries == "bt2020" or media.color_transfer in _HIGH_DYNAMIC_RANGE:
        chain += _to_standard_range(media, width_height)
    else:
        # Nothing said: as players do, BT.709 for HD and BT.601 below.
        matrix = "auto" if media.color_space or min(media.width, media.height) < 720 else "bt709"
        chain.append(f"scale={width_height}:in_color_matrix={matrix}:out_color_matrix=bt709:out_range=tv")
    # Pictures with one time between them (some files have them) are kept, a tick apart.
    chain.append(f"settb={_TIME_BASE},setpts='if(isnan(PREV_OUTPTS),PTS,max(PTS,PREV_OUTPTS+1))'")
    chain += ["setsar=1", "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"]
    return ",".join(chain)


def _to_standard_range(media: MediaInfo, width_height: str) -> list[str]:
    """Wide colours and high dynamic range -> BT.709 at 100 cd/m2, with Hable's curve."""
    # Some files name only one of the three.
    tags = f"colorspace={media.color_space or 'bt2020nc'}:color_trc={media.color_transfer or 'bt2020-10'}"
    chain = [f"scale={width_height}", f"setparams=color_primaries={media.color_primaries or 'bt2020'}:{tags}"]
    chain += ["zscale=transfer=linear:npl=100", "format=gbrpf32le", "zscale=primaries=bt709"]
    if media.color_transfer in _HIGH_DYNAMIC_RANGE:
        chain.append("tonemap=hable:desat=0")
    return [*chain, "zscale=transfer=bt709:matrix=bt709:range=tv"]


def check_height(height: int) -> None:
    """Raises ValueError for what no clip can be transcoded to."""
    if not 32 <= height <= MAX_HEIGHT_PX or height % 2:
        raise ValueError(f"height={height}: must be even, and 32 to {MAX_HEIGHT_PX} pixels")


def has_height(width_px: int, height_px: int, height: int) -> bool:
    """Whether a clip is as `transcode_file` makes it for a height: a very wide or tall one has less."""
    shorter = min(width_px, height_px)
    return shorter == height or (max(width_px, height_px) == MAX_SIDE_PX and shorter < height)


@cache
def default_encoder() -> str:
    """What ``encoder="auto"`` stands for on this machine: the first encoder that does encode a few frames."""
    for name, (before, last_filters, options) in _ENCODERS.items():
        if can_encode((*before, "-vf", last_filters, "-c:v", name, *options)):
            return name
    raise TranscodeError(
        ffmpeg_path(),
        None,
        f"it has none of the encoders {', '.join(_ENCODERS)}; set KDEPTH_FFMPEG to an FFmpeg with libx264",
    )


def video_info(path: str | Path) -> VideoInfo:
    """Size and length of a clip that `transcode_file` wrote; opened in this process, so never of any other file.

    Args:
        path: The clip.

    Raises:
        DamagedMediaError: It is not there or not whole.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            num_frames = 0
            for packet in container.demux():
                if packet.is_corrupt:
                    raise DamagedMediaError(str(path), None, "the file is cut off")
                num_frames += packet.stream == stream and packet.size > 0
            # The index at the front says how many there were.
            if not num_frames or num_frames != stream.frames or not stream.duration or not stream.time_base:
                raise DamagedMediaError(str(path), None, f"{num_frames} of {stream.frames} frames are there")
            duration_seconds = float(stream.duration * stream.time_base)
            return VideoInfo(
                width=stream.width,
                height=stream.height,
                average_fps=num_frames / duration_seconds,
                num_frames=num_frames,
                duration_seconds=duration_seconds,
                has_audio=bool(container.streams.audio),
            )
    except (OSError, av.error.FFmpegError, IndexError) as exc:
        raise DamagedMediaError(str(path), None, f"can't be read as a clip: {exc}") from exc
