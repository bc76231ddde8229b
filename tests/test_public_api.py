import inspect
import subprocess
import sys

import kdepth


def test_the_public_surface_is_this() -> None:
    assert kdepth.__all__ == sorted(kdepth.__all__)
    assert set(kdepth.__all__) == {
        *(
            "CLIP_SCHEMA",
            "COLUMNS",
            "Clip",
            "ClipDataset",
            "ClipDepth",
            "DepthModel",
            "Fetched",
            "ModelComparison",
            "RunReport",
            "VideoInfo",
        ),
        *("KdepthError", "SourceError", "DownloadError", "TranscodeError", "DepthError", "DatasetError"),
        *("read_sources", "pending", "download", "transcode", "estimate_depth", "write_lance", "open_dataset"),
        *("pack", "torch_dataset", "compare_models"),
        *("fetch", "transcode_file", "video_info", "load_model", "estimate_clip_depth", "read_depth", "read_frames"),
        *("project_path", "run", "start_ray"),
    }
    for name in kdepth.__all__:
        assert hasattr(kdepth, name)


def test_everything_public_is_documented() -> None:
    for name in kdepth.__all__:
        thing = getattr(kdepth, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert inspect.getdoc(thing), name


def test_importing_is_light() -> None:
    """Workers that only download, and a notebook's first cell, must not wait for these."""
    heavy = ("torch", "transformers", "matplotlib", "yt_dlp")
    code = f"import sys, kdepth; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
