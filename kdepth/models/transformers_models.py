"""How a network of `transformers` is loaded and run, of whatever family (`families`).

Pre- and post-processing are those of the checkpoint's own image processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdepth.errors import DepthError, printable
from kdepth.models.base import DepthKind, Predict, choose_dtype
from kdepth.models.checkpoints import Checkpoint, read_json

# Depth and inverse depth of metric models are kept within 0.1 mm and 10 km, as Depth Pro does.
MIN_METRES, MAX_METRES = 1e-4, 1e4
# Parts of a network that stay in float32: the 8 or 11 bits of a half type would show there as bands in the depth.
_LAST_PARTS = ("head", "relative_head", "metric_head", "decoder", "bin_regressor")


def load_family(checkpoint: Checkpoint, kind: DepthKind, device: str, dtype: str) -> tuple[Predict, int]:
    """A checkpoint's network with its image processor, as the function that `DepthModel` calls, and a batch size."""
    number = choose_dtype(device, dtype)
    network = _lower_precision(load_network(checkpoint, torch.float32), number).to(device)
    processor = _load_processor(checkpoint, network)
    is_zoedepth = checkpoint.config["model_type"] == "zoedepth"

    def predict(frames: Tensor, focal_length_px: float | None, before: object) -> tuple[Tensor, None, None]:
        size = frames.shape[2:]
        # ZoeDepth pads frames; its post-processing cuts that off if it is told the frames' size before.
        sizes = {"source_sizes" if is_zoedepth else "target_sizes": [tuple(size)] * len(frames)}
        with _as_depth_error(f"{checkpoint.name} can't take frames of {size[1]}x{size[0]}"):
            outputs = network(pixel_values=_prepare(processor, frames).to(number))
            outputs.predicted_depth = found = outputs.predicted_depth.float()
            results = processor.post_process_depth_estimation(outputs, **sizes)
            output = torch.stack([result["predicted_depth"] for result in results])
        if kind == "relative":
            return output.clamp(min=0), None, None
        # Bicubic resizing overshoots at edges, even below zero, and the inverse of that would be thousands.
        nearest, farthest = found.flatten(1).clamp(MIN_METRES, MAX_METRES).aminmax(dim=1)
        return 1 / output.clamp(nearest[:, None, None], farthest[:, None, None]), None, None

    return predict, 4 if device == "cpu" else 16


def _prepare(processor: Any, frames: Tensor) -> Any:
    return processor(images=list(frames), return_tensors="pt", input_data_format="channels_first").pixel_values


def _load_processor(checkpoint: Checkpoint, network: Any) -> Any:
    from transformers import AutoImageProcessor

    settings = read_json(checkpoint.path / "preprocessor_config.json")
    with _as_depth_error(f"{checkpoint.path}: its preprocessor_config.json can't be used"):
        options = {"config": network.config, "backend": "torchvision", "local_files_only": True}
        processor = AutoImageProcessor.from_pretrained(checkpoint.path, trust_remote_code=False, **options)
        name = type(processor).__name__
        asked = settings.get("image_processor_type") or settings.get("feature_extractor_type") or name
        if asked.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor") != name:
            raise ValueError(f"transformers has no {asked}")  # and has taken another one
        if not hasattr(processor, "post_process_depth_estimation"):
            raise ValueError(f"{name} is not for depth")
        if getattr(processor, "do_center_crop", None):
            raise ValueError("do_center_crop=True: depth is wanted of the whole frame")
        _prepare(processor, torch.zeros(1, 3, 360, 640, dtype=torch.uint8))  # what is wrong with it shows now
    return processor


def load_network(
    checkpoint: Checkpoint, dtype: torch.dtype, rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
) -> nn.Module:
    """A checkpoint's network, on the CPU. Transformers gets no path, and so reads no file and asks no hub.

    `rename` gives the weights the names of transformers; then there must be no others.

    Raises:
        DepthError: The configuration can't be used, or the weights are not those of its network.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_DEPTH_ESTIMATION_MAPPING
    from transformers.utils import logging

    with _as_depth_error(f"{checkpoint.path} can't be loaded"), ExitStack() as at_the_end:
        if logging.is_progress_bar_enabled():
            logging.disable_progress_bar()
            at_the_end.callback(logging.enable_progress_bar)
        config = CONFIG_MAPPING[checkpoint.config["model_type"]].from_dict(dict(checkpoint.config))
        family = MODEL_FOR_DEPTH_ESTIMATION_MAPPING[type(config)]
        weights = checkpoint.weights(dtype)
        weights = rename(weights) if rename else weights
        network, info = family.from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
        )
    # Missing ones would stay random, and the depth would be noise.
    for problem, found in (("lacks", info["missing_keys"]), ("has unknown", info["unexpected_keys"] if rename else ())):
        if found:
            names = printable(", ".join(sorted(found)[:5]))
            raise DepthError(f"{checkpoint.path} {problem} weights of its network, {len(found)}: {names}")
    assert isinstance(network, nn.Module)
    return network.eval().requires_grad_(False)


@contextmanager
def _as_depth_error(what: str) -> Iterator[None]:
    """Raise any error as a `DepthError`: a strange configuration makes transformers raise almost anything."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, DepthError):
        raise
    except Exception as exc:
        raise DepthError(f"{what}: {printable(f'{type(exc).__name__}: {exc}', 1000)}") from exc


def _lower_precision(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert all but the last parts to `dtype`."""

    def to_float32(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.float() if value.is_floating_point() else value
        if isinstance(value, dict):
            return {key: to_float32(item) for key, item in value.items()}
        return type(value)(map(to_float32, value)) if isinstance(value, (list, tuple)) else value

    for name, child in network.named_children():
        if name in _LAST_PARTS:
            child.register_forward_pre_hook(lambda module, *args: to_float32(args), with_kwargs=True)
        else:
            child.to(dtype)
    return network
