"""Computes the whole picture's result strip by strip: the same as `network.py`, in bounded memory and in the cache.

The network is not local: the channel attention takes a mean over the whole picture, and ESA's grid depends on the
picture's size. The picture is therefore not cut. Each block goes over the picture twice, a few rows at a time, and only
the 52 feature channels at its input are held for every pixel:

    first sweep   rows of x → depthwise 7×7 → normalise → 16 channels → 3×3 stride 2, held at a quarter of the pixels
    between       pool and convolve that into ESA's low-resolution map, which is tiny
    second sweep  rows of x → depthwise 7×7 → normalise (again, unless it was kept) → gated product → depthwise 7×7,
                  plus x → CAB's two convolutions → written over x, while its sum is computed
    between       the channel attention's factors go into the step that reads x next

In a sweep, each stage keeps the last few rows of its input in a sliding window (the halo of the next stage), so that
nothing is computed twice. With several threads, each thread computes a band of the picture and runs its operators
alone: there are no barriers inside a band, and each thread's data stays in its own core's cache.

Maps are H×W×C in memory. Operators see them as 1×C×H×W in PyTorch's channels-last format.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hasn_cli.inference.blocks import Block, First
from hasn_cli.inference.fusion import FusedBlock, FusedNetwork
from hasn_cli.inference.kernels import Convolution, Pointwise, as_nchw, as_rows, large_buffer
from hasn_cli.inference.planning import GUARD, REACH
from hasn_cli.inference.workers import Job, Workers
from hasn_cli.network import ESA_CHANNELS

T = TypeVar("T")
Band = tuple[int, int]

POOL, POOL_STEP = 7, 3
COST_FIRST, COST_LOW, COST_BLOCK, COST_LAST = 0.02, 0.15, 0.85, 0.5  # of a row in each sweep; a whole block is 1
MIN_BAND = 24  # rows; a band's first strip repeats ten rows of its neighbour's gated product


class NonFinite(ArithmeticError):
    """Infinite or undefined values occurred: the features exceed the precision in use."""


class RowSource(Protocol):
    """A picture that is read by rows."""

    size: tuple[int, int]
    channels: int

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows [top, bottom) with one more column on each side, h×(W+2)×C, in the network's precision.

        Values outside the picture are zero.
        """


Sink = Callable[[int, Tensor], None]  # first LR row, h×W×(s·s·C) for these rows; called from several threads


class Window:
    """Rows [first, last) of a map, sliding down the picture; rows outside the picture are zeros.

    Args:
        first: the first row that will be needed; may be negative.
        buffer: rows×W×C, large enough for `keep` rows and the longest extension.
        keep: how many of the last rows are needed again.
        height: of the picture.
    """

    def __init__(self, first: int, buffer: Tensor, keep: int, height: int) -> None:
        self.first = self.last = first
        self.buffer, self.keep, self.height = buffer, keep, height

    def extend(self, last: int, fill: Callable[[int, int, Tensor], None]) -> None:
        """Grow to `last`. `fill(lo, hi, out)` writes those rows [lo, hi) that are in the picture to out, h×W×C."""
        if last - self.first > len(self.buffer):
            kept = self.buffer[self.last - self.first - self.keep : self.last - self.first]
            self.buffer[: self.keep].copy_(kept if self.last - self.first >= 2 * self.keep else kept.clone())
            self.first = self.last - self.keep
        lo, hi = (min(max(row, 0), self.height) for row in (self.last, last))
        top, bottom = self.last - self.first, last - self.first
        if lo - self.last > 0 or hi < last:
            self.buffer[top:bottom].zero_()
        if hi > lo:
            fill(lo, hi, self.buffer[lo - self.first : hi - self.first])
        self.last = last

    def rows(self, lo: int, hi: int) -> Tensor:
        """Rows [lo, hi), h×W×C."""
        return self.buffer[lo - self.first : hi - self.first]


class FeatureMap:
    """The 52 channels that are held for every pixel, with guard rows of zeros, possibly in half precision.

    A band is overwritten from the top while it is read. Reads stay ahead of writes, by at most REACH rows. Where two
    bands meet, `seams` therefore holds that many original rows on both sides.
    """

    def __init__(self, height: int, width: int, channels: int, compute: Tensor, dtype: torch.dtype) -> None:
        self.compute_dtype, self.height = compute.dtype, height
        self.data = large_buffer((height + 2 * GUARD, width, channels), dtype, compute.device)
        self.data[:GUARD] = 0
        self.data[GUARD + height :] = 0
        self.seams: dict[int, Tensor] = {}

    def keep_seams(self, bands: Sequence[tuple[int, int]]) -> None:
        """Copy the rows around each border between two bands."""
        self.seams = {
            top: self.raw(max(top - REACH, -GUARD), min(top + REACH, self.height + GUARD)).clone()
            for top, _ in bands[1:]
        }

    def raw(self, lo: int, hi: int) -> Tensor:
        """Rows [lo, hi) as they are held, h×W×52; up to GUARD rows outside the picture are allowed."""
        return self.data[GUARD + lo : GUARD + hi]

    def rows(self, lo: int, hi: int, band: tuple[int, int] | None = None) -> Tensor:
        """Rows [lo, hi) in the computing precision, h×W×52; with a band, as before other bands overwrote them."""
        pieces = []
        if band is not None and lo < band[0] and band[0] in self.seams:
            pieces.append(self._seam(band[0], lo, min(hi, band[0])))
            lo = band[0]
        tail = None
        if band is not None and hi > band[1] and band[1] in self.seams:
            tail = self._seam(band[1], max(lo, band[1]), hi)
            hi = band[1]
        if hi > lo:
            pieces.append(self.raw(lo, hi))
        if tail is not None:
            pieces.append(tail)
        rows = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return rows.to(self.compute_dtype)

    def _seam(self, border: int, lo: int, hi: int) -> Tensor:
        start = max(border - REACH, -GUARD)
        return self.seams[border][lo - start : hi - start]


class LowMap:
    """ESA's low-resolution map, 1×16×h'×w', enlarged row by row: bilinear, align_corners false, one axis at a time.

    The arithmetic is the same as in `interpolate`, in float32.
    """

    def __init__(self, low: Tensor, height: int, width: int) -> None:
        self.low, self.width, rows = as_rows(low), width, low.shape[2]
        scale = torch.tensor(rows, dtype=torch.float32) / height
        position = ((torch.arange(height, dtype=torch.float32) + 0.5) * scale - 0.5).clamp_(min=0)
        above = position.long().clamp_(max=rows - 1)  # for each row of the picture: the low-resolution row above,
        share = (position - above)[:, None, None].to(low.dtype)  # and the distance from it, towards the row below
        self.above, self.below = above.to(low.device), (above + 1).clamp_(max=rows - 1).to(low.device)
        self.share = share.to(low.device)

    def rows(self, lo: int, hi: int) -> Tensor:
        """The map at the picture's own rows [lo, hi), h×W×16."""
        narrow = self.low[self.above[lo:hi]].lerp_(self.low[self.below[lo:hi]], self.share[lo:hi])
        size = (hi - lo, self.width)
        return as_rows(F.interpolate(as_nchw(narrow), size=size, mode="bilinear", align_corners=False))


class Evaluation:
    """One picture on its way through the network.

    Args:
        network: fused, on the device and in the precision to compute in.
        source: the picture; its sides are at least MIN_SIDE.
        held: precision of the feature map.
        workers: threads that share the picture's height.
        strip: rows in a strip.
        keep: hold the normalised features too, instead of computing them twice.
    """

    def __init__(
        self,
        network: FusedNetwork,
        source: RowSource,
        held: torch.dtype,
        workers: Workers,
        strip: int,
        keep: bool = False,
    ) -> None:
        self.network, self.source, self.workers = network, source, workers
        self.height, self.width = source.size
        self.strip = strip
        self.bands = split(self.height, workers.count, MIN_BAND)
        self.like = torch.empty(0, dtype=network.dtype, device=network.device)
        self.features = FeatureMap(self.height, self.width, network.features, self.like, held)
        self.normalised = FeatureMap(self.height, self.width, network.features, self.like, held) if keep else None
        self.down = self.like.new_empty((self.height - 3) // 2 + 1, (self.width - 3) // 2 + 1, ESA_CHANNELS)

    def run(self, sink: Sink, progress: Callable[[float], None]) -> None:
        """Evaluate. `sink` gets the strips of the result, `progress` each strip's share of the whole work.

        Raises:
            NonFinite: the features exceed the precision.
        """
        network, bands = self.network, self.bands
        whole = self.height * (COST_FIRST + len(network.blocks) * (COST_LOW + COST_BLOCK) + COST_LAST)

        def sweep(jobs: Iterable[Job[T]]) -> list[T]:
            return self.workers.run(list(jobs), lambda cost: progress(cost / whole))

        first = network.first(self.source.channels)
        sweep(self._shallow(band, first) for band in bands)
        down_height, down_width, _ = self.down.shape
        pooled = self.like.new_empty(
            (down_height - POOL) // POOL_STEP + 1, (down_width - POOL) // POOL_STEP + 1, ESA_CHANNELS
        )
        factors = torch.ones(network.features, dtype=network.mean_dtype, device=network.device)
        for block in network.blocks:
            first_steps = block.steps.first(factors)
            sweep(self._low_sweep(band, block, first_steps) for band in split(down_height, len(bands), 1))
            sweep(self._pool_sweep(band, pooled) for band in split(len(pooled), len(bands), 1))
            low = LowMap(block.low_out(as_nchw(pooled)), self.height, self.width)
            self.features.keep_seams(bands)
            sums = sweep(self._block_sweep(band, block.steps, first_steps, low, factors) for band in bands)
            factors = block.attend(torch.stack(sums).sum(0) / (self.height * self.width))
        if self.features.data.dtype is not torch.float32 and not torch.isfinite(factors).all():
            raise NonFinite
        conv_2, last = network.scaled_conv_2(factors), network.last(self.source.channels)
        sweep(self._last_sweep(band, (first, conv_2, last), sink) for band in bands)

    def _strips(self, top: int, bottom: int, step: int) -> Iterator[tuple[int, int]]:
        return ((lo, min(lo + step, bottom)) for lo in range(top, bottom, step))

    def _window(self, first: int, keep: int, rows: int, channels: int) -> Window:
        return Window(first, self.like.new_empty(keep + rows, self.width, channels), keep, self.height)

    def _shallow(self, band: Band, first: Pointwise) -> Job[None]:
        """conv_1 over the picture's own pixels."""
        for lo, hi in self._strips(*band, self.strip):
            self.features.raw(lo, hi).copy_(self._convolve_source(first, lo, hi))
            yield COST_FIRST * (hi - lo)

    def _convolve_source(self, first: Pointwise, lo: int, hi: int) -> Tensor:
        """conv_1 on the picture's rows [lo, hi), h×W×52."""
        rows, c = self.source.rows(lo - 1, hi + 1), self.source.channels
        line = rows.stride(0)
        patches = rows.as_strided((hi - lo, self.width, 3, 3 * c), (line, c, line, 1))  # 3×3 pixels' c values
        return first(patches.reshape(-1, 9 * c)).view(hi - lo, self.width, -1)

    def _low_sweep(self, band: Band, block: FusedBlock, first: First) -> Job[None]:
        """ESA's strided convolution, for rows `band` of its result; row i reads rows 2i to 2i + 2."""
        step = max(1, self.strip // 2)
        reads = self._window(2 * band[0], 1, 2 * step + 2, ESA_CHANNELS)

        def fill(lo: int, hi: int, out: Tensor) -> None:
            kept = None if self.normalised is None else self.normalised.raw(lo, hi)
            first.low(self.features.rows(lo - 3, hi + 3), out, kept)

        for lo, hi in self._strips(*band, step):
            reads.extend(self.height if hi == len(self.down) else 2 * hi + 1, fill)
            self.down[lo:hi].copy_(as_rows(block.low_down(as_nchw(reads.rows(2 * lo, 2 * hi + 1)))))
            yield COST_LOW * 2 * (hi - lo)

    def _pool_sweep(self, band: Band, pooled: Tensor) -> Job[None]:
        """ESA's 7×7 maximum at every third row and column, for rows `band` of its result."""
        rows = self.down[POOL_STEP * band[0] : POOL_STEP * (band[1] - 1) + POOL]
        pooled[band[0] : band[1]] = as_rows(F.max_pool2d(as_nchw(rows), POOL, POOL_STEP))
        yield 0.0

    def _block_sweep(self, band: Band, steps: Block, first: First, low: LowMap, factors: Tensor) -> Job[Tensor]:
        """The block without its attention, written over x. Returns the sum of each channel over the band."""
        x, step, channels = self.features, self.strip, self.network.features
        gated = self._window(band[0] - 5, 6, step + 10, channels)
        mixed = self._window(band[0] - 2, 2, step + 4, channels)
        squeezed = self._window(band[0] - 1, 2, step + 2, steps.squeezed)
        scale, total = factors.to(self.like.dtype), torch.zeros_like(factors)

        def fill_gated(lo: int, hi: int, out: Tensor) -> None:
            kept = self.normalised
            n = first.normalised(x.rows(lo - 3, hi + 3, band)) if kept is None else kept.rows(lo, hi)
            steps.gated(n.flatten(0, 1), low.rows(lo, hi).flatten(0, 1), out.flatten(0, 1))

        def fill_mixed(lo: int, hi: int, out: Tensor) -> None:
            steps.mix(gated.rows(lo - 3, hi + 3), x.rows(lo, hi, band), scale, out)

        def fill_squeezed(lo: int, hi: int, out: Tensor) -> None:
            steps.squeeze(mixed.rows(lo - 1, hi + 1), out)

        for lo, hi in self._strips(*band, step):
            gated.extend(hi + 5, fill_gated)
            mixed.extend(hi + 2, fill_mixed)
            squeezed.extend(hi + 1, fill_squeezed)
            rows = steps.expand(squeezed.rows(lo - 1, hi + 1), x.raw(lo, hi))
            total += rows.sum((0, 1), dtype=torch.float32)
            yield COST_BLOCK * (hi - lo)
        return total

    def _last_sweep(
        self, band: Band, convolutions: tuple[Pointwise, Convolution, Convolution], sink: Sink
    ) -> Job[None]:
        """conv_2 plus conv_1, computed again because that is cheaper than keeping it, and the last convolution."""
        first, conv_2, last = convolutions
        window = self._window(band[0] - 1, 2, self.strip + 2, self.network.features)

        def fill(lo: int, hi: int, out: Tensor) -> None:
            shallow = as_nchw(self._convolve_source(first, lo, hi))
            out.copy_(as_rows(conv_2.plus(as_nchw(self.features.rows(lo - 1, hi + 1)), shallow)))

        for lo, hi in self._strips(*band, self.strip):
            window.extend(hi + 1, fill)
            sink(lo, as_rows(last(as_nchw(window.rows(lo - 1, hi + 1)))))
            yield COST_LAST * (hi - lo)


def split(length: int, parts: int, smallest: int) -> list[Band]:
    """Cut [0, length) into at most `parts` nearly equal bands of at least `smallest`."""
    parts = max(1, min(parts, length // smallest))
    return list(itertools.pairwise(length * i // parts for i in range(parts + 1)))
