"""Small checkpoints with random weights, of the real architectures, for tests."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers  # its classes are loaded when they are asked for: together they take 2 s
from safetensors.torch import load_file, save_file

from kdepth.models.base import DepthKind


def depth_pro_config(*, patch_size: int = 64, layers: int = 2, **options: Any) -> transformers.DepthProConfig:
    vit = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=patch_size,
        patch_size=16,
        use_mask_token=False,
    ).to_dict()
    return transformers.DepthProConfig(
        patch_size=patch_size,
        fusion_hidden_size=16,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[16, 16],
        num_fov_head_layers=2,
        image_model_config=dict(vit),
        patch_model_config=dict(vit),
        fov_model_config=dict(vit),
        **{"use_fov_model": True, "scaled_images_feature_dims": [32, 32, 16], **options},
    )


def depth_anything_config(**options: Any) -> transformers.DepthAnythingConfig:
    backbone = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=56,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    return transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        head_hidden_size=8,
        **options,
    )


def depth_anything_metric_config() -> transformers.DepthAnythingConfig:
    return depth_anything_config(depth_estimation_type="metric", max_depth=20)


def dpt_config() -> transformers.DPTConfig:
    return transformers.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        is_hybrid=False,
    )


def glpn_config() -> transformers.GLPNConfig:
    return transformers.GLPNConfig(
        hidden_sizes=[32, 32, 64, 64],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=16,
        max_depth=10,
    )


def zoedepth_config() -> transformers.ZoeDepthConfig:
    backbone = transformers.BeitConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        use_relative_position_bias=True,
        reshape_hidden_states=False,
        out_indices=[1, 2, 3, 4],
    )
    return transformers.ZoeDepthConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        bottleneck_features=16,
        num_attractors=[4, 3, 2, 1],
        bin_embedding_dim=16,
        num_relative_features=8,
        bin_configurations=[{"n_bins": 16, "min_depth": 0.001, "max_depth": 10.0}],
    )


def tipsv2_dpt_config() -> transformers.Tipsv2DptConfig:
    backbone = transformers.Tipsv2VisionConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=56,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    return transformers.Tipsv2DptConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        num_depth_bins=16,
        max_depth=10.0,
    )


# What the checkpoints on the hub have in their preprocessor_config.json, at the tiny networks' sizes.
PROCESSORS: dict[str, dict[str, Any]] = {
    "depth_pro": {"image_processor_type": "DepthProImageProcessor", "size": {"height": 256, "width": 256}},
    "depth_anything": {
        "image_processor_type": "DPTImageProcessor",
        "size": {"height": 56, "width": 56},
        "keep_aspect_ratio": True,
        "ensure_multiple_of": 14,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
    },
    "dpt": {"image_processor_type": "DPTImageProcessor", "size": {"height": 64, "width": 64}},
    "glpn": {"image_processor_type": "GLPNImageProcessor", "do_rescale": True, "resample": 2, "size_divisor": 32},
    "zoedepth": {
        "image_processor_type": "ZoeDepthImageProcessor",
        "size": {"height": 64, "width": 96},
        "ensure_multiple_of": 32,
        "keep_aspect_ratio": True,
    },
    "tipsv2_dpt": {"image_processor_type": "Tipsv2DptImageProcessor", "size": {"height": 56, "width": 56}},
}


def apple_keys(layers: int) -> dict[str, list[str]]:
    """Names in Apple's file -> names in a checkpoint of the port, from its source; three for a product.

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


def make_network(config: transformers.PreTrainedConfig, seed: int = 0) -> transformers.PreTrainedModel:
    """A network with random weights, tamed so that it behaves like a trained one.

    Its output depends on the input, stays clear of the last ReLU's zeros and of the sigmoid's ends, and does not
    amplify rounding errors; biases and layer scales are not the neutral ones of the initialisation.
    """
    torch.manual_seed(seed)
    network = transformers.AutoModelForDepthEstimation.from_config(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.02)
            elif "lambda" in name:
                parameter.uniform_(0.2, 0.6)
        if config.model_type == "depth_pro":
            network.head.layers[4].weight.abs_()
            network.head.layers[4].bias.fill_(0.2)
            if network.fov_model is not None:
                network.fov_model.head.layers[4].bias.fill_(50.0)  # degrees
        elif config.model_type == "dpt":
            network.head.head[4].weight.abs_()
            network.head.head[4].bias.fill_(0.2)
        elif config.model_type == "depth_anything" and config.depth_estimation_type == "relative":
            network.head.conv3.weight.abs_()
            network.head.conv3.bias.fill_(0.2)
    return network.eval()


def save_checkpoint(folder: Path, config: transformers.PreTrainedConfig, seed: int = 0) -> transformers.PreTrainedModel:
    """Write ``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` to a folder."""
    network = make_network(config, seed)
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[config.model_type]))
    return network


class Family(NamedTuple):
    """A family with what its convention makes of a network whose last bias alone decides the output."""

    make_config: Callable[[], Any]
    kind: DepthKind
    asked: DepthKind | None = None
    last_layer: str = ""  # empty: there is no one layer that decides
    output: float = 0.0
    inverse_depth: float = 0.0


FAMILIES = {
    # Canonical inverse depth 0.3, seen with a field of view of 50 degrees.
    "depth-pro": Family(depth_pro_config, "metric", None, "head.layers.4", 0.3, 0.6 * math.tan(math.radians(25))),
    "depth-anything": Family(depth_anything_config, "relative", None, "head.conv3", 3.0, 3.0),
    # Half of 20 m, half of 10 m.
    "depth-anything-metric": Family(depth_anything_metric_config, "metric", None, "head.conv3", 0.0, 1 / 10),
    "glpn": Family(glpn_config, "metric", None, "head.head.2", 0.0, 1 / 5),
    "zoedepth": Family(zoedepth_config, "metric"),
    # All of 16 bins from 1 mm to 10 m alike.
    "tipsv2-dpt": Family(tipsv2_dpt_config, "metric", None, "depth_head.depth_head", 1.0, 2 / 10.001),
    "dpt": Family(dpt_config, "relative", "relative", "head.head.4", 4.0, 4.0),
    "dpt-metric": Family(dpt_config, "metric", "metric", "head.head.4", 4.0, 1 / 4),
}


def save_constant_checkpoint(folder: Path, family: Family) -> None:
    """A checkpoint that gives `Family.inverse_depth` everywhere."""
    save_checkpoint(folder, family.make_config())
    weights = load_file(folder / "model.safetensors")
    weights[family.last_layer + ".weight"][:] = 0
    weights[family.last_layer + ".bias"][:] = family.output
    if family.make_config is depth_pro_config:
        weights["fov_model.head.layers.4.weight"][:] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
