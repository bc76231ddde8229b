"""A real dataset of tiny clips, made in a moment without Ray: what the pipeline would leave."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from kdepth.schema import OK, new_row
from kdepth.storage import Root, key_of, made_name
from kdepth.video.depth_file import DepthWriter
from kdepth.video.ffmpeg import ffmpeg_path

WIDTH, HEIGHT, RATE = 64, 36, 10


def tiny_clip(
    root: str | Path, clip_id: str, *, num_frames: int = 6, scale: float = 1.0, kind: str = "metric", **columns: Any
) -> dict[str, Any]:
    """Make a clip's 360p and depth file in a root under new names; the row that names them.

    Inverse depth of frame n is a ramp from left to right, ``scale * (1 + n) * (1 + x / WIDTH)``.
    """
    files = Root(root)
    video = made_name("360p", clip_id, key_of("video"), ".mp4")
    depth = made_name("depth", clip_id, key_of(scale, kind), ".mkv")
    source = f"testsrc2=size={WIDTH}x{HEIGHT}:rate={RATE}"
    with files.writing(video) as path:
        command = [ffmpeg_path(), "-v", "error", "-f", "lavfi", "-i", source, "-frames:v", str(num_frames)]
        subprocess.run([*command, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-f", "mp4", str(path)], check=True)
        num_bytes = path.stat().st_size
    frames = []
    with files.writing(depth) as path, DepthWriter(path, WIDTH, HEIGHT) as writer:
        for index in range(num_frames):
            ramp = scale * (1 + index) * (1 + np.arange(WIDTH, dtype=np.float32) / WIDTH) + np.zeros((HEIGHT, 1))
            frame = {"index": index, "time_seconds": index / RATE, "focal_length_px": 50.0, "max": float(ramp.max())}
            frame |= {} if kind == "metric" else {"focal_length_px": None}
            frames.append(frame | {"crc32": writer.write(ramp.astype(np.float16), index / RATE)})
    known = {
        "video_path": video,
        "video_bytes": num_bytes,
        "width": WIDTH,
        "height": HEIGHT,
        "average_fps": float(RATE),
        "num_frames": num_frames,
        "duration_seconds": num_frames / RATE,
        "depth_path": depth,
        "depth_bytes": files.size(depth),
        "depth_model": "ramp@0",
        "depth_kind": kind,
        "depth_frames": "all",
        "num_depth_frames": num_frames,
        "frames": frames,
        "depth_thumbnail": [0.5] * 144,
    }
    return new_row(clip_id=clip_id, status=OK, **(known | columns))
