"""The families of depth models that kdepth knows, and what each one's output means.

One more is an entry here; `transformers_models` has the names of a network's last layers, which compute in float32.
"""

from __future__ import annotations

from typing import cast

from kdepth.errors import DepthError, printable
from kdepth.models.base import DepthKind
from kdepth.models.checkpoints import Checkpoint

# ``model_type`` -> metres, or relative inverse depth; None: its configuration says, or (DPT) the caller alone can.
_FAMILIES = {"depth_pro": "metric", "depth_anything": None, "zoedepth": "metric", "glpn": "metric", "dpt": None}
_FAMILIES |= {"tipsv2_dpt": "metric", "small": "relative"}
_REFUSED = {
    "prompt_depth_anything": "it needs measured depth as a prompt, and a video has none",
    "chmv2": "it gives the height of trees seen from above, not the depth of a scene",
}


def depth_kind_of(checkpoint: Checkpoint, asked: DepthKind | None) -> DepthKind:
    """What a checkpoint's network gives, by its configuration, or as `asked` where that does not say.

    Raises:
        ValueError: The configuration says otherwise than the caller.
        DepthError: Neither says it, or kdepth does not know how to read the family's output.
    """
    name, family = checkpoint.name, str(checkpoint.config.get("model_type"))
    if (reason := _REFUSED.get(family)) or family not in _FAMILIES:
        known = f"kdepth does not know what it gives; it knows {', '.join(_FAMILIES)}"
        raise DepthError(f"{name}: models of type {printable(repr(family), 100)} can't be used: {reason or known}")
    kind = _FAMILIES[family]
    if family == "depth_anything":  # not by max_depth: relative checkpoints have one, too: 1
        kind = checkpoint.config.get("depth_estimation_type", "relative")
        if kind not in ("metric", "relative"):
            raise DepthError(f"{name}: unknown depth_estimation_type {printable(repr(kind), 100)} in its configuration")
    if kind and asked not in (None, kind):
        raise ValueError(f"depth_kind={asked!r}: the configuration of {name} says {kind!r}")
    if not (kind or asked):
        raise DepthError(
            f"{name}: the configuration of a DPT checkpoint does not say what it gives; add "
            "depth_kind='relative' (MiDaS: dpt-large, dpt-hybrid-midas, dpt-beit-*, dpt-swinv2-*) or "
            "depth_kind='metric' (depth in metres: dpt-dinov2-*-nyu, dpt-dinov2-*-kitti)"
        )
    return cast(DepthKind, kind or asked)
