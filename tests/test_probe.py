"""What a file says never steers FFmpeg, nor this process: only numbers and names of our own tables come out of it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_zoo import AAC, COPY, TONE, X264, Clip, ffmpeg

from kdepth.errors import DamagedMediaError, TranscodeError, TranscodeTimeoutError, printable
from kdepth.video.probe import MediaInfo, probe
from kdepth.video.transcode import transcode_file

NUM_FUZZED = 40


def test_probe(tmp_path: Path) -> None:
    tags = "format=yuv420p10le,setparams=range=tv:colorspace=bt2020nc:color_primaries=bt2020:color_trc=smpte2084"
    clip = Clip(
        "everything.mp4",
        (*X264[:-1], "yuv420p10le", "-aspect", "4:3", "-flags", "+ilme+ildct", "-vf", f"{tags},setfield=tff"),
        size=(240, 240),
        fps="30000/1001",
        audio=(TONE, AAC),
        remux=[(("-display_rotation", "90"), ("-map", "0", "-c", "copy"))],
    )
    assert probe(clip.build(tmp_path)) == MediaInfo(
        container="mov,mp4,m4a,3gp,3g2,mj2",
        track=0,
        codec="h264",
        pixel_format="yuv420p10le",
        width=240,
        height=240,
        sample_aspect_ratio=Fraction(4, 3),
        rotation_deg=90,
        display_matrix=(0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30),
        duration_seconds=pytest.approx(24 * 1001 / 30000),
        first_seconds=0,
        num_packets=24,
        late_end_seconds=0,
        cut_off=False,
        color_space="bt2020nc",
        color_primaries="bt2020",
        color_transfer="smpte2084",
        interlaced=True,
        hidden_alpha=False,
        audio_track=1,
        audio_codec="aac",
    )


def stream_line(colors: str) -> str:
    """Text that looks like the stream line in what FFmpeg prints, from inside the brackets of the language on."""
    return f"eng): Video: h264, yuv420p(tv, {colors}/bt2020/smpte2084), 64x64, 10 fps\n  x("


CONTAINERS = {
    "a.mkv": X264,
    "a.mp4": (*X264, "-movflags", "use_metadata_tags"),
    "a.avi": X264,
    "a.ogv": ("-c:v", "libtheora", "-q:v", "9"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_metadata_opens_and_writes_nothing(name: str, build: str, tmp_path: Path) -> None:
    """The attack: text in every place that FFmpeg prints, that once became filters which read URLs and write files."""
    written = Path("/", f"written-by-{tmp_path.name}.txt")  # without a slash, and in the child's working directory
    with socket.create_server(("127.0.0.1", 0)) as server:
        movie = f"movie=filename=http\\\\:127.0.0.1\\\\:{server.getsockname()[1]}"
        for number, filters in enumerate((f"{movie}[b];[b]nullsink", f"[a]metadata=mode=print:file={written.name}")):
            text = stream_line(f"bt2020nc[a];{filters};[a]setparams=colorspace=bt2020nc")
            chapters = tmp_path / "chapters.txt"
            escaped = "".join("\\" + char if char in "=;#\\\n" else char for char in text)
            chapters.write_text(f";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=500\ntitle={escaped}\n")
            places = {"-metadata": ["title", "comment"], "-metadata:s:v": ["language", "handler_name", "title"]}
            words = [word for option, keys in places.items() for key in keys for word in (option, f"{key}={text}")]
            words += ["-metadata", f"{text.replace('=', ':')}=x"]
            if name == "a.mkv":
                words += [
                    "-attach",
                    __file__,
                    "-metadata:s:t",
                    f"filename={text}",
                    "-metadata:s:t",
                    "mimetype=text/plain",
                ]
            base = Clip(f"base-{name}", CONTAINERS[name], size=(64, 48)).build(tmp_path)
            source = tmp_path / f"{number}{text.replace('/', ':')[:200]}-{name}"
            options = CONTAINERS[name][len(X264) :] if name == "a.mp4" else ()
            ffmpeg(
                "-i",
                str(base),
                "-i",
                str(chapters),
                *COPY[2:],
                "-map",
                "0",
                "-map_chapters",
                "1",
                *options,
                *words,
                f"file:{source}",
            )
            assert transcode_file(source, tmp_path / "clip.mp4", height=64, threads=1).num_frames == 24
            base.unlink()
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not written.exists()


CALAMITIES = [
    "display matrix: rotation of . degrees",
    "displaymatrix: rotation of 90.00 degrees",
    "eng): Video: h264, yuv420p, 64x64, ... fps, ... tbr\n  x(",
    f"eng): Video: h264, yuv420p, {'9' * 5000}x48, 10 fps\n  x(",
    "eng): Video: h264, yuv420p, 64x64 [SAR 0:0 DAR 1:0], 1k fps\n  x(",
    "eng): Video: none\n  x(",
    "x\nInput #0, hls, from 'x':\n  Duration: 99:99:99.99, start: .\n  Stream #0:0: Video: none",
    "partial file",
    "x\n[error] File ended prematurely",
    "[fatal] Cannot allocate memory",
    "(video): 99999 packets read (9 bytes); 1 frames decoded",
    "\x1b[2J\x07\u202e",
]


@pytest.mark.parametrize("number", range(len(CALAMITIES)))
def test_text_is_only_text(number: int, tmp_path: Path) -> None:
    """Titles that once ended the run, or made a good clip a bad one."""
    text = CALAMITIES[number]
    words = ("-metadata", f"title={text}", "-metadata:s:v", f"language={text}", "-metadata:s:v", f"title={text}")
    plain = probe(Clip("plain.mkv", size=(64, 48)).build(tmp_path))
    source = Clip("a.mkv", (*X264, *words), size=(64, 48)).build(tmp_path)
    assert probe(source) == plain
    assert transcode_file(source, tmp_path / "clip.mp4", height=48, threads=1).num_frames == 24


def random_text(rng: np.random.Generator) -> str:
    """Text of the characters that mean something to FFmpeg, to filters, to logs, and some letters."""
    alphabet = [*"\n\r\t[]();:,'\"\\=|/%@#-. ", *"mvieXQZ0189", "é", "名", "\u202e", "\x1b"]
    words = ["Stream #0:0", "Video: ", "movie=", "file=", "fps", "Duration: ", "rotation of ", "bt2020"]
    return "Qz" + "".join(
        str(rng.choice(words if rng.random() < 0.1 else alphabet)) for _ in range(rng.integers(4, 60))
    )


def test_no_text_of_a_file_reaches_the_command_line(tmp_path: Path, use_ffmpeg: Callable[[str | None], str]) -> None:
    """1,800 texts in four containers. Some files are transcoded, by a program that says what it was given."""
    real = use_ffmpeg(None)
    echo = tmp_path / "ffmpeg"
    asked = f'case $2 in -version|-encoders|-filters|-demuxers) exec "{real}" "$@";; esac'
    echo.write_text(f'#!/bin/sh\n{asked}\nfor word; do printf "%s " "$word" >&2; done\nexit 1\n')
    echo.chmod(0o755)
    use_ffmpeg(str(echo))
    plain = Clip("plain.mp4", ("-c:v", "mpeg4"), size=(64, 48), num_frames=2, audio=(TONE, AAC)).build(tmp_path)
    rng = np.random.default_rng(24)
    expected: dict[str, MediaInfo] = {}
    for number in range(NUM_FUZZED):
        suffix = ("mkv", "mp4", "avi", "mov")[number % 4]
        texts = [random_text(rng) for _ in range(45)] if suffix in expected else []
        source = tmp_path / f"fuzzed.{suffix}"
        with av.open(str(plain)) as given, av.open(str(source), "w", options={"movflags": "use_metadata_tags"}) as made:
            streams = [made.add_stream_from_template(stream) for stream in given.streams]
            if texts:
                made.metadata.update(title=texts[0], comment=texts[1], **dict.fromkeys(texts[6:26], texts[2]))
                for stream in streams:
                    stream.metadata.update(title=texts[3], handler_name=texts[4], language=texts[5])
                    stream.metadata.update(dict.fromkeys(texts[26:], texts[5]))
            for packet in given.demux():
                if packet.size:
                    packet.stream = streams[packet.stream_index]
                    made.mux(packet)
        info = probe(source)
        assert info == expected.setdefault(suffix, info), texts
        if number % 4 == number // 4 % 4:
            with pytest.raises(TranscodeError) as caught:
                transcode_file(source, tmp_path / "clip.mp4", encoder="libx264", threads=1)
            assert "-protocol_whitelist file" in caught.value.stderr_tail
            assert "Qz" not in caught.value.stderr_tail, texts


def test_whatever_the_child_says_is_checked(tmp_path: Path) -> None:
    """A file that can't even be named, and one that takes too long."""
    source = Clip("a.mp4", size=(64, 48)).build(tmp_path)
    with pytest.raises(TranscodeTimeoutError, match=r"a\.mp4: stopped after 0\.01 s; timeout_seconds"):
        probe(source, timeout_seconds=0.01)
    strange = tmp_path / "\udcff\x1b[2J\n.mp4"
    source.rename(strange)
    assert probe(strange).num_packets == 24
    strange.write_bytes(b"no video")
    with pytest.raises(DamagedMediaError) as caught:
        probe(strange)
    assert str(tmp_path) not in str(caught.value)
    assert str(caught.value).isprintable()
    assert caught.value.path == printable(strange.name)
