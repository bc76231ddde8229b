"""Describe an untrusted file with PyAV, as JSON: ``python -I -S describe.py PACKAGES FORMATS FILE LIMITS``.

Runs in a child process (see `video.probe`). Whatever PyAV makes of the file is printed as numbers, and as names that
FFmpeg itself gives; the parent checks both.
"""

import contextlib
import json
import os
import struct
import sys

# Packets of a video track that are decoded, at most, to see its first picture.
_MAX_TRIED = 200


def describe(path: str, formats: str) -> dict[str, object]:
    """Open the file, read all packets, decode the first picture of each video track."""
    import av

    av.logging.set_level(av.logging.ERROR)
    av.logging.restore_default_callback()  # to stderr
    opening = {"protocol_whitelist": "file", "format_whitelist": formats, "max_streams": "64"}
    opening |= {"probesize": "10M", "analyzeduration": "10M"}
    with av.open(f"file:{path}", options=opening, metadata_errors="replace") as container:
        videos = {stream.index: _Video(stream) for stream in container.streams.video}
        error = None
        try:
            for packet in container.demux():
                if packet.stream_index in videos:
                    videos[packet.stream_index].add(packet)
        except av.error.FFmpegError as exc:
            error = type(exc).__name__
        return {
            "container": container.format.name,
            "start": container.start_time,
            "error": error,
            "cut_off": container.format.name.startswith("matroska") and _ends_early(path),
            "videos": [video.described() for video in videos.values()],
            "audio": [(s.index, s.codec.canonical_name) for s in container.streams.audio if s.codec_context],
        }


class _Video:
    """One video track."""

    def __init__(self, stream) -> None:  # type: ignore[no-untyped-def]  # an av.VideoStream; av comes late
        self.stream, self.context, self.first = stream, stream.codec_context, None
        self.tried = self.packets = self.corrupt = self.end = 0
        self.times: list[int] = []
        if self.context:
            self.context.thread_count = 1

    def add(self, packet) -> None:  # type: ignore[no-untyped-def]
        """Count a packet, or the end of all; decode it while no picture has come."""
        self.corrupt += packet.is_corrupt
        if packet.size and not packet.is_discard:
            self.packets += 1
            at = packet.dts if packet.pts is None else packet.pts
            if at is not None:
                self.times.append(at)
                self.end = max(self.end, at + (packet.duration or 0))
        if self.context and self.first is None and (self.tried < _MAX_TRIED or not packet.size):
            self.tried += 1
            with contextlib.suppress(OSError, ValueError):  # as most of PyAV's errors are; the next may decode
                self.first = next(iter(packet.decode()), None)

    def described(self) -> dict[str, object]:
        """The track in numbers and FFmpeg's names."""
        stream, context, frame = self.stream, self.context, self.first
        counted = {"index": stream.index, "disposition": int(stream.disposition), "packets": self.packets}
        if context is None:
            return {**counted, "codec": None, "width": 0, "height": 0}
        seen = frame or context
        times = sorted(self.times)
        matrix = bytes((frame and frame.side_data.get("DISPLAYMATRIX")) or b"")
        return {
            **counted,
            "codec": context.codec.canonical_name,
            "pixel_format": frame.format.name if frame else context.pix_fmt,
            "width": seen.width,
            "height": seen.height,
            "aspect": stream.sample_aspect_ratio and stream.sample_aspect_ratio.as_integer_ratio(),
            "matrix": struct.unpack("=9i", matrix) if matrix else None,
            "rotation": frame.rotation if frame else 0,
            "first": float(frame.pts * stream.time_base) if frame and frame.pts is not None else None,
            "times": times and [float(at * stream.time_base) for at in (*times[:3], *times[-3:], self.end)],
            "corrupt": self.corrupt,
            "colors": [int(seen.colorspace), int(seen.color_primaries), int(seen.color_trc)],
            "interlaced": bool(frame and frame.interlaced_frame) or context.field_order > 1,
            "alpha": any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items()),
        }


def _ends_early(path: str) -> bool:
    """Whether a Matroska file is shorter than it says: FFmpeg tells that only its log. (RFC 8794, 4 and 6.)"""
    at = 0
    with open(path, "rb") as file:
        for _ in range(2):  # the EBML header, then the segment
            file.seek(at)
            head = file.read(12)
            length = 9 - head[4].bit_length()
            size = int.from_bytes(head[4 : 4 + length], "big") - (1 << 7 * length)
            at += 4 + length + size
    return size != (1 << 7 * length) - 1 and at > os.path.getsize(path)  # all ones: not known


def main(packages: str, formats: str, path: str, *limits: str) -> None:
    """Confine this process, then print what the file is."""
    sys.path += [os.path.dirname(__file__), packages]
    from sandbox import confine  # type: ignore[import-not-found]  # this script's neighbour, not kdepth's

    confine([(name, value) for name, _, value in (word.partition("=") for word in limits)])
    sys.path.remove(os.path.dirname(__file__))
    try:
        answer = describe(path, formats)
    except Exception as exc:  # of whatever class: the parent says of which, and the file is not taken
        answer = {"failed": type(exc).__name__, "reason": getattr(exc, "strerror", None) or str(exc)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
