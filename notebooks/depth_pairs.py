"""Frames with their true depth, and the scores that models get on them: what `evaluate.ipynb` needs beside kdepth."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kdepth import samples
from kdepth.errors import printable
from kdepth.models.base import DepthModel
from kdepth.models.load import load_model
from kdepth.notebook.evaluation import evaluate_depth
from kdepth.video.frames import read_frames

# Values of a file's whole numbers in one metre, by the data set that stores depth so.
DEPTH_SCALES = {"m": 1.0, "mm": 1000.0, "nyu": 1000.0, "kitti": 256.0, "tum": 5000.0}
_PICTURES = {".png", ".jpg", ".jpeg"}
_DEPTHS = {".png", ".tif", ".tiff", ".npy", ".npz", ".exr"}


@dataclass(frozen=True, slots=True)
class DepthPair:
    """A frame and its true depth.

    Attributes:
        name: What to call it.
        source: The data set or film that it is of.
        rgb: uint8 ``(H, W, 3)``.
        true_inverse_depth: float32 ``(h, w)``, 1/m; 0 is unknown. It may be smaller or larger than the frame.
        focal_length_px: Of the camera, at the frame's size; None: unknown.
    """

    name: str
    source: str
    rgb: NDArray[np.uint8]
    true_inverse_depth: NDArray[np.float32]
    focal_length_px: float | None = None


def read_depth_pairs(path: str | Path, *, depth_scale: str | float = "mm") -> Iterator[DepthPair]:
    """Read frames with true depth from a csv or a folder.

    Args:
        path: A csv with the columns ``rgb`` and ``depth`` (files, relative to the csv) and, if known, ``source``,
            ``depth_scale`` and ``focal_length_px``. Or a folder with the folders ``rgb`` and ``depth`` in it or
            anywhere below, whose files have the same names but for the suffix; the source is the folder that holds
            the two.
        depth_scale: As for `read_true_depth`, where a line of the csv does not say it.

    Raises:
        ValueError: There are no pairs, a file is missing, or one can't be read; names it.
    """
    path = Path(path)
    num_pairs = 0
    for line in _csv_lines(path) if path.is_file() else _folder_lines(path):
        rgb, depth = (path.parent / line[name] if path.is_file() else Path(line[name]) for name in ("rgb", "depth"))
        picture = cv2.imread(str(rgb), cv2.IMREAD_COLOR_RGB)
        if picture is None:
            raise ValueError(f"{printable(str(rgb))} is missing, or no picture")
        metres = read_true_depth(depth, depth_scale=line.get("depth_scale") or depth_scale)
        with np.errstate(divide="ignore"):
            inverse = np.where(np.isfinite(metres) & (metres > 0), 1 / metres, 0).astype(np.float32)
        focal_length_px = float(line["focal_length_px"]) if line.get("focal_length_px") else None
        num_pairs += 1
        yield DepthPair(
            rgb.stem, line.get("source") or path.stem, np.asarray(picture, np.uint8), inverse, focal_length_px
        )
    if not num_pairs:
        raise ValueError(f"{path} holds no pairs of rgb and depth")


def sample_pairs(*, step: int = 24) -> Iterator[DepthPair]:
    """Give every ``step``-th frame of each rendered sample clip with its true depth."""
    for clip_id, path in samples.rendered_clips().items():
        frames = zip(read_frames(path), samples.true_inverse_depth(clip_id), strict=True)
        for index, (frame, truth) in enumerate(frames):
            if index % step == 0:
                yield DepthPair(f"{clip_id} {index}", "rendered samples", frame.rgb, truth)


def _csv_lines(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"rgb", "depth"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} has no columns 'rgb' and 'depth'")
        yield from reader


def _folder_lines(folder: Path) -> Iterator[dict[str, str]]:
    for rgb in sorted(folder.rglob("rgb")):
        depths = {file.stem: file for file in (rgb.parent / "depth").glob("*") if file.suffix.lower() in _DEPTHS}
        for file in sorted(file for file in rgb.iterdir() if file.suffix.lower() in _PICTURES):
            if file.stem not in depths:
                raise ValueError(f"{printable(str(file))} has no depth of its name in {rgb.parent / 'depth'}")
            yield {"rgb": str(file), "depth": str(depths[file.stem]), "source": rgb.parent.resolve().name}


def read_true_depth(path: str | Path, *, depth_scale: str | float = "mm") -> NDArray[np.float32]:
    """Read a file of depth in metres.

    Args:
        path: A ``.png`` or ``.tiff`` of 16 bits or more, ``.npy``, ``.npz`` (its array ``depth``, or its only one), or
            ``.exr`` if OpenCV was built with it.
        depth_scale: Whole numbers are divided by it: a number, or a key of `DEPTH_SCALES` (KITTI stores 256 a metre,
            TUM 5000, NYU 1000). Floating-point numbers are metres.

    Returns:
        float32 ``(H, W)``. What is not known stays as it is stored: 0, NaN or infinite.

    Raises:
        ValueError: It can't be read as one map of depth, or there is no such scale.
    """
    path, shown = Path(path), printable(str(path))
    try:
        scale = DEPTH_SCALES.get(str(depth_scale).lower()) or float(depth_scale)
    except ValueError as exc:
        raise ValueError(f"depth_scale={depth_scale!r} must be a number or one of {', '.join(DEPTH_SCALES)}") from exc
    if not 0 < scale < np.inf:
        raise ValueError(f"depth_scale={depth_scale!r} must be more than 0")
    if path.suffix.lower() in (".npy", ".npz"):
        try:
            loaded = np.load(path)
        except (OSError, ValueError) as exc:
            raise ValueError(f"{shown} can't be read: {exc}") from exc
        if isinstance(loaded, Mapping):
            name = "depth" if "depth" in loaded else next(iter(loaded)) if len(loaded) == 1 else None
            if name is None:
                raise ValueError(f"{shown} has several arrays, and none is called 'depth'")
            loaded = loaded[name]
    else:
        os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")  # OpenCV reads no .exr without it
        try:
            loaded = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        except cv2.error as exc:
            raise ValueError(f"{shown} can't be read: {exc}") from exc
        if loaded is None or loaded.dtype == np.uint8:
            reason = "no picture of 16 bits or more that this OpenCV can read" if path.is_file() else "not there"
            raise ValueError(f"{shown} is {reason}")
    depth = np.squeeze(np.asarray(loaded))
    if depth.ndim == 3 and path.suffix.lower() == ".exr":
        depth = depth[..., 0]
    if depth.ndim != 2 or depth.dtype.kind not in "uif":
        raise ValueError(f"{shown} must hold numbers of the shape (H, W), not {depth.dtype} {depth.shape}")
    metres: NDArray[np.float32] = (depth / scale if depth.dtype.kind in "ui" else depth).astype(np.float32)
    return metres


def predict_at(model: DepthModel, pair: DepthPair) -> NDArray[np.float32]:
    """Estimate the depth of a pair's frame, at the size of its true depth: float32 ``(h, w)`` inverse depth."""
    estimated = model.estimate(pair.rgb[None], focal_length_px=pair.focal_length_px).inverse_depth[0]
    height, width = pair.true_inverse_depth.shape
    smaller = height < estimated.shape[0]
    resized = cv2.resize(estimated, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return np.asarray(resized, np.float32)


def evaluate_models(
    pairs: Iterable[DepthPair],
    models: Sequence[str | Path | DepthModel],
    *,
    min_depth_m: float = 1e-3,
    max_depth_m: float = 80.0,
) -> pa.Table:
    """Score models on frames with true depth.

    Args:
        pairs: From `read_depth_pairs` or `sample_pairs`.
        models: Names as for `kdepth.load_model`, or loaded models. Each named one is loaded when the one before has
            gone.
        min_depth_m, max_depth_m: As for `kdepth.evaluate_depth`.

    Returns:
        One row a model and pair: ``model``, ``kind``, ``source``, ``name`` and the fields of `DepthScores`.
    """
    pairs = list(pairs)
    rows: list[dict[str, Any]] = []
    for one in models:
        model = one if isinstance(one, DepthModel) else load_model(one)
        facts = {"model": model.identity, "kind": model.kind}
        for pair in pairs:
            found = predict_at(model, pair)
            scores = evaluate_depth(
                found, pair.true_inverse_depth, kind=model.kind, min_depth_m=min_depth_m, max_depth_m=max_depth_m
            )
            rows.append(facts | {"source": pair.source, "name": pair.name} | asdict(scores))
        del model
    return pa.Table.from_pylist(rows)
