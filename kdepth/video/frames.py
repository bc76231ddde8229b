"""Frames out of 360p files. Only for files that `transcode_file` wrote: they are decoded in this process."""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from kdepth.errors import DatasetError, printable


class Frame(NamedTuple):
    """A decoded frame of a 360p file: its index from 0, its time in seconds, and uint8 ``(H, W, 3)`` RGB."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    time_seconds: float
    rgb: NDArray[np.uint8]


@contextlib.contextmanager
def opened(source: str | Path | BinaryIO, container_format: str, **options: str) -> Iterator[Any]:
    """Open a file of ours in this process, as the one format that it has; gives its video stream.

    Args:
        source: Its path, or a file that can seek (of an object store, or a blob), which is read as needed.
        container_format: FFmpeg's name of the format.
        options: Of the demuxer.

    Raises:
        DatasetError: It can't be opened, or what is done in the block can't be.
    """
    # An absolute path: "10:30.mp4" would be a protocol's.
    file = os.path.abspath(source) if isinstance(source, str | Path) else source
    try:
        with av.open(file, format=container_format, options=options) as container:
            yield container.streams.video[0]
    except (OSError, av.error.FFmpegError, IndexError) as exc:
        raise DatasetError(f"{file_name(source)} can't be decoded: {getattr(exc, 'strerror', None) or exc}") from exc


def file_name(source: str | Path | BinaryIO) -> str:
    """What messages call a file."""
    return printable(str(source)) if isinstance(source, str | Path) else "the clip's file"


def read_frames(source: str | Path | BinaryIO, wanted: Callable[[int, float], bool] | None = None) -> Iterator[Frame]:
    """Frames of a 360p file in presentation order.

    Without `wanted`, all are decoded. With it, the file's packets are read first, which tell every frame's time; then
    decoding begins at the key frame before each wanted frame (there is one at least every 48 frames), and frames that
    no other is made from are left out.

    Args:
        source: The 360p file: its path, or a file that can seek.
        wanted: Told index and time in seconds of each frame, in order; those it says yes to are read. Default: all.

    Raises:
        DatasetError: The file is missing or can't be decoded.
    """
    with opened(source, "mov") as stream:
        stream.codec_context.thread_count = 1  # our encoder's pictures are one slice, which threads can't share
        reformatter = VideoReformatter()  # one for all frames: setting one up takes 0.2 ms
        if wanted is None:
            num_frames = 0
            for index, frame in enumerate(stream.container.decode(stream)):
                yield Frame(index, float(frame.time or 0.0), _rgb(frame, reformatter))
                num_frames = index + 1
            _check_whole(source, stream, num_frames)
            return
        shown, keys = _index(source, stream)
        times = [float(pts * stream.time_base) for pts in shown]
        chosen = [(pts, index) for index, pts in enumerate(shown) if wanted(index, times[index])]
        if len(chosen) == len(shown):
            keys = []  # all, in one go
        for _, group in groupby(chosen, lambda item: bisect_right(keys, item[0])):
            indices = dict(group)
            for pts, frame in _decode(source, stream, set(indices)):
                index = indices[pts]
                yield Frame(index, times[index], _rgb(frame, reformatter))


def count_frames(source: str | Path | BinaryIO) -> int:
    """Frames of a 360p file, by its packets. Raises as `read_frames`."""
    with opened(source, "mov") as stream:
        return len(_index(source, stream)[0])


def _check_whole(source: str | Path | BinaryIO, stream: Any, num_frames: int) -> None:
    """The index at the file's front says how many frames there were."""
    if num_frames != stream.frames:
        raise DatasetError(f"{file_name(source)} is damaged: {num_frames} of {stream.frames} frames are there")


def _index(source: str | Path | BinaryIO, stream: Any) -> tuple[list[int], list[int]]:
    """Times of all frames, and of the key frames, in ticks and in order."""
    packets = [packet for packet in stream.container.demux(stream) if packet.size and not packet.is_corrupt]
    _check_whole(source, stream, len(packets))
    return sorted(packet.pts for packet in packets), sorted(packet.pts for packet in packets if packet.is_keyframe)


def _decode(source: str | Path | BinaryIO, stream: Any, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode the frames at these times, in ticks, which lie behind one key frame, in order."""
    stream.container.seek(min(wanted), stream=stream, backward=True)
    missing = set(wanted)
    for packet in stream.container.demux(stream):
        # Of the other frames only those are decoded that others are made from.
        stream.codec_context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        for frame in packet.decode():
            if frame.pts in missing:
                missing.remove(frame.pts)
                yield frame.pts, frame
        if not missing:
            return
    raise DatasetError(f"{len(missing)} frames of {file_name(source)} can't be decoded")


def read_frame_at(source: str | Path | BinaryIO, time_seconds: float) -> Frame:
    """The frame of a 360p file that is shown at a time; decodes from the key frame before it. ``index`` is -1.

    Raises:
        DatasetError: As `read_frames`.
    """
    with opened(source, "mov") as stream:
        # A frame's own time, or else half a millisecond more: what people write down is rounded.
        exactly, ticks = (round((time_seconds + more) / stream.time_base) for more in (0, 5e-4))
        stream.container.seek(ticks, stream=stream, backward=True)
        # In decoding order; what is shown by then has been decoded by then.
        shown: list[int] = []
        for packet in stream.container.demux(stream):
            if shown and (packet.dts or 0) > ticks:  # but the first frame is shown before its time, too
                break
            if packet.pts is not None:
                shown.append(packet.pts)
        by_then = max((pts for pts in shown if pts <= ticks), default=min(shown, default=0))
        target = exactly if exactly in shown else by_then
        ((_, frame),) = _decode(source, stream, {target})
        return Frame(-1, float(frame.time or 0.0), _rgb(frame, VideoReformatter()))


def read_frames_at(source: str | Path | BinaryIO, times_seconds: Sequence[float]) -> list[NDArray[np.uint8]]:
    """Read several frames of a 360p file, decoding once from the key frame before the first of them.

    Args:
        source: As for `read_frames`.
        times_seconds: The frames' own times, ascending.

    Returns:
        uint8 ``(H, W, 3)`` RGB of each.

    Raises:
        DatasetError: As `read_frames`, or no frame has one of these times.
    """
    with opened(source, "mov") as stream:
        stream.codec_context.thread_count = 1  # our encoder's pictures are one slice, which threads can't share
        reformatter = VideoReformatter()
        wanted = {round(time_seconds / stream.time_base) for time_seconds in times_seconds}
        return [_rgb(frame, reformatter) for _, frame in _decode(source, stream, wanted)]


def _rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> NDArray[np.uint8]:
    rgb: NDArray[np.uint8] = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray().view(np.uint8)
    return rgb
