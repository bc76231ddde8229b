"""Depth Pro's decoder, from the features of the encoders to canonical inverse depth.

It makes the features of a size when it comes to that size, and goes over its pictures in strips: all at once would need
3 GB more, in float32. Each deconvolution takes the convolution behind it into its weights. On a CPU 3x3 convolutions
take a quarter of the products in float32 and half of them in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdepth.errors import DepthError
from kdepth.models.products import PackedLinear

# As of patches: a row is 768 x 256. Of the finest features each row becomes eight: strips are a multiple of that.
_STRIP_ROWS = {torch.float32: 16, torch.bfloat16: 64, torch.float16: 64}


def fastest_convolution(device: str, dtype: torch.dtype) -> type[nn.Module]:
    """What makes a 3x3 convolution of the decoder fast."""
    there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device != "cpu" or not there or dtype == torch.float16:  # in which what lies in between could be too large
        return _Direct
    return _Winograd if dtype == torch.float32 else _WinogradAlongRows


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
        self.products = PackedLinear(weight, bias, (1, self._TILES), groups=36)
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


class Decoder(nn.Module):
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
