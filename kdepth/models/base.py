"""What a depth model is: frames of a clip go in, inverse depth comes out. Torch is imported when one is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kdepth.errors import DepthError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DepthKind = Literal["metric", "relative"]
MAX_HALF_FLOAT = 65504.0


class Predict(Protocol):
    """The function that a `DepthModel` is made of.

    Args:
        frames: uint8 ``(N, 3, H, W)`` RGB, N <= `DepthModel.batch_size`, on the model's device.
        focal_length_px: Focal length of the camera in pixels, or None where it is not known.
        before: The third value of the call for the frames just before these; None at a clip's start.

    Returns:
        Inverse depth ``(N, H, W)``, near is large; focal lengths ``(N,)`` in pixels, or None; and what the call for the
        next frames needs to know, or None.
    """

    def __call__(
        self, frames: Tensor, focal_length_px: float | None, before: object, /
    ) -> tuple[Tensor, Tensor | None, object]: ...


@dataclass(frozen=True, slots=True)
class ClipDepth:
    """Depth of some frames of a clip.

    Attributes:
        inverse_depth: float32 ``(N, H, W)``; finite, >= 0, at most 65504 (it is stored as half floats). 1/m for metric
            models, without unit, scale or shift for relative ones. Near is large.
        focal_length_px: float32 ``(N,)`` at the frames' size if the model estimates it or was given it, else None.
        memory: What the model needs to know of these frames when it sees the next ones.
    """

    inverse_depth: NDArray[np.float32]
    focal_length_px: NDArray[np.float32] | None
    memory: object = field(default=None, repr=False)


@dataclass(kw_only=True, repr=False, eq=False)
class DepthModel:
    """A loaded model. `load_model` makes it, or the ``load(device)`` of a Python file that `load_model` is given.

    Attributes:
        predict: The function that computes; the only positional argument.
        kind: ``"metric"`` (1/m) or ``"relative"``.
        name: ``small``, the hub's name of the checkpoint, or the name of the local folder or file.
        revision: The hub's commit, or ``sha256:`` and 12 hex digits of the local files. `load_model` sets it, and the
            name, for a model of your own.
        batch_size: How many frames `predict` gets at most, and a good number for `estimate`.
        device: Where `predict` wants its frames.
    """

    predict: Predict = field(kw_only=False)
    kind: DepthKind
    name: str = ""
    revision: str = ""
    batch_size: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.kind not in ("metric", "relative"):
            raise ValueError(f'kind={self.kind!r}: must be "metric" or "relative"')
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")

    @property
    def identity(self) -> str:
        """``name@revision``: what a row's ``depth_model`` says."""
        return f"{self.name}@{self.revision}"

    def __repr__(self) -> str:
        return f"DepthModel({self.identity}, {self.kind}, {self.device})"

    def estimate(
        self, frames: NDArray[np.uint8], *, focal_length_px: float | None = None, after: ClipDepth | None = None
    ) -> ClipDepth:
        """Estimate the inverse depth of some frames of a clip, in order.

        Args:
            frames: uint8 ``(N, H, W, 3)``, RGB.
            focal_length_px: Focal length of the camera at the frames' size, if known. Depth Pro takes it instead of
                estimating one, which is a little faster; other models ignore it.
            after: The result for the frames just before these. ``small`` averages over time where the picture stands
                still; with `after` a clip gives the same depth in however many calls.

        Raises:
            ValueError: Frames of another shape or type, or a focal length that is not positive.
            DepthError: The network gave values that are not finite, or a focal length that is not positive.
        """
        import torch

        if not isinstance(frames, np.ndarray):
            raise ValueError(f"frames must be a NumPy array, uint8 (N, H, W, 3), not a {type(frames).__name__}")
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
            raise ValueError(f"frames must be uint8 (N, H, W, 3) with N >= 1, not {frames.dtype} {frames.shape}")
        if focal_length_px is not None and not 0 < focal_length_px < float("inf"):
            raise ValueError(f"focal_length_px={focal_length_px!r}: must be a positive number of pixels")
        inverse_depths: list[NDArray[np.float32]] = []
        focal_lengths: list[NDArray[np.float32]] = []
        memory = None if after is None else after.memory
        with torch.inference_mode():
            for start in range(0, len(frames), self.batch_size):
                # Torch warns about arrays that can't be written to; decoders make such arrays.
                batch = np.require(frames[start : start + self.batch_size], requirements=["C", "W"])
                rgb = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2)
                inverse, focal, memory = self.predict(rgb, focal_length_px, memory)
                inverse_depths.append(self._checked_depth(inverse, batch.shape[:3]))
                if focal is not None:
                    focal_lengths.append(focal.float().cpu().numpy())
                    if not ((focal_lengths[-1] > 0) & (focal_lengths[-1] < np.inf)).all():
                        raise DepthError(f"{self.identity} gave a focal length of {focal_lengths[-1]} px")
        inverse_depth = inverse_depths[0] if len(inverse_depths) == 1 else np.concatenate(inverse_depths)
        return ClipDepth(inverse_depth, np.concatenate(focal_lengths) if focal_lengths else None, memory)

    def _checked_depth(self, inverse: Tensor, shape: tuple[int, ...]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = inverse.float().cpu().numpy()
        if found.shape != shape:
            raise DepthError(f"{self.identity} gave inverse depth {found.shape} of frames {shape}")
        # NumPy's minimum, because after one of torch's its threads would spin for a while.
        low, high = found.min(), found.max()
        if not (low >= 0 and high < np.inf):  # NaN compares false
            raise DepthError(f'{self.identity} gave depth that is not finite; try dtype="float32"')
        return np.minimum(found, MAX_HALF_FLOAT, out=found) if high > MAX_HALF_FLOAT else found


def check_depth_kind(depth_kind: DepthKind | None) -> None:
    """Raise `ValueError` if it is not a kind of depth, nor None."""
    if depth_kind not in (None, "metric", "relative"):
        raise ValueError(f'depth_kind={depth_kind!r}: must be "metric", "relative" or None')


def choose_dtype(device: str, dtype: str, *, on_gpu: str = "bfloat16") -> torch.dtype:
    """The type that a network computes in: `dtype`, or for ``"auto"`` bfloat16 where the hardware computes it.

    On a CPU that is two to six times as fast as float32 then, and slower elsewhere. A GPU without it takes float16, one
    with it `on_gpu`.
    """
    import torch

    if dtype == "auto":
        if device.startswith("cuda"):
            with torch.cuda.device(device):
                dtype = on_gpu if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        else:
            # Private in torch 2.8. They buy a factor of 2 (`small`) to 1.8 (Depth Pro); without them it is float32.
            names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
            there = device == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)
            dtype = "bfloat16" if there else "float32"
    found: torch.dtype = getattr(torch, dtype)
    return found
