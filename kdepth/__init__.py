"""From a list of video URLs to a queryable dataset of depth video.

    import kdepth

    sources = kdepth.read_sources("k400_val_path.txt", annotations="val.csv")
    todo = kdepth.pending(sources, root)
    clips = kdepth.download(todo, root)
    clips = kdepth.transcode(clips, root)
    clips = kdepth.estimate_depth(clips, root, model="small")
    report = kdepth.write_lance(clips, root, sources=todo)

    ds = kdepth.open_dataset(root)

Pictures are in `kdepth.plots`, the sample clips in `kdepth.samples`; both are imported by name.
"""

from kdepth.clip import Clip
from kdepth.dataset import ClipDataset, open_dataset, pack, project_path
from kdepth.depth import estimate_clip_depth
from kdepth.depth_video import read_depth, read_frames
from kdepth.download import Fetched, fetch, run
from kdepth.errors import (
    DatasetError,
    DepthError,
    DownloadError,
    KdepthError,
    SourceError,
    TranscodeError,
)
from kdepth.metrics import ModelComparison, compare_models
from kdepth.models import ClipDepth, DepthModel, load_model
from kdepth.pairs import torch_dataset
from kdepth.plan import pending
from kdepth.runs import RunReport, start_ray, write_lance
from kdepth.schema import CLIP_SCHEMA, COLUMNS
from kdepth.sources import read_sources
from kdepth.stages import download, estimate_depth, transcode
from kdepth.transcode import VideoInfo, transcode_file, video_info

__version__ = "0.1.0"

__all__ = [
    "CLIP_SCHEMA",
    "COLUMNS",
    "Clip",
    "ClipDataset",
    "ClipDepth",
    "DatasetError",
    "DepthError",
    "DepthModel",
    "DownloadError",
    "Fetched",
    "KdepthError",
    "ModelComparison",
    "RunReport",
    "SourceError",
    "TranscodeError",
    "VideoInfo",
    "compare_models",
    "download",
    "estimate_clip_depth",
    "estimate_depth",
    "fetch",
    "load_model",
    "open_dataset",
    "pack",
    "pending",
    "project_path",
    "read_depth",
    "read_frames",
    "read_sources",
    "run",
    "start_ray",
    "torch_dataset",
    "transcode",
    "transcode_file",
    "video_info",
    "write_lance",
]
