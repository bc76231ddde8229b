"""Depth Pro (Bochkovskii et al. 2024, "Depth Pro: Sharp Monocular Metric Depth in Less Than a Second", 2410.02073).

The network is the one of `transformers`, with parts exchanged for faster ones that compute the same:

- its three vision transformers work on a few patches at a time, so that what they need stays in the processor's cache,
  with query, key and value in one product, scales folded into the weights, and the activation inside the product; which
  of several ways to products and attention is fast on a processor is measured when the model is loaded;
- its convolutions see their data channels-last, which oneDNN is up to seven times faster with;
- each deconvolution of the decoder takes the 1x1 convolution behind it into its weights;
- the last layers, in float32, go over the picture in strips: at once they would need 1.2 GB.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdepth.errors import DepthError
from kdepth.heap import keep_freed_memory, return_freed_memory
from kdepth.models import Predict

MIN_INVERSE_DEPTH, MAX_INVERSE_DEPTH = 1e-4, 1e4  # 1/m: the clamp of Apple's code

_PATCHES_AT_ONCE = 5
_STRIP_ROWS = 64


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
    from kdepth.families import load_network

    if path.is_file():
        config = apple_config()
        network: Any = load_network(path, dtype, config, load_apple_weights(path, config))
    else:
        network = load_network(path, dtype)
        config = network.config
    network = accelerate(network, fastest_linear(device, dtype), fastest_attention(device, dtype)).to(device)
    return_freed_memory()  # of loading, about 1 GB
    if device == "cpu":
        keep_freed_memory()
    # 1536; another size would give an output of the wrong size without a word.
    side = round(config.patch_size / config.scaled_images_ratios[0])

    def predict(frames: Tensor, focal_length_px: float | None, before: None) -> tuple[Tensor, Tensor | None, None]:
        height, width = frames.shape[2:]
        # To [-1, 1], and only then resized: the order of Apple's code.
        pixels = (frames.float() - 127.5) / 127.5
        pixels = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)
        network.use_fov_model = focal_length_px is None and config.use_fov_model
        output = network(pixel_values=pixels.to(dtype))
        if focal_length_px is not None:
            focal = torch.full((len(frames),), focal_length_px, device=frames.device)
        elif output.field_of_view is None:
            raise DepthError(f"{path.name} has no field-of-view network: give focal_length_px")
        else:
            focal = focal_length_from_fov(output.field_of_view.float(), width)
        # Section 3.1 of the paper: inverse depth = canonical inverse depth x width / focal length.
        inverse = output.predicted_depth.float() * (width / focal)[:, None, None]
        inverse = F.interpolate(inverse[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
        return inverse.clamp(MIN_INVERSE_DEPTH, MAX_INVERSE_DEPTH), focal, None

    return predict, 1 if device == "cpu" else 4


def focal_length_from_fov(fov_deg: Tensor, width_px: int) -> Tensor:
    """Focal length in pixels from the horizontal field of view in degrees: ``0.5 * width / tan(fov / 2)``."""
    return 0.5 * width_px / torch.tan(0.5 * torch.deg2rad(fov_deg))


# --- speed ------------------------------------------------------------------------------------------------------------


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
_Way = TypeVar("_Way")


def accelerate(network: nn.Module, linear: type[nn.Module], attention: Attention) -> nn.Module:
    """Exchange parts of transformers' Depth Pro for faster ones, in place."""
    net: Any = network.requires_grad_(False)
    patch_encoder, image_encoder = net.depth_pro.encoder.patch_encoder, net.depth_pro.encoder.image_encoder
    patch_encoder.model = _VisionTransformer(
        patch_encoder.model, linear, attention, keep=patch_encoder.intermediate_hook_ids
    )
    image_encoder.model = _VisionTransformer(image_encoder.model, linear, attention)
    if net.fov_model is not None:
        net.fov_model.fov_encoder.model = _VisionTransformer(net.fov_model.fov_encoder.model, linear, attention)
    fusion = net.fusion_stage
    fusion.intermediate, fusion.final = nn.ModuleList(map(_Fusion, fusion.intermediate)), _Fusion(fusion.final)
    net.head = _StripHead(net.head)
    for module in (net.depth_pro.neck, fusion, net.head):
        module.to(memory_format=torch.channels_last)
    return network


class _TorchLinear(nn.Module):
    """A product with its bias: on CPU, MKL in float32 and oneDNN in bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)

    def forward(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.weight, self.bias)

    def gelu(self, rows: Tensor) -> Tensor:
        return F.gelu(self(rows))

    def add(self, rows: Tensor, to: Tensor) -> Tensor:
        product: Tensor = self(rows)
        return product.add_(to)


class _ConvolutionLinear(_TorchLinear):
    """As a 1x1 convolution, which goes through oneDNN: faster where MKL does not like the processor."""

    def forward(self, rows: Tensor) -> Tensor:
        image = rows.reshape(1, -1, rows.shape[-1]).transpose(1, 2).unsqueeze(-1)
        image = F.conv2d(image, self.weight[:, :, None, None], self.bias)
        return image.squeeze(-1).transpose(1, 2).reshape(*rows.shape[:-1], -1)


class _PackedLinear(nn.Module):
    """oneDNN's product with packed weights and what follows it inside; what torch.compile uses on CPU."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, _PATCHES_AT_ONCE * 577)
        self.bias = nn.Parameter(bias, False)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        return out

    def gelu(self, rows: Tensor) -> Tensor:
        if rows.dtype == torch.float32:  # oneDNN's own GELU has an error of 5e-6
            return F.gelu(self(rows))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "gelu", [], "none")
        return out

    def add(self, rows: Tensor, to: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, to, self.weight, self.bias, "add")
        return out


def _attention_at_once(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of queries that are scaled already; each ``(pictures, heads, tokens, width)``."""
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)


def _attention_by_picture(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same in steps, one picture after the other, so that its scores stay in the cache."""
    attended = []
    for q, k, v in zip(query, key, value, strict=True):
        scores = torch.bmm(q.contiguous(), k.contiguous().transpose(1, 2))
        attended.append(torch.bmm(scores.softmax(-1), v.contiguous()))
    return torch.stack(attended)


@lru_cache
def fastest_linear(device: str, dtype: torch.dtype) -> type[nn.Module]:
    """The fastest way to a matrix product on this processor, found by measuring (two or three seconds)."""
    if device != "cpu":
        return _TorchLinear
    rows, weight = torch.randn(1, _PATCHES_AT_ONCE * 577, 1024, dtype=dtype), torch.randn(4096, 1024, dtype=dtype)
    layers: dict[type[nn.Module], Callable[[], object]] = {}
    for kind in (_TorchLinear, _ConvolutionLinear, _PackedLinear):
        with suppress(AttributeError, RuntimeError):  # a torch built without oneDNN
            layer: Any = kind(weight, weight[:, 0].contiguous())
            layer.gelu(rows)
            layers[kind] = partial(layer.gelu, rows)
    return _fastest(layers)


@lru_cache
def fastest_attention(device: str, dtype: torch.dtype) -> Attention:
    """The faster way to attention on this processor, found by measuring (half a second)."""
    if device != "cpu" or dtype == torch.float32:  # in float32 torch's own is the faster one, and the more exact
        return _attention_at_once
    query, key, value = torch.randn(_PATCHES_AT_ONCE, 577, 3, 16, 64, dtype=dtype).permute(2, 0, 3, 1, 4).unbind(0)
    ways: tuple[Attention, ...] = (_attention_at_once, _attention_by_picture)
    return _fastest({way: partial(way, query, key, value) for way in ways})


@torch.inference_mode()
def _fastest(ways: dict[_Way, Callable[[], object]]) -> _Way:
    """The way with the shortest time; in turns, so that a slow moment of the machine is not one way's alone."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(4):
        for way, work in ways.items():
            started = time.perf_counter()
            work()
            best[way] = min(best[way], time.perf_counter() - started)
    return min(best, key=lambda way: best[way])


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
        vit.encoder.layer = nn.ModuleList()  # let the old weights go

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        # On a GPU everything at once.
        at_once = _PATCHES_AT_ONCE if pixel_values.device.type == "cpu" else len(pixel_values)
        last, kept = zip(*(self._encode(patches) for patches in torch.split(pixel_values, at_once)), strict=True)
        # transformers counts the embedding as hidden state 0.
        hidden: Any = {layer + 1: torch.cat([part[layer] for part in kept]) for layer in self.keep}
        return BaseModelOutput(last_hidden_state=torch.cat(last), hidden_states=hidden)

    def _encode(self, patches: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        x = self.embeddings(patches)
        kept = {}
        for i, block in enumerate(self.blocks):
            b: Any = block
            n, tokens, width = x.shape
            qkv = b["qkv"](b["norm1"](x)).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            attended = self.attention(*qkv.unbind(0))
            x = b["out"].add(attended.transpose(1, 2).reshape(n, tokens, width), x)
            x = b["fc2"].add(b["fc1"].gelu(b["norm2"](x)), x)
            if i in self.keep:
                kept[i] = x
        return self.layernorm(x), kept


class _Residual(nn.Module):
    """A residual unit of the decoder, in place where it can be."""

    def __init__(self, unit: Any) -> None:
        super().__init__()
        if unit.use_batch_norm:
            raise DepthError("Depth Pro with batch norm in its decoder is not supported")
        self.first, self.second = unit.convolution1, unit.convolution2

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.second(F.relu_(self.first(F.relu(features))))
        return out.add_(features)


class _Fusion(nn.Module):
    """A step of the decoder that holds as few tensors as it can: at 768 x 768 each takes 0.3 GB in bfloat16."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.skip, self.refine = _Residual(layer.residual_layer1), _Residual(layer.residual_layer2)
        self.out = _fold(layer.deconv, layer.projection) if layer.use_deconv else layer.projection

    def forward(self, features: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            features = self.skip(skip).add_(features)
        out: Tensor = self.out(self.refine(features))
        return out


def _fold(deconvolution: nn.ConvTranspose2d, projection: nn.Conv2d) -> nn.ConvTranspose2d:
    """One deconvolution that does the work of a deconvolution without bias and the 1x1 convolution behind it."""
    folded = nn.ConvTranspose2d(deconvolution.in_channels, projection.out_channels, 2, stride=2)
    weight = torch.einsum("imhw,om->iohw", deconvolution.weight.float(), projection.weight[:, :, 0, 0].float())
    assert projection.bias is not None
    folded.weight = nn.Parameter(weight.to(projection.weight), False)
    folded.bias = nn.Parameter(projection.bias.detach(), False)
    return folded


class _StripHead(nn.Module):
    """The last layers: 3x3, deconvolution, then in float32 3x3, ReLU, 1x1, ReLU; strip by strip."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.first, self.deconvolution, self.second, _, self.third, _ = head.layers
        # 8 bits of bfloat16 here would show as bands in the depth.
        self.second.float()
        self.third.float()

    def forward(self, features: Tensor) -> Tensor:
        features = self.first(features)
        height, strips = features.shape[2], []
        for top in range(0, height, _STRIP_ROWS):
            bottom = min(top + _STRIP_ROWS, height)
            # One row more on either side, for the 3x3 convolution; at the border it is padding, as for the whole.
            above, below = int(top > 0), int(bottom < height)
            fine = self.deconvolution(features[:, :, top - above : bottom + below]).float()
            fine = F.relu(self.second(fine))
            fine = F.relu(self.third(fine))
            strips.append(fine[:, 0, 2 * above : fine.shape[2] - 2 * below])
        return torch.cat(strips, dim=1)


# --- Apple's file -----------------------------------------------------------------------------------------------------


def apple_config() -> Any:
    """Configuration of the network in Apple's ``depth_pro.pt``: three ViT-L/16, 952 M parameters."""
    from transformers import DepthProConfig

    # transformers' own default is a smaller network.
    vit = {
        "model_type": "dinov2",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 16,
        "image_size": 384,
        "use_mask_token": False,
    }
    return DepthProConfig(
        image_model_config=dict(vit), patch_model_config=dict(vit), fov_model_config=dict(vit), use_fov_model=True
    )


def apple_keys(layers: int) -> dict[str, list[str]]:
    """Names in Apple's file -> names in a checkpoint of transformers' port; three of them for a fused product.

    Args:
        layers: Layers of each vision transformer (24).
    """
    # As checkpoints spell it: transformers 5 renames attention's parts while it loads.
    vit = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.*": "embeddings.patch_embeddings.projection.*",
        "norm.*": "layernorm.*",
    }
    for i in range(layers):
        apple, port = f"blocks.{i}.", f"encoder.layer.{i}."
        vit |= {apple + name: port + name for name in ("norm1.*", "norm2.*", "mlp.fc1.*", "mlp.fc2.*")}
        vit |= {apple + f"ls{n}.gamma": port + f"layer_scale{n}.lambda1" for n in (1, 2)}
        vit |= {apple + "attn.proj.*": port + "attention.output.dense.*"}
        vit |= {apple + "attn.qkv.*": " ".join(f"{port}attention.attention.{p}.*" for p in ("query", "key", "value"))}
    encoder, neck, up = "depth_pro.encoder.", "depth_pro.neck.", "depth_pro.neck.feature_upsample."
    names = {
        "encoder.upsample_lowres.*": up + "image_block.layers.0.*",
        "encoder.fuse_lowres.*": neck + "fuse_image_with_low_res.*",
        "fov.encoder.1.*": "fov_model.fov_encoder.neck.*",
        "fov.downsample.0.*": "fov_model.conv.*",
    }
    towers = {
        "encoder.patch_encoder.": encoder + "patch_encoder.model.",
        "fov.encoder.0.": "fov_model.fov_encoder.model.",
    }
    towers["encoder.image_encoder."] = encoder + "image_encoder.model."
    for apple, port in towers.items():
        names |= {apple + a: " ".join(port + part for part in p.split()) for a, p in vit.items()}
    # The port counts scales from coarse to fine, Apple from fine to coarse.
    for i, steps in enumerate((4, 3)):
        names |= {
            f"encoder.upsample_latent{i}.{n}.weight": f"{up}intermediate.{1 - i}.layers.{n}.weight"
            for n in range(steps)
        }
    for i in range(3):
        names |= {f"encoder.upsample{i}.{n}.weight": f"{up}scaled_images.{2 - i}.layers.{n}.weight" for n in range(2)}
    for i in range(1, 5):
        names[f"decoder.convs.{i}.weight"] = f"{neck}feature_projection.projections.{4 - i}.weight"
    for i in range(5):
        apple, port = f"decoder.fusions.{i}.", f"fusion_stage.intermediate.{4 - i}." if i else "fusion_stage.final."
        for n, k in ((1, 1), (1, 2), (2, 1), (2, 2)):
            names[f"{apple}resnet{n}.residual.{2 * k - 1}.*"] = f"{port}residual_layer{n}.convolution{k}.*"
        names[apple + "out_conv.*"] = port + "projection.*"
        if i:
            names[apple + "deconv.weight"] = port + "deconv.weight"
    names |= {f"head.{n}.*": f"head.layers.{n}.*" for n in (0, 1, 2, 4)}
    names |= {f"fov.head.{n}.*": f"fov_model.head.layers.{n}.*" for n in (0, 2, 4)}
    keys: dict[str, list[str]] = {}
    for apple, port in names.items():
        for part in ("weight", "bias") if "*" in apple else ("",):
            keys[apple.replace("*", part)] = port.replace("*", part).split()
    return keys


def load_apple_weights(path: Path, config: Any) -> dict[str, Tensor]:
    """The weights of Apple's ``depth_pro.pt`` under the names of transformers' port.

    Raises:
        DepthError: The file can't be read as plain weights, or has a key too few or too many (the message names it).
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as exc:
        raise DepthError(f"{path} can't be read as PyTorch weights: {exc}") from exc
    keys = apple_keys(config.patch_model_config.num_hidden_layers)
    for problem, names in (("lacks", keys.keys() - weights.keys()), ("has unknown", weights.keys() - keys.keys())):
        if names:
            raise DepthError(f"{path} is not Apple's depth_pro.pt: it {problem} {', '.join(sorted(names)[:5])}")
    return {
        port: part
        for apple, ports in keys.items()
        for port, part in zip(ports, weights[apple].chunk(len(ports)), strict=True)
    }
