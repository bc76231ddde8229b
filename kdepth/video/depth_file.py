"""Depth frames in a lossless video file.

Depth: FFV1 (version 3, all-intra; RFC 9043) in Matroska, pixel format ``gray16le``. Each 16-bit sample
is the IEEE half float of the inverse depth: ``frame.view(np.float16)``. Half floats of positive numbers sort like
their bit patterns, so any player shows a sensible picture (near is bright), the precision is 0.05 % of the value, no
scale has to be kept anywhere, and any frame opens on its own.

FFV1 has checksums, but its decoder only tells its log when one does not match, and shows a wrong picture. So a clip's
row keeps the CRC-32 of each frame's packet, and what is read for the row is held against it.
"""

from __future__ import annotations

import os
import uuid
import zlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Self

import av
import numpy as np
from numpy.typing import NDArray

from kdepth.errors import DatasetError
from kdepth.video.frames import file_name, opened

# Matroska keeps times in milliseconds.
_TIME_BASE = Fraction(1, 1000)


class DepthWriter:
    """Writes inverse depth frames to a file that appears, whole, when the ``with`` block ends without an error.

    Args:
        path: The ``.mkv`` file to make. Written beside it as ``<name>.<random>.part`` and renamed.
        width, height: In pixels.
    """

    def __init__(self, path: str | Path, width: int, height: int) -> None:
        self._path = Path(path)
        self._part = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex[:8]}.part")
        # bitexact: without the random number that a Matroska file is otherwise known by.
        self._container = av.open(os.path.abspath(self._part), "w", format="matroska", options={"fflags": "+bitexact"})
        options = {"level": "3", "coder": "1", "context": "0", "g": "1", "slices": "4", "slicecrc": "1"}
        self._stream = self._container.add_stream("ffv1", rate=1000, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "gray16le"
        self._stream.time_base = self._stream.codec_context.time_base = _TIME_BASE
        self._stream.codec_context.thread_count = 1
        self._last_pts = -1

    def write(self, inverse_depth: NDArray[np.floating], time_seconds: float) -> int:
        """Append one frame.

        Args:
            inverse_depth: ``(H, W)``, >= 0 and finite; rounded to half precision.
            time_seconds: Presentation time, later than the last one's.

        Returns:
            The CRC-32 of the packet that holds it.

        Raises:
            ValueError: NaN, a negative value, or infinity after rounding to half precision (> 65504).
        """
        with np.errstate(over="ignore"):  # what is too large becomes infinity, and is found below
            half = np.ascontiguousarray(inverse_depth, dtype=np.float16)
        bits = half.view(np.uint16)
        # One comparison finds them all: infinity, NaN and every negative number lie at 0x7C00 and above (-0.0 too).
        if bits.max() >= 0x7C00:
            raise ValueError("inverse depth must be finite and >= 0 in half precision (at most 65504)")
        frame = av.VideoFrame.from_numpy_buffer(bits, format="gray16le")
        # Frames nearer than a millisecond still need different times.
        self._last_pts = max(round(time_seconds * 1000), self._last_pts + 1)
        frame.pts, frame.time_base = self._last_pts, _TIME_BASE
        (packet,) = self._stream.encode(frame)  # all-intra, without delay: a packet for each frame
        crc32 = zlib.crc32(packet)
        self._container.mux(packet)
        return crc32

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
        if kind is None:
            os.replace(self._part, self._path)
        else:
            self._part.unlink(missing_ok=True)


def read_depth(source: str | Path | BinaryIO) -> Iterator[NDArray[np.float16]]:
    """All frames of a depth file (path or file) in order, each float16 ``(H, W)`` inverse depth.

    Raises:
        DatasetError: The file is missing or can't be decoded. A file that was cut off may just end earlier here, and
            bytes that changed may give another picture: `Clip.inverse_depth` notices both.
    """
    with opened(source, "matroska") as stream:
        for frame in stream.container.decode(stream):
            yield _half(frame)


def read_depths_at(
    source: str | Path | BinaryIO, times_seconds: Sequence[float], crc32: Sequence[int]
) -> Iterator[NDArray[np.float16]]:
    """Read some frames of a depth file in one pass; each must be what was written.

    Args:
        source: The depth file: its path, or a file that can seek.
        times_seconds: Presentation times of the frames, ascending.
        crc32: What `DepthWriter.write` said of each.

    Yields:
        float16 ``(H, W)`` inverse depth of each.

    Raises:
        DatasetError: The file can't be decoded, or a frame is not there as it was written.
    """
    num_found = 0
    # Matroska's header says all; by default FFmpeg would also decode a frame to see what is in it.
    with opened(source, "matroska", probesize="32") as stream:
        stream.container.seek(round(times_seconds[0] * 1000), stream=stream, backward=True)
        for packet in stream.container.demux(stream):
            # Every frame is a key frame: others need not be decoded.
            if packet.size and zlib.crc32(packet) == crc32[num_found]:
                for frame in packet.decode():
                    yield _half(frame)
                    num_found += 1
                if num_found == len(crc32):
                    return
    raise DatasetError(
        f"{file_name(source)} is damaged: its frame at {times_seconds[num_found]:.3f} s is not what was written; or a "
        "later run made it anew: then open the dataset again"
    )


def read_checksums(source: str | Path | BinaryIO) -> list[int]:
    """CRC-32 of each frame's packet in a depth file, in order: what `DepthWriter.write` gave.

    Raises:
        DatasetError: As `read_depth`.
    """
    with opened(source, "matroska") as stream:
        return [zlib.crc32(packet) for packet in stream.container.demux(stream) if packet.size]


def _half(frame: av.VideoFrame) -> NDArray[np.float16]:
    return frame.to_ndarray(format="gray16le").view(np.float16)
