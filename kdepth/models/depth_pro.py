"""Depth Pro (Bochkovskii et al. 2024, "Depth Pro: Sharp Monocular Metric Depth in Less Than a Second", 2410.02073).

The network is transformers', with scaled dot product attention, and a few changes that compute the same. On an H200 in
float16 four frames take 42.8 ms each with them, and 70.9 without. On two cores of an AMD EPYC (AVX512-BF16) a frame
takes 33 to 43 % of the CPU time of the documented float32 way in bfloat16, by model, and 58 to 80 % in float32.

- patches are cut as a view, because `unfold` takes a quarter of a GPU's time;
- the decoder's memory is channels-last;
- on a GPU the layers are compiled one by one;
- on a CPU a few patches go through the vision transformers at a time, and their products are 1x1 convolutions;
- the field-of-view network is not run if the focal length is given.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdepth.errors import DepthError
from kdepth.models.apple_weights import APPLE_CONFIG, port_weights
from kdepth.models.base import DepthKind, Predict, choose_dtype
from kdepth.models.checkpoints import Checkpoint
from kdepth.models.transformers_models import load_network

MIN_INVERSE_DEPTH, MAX_INVERSE_DEPTH = 1e-4, 1e4  # 1/m: the clamp of Apple's code
_GPU_BATCH = 4  # 42.8 ms a frame on an H200, and 45.3 with 8
_PATCHES_AT_ONCE = 5  # on a CPU: of 35, so that what a layer needs stays in the cache


def load_depth_pro(checkpoint: Checkpoint, kind: DepthKind, device: str, dtype: str) -> tuple[Predict, int]:
    """Depth Pro as the function that `DepthModel` calls, and a batch size; the port's folder, or ``depth_pro.pt``.

    ``"auto"`` on a GPU is float16, as in Apple's code: three more bits than bfloat16, and nothing overflows.
    """
    number = choose_dtype(device, dtype, on_gpu="float16")
    if checkpoint.path.is_file():
        stock = load_network(replace(checkpoint, config=APPLE_CONFIG), number, rename=port_weights)
    else:
        stock = load_network(checkpoint, number)
    network = _Network(stock, device, number)
    largest = 1

    def predict(frames: Tensor, focal_length_px: float | None, before: object) -> tuple[Tensor, Tensor, None]:
        nonlocal largest
        num_frames, _, height, width = frames.shape
        if frames.is_cuda:  # compiled layers are compiled again for another number of frames, which takes half a minute
            largest = max(largest, num_frames)
            frames = torch.cat((frames, frames[-1:].expand(largest - num_frames, -1, -1, -1)))
        canonical, fov_deg = network(frames, with_fov=focal_length_px is None)
        canonical = canonical[:num_frames]
        if focal_length_px is not None:
            focal = torch.full((num_frames,), focal_length_px, device=frames.device)
        elif fov_deg is None:
            raise DepthError(f"{checkpoint.name} has no field-of-view network: give focal_length_px")
        else:
            focal = focal_length_from_fov(fov_deg[:num_frames], width)
        # Section 3.1 of the paper: inverse depth = canonical inverse depth x width / focal length.
        inverse = canonical * (width / focal)[:, None, None]
        inverse = F.interpolate(inverse[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
        return inverse.clamp(MIN_INVERSE_DEPTH, MAX_INVERSE_DEPTH), focal, None

    return predict, 1 if device == "cpu" else _GPU_BATCH


def focal_length_from_fov(fov_deg: Tensor, width_px: int) -> Tensor:
    """Focal length in pixels from the horizontal field of view in degrees: ``0.5 * width / tan(fov / 2)``."""
    return 0.5 * width_px / torch.tan(0.5 * torch.deg2rad(fov_deg))


class _Network:
    """Transformers' Depth Pro, which is on the CPU and in `dtype`, with the changes that are listed above."""

    def __init__(self, stock: Any, device: str, dtype: torch.dtype) -> None:
        self._stock, self._dtype = stock, dtype
        encoder, config = stock.depth_pro.encoder, stock.config
        # 1536. The network takes another size, too, and then gives an output of the wrong size without a word.
        self._side = round(config.patch_size / config.scaled_images_ratios[0])
        encoder.patch_encoder = _PatchEncoder(encoder.patch_encoder, _PATCHES_AT_ONCE if device == "cpu" else None)
        for part in (stock.depth_pro.neck, stock.fusion_stage, stock.head):
            part.to(memory_format=torch.channels_last)
        # The last layers in float32: 8 or 11 bits would show as bands in the depth.
        for layer in stock.head.layers[1:]:
            layer.float()
        stock.head.layers[1].register_forward_pre_hook(lambda layer, args: (args[0].float(),))
        towers = [encoder.patch_encoder.model, encoder.image_encoder.model]
        towers += [] if stock.fov_model is None else [stock.fov_model.fov_encoder.model]
        # The convolutions are oneDNN's, which has none in float16.
        if device == "cpu" and dtype != torch.float16 and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            for tower in towers:
                _replace_linears(tower.encoder)
        stock.to(device)
        if device != "cpu" and _compiler_works(device):
            # `torch.compile` of the whole network takes 164 s, and is no faster than transformers. All layers share
            # torch's limit of 8 compiled versions: there are 2 shapes of patches, 5 of fusion layers, and the head.
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
            layers = [layer for tower in towers for layer in tower.encoder.layer]
            for layer in (*layers, *stock.fusion_stage.intermediate, stock.fusion_stage.final, stock.head):
                layer.compile(dynamic=False)

    def __call__(self, frames: Tensor, *, with_fov: bool) -> tuple[Tensor, Tensor | None]:
        """Canonical inverse depth ``(N, 1536, 1536)`` and, if there is a network for it, the field of view.

        Both of uint8 ``(N, 3, H, W)`` frames, in float32; the field of view is ``(N,)`` in degrees.
        """
        # To [-1, 1], and only then resized: the order of Apple's code.
        pixels = (frames.float() - 127.5) / 127.5
        pixels = F.interpolate(pixels, (self._side, self._side), mode="bilinear", align_corners=False).to(self._dtype)
        features = self._stock.depth_pro(pixels).features
        coarse = features[0]
        fused = self._stock.fusion_stage(features)[-1]
        del features
        canonical = self._stock.head(fused)
        if not with_fov or self._stock.fov_model is None:
            return canonical, None
        return canonical, self._stock.fov_model(pixels, coarse).float()


class _PatchEncoder(nn.Module):
    """Transformers' own, but with patches cut as a view, some at a time, and only the states that are needed."""

    def __init__(self, stock: Any, at_once: int | None) -> None:
        super().__init__()
        self.model, self.config, self._out_size, self._at_once = stock.model, stock.config, stock.out_size, at_once

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Features ``(N, C, h, w)``: of each scale, from coarse to fine, and of layers in between at the finest."""
        from transformers.models.depth_pro.modeling_depth_pro import reconstruct_feature_maps

        ratios = self.config.scaled_images_ratios
        parts = []
        for ratio, overlap in zip(ratios, self.config.scaled_images_overlap_ratios, strict=True):
            parts.append(self._cut(F.interpolate(pixels, scale_factor=ratio, mode="bilinear"), overlap))
        counts = [len(part) for part in parts]
        states = self._encode(torch.cat(parts[::-1]))  # the finest first
        del parts
        base = pixels.shape[2] >> int(math.log2(pixels.shape[2] / self._out_size))

        def merge(hidden: Tensor, scale: int) -> Tensor:
            side = base << scale
            padding = int(self.config.merge_padding_value / ratios[scale])
            found: Tensor = reconstruct_feature_maps(hidden, len(pixels), padding, (side, side))
            return found

        last, *between = states
        merged = [merge(part, scale) for scale, part in enumerate(torch.split(last, counts[::-1])[::-1])]
        return merged + [merge(state[: counts[-1]], len(counts) - 1) for state in between]

    def _cut(self, pictures: Tensor, overlap: float) -> Tensor:
        """All pictures' first patches, then all their second ones, and so on."""
        side = self.config.patch_size
        stride = int(side * (1 - overlap))
        patches = pictures.unfold(2, side, stride).unfold(3, side, stride)
        return patches.permute(2, 3, 0, 1, 4, 5).reshape(-1, pictures.shape[1], side, side)

    def _encode(self, patches: Tensor) -> list[Tensor]:
        """The normalised last state ``(N, tokens, width)``, and the states after the layers that the decoder sees."""
        needed = self.config.intermediate_hook_ids
        batches = []
        for some in torch.split(patches, self._at_once or len(patches)):
            x, states = self.model.embeddings(some), {}
            for number, layer in enumerate(self.model.encoder.layer):
                x = layer(x)
                if number in needed:
                    states[number] = x
            batches.append([self.model.layernorm(x), *(states[number] for number in needed)])
        return [torch.cat(same) for same in zip(*batches, strict=True)]


class _ConvolvedLinear(nn.Module):
    """A linear layer as a 1x1 convolution, for oneDNN: by model of the CPU, 13 to 44 % less of its time in float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight[:, :, None, None].contiguous(memory_format=torch.channels_last)
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """``(N, tokens, in)`` to ``(N, tokens, out)``."""
        return F.conv2d(x[:, :, None].permute(0, 3, 1, 2), self.weight, self.bias).permute(0, 2, 3, 1)[:, :, 0]


def _replace_linears(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, _ConvolvedLinear(child))
        else:
            _replace_linears(child)


@lru_cache
def _compiler_works(device: str) -> bool:
    """Whether torch can compile for a GPU here: that takes Triton, a C compiler and Python's headers."""
    try:
        torch.compile(lambda x: x + 1, dynamic=False)(torch.ones(1, device=device))
    except (RuntimeError, ImportError, OSError):  # torch's own errors of compiling are RuntimeErrors
        return False
    return True
