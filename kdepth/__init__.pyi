"""The public names and where they are from; a module is imported when one of its names is first used."""

from .dataset.clip import Clip
from .dataset.dataset import ClipDataset, open_dataset
from .dataset.pack import pack
from .dataset.torch_dataset import torch_dataset
from .downloads.http import Fetched, fetch
from .downloads.many_files import fetch_files
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
from .notebook.evaluation import DepthScores, evaluate_depth
from .notebook.parameters import check_parameters, project_path
from .notebook.source_list import describe_sources, public_sources
from .pipeline.clip_depth import estimate_clip_depth
from .pipeline.cluster import start_ray
from .pipeline.pending import pending
from .pipeline.report import RunReport
from .pipeline.run import write_lance
from .pipeline.stages import download, estimate_depth, transcode
from .schema import CLIP_SCHEMA, COLUMNS
from .sources import read_sources
from .video.depth_file import read_depth
from .video.frames import read_frames
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
    "DepthScores",
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
    "describe_sources",
    "download",
    "estimate_clip_depth",
    "estimate_depth",
    "evaluate_depth",
    "fetch",
    "fetch_files",
    "load_model",
    "open_dataset",
    "pack",
    "pending",
    "project_path",
    "public_sources",
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
