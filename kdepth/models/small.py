"""The embedded depth network: an ImageNet-pretrained EfficientNet-Lite0 encoder and a light decoder.

It gives relative inverse depth from one picture and was trained on rendered scenes alone (`notebooks/train_small`).
EfficientNet: Tan & Le 2019, arXiv:1905.11946; Lite: no squeeze-and-excite, ReLU6. The decoder has the U-shape of
Ranftl et al. 2020 (MiDaS, arXiv:1907.01341) with dense 3x3 convolutions, which are faster on CPUs than depthwise ones.
"""

import hashlib
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import cv2
import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

from kdepth.errors import DepthError
from kdepth.models.base import DepthKind, Predict, choose_dtype
from kdepth.models.checkpoints import SMALL_WEIGHTS, Checkpoint

WEIGHTS_SHA256 = "176416514ec5c15326c848a1adc1f6f5ec2543b87c7078d81a001bdd798f1714"
LONG_SIDE_PX = 256  # of the network's input; trained at 192 to 256
MIN_SIDE_PX = 32  # of a frame
# Averaging over time: the share of the previous result that a pixel keeps if its colour did not change, and the change
# of colour, in levels of 255, at which 1/e of that share is left. Chosen on the still part of real video among .7 to .9
# and 4 to 20, and by looking at what moves there.
_KEPT, _SAME_COLOUR = 0.85, 20.0
# Frames that the network computes together. On a CPU it takes 10.3 ms of one core for each of 8, and 16 ms for one
# alone (bfloat16, 256 x 112); 16 or more are no faster.
_CPU_BATCH, _GPU_BATCH = 8, 32
# Stages of EfficientNet-Lite0: kernel, stride, expansion, channels out, repeats.
_STAGES = [(3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3)]
_STAGES += [(5, 2, 6, 192, 4), (3, 1, 6, 320, 1)]
_SKIPS = (0, 2, 4, 10, 15)  # blocks whose output the decoder sees: strides 2, 4, 8, 16, 32
_DECODER = (32, 48, 80, 112, 160)  # channels at these strides


class _Block(nn.Module):
    """Inverted residual; batch norm is folded into the convolutions."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = nn.Conv2d(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide)
        self.project = nn.Conv2d(wide, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else functional.relu6(self.expand(x))
        y = self.project(functional.relu6(self.depthwise(y)))
        out: Tensor = x + y if self.residual else y
        return out


class Encoder(nn.Module):
    """EfficientNet-Lite0 without its head: features at strides 2, 4, 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        blocks, channels = [], 32
        for kernel, stride, expansion, outputs, repeats in _STAGES:
            for n in range(repeats):
                blocks.append(_Block(channels, outputs, kernel, stride if n == 0 else 1, expansion))
                channels = outputs
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, features = functional.relu6(self.stem(x)), []
        for n, block in enumerate(self.blocks):
            x = block(x)
            if n in _SKIPS:
                features.append(x)
        return features


class _Fuse(nn.Module):
    """Doubles the resolution, joins the encoder's features, two 3x3 convolutions."""

    def __init__(self, coarse: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.join = nn.Conv2d(coarse + skip, outputs, 3, padding=1)
        self.refine = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        up = functional.interpolate(coarse, skip.shape[-2:], mode="bilinear")
        x = functional.relu(self.join(torch.cat((up, skip), 1)))
        return x + functional.relu(self.refine(x))


class Seen(NamedTuple):
    """A frame as the network saw it: picture (3, h, w) in [-1, 1] and inverse depth (h, w), averaged over time."""

    picture: Tensor
    inverse: Tensor


class SmallNetwork(nn.Module):
    """Encoder and decoder; see `follow` for use. Training calls `decode` and `invert`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        skips, d = (16, 24, 40, 112), _DECODER
        # The place in the picture (x, y) and the picture as a whole (mean) say much about a layout.
        self.coarse = nn.Conv2d(320 + 2, d[4], 1)
        self.whole = nn.Conv2d(320, d[4], 1)
        self.deep = nn.Conv2d(d[4], d[4], 3, padding=1)
        self.fuse = nn.ModuleList(_Fuse(d[n + 1], skips[n], d[n]) for n in (3, 2, 1, 0))
        self.head = nn.Conv2d(d[0], 4, 3, padding=1)  # four values a half-resolution pixel: the full resolution

    def decode(self, features: list[Tensor]) -> Tensor:
        """Decoder features at half the input's resolution."""
        top = features[4]
        height, width = top.shape[2:]
        y, x = (torch.linspace(-1, 1, side, device=top.device, dtype=top.dtype) for side in (height, width))
        place = [at.expand(len(top), 1, height, width) for at in (x, y[:, None])]
        out = functional.relu(self.coarse(torch.cat((top, *place), 1)) + self.whole(top.mean((2, 3), keepdim=True)))
        out = out + functional.relu(self.deep(out))
        for n, fuse in enumerate(self.fuse):
            out = fuse(out, features[3 - n])
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Inverse depth up to scale: RGB (N, 3, h, w) in [-1, 1], h and w even, to float32 (N, h, w) > 0, about 1."""
        return self.invert(self.decode(self.encoder(x)))

    def invert(self, decoded: Tensor) -> Tensor:
        """The last layer, in float32: from the decoder's features to inverse depth."""
        values = functional.pixel_shuffle(self.head(decoded.float()), 2)[:, 0]
        # One frame at a time: in larger tensors the last bit would depend on how many threads share them.
        return torch.stack([functional.softplus(value) for value in values]) + 1e-4

    def estimate(self, frames: Tensor) -> Tensor:
        """Relative inverse depth of frames of one clip, in order; see `follow`."""
        return self.follow(frames)[0]

    @torch.inference_mode()
    def follow(self, frames: Tensor, before: Seen | None = None) -> tuple[Tensor, Seen]:
        """Relative inverse depth of frames that follow each other in a clip, averaged over time (`steady`).

        In bfloat16 on a CPU a frame's bits depend neither on the number of threads nor on how a clip is cut into calls;
        in float32 and on a GPU both change it by less than 1e-5.

        Args:
            frames: uint8 (N, H, W, 3) RGB, H and W >= 32, N >= 1.
            before: The second value of the call for the frames just before these; None at a clip's start.

        Returns:
            float32 (N, H, W) on the network's device, > 0, near is large, known up to scale (and, in part, shift); and
            what the call for the next frames takes as `before`.

        Raises:
            ValueError: shape or dtype is not as above.
        """
        wrong = frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != torch.uint8
        if wrong or min(frames.shape[1:3]) < MIN_SIDE_PX or not len(frames):
            wanted = "uint8 (N >= 1, H >= 32, W >= 32, 3)"
            raise ValueError(f"frames must be {wanted}, got {frames.dtype} {tuple(frames.shape)}")
        height, width = frames.shape[1:3]
        scale = LONG_SIDE_PX / max(height, width)
        size = (max(32, round(height * scale / 16) * 16), max(32, round(width * scale / 16) * 16))
        last = before if before is not None and before.inverse.shape == size else None
        device = self.head.weight.device
        parts = []
        for some in torch.split(frames, _CPU_BATCH if device.type == "cpu" else _GPU_BATCH):
            found = []
            for picture, inverse in zip(*self._look(some.to(device), size), strict=True):
                last = Seen(picture, inverse if last is None else steady(Seen(picture, inverse), last))
                found.append(last.inverse)
            parts.append(_enlarge(torch.stack(found), (height, width)))
        assert last is not None
        # A copy: a view would keep the whole batch in memory.
        return parts[0] if len(parts) == 1 else torch.cat(parts), Seen(last.picture.clone(), last.inverse.clone())

    def _look(self, frames: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Pictures (N, 3, h, w) in [-1, 1] and inverse depth (N, h, w) at the network's size."""
        num_frames = len(frames)
        if frames.is_cuda:  # cuDNN plans all convolutions anew for another batch size, which takes 2.4 s of a core
            frames = torch.cat((frames, frames[-1:].expand(-num_frames % _GPU_BATCH, -1, -1, -1))).float()
        small = functional.interpolate(frames.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True)
        x = small.float().round() / 127.5 - 1
        pixels = x.to(self.coarse.weight.dtype).contiguous(memory_format=torch.channels_last)
        return x[:num_frames], self(pixels)[:num_frames]


def _enlarge(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, h, w) to (N, H, W), bilinear. OpenCV takes 0.1 ms for a frame of 848 x 360, torch 0.64 on a CPU."""
    if values.is_cuda:
        return functional.interpolate(values[:, None], size, mode="bilinear")[:, 0]
    large = np.empty((len(values), *size), np.float32)
    for value, out in zip(values.numpy(), large, strict=True):
        cv2.resize(value, size[::-1], dst=out, interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(large)


def steady(frame: Seen, before: Seen) -> Tensor:
    """A frame's inverse depth, averaged over time where the picture stands still.

    Where colours (means of 3 x 3 pixels) are those of the previous frame, most of its averaged result is kept: less the
    more they differ, and nothing where hardly anything is the same, as after a cut. The largest difference within
    5 x 5 pixels counts; otherwise a smooth cheek would stand still while eyes and mouth move on.
    """
    difference = _mean_around(frame.picture - before.picture, 3).abs().amax(0)
    difference = _around(difference, 5, torch.maximum)
    same = _mean_around(torch.exp(-((difference * (127.5 / _SAME_COLOUR)) ** 2)), 5)
    # Two pictures that have nothing to do with each other agree in about a tenth of their pixels.
    # Row by row: the last bit of a mean over all pixels would depend on how many threads share them.
    trust = ((same.mean(1).mean() - 0.15) / 0.15).clamp(0, 1)
    return frame.inverse.lerp(before.inverse, _KEPT * trust * same)


def _around(x: Tensor, size: int, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Join the ``size`` x ``size`` pixels around each: 0.2 ms on a CPU where torch's pooling takes 1.1 to 1.7."""
    x = functional.pad(x, (size // 2,) * 4)
    for dim in (-1, -2):
        x = reduce(join, (x.narrow(dim, i, x.shape[dim] - size + 1) for i in range(size)))
    return x


def _mean_around(x: Tensor, size: int) -> Tensor:
    """Mean of the pixels around each that lie in the picture."""
    return _around(x, size, torch.add) / _around(x.new_ones(x.shape[-2:]), size, torch.add)


def load_small(device: str = "cpu", dtype: torch.dtype | None = None) -> SmallNetwork:
    """The network with the package's weights, checked by their hash; all but the last layer in `dtype`, if given."""
    try:
        content = SMALL_WEIGHTS.read_bytes()
    except OSError as exc:
        raise DepthError(f"the embedded model's weights can't be read: {exc}") from exc
    digest = hashlib.sha256(content).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise DepthError(f"{SMALL_WEIGHTS} is damaged: its SHA-256 is {digest}, not {WEIGHTS_SHA256}")
    network = SmallNetwork()
    network.load_state_dict(load(content))
    network.to(device, dtype or choose_dtype(device, "auto")).to(memory_format=torch.channels_last)
    network.head.float()
    return network.eval().requires_grad_(False)


def load_small_network(checkpoint: Checkpoint, kind: DepthKind, device: str, dtype: str) -> tuple[Predict, int]:
    """The embedded network as the function that `DepthModel` calls, and a batch size; arguments as in `load_model`."""
    network = load_small(device, choose_dtype(device, dtype))

    def predict(frames: Tensor, focal_length_px: float | None, before: object) -> tuple[Tensor, None, Seen]:
        height, width = frames.shape[2:]
        if min(height, width) < MIN_SIDE_PX:
            raise DepthError(f"the embedded model can't take frames as small as {width}x{height}")
        inverse, last = network.follow(frames.permute(0, 2, 3, 1), before if isinstance(before, Seen) else None)
        return inverse, None, last

    return predict, _CPU_BATCH if device == "cpu" else _GPU_BATCH
