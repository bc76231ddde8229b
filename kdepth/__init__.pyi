"""The public names and where they are from; a module is imported when one of its names is first used."""

from .clip import Clip
from .dataset import ClipDataset, open_dataset, pack
from .depth import estimate_clip_depth
from .depth_video import read_depth, read_frames
from .downloads import fetch
from .errors import (
    DatasetError,
    DepthError,
    DownloadError,
    KdepthError,
    SourceError,
    TranscodeError,
)
from .metrics import ModelComparison, compare_models
from .models import ClipDepth, DepthModel, load_model
from .notebooks import check_parameters, project_path
from .pairs import torch_dataset
from .plan import pending
from .runs import RunReport, start_ray, write_lance
from .schema import CLIP_SCHEMA, COLUMNS
from .sources import read_sources
from .stages import download, estimate_depth, transcode
from .transcoding import VideoInfo, transcode_file, video_info
from .transfer import Fetched

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
