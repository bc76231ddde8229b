"""Depth models by name: the embedded one, Depth Pro, other families of `transformers`, and models of one's own.

Importing this module is light. Torch is imported when a model is loaded, transformers only for models that need it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import cast

from kdepth.errors import DepthError
from kdepth.models.base import DepthKind, DepthModel, check_depth_kind
from kdepth.models.checkpoints import find_checkpoint, sha256_of
from kdepth.models.families import depth_kind_of


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
            Depth Pro, Depth Anything, ZoeDepth, GLPN, DPT or TIPSv2-DPT, such as
            ``"depth-anything/Depth-Anything-V2-Small-hf"``; a folder with such a checkpoint (``config.json``,
            ``preprocessor_config.json``, ``model.safetensors``); Apple's own ``depth_pro.pt``; or a ``.py`` file of
            your own with a function ``load(device)`` that returns a `DepthModel` (which then chooses its own dtype; all
            nodes need it at one path). A folder called ``small`` or ``depth-pro`` is ``"./small"`` or a `Path`.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; ``"auto"``: a GPU if there is one.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``; ``"auto"``: what is fast on the device. The last layers and
            everything after them is float32 in any case. (On a GPU torch rounds the factors of float32 convolutions to
            TF32 unless ``torch.backends.cudnn.allow_tf32 = False``.)
        revision: Branch, tag or commit of a checkpoint on the hub; default: what the cache holds, else the newest.
        depth_kind: ``"relative"`` (MiDaS) or ``"metric"``, for a DPT checkpoint, which does not say it itself.
        threads: Threads that torch uses in this process; default: unchanged.

    Raises:
        ValueError: An option is not one of these, or contradicts the checkpoint.
        DepthError: The weights can't be had (the message says where to get them and where to put them), are damaged, or
            are of a family whose output kdepth does not know how to read; or the file has no such function.
    """
    import torch

    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ValueError(f'dtype={dtype!r}: must be "auto", "float32", "bfloat16" or "float16"')
    check_depth_kind(depth_kind)
    device = _check_device(device)
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads={threads} must be at least 1")
        torch.set_num_threads(threads)
    if (own := _own_file(name)) is not None:
        return _load_own(own, device, depth_kind)
    checkpoint = find_checkpoint(name, revision, download=True)
    kind = depth_kind_of(checkpoint, depth_kind)
    # These import torch, and the last two transformers.
    if name == "small":
        from kdepth.models.small import load_small_network as load
    elif checkpoint.config["model_type"] == "depth_pro":
        from kdepth.models.depth_pro import load_depth_pro as load
    else:
        from kdepth.models.transformers_models import load_family as load
    predict, batch_size = load(checkpoint, kind, device, dtype)
    return DepthModel(
        predict, kind=kind, name=checkpoint.name, revision=checkpoint.revision, batch_size=batch_size, device=device
    )


def model_identity(name: str | Path, *, revision: str | None = None, depth_kind: DepthKind | None = None) -> str:
    """``name@revision`` of the model that `load_model` would give, without loading it. Raises as `load_model`."""
    check_depth_kind(depth_kind)
    if (own := _own_file(name)) is not None:
        _import_own(own)  # what is wrong with it shows here
        return f"{own.name}@{sha256_of([own])}"
    checkpoint = find_checkpoint(name, revision, download=False)
    depth_kind_of(checkpoint, depth_kind)
    return f"{checkpoint.name}@{checkpoint.revision}"


def _check_device(device: str) -> str:
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return "cpu" if torch.empty(0, device=device).device.type == "cpu" else str(device)
    except (RuntimeError, AssertionError) as exc:  # the latter from a build without CUDA
        there = "cpu and cuda" if torch.cuda.is_available() else "cpu"
        raise ValueError(f"device={device!r} is not there: this machine has {there}") from exc


def _own_file(name: str | Path) -> Path | None:
    path = Path(name).expanduser()
    return path if path.suffix == ".py" and path.is_file() else None


def _import_own(path: Path) -> Callable[[str], object]:
    """Its function ``load``. It is not imported, because Python might take bytecode from before the file changed."""
    module = ModuleType(f"kdepth_own_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    load = getattr(module, "load", None)
    if not callable(load):
        raise DepthError(f"{path} has no function load(device) that returns a kdepth.DepthModel")
    return cast(Callable[[str], object], load)


def _load_own(path: Path, device: str, depth_kind: DepthKind | None) -> DepthModel:
    model = _import_own(path)(device)
    if not isinstance(model, DepthModel):
        raise DepthError(f"load(device) of {path} returned a {type(model).__name__}, not a kdepth.DepthModel")
    if depth_kind not in (None, model.kind):
        raise ValueError(f"depth_kind={depth_kind!r}: {path} says {model.kind!r}")
    model.name, model.revision = path.name, sha256_of([path])
    return model
