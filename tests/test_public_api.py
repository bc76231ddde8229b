import inspect
import subprocess
import sys

import pytest

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
            "DepthScores",
            "Fetched",
            "ModelComparison",
            "RunReport",
            "VideoInfo",
        ),
        *("KdepthError", "SourceError", "DownloadError", "TranscodeError", "DepthError", "DatasetError"),
        *("read_sources", "pending", "download", "transcode", "estimate_depth", "write_lance", "open_dataset"),
        *("pack", "torch_dataset", "compare_models"),
        *("fetch", "fetch_files", "transcode_file", "video_info", "load_model", "estimate_clip_depth"),
        *("read_depth", "read_frames"),
        *("check_parameters", "project_path", "start_ray", "describe_sources", "public_sources"),
        "evaluate_depth",
    }
    for name in kdepth.__all__:
        assert hasattr(kdepth, name)


def test_everything_public_is_documented() -> None:
    for name in kdepth.__all__:
        thing = getattr(kdepth, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert inspect.getdoc(thing), name


@pytest.mark.parametrize(
    ("use", "heavy"),
    [
        ("kdepth.__all__", ("numpy", "pyarrow", "ray", "lance", "cv2", "torch")),
        # A notebook that looks at a dataset, and one that tries the network.
        ("kdepth.open_dataset", ("ray", "aiohttp", "torch", "transformers", "matplotlib")),
        ("kdepth.load_model('small')", ("ray", "lance", "pandas", "aiohttp", "transformers", "matplotlib")),
        # Workers that only download must not wait for these.
        ("kdepth.download", ("torch", "transformers", "matplotlib", "yt_dlp")),
    ],
)
def test_importing_is_light(use: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, kdepth; {use}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
