"""Where a model's weights are, which files belong to them, and the identity that rows record."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kdepth.errors import DepthError, printable
from kdepth.models.base import DepthKind

if TYPE_CHECKING:
    from torch import Tensor

SMALL_WEIGHTS = Path(__file__).parents[1] / "data" / "small.safetensors"
DEPTH_PRO_REPOSITORY = "apple/DepthPro-hf"
DEPTH_PRO_FILE_URL = "https://ml-site.cdn-apple.com/models/depth_pro/depth_pro.pt"

# Families of transformers and what they give: metres or relative inverse depth; None: the configuration does not say.
_FAMILIES = {
    "depth_pro": "metric",
    "depth_anything": None,  # V1 and V2; it says it in depth_estimation_type
    "zoedepth": "metric",
    "glpn": "metric",
    "dpt": None,
    "tipsv2_dpt": "metric",
}
_REFUSED_FAMILIES = {
    "prompt_depth_anything": "it needs measured depth as a prompt, and a video has none",
    "chmv2": "it gives the height of trees seen from above, not the depth of a scene",
}
# What decides how a network's input and output are read, besides the weights. Transformers reads all of these.
_SETTINGS = ("config.json", "preprocessor_config.json", "processor_config.json")
_HUB_FILES = [*_SETTINGS, "*.safetensors", "*.safetensors.index.json"]
_HUB_TIMEOUT_SECONDS = 5
# Keys of a configuration that make transformers ask the hub, or run kernels and quantisers that others wrote.
_REMOTE_KEYS = ("backbone", "attn_implementation", "_attn_implementation", "quantization_config")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint's files.

    Attributes:
        name, revision: As in `DepthModel`.
        path: Its folder, or Apple's ``depth_pro.pt``.
        config: The content of its ``config.json``.
    """

    name: str
    revision: str
    path: Path
    config: Mapping[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """Read the weights, float32 or as they are stored. Safetensors are mapped into memory, not copied.

        Raises:
            DepthError: They can't be read, or are a pickle with more than plain weights.
        """
        files = [self.path] if self.path.is_file() else _weight_files(self.path)
        weights: dict[str, Tensor] = {}
        for file in files:
            weights |= _read_weights(file)
        return weights


def find_checkpoint(name: str | Path, revision: str | None, *, download: bool) -> Checkpoint:
    """Find a checkpoint by its path or by its name on the hub.

    Args:
        name: ``"depth-pro"``, a folder, Apple's file, or ``owner/name``. A folder called ``depth-pro`` is given as
            ``./depth-pro`` or as a `Path`.
        revision: Branch, tag or commit on the hub; default: what the cache holds, else the newest.
        download: Have the weights, too, not the configuration alone.

    Raises:
        DepthError: It can't be had, is not whole, or its configuration asks for parts from elsewhere.
    """
    repository = DEPTH_PRO_REPOSITORY if name == "depth-pro" else str(name)
    local = Path(name).expanduser()
    if local.is_file() and name != "depth-pro":
        if local.suffix != ".pt":
            raise DepthError(f"{local}: of single files only Apple's depth_pro.pt can be loaded; else give the folder")
        return Checkpoint(local.name, sha256_of([local]), local, {"model_type": "depth_pro"})
    if local.is_dir() and name != "depth-pro":
        if not (weights := _weight_files(local)):
            raise DepthError(f"{local} holds no weights (model.safetensors)")
        settings = [file for part in (*_SETTINGS, "*.index.json") for file in sorted(local.glob(part))]
        return Checkpoint(local.resolve().name, sha256_of([*weights, *settings]), local, _read_config(local))
    if isinstance(name, Path) or repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise DepthError(
            f"there is no model {printable(str(name))!r}: no such file or folder, and no name of the hub (owner/name); "
            "without a slash there are small and depth-pro"
        )
    folder = _hub_folder(repository, revision, download=download)
    return Checkpoint(repository, folder.name, folder, _read_config(folder))


def depth_kind_of(config: Mapping[str, Any], name: str, asked: DepthKind | None) -> DepthKind:
    """What a checkpoint gives, by its configuration, or by the caller's word where that does not say.

    Args:
        config: The content of its ``config.json``.
        name: Of the checkpoint, for errors.
        asked: What the caller says, or None.

    Raises:
        ValueError: The configuration says otherwise than the caller.
        DepthError: Neither says it, or kdepth does not know how to read the family's output.
    """
    family = str(config.get("model_type"))
    if (reason := _REFUSED_FAMILIES.get(family)) or family not in _FAMILIES:
        known = f"kdepth does not know what it gives; it knows {', '.join(_FAMILIES)}"
        raise DepthError(f"{name}: models of type {printable(repr(family), 100)} can't be used: {reason or known}")
    # Not by max_depth: relative checkpoints have one, too (1).
    kind = config.get("depth_estimation_type", "relative") if family == "depth_anything" else _FAMILIES[family]
    if kind not in ("metric", "relative", None):
        raise DepthError(f"{name}: unknown depth_estimation_type {printable(repr(kind), 100)} in its configuration")
    if kind and asked not in (None, kind):
        raise ValueError(f"depth_kind={asked!r}: the configuration of {name} says {kind!r}")
    if not (kind := kind or asked):
        raise DepthError(
            f"{name}: the configuration of a DPT checkpoint does not say what it gives; add "
            "depth_kind='relative' (MiDaS: dpt-large, dpt-hybrid-midas, dpt-beit-*, dpt-swinv2-*) or "
            "depth_kind='metric' (depth in metres: dpt-dinov2-*-nyu, dpt-dinov2-*-kitti)"
        )
    return cast(DepthKind, kind)


def sha256_of(files: Sequence[Path]) -> str:
    """``sha256:`` and 12 hex digits, as ``cat FILES | sha256sum`` begins.

    Raises:
        DepthError: A file can't be read.
    """
    try:
        return _sha256(tuple((str(file), (status := file.stat()).st_size, status.st_mtime_ns) for file in files))
    except OSError as exc:
        raise DepthError(f"a model's file can't be read: {exc}") from exc


@lru_cache
def _sha256(files: tuple[tuple[str, int, int], ...]) -> str:
    """Cached, because gigabytes take seconds. A file whose size or time changed is read anew."""
    digest = hashlib.sha256()
    for file, _, _ in files:
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return f"sha256:{digest.hexdigest()[:12]}"


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: one, or those that an index names; empty if there are none.

    Raises:
        DepthError: The index can't be read, or names something else than a file of this folder.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            named = read_json(index).get("weight_map")
            parts = [*named.values()] if isinstance(named, dict) else []
            if not parts or not all(isinstance(part, str) and _is_weight_name(part) for part in parts):
                raise DepthError(f"{index} names files outside its folder, or none")
            return sorted({folder / part for part in parts})
    return []


def _is_weight_name(name: str) -> bool:
    return name == Path(name).name and name.endswith((".safetensors", ".bin"))


def _read_weights(file: Path) -> dict[str, Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # Apple's file is 3.8 GB: mapped into memory. Old files of PyTorch can't be.
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=file.suffix == ".pt")
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, SafetensorError) as exc:
        raise DepthError(f"{file} can't be read as plain weights: {printable(str(exc))}") from exc
    items = found.items() if isinstance(found, dict) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in items):
        raise DepthError(f"{file} can't be read as plain weights: it holds something else")
    return dict(items)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DepthError: It can't be read, or is no object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise DepthError(f"{file} can't be read ({printable(str(exc))})") from exc
    if not isinstance(content, dict):
        raise DepthError(f"{file} can't be read (not a JSON object)")
    return content


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    for key, value in _all_items(config):
        if (key in _REMOTE_KEYS and value) or (key == "model_type" and str(value).startswith("timm")):
            raise DepthError(
                f"{folder / 'config.json'} asks for a part from elsewhere, which kdepth does not fetch: "
                f"{printable(f'{key}={value!r}', 200)}"
            )
    return config


def _all_items(value: object) -> Iterator[tuple[str, object]]:
    """Keys and values of an object of JSON, and of the objects in it."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict):
        yield from value.items()
    for part in parts:
        yield from _all_items(part)


def _hub_folder(repository: str, revision: str | None, *, download: bool) -> Path:
    """The cache's folder of a checkpoint, named by its commit. With `download`, its weights are there."""
    import huggingface_hub

    try:
        # The cache is used without asking the hub: a run must not change its model because the hub did.
        config = huggingface_hub.try_to_load_from_cache(repository, "config.json", revision=revision)
        if isinstance(config, str) and _is_whole(Path(config).parent):
            return Path(config).parent
    except (OSError, ValueError, DepthError):
        pass
    try:
        # One request without the hub's own retries, which take half a minute, tells whether anything can be had.
        huggingface_hub.model_info(repository, revision=revision, timeout=_HUB_TIMEOUT_SECONDS)
        # By the branch's name, so that the cache learns which commit it stands for: offline it is asked for that.
        folder = Path(huggingface_hub.hf_hub_download(repository, "config.json", revision=revision)).parent
        if download:
            commit = folder.name
            huggingface_hub.snapshot_download(repository, revision=commit, allow_patterns=_HUB_FILES)
            if not _weight_files(folder):
                huggingface_hub.snapshot_download(repository, revision=commit, allow_patterns=["pytorch_model*"])
    except Exception as exc:  # the classes come from the HTTP library, which the hub's client has changed twice
        raise DepthError(_how_to_get(repository, revision, exc)) from exc
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a folder of the hub's cache has all that is needed: other programs may have left a part of it there."""
    needed = [*_weight_files(folder)]
    if _read_config(folder).get("model_type") != "depth_pro":
        needed.append(folder / "preprocessor_config.json")
    return bool(_weight_files(folder)) and all(file.is_file() for file in needed)


def _how_to_get(repository: str, revision: str | None, why: Exception) -> str:
    from huggingface_hub import constants

    folder = repository.split("/")[1]
    at = f" --revision {revision}" if revision else ""
    reason = printable(" ".join([type(why).__name__, *str(why).strip().splitlines()[:1]]))
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
