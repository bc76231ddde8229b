"""The public names and where they are from; a module is imported when one of its names is first used."""

from .dataset.clip import Clip
from .dataset.dataset import ClipDataset, open_dataset, pack
from .dataset.torch_dataset import torch_dataset
from .downloads.fetching import fetch
from .downloads.http import Fetched
from .errors import (
    DatasetError,
    DepthError,
    DownloadError,
    KdepthError,
    SourceError,
    TranscodeError,
)
from .models.base import ClipDepth, DepthModel
from .models.load import load_model
from .notebook.comparison import ModelComparison, compare_models
from .notebook.parameters import check_parameters, project_path
from .pipeline.clip_depth import estimate_clip_depth
from .pipeline.pending import pending
from .pipeline.run import RunReport, start_ray, write_lance
from .pipeline.stages import download, estimate_depth, transcode
from .schema import CLIP_SCHEMA, COLUMNS
from .sources import read_sources
from .video.depth_file import read_depth, read_frames
from .video.transcode import VideoInfo, transcode_file, video_info

__version__: str

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
    "check_parameters",
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
    "start_ray",
    "torch_dataset",
    "transcode",
    "transcode_file",
    "video_info",
    "write_lance",
]
