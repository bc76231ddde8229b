"""Depth Pro (Bochkovskii et al. 2024, "Depth Pro: Sharp Monocular Metric Depth in Less Than a Second", 2410.02073).

The network is the one of `transformers`, with parts exchanged for faster ones that compute the same:

- its three vision transformers work on a few patches at a time, so that what they need stays in the processor's cache,
  with query, key and value in one product, scales folded into the weights, and the activation inside the product; which
  of several ways to products and attention is fast on a processor is measured when the model is loaded;
- its convolutions see their data channels-last, which oneDNN is up to seven times faster with;
- each deconvolution of the decoder takes the convolution behind it into its weights, and on a CPU 3x3 convolutions take
  a quarter of the products in float32 and half of them in bfloat16;
- the decoder makes the encoder's features of a size when it comes to that size, and goes over its pictures in strips:
  all at once would need 3 GB more, in float32;
- the patches are cut without `unfold`, which takes a quarter of a GPU's time.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdepth.errors import DepthError
from kdepth.heap import keep_freed_memory, return_freed_memory
from kdepth.models import Predict

MIN_INVERSE_DEPTH, MAX_INVERSE_DEPTH = 1e-4, 1e4  # 1/m: the clamp of Apple's code

# No tensor should have the 32 MiB from which on the C library asks the system for memory each time, which was a twelfth
# of the time of five patches in float32: neither their widest, 577 x 4096 each, nor a strip, 768 x 256 a row. Of the
# finest features each row becomes eight: strips are a multiple of that.
_PATCHES_AT_ONCE = {torch.float32: 2, torch.bfloat16: 5, torch.float16: 5}
_STRIP_ROWS = {torch.float32: 16, torch.bfloat16: 64, torch.float16: 64}


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


# --- speed ------------------------------------------------------------------------------------------------------------


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
_Way = TypeVar("_Way")


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
        self.decoder = _Decoder(network, convolution).to(memory_format=torch.channels_last)

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
        """In place: `to` is what is given back."""
        return to.add_(self(rows))


class _PackedLinear(nn.Module):
    """The same as a 1x1 convolution, with what follows it inside and its weights in oneDNN's layout.

    A matrix product of oneDNN's own is up to a tenth slower, with one patch. What torch.compile uses on a CPU.

    Args:
        weight: ``(groups x out, in)``.
        bias: ``(groups x out,)``.
        rows: How many will come at a time, mostly: the layout depends on it.
        groups: Products side by side: each has its own part of a row, ``in`` numbers, and of the result.
    """

    def __init__(self, weight: Tensor, bias: Tensor, rows: tuple[int, int] | None = None, *, groups: int = 1) -> None:
        super().__init__()
        n, count = rows or (_PATCHES_AT_ONCE[weight.dtype], 577)
        self.geometry = ((0, 0), (1, 1), (1, 1), groups)  # padding, stride, dilation
        size = [n, groups * weight.shape[1], count, 1]
        weight = weight[:, :, None, None].contiguous()
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry, size)
        self.bias = nn.Parameter(bias, False)

    def forward(self, rows: Tensor) -> Tensor:
        return self._product(rows, "none")

    def gelu(self, rows: Tensor) -> Tensor:
        return self._product(rows, "gelu")

    def add(self, rows: Tensor, to: Tensor) -> Tensor:
        add = torch.ops.mkldnn._convolution_pointwise_.binary
        add(_as_picture(to), _as_picture(rows), self.weight, self.bias, *self.geometry, "add", 1.0, None, [], None)
        return to

    def _product(self, rows: Tensor, then: str) -> Tensor:
        picture = _as_picture(rows)
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            picture, self.weight, self.bias, *self.geometry, then, [], "none"
        )
        return out.squeeze(3).transpose(1, 2)


def _as_picture(rows: Tensor) -> Tensor:
    """Of rows ``(N, count, C)`` a picture of the width 1, channels-last."""
    return rows.unsqueeze(2).permute(0, 3, 1, 2)


def _attention_at_once(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of queries that are scaled already; each ``(pictures, heads, tokens, width)``."""
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)


def _attention_in_steps(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same in steps, two heads a thread after the other, so that their scores stay in the cache.

    Of whole sixteens of tokens, which oneDNN is an eighth faster with.
    """
    n, heads, tokens, width = query.shape
    padded = query.new_zeros((3, n, heads, tokens + -tokens % 16, width))
    for part, own in zip(padded, (query, key, value), strict=True):
        part[:, :, :tokens] = own
    attended = torch.empty_like(padded[0])
    steps = (torch.split(part.flatten(0, 1), 2 * torch.get_num_threads()) for part in (*padded, attended))
    for q, k, v, out in zip(*steps, strict=True):
        scores = torch.bmm(q, k.transpose(1, 2))
        scores[..., tokens:] = -math.inf
        torch.bmm(scores.softmax(-1), v, out=out)
    return attended[:, :, :tokens]


@lru_cache
def fastest_linear(device: str, dtype: torch.dtype) -> type[nn.Module]:
    """The fastest way to a matrix product on this processor, found by measuring (two seconds)."""
    if device != "cpu":
        return _TorchLinear
    rows = torch.randn(1, _PATCHES_AT_ONCE[dtype] * 577, 1024, dtype=dtype)
    weight = torch.randn(4096, 1024, dtype=dtype)
    layers: dict[type[nn.Module], Callable[[], object]] = {}
    for kind in (_TorchLinear, _PackedLinear):
        with suppress(AttributeError, RuntimeError):  # a torch built without oneDNN
            layer: Any = kind(weight, weight[:, 0].contiguous())
            layer.gelu(rows)
            layers[kind] = partial(layer.gelu, rows)
    return _fastest(layers)


@lru_cache
def fastest_attention(device: str, dtype: torch.dtype) -> Attention:
    """The faster way to attention on this processor, found by measuring (a second)."""
    if device != "cpu":
        return _attention_at_once
    tokens = torch.randn(_PATCHES_AT_ONCE[dtype], 577, 3, 16, 64, dtype=dtype)
    query, key, value = tokens.permute(2, 0, 3, 1, 4).unbind(0)
    ways: tuple[Attention, ...] = (_attention_at_once, _attention_in_steps)
    return _fastest({way: partial(way, query, key, value) for way in ways})


def fastest_convolution(device: str, dtype: torch.dtype) -> type[nn.Module]:
    """What makes a 3x3 convolution of the decoder fast."""
    there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device != "cpu" or not there or dtype == torch.float16:  # in which what lies in between could be too large
        return _Direct
    return _Winograd if dtype == torch.float32 else _WinogradAlongRows


@torch.inference_mode()
def _fastest(ways: dict[_Way, Callable[[], object]]) -> _Way:
    """The way with the shortest time; in turns, so that a slow moment of the machine is not one way's alone."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(8):
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
        at_once = _PATCHES_AT_ONCE[patches.dtype] if patches.device.type == "cpu" else len(patches)
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


class _Strip(NamedTuple):
    """Some rows of a picture, which is gone through from top to bottom.

    A 3x3 convolution takes a row more on either side. That above was in the strip before, and `kept` has it; that below
    comes with the next one: what a convolution gives is a row behind what it was given, and no row is made twice.
    """

    top: int
    bottom: int
    height: int
    kept: dict[nn.Module, Tensor]  # by whom they are for

    @property
    def ends(self) -> tuple[bool, bool]:
        """Whether the picture ends above them, and below."""
        return self.top == 0, self.bottom == self.height

    def enlarge(self, picture: Tensor, layer: nn.Module, behind: int) -> Tensor:
        """These rows, or those that lie `behind` them, of what `layer` makes of a picture's pixels, each by itself."""
        scale = self.height // picture.shape[2]
        above, below = self.ends
        top, bottom = self.top - (0 if above else behind), self.bottom - (0 if below else behind)
        rows: Tensor = layer(picture[:, :, top // scale : bottom // scale])
        return rows

    def around(
        self, layer: nn.Module, rows: Tensor, *, relu: bool, columns: int = 0, tile: tuple[int, int] = (1, 1)
    ) -> Tensor:
        """A copy of rows ``(N, C, H, W)`` with those above them, and with zeros where the picture ends.

        Args:
            layer: What takes them, a strip after the other.
            rows: What follows those of the strip before.
            relu: Set what is negative to 0.
            columns: Of zeros on either side; and so many more on the right, and below, that
            tile: divides, in height and width, what is left of a 3x3 convolution.
        """
        above, below = self.ends
        n, channels, height, width = rows.shape
        known = 1 if above else 2
        size = (known + height + below, 2 * columns + width)
        more = [(2 - side) % of for side, of in zip(size, tile, strict=True)]
        padded = rows.new_empty((n, size[0] + more[0], size[1] + more[1], channels)).permute(0, 3, 1, 2)
        if columns:
            padded[..., :columns], padded[..., columns + width :] = 0, 0
        inner = padded[..., columns : columns + width]
        inner[:, :, :known] = 0 if above else self.kept[layer]
        inner[:, :, known + height :] = 0
        own = inner[:, :, known : known + height]
        torch.clamp_min(rows, 0, out=own) if relu else own.copy_(rows)
        if not below:
            self._keep(layer, inner[:, :, height + known - 2 : height + known])
        return padded

    def add_behind(self, layer: nn.Module, out: Tensor, rows: Tensor) -> Tensor:
        """Add rows to those that `layer` made of them with two convolutions, in place."""
        above, below = self.ends
        known = 0 if above else 2
        if known:
            out[:, :, :known] += self.kept[layer]
        own = out.shape[2] - known
        out[:, :, known:] += rows[:, :, :own]
        if not below:
            self._keep(layer, rows[:, :, own:])
        return out

    def _keep(self, layer: nn.Module, rows: Tensor) -> None:
        """Always at the same place: between others that come and go, small tensors would break the heap into pieces."""
        if layer in self.kept:
            self.kept[layer].copy_(rows)
        else:
            self.kept[layer] = rows.clone()


def _strips(height: int, dtype: torch.dtype) -> list[_Strip]:
    """A picture of some height from top to bottom."""
    rows, kept = _STRIP_ROWS[dtype], dict[nn.Module, Tensor]()
    return [_Strip(top, min(top + rows, height), height, kept) for top in range(0, height, rows)]


def _fill(picture: Tensor, parts: Iterable[Tensor]) -> Tensor:
    """Write rows into a picture, in place, a part after the other."""
    done = 0
    for rows in parts:
        picture[:, :, done : done + rows.shape[2]] = rows
        done += rows.shape[2]
    return picture


class _Direct(nn.Module):
    """A 3x3 convolution of a strip of a picture."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, rows: Tensor, strip: _Strip) -> Tensor:
        return F.conv2d(strip.around(self, rows, relu=False), self.weight, self.bias, padding=(0, 1))

    def between_relus(self, rows: Tensor, strip: _Strip) -> Tensor:
        rows = strip.around(self, rows, relu=True)
        if rows.is_cuda and torch.version.cuda:  # cuDNN adds the bias and does the ReLU in the same pass
            return torch.cudnn_convolution_relu(rows, self.weight, self.bias, (1, 1), (0, 1), (1, 1), 1)
        return F.relu_(F.conv2d(rows, self.weight, self.bias, padding=(0, 1)))


class _Winograd(nn.Module):
    """The same by tiles of 4x4 pixels, with a quarter of the products (Lavin & Gray 2015, arXiv:1509.09308).

    On a CPU, in float32, with what goes before and after the products, twice as fast; the errors are at most 1e-4 of
    the result's spread. In half types they would be too large. The weights take four times the memory.

    A tile's numbers lie together, in the cache, and all 36 products are one convolution with as many groups.
    """

    # With the points 0, 1, -1, 2, -2 and infinity.
    _OF_PIXELS = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
                  (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))  # fmt: skip
    _OF_WEIGHTS = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
                   (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip
    _OF_RESULTS = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
    _TILES = 192  # at a time, with 36 KB each

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        of_pixels, of_weights, of_results = (
            torch.tensor(numbers, dtype=torch.float64)
            for numbers in (self._OF_PIXELS, self._OF_WEIGHTS, self._OF_RESULTS)
        )
        weight = torch.einsum("yi,xj,ocij->yxoc", of_weights, of_weights, layer.weight.double()).flatten(0, 2)
        bias = weight.new_zeros((6, 6, len(layer.weight)))
        if layer.bias is not None:
            bias[1, 1] = layer.bias  # which all pixels take once
        weight, bias = weight.to(layer.weight), bias.flatten().to(layer.weight)
        self.products = _PackedLinear(weight, bias, (1, self._TILES), groups=36)
        # Of rows and columns in one.
        self.before = nn.Parameter(torch.kron(of_pixels, of_pixels).to(layer.weight), False)
        self.after = nn.Parameter(torch.kron(of_results, of_results).to(layer.weight), False)

    def forward(self, rows: Tensor, strip: _Strip, *, relu: bool = False) -> Tensor:
        padded = strip.around(self, rows, relu=relu, columns=1, tile=(4, 4)).permute(0, 2, 3, 1)
        tiles = padded.unfold(1, 6, 4).unfold(2, 6, 4).permute(0, 1, 2, 4, 5, 3)  # (N, H / 4, W / 4, 6, 6, C)
        n, down, across, *_, channels = tiles.shape
        out = padded.new_empty((n, down, 4, across, 4, len(self.products.bias) // 36))
        at_once = max(1, self._TILES // across)
        for picture, result in zip(tiles, out, strict=True):
            for some, part in zip(picture.split(at_once), result.split(at_once), strict=True):
                count = len(some) * across
                turned = torch.bmm(self.before.expand(count, 36, 36), some.reshape(count, 36, channels))
                products = self.products(turned.view(1, count, -1)).view(count, 36, -1)
                found = torch.bmm(self.after.expand(count, 16, 36), products)
                part.copy_(found.view(len(some), across, 4, 4, -1).permute(0, 2, 1, 3, 4))
        above, below = strip.ends
        height = rows.shape[2] - above + below
        return out.view(n, 4 * down, 4 * across, -1)[:, :height, : rows.shape[3]].permute(0, 3, 1, 2)

    def between_relus(self, rows: Tensor, strip: _Strip) -> Tensor:
        return F.relu_(self(rows, strip, relu=True))


class _WinogradAlongRows(nn.Module):
    """The same by four pixels of a row at a time, with half of the products: for bfloat16 on a CPU.

    1.4 times as fast. In bfloat16 the errors are 0.6 % of the result's spread, where rounding alone makes 0.2 %.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        left, middle, right = layer.weight.double().unbind(3)
        even, odd = left / 24 + right / 6, middle / 12
        parts = (left / 4, -(left + middle + right) / 6, -(left - middle + right) / 6, even + odd, even - odd, right)
        self.weights = nn.ParameterList(nn.Parameter(part[..., None].to(layer.weight), False) for part in parts)
        self.bias = layer.bias

    def forward(self, rows: Tensor, strip: _Strip, *, relu: bool = False) -> Tensor:
        padded = strip.around(self, rows, relu=relu, columns=1, tile=(1, 4)).permute(0, 2, 3, 1)
        # The pixels of all tiles, (N, H, W / 4, C) each; the last two are the next tile's first.
        first, second, third, fourth, fifth, sixth = padded.unfold(2, 6, 4).unbind(-1)
        n, height, across, _ = first.shape
        out = padded.new_empty((n, height - 2, across, 4, len(self.weights[0])))
        one, two, three, four = out.unbind(3)
        # With the same points as above: 1 and -1, 2 and -2, 0, infinity.
        even, odd = torch.sub(fifth, third, alpha=4), torch.sub(fourth, second, alpha=4)
        plus, minus = self._product(1, even + odd), self._product(2, even - odd)
        total, difference = plus + minus, plus.sub_(minus)
        even, odd = fifth - third, fourth - second
        plus, minus = self._product(3, torch.add(even, odd, alpha=2)), self._product(4, torch.sub(even, odd, alpha=2))
        total_2, difference_2 = plus + minus, plus.sub_(minus)
        torch.add(total, total_2, out=one)
        torch.add(difference, difference_2, alpha=2, out=two)
        torch.add(total, total_2, alpha=4, out=three)
        torch.add(difference, difference_2, alpha=8, out=four)
        one += self._product(0, even.add_(first - third, alpha=4))
        four += self._product(5, (sixth - fourth).sub_(odd, alpha=4))
        return out.flatten(2, 3)[:, :, : rows.shape[3]].permute(0, 3, 1, 2)

    def _product(self, number: int, part: Tensor) -> Tensor:
        bias = self.bias if number == 1 else None  # which all four pixels take once
        return F.conv2d(part.permute(0, 3, 1, 2), self.weights[number], bias).permute(0, 2, 3, 1)

    def between_relus(self, rows: Tensor, strip: _Strip) -> Tensor:
        return F.relu_(self(rows, strip, relu=True))


class _Residual(nn.Module):
    """A residual unit of the decoder, in place where it can be."""

    def __init__(self, unit: Any, convolution: type[nn.Module]) -> None:
        super().__init__()
        if unit.use_batch_norm:
            raise DepthError("Depth Pro with batch norm in its decoder is not supported")
        self.first: Any = convolution(unit.convolution1)
        self.second: Any = convolution(unit.convolution2)

    def forward(self, features: Tensor, strip: _Strip) -> Tensor:
        return strip.add_behind(self, self.second(self.first.between_relus(features, strip), strip), features)


class _Fusion(nn.Module):
    """A step of the decoder: what the one before gave, doubled in size here, and the encoder's features of that size.

    Args:
        layer: The step in transformers.
        convolution: What makes its 3x3 convolutions.
        features_up: The deconvolution of the step before.
        skip_up: Makes what is added of the encoder's features, if they have not their size yet.
    """

    def __init__(
        self, layer: Any, convolution: type[nn.Module], features_up: nn.Module, skip_up: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.features_up, self.skip_up = features_up, skip_up or nn.Identity()
        self.skip = _Residual(layer.residual_layer1, convolution)
        self.refine = _Residual(layer.residual_layer2, convolution)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        strips = _strips(2 * features.shape[2], features.dtype)
        return _fill(skip, (self.strip(features, skip, strip) for strip in strips))  # whose rows were used by then

    def strip(self, features: Tensor, skip: Tensor, strip: _Strip) -> Tensor:
        """The rows of the result that lie four behind a strip."""
        both: Tensor = self.skip(strip.enlarge(skip, self.skip_up, 0), strip)
        both = both.add_(strip.enlarge(features, self.features_up, 2))
        out: Tensor = self.refine(both, strip)
        return out


def _fold(deconvolution: nn.ConvTranspose2d, projection: nn.Conv2d) -> nn.ConvTranspose2d:
    """One deconvolution that does the work of a deconvolution without bias and the 1x1 convolution behind it."""
    folded = nn.ConvTranspose2d(deconvolution.in_channels, projection.out_channels, 2, stride=2)
    weight = torch.einsum("imhw,om->iohw", deconvolution.weight.float(), projection.weight[:, :, 0, 0].float())
    assert projection.bias is not None
    folded.weight = nn.Parameter(weight.to(projection.weight), False)
    folded.bias = nn.Parameter(projection.bias.detach(), False)
    return folded


class _LastLayers(nn.Module):
    """A deconvolution to twice the size, 3x3, ReLU, 1x1 and ReLU, in float32: 8 bits here would show as bands.

    Nothing lies between the first two, so that each pixel of a 2x2 has a convolution of 2x2 of its own, with a third of
    the products, and the large pictures with 128 channels need not be.
    """

    def __init__(self, deconvolution: nn.ConvTranspose2d, second: nn.Conv2d, third: nn.Conv2d) -> None:
        super().__init__()
        assert deconvolution.bias is not None
        assert second.bias is not None
        up, weight = deconvolution.weight.double(), second.weight.double()
        folded = weight.new_zeros((2, 2, len(weight), len(up), 2, 2))
        for y, x, dy, dx in product((0, 1), (0, 1), (-1, 0, 1), (-1, 0, 1)):
            # Pixel 2 i + y + dy of the large picture comes from pixel i + (y + dy) // 2 of the small one.
            part = torch.einsum("om,im->oi", weight[:, :, 1 + dy, 1 + dx], up[:, :, (y + dy) % 2, (x + dx) % 2])
            folded[y, x, :, :, 1 - y + (y + dy) // 2, 1 - x + (x + dx) // 2] += part
        # The bias of the deconvolution, by the pixel of the 3x3 that it comes through: there are fewer at the border.
        through = torch.einsum("omyx,m->yxo", weight, deconvolution.bias.double())
        self.weight = nn.Parameter(folded.float(), False)
        self.through = nn.Parameter(through.float(), False)
        self.bias = nn.Parameter((second.bias + through.sum((0, 1))).float(), False)
        self.third = third.float()

    def forward(self, rows: Tensor, strip: _Strip) -> Tensor:
        """Of rows ``(N, C, H, W)`` those of twice the size ``(N, 1, 2 H, 2 W)`` that lie one behind them."""
        rows = strip.around(self, rows.float(), relu=False)
        n, _, height, width = rows.shape
        height -= 2
        out = rows.new_empty((n, height, 2, width, 2))
        for y, x in product((0, 1), (0, 1)):
            weight = self.weight[y, x].contiguous(memory_format=torch.channels_last)
            found = F.conv2d(rows[:, :, y : y + height + 1], weight, self.bias, padding=(0, 1))[..., x : x + width]
            found[:, :, :, -x] -= self.through[:, 2 * x].sum(0)[:, None]
            if strip.ends[y]:
                found[:, :, -y] -= self.through[2 * y].sum(0)[:, None]
                found[:, :, -y, -x] += self.through[2 * y, 2 * x]
            out[:, :, y, :, x] = F.relu_(self.third(F.relu_(found)))[:, 0]
        return out.view(n, 1, 2 * height, 2 * width)


class _Head(nn.Module):
    """The decoder's last step, at 768 x 768, and the layers behind it, which give 1536 x 1536."""

    def __init__(self, fusion: _Fusion, convolution: type[nn.Module], projection: nn.Module, head: Any) -> None:
        super().__init__()
        self.fusion, self.projection = fusion, projection
        first, deconvolution, second, _, third, _ = head.layers
        self.first, self.last = convolution(first), _LastLayers(deconvolution, second, third)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        n, _, height, width = features.shape
        out = torch.empty((n, 1, 4 * height, 4 * width), device=features.device)
        return _fill(out, (self._rows(features, skip, strip) for strip in _strips(2 * height, features.dtype)))[:, 0]

    def _rows(self, features: Tensor, skip: Tensor, strip: _Strip) -> Tensor:
        rows = self.projection(self.fusion.strip(features, skip, strip))
        out: Tensor = self.last(self.first(rows, strip), strip)
        return out


class _Decoder(nn.Module):
    """From the features of the encoders, a handful of sizes, to canonical inverse depth."""

    def __init__(self, network: Any, convolution: type[nn.Module]) -> None:
        super().__init__()
        neck, fusion = network.depth_pro.neck, network.fusion_stage
        up, projections = neck.feature_upsample, neck.feature_projection.projections
        if not isinstance(projections[-1], nn.Identity):
            raise DepthError("Depth Pro with a projection of its finest features is not supported")
        *ups, last_up = up.intermediate
        self.ups = nn.ModuleList([up.image_block, *up.scaled_images, *ups])
        self.merge, self.first_projection = neck.fuse_image_with_low_res, projections[0]
        self.start = _Residual(fusion.intermediate[0].residual_layer2, _Direct)
        *folded, last = (_fold(layer.deconv, layer.projection) for layer in fusion.intermediate)
        # For small pictures it is not worth the memory.
        ways = [_Direct] * (len(folded) - 1) + [convolution]
        self.projections = nn.ModuleList(way(layer) for way, layer in zip(ways, projections[1:-1], strict=True))
        self.steps = nn.ModuleList(map(_Fusion, fusion.intermediate[1:], ways, folded))
        final = _Fusion(fusion.final, convolution, last, last_up)
        self.head = _Head(final, convolution, fusion.final.projection, network.head)

    def forward(self, encoded: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Canonical inverse depth, and the coarsest features, which the field of view is estimated from, too.

        Args:
            encoded: What the image encoder gave, then the patch encoder's from coarse to fine. Empty in the end.
        """
        ups = iter(self.ups)
        image, low = next(ups)(encoded.pop(0)), next(ups)(encoded.pop(0))
        coarse = self.first_projection(self.merge(torch.cat((low, image), dim=1)))
        features = self.start(coarse, _Strip(0, coarse.shape[2], coarse.shape[2], {}))
        for up, projection, step in zip(ups, self.projections, self.steps, strict=True):
            features = step(features, self._project(up(encoded.pop(0)), projection, features.shape[1]))
        return self.head(features, encoded.pop(0)), coarse

    def _project(self, skip: Tensor, projection: nn.Module, channels: int) -> Tensor:
        n, own, height, width = skip.shape
        out = skip  # in place where it can be
        if own != channels:
            out = skip.new_empty((n, height, width, channels)).permute(0, 3, 1, 2)
        strips = _strips(height, skip.dtype)
        return _fill(out, (projection(skip[:, :, strip.top : strip.bottom], strip) for strip in strips))


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
