"""Clips that explore.ipynb makes, to show what ``stable=True`` does and what shots are."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from kdepth import DepthModel, load_model
from kdepth.dataset.clip import Clip
from kdepth.pipeline.clip_depth import estimate_clip_depth
from kdepth.schema import OK, new_row
from kdepth.video.depth_file import read_depth
from kdepth.video.transcode import video_info


def jumping_copy(clip: Clip, path: str | Path, *, seed: int = 0) -> Clip:
    """Copy a clip with a random scale of 0.6 to 1.6 for each frame's depth, to show what ``stable=True`` does.

    Args:
        clip: A clip with depth. It is not changed.
        path: The ``.mkv`` depth file of the copy; a copy of the 360p file is written beside it.
        seed: Seed of the random scales.

    Returns:
        A clip with the same frames and the new depth file. The focal length of a metric model changes with the scale,
        as if the model had estimated it anew for each frame.

    Raises:
        ValueError: The clip has no depth.
    """
    path = Path(path)
    random_generator = np.random.default_rng(seed)
    video = path.with_suffix(".mp4")
    frames, depth = clip.file_bytes("video"), clip.file_bytes("depth")
    if frames is None or depth is None:
        raise ValueError(f"{clip!r} has no depth")
    video.write_bytes(frames)
    stored = zip(read_depth(io.BytesIO(depth)), clip.row["frames"], strict=True)

    def predict(
        rgb: torch.Tensor, focal_length_px: float | None, before: object
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        batch = list(islice(stored, len(rgb)))
        scales = random_generator.uniform(0.6, 1.6, len(batch)).astype(np.float32)
        depth = np.stack([frame for frame, _ in batch]).astype(np.float32) * scales[:, None, None]
        if batch[0][1]["focal_length_px"] is None:
            return torch.from_numpy(depth), None, None
        focal_lengths = torch.tensor([row["focal_length_px"] for _, row in batch]) / torch.tensor(scales)
        return torch.from_numpy(depth), focal_lengths, None

    model = DepthModel(predict, kind=clip.row["depth_kind"], name="jumping", revision=str(seed), batch_size=8)
    options = {"frames": clip.row["depth_frames"], "num_frames": clip.row["num_frames"]}
    columns = estimate_clip_depth(video, path, model, **options)
    return Clip(path.parent, clip.row | columns | {"video_path": video.name, "depth_path": path.name})


def joined_clip(clips: Sequence[Clip], path: str | Path, *, num_frames: int = 24) -> Clip:
    """Join the first frames of some clips into one film, and estimate its depth with ``small``, to show what shots are.

    Args:
        clips: Clips with a 360p file. They are not changed.
        path: The ``.mkv`` depth file of the film; the film is written beside it, at 24 frames a second.
        num_frames: Frames of each clip.

    Returns:
        The film, at the size of its first clip.
    """
    path = Path(path)
    video = path.with_suffix(".mp4")
    size = clips[0].row["width"], clips[0].row["height"]
    with av.open(str(video), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "veryfast"})
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        for clip in clips:
            for rgb in islice(clip.frames(), num_frames):
                picture = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    row = new_row(clip_id=path.stem, status=OK, video_path=video.name, depth_path=path.name)
    columns = asdict(video_info(video)) | estimate_clip_depth(video, path, load_model("small"))
    return Clip(path.parent, row | columns)
