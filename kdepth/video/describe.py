"""Describe an untrusted file with PyAV, as JSON: ``python -I -S describe.py PACKAGES FORMATS FILE LIMITS``.

Runs in a child process (see `video.probe`). Whatever PyAV makes of the file is printed as numbers, and as names that
FFmpeg itself gives; the parent checks both.
"""

import contextlib
import json
import os
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
                if packet.stream_index in videos and packet.size:
                    videos[packet.stream_index].add(packet)
        except av.error.FFmpegError as exc:
            error = type(exc).__name__
        return {
            "container": container.format.name,
            "start": container.start_time,
            "error": error,
            "cut_off": container.format.name.startswith("matroska") and _ends_early(path),
            "videos": [video.described() for video in videos.values()],
            "audio": [
                s.codec_context.codec.canonical_name if s.codec_context else None for s in container.streams.audio
            ],
        }


class _Video:
    """One video track."""

    def __init__(self, stream) -> None:  # type: ignore[no-untyped-def]  # an av.VideoStream; av comes late
        self._stream = stream
        self._context = stream.codec_context
        self._first = None
        self._tried = self._packets = self._corrupt = 0
        self._times: list[int] = []
        self._end = 0
        if self._context:
            self._context.thread_count = 1

    def add(self, packet) -> None:  # type: ignore[no-untyped-def]
        """Count a packet; decode it while no picture has come."""
        import av

        self._corrupt += packet.is_corrupt
        if not packet.is_discard:
            self._packets += 1
            at = packet.dts if packet.pts is None else packet.pts
            if at is not None:
                self._times.append(at)
                self._end = max(self._end, at + (packet.duration or 0))
        if self._context and self._first is None and self._tried < _MAX_TRIED:
            self._tried += 1
            try:
                self._first = next(iter(packet.decode()), None)
            except av.error.FFmpegError:
                return

    def described(self) -> dict[str, object]:
        """The track in numbers and FFmpeg's names."""
        import av

        stream, context = self._stream, self._context
        if context and self._first is None:
            with contextlib.suppress(av.error.FFmpegError):
                self._first = next(iter(context.decode(None)), None)
        self._times.sort()
        frame = self._first
        tick = stream.time_base
        matrix = frame and frame.side_data.get("DISPLAYMATRIX")
        seen = frame or context
        return {
            "index": stream.index,
            "codec": context.codec.canonical_name if context else None,
            "pixel_format": (frame.format.name if frame else context.pix_fmt) if context else None,
            "width": seen.width if seen else 0,
            "height": seen.height if seen else 0,
            "aspect": _fraction(stream.sample_aspect_ratio) if context else None,
            "matrix": [int.from_bytes(bytes(matrix)[i : i + 4], sys.byteorder, signed=True) for i in range(0, 36, 4)]
            if matrix
            else None,
            "rotation": frame.rotation if frame else 0,
            "average_rate": _fraction(stream.average_rate),
            "first": float(frame.pts * tick) if frame and frame.pts is not None else None,
            "times": [float(at * tick) for at in (*self._times[:3], *self._times[-3:], self._end)]
            if self._times
            else None,
            "packets": self._packets,
            "stated": stream.frames,
            "corrupt": self._corrupt,
            "range": int(frame.color_range if frame else context.color_range) if context else 0,
            "colors": [int(n) for n in (seen.colorspace, seen.color_primaries, seen.color_trc)] if seen else [2, 2, 2],
            "interlaced": bool(frame and frame.interlaced_frame) or bool(context and context.field_order > 1),
            "alpha": any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items()),
            "disposition": int(stream.disposition),
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


def _fraction(value) -> list[int] | None:  # type: ignore[no-untyped-def]
    return [value.numerator, value.denominator] if value else None


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
