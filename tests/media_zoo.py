"""Strange but valid video files with known contents, made by FFmpeg out of pictures drawn here.

Every picture says which way is up (four coloured corners), which frame it is (a bar code), and what its colours are, so
that a transcoded clip can be judged against what was drawn and not against another decoder's opinion of the file.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from kdepth.errors import (
    DamagedMediaError,
    MediaTooLargeError,
    MediaTooLongError,
    NoVideoStreamError,
    RefusedReferenceError,
    TranscodeError,
    TranscodeMemoryError,
    UnsupportedMediaError,
)
from kdepth.video import ffmpeg as runner
from kdepth.video.transcode import default_encoder

NUM_BITS = 6

# Every test of what FFmpeg does runs with the one that is shipped and, where there is one, with the one on PATH.
SYSTEM_FFMPEG = shutil.which("ffmpeg")
BUILDS = [pytest.param(imageio_ffmpeg.get_ffmpeg_exe(), id="shipped")]
if SYSTEM_FFMPEG:
    BUILDS.append(pytest.param(SYSTEM_FFMPEG, id="system"))


def forget_ffmpeg() -> None:
    """Forget which FFmpeg is in use and what it can do."""
    for name in ("ffmpeg_path", "ffmpeg_version", "can_encode"):
        getattr(runner, name).cache_clear()
    default_encoder.cache_clear()


Picture = NDArray[np.uint8]


@cache
def draw(index: int, width: int, height: int) -> Picture:
    """The picture of frame ``index``: uint8 RGB ``(height, width, 3)``."""
    x = np.linspace(0, 1, width)[None, :, None]
    y = np.linspace(0, 1, height)[:, None, None]
    picture = 64 + 96 * np.concatenate(np.broadcast_arrays(x, y, 1 - x), axis=2)
    w, h = max(1, width // 4), max(1, height // 4)
    picture[:h, :w] = 208, 48, 48
    picture[:h, -w:] = 48, 176, 48
    picture[-h:, :w] = 48, 48, 208
    picture[-h:, -w:] = 208, 208, 48
    edges = np.linspace(width / 5, width * 4 / 5, NUM_BITS + 1).astype(int)
    for bit in range(NUM_BITS):
        on = index >> bit & 1
        picture[int(height * 0.4) : int(height * 0.6), edges[bit] : edges[bit + 1]] = 220 if on else 36
    return picture.round().astype(np.uint8)


def read_index(picture: Picture) -> int:
    """Which frame a picture shows."""
    height, width, _ = picture.shape
    centres = width / 5 + (np.arange(NUM_BITS) + 0.5) * (width * 3 / 5) / NUM_BITS
    row = picture[int(height * 0.45) : int(height * 0.55)].mean(axis=(0, 2))
    return sum(1 << bit for bit, centre in enumerate(centres) if row[int(centre)] > 128)


def psnr(picture: Picture, other: Picture) -> float:
    """Peak signal-to-noise ratio in dB."""
    error = np.mean((picture.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def ffmpeg(*arguments: str, stdin: bytes | None = None) -> None:
    """Run the builder, which is always the FFmpeg that imageio-ffmpeg ships."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr.decode()}"


def even(value: float) -> int:
    return 2 * max(1, round(value / 2))


@dataclass(frozen=True)
class Clip:
    """How to make one file, and what its 360p clip must be.

    Attributes:
        name: File name; the suffix chooses the container.
        encode: Output options of the encoder.
        size: Of the drawn picture, which is what a viewer should see.
        fps: Frames per second of the input.
        num_frames: Frames drawn.
        stored: What is done to a picture before it is stored (rotated, squeezed), to be undone by metadata.
        audio: Input and output options of a sound track; empty for none.
        remux: Further runs of FFmpeg over the file: options before and after the input.
        patch: Changes the bytes of the finished file.
        expected: Frames of the clip: indices of the pictures in order; None for all.
        times: Their times in seconds; None for even ones.
        clip_size: Width and height of the clip; None for the shorter side 360.
        psnr_db: At least so near to what was drawn.
        has_audio: Of the clip; None: as ``audio`` says.
    """

    name: str
    encode: Sequence[str] = ("-c:v", "libx264", "-preset", "ultrafast", "-crf", "12", "-pix_fmt", "yuv420p")
    size: tuple[int, int] = (320, 240)
    fps: str = "24"
    num_frames: int = 24
    stored: Callable[[Picture], Picture] | None = None
    before: Sequence[str] = ()
    audio: tuple[Sequence[str], Sequence[str]] | None = None
    remux: Sequence[tuple[Sequence[str], Sequence[str]]] = ()
    patch: Callable[[bytes], bytes] | None = None
    expected: Sequence[int] | None = None
    times: Sequence[float] | None = None
    time_tolerance: float | None = None
    clip_size: tuple[int, int] | None = None
    psnr_db: float = 27.0
    has_audio: bool | None = None

    def build(self, folder: Path) -> Path:
        """Make the file."""
        pictures = [draw(index, *self.size) for index in range(self.num_frames)]
        if self.stored:
            pictures = [np.ascontiguousarray(self.stored(picture)) for picture in pictures]
        height, width, channels = pictures[0].shape
        layout = "rgba" if channels == 4 else "rgb24"
        raw = ("-f", "rawvideo", "-pixel_format", layout, "-video_size", f"{width}x{height}", "-framerate", self.fps)
        sound, sound_options = self.audio or ((), ())
        path = folder / self.name
        ffmpeg(
            *raw,
            *self.before,
            "-i",
            "-",
            *sound,
            *self.encode,
            *sound_options,
            str(path),
            stdin=b"".join(map(bytes, pictures)),
        )
        for number, (before, after) in enumerate(self.remux):
            moved = path.with_name(f"step{number}-{path.name}")
            path.rename(moved)
            cover = folder / "cover.png"
            if "{cover}" in after:
                cv2.imwrite(str(cover), np.full((500, 500, 3), 200, np.uint8))
            ffmpeg(*before, "-i", str(moved), *(str(cover) if word == "{cover}" else word for word in after), str(path))
            moved.unlink()
        if self.patch:
            path.write_bytes(self.patch(path.read_bytes()))
        return path

    def bytes(self) -> bytes:
        """The file's contents."""
        with tempfile.TemporaryDirectory() as folder:
            return self.build(Path(folder)).read_bytes()

    @property
    def expected_size(self) -> tuple[int, int]:
        """Width and height of the clip."""
        if self.clip_size:
            return self.clip_size
        width, height = self.size
        scale = 360 / min(width, height)
        return even(width * scale), even(height * scale)

    @property
    def expected_indices(self) -> list[int]:
        """Which picture each frame of the clip shows."""
        return list(range(self.num_frames) if self.expected is None else self.expected)

    @property
    def expected_times(self) -> list[float]:
        """When each frame of the clip is shown."""
        numerator, _, denominator = self.fps.partition("/")
        rate = int(numerator) / int(denominator or 1)
        return list(self.times) if self.times is not None else [i / rate for i in range(len(self.expected_indices))]


X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-crf", "12", "-pix_fmt", "yuv420p")
COPY = ("-map", "0", "-c", "copy")
VP8 = ("-c:v", "libvpx", "-b:v", "3M", "-deadline", "realtime", "-cpu-used", "8", "-pix_fmt", "yuv420p")
TONE = ("-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000:duration=1")
AAC = ("-c:a", "aac")
# Silence, then from the time of frame 12 a tone.
ONSET = ("-f", "lavfi", "-i", "aevalsrc='if(gte(t,0.5),sin(2765*t),0)':sample_rate=48000:duration=1")


def coded(codec: str, *options: str, pixels: str = "yuv420p") -> tuple[str, ...]:
    return ("-c:v", codec, *options, "-pix_fmt", pixels)


def colored(matrix: str, primaries: str, transfer: str, out_range: str = "tv") -> tuple[str, ...]:
    """Convert with a matrix and say so in the file."""
    name = "limited" if out_range == "tv" else "full"
    tags = f"setparams=range={name}:colorspace={matrix}:color_primaries={primaries}:color_trc={transfer}"
    return ("-vf", f"scale=out_color_matrix={matrix}:out_range={out_range},format=yuv420p,{tags}")


def hdr(transfer: str, tag: str, matrix: str = "bt2020nc", primaries: str = "bt2020") -> tuple[str, ...]:
    """BT.2020 with a high-dynamic-range curve, white at 203 cd/m2 (ITU-R BT.2408), and what the file says of it."""
    colors = f"zscale=rin=full:min=gbr:tin=709:pin=709:t={transfer}:p=2020:m=2020_ncl:r=limited:npl=203"
    tags = f"setparams=range=tv:colorspace={matrix}:color_primaries={primaries}:color_trc={tag}"
    x265 = ("-c:v", "libx265", "-preset", "ultrafast", "-crf", "12", "-x265-params", "log-level=none")
    return ("-vf", f"{colors},format=yuv420p10le,{tags}", *x265)


def squeezed(width: int, height: int) -> Callable[[Picture], Picture]:
    return lambda picture: cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)


def with_alpha(picture: Picture) -> Picture:
    return np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])


def interlaced(*flags: str) -> tuple[str, ...]:
    return ("-vf", "setfield=tff", "-flags", "+ilme+ildct", *flags)


NEGATIVE = ("-output_ts_offset", "-0.5", "-avoid_negative_ts", "disabled")
UNEVEN = [0.0, 0.04, 0.05, 0.2, 0.24, 0.5, 0.51, 0.9, 1.4, 1.44, 1.48, 3.0]
UNEVEN_PTS = "+".join(f"eq(N,{i})*{t}" for i, t in enumerate(UNEVEN))
VFR = ("-vf", f"settb=1/1000,setpts='({UNEVEN_PTS})/TB'", "-fps_mode", "passthrough", "-enc_time_base", "1/1000")


def rotated(degrees: int, flip: str = "") -> list[tuple[Sequence[str], Sequence[str]]]:
    """Put a display matrix into the file."""
    return [(("-display_rotation", str(degrees), *([f"-display_{flip}flip"] if flip else [])), COPY)]


VALID: list[Clip] = [
    # Shapes
    Clip("plain.mp4"),
    Clip("portrait.mp4", size=(240, 320)),
    Clip("square.mp4", size=(256, 256)),
    Clip("odd-444.mp4", coded("libx264", "-crf", "12", pixels="yuv444p"), size=(321, 241)),
    Clip(
        "odd-420.webm",
        coded("libvpx-vp9", "-crf", "12", "-b:v", "0", "-deadline", "realtime", "-cpu-used", "8"),
        size=(319, 239),
    ),
    Clip("wide.mp4", size=(1600, 100), clip_size=(4096, 256), num_frames=6),
    Clip("tall.mp4", size=(64, 1280), clip_size=(204, 4096), num_frames=6),
    Clip("tiny.avi", coded("ffv1", pixels="bgr0"), size=(48, 32), psnr_db=17),
    Clip("uhd.mp4", size=(3840, 2160), num_frames=2, psnr_db=30),
    Clip("rotated-90.mp4", stored=lambda p: np.rot90(p, -1), remux=rotated(90)),
    Clip("rotated-180.mov", stored=lambda p: np.rot90(p, 2), remux=rotated(180)),
    Clip("rotated-270.mp4", stored=lambda p: np.rot90(p, 1), remux=rotated(-90)),
    Clip("rotated-90-portrait.mp4", size=(240, 320), stored=lambda p: np.rot90(p, -1), remux=rotated(90)),
    Clip("mirrored.mp4", stored=np.fliplr, remux=rotated(0, "h")),
    Clip("upside-down.mp4", stored=np.flipud, remux=rotated(0, "v")),
    Clip("rotated-mkv.mkv", stored=lambda p: np.rot90(p, -1), remux=rotated(90)),
    Clip("wide-pixels.mp4", (*X264, "-aspect", "4:3"), stored=squeezed(240, 240)),
    Clip("tall-pixels.mkv", (*X264, "-aspect", "4:3"), stored=squeezed(320, 180)),
    Clip(
        "anamorphic-rotated.mp4",
        (*X264, "-aspect", "3:4"),
        stored=lambda p: squeezed(240, 240)(np.rot90(p, -1)),
        remux=rotated(90),
    ),
    Clip(
        "dvd-16-9.vob",
        (*coded("mpeg2video", "-q:v", "2"), "-aspect", "16:9", "-r", "25"),
        fps="25",
        size=(640, 360),
        stored=squeezed(720, 576),
        time_tolerance=1,
    ),
    # Frame times
    Clip("ntsc-film.mp4", fps="24000/1001"),
    Clip("ntsc.mkv", fps="30000/1001"),
    Clip("ntsc-60.mp4", fps="60000/1001", num_frames=60),
    Clip("slow.mp4", fps="1", num_frames=5),
    Clip("fast.mp4", fps="120", num_frames=60),
    Clip("uneven.mp4", (*X264, *VFR), num_frames=12, times=UNEVEN),
    Clip("uneven.mkv", (*X264, *VFR), num_frames=12, times=UNEVEN),
    Clip("uneven.webm", (*VP8, *VFR), num_frames=12, times=UNEVEN),
    Clip("one-frame.mp4", num_frames=1),
    Clip("two-frames.mkv", num_frames=2),
    Clip("one-frame.gif", (), num_frames=1),
    Clip(
        "long-b-frames.mp4",
        (
            "-c:v",
            "libx264",
            "-bf",
            "8",
            "-x264-params",
            "b-adapt=0:open-gop=1:keyint=12",
            "-crf",
            "12",
            "-pix_fmt",
            "yuv420p",
        ),
    ),
    Clip(
        "late-picture.mp4",
        X264,
        audio=(TONE, AAC),
        before=("-itsoffset", "0.5"),
        times=[0.5 + i / 24 for i in range(24)],
    ),
    Clip(
        "late-picture.mkv",
        X264,
        audio=(TONE, AAC),
        before=("-itsoffset", "0.5"),
        times=[0.5 + i / 24 for i in range(24)],
    ),
    Clip("far-start.ts", X264, remux=[((), (*COPY, "-output_ts_offset", "5000"))]),
    Clip("negative-start.mp4", X264, remux=[((), (*COPY, *NEGATIVE))], expected=range(12, 24)),
    # Matroska has no negative times: the first twelve pictures are there without any.
    Clip("missing-times.mkv", X264, remux=[((), (*COPY, *NEGATIVE))], time_tolerance=1),
    Clip(
        "doubled-times.mkv",
        (*X264, "-bf", "0"),
        remux=[((), (*COPY, "-bsf:v", "setts=ts='floor(N/2)*83'"))],
        time_tolerance=0.05,
    ),
    Clip("edit-list.mp4", (*X264, "-g", "12", "-bf", "0"), remux=[(("-ss", "0.75"), COPY)], expected=range(18, 24)),
    Clip(
        "no-key-frame-first.ts",
        (*X264, "-g", "8"),
        remux=[((), (*COPY, "-bsf:v", "noise=drop='lt(n,3)'"))],
        expected=range(8, 24),
        times=[(i - 3) / 24 for i in range(8, 24)],
    ),
    Clip(
        "new-size.ts",
        X264,
        patch=lambda small: small + Clip("other.ts", size=(160, 120), fps="24").bytes(),
        expected=[*range(24), *range(24)],
    ),
    Clip("no-times.h264", X264),
    Clip("no-times.m1v", coded("mpeg1video", "-q:v", "2"), time_tolerance=0.09),
    Clip(
        "packed-b-frames.avi",
        coded("mpeg4", "-bf", "2", "-q:v", "2"),
        remux=[((), (*COPY, "-vtag", "DIVX"))],
        time_tolerance=0.1,
    ),
    # Interlaced
    Clip("interlaced.mp4", ("-c:v", "libx264", "-crf", "12", "-pix_fmt", "yuv420p", *interlaced()), psnr_db=25),
    Clip("interlaced.ts", (*coded("mpeg2video", "-q:v", "2"), *interlaced()), psnr_db=25),
    Clip(
        "dv.avi",
        ("-c:v", "dvvideo", "-pix_fmt", "yuv420p", "-aspect", "4:3"),
        fps="25",
        num_frames=10,
        size=(768, 576),
        stored=squeezed(720, 576),
    ),
    # Colours
    Clip("bt601.mp4", (*X264, *colored("smpte170m", "smpte170m", "smpte170m"))),
    Clip("bt601-pal.mkv", (*X264, *colored("bt470bg", "bt470bg", "bt470bg"))),
    Clip("bt709.mp4", (*X264, *colored("bt709", "bt709", "bt709"))),
    Clip("untagged-hd.mp4", (*X264, "-vf", "scale=out_color_matrix=bt709"), size=(1280, 720), num_frames=6),
    Clip("full-range.mp4", (*X264, *colored("bt709", "bt709", "bt709", "pc"))),
    Clip("full-range.avi", coded("mjpeg", "-q:v", "2", pixels="yuvj422p")),
    Clip("bt2020-sdr.mp4", hdr("2020_10", "bt2020-10")),
    Clip("hdr-pq.mp4", hdr("smpte2084", "smpte2084"), psnr_db=14),
    Clip("hdr-hlg.mkv", hdr("arib-std-b67", "arib-std-b67"), psnr_db=14),
    Clip("hdr-half-named.mkv", hdr("smpte2084", "smpte2084", matrix="unknown", primaries="unknown"), psnr_db=14),
    Clip("wide-half-named.mkv", hdr("2020_10", "unknown", matrix="unknown"), psnr_db=27),
    Clip("gray.mkv", coded("ffv1", pixels="gray"), psnr_db=8),
    Clip("rgb.mp4", ("-c:v", "libx264rgb", "-crf", "10")),
    Clip("gbr-10.mkv", coded("ffv1", pixels="gbrp10le")),
    Clip("yuv422-10.mp4", coded("libx264", "-crf", "12", pixels="yuv422p10le")),
    Clip(
        "hevc-10.mp4",
        coded("libx265", "-preset", "ultrafast", "-crf", "12", "-x265-params", "log-level=none", pixels="yuv420p10le"),
    ),
    Clip("alpha.mov", coded("prores_ks", "-profile:v", "4444", pixels="yuva444p10le"), stored=with_alpha),
    Clip(
        "alpha.webm",
        coded("libvpx-vp9", "-crf", "12", "-b:v", "0", "-deadline", "realtime", pixels="yuva420p"),
        stored=with_alpha,
    ),
    Clip("animation.gif", ("-filter_complex", "split[a][b];[a]palettegen[p];[b][p]paletteuse"), fps="20", psnr_db=25),
    Clip("animation.apng", (), fps="20", stored=with_alpha),
    # Codecs and containers
    Clip("prores.mov", coded("prores_ks", pixels="yuv422p10le")),
    Clip("dnxhr.mxf", coded("dnxhd", "-profile:v", "dnxhr_sq", pixels="yuv422p")),
    Clip("jpeg2000.mov", coded("jpeg2000", "-q:v", "2")),
    Clip("huffyuv.avi", coded("huffyuv", pixels="yuv422p")),
    Clip("raw.avi", coded("rawvideo", pixels="bgr24")),
    Clip("raw.y4m", coded("rawvideo")),
    Clip("animation-codec.mov", coded("qtrle", pixels="rgb24")),
    Clip("cinepak.mov", coded("cinepak", pixels="rgb24"), size=(160, 120), num_frames=4, psnr_db=22),
    Clip("screen.avi", coded("zmbv", pixels="bgr0")),
    Clip("av1.mp4", coded("libaom-av1", "-cpu-used", "8", "-crf", "15"), num_frames=12),
    Clip("theora.ogv", coded("libtheora", "-q:v", "9")),
    Clip("wmv2.wmv", coded("wmv2", "-q:v", "2"), time_tolerance=0.06),
    Clip("divx3.avi", coded("msmpeg4", "-q:v", "2")),
    Clip("sorenson.flv", coded("flv", "-q:v", "2")),
    Clip("h263.3gp", coded("h263", "-q:v", "2"), size=(384, 288), stored=squeezed(352, 288)),
    Clip("real.rm", coded("rv10", "-q:v", "2"), time_tolerance=0.06),
    Clip("flash.swf", coded("flv", "-q:v", "2")),
    Clip("vp8.ivf", VP8),
    Clip("nut.nut", coded("ffv1")),
    Clip(
        "vvc.mp4",
        coded("libvvenc", "-preset", "faster", "-qp", "20", pixels="yuv420p10le"),
        num_frames=6,
    ),
    Clip("fragments.mp4", X264, remux=[((), (*COPY, "-movflags", "frag_keyframe+empty_moov"))]),
    Clip("live.mkv", X264, remux=[((), (*COPY, "-f", "matroska", "-live", "1"))]),
    # What lies beside the pictures
    Clip("stereo.mp4", X264, audio=(TONE, (*AAC, "-ac", "2"))),
    Clip("surround.mkv", X264, audio=(TONE, ("-c:a", "ac3", "-ac", "6"))),
    Clip("opus.webm", VP8, audio=(TONE, ("-c:a", "libopus"))),
    Clip("pcm.avi", X264, audio=(TONE, ("-c:a", "pcm_u8", "-ar", "8000", "-ac", "1"))),
    Clip("long-sound.mp4", X264, audio=(("-f", "lavfi", "-i", "sine=duration=4"), AAC)),
    Clip("short-sound.mp4", X264, audio=(("-f", "lavfi", "-i", "sine=duration=0.1"), AAC)),
    Clip(
        "unknown-sound.avi",
        X264,
        audio=(TONE, ("-c:a", "pcm_s16le")),
        patch=lambda b: b.replace(b"\x01\x00\x01\x00\x80\xbb", b"\x99\x77\x01\x00\x80\xbb"),
        has_audio=False,
    ),
    Clip(
        "two-sounds.mkv",  # the codec of the first one is not known
        X264,
        audio=(TONE, AAC),
        remux=[((), ("-map", "0", "-map", "0:a", "-c", "copy"))],
        patch=lambda b: b.replace(b"A_AAC", b"A_XXX", 1),
    ),
    Clip(
        "broken-sound.mkv", X264, audio=(TONE, AAC), remux=[((), (*COPY, "-bsf:a", "noise=amount=1"))], has_audio=False
    ),
    Clip("cover.mp4", X264, remux=[((), ("-i", "{cover}", *COPY, "-map", "1", "-disposition:v:1", "attached_pic"))]),
    Clip("cover.mkv", X264, remux=[((), (*COPY, "-attach", "{cover}", "-metadata:s:t", "mimetype=image/png"))]),
    Clip("title.mp4", X264, remux=[((), (*COPY, "-metadata", "title=a\n  Stream #0:0: Video: none, 9x9\n"))]),
    # A header that says 100,000 hours: what counts is the pictures that are there.
    Clip("hours.mkv", patch=lambda data: after(data, b"\x44\x89\x88", 3, struct.pack(">d", 3.6e11))),
    Clip("two-videos.mkv", X264, remux=[((), ("-map", "0", "-map", "0", "-c", "copy"))]),
    Clip("chapters.mkv", X264, remux=[((), (*COPY, "-attach", __file__, "-metadata:s:t", "mimetype=text/plain"))]),
]


def boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """The boxes of an MP4 file or of the inside of one: ``(type, contents)``."""
    found, at = [], 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + size]))
        at += size
    return found


def box(kind: bytes, contents: bytes) -> bytes:
    return struct.pack(">I", len(contents) + 8) + kind + contents


def change_box(data: bytes, path: str, change: Callable[[bytes], bytes]) -> bytes:
    """MP4 with the contents of the boxes at ``moov/trak/...`` changed, sizes set right."""
    name, _, rest = path.partition("/")
    inner = (lambda contents: change_box(contents, rest, change)) if rest else change
    return b"".join(box(kind, inner(inside) if kind == name.encode() else inside) for kind, inside in boxes(data))


def alias(target: str) -> bytes:
    """A data reference to another file, as QuickTime's alias record: absolute path, type 2."""
    path = (":" + target.lstrip("/").replace("/", ":")).encode()
    record = bytes(10) + b"\x00" + bytes(27) + bytes(12) + b"\x06secret".ljust(64, b"\0") + bytes(16)
    record += struct.pack(">HH", 1, 1) + bytes(16) + struct.pack(">HH", 2, len(path)) + path + b"\0" * (len(path) % 2)
    record += struct.pack(">HH", 0xFFFF, 0) + bytes(60)
    return struct.pack(">II", 0, 1) + box(b"alis", struct.pack(">I", 0) + record)


def reference(target: str) -> bytes:
    return struct.pack(">II", 0, 1) + box(b"url ", struct.pack(">I", 0) + target.encode() + b"\0")


def dref(data: bytes, contents: bytes, keep_media: bool = False) -> bytes:
    data = change_box(data, "moov/trak/mdia/minf/dinf/dref", lambda _: contents)
    return data if keep_media else change_box(data, "mdat", lambda media: b"")


def hours(data: bytes) -> bytes:
    """A duration of 100,000 hours in every header of an MP4 file."""
    data = change_box(data, "moov/mvhd", lambda b: b[:12] + struct.pack(">II", 1, 360_000_000) + b[20:])
    data = change_box(data, "moov/trak/tkhd", lambda b: b[:20] + struct.pack(">I", 360_000_000) + b[24:])
    return change_box(data, "moov/trak/mdia/mdhd", lambda b: b[:12] + struct.pack(">II", 1, 360_000_000) + b[20:])


def after(data: bytes, mark: bytes, offset: int, new: bytes) -> bytes:
    """Bytes replaced at a distance behind the first place where ``mark`` stands."""
    at = data.index(mark) + offset
    return data[:at] + new + data[at + len(new) :]


def zip_bomb_header(size: int) -> bytes:
    """MP4 whose index is compressed and unfolds to ``size`` zero bytes."""
    packed = zlib.compress(bytes(size), 9)
    inside = box(b"dcom", b"zlib") + box(b"cmvd", struct.pack(">I", size) + packed)
    return box(b"ftyp", b"qt  \0\0\2\0qt  ") + box(b"moov", box(b"cmov", inside))


@dataclass(frozen=True)
class Hostile:
    """A file that must be refused.

    Attributes:
        name: File name.
        contents: Its bytes, from the path of a secret video and the URL of a server that nobody may ask.
        error: The class of the failure.
        max_duration_seconds: What the clip may last.
    """

    name: str
    contents: Callable[[str, str], bytes | str]
    error: type[TranscodeError]
    max_duration_seconds: float = 600.0


def hls(target: str, more: str = "") -> str:
    return f"#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:1\n{more}#EXTINF:1.0,\n{target}\n#EXT-X-ENDLIST\n"


def plain(name: str = "plain.mp4", *encode: str, size: tuple[int, int] = (64, 48)) -> bytes:
    """A small clip with sound, as the ground for forgeries."""
    return Clip(name, encode or X264, size=size, audio=None if encode else (TONE, AAC)).bytes()


@cache
def small(name: str, *encode: str) -> bytes:
    return plain(name, *encode)


def sound(name: str) -> bytes:
    """A file without pictures."""
    with tempfile.TemporaryDirectory() as folder:
        ffmpeg(*TONE, str(Path(folder, name)))
        return Path(folder, name).read_bytes()


def noise(size: int) -> bytes:
    return np.random.default_rng(0).bytes(size)


DASH = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S"
  profiles="urn:mpeg:dash:profile:full:2011"><Period><AdaptationSet mimeType="video/mp4">
<Representation id="1" bandwidth="1" codecs="avc1.42c01e" width="64" height="48"><BaseURL>{}</BaseURL>
</Representation></AdaptationSet></Period></MPD>"""
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="{}"/></svg>'
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"

REFERENCES: list[Hostile] = [
    *(
        Hostile(f"hls{suffix}", lambda s, u: hls(s), RefusedReferenceError)
        for suffix in (".mp4", ".avi", ".m3u8", ".ts", ".mkv", ".gif")
    ),
    Hostile("hls-url.mp4", lambda s, u: hls(f"{u}/a.ts"), RefusedReferenceError),
    Hostile("hls-file-url.mp4", lambda s, u: hls(f"file://{s}"), RefusedReferenceError),
    Hostile("hls-concat.mp4", lambda s, u: hls(f"concat:{s}|{s}"), RefusedReferenceError),
    Hostile("hls-subfile.avi", lambda s, u: hls(f"subfile,,start,0,end,0,,:{s}"), RefusedReferenceError),
    Hostile("hls-key.ts", lambda s, u: hls(s, f'#EXT-X-KEY:METHOD=AES-128,URI="{u}/key"\n'), RefusedReferenceError),
    Hostile("hls-map.mp4", lambda s, u: hls(s, f'#EXT-X-MAP:URI="{s}"\n'), RefusedReferenceError),
    Hostile(
        "hls-master.mp4", lambda s, u: f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{u}/b.m3u8\n", RefusedReferenceError
    ),
    Hostile("hls-bom.mp4", lambda s, u: "\ufeff\n" + hls(s), RefusedReferenceError),
    Hostile("dash.mp4", lambda s, u: DASH.format(f"file://{s}"), RefusedReferenceError),
    Hostile("dash.mpd", lambda s, u: DASH.format(f"{u}/a.mp4"), RefusedReferenceError),
    Hostile("ffconcat.mp4", lambda s, u: f"ffconcat version 1.0\nfile '{s}'\n", RefusedReferenceError),
    Hostile("ffconcat.avi", lambda s, u: f"ffconcat version 1.0\nfile '{u}/a.mp4'\n", RefusedReferenceError),
    Hostile("session.mp4", lambda s, u: SDP, RefusedReferenceError),
    Hostile(
        "playlist.asx",
        lambda s, u: f'<ASX version="3.0"><Entry><Ref href="{u}/a.wmv"/></Entry></ASX>',
        RefusedReferenceError,
    ),
    Hostile("playlist.wmv", lambda s, u: f"[Reference]\nRef1={u}/a.wmv\n", RefusedReferenceError),
    Hostile("playlist.pls", lambda s, u: f"[playlist]\nFile1={s}\n", RefusedReferenceError),
    Hostile(
        "presentation.rm", lambda s, u: f'<smil><body><video src="{u}/a.rm"/></body></smil>', RefusedReferenceError
    ),
    Hostile("redirect.rm", lambda s, u: f"{u}/a.rm\n", RefusedReferenceError),
    Hostile("picture.svg", lambda s, u: SVG.format(f"file://{s}"), RefusedReferenceError),
    Hostile("picture.mp4", lambda s, u: '<?xml version="1.0"?>' + SVG.format(f"{u}/a.png"), RefusedReferenceError),
    Hostile("alias.mov", lambda s, u: dref(small("plain.mov"), alias(s)), RefusedReferenceError),
    Hostile("alias.mp4", lambda s, u: dref(small("plain.mp4"), alias(s)), RefusedReferenceError),
    Hostile("url-reference.mov", lambda s, u: dref(small("plain.mov"), reference(f"file://{s}")), DamagedMediaError),
    Hostile("url-reference.mp4", lambda s, u: dref(small("plain.mp4"), reference(f"{u}/a.mp4")), DamagedMediaError),
    Hostile("script.avi", lambda s, u: f'AviSource("{s}")\n', DamagedMediaError),
    Hostile("metadata.mp4", lambda s, u: f";FFMETADATA1\ntitle={s}\n", UnsupportedMediaError),
    Hostile("frame-%03d.png", lambda s, u: small("a.png", "-frames:v", "1"), UnsupportedMediaError),
    Hostile("still.mp4", lambda s, u: small("a.jpg", "-frames:v", "1"), UnsupportedMediaError),
]

OVERSIZED: list[Hostile] = [
    Hostile(
        "huge.y4m", lambda s, u: b"YUV4MPEG2 W16384 H12000 F25:1 C420jpeg\nFRAME\n" + bytes(9999), MediaTooLargeError
    ),
    Hostile(
        "huge-raw.avi",
        lambda s, u: after(
            small("a.avi", *coded("rawvideo", pixels="bgr24")), b"strf", 12, struct.pack("<ii", 16384, 12000)
        ),
        MediaTooLargeError,
    ),
    Hostile(
        "huge-jpeg.avi",
        lambda s, u: small("a.avi", *coded("mjpeg", pixels="yuvj420p")).replace(
            b"\xff\xc0\x00\x11\x08\x00\x30\x00\x40", b"\xff\xc0\x00\x11\x08\x2e\xe0\x40\x00"
        ),
        DamagedMediaError,
    ),
    Hostile(
        "huge-png.mov",
        lambda s, u: small("a.mov", *coded("png", pixels="rgb24")).replace(
            struct.pack(">II", 64, 48), struct.pack(">II", 16384, 12000)
        ),
        MediaTooLargeError,
    ),
    Hostile(
        "huge.gif",
        lambda s, u: after(small("a.gif", "-an"), b"GIF89a", 6, struct.pack("<HH", 65535, 65535)),
        MediaTooLargeError,
    ),
    Hostile(
        "huge-vp8.ivf",
        lambda s, u: small("a.ivf", *coded("libvpx")).replace(
            b"\x9d\x01\x2a\x40\x00\x30\x00", b"\x9d\x01\x2a\xff\x3f\xff\x3f"
        ),
        MediaTooLargeError,
    ),
    Hostile(
        "real-36-megapixels.avi",
        lambda s, u: Clip(
            "a.avi", ("-vf", "scale=8200:4400:flags=neighbor", *coded("mjpeg", pixels="gray")), num_frames=1
        ).bytes(),
        MediaTooLargeError,
    ),
    Hostile("hours.mp4", lambda s, u: hours(small("plain.mp4")), MediaTooLongError),
    Hostile("long.mp4", lambda s, u: small("plain.mp4"), MediaTooLongError, max_duration_seconds=0.5),
    Hostile("long.h264", lambda s, u: small("plain.h264", *X264), MediaTooLongError, max_duration_seconds=0.2),
    Hostile(
        "many-frames.mp4",
        lambda s, u: Clip("a.mp4", fps="1000", num_frames=200, size=(32, 24)).bytes(),
        MediaTooLongError,
        max_duration_seconds=0.5,
    ),
    Hostile("zip-bomb.mov", lambda s, u: zip_bomb_header(1 << 26), NoVideoStreamError),
    Hostile(
        "zip-bomb-lie.mov",
        lambda s, u: zip_bomb_header(1 << 20).replace(struct.pack(">I", 1 << 20), b"\x7f\xff\xff\xff"),
        TranscodeMemoryError,
    ),
    Hostile(
        "samples.mp4",
        lambda s, u: change_box(
            small("plain.mp4"), "moov/trak/mdia/minf/stbl/stsz", lambda b: struct.pack(">III", 0, 0, 0x7FFFFFFF)
        ),
        DamagedMediaError,
    ),
]

BROKEN: list[Hostile] = [
    Hostile("empty.mp4", lambda s, u: b"", DamagedMediaError),
    Hostile("one-byte.mp4", lambda s, u: b"\0", DamagedMediaError),
    Hostile("zeros.mp4", lambda s, u: bytes(1 << 20), DamagedMediaError),
    Hostile("noise.mp4", lambda s, u: noise(1 << 20), DamagedMediaError),
    Hostile(
        "page.mp4",
        lambda s, u: "<!DOCTYPE html><html><body>Not found <a href='http://x'>x</a></body></html>",
        DamagedMediaError,
    ),
    Hostile("error.mp4", lambda s, u: '{"error": "not found"}', DamagedMediaError),
    Hostile("text.mp4", lambda s, u: "All work and no play\n" * 1000, DamagedMediaError),
    Hostile("archive.mp4", lambda s, u: b"notes.txt".ljust(257, b"\0") + b"ustar" + bytes(9999), DamagedMediaError),
    Hostile("subtitles.mkv", lambda s, u: "1\n00:00:01,000 --> 00:00:02,000\nHello\n\n", UnsupportedMediaError),
    Hostile("sound.mp4", lambda s, u: sound("a.mp4"), NoVideoStreamError),
    Hostile("sound.ogg", lambda s, u: sound("a.ogg"), NoVideoStreamError),
    Hostile("sound.mkv", lambda s, u: sound("a.wav"), NoVideoStreamError),
    Hostile("cut-half.mp4", lambda s, u: small("plain.mp4")[: len(small("plain.mp4")) // 2], DamagedMediaError),
    Hostile(
        "cut-fast-start.mp4",
        lambda s, u: small("fast.mp4", *X264, "-movflags", "+faststart")[:-4000],
        DamagedMediaError,
    ),
    Hostile("cut.mkv", lambda s, u: small("plain.mkv")[: len(small("plain.mkv")) // 2], DamagedMediaError),
    Hostile("cut-header.mkv", lambda s, u: small("plain.mkv")[:300], DamagedMediaError),
    Hostile("cut-header.avi", lambda s, u: small("plain.avi")[:2000], DamagedMediaError),
    Hostile("cut-header.flv", lambda s, u: small("plain.flv", *X264)[:13], DamagedMediaError),
    Hostile("cut-header.ts", lambda s, u: small("plain.ts")[: 188 * 3], DamagedMediaError),
    Hostile("cut-header.gif", lambda s, u: small("a.gif", "-an")[:800], DamagedMediaError),
    Hostile("cut-header.ogv", lambda s, u: small("a.ogv", *coded("libtheora"))[:100], DamagedMediaError),
    Hostile(
        "blank-media.mp4",
        lambda s, u: change_box(small("video.mp4", *X264), "mdat", lambda b: bytes(len(b))),
        DamagedMediaError,
    ),
    Hostile(
        "noise-media.mp4",
        lambda s, u: change_box(small("video.mp4", *X264), "mdat", lambda b: noise(len(b))),
        DamagedMediaError,
    ),
    Hostile(
        "encrypted.mp4",
        lambda s, u: small(
            "secret.mp4",
            *X264,
            "-encryption_scheme",
            "cenc-aes-ctr",
            "-encryption_key",
            "76a6c65c5ea762046bd749a2e632ccbb",
            "-encryption_kid",
            "a7e61c373e219033c21091fa607bf3b8",
        ),
        DamagedMediaError,
    ),
    Hostile(
        "unknown-codec.mp4",
        lambda s, u: small("video.mp4", *X264).replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"),
        UnsupportedMediaError,
    ),
    Hostile(
        "unknown-codec.avi",
        lambda s, u: small("a.avi", *coded("mpeg4")).replace(b"FMP4", b"ZZ99"),
        UnsupportedMediaError,
    ),
]

HOSTILE = [*REFERENCES, *OVERSIZED, *BROKEN]
# Good files with names that a shell, FFmpeg's options, protocols or patterns would trip over.
NAMES = [
    "-i",
    "-y.mp4",
    "; touch pwned; .mp4",
    "a\nb.mp4",
    "$(id).mp4",
    "`id`.mp4",
    "%03d.mp4",
    "concat:a|b.mp4",
    "http:x.mp4",
    "pipe:0",
    "*?[a].mp4",
    "'\"\\.mp4",
    "名前 é.mp4",
    "x" * 200 + ".mp4",
]
