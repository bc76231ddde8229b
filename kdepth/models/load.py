"""Depth models by name: the embedded one, Depth Pro, and the other families that `transformers` knows.

Importing this module is light. Torch is imported when a model is loaded, transformers only for models that need it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from kdepth.errors import DepthError

if TYPE_CHECKING:
    import torch

DepthKind = Literal["metric", "relative"]
# uint8 (N, 3, H, W) frames, the focal length in px if it is known, and what the call for the frames before left ->
# float32 (N, H, W) inverse depth, (N,) px, and what to leave to the next call.
Predict = Callable[["torch.Tensor", "float | None", Any], "tuple[torch.Tensor, torch.Tensor | None, Any]"]

DEPTH_PRO_REPOSITORY = "apple/DepthPro-hf"
DEPTH_PRO_FILE_URL = "https://ml-site.cdn-apple.com/models/depth_pro/depth_pro.pt"
MAX_HALF_FLOAT = 65504.0

_SMALL_WEIGHTS = Path(__file__).parents[1] / "data" / "small.safetensors"
_FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
_HUB_TIMEOUT_SECONDS = 5


@dataclass(frozen=True, slots=True)
class ClipDepth:
    """What a model says about the frames of a clip.

    Attributes:
        inverse_depth: float32 ``(N, H, W)`` at the frames' size; finite, >= 0, at most 65504 (it is stored as half
            floats). 1/m for metric models, without unit, scale or shift for relative ones. Near is large.
        focal_length_px: float32 ``(N,)`` at the frames' size where the model estimates or was given one, else None.
        memory: What the model remembers of the last frame; for ``estimate(after=)``.
    """

    inverse_depth: NDArray[np.float32]
    focal_length_px: NDArray[np.float32] | None
    memory: Any = field(default=None, repr=False)


class DepthModel:
    """A loaded model; made by `load_model`, or by a Python file of one's own that `load_model` is given.

    Args:
        predict: Of uint8 ``(N, 3, H, W)`` frames on the device, the camera's focal length in pixels if it is known, and
            what the call for the frames before left: float32 ``(N, H, W)`` inverse depth (1/m, or relative; near is
            large), ``(N,)`` focal lengths in pixels or None, and what to leave to the next call.
        kind, name, revision, batch_size: See below; those of a file of one's own are named by the file.
        device: Where the frames are to be.
        by_frame: It works on a frame at a time, however many it is given.

    Attributes:
        kind: ``"metric"`` (1/m) or ``"relative"``.
        name: ``small``, the hub's name of the checkpoint, or the name of the local folder or file.
        revision: The hub's commit, or ``sha256:`` and 12 hex digits of the local weights.
        batch_size: Frames to hand to `estimate` at once, for the memory's sake.
    """

    def __init__(
        self,
        predict: Predict,
        *,
        kind: DepthKind,
        name: str = "",
        revision: str = "",
        batch_size: int = 1,
        device: str = "cpu",
        by_frame: bool = False,
    ) -> None:
        _check_kind(kind)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.kind: DepthKind = kind
        self.name = name
        self.revision = revision
        self.batch_size = batch_size
        self.device = device
        self._predict = predict
        self._by_frame = by_frame

    @property
    def identity(self) -> str:
        """``name@revision``: what a row's ``depth_model`` says."""
        return f"{self.name}@{self.revision}"

    def __repr__(self) -> str:
        return f"DepthModel({self.identity}, {self.kind}, {self.device})"

    def estimate(
        self, frames: NDArray[np.uint8], *, focal_length_px: float | None = None, after: ClipDepth | None = None
    ) -> ClipDepth:
        """Inverse depth of some frames of a clip, in order.

        Args:
            frames: uint8 ``(N, H, W, 3)``, RGB.
            focal_length_px: Focal length of the camera at the frames' size, if known. Depth Pro then takes it instead
                of estimating one, and is a little faster; other models don't use it.
            after: What the frames right before these gave: ``small`` averages over time where the picture stands still.
                With it a clip gives the same in however many calls, on a CPU bit for bit.

        Raises:
            ValueError: Frames of another shape or type, or a focal length that is not positive.
            DepthError: The network gave values that are not finite, or a focal length that can't be.
        """
        import torch

        if not isinstance(frames, np.ndarray):
            raise ValueError(f"frames must be a NumPy array, uint8 (N, H, W, 3), not a {type(frames).__name__}")
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
            raise ValueError(f"frames must be uint8 (N, H, W, 3) with N >= 1, not {frames.dtype} {frames.shape}")
        if focal_length_px is not None and not 0 < focal_length_px < float("inf"):
            raise ValueError(f"focal_length_px={focal_length_px!r}: must be a positive number of pixels")
        inverse_depths: list[NDArray[np.float32]] = []
        focal_lengths: list[NDArray[np.float32]] = []
        memory = None if after is None else after.memory
        with torch.inference_mode():
            step = len(frames) if self._by_frame else self.batch_size
            for start in range(0, len(frames), step):
                batch = slice(start, start + step)
                # Torch warns about arrays that can't be written to, as decoders give them.
                rgb = torch.from_numpy(np.require(frames[batch], requirements=["C", "W"])).to(self.device)
                inverse, focal, memory = self._predict(rgb.permute(0, 3, 1, 2), focal_length_px, memory)
                found: NDArray[np.float32] = inverse.float().cpu().numpy()
                if found.shape != rgb.shape[:3]:
                    wanted = tuple(rgb.shape[:3])
                    raise DepthError(f"{self.identity} gave inverse depth {found.shape} of frames {wanted}")
                # By NumPy: after torch's own, its threads would spin for a while, and hold up the next frames.
                low, high = found.min(), found.max()
                if not (low >= 0 and high < np.inf):  # NaN compares false, so that this finds everything
                    raise DepthError(f'{self.identity} gave depth that is not finite; try dtype="float32"')
                if high > MAX_HALF_FLOAT:
                    np.minimum(found, MAX_HALF_FLOAT, out=found)
                inverse_depths.append(found)
                if focal is not None:
                    focal_lengths.append(focal.float().cpu().numpy())
                    if not ((focal_lengths[-1] > 0) & (focal_lengths[-1] < np.inf)).all():
                        raise DepthError(f"{self.identity} gave a focal length of {focal_lengths[-1]} px")
        inverse_depth = inverse_depths[0] if len(inverse_depths) == 1 else np.concatenate(inverse_depths)
        return ClipDepth(inverse_depth, np.concatenate(focal_lengths) if focal_lengths else None, memory)


def load_model(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    depth_kind: DepthKind | None = None,
    threads: int | None = None,
) -> DepthModel:
    """Load a depth model.

    Args:
        name: ``"small"`` (embedded, relative); ``"depth-pro"`` (Apple's, metric); the hub's name of any checkpoint of
            Depth Pro, Depth Anything, ZoeDepth, GLPN or DPT, such as ``"depth-anything/Depth-Anything-V2-Small-hf"``;
            a folder with such a checkpoint (``config.json``, ``preprocessor_config.json``, ``model.safetensors``);
            Apple's own ``depth_pro.pt``; or a network of your own: a ``.py`` file with a function ``load(device)`` that
            gives a `DepthModel` (`dtype` and `revision` are then its own affair; all nodes need it at one path).
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; ``"auto"``: a GPU if there is one.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``; ``"auto"``: what is fast on the device. The last layers and
            everything after them is float32 in any case. (On a GPU torch rounds the factors of float32 convolutions to
            TF32 unless ``torch.backends.cudnn.allow_tf32 = False``.)
        revision: Branch, tag or commit of a checkpoint on the hub; default: what the cache holds, else the newest.
        depth_kind: What a DPT checkpoint gives, which it does not say itself: ``"relative"`` (MiDaS) or ``"metric"``.
        threads: Threads that torch uses in this process; default: unchanged.

    Raises:
        ValueError: An option that can't be, or that contradicts the checkpoint.
        DepthError: The weights can't be had (the message says where to get them and where to put them), are damaged, or
            are of a family whose output kdepth does not know how to read; or the file has no such function.
    """
    import torch

    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ValueError(f'dtype={dtype!r}: must be "auto", "float32", "bfloat16" or "float16"')
    _check_kind(depth_kind)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = "cpu" if torch.empty(0, device=device).device.type == "cpu" else str(device)
    except (RuntimeError, AssertionError) as exc:  # the latter of a build without CUDA
        there = "cpu and cuda" if torch.cuda.is_available() else "cpu"
        raise ValueError(f"device={device!r} is not there: this machine has {there}") from exc
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads={threads} must be at least 1")
        torch.set_num_threads(threads)
    if str(name) == "small":
        _check_small_kind(depth_kind)
        return _load_small(device, dtype)
    if (own := _own_file(name)) is not None:
        return _load_own(own, device, depth_kind)

    from kdepth.models import transformers_models as families

    checkpoint = _find_checkpoint(name, revision, download=True)
    kind = checkpoint.kind_as(depth_kind)
    with torch.random.fork_rng(devices=[]):  # what follows is measured on random numbers
        predict, batch_size = families.load(checkpoint.path, checkpoint.config, kind, device, dtype)
    return DepthModel(
        predict,
        kind=kind,
        name=checkpoint.name,
        revision=checkpoint.revision,
        batch_size=batch_size,
        device=device,
    )


def _check_kind(depth_kind: DepthKind | None) -> None:
    if depth_kind not in (None, "metric", "relative"):
        raise ValueError(f'depth_kind={depth_kind!r}: must be "metric", "relative" or None')


def _check_small_kind(depth_kind: DepthKind | None) -> None:
    if depth_kind == "metric":
        raise ValueError('depth_kind="metric": the embedded model is relative')


def model_identity(name: str | Path, *, revision: str | None = None, depth_kind: DepthKind | None = None) -> str:
    """``name@revision`` of the model that `load_model` would give, without loading it.

    What is wrong with the arguments is found here, before anything else is done.

    Raises:
        ValueError: `depth_kind` can't be, or contradicts the checkpoint.
        DepthError: The weights can't be had, are of a family that kdepth does not know, or of one that needs
            `depth_kind`.
    """
    _check_kind(depth_kind)
    if str(name) == "small":
        _check_small_kind(depth_kind)
        return f"small@{_small_revision()}"
    if (own := _own_file(name)) is not None:
        _import_own(own)  # what is wrong with it shows here
        return f"{own.name}@{_sha256([own])}"
    checkpoint = _find_checkpoint(name, revision, download=False)
    checkpoint.kind_as(depth_kind)
    return f"{checkpoint.name}@{checkpoint.revision}"


def _load_small(device: str, dtype: str) -> DepthModel:
    import torch

    from kdepth.models.small import FRAMES_TOGETHER, load_small

    network = load_small(device=device, dtype=None if dtype == "auto" else getattr(torch, dtype))

    def predict(
        frames: torch.Tensor, focal_length_px: float | None, before: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None, Any]:
        height, width = frames.shape[2:]
        if min(height, width) < 32:
            raise DepthError(f"the embedded model can't take frames as small as {width}x{height}")
        inverse, last = network.follow(frames.permute(0, 2, 3, 1), before)
        return inverse, None, last

    return DepthModel(
        predict,
        kind="relative",
        name="small",
        revision=_small_revision(),
        batch_size=8 if device == "cpu" else FRAMES_TOGETHER,
        device=device,
        by_frame=device == "cpu",  # on a GPU what they give would all be held there
    )


def _own_file(name: str | Path) -> Path | None:
    path = Path(name).expanduser()
    return path if path.suffix == ".py" and path.is_file() else None


def _import_own(path: Path) -> Callable[[str], object]:
    """Its function ``load``. Not by an import, which might take what was compiled before the file changed."""
    module = ModuleType(f"kdepth_own_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    load = getattr(module, "load", None)
    if not callable(load):
        raise DepthError(f"{path} has no function load(device) that gives a kdepth.DepthModel")
    return cast(Callable[[str], object], load)


def _load_own(path: Path, device: str, depth_kind: DepthKind | None) -> DepthModel:
    model = _import_own(path)(device)
    if not isinstance(model, DepthModel):
        raise DepthError(f"load(device) of {path} gave a {type(model).__name__}, not a kdepth.DepthModel")
    if depth_kind not in (None, model.kind):
        raise ValueError(f"depth_kind={depth_kind!r}: {path} says {model.kind!r}")
    model.name, model.revision = path.name, _sha256([path])
    return model


def _small_revision() -> str:
    # The file's own hash, which `kdepth.models.small` checks: to read the constant there would import torch.
    try:
        return _sha256([_SMALL_WEIGHTS])
    except OSError as exc:
        raise DepthError(f"the embedded model's weights can't be read: {exc}") from exc


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a model's weights are: `path` is a folder, or Apple's file; `config` is its ``config.json``."""

    name: str
    revision: str
    path: Path
    config: dict[str, Any]

    @property
    def kind(self) -> DepthKind | None:
        """What the model gives, from its configuration; None for DPT, which does not say.

        Raises:
            DepthError: The family is not one whose output kdepth knows how to read.
        """
        family = self.config.get("model_type")
        if family in ("depth_pro", "zoedepth", "glpn"):
            return "metric"
        if family == "dpt":
            return None
        if family == "depth_anything":
            # Not max_depth: relative checkpoints have one, too (1).
            kind = self.config.get("depth_estimation_type", "relative")
            if kind in ("metric", "relative"):
                return cast(DepthKind, kind)
            raise DepthError(f"{self.name}: unknown depth_estimation_type {kind!r} in its configuration")
        if family == "prompt_depth_anything":
            raise DepthError(f"{self.name}: Prompt Depth Anything needs measured depth as a prompt; a video has none")
        raise DepthError(
            f"{self.name}: kdepth does not know what a model of type {family!r} gives; it knows depth_pro, "
            "depth_anything (V1 and V2), zoedepth, glpn and dpt"
        )

    def kind_as(self, asked: DepthKind | None) -> DepthKind:
        """What the model gives, if the caller says `asked`.

        Raises:
            ValueError: The configuration says otherwise.
            DepthError: Neither says it, or as `kind`.
        """
        kind = self.kind or asked
        if kind is None:
            raise DepthError(
                f"{self.name}: the configuration of a DPT checkpoint does not say what it gives; add "
                "depth_kind='relative' (MiDaS: dpt-large, dpt-hybrid-midas, dpt-beit-*, dpt-swinv2-*) or "
                "depth_kind='metric' (depth in metres: dpt-dinov2-*-nyu, dpt-dinov2-*-kitti)"
            )
        if asked not in (None, kind):
            raise ValueError(f"depth_kind={asked!r}: the configuration of {self.name} says {kind!r}")
        return kind


def _find_checkpoint(name: str | Path, revision: str | None, *, download: bool) -> Checkpoint:
    local = Path(name).expanduser()
    if local.is_file():
        if local.suffix != ".pt":
            raise DepthError(f"{local}: of single files only Apple's depth_pro.pt can be loaded; else give the folder")
        return Checkpoint(local.name, _sha256([local]), local, {"model_type": "depth_pro"})
    if local.is_dir():
        weights = _weight_files(local)
        if not weights:
            raise DepthError(f"{local} holds no weights (model.safetensors)")
        others = [local / file for file in ("config.json", "preprocessor_config.json") if (local / file).is_file()]
        return Checkpoint(local.resolve().name, _sha256([*weights, *others]), local, _read_config(local))
    repository = DEPTH_PRO_REPOSITORY if str(name) == "depth-pro" else str(name)
    if isinstance(name, Path) or repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise DepthError(
            f"there is no model {str(name)!r}: no such file or folder, and no name of the hub (owner/name); "
            "without a slash there are small and depth-pro"
        )
    folder = _hub_folder(repository, revision, download=download)
    return Checkpoint(repository, folder.name, folder, _read_config(folder))


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _is_whole(folder: Path) -> bool:
    """Whether a folder of the hub's cache has all that is needed: other programs may have left a part of it there."""
    needed = set() if _read_config(folder).get("model_type") == "depth_pro" else {"preprocessor_config.json"}
    for index in folder.glob("*.safetensors.index.json"):
        needed |= set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
    return bool(_weight_files(folder)) and all((folder / name).is_file() for name in needed)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise DepthError(f"{folder} is not a checkpoint: its config.json can't be read ({exc})") from exc
    if not isinstance(config, dict):
        raise DepthError(f"{folder} is not a checkpoint: its config.json is not an object")
    return config


def _hub_folder(repository: str, revision: str | None, *, download: bool) -> Path:
    """The cache's folder of a checkpoint, named by its commit. With `download`, its weights are there."""
    import huggingface_hub

    try:
        # What is there is taken without asking the hub: a run must not change its model because the hub did.
        config = huggingface_hub.try_to_load_from_cache(repository, "config.json", revision=revision)
        if isinstance(config, str) and _is_whole(Path(config).parent):
            return Path(config).parent
    except (OSError, ValueError):
        pass
    try:
        # One request without the hub's own retries, half a minute of them, finds out whether anything can be had.
        huggingface_hub.model_info(repository, revision=revision, timeout=_HUB_TIMEOUT_SECONDS)
        # By the branch's name, so that the cache learns which commit it stands for: offline it is asked for that.
        folder = Path(huggingface_hub.hf_hub_download(repository, "config.json", revision=revision)).parent
        if download:
            commit = folder.name
            huggingface_hub.snapshot_download(repository, revision=commit, allow_patterns=_FILES)
            if not _weight_files(folder):
                huggingface_hub.snapshot_download(repository, revision=commit, allow_patterns=["pytorch_model*"])
    except Exception as exc:  # the classes come from the HTTP library, which the hub's client has changed twice
        raise DepthError(_how_to_get(repository, revision, exc)) from exc
    return folder


def _how_to_get(repository: str, revision: str | None, why: Exception) -> str:
    from huggingface_hub import constants

    folder = repository.split("/")[1]
    at = f" --revision {revision}" if revision else ""
    reason = " ".join([type(why).__name__, *str(why).strip().splitlines()[:1]])
    offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
    lines = [
        f"the weights of {repository} can't be had{offline}.",
        f"They are not in the cache {constants.HF_HUB_CACHE}, and the hub did not give them: {reason}",
        "On a machine with internet run",
        f"    hf download {repository}{at} --local-dir {folder}",
        f"copy the folder to this machine and give its path: model={os.path.join('/path/to', folder)!r}",
    ]
    if repository == DEPTH_PRO_REPOSITORY:
        lines += [f"or take Apple's own file, {DEPTH_PRO_FILE_URL}, and give its path: model='/path/to/depth_pro.pt'"]
    return "\n".join(lines)


def _sha256(files: list[Path]) -> str:
    return _sha256_of(tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache
def _sha256_of(files: tuple[tuple[str, int, int], ...]) -> str:
    """As ``cat FILES | sha256sum`` gives it: the weights, then the configuration. Gigabytes take seconds: kept."""
    digest = hashlib.sha256()
    for file, _, _ in files:
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return f"sha256:{digest.hexdigest()[:12]}"
