"""Files as the world has them: trimmed, turned, of many tracks, with strange colours and clocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from media_zoo import (
    AAC,
    COPY,
    TONE,
    X264,
    Clip,
    coded,
    colored,
    draw,
    ffmpeg,
    psnr,
    read_index,
)

from kdepth.errors import (
    DamagedMediaError,
    MediaTooLargeError,
    MediaTooLongError,
    TranscodeError,
    TranscodeTimeoutError,
    UnsupportedMediaError,
)
from kdepth.video.depth_file import DepthWriter, read_checksums, read_depth, read_depths_at
from kdepth.video.frames import read_frame_at, read_frames
from kdepth.video.probe import probe
from kdepth.video.transcode import VideoInfo, _allowed_seconds, transcode_file, video_info


def transcoded(source: Path, **options: object) -> tuple[VideoInfo, list[int], list[float], list[np.ndarray]]:
    """Transcode at 240 pixels: what came, which picture each frame shows, its time, its colours."""
    target = source.with_name("clip.mp4")
    info = transcode_file(source, target, height=240, threads=1, **options)  # type: ignore[arg-type]
    frames = list(read_frames(target))
    assert info.num_frames == len(frames)
    return info, [read_index(f.rgb) for f in frames], [f.time_seconds for f in frames], [f.rgb for f in frames]


LONG_GOP = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "300", "-pix_fmt", "yuv420p")


@pytest.mark.parametrize("bframes", [0, 3])
@pytest.mark.parametrize("name", ["cut.mp4", "cut.mov", "fragments.mp4", "cut.mkv"])
def test_trimmed_without_loss(name: str, bframes: int, build: str, tmp_path: Path) -> None:
    """From the key frame to the cut everything is there, and marked as not to be shown."""
    whole = Clip("whole.mp4", (*LONG_GOP, "-bf", str(bframes)), fps="30", num_frames=60).build(tmp_path)
    flags = ("-movflags", "+frag_keyframe+empty_moov+delay_moov") if name == "fragments.mp4" else ()
    ffmpeg("-ss", "1.5", "-i", str(whole), "-t", "0.3", "-c", "copy", *flags, str(tmp_path / name))
    with av.open(str(tmp_path / name)) as container:
        there = [read_index(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert there[0] == (45 if name in ("cut.mp4", "cut.mov") else 0)  # the others have no way to say so
    _, shown, times, _ = transcoded(tmp_path / name)
    assert shown == there
    assert times[0] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", ["slow.mp4", "slow.mkv", "slow.mov"])
def test_the_duration_reaches_to_the_end_of_the_last_picture(name: str, build: str, tmp_path: Path) -> None:
    last = "if(eq(N,11),18,N*0.1)"
    pts = ("-vf", f"settb=1/1000,setpts='({last})/TB'", "-fps_mode", "passthrough", "-enc_time_base", "1/1000")
    source = Clip(name, (*X264, "-bf", "3", *pts), num_frames=12).build(tmp_path)
    assert (probe(source).duration_seconds or 0) >= 18
    info, shown, times, _ = transcoded(source)
    assert shown == list(range(12))
    assert times == pytest.approx([*np.arange(11) / 10, 18], abs=2e-3)
    assert info.duration_seconds > times[-1]
    assert info.average_fps == pytest.approx(12 / info.duration_seconds)
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        assert clip.duration is not None
        assert clip.duration / 1e6 >= times[-1]
    for time, index in zip(times, shown, strict=True):
        assert read_index(read_frame_at(tmp_path / "clip.mp4", time).rgb) == index


@pytest.mark.parametrize("name", ["cut.ts", "cut.mp4", "cut.mkv"])
@pytest.mark.parametrize("codec", ["radl", "open-gop"])
def test_leading_frames_are_kept(name: str, codec: str, build: str, tmp_path: Path) -> None:
    """Pictures that are shown before the key frame which they stand behind, in a stream that begins there."""
    x265 = {"radl": "radl=3:no-open-gop=1", "open-gop": "open-gop=1"}[codec]
    options = ("-preset", "ultrafast", "-x265-params", f"log-level=none:{x265}:keyint=12:min-keyint=12:bframes=4")
    whole = Clip("whole.mp4", coded("libx265", *options), num_frames=48).build(tmp_path)
    cut = ("-movflags", "+frag_keyframe+empty_moov") if name == "cut.mp4" else ()
    ffmpeg("-ss", "1.1", "-i", str(whole), "-c", "copy", *cut, str(tmp_path / name))
    with av.open(str(tmp_path / name)) as container:
        frames = list(container.decode(video=0))
    there = [read_index(frame.to_ndarray(format="rgb24")) for frame in frames]
    _, shown, times, _ = transcoded(tmp_path / name)
    assert shown == there
    if name != "cut.mkv":  # Matroska has no negative times: some of these pictures have none
        assert times[0] == pytest.approx(0, abs=0.1)
        assert np.diff(times) == pytest.approx(1 / 24, abs=2e-3)


def sound_seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        *_, last = container.decode(audio=0)
        return float(last.time) + last.samples / last.sample_rate


@pytest.mark.parametrize(
    ("video_seconds", "sound", "expected"), [(1, 1, 1), (1, 5, 5), (1, 0.5, 0.5), (2, 900, 62), (1, 30.5, 30.5)]
)
def test_sound_goes_on_to_its_end(
    video_seconds: float, sound: float, expected: float, build: str, tmp_path: Path
) -> None:
    """A still with music keeps its music; 900 s behind two seconds of pictures end after a minute, and are no fault."""
    tone = ("-f", "lavfi", "-i", f"sine=duration={sound}:sample_rate=16000")
    for name in ("music.mp4", "music.mkv"):
        frames = 1 if sound == 30.5 else 12 * video_seconds
        source = Clip(name, num_frames=frames, fps="12", audio=(tone, ("-c:a", "alac")), size=(64, 48)).build(tmp_path)
        info, shown, _, _ = transcoded(source)
        assert shown == list(range(frames))
        assert info.duration_seconds == pytest.approx(frames / 12, abs=0.05)
        assert sound_seconds(tmp_path / "clip.mp4") == pytest.approx(expected, abs=0.1)


def test_slides_keep_their_sound(build: str, tmp_path: Path) -> None:
    """The last of three slides is shown for as long as there is sound."""
    slides = ("-vf", "settb=1/1000,setpts='N*4/TB'", "-fps_mode", "passthrough", "-enc_time_base", "1/1000")
    tone = ("-f", "lavfi", "-i", "sine=duration=12")
    source = Clip("slides.mp4", (*X264, *slides), num_frames=3, audio=(tone, AAC)).build(tmp_path)
    _, _, times, _ = transcoded(source)
    assert times == pytest.approx([0, 4, 8], abs=0.03)
    assert sound_seconds(tmp_path / "clip.mp4") == pytest.approx(12, abs=0.1)


AV1 = coded("libaom-av1", "-cpu-used", "8", "-crf", "15")


@pytest.mark.parametrize("brand", [b"avif", b"heic", b"mif1", b"heix"])
def test_photographs_are_no_clips(brand: bytes, build: str, tmp_path: Path) -> None:
    photograph = Clip("a.avif", AV1, num_frames=1).bytes()
    assert photograph[8:12] == b"avif"
    (tmp_path / "a.mp4").write_bytes(photograph[:8] + brand + photograph[12:])
    with pytest.raises(UnsupportedMediaError, match="still picture"):
        transcode_file(tmp_path / "a.mp4", tmp_path / "clip.mp4")


def test_an_animated_avif_is_whole(build: str, tmp_path: Path) -> None:
    assert transcoded(Clip("a.avif", AV1, num_frames=8).build(tmp_path))[1] == list(range(8))


def two_tracks(folder: Path, name: str, *more: str, small_first: bool = True, size: tuple[int, int] = (32, 24)) -> Path:
    """A small track of pictures from 30 on, and the right one."""
    right = Clip("right.mkv", num_frames=24).build(folder)
    white = f"color=white:size={size[0]}x{size[1]}:rate=24:duration=1"
    ffmpeg("-f", "lavfi", "-i", white, *X264, str(folder / "small.mkv"))
    order = ("-i", str(folder / "small.mkv"), "-i", str(right))
    maps = ("-map", "0", "-map", "1") if small_first else ("-map", "1", "-map", "0")
    ffmpeg(*order, *maps, "-c", "copy", *more, str(folder / name))
    return folder / name


@pytest.mark.parametrize("small_first", [True, False])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov", "a.avi"])
def test_the_larger_track(name: str, small_first: bool, build: str, tmp_path: Path) -> None:
    flags = {"a.mkv": ("-disposition:v", "0"), "a.avi": ("-bsf:v", "h264_mp4toannexb")}
    flags |= dict.fromkeys(["a.mp4", "a.mov"], ("-disposition:v", "default"))
    assert transcoded(two_tracks(tmp_path, name, *flags.get(name, ()), small_first=small_first))[1] == list(range(24))


def test_the_default_track_before_the_larger_one(build: str, tmp_path: Path) -> None:
    flags = ("-disposition:v:0", "0", "-disposition:v:1", "default")
    assert transcoded(two_tracks(tmp_path, "a.mkv", *flags, size=(640, 480)))[1] == list(range(24))


def test_the_track_with_more_frames_of_two_alike(build: str, tmp_path: Path) -> None:
    proxy = Clip("one.mkv", num_frames=1).build(tmp_path)
    right = Clip("right.mkv").build(tmp_path)
    none = ("-disposition:v", "0")
    ffmpeg("-i", str(proxy), "-i", str(right), "-map", "0", "-map", "1", "-c", "copy", *none, str(tmp_path / "a.mkv"))
    assert transcoded(tmp_path / "a.mkv")[1] == list(range(24))


@pytest.mark.parametrize("second", [(240, 320), (480, 120), (320, 320)])
def test_a_new_shape_is_fitted_in_with_bars(second: tuple[int, int], build: str, tmp_path: Path) -> None:
    def patch(first: bytes) -> bytes:
        return first + Clip("other.ts", size=second, num_frames=6).bytes()

    source = Clip("turned.ts", num_frames=6, patch=patch).build(tmp_path)
    info, _, _, pictures = transcoded(source)
    assert (info.width, info.height) == (320, 240)
    scale = min(320 / second[0], 240 / second[1])
    width, height = round(second[0] * scale / 2) * 2, round(second[1] * scale / 2) * 2
    left, top = (320 - width) // 2, (240 - height) // 2
    expected = np.zeros((240, 320, 3), np.uint8)
    inside = cv2.resize(draw(5, *second), (width, height), interpolation=cv2.INTER_AREA)
    expected[top : top + height, left : left + width] = inside
    assert psnr(pictures[-1], expected) > 25
    assert psnr(pictures[0], draw(0, 320, 240)) > 27


def zscaled(
    matrix: str, tag: str, primaries: str = "709", ptag: str = "bt709", transfer: str = "709"
) -> tuple[str, ...]:
    ttag = {"709": "bt709", "2020_10": "bt2020-10", "smpte2084": "smpte2084"}[transfer]
    to = f"zscale=rin=full:min=gbr:tin=709:pin=709:t={transfer}:p={primaries}:m={matrix}:r=limited"
    return ("-vf", f"{to},format=yuv444p,setparams=range=tv:colorspace={tag}:color_primaries={ptag}:color_trc={ttag}")


X264_444 = (*X264[:-1], "yuv444p")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ycgco.mkv", zscaled("ycgco", "ycgco")),
        ("bt2020c.mkv", zscaled("2020_cl", "bt2020c", "2020", "bt2020", "2020_10")),
        ("derived.mkv", zscaled("chroma-derived-nc", "chroma-derived-nc")),
        ("derived-c.mkv", zscaled("chroma-derived-c", "chroma-derived-c")),
        ("fcc.mkv", zscaled("fcc", "fcc")),
        ("240m.mkv", colored("smpte240m", "bt709", "bt709")),
        ("p3.mkv", zscaled("709", "bt709", "smpte432", "smpte432")),
        ("p3-dci.mkv", zscaled("709", "bt709", "smpte431", "smpte431")),
        ("film.mkv", zscaled("709", "bt709", "film", "film")),
        ("ycgco.mp4", zscaled("ycgco", "ycgco")),
        ("ictcp.mkv", zscaled("ictcp", "ictcp", "2020", "bt2020", "smpte2084")),
    ],
)
def test_colours_are_converted(name: str, options: tuple[str, ...], build: str, tmp_path: Path) -> None:
    source = Clip(name, (*X264_444, *options), num_frames=4).build(tmp_path)
    _, shown, _, pictures = transcoded(source)
    assert shown == list(range(4))
    assert psnr(pictures[2], draw(2, 320, 240)) > (14 if name == "ictcp.mkv" else 27)  # HDR is made darker


@pytest.mark.parametrize("matrix", ["smpte2085", "ipt-c2"])
def test_colours_nobody_converts_are_named(matrix: str, build: str, tmp_path: Path) -> None:
    number = {"smpte2085": 11, "ipt-c2": 15}[matrix]
    tags = ("-bsf:v", f"h264_metadata=matrix_coefficients={number}")
    source = Clip("a.mkv", (*X264, *tags), num_frames=4).build(tmp_path)
    with pytest.raises(UnsupportedMediaError, match=rf"a\.mkv: colours of the matrix {matrix}"):
        transcode_file(source, tmp_path / "clip.mp4")


@pytest.mark.parametrize("numbers", [(0, 0, 0), (0, 0, 2), (3, 3, 2), (200, 200, 1), (2, 2, 2)])
def test_reserved_colours(numbers: tuple[int, int, int], build: str, tmp_path: Path) -> None:
    """ProRes with primaries, transfer and matrix that stand for nothing: as if nothing had been said."""

    def patch(data: bytes) -> bytes:
        parts = data.split(b"icpf")
        return b"icpf".join([parts[0], *(part[:14] + bytes(numbers) + part[17:] for part in parts[1:])])

    source = Clip("a.mov", coded("prores_ks", pixels="yuv422p10le"), num_frames=4, patch=patch).build(tmp_path)
    _, shown, _, pictures = transcoded(source)
    assert shown == list(range(4))
    assert psnr(pictures[2], draw(2, 320, 240)) > 27


def combed() -> tuple[list[np.ndarray], np.ndarray]:
    """Frames of two fields each of a bar that moves, and what one field shows."""
    fields = []
    for index in range(16):
        field = np.full((240, 320, 3), 40, np.uint8)
        field[:, 20 + index * 16 : 52 + index * 16] = 220
        fields.append(field)
    frames = []
    for number in range(8):
        frame = fields[2 * number].copy()
        frame[1::2] = fields[2 * number + 1][1::2]
        frames.append(frame)
    return frames, fields[8]


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("flip", ["", "h", "v"])
def test_interlaced_and_turned(degrees: int, flip: str, build: str, tmp_path: Path) -> None:
    """Fields are lines as long as the picture lies as it was stored."""
    frames, upright = combed()
    source = tmp_path / "combed.mp4"
    raw = ("-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", "320x240", "-framerate", "25", "-i", "-")
    fields = ("-vf", "setfield=tff", "-flags", "+ilme+ildct")
    ffmpeg(*raw, *X264, *fields, str(tmp_path / "lying.mp4"), stdin=b"".join(map(bytes, frames)))
    turn = ("-display_rotation", str(degrees), *([f"-display_{flip}flip"] if flip else []))
    ffmpeg(*turn, "-i", str(tmp_path / "lying.mp4"), *COPY, str(source))
    assert probe(source).interlaced
    _, _, _, pictures = transcoded(source)
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        assert next(clip.decode(video=0)).rotation == 0
    # As the same picture without fields is turned.
    whole = (*raw, *X264, str(tmp_path / "whole.mp4"))
    ffmpeg(*whole, stdin=bytes(upright) * 2)
    ffmpeg(*turn, "-i", str(tmp_path / "whole.mp4"), *COPY, str(tmp_path / "turned.mp4"))
    expected = transcoded(tmp_path / "turned.mp4")[3][0]
    assert pictures[4].shape == expected.shape
    assert psnr(pictures[4], expected) > 24


SEGMENTS = {
    "a.mp4": X264,
    "a.mkv": X264,
    "a.ts": X264,
    "a.avi": ("-c:v", "mpeg4", "-q:v", "2"),
    "a.webm": ("-c:v", "libvpx", "-b:v", "2M", "-deadline", "realtime", "-cpu-used", "8"),
    "a.mpg": ("-c:v", "mpeg2video", "-q:v", "2"),
    "a.h264": X264,
}


@pytest.mark.parametrize(("start", "end"), [(None, 0.5), (0.5, None), (0.5, 1.5), (26 / 24, 27 / 24), (0.51, 0.95)])
@pytest.mark.parametrize("name", SEGMENTS)
def test_segments_are_exact_to_the_frame(
    name: str, start: float | None, end: float | None, build: str, tmp_path: Path
) -> None:
    source = Clip(name, (*SEGMENTS[name], "-g", "20"), num_frames=60).build(tmp_path)
    info, shown, times, _ = transcoded(source, start_seconds=start, end_seconds=end)
    expected = [i for i in range(60) if (start or 0) - 1e-6 <= i / 24 < (end or 99) - 1e-6]
    if name != "a.mpg":  # its times are not those of the pictures that were given
        assert shown == expected
        assert times == pytest.approx([i / 24 - (start or 0) for i in expected], abs=2e-3)
    assert info.duration_seconds == pytest.approx(len(expected) / 24, abs=0.09)
    assert abs(info.num_frames - len(expected)) <= (2 if name == "a.mpg" else 0)


def test_a_segment_of_a_trimmed_file_counts_from_its_first_picture(build: str, tmp_path: Path) -> None:
    whole = Clip("whole.mp4", LONG_GOP, fps="30", num_frames=60).build(tmp_path)
    ffmpeg("-ss", "0.5", "-i", str(whole), "-c", "copy", str(tmp_path / "cut.mp4"))
    assert transcoded(tmp_path / "cut.mp4", start_seconds=0.5, end_seconds=1)[1] == list(range(30, 45))


def test_a_segment_of_pictures_that_come_late(build: str, tmp_path: Path) -> None:
    """Sound is there from 0 on, pictures from 0.5 s: times are a player's."""
    late = ("-itsoffset", "0.5")
    source = Clip("a.mp4", X264, audio=(TONE, AAC), before=late).build(tmp_path)
    assert transcoded(source, start_seconds=1, end_seconds=1.25)[1] == list(range(12, 18))
    assert transcoded(source, start_seconds=1.25)[1] == list(range(18, 24))


def test_sound_of_a_segment(build: str, tmp_path: Path) -> None:
    tone = ("-f", "lavfi", "-i", "sine=duration=4")
    source = Clip("a.mp4", num_frames=48, audio=(tone, AAC)).build(tmp_path)
    transcoded(source, start_seconds=0.5, end_seconds=1)
    assert sound_seconds(tmp_path / "clip.mp4") == pytest.approx(0.5, abs=0.05)
    transcoded(source, start_seconds=1)
    assert sound_seconds(tmp_path / "clip.mp4") == pytest.approx(3, abs=0.05)


def test_limits_count_the_segment_and_name_their_parameter(tmp_path: Path) -> None:
    source, target = Clip("a.mp4", num_frames=48).build(tmp_path), tmp_path / "clip.mp4"
    with pytest.raises(MediaTooLongError, match=r"2\.0 s long; max_duration_seconds=1 are allowed"):
        transcode_file(source, target, max_duration_seconds=1)
    assert transcode_file(source, target, max_duration_seconds=1, start_seconds=1).num_frames == 24
    with pytest.raises(MediaTooLongError, match="24 frames a second on average; max_fps=20 are allowed"):
        transcode_file(source, target, max_fps=20)
    with pytest.raises(MediaTooLargeError, match=r"320 x 240 pixels; max_pixels=70000 are allowed"):
        transcode_file(source, target, max_pixels=70_000)
    with pytest.raises(TranscodeTimeoutError, match=r"a\.mp4: stopped after .* s; timeout_seconds allows more"):
        transcode_file(source, target, timeout_seconds=0.01)
    with pytest.raises(DamagedMediaError, match=r"2\.00 s long: nothing is left from start_seconds=3 on"):
        transcode_file(source, target, start_seconds=3)
    for start, end in ((-1, None), (2, 1), (1, 1), (float("nan"), None)):
        with pytest.raises(ValueError, match="start_seconds="):
            transcode_file(source, target, start_seconds=start, end_seconds=end)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.h264", "a.y4m"])
def test_too_many_frames_a_second(name: str, build: str, tmp_path: Path) -> None:
    """At most 120, on average; a second's worth of them may lie nearer."""
    options = coded("rawvideo") if name == "a.y4m" else X264
    source = Clip(name, options, fps="500", num_frames=200, size=(32, 24)).build(tmp_path)
    if name == "a.h264":  # no times: FFmpeg takes what the codec says
        assert transcode_file(source, tmp_path / "clip.mp4", max_fps=600).num_frames == 200
    with pytest.raises(MediaTooLongError, match=r"frames a second on average; max_fps=120"):
        transcode_file(source, tmp_path / "clip.mp4")
    assert transcode_file(source, tmp_path / "clip.mp4", max_fps=600).num_frames == 200


@pytest.mark.parametrize("name", ["10:30.mp4", "http:x.mp4", "file:a.mp4", "-i.mp4"])
def test_relative_paths_are_paths(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not protocols, nor options: of sources, of clips, of depth files."""
    monkeypatch.chdir(tmp_path)
    Clip("a.mp4", num_frames=4).build(tmp_path).rename(name)
    assert probe(name).num_packets == 4
    info = transcode_file(name, f"clip-{name}")
    Path(f"clip-{name}").rename(f"1:{name}")
    assert video_info(f"1:{name}") == info
    assert [frame.index for frame in read_frames(f"1:{name}")] == [0, 1, 2, 3]
    assert read_frame_at(f"1:{name}", 0).rgb.shape == (360, 480, 3)
    with DepthWriter(f"depth:{name}", 4, 2) as writer:
        checksum = writer.write(np.ones((2, 4), np.float32), 0.0)
    assert len(list(read_depth(f"depth:{name}"))) == 1
    assert read_checksums(f"depth:{name}") == [checksum]
    assert [depth.shape for depth in read_depths_at(f"depth:{name}", [0.0], [checksum])] == [(2, 4)]


def test_messages_name_the_file_and_no_folder(build: str, tmp_path: Path) -> None:
    """They go into rows. The name of the file being made is random, and in no message either."""
    whole = Clip("whole.mp4").bytes()
    for number, data in enumerate((b"", b"text", whole[:3000], whole.replace(b"avc1", b"zzzz"))):
        source = tmp_path / f"{number}.mp4"
        source.write_bytes(data)
        with pytest.raises(TranscodeError) as caught:
            transcode_file(source, tmp_path / "clip.mp4")
        assert str(caught.value).startswith(source.name)
        assert str(tmp_path) not in str(caught.value)
        assert ".part" not in str(caught.value)
    with pytest.raises(TranscodeError) as caught:
        transcode_file(Clip("a.mp4").build(tmp_path), tmp_path / "nowhere" / "clip.mp4")
    assert str(tmp_path) not in str(caught.value)


def test_the_time_limit_grows_with_length_and_pixels(tmp_path: Path) -> None:
    media = probe(Clip("a.mp4", size=(64, 48)).build(tmp_path))
    assert _allowed_seconds(media) == pytest.approx(300, abs=1)
    # Half a minute, and three minutes, of 4K at 60 frames/s.
    assert _allowed_seconds(replace(media, width=3840, height=2160, num_packets=1800)) == pytest.approx(1046, abs=1)
    assert _allowed_seconds(replace(media, width=3840, height=2160, num_packets=10800)) == 3600
