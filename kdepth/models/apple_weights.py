"""Apple's own file of Depth Pro, ``depth_pro.pt``, for the network of transformers' port."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdepth.errors import DepthError, printable

if TYPE_CHECKING:
    from torch import Tensor

# transformers' own default is a smaller network.
_VIT = {
    "model_type": "dinov2",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 16,
    "image_size": 384,
    "use_mask_token": False,
}
# Configuration of the network in Apple's ``depth_pro.pt``: three ViT-L/16, 952 M parameters.
APPLE_CONFIG: dict[str, Any] = {
    "model_type": "depth_pro",
    "image_model_config": _VIT,
    "patch_model_config": _VIT,
    "fov_model_config": _VIT,
    "use_fov_model": True,
}


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
        "encoder.image_encoder.": encoder + "image_encoder.model.",
        "fov.encoder.0.": "fov_model.fov_encoder.model.",
    }
    for apple, port in towers.items():
        names |= {apple + a: " ".join(port + part for part in p.split()) for a, p in vit.items()}
    # The port counts scales from coarse to fine, Apple from fine to coarse.
    for i, steps in enumerate((4, 3)):
        for n in range(steps):
            names[f"encoder.upsample_latent{i}.{n}.weight"] = f"{up}intermediate.{1 - i}.layers.{n}.weight"
    for i in range(3):
        for n in range(2):
            names[f"encoder.upsample{i}.{n}.weight"] = f"{up}scaled_images.{2 - i}.layers.{n}.weight"
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


def port_weights(weights: Mapping[str, Tensor], layers: int, file: str) -> dict[str, Tensor]:
    """The weights of Apple's ``depth_pro.pt`` under the names of transformers' port.

    Args:
        weights: The file's content.
        layers: Layers of each vision transformer.
        file: Its name, for errors.

    Raises:
        DepthError: There is a key too few or too many (the message names it).
    """
    keys = apple_keys(layers)
    for problem, names in (("lacks", keys.keys() - weights.keys()), ("has unknown", weights.keys() - keys.keys())):
        if names:
            some = printable(", ".join(sorted(map(str, names))[:5]))
            raise DepthError(f"{file} is not Apple's depth_pro.pt: it {problem} {some}")
    return {
        port: part
        for apple, ports in keys.items()
        for port, part in zip(ports, weights[apple].chunk(len(ports)), strict=True)
    }
