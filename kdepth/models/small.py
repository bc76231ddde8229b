"""The embedded depth network: an ImageNet-pretrained EfficientNet-Lite0 encoder and a light decoder.

Relative inverse depth from one picture, trained on rendered scenes alone (`notebooks/train_small`), 8 MB in float16.

EfficientNet: Tan & Le 2019, arXiv:1905.11946; Lite: no squeeze-and-excite, ReLU6. The decoder follows the U-shape of
Ranftl et
al. 2020 (MiDaS, arXiv:1907.01341) with dense 3x3 convolutions, which CPUs like better than depthwise ones.
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

from kdepth.errors import DepthError
from kdepth.models.transformers_models import has_bfloat16, resize_uint8

WEIGHTS_PATH = Path(__file__).parents[1] / "data" / "small.safetensors"
WEIGHTS_SHA256 = "176416514ec5c15326c848a1adc1f6f5ec2543b87c7078d81a001bdd798f1714"
LONG_SIDE_PX = 256  # of the network's input; trained at 192 to 256
# Of what stands still: the share of the frame before, and the difference of colour in levels of 255 at which 1/e of
# that share is left. Chosen on the still part of real video (.7 to .9, 4 to 20), and by looking at what moves there.
_KEPT, _SAME_COLOUR = 0.85, 20.0
# Difference of colours in [-1, 1] (root of the squared sum) at which a neighbour counts 1/sqrt(e) in upsampling.
_SIMILAR_COLOUR = 0.12
FRAMES_TOGETHER = 32  # of the network on a GPU
_ENLARGED_TOGETHER = 16  # frames on a GPU: at 640 x 360 some 300 MB
_LOCK = threading.Lock()  # the number of threads is the process's
Frame = tuple[Tensor, Tensor]  # a picture (3, h, w) at the network's size, and its inverse depth (h, w)
# Stages of EfficientNet-Lite0: kernel, stride, expansion, channels out, repeats.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_SKIPS = (0, 2, 4, 10, 15)  # blocks whose output the decoder sees: strides 2, 4, 8, 16, 32
_DECODER = (32, 48, 80, 112, 160)  # channels at these strides


class Convolution(nn.Conv2d):
    """A convolution and what follows it; once packed, oneDNN does both in one pass over the memory."""

    packed: Tensor | None = None

    def pack(self) -> None:
        """Lay the weights out as oneDNN reads them on this CPU; later changes of ``weight`` are not seen."""
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight.detach(), *geometry)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.packed is None else self._fused(x, "none", [])

    def relu(self, x: Tensor) -> Tensor:
        return functional.relu(self(x)) if self.packed is None else self._fused(x, "relu", [])

    def relu6(self, x: Tensor) -> Tensor:
        return functional.relu6(self(x)) if self.packed is None else self._fused(x, "hardtanh", [0.0, 6.0])

    def _fused(self, x: Tensor, name: str, numbers: list[float]) -> Tensor:
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        fused = torch.ops.mkldnn._convolution_pointwise  # what torch's own compiler calls
        out: Tensor = fused(x, self.packed, self.bias, *geometry, name, numbers, "")
        return out


class _Block(nn.Module):
    """Inverted residual; batch norm is folded into the convolutions."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = Convolution(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = Convolution(wide, wide, kernel, stride, kernel // 2, groups=wide)
        self.project = Convolution(wide, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand.relu6(x)
        y = self.project(self.depthwise.relu6(y))
        out: Tensor = x + y if self.residual else y
        return out


class Encoder(nn.Module):
    """EfficientNet-Lite0 without its head: features at strides 2, 4, 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, 3, 2, 1)
        blocks, channels = [], 32
        for kernel, stride, expansion, outputs, repeats in _STAGES:
            for n in range(repeats):
                blocks.append(_Block(channels, outputs, kernel, stride if n == 0 else 1, expansion))
                channels = outputs
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, features = self.stem.relu6(x), []
        for n, block in enumerate(self.blocks):
            x = block(x)
            if n in _SKIPS:
                features.append(x)
        return features


class _Fuse(nn.Module):
    """Doubles the resolution, joins the encoder's features, two 3x3 convolutions."""

    def __init__(self, coarse: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.join = Convolution(coarse + skip, outputs, 3, padding=1)
        self.refine = Convolution(outputs, outputs, 3, padding=1)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        up = functional.interpolate(coarse, skip.shape[-2:], mode="bilinear")
        x = self.join.relu(torch.cat((up, skip), 1))
        return x + self.refine.relu(x)


class SmallNetwork(nn.Module):
    """Encoder, decoder and guided upsampling; see `estimate` for use and `forward` for training."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        skips, d = (16, 24, 40, 112), _DECODER
        # Where in the picture (x, y) and what it is of as a whole (mean) decide much of a layout.
        self.coarse = Convolution(320 + 2, d[4], 1)
        self.whole = Convolution(320, d[4], 1)
        self.deep = Convolution(d[4], d[4], 3, padding=1)
        self.fuse = nn.ModuleList(_Fuse(d[n + 1], skips[n], d[n]) for n in (3, 2, 1, 0))
        self.head = nn.Conv2d(d[0], 4, 3, padding=1)  # four values a half-resolution pixel: the full resolution

    def features(self, x: Tensor) -> list[Tensor]:
        """Encoder features of a normalised picture; apart, so that training can freeze them."""
        features: list[Tensor] = self.encoder(x)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Decoder features at half the input's resolution."""
        top = features[4]
        y = (
            torch.linspace(-1, 1, top.shape[2], device=top.device, dtype=top.dtype)
            .view(1, 1, -1, 1)
            .expand(len(top), 1, *top.shape[2:])
        )
        x = (
            torch.linspace(-1, 1, top.shape[3], device=top.device, dtype=top.dtype)
            .view(1, 1, 1, -1)
            .expand(len(top), 1, *top.shape[2:])
        )
        out = functional.relu(self.coarse(torch.cat((top, x, y), 1)) + self.whole(top.mean((2, 3), keepdim=True)))
        out = out + self.deep.relu(out)
        for n, fuse in enumerate(self.fuse):
            out = fuse(out, features[3 - n])
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Inverse depth up to scale.

        Args:
            x: (N, 3, h, w), RGB scaled to [-1, 1], h and w even.

        Returns:
            float32 (N, h, w), > 0, of the order of 1 on average.
        """
        return self.invert(self.decode(self.features(x)))

    def invert(self, decoded: Tensor) -> Tensor:
        """The last layer, in float32."""
        return functional.softplus(functional.pixel_shuffle(self.head(decoded.float()), 2)[:, 0]) + 1e-4

    def estimate(self, frames: Tensor) -> Tensor:
        """Relative inverse depth of frames of one clip, in order; see `follow`."""
        return self.follow(frames)[0]

    @torch.inference_mode()
    def follow(self, frames: Tensor, before: Frame | None = None) -> tuple[Tensor, Frame]:
        """Relative inverse depth of frames that follow each other in a clip.

        The network sees each frame alone, and where the picture stands still its answers are averaged over time
        (`steady`), so the depth does too. On a CPU each frame is one thread's, and other threads take the next ones:
        on two cores at least half as fast again as both on one frame. There a frame's bits depend neither on how many
        threads there are nor on how a clip is cut into calls. A GPU takes all frames of a call at once.

        Args:
            frames: uint8 (N, H, W, 3) RGB, H and W >= 32, N >= 1.
            before: What the call for the frames right before these gave; None at a clip's start. Of frames of another
                size it is not looked at.

        Returns:
            ``(inverse depth, last frame)``: float32 (N, H, W) on the network's device, > 0, near = large, known up to
            scale (and, in part, shift); and what to give the call for the frames that follow.

        Raises:
            ValueError: shape or dtype is not as above.
        """
        wrong = frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != torch.uint8
        if wrong or min(frames.shape[1:3]) < 32 or not len(frames):
            raise ValueError(
                f"frames must be uint8 (N >= 1, H >= 32, W >= 32, 3), got {frames.dtype} {tuple(frames.shape)}"
            )
        height, width = frames.shape[1:3]
        scale = LONG_SIDE_PX / max(height, width)
        size = (max(32, round(height * scale / 16) * 16), max(32, round(width * scale / 16) * 16))
        if before is not None and before[1].shape != size:
            before = None
        device = self.head.weight.device
        frames = frames.to(device)
        return (self._follow_each if device.type == "cpu" else self._follow_together)(frames, size, before)

    def _look(self, frames: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Pictures (N, 3, h, w) in [-1, 1] and inverse depth (N, h, w) at the network's size."""
        x = resize_uint8(frames.permute(0, 3, 1, 2), size, "bilinear").float() / 127.5 - 1
        pixels = x.to(self.coarse.weight.dtype).contiguous(memory_format=torch.channels_last)
        return x, self.invert(self.decode(self.features(pixels)))

    def _follow_each(self, frames: Tensor, size: tuple[int, int], before: Frame | None) -> tuple[Tensor, Frame]:
        """Frame by frame, each in a thread."""
        out = torch.empty(frames.shape[:3])

        @torch.inference_mode()
        def look(frame: Tensor) -> Frame:
            x, inverse = self._look(frame[None], size)
            return x[0], inverse[0]

        @torch.inference_mode()
        def enlarge(n: int, last: Frame) -> None:
            out[n] = upsample(last[1][None], last[0][None], _scaled(frames[n : n + 1]))[0]

        with _one_thread() as threads, ThreadPoolExecutor(threads) as pool:
            # Alone in this thread: with every other one C's allocator opens a heap, which keeps what it once had.
            alone = threads == 1
            jobs = []
            for n, seen in enumerate(map(look, frames) if alone else pool.map(look, frames)):
                before = seen if before is None else (seen[0], steady(seen, before))
                if alone:
                    enlarge(n, before)
                else:
                    jobs.append(pool.submit(enlarge, n, before))
            for job in jobs:
                job.result()
        assert before is not None
        return out, before

    def _follow_together(self, frames: Tensor, size: tuple[int, int], before: Frame | None) -> tuple[Tensor, Frame]:
        """All frames at once, for a GPU, which a single one does not fill; only the average over time is one by one."""
        # With another number of frames cuDNN would plan all convolutions anew, which takes 2.4 s of a core.
        filling = frames[-1:].expand(-len(frames) % FRAMES_TOGETHER, *frames.shape[1:])
        x, inverse = (part[: len(frames)] for part in self._look(torch.cat((frames, filling)), size))
        picture_before, last = before or (x[0], inverse[0])
        for own, kept in zip(inverse, _kept(x, torch.cat((picture_before[None], x[:-1]))), strict=True):
            last = own.lerp_(last, kept)
        parts = [torch.split(part, _ENLARGED_TOGETHER) for part in (inverse, x, frames)]
        out = [upsample(values, guide, _scaled(some)) for values, guide, some in zip(*parts, strict=True)]
        return torch.cat(out), (x[-1].clone(), last.clone())


def _scaled(frames: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1]."""
    return frames.permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1)


@contextlib.contextmanager
def _one_thread() -> Iterator[int]:
    """In the block torch computes with one thread, also in threads that start there; gives the number before."""
    with _LOCK:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums are the same then, whatever the machine has
        try:
            yield threads
        finally:
            torch.set_num_threads(threads)


def steady(frame: Frame, before: Frame) -> Tensor:
    """A frame's inverse depth, averaged over time where the picture stands still.

    A network that sees single frames changes its mind with the grain. Where colours (means of 3 x 3 pixels) are those
    of the frame before, most of that one's result is kept; the more they differ the less, and nothing where hardly
    anything is the same: a cut, a fast pan. The largest difference within 5 x 5 pixels counts, or a smooth cheek would
    stand still while eyes and mouth move on.

    Args:
        frame, before: Picture (3, h, w) in [-1, 1] and inverse depth (h, w); that of ``before`` averaged already.
    """
    (picture, inverse), (picture_before, inverse_before) = frame, before
    return inverse.lerp(inverse_before, _kept(picture, picture_before))


def _kept(picture: Tensor, before: Tensor) -> Tensor:
    """The share of the result before that each pixel keeps: (..., h, w) of pictures (..., 3, h, w)."""
    difference = _mean_around(picture - before, 3).abs().amax(-3)
    difference = _around(difference, 5, torch.maximum)
    same = _mean_around(torch.exp(-((difference * (127.5 / _SAME_COLOUR)) ** 2)), 5)
    # Two pictures that have nothing to do with each other agree in about a tenth of their pixels.
    trust = ((same.mean((-2, -1), keepdim=True) - 0.15) / 0.15).clamp(0, 1)
    return _KEPT * trust * same


def _around(x: Tensor, size: int, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Of each pixel of (..., h, w) the ``size`` x ``size`` around it, joined; outside the picture is 0.

    As torch's pooling, but by whole rows: 5 to 13 times as fast on a CPU.
    """
    x = functional.pad(x, (size // 2,) * 4)
    for dim in (-1, -2):
        x = reduce(join, (x.narrow(dim, i, x.shape[dim] - size + 1) for i in range(size)))
    return x


def _mean_around(x: Tensor, size: int) -> Tensor:
    """Mean of the pixels around each that lie in the picture."""
    return _around(x, size, torch.add) / _around(x.new_ones(x.shape[-2:]), size, torch.add)


def upsample(values: Tensor, guide: Tensor, picture: Tensor) -> Tensor:
    """Joint bilateral upsampling: bilinear, but a neighbour counts the less the more its colour differs.

    Edges of the result then lie where the picture has them (Kopf et al. 2007, "Joint Bilateral Upsampling").

    Args:
        values: float32 (N, h, w).
        guide: float32 (N, 3, h, w), the small pictures that ``values`` belong to.
        picture: float32 (N, 3, H, W), the large pictures.

    Returns:
        float32 (N, H, W).
    """
    (n, h, w), (height, width) = values.shape, picture.shape[2:]
    rows = torch.cat((values[:, None], guide), 1).view(-1, w)
    y = ((torch.arange(height, device=values.device) + 0.5) * (h / height) - 0.5).clamp(0, h - 1)
    x = ((torch.arange(width, device=values.device) + 0.5) * (w / width) - 0.5).clamp(0, w - 1)
    y0, x0 = y.floor().long().clamp(max=max(h - 2, 0)), x.floor().long().clamp(max=max(w - 2, 0))
    total, weights = torch.zeros_like(picture[:, 0]), torch.zeros_like(picture[:, 0])
    for dx in (0, 1):
        wx = (x - x0) if dx else 1 - (x - x0)
        columns = rows.index_select(1, x0 + dx).view(4 * n, h, width)  # of a matrix: three times as fast
        for dy in (0, 1):
            wy = (y - y0) if dy else 1 - (y - y0)
            value, *colours = columns.index_select(1, y0 + dy).view(n, 4, height, width).unbind(1)
            weight = torch.zeros_like(value)
            for colour, wanted in zip(colours, picture.unbind(1), strict=True):
                weight += colour.sub_(wanted).square_()
            weight.mul_(-0.5 / _SIMILAR_COLOUR**2).exp_().add_(1e-3).mul_(wy[:, None] * wx)
            total.addcmul_(weight, value)
            weights.add_(weight)
    return total.div_(weights)


def fast_dtype(device: str = "cpu") -> torch.dtype:
    """bfloat16 where the hardware computes it, else float32."""
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def load_small(device: str = "cpu", dtype: torch.dtype | None = None) -> SmallNetwork:
    """The network with the weights of the package, in eval mode.

    Args:
        device: Where to run.
        dtype: Of all layers but the last, which is float32; None: what is fast there (`fast_dtype`).

    Raises:
        DepthError: The weights file is missing or not the one that belongs to this source.
    """
    try:
        content = WEIGHTS_PATH.read_bytes()
    except OSError as error:
        raise DepthError(f"the embedded model's weights can't be read: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise DepthError(f"{WEIGHTS_PATH} is damaged: its SHA-256 is {digest}, not {WEIGHTS_SHA256}")
    network = SmallNetwork()
    network.load_state_dict(load(content))
    network.to(device=device, dtype=dtype or fast_dtype(device))
    network.to(memory_format=torch.channels_last)
    network.head.float()
    there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if there and device == "cpu" and dtype in (None, torch.float32, fast_dtype()):
        for layer in network.modules():
            if isinstance(layer, Convolution):
                layer.pack()
    return network.eval().requires_grad_(False)
