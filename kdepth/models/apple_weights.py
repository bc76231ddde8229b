"""Apple's own file of Depth Pro, ``depth_pro.pt``, for the network of transformers' port."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# transformers' own default is a smaller network.
_VIT = {"model_type": "dinov2", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
_VIT |= {"patch_size": 16, "image_size": 384, "use_mask_token": False}
# Configuration of the network in Apple's ``depth_pro.pt``: three ViT-L/16, 952 M parameters.
APPLE_CONFIG: dict[str, Any] = {"model_type": "depth_pro", "use_fov_model": True}
APPLE_CONFIG |= {f"{part}_model_config": _VIT for part in ("image", "patch", "fov")}
_UPSAMPLE, _PROJECTIONS = "depth_pro.neck.feature_upsample.", "depth_pro.neck.feature_projection.projections."
# From Apple's names to those of a checkpoint of the port, one after the other: pattern and what it becomes.
_RENAMES = [
    (r"^encoder\.(patch|image)_encoder\.", r"depth_pro.encoder.\1_encoder.model."),
    (r"^fov\.encoder\.0\.", "fov_model.fov_encoder.model."),
    (r"\.cls_token$", ".embeddings.cls_token"),
    (r"\.pos_embed$", ".embeddings.position_embeddings"),
    (r"\.patch_embed\.proj\.", ".embeddings.patch_embeddings.projection."),
    (r"\.norm\.", ".layernorm."),
    (r"\.blocks\.", ".encoder.layer."),
    (r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1"),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"^fov\.encoder\.1\.", "fov_model.fov_encoder.neck."),
    (r"^fov\.downsample\.0\.", "fov_model.conv."),
    (r"^fov\.head\.", "fov_model.head.layers."),
    (r"^head\.", "head.layers."),
    (r"^encoder\.upsample_lowres\.", f"{_UPSAMPLE}image_block.layers.0."),
    (r"^encoder\.fuse_lowres\.", "depth_pro.neck.fuse_image_with_low_res."),
    # The port counts scales from coarse to fine, Apple from fine to coarse.
    *((rf"^encoder\.upsample_latent{i}\.", f"{_UPSAMPLE}intermediate.{1 - i}.layers.") for i in range(2)),
    *((rf"^encoder\.upsample{i}\.", f"{_UPSAMPLE}scaled_images.{2 - i}.layers.") for i in range(3)),
    *((rf"^decoder\.convs\.{i}\.", f"{_PROJECTIONS}{4 - i}.") for i in range(1, 5)),
    *((rf"^decoder\.fusions\.{i}\.", f"fusion_stage.intermediate.{4 - i}.") for i in range(1, 5)),
    (r"^decoder\.fusions\.0\.", "fusion_stage.final."),
    (r"\.resnet(\d)\.residual\.1\.", r".residual_layer\1.convolution1."),
    (r"\.resnet(\d)\.residual\.3\.", r".residual_layer\1.convolution2."),
    (r"\.out_conv\.", ".projection."),
]


def port_names(name: str) -> list[str]:
    """Names in a checkpoint of transformers' port for a name in Apple's file: three for query, key and value."""
    for pattern, becomes in _RENAMES:
        name = re.sub(pattern, becomes, name)
    # As checkpoints spell it: transformers 5 renames attention's parts while it loads.
    if ".attn.qkv." in name:
        return [name.replace(".attn.qkv.", f".attention.attention.{part}.") for part in ("query", "key", "value")]
    return [name]


def port_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of Apple's ``depth_pro.pt`` under the names of transformers' port."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        names = port_names(name)
        found |= zip(names, value.chunk(len(names)) if len(names) > 1 else [value], strict=True)
    return found
