"""The depth families of `transformers`: what each expects of its input and means by its output.

Preprocessing and post-processing are those of each family's own processor in transformers, in torch, batched, on the
model's device, and without torchvision, which those processors need.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from kdepth.errors import DepthError
from kdepth.models.load import DepthKind, Predict

# Depth and inverse depth of metric models are kept within 0.1 mm and 10 km, as Depth Pro does.
MIN_METRES, MAX_METRES = 1e-4, 1e4

Config = dict[str, Any]


def load(path: Path, config: Config, kind: DepthKind, device: str, dtype: str) -> tuple[Predict, int]:
    """The network of a checkpoint with its pre- and post-processing, and a sensible batch size."""
    family = config["model_type"]
    if family == "depth_pro":
        from kdepth.models import depth_pro

        # Apple runs it in float16 on GPUs: three more bits than bfloat16, and no overflow.
        return depth_pro.load(path, device, choose_dtype(device, dtype, on_gpu=torch.float16))
    processing = _read_processing(path, family)
    number = choose_dtype(device, dtype)
    network = _lower_precision(load_network(path, torch.float32), number).to(device)
    prepare, finish = _PROCESSING[family]

    def predict(frames: Tensor, focal_length_px: float | None, before: None) -> tuple[Tensor, Tensor | None, None]:
        height, width = frames.shape[2:]
        pixels = prepare(frames, processing)
        if 0 in pixels.shape:
            raise DepthError(f"{path.name} can't take frames as small as {width}x{height}")
        found = network(pixel_values=pixels.to(number)).predicted_depth.float()[:, None]
        output = finish(found, (height, width), processing)[:, 0]
        # Bicubic resizing overshoots at edges, below zero, too: of metres the inverse would be thousands.
        if kind == "relative":
            return output.clamp(min=0), None, None
        nearest, farthest = found.flatten(1).clamp(MIN_METRES, MAX_METRES).aminmax(dim=1)
        return 1 / output.clamp(nearest[:, None, None], farthest[:, None, None]), None, None

    return predict, 4 if device == "cpu" else 16


def choose_dtype(device: str, dtype: str, *, on_gpu: torch.dtype = torch.bfloat16) -> torch.dtype:
    """The type that a network computes in, its last layers apart."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if device.startswith("cuda"):
        return on_gpu if has_bfloat16(device) else torch.float16
    # Two to six times as fast where the processor has instructions for it, slower elsewhere.
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def has_bfloat16(device: str) -> bool:
    """Whether the hardware computes in bfloat16 (AMX, AVX512-BF16; NVIDIA's GPUs from Ampere on)."""
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private in torch 2.8, hence the guard
    return device == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)


def load_network(
    path: Path, dtype: torch.dtype, config: Any = None, weights: dict[str, Tensor] | None = None
) -> nn.Module:
    """A network of transformers, on the CPU, from a checkpoint's folder, or from `config` and `weights`.

    Raises:
        DepthError: The weights can't be read, or some are not there.
    """
    from transformers import AutoModelForDepthEstimation, DepthProForDepthEstimation
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    options: Config = {"dtype": dtype, "output_loading_info": True}
    try:
        if weights is not None:
            network, info = DepthProForDepthEstimation.from_pretrained(
                None, config=config, state_dict=weights, **options
            )
        else:
            safetensors = any(path.glob("*.safetensors"))  # else *.bin, which is read as plain weights only, too
            network, info = AutoModelForDepthEstimation.from_pretrained(
                path, local_files_only=True, trust_remote_code=False, use_safetensors=safetensors, **options
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as exc:
        raise DepthError(f"{path} can't be loaded: {exc}") from exc
    finally:
        if bars:
            logging.enable_progress_bar()
    if missing := sorted(info["missing_keys"]):
        # They would be left random, and the depth noise.
        raise DepthError(f"{path} lacks {len(missing)} weights of its network: {', '.join(missing[:5])}")
    assert isinstance(network, nn.Module)
    return network.eval()


def _lower_precision(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """All but the last layers in `dtype`: 8 or 11 bits of a half type there would show as bands in the depth."""

    def to_float32(module: nn.Module, args: tuple[Any, ...], kwargs: Config) -> tuple[tuple[Any, ...], Config]:
        return _map_floats(args), _map_floats(kwargs)

    for name, child in network.named_children():
        if name in ("head", "relative_head", "metric_head"):
            child.register_forward_pre_hook(to_float32, with_kwargs=True)
        else:
            child.to(dtype)
    return network


def _map_floats(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(_map_floats(item) for item in value)
    if isinstance(value, dict):
        return {key: _map_floats(item) for key, item in value.items()}
    return value


# --- processing -------------------------------------------------------------------------------------------------------

# Defaults of the processors' classes: a checkpoint's file holds only what differs, in older ones.
_DEFAULTS: dict[str, Config] = {
    "DPT": {
        "do_resize": True,
        "size": {"height": 384, "width": 384},
        "resample": 3,
        "keep_aspect_ratio": False,
        "ensure_multiple_of": 1,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_pad": False,
        "size_divisor": None,
    },
    "ZoeDepth": {
        "do_resize": True,
        "size": {"height": 384, "width": 512},
        "resample": 2,
        "keep_aspect_ratio": True,
        "ensure_multiple_of": 1 / 32,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_pad": True,
    },
    "GLPN": {"do_resize": True, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "size_divisor": 32},
}
_PROCESSOR_OF = {"depth_anything": "DPT", "dpt": "DPT", "zoedepth": "ZoeDepth", "glpn": "GLPN"}
_MODES = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


def _read_processing(path: Path, family: str) -> Config:
    file = path / "preprocessor_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as exc:
        raise DepthError(f"{file} can't be read ({exc}); without it the network's input is unknown") from exc
    processor = _PROCESSOR_OF[family]
    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or processor
    if not kind.startswith(processor):
        raise DepthError(f"{file} asks for a {kind}; of a {family} checkpoint kdepth knows {processor}ImageProcessor")
    processing = _DEFAULTS[processor] | {key: value for key, value in config.items() if value is not None}
    if isinstance(processing.get("size"), int):
        processing["size"] = {"height": processing["size"], "width": processing["size"]}
    known = {
        "resample": processing["resample"] in _MODES,
        "size": processor == "GLPN" or set(processing["size"]) == {"height", "width"},
        "do_center_crop": not processing.get("do_center_crop"),
    }
    for name, is_known in known.items():
        if not is_known:
            raise DepthError(f"{file}: {name}={processing[name]} is not supported")
    return processing


def resize_uint8(frames: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize as torchvision does on a CPU: uint8 stays uint8, antialiased.

    Args:
        frames: uint8 (N, 3, H, W).
        size: Of the result: height, width.
        mode: ``"nearest"``, ``"bilinear"`` or ``"bicubic"``.
    """
    if tuple(frames.shape[2:]) == size:
        return frames
    if mode == "nearest":
        return F.interpolate(frames, size, mode=mode)
    if frames.device.type == "cpu":
        return F.interpolate(frames, size, mode=mode, antialias=True, align_corners=False)
    return _resize_in_passes(frames, size, mode)


def _resize_in_passes(frames: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """The same on a GPU, which resizes floats only: on CPUs rows become bytes before columns are looked at.

    In one pass 15 % of the bytes would be another by one level, which some networks answer with .8 % of another depth;
    so it is 1 %, as the weights of the CPU's are rounded, too.
    """
    for step in ((frames.shape[2], size[1]), size):
        wide = F.interpolate(frames.float(), step, mode=mode, antialias=True, align_corners=False)
        frames = wide.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)
    return frames


def _normalize(frames: Tensor, processing: Config) -> Tensor:
    """uint8 to normalised float32, rescaling and normalising in one step, as the processors do."""
    factor = processing["rescale_factor"] if processing["do_rescale"] else 1.0
    if not processing.get("do_normalize"):
        return frames.float() * factor
    mean, std = (
        torch.tensor(processing[key], device=frames.device)[:, None, None] * (1.0 / factor)
        for key in ("image_mean", "image_std")
    )
    return (frames.float() - mean) / std


def _target_size(frames: Tensor, processing: Config) -> tuple[int, int]:
    """The size that DPT and ZoeDepth resize to: the nearest multiples, at the frame's aspect ratio if asked."""
    scales = [processing["size"][key] / side for key, side in zip(("height", "width"), frames.shape[2:], strict=True)]
    if processing["keep_aspect_ratio"]:
        # Scale as little as possible.
        scales = [min(scales, key=lambda scale: abs(1 - scale))] * 2
    multiple = processing["ensure_multiple_of"]
    height, width = (
        int(round(scale * side / multiple) * multiple) for scale, side in zip(scales, frames.shape[2:], strict=True)
    )
    return height, width


def _prepare_dpt(frames: Tensor, processing: Config) -> Tensor:
    if processing["do_resize"]:
        size = _target_size(frames, processing)
        if 0 in size:
            return frames[:, :, :0]
        frames = resize_uint8(frames, size, _MODES[processing["resample"]])
    pixels = _normalize(frames, processing)
    if processing["do_pad"] and processing["size_divisor"]:
        top, bottom = _centre_padding(pixels.shape[2], processing["size_divisor"])
        left, right = _centre_padding(pixels.shape[3], processing["size_divisor"])
        pixels = F.pad(pixels, (left, right, top, bottom))
    return pixels


def _centre_padding(side: int, divisor: int) -> tuple[int, int]:
    missing = -side % divisor
    return missing // 2, missing - missing // 2


def _finish_dpt(output: Tensor, size: tuple[int, int], processing: Config) -> Tensor:
    return F.interpolate(output, size, mode="bicubic", align_corners=False)


def _prepare_glpn(frames: Tensor, processing: Config) -> Tensor:
    if processing["do_resize"]:
        divisor = processing["size_divisor"]
        height, width = (side // divisor * divisor for side in frames.shape[2:])
        if 0 in (height, width):
            return frames[:, :, :0]
        frames = resize_uint8(frames, (height, width), _MODES[processing["resample"]])
    return _normalize(frames, processing)


def _zoedepth_padding(side: int) -> int:
    # ZoeDepth, models/depth_model.py, `infer`: against artefacts at the border.
    return int(math.sqrt(side / 2) * 3)


def _prepare_zoedepth(frames: Tensor, processing: Config) -> Tensor:
    pixels = frames.float() * processing["rescale_factor"] if processing["do_rescale"] else frames.float()
    if processing["do_pad"]:
        vertical, horizontal = (_zoedepth_padding(side) for side in frames.shape[2:])
        if vertical >= frames.shape[2] or horizontal >= frames.shape[3]:  # more than there is to reflect
            return frames[:, :, :0]
        pixels = F.pad(pixels, (horizontal, horizontal, vertical, vertical), mode="reflect")
    if processing["do_resize"]:
        size, mode = _target_size(pixels, processing), _MODES[processing["resample"]]
        pixels = F.interpolate(pixels, size, mode=mode, align_corners=True)
    return _normalize(pixels, processing | {"do_rescale": False})


def _finish_zoedepth(output: Tensor, size: tuple[int, int], processing: Config) -> Tensor:
    vertical, horizontal = (_zoedepth_padding(side) if processing["do_pad"] else 0 for side in size)
    padded = (size[0] + 2 * vertical, size[1] + 2 * horizontal)
    output = F.interpolate(output, padded, mode="bicubic", align_corners=False)
    return output[:, :, vertical : vertical + size[0], horizontal : horizontal + size[1]]


_PROCESSING: dict[
    str, tuple[Callable[[Tensor, Config], Tensor], Callable[[Tensor, tuple[int, int], Config], Tensor]]
] = {
    "depth_anything": (_prepare_dpt, _finish_dpt),
    "dpt": (_prepare_dpt, _finish_dpt),
    "glpn": (_prepare_glpn, _finish_dpt),
    "zoedepth": (_prepare_zoedepth, _finish_zoedepth),
}
