"""Depth Pro (Bochkovskii et al. 2024, "Depth Pro: Sharp Monocular Metric Depth in Less Than a Second", 2410.02073).

The network is the one of `transformers`, with parts exchanged for faster ones that compute the same:

- its three vision transformers work on a few patches at a time, so that what they need stays in the processor's cache,
  with query, key and value in one product, scales folded into the weights, and the activation inside the product
  (`kdepth.models.products`);
- its decoder works in strips and with fewer products (`depth_pro_decoder`), channels-last, which oneDNN is up to
  seven times faster with;
- the patches are cut without `unfold`, which takes a quarter of a GPU's time.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdepth.errors import DepthError
from kdepth.models.apple_weights import apple_config, load_apple_weights
from kdepth.models.depth_pro_decoder import Decoder, fastest_convolution
from kdepth.models.heap import keep_freed_memory, return_freed_memory
from kdepth.models.load import Predict
from kdepth.models.products import PATCHES_AT_ONCE, Attention, fastest_attention, fastest_linear

MIN_INVERSE_DEPTH, MAX_INVERSE_DEPTH = 1e-4, 1e4  # 1/m: the clamp of Apple's code


def load(path: Path, device: str, dtype: torch.dtype) -> tuple[Predict, int]:
    """Depth Pro with its pre- and post-processing.

    Args:
        path: A folder of transformers' port, or Apple's ``depth_pro.pt``.
        device: Where to run it.
        dtype: What the encoders and the decoder compute in; the last layers and what follows is float32.

    Returns:
        The function that `DepthModel` calls, and the batch size.

    Raises:
        DepthError: The weights are damaged or not all there.
    """
    from kdepth.models.transformers_models import load_network

    if path.is_file():
        config = apple_config()
        network: Any = load_network(path, dtype, config, load_apple_weights(path, config))
    else:
        network = load_network(path, dtype)
        config = network.config
    if device == "cpu":
        keep_freed_memory()  # while times are taken, too
    network = _DepthPro(
        network,
        fastest_linear(device, dtype),
        fastest_attention(device, dtype),
        fastest_convolution(device, dtype),
    ).to(device)
    # 1536; another size would give an output of the wrong size without a word.
    side = round(config.patch_size / config.scaled_images_ratios[0])

    def predict(frames: Tensor, focal_length_px: float | None, before: None) -> tuple[Tensor, Tensor | None, None]:
        height, width = frames.shape[2:]
        # To [-1, 1], and only then resized: the order of Apple's code.
        pixels = (frames.float() - 127.5) / 127.5
        pixels = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)
        canonical, fov_deg = network(pixels.to(dtype), with_fov=focal_length_px is None)
        if focal_length_px is not None:
            focal = torch.full((len(frames),), focal_length_px, device=frames.device)
        elif fov_deg is None:
            raise DepthError(f"{path.name} has no field-of-view network: give focal_length_px")
        else:
            focal = focal_length_from_fov(fov_deg.float(), width)
        # Section 3.1 of the paper: inverse depth = canonical inverse depth x width / focal length.
        inverse = canonical.float() * (width / focal)[:, None, None]
        inverse = F.interpolate(inverse[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
        return inverse.clamp(MIN_INVERSE_DEPTH, MAX_INVERSE_DEPTH), focal, None

    return predict, 1 if device == "cpu" else 4


def focal_length_from_fov(fov_deg: Tensor, width_px: int) -> Tensor:
    """Focal length in pixels from the horizontal field of view in degrees: ``0.5 * width / tan(fov / 2)``."""
    return 0.5 * width_px / torch.tan(0.5 * torch.deg2rad(fov_deg))


class _DepthPro(nn.Module):
    """The network, of the parts of transformers' or of what is exchanged for them.

    Args:
        network: Transformers' Depth Pro; of no use afterwards.
        linear: A class of `fastest_linear`.
        attention: One of `fastest_attention`.
        convolution: Of `fastest_convolution`.
    """

    def __init__(
        self, network: Any, linear: type[nn.Module], attention: Attention, convolution: type[nn.Module]
    ) -> None:
        super().__init__()
        network.requires_grad_(False)
        self.encoder, self.fov = network.depth_pro.encoder, network.fov_model
        patches = self.encoder.patch_encoder
        model = _VisionTransformer(patches.model, linear, attention, keep=patches.intermediate_hook_ids)
        self.encoder.patch_encoder = _PatchEncoder(model, patches.config)
        for part in (self.encoder.image_encoder, *([] if self.fov is None else [self.fov.fov_encoder])):
            part.model = _VisionTransformer(part.model, linear, attention)
        self.decoder = Decoder(network, convolution).to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor, *, with_fov: bool) -> tuple[Tensor, Tensor | None]:
        """Canonical inverse depth and, if there is a network for it, the field of view in degrees ``(N,)``.

        Both of ``(N, 3, 1536, 1536)`` pixels in [-1, 1]; the depth is ``(N, 1536, 1536)``.
        """
        encoded = self.encoder(pixels).features
        if pixels.device.type == "cpu":
            return_freed_memory()  # the decoder's tensors are of other sizes
        canonical, coarse = self.decoder(encoded)
        return canonical, self.fov(pixels, coarse) if with_fov and self.fov is not None else None


class _PatchEncoder(nn.Module):
    """As transformers' own, without `unfold`, which takes 21 of 75 ms a frame on an H100 in float16."""

    def __init__(self, model: _VisionTransformer, config: Any) -> None:
        super().__init__()
        self.model = model
        self.side = config.patch_size
        self.scales = list(zip(config.scaled_images_ratios, config.scaled_images_overlap_ratios, strict=True))
        self.layers = config.intermediate_hook_ids
        self.padding = config.merge_padding_value
        self.tokens = config.image_model_config.image_size // config.image_model_config.patch_size

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Features ``(N, C, h, w)``: of each scale, from coarse to fine, and of layers in between at the finest."""
        pictures = [F.interpolate(pixels, scale_factor=ratio, mode="bilinear") for ratio, _ in self.scales]
        parts = [self._cut(picture, overlap) for picture, (_, overlap) in zip(pictures, self.scales, strict=True)]
        counts, patches = [len(part) for part in parts[::-1]], torch.cat(parts[::-1])  # the finest first
        del pictures, parts
        found = self.model.states(patches, self._needed(counts, pixels))
        del patches
        merged = self._merge(found.pop("last"), counts, pixels)
        finest = len(merged) - 1
        for layer in self.layers:
            merged += self._merge(found.pop(layer)[: counts[0]], counts[:1], pixels, finest)
        return merged

    def _merge(self, hidden: Tensor, counts: list[int], pixels: Tensor, scale: int = 0) -> list[Tensor]:
        """The tokens of patches, the finest scale's first, as a picture of each scale, the coarsest first: `scale`."""
        from transformers.models.depth_pro.modeling_depth_pro import reconstruct_feature_maps

        base = pixels.shape[2] >> int(math.log2(pixels.shape[2] / self.tokens))
        return [
            reconstruct_feature_maps(
                part,
                batch_size=len(pixels),
                padding=int(self.padding * (1 / self.scales[n][0])),
                output_size=(base << n, base << n),
            )
            for n, part in enumerate(torch.split(hidden, counts)[::-1], scale)
        ]

    def _needed(self, counts: list[int], pixels: Tensor) -> Tensor | None:
        """Which tokens are in the merged pictures, bool ``(patches, tokens)``: three of five. None: take them all."""
        if pixels.is_cuda:
            return None
        numbers = torch.arange(sum(counts) * (self.tokens**2 + 1), dtype=torch.float64).view(sum(counts), -1, 1)
        found = torch.cat([merged.flatten() for merged in self._merge(numbers, counts, pixels)])
        if found.frac().any():  # they were not only merged, but resized
            return None
        return torch.isin(numbers, found)[..., 0]

    def _cut(self, pictures: Tensor, overlap: float) -> Tensor:
        """All pictures' first patches, then all their second ones, and so on; as ``unfold`` in transformers."""
        stride = int(self.side * (1 - overlap))
        patches = pictures.unfold(2, self.side, stride).unfold(3, self.side, stride)
        return patches.permute(2, 3, 0, 1, 4, 5).reshape(-1, pictures.shape[1], self.side, self.side)


class _VisionTransformer(nn.Module):
    """DINOv2 as in transformers, for inference."""

    def __init__(self, vit: Any, linear: Any, attention: Attention, keep: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.attention = attention
        self.keep = frozenset(keep)  # layers whose output is asked for, too
        self.heads = vit.config.num_attention_heads
        if vit.config.hidden_act != "gelu":
            raise DepthError(f"Depth Pro with the activation {vit.config.hidden_act!r} is not supported")
        self.embeddings, self.layernorm = vit.embeddings, vit.layernorm
        self.blocks = nn.ModuleList()
        for layer in vit.encoder.layer:
            a, scale1, scale2 = layer.attention, layer.layer_scale1.lambda1, layer.layer_scale2.lambda1
            # Attention's scale goes into the query: 1/8, so that no bit of it changes.
            scale = (vit.config.hidden_size // self.heads) ** -0.5
            scaled = [(a.q_proj, scale), (a.k_proj, 1.0), (a.v_proj, 1.0)]
            block = {
                "norm1": layer.norm1,
                "qkv": linear(
                    torch.cat([projection.weight * factor for projection, factor in scaled]),
                    torch.cat([projection.bias * factor for projection, factor in scaled]),
                ),
                "out": linear(a.o_proj.weight * scale1[:, None], a.o_proj.bias * scale1),
                "norm2": layer.norm2,
                "fc1": linear(layer.mlp.fc1.weight, layer.mlp.fc1.bias),
                "fc2": linear(layer.mlp.fc2.weight * scale2[:, None], layer.mlp.fc2.bias * scale2),
            }
            self.blocks.append(nn.ModuleDict(block))
        vit.encoder.layer = nn.ModuleList()
        return_freed_memory()  # of the old weights, or in the end all of them would be there twice

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        """As in transformers."""
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=self.states(pixel_values)["last"])

    def states(self, patches: Tensor, needed: Tensor | None = None) -> dict[int | str, Tensor]:
        """What each of the layers to `keep` gave, and the last one, normalised: ``(N, tokens, width)`` each.

        Args:
            patches: ``(N, 3, H, W)``.
            needed: The last is 0 for tokens that are not needed, bool ``(N, tokens)``.
        """
        # On a GPU everything at once.
        at_once = PATCHES_AT_ONCE[patches.dtype] if patches.device.type == "cpu" else len(patches)
        found: dict[int | str, Tensor] = {}
        for start in range(0, len(patches), at_once):
            some = slice(start, start + at_once)
            for layer, values in self._encode(patches[some], None if needed is None else needed[some]).items():
                if layer not in found:
                    found[layer] = values.new_empty((len(patches), *values.shape[1:]))
                found[layer][some] = values
        return found

    def _encode(self, patches: Tensor, needed: Tensor | None) -> dict[int | str, Tensor]:
        x = self.embeddings(patches)
        kept: dict[int | str, Tensor] = {}
        if len(self.blocks) - 1 in self.keep:
            needed = None
        for i, block in enumerate(self.blocks):
            b: Any = block
            n, tokens, width = x.shape
            qkv = b["qkv"](b["norm1"](x)).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            attended = self.attention(*qkv.unbind(0)).transpose(1, 2).reshape(n, tokens, width)
            if needed is not None and i == len(self.blocks) - 1:
                attended, x = attended[needed][None], x[needed][None]
            x = b["out"].add(attended, x)
            x = b["fc2"].add(b["fc1"].gelu(b["norm2"](x)), x)
            if i in self.keep:
                kept[i] = x.clone()
        last = self.layernorm(x)
        if needed is not None:
            last = last.new_zeros((*needed.shape, last.shape[2])).index_put_((needed,), last[0])
        return kept | {"last": last}
