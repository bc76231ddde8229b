"""Products and attention of a vision transformer, in the ways that are fast on one processor or another.

Which of several ways is the fastest here is measured when a model is loaded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Few, so that what they need stays in the cache, and no tensor has the 32 MiB from which on the C library asks the
# system for memory each time, which was a twelfth of the time of five patches in float32: the widest is 577 x 4096.
PATCHES_AT_ONCE = {torch.float32: 2, torch.bfloat16: 5, torch.float16: 5}

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
_Way = TypeVar("_Way")


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


class PackedLinear(nn.Module):
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
        n, count = rows or (PATCHES_AT_ONCE[weight.dtype], 577)
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
    rows = torch.randn(1, PATCHES_AT_ONCE[dtype] * 577, 1024, dtype=dtype)
    weight = torch.randn(4096, 1024, dtype=dtype)
    layers: dict[type[nn.Module], Callable[[], object]] = {}
    for kind in (_TorchLinear, PackedLinear):
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
    tokens = torch.randn(PATCHES_AT_ONCE[dtype], 577, 3, 16, 64, dtype=dtype)
    query, key, value = tokens.permute(2, 0, 3, 1, 4).unbind(0)
    ways: tuple[Attention, ...] = (_attention_at_once, _attention_in_steps)
    return _fastest({way: partial(way, query, key, value) for way in ways})


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
