"""Where a model's weights are, which files belong to them, and the identity that rows record."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdepth.errors import DepthError, printable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SMALL_WEIGHTS = Path(__file__).parents[1] / "data" / "small.safetensors"
DEPTH_PRO_REPOSITORY = "apple/DepthPro-hf"
DEPTH_PRO_FILE_URL = "https://ml-site.cdn-apple.com/models/depth_pro/depth_pro.pt"

# What decides how a network's input and output are read, besides the weights. Transformers reads all of these.
_SETTINGS = ("config.json", "preprocessor_config.json", "processor_config.json")
_HUB_FILES = [*_SETTINGS, "*.safetensors", "*.safetensors.index.json"]
_HUB_TIMEOUT_SECONDS = 5
# Keys of a configuration that make transformers ask the hub, or run kernels and quantisers that others wrote.
_REMOTE_KEYS = ("backbone", "attn_implementation", "_attn_implementation", "quantization_config")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint's files: `path` is its folder, or Apple's ``depth_pro.pt``; `config` is its ``config.json``."""

    name: str
    revision: str
    path: Path
    config: Mapping[str, Any]

    def weights(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Read the weights. What can't be read, or is a pickle with more than plain weights, is a `DepthError`."""
        files = [self.path] if self.path.is_file() else _weight_files(self.path)
        return {name: weight for file in files for name, weight in _read_weights(file, dtype).items()}


def find_checkpoint(name: str | Path, revision: str | None, *, download: bool) -> Checkpoint:
    """Find a checkpoint by its path or its name, as in `load_model`; with `download`, its weights are there.

    Raises:
        DepthError: It can't be had, is not whole, or its configuration asks for parts from elsewhere.
    """
    if name == "small":
        return Checkpoint("small", sha256_of([SMALL_WEIGHTS]), SMALL_WEIGHTS, {"model_type": "small"})
    repository, local = str(name), Path(name).expanduser()
    if name == "depth-pro":
        repository = DEPTH_PRO_REPOSITORY
    elif local.is_file():
        if local.suffix != ".pt":
            raise DepthError(f"{local}: of single files only Apple's depth_pro.pt can be loaded; else give the folder")
        return Checkpoint(local.name, sha256_of([local]), local, {"model_type": "depth_pro"})
    elif local.is_dir():
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


def sha256_of(files: Sequence[Path]) -> str:
    """``sha256:`` and 12 hex digits, as ``cat FILES | sha256sum`` begins. What can't be read is a `DepthError`."""
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
            hashlib.file_digest(stream, lambda: digest)  # adds this file to the same hash
    return f"sha256:{digest.hexdigest()[:12]}"


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: one, or those of the folder that an index names; or none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            named = read_json(index).get("weight_map")
            parts = [*named.values()] if isinstance(named, dict) else []
            if not parts or not all(re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)", str(part)) for part in parts):
                raise DepthError(f"{index} names files outside its folder, or none")
            return sorted({folder / part for part in parts})
    return []


def _read_weights(file: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    is_mapped = file.suffix in (".safetensors", ".pt")  # old files of PyTorch can't be

    def read() -> Any:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_mapped)

    weights: dict[str, Tensor] = {}
    try:
        found = read()
        items = found.items() if isinstance(found, dict) else [(None, None)]
        if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in items):
            raise ValueError("it holds something else")
        names = list(found)
        # Mapped anew for each hundred: once converted, what was read of Depth Pro's 3.8 GB can go.
        for start in range(0, len(names), 100):
            found = read() if is_mapped else found
            weights |= {name: found[name].to(dtype) for name in names[start : start + 100]}
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, SafetensorError) as exc:
        raise DepthError(f"{file} can't be read as plain weights: {printable(str(exc))}") from exc
    return weights


def read_json(file: Path, check: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> dict[str, Any]:
    """The object in a JSON file; each object in it goes through `check`. What can't be read is a `DepthError`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"), object_hook=check)
    except (OSError, ValueError, RecursionError) as exc:
        raise DepthError(f"{file} can't be read ({printable(str(exc))})") from exc
    if not isinstance(content, dict):
        raise DepthError(f"{file} can't be read (not a JSON object)")
    return content


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"

    def check(part: dict[str, Any]) -> dict[str, Any]:
        for key, value in part.items():
            if (key in _REMOTE_KEYS and value) or (key == "model_type" and str(value).startswith("timm")):
                asked = printable(f"{key}={value!r}", 200)
                raise DepthError(f"{file} asks for a part from elsewhere, which kdepth does not fetch: {asked}")
        return part

    return read_json(file, check)


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
            huggingface_hub.snapshot_download(repository, revision=folder.name, allow_patterns=_HUB_FILES)
            if not _weight_files(folder):
                huggingface_hub.snapshot_download(repository, revision=folder.name, allow_patterns=["pytorch_model*"])
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
    own_file = f"\nor take Apple's own file, {DEPTH_PRO_FILE_URL}, and give its path: model='/path/to/depth_pro.pt'"
    return (
        f"the weights of {repository} can't be had{offline}.\n"
        f"They are not in the cache {constants.HF_HUB_CACHE}, and the hub did not give them: {reason}\n"
        f"On a machine with internet run\n    hf download {repository}{at} --local-dir {folder}\n"
        f"copy the folder to this machine and give its path: model={os.path.join('/path/to', folder)!r}"
        + (own_file if repository == DEPTH_PRO_REPOSITORY else "")
    )
