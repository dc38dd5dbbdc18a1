"""A block's steps as machine code: quicker than the operators of `kernels.py`, with the same results.

PyTorch's operators are written for many channels, and each reads and writes all of its values. A block has 52, 156 and
17 channels, which leave vectors partly empty, and six of its matrix products work on the same rows. Here each step is
one function, which keeps sums in registers and what it needs again in the cache:

    low                  depthwise 7×7, centred and divided by the deviation, and a product to 16 channels
    depthwise_normalise  the same without the product
    gated                g(relu6(f1)·f2 + ESA's gate·f3)
    depthwise_mix        depthwise 7×7, plus the block's input times the channel attention's factors
    squeeze, expand      CAB's two 3×3 convolutions, the first with GELU

`codegen.py` writes and compiles them. They need float32 and a CPU with AVX2 or AVX-512.

Maps are H×W×C, contiguous. A tile is some pixels of one row times some channels; its sums stay in registers. A row that
is no multiple of the tile's length ends with a tile that overlaps the one before, so a row has at least `LEAST` pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from llvmlite import ir
from torch import Tensor

from hasn_cli.inference.codegen import Code, Functions, Number, Value, Variable, vector_lanes

CHANNELS, WIDE, ESA, NARROW = 52, 156, 16, 17
PADDED = 160  # the 156 channels, and zeros up to whole vectors
LEAST = 15  # pixels in a row; the longest tile has fewer
HALF = 8  # lanes: of unaligned loads, since longer ones would all cross a cache line
SMALL = 4  # lanes of the vector that ends 52 channels
MAPS = {"x": "pointer", "weights": "pointer", "out": "pointer", "scratch": "pointer", "height": "int", "width": "int"}
SIGNATURES = {
    "low": {**MAPS, "eps": "float"},
    "depthwise_normalise": {**MAPS, "eps": "float"},
    "depthwise_mix": {**MAPS, "input": "pointer", "factors": "pointer"},
    "gated": {"n": "pointer", "low": "pointer", "weights": "pointer", "out": "pointer", "scratch": "pointer",
              "pixels": "int"},
    "squeeze": MAPS,
    "expand": MAPS,
}  # fmt: skip


@dataclass(frozen=True)
class Tiling:
    """Sizes that suit the registers and caches of a kind of CPU.

    Attributes:
        lanes: float32 values in a vector.
        pixels, vectors: of a tile in matrix products: pixels × vectors sums, in as many registers.
        depthwise: pixels of a tile in depthwise convolutions, which hold seven weights in registers too.
        convolution: pixels of a tile in 3×3 convolutions, which hold the weights of three neighbours in registers.
        block: pixels whose 160 products stay in the cache; a multiple of `pixels`.
    """

    lanes: int
    pixels: int
    vectors: int
    depthwise: int
    convolution: int
    block: int


TILINGS = {  # lanes → sizes; there are 32 registers with AVX-512 and 16 with AVX2
    16: Tiling(16, pixels=14, vectors=2, depthwise=14, convolution=12, block=56),
    8: Tiling(8, pixels=6, vectors=2, depthwise=7, convolution=4, block=48),
}

Activation = Callable[[Code, Value], Value]
Linear = tuple[Tensor, Tensor]  # matrix O×I, bias O
Group = tuple[int, int]  # first channel, lanes
Tile = list[list[Value]]  # pixels × vectors


def groups(channels: int, lanes: int) -> list[Group]:
    """Vectors that cover the channels: long ones first, then short ones."""
    found, first = [], 0
    while first < channels:
        length = next(size for size in (lanes, SMALL, 1) if size <= channels - first)
        found.append((first, length))
        first += length
    return found


def write(module: ir.Module, tiling: Tiling) -> None:
    """Write all functions."""
    write_low(module, tiling)
    write_depthwise_normalise(module, tiling)
    write_depthwise_mix(module, tiling)
    write_gated(module, tiling)
    write_convolution(module, tiling, "squeeze", CHANNELS, NARROW, Code.gelu)
    write_convolution(module, tiling, "expand", NARROW, CHANNELS, None)


# Steps that several functions share


@contextmanager
def tiles(code: Code, length: int, side: int, channels: int) -> Iterator[tuple[Value, Value, Value]]:
    """Repeat for each tile of `length` pixels in all rows of a side×side convolution.

    Yields the tile's first pixel in the result, and where its input begins: address, and values from row to row. Rows
    are given with those above and below. Left and right of the picture are zeros, in a copy of the tile's input.
    """
    reach, width = side // 2, code["width"]
    line, copied = code.times(width, channels), (length + side - 1) * channels
    with code.loop(0, width, length) as wanted, code.loop(0, code["height"]) as y:  # what rows share is in the cache
        first = code.smaller(wanted, code.add(width, -length))
        left, right = code.add(first, -reach), code.add(first, length + reach)
        source = code.variable(code.at(code["x"], code.add(code.times(y, line), code.times(left, channels))))
        stride = code.variable(line)
        with code.unless(code.build.and_(code.less(-1, left), code.less(right, code.add(width, 1)))):
            start, stop = code.larger(left, 0), code.smaller(right, width)
            with code.loop(0, side) as row:
                target = code.times(row, copied)
                with code.loop(0, copied) as i:
                    code.store(ir.Constant(ir.FloatType(), 0.0), code["scratch"], code.add(target, i))
                target = code.add(target, code.times(code.build.sub(start, left), channels))
                origin = code.times(code.add(code.times(code.add(y, row), width), start), channels)
                with code.loop(0, code.times(code.build.sub(stop, start), channels)) as i:
                    value = code.scalar(code["x"], code.add(origin, i))
                    code.store(value, code["scratch"], code.add(target, i))
            source.set(code["scratch"])
            stride.set(code.add(copied, 0))
        yield code.add(code.times(y, width), first), source.get(), stride.get()


def multiply_add(
    code: Code, sums: list[list[Variable]], x: Value, step: int, weights: Value, lanes: Sequence[int], depth: int
) -> None:
    """sums[pixel][vector] += Σ over k < depth of x[pixel·step + k] · weights[k], for the variables `sums`."""
    width, unrolled = sum(lanes), next(n for n in (4, 3, 2, 1) if depth % n == 0)
    with code.loop(0, depth, unrolled) as first:
        for k in (code.add(first, i) for i in range(unrolled)):
            row = code.times(k, width)
            vectors = [code.load(weights, code.add(row, sum(lanes[:v])), n) for v, n in enumerate(lanes)]
            for pixel, totals in enumerate(sums):
                value = code.scalar(x, code.add(k, pixel * step))
                for total, vector, n in zip(totals, vectors, lanes, strict=True):
                    total.set(code.fma(code.spread(value, n), vector, total.get()))


def product(
    code: Code, pixels: int, lanes: Sequence[int], start: Callable[[int, int], Value],
    x: Value, step: int, weights: Value, depth: int,
) -> Tile:  # fmt: skip
    """A tile's matrix product: start(pixel, vector) + Σ over k < depth of x[pixel·step + k] · weights[k]."""
    sums = [[code.variable(start(pixel, v)) for v in range(len(lanes))] for pixel in range(pixels)]
    multiply_add(code, sums, x, step, weights, lanes, depth)
    return [[total.get() for total in totals] for totals in sums]


# Depthwise convolutions


def write_depthwise_normalise(module: ir.Module, tiling: Tiling) -> None:
    """depthwise_normalise. Weights as from `pack_depthwise` or `pack_low`."""
    code = Code(module, "depthwise_normalise", SIGNATURES["depthwise_normalise"])
    with tiles(code, tiling.depthwise, 7, CHANNELS) as (pixel, source, stride):
        normalised_tile(code, tiling, source, stride, code.at(code["out"], code.times(pixel, CHANNELS)))
    code.finish()


def write_low(module: ir.Module, tiling: Tiling) -> None:
    """low. Weights as from `pack_low`."""
    code, length = Code(module, "low", SIGNATURES["low"]), tiling.depthwise
    with tiles(code, length, 7, CHANNELS) as (pixel, source, stride):
        n = code.at(code["scratch"], 7 * (length + 6) * CHANNELS)
        normalised_tile(code, tiling, source, stride, n)
        weights, target = code.at(code["weights"], 50 * CHANNELS), code.at(code["out"], code.times(pixel, ESA))
        for first, lanes in groups(ESA, tiling.lanes):  # one vector at a time: the tile has many pixels
            start = biases(code, weights, [lanes])
            tile = product(code, length, [lanes], start, n, CHANNELS, code.at(weights, lanes), CHANNELS)
            store_tile(code, tile, code.at(target, first), ESA, [lanes])
            weights = code.at(weights, lanes * (CHANNELS + 1))
    code.finish()


def write_depthwise_mix(module: ir.Module, tiling: Tiling) -> None:
    """depthwise_mix. Weights as from `pack_depthwise`."""
    code = Code(module, "depthwise_mix", SIGNATURES["depthwise_mix"])
    with tiles(code, tiling.depthwise, 7, CHANNELS) as (pixel, source, stride):
        begin = code.times(pixel, CHANNELS)

        def one_vector(first: Number, lanes: int) -> None:
            factor = code.load(code["factors"], first, lanes)
            for i, value in enumerate(depthwise_sums(code, tiling.depthwise, source, stride, first, lanes)):
                place = code.add(begin, i * CHANNELS, first)
                code.store(code.fma(code.load(code["input"], place, lanes), factor, value), code["out"], place)

        for_each_vector(code, tiling, one_vector)
    code.finish()


def normalised_tile(code: Code, tiling: Tiling, source: Value, stride: Value, target: Value) -> None:
    """A tile of the depthwise convolution, centred and divided by the deviation, to `target`: pixels × 52."""

    def one_vector(first: Number, lanes: int) -> None:
        for i, value in enumerate(depthwise_sums(code, tiling.depthwise, source, stride, first, lanes)):
            code.store(value, target, code.add(i * CHANNELS, first))

    for_each_vector(code, tiling, one_vector)
    with code.loop(0, tiling.depthwise) as i:
        normalise_pixel(code, code.at(target, code.times(i, CHANNELS)), groups(CHANNELS, tiling.lanes))


def for_each_vector(code: Code, tiling: Tiling, step: Callable[[Number, int], None]) -> None:
    """Do step(first channel, lanes) for all vectors of the 52 channels; it is written once for those of full length."""
    vectors = groups(CHANNELS, tiling.lanes)
    full = sum(lanes == tiling.lanes for _, lanes in vectors)
    with code.loop(0, full * tiling.lanes, tiling.lanes) as first:
        step(first, tiling.lanes)
    for first, lanes in vectors[full:]:
        step(first, lanes)


def depthwise_sums(code: Code, length: int, source: Value, stride: Value, first: Number, lanes: int) -> list[Value]:
    """Results for `length` pixels and the channels from `first` on. Each input is read once for all that need it."""
    weights = code["weights"]
    bias = code.load(weights, code.add(49 * CHANNELS, first), lanes)
    sums = [code.variable(bias) for _ in range(length)]
    with code.loop(0, 7) as row:
        taps = [
            code.load(weights, code.add(code.times(row, 7 * CHANNELS), first, k * CHANNELS), lanes) for k in range(7)
        ]
        line = code.add(code.times(row, stride), first)
        for i in range(length + 6):
            value = code.load(source, code.add(line, i * CHANNELS), lanes)
            for pixel in range(max(0, i - 6), min(length, i + 1)):
                sums[pixel].set(code.fma(value, taps[i - pixel], sums[pixel].get()))
    return [total.get() for total in sums]


def normalise_pixel(code: Code, pixel: Value, vectors: Sequence[Group]) -> None:
    """Centre the 52 values at `pixel` and divide them by their deviation, in place."""
    build, share = code.build, ir.Constant(ir.FloatType(), 1 / CHANNELS)
    values = [code.load(pixel, first, lanes) for first, lanes in vectors]
    mean = build.fmul(code.total(values), share)
    centred = [build.fsub(value, code.spread(mean, value.type.count)) for value in values]
    variance = build.fmul(code.total([build.fmul(value, value) for value in centred]), share)
    factor = build.fdiv(ir.Constant(ir.FloatType(), 1.0), code.root(build.fadd(variance, code["eps"])))
    for value, (first, lanes) in zip(centred, vectors, strict=True):
        code.store(build.fmul(value, code.spread(factor, lanes)), pixel, first)


# The gated product


def write_gated(module: ir.Module, tiling: Tiling) -> None:
    """gated: n, P×52, and the enlarged low-resolution map, P×16, to P×52.

    A block of pixels goes through one step after the other, and through one group of the 156 channels after the other,
    so that a group's weights stay in the first cache. `pack_gated` puts the weights into the order of reading.
    """
    code, count = Code(module, "gated", SIGNATURES["gated"]), tiling.pixels
    hidden, products = code["scratch"], code.at(code["scratch"], tiling.block * ESA)
    last = code.add(code["pixels"], -count)
    with code.loop(0, code["pixels"], tiling.block) as begin:
        stop = code.smaller(code.build.sub(code["pixels"], begin), tiling.block)

        @contextmanager
        def each_tile() -> Iterator[tuple[Value, Value]]:
            """A tile's place in the block, and its first pixel."""
            with code.loop(0, stop, count) as place:
                yield place, code.smaller(code.add(begin, place), last)

        with each_tile() as (place, pixel):
            gate_input(code, tiling, code.at(hidden, code.times(place, ESA)), pixel)
        width = tiling.vectors * tiling.lanes
        size = width * (3 * (CHANNELS + 1) + ESA + 1)
        with code.loop(0, PADDED // width) as part:
            weights = code.at(code["weights"], code.add(code.times(part, size), ESA * (CHANNELS + 1)))
            with each_tile() as (place, pixel):
                tile = gated_tile(code, tiling, code.at(code["n"], code.times(pixel, CHANNELS)),
                                  code.at(hidden, code.times(place, ESA)), weights)  # fmt: skip
                target = code.at(products, code.add(code.times(place, PADDED), code.times(part, width)))
                store_tile(code, tile, target, PADDED, [tiling.lanes] * tiling.vectors)
        weights = code.at(code["weights"], ESA * (CHANNELS + 1) + PADDED // width * size)
        for part in parts(CHANNELS, tiling):
            lanes = [n for _, n in part]
            with each_tile() as (place, pixel):
                x = code.at(products, code.times(place, PADDED))
                tile = product(code, count, lanes, biases(code, weights, lanes), x, PADDED,
                               code.at(weights, sum(lanes)), WIDE)  # fmt: skip
                target = code.at(code["out"], code.add(code.times(pixel, CHANNELS), part[0][0]))
                store_tile(code, tile, target, CHANNELS, lanes)
            weights = code.at(weights, sum(lanes) * (WIDE + 1))
    code.finish()


def parts(channels: int, tiling: Tiling) -> list[list[Group]]:
    """The vectors that cover the channels, as many at a time as a tile has; single channels on their own."""
    vectors = groups(channels, tiling.lanes)
    shared = [vector for vector in vectors if vector[1] > 1]
    step = tiling.vectors
    return [shared[i : i + step] for i in range(0, len(shared), step)] + [[v] for v in vectors[len(shared) :]]


def biases(code: Code, bias: Value, lanes: Sequence[int]) -> Callable[[int, int], Value]:
    """A tile that begins with the bias."""
    return lambda _, v: code.load(bias, sum(lanes[:v]), lanes[v])


def store_tile(code: Code, tile: Tile, target: Value, step: int, lanes: Sequence[int]) -> None:
    """Write a tile; `step` values from pixel to pixel."""
    for pixel, values in enumerate(tile):
        for v, value in enumerate(values):
            code.store(value, target, pixel * step + sum(lanes[:v]))


def gate_input(code: Code, tiling: Tiling, target: Value, pixel: Value) -> None:
    """The 16 values that ESA's gate reads, for one tile: gate_in(n) + low."""
    lanes, weights = [n for _, n in groups(ESA, tiling.lanes)], code["weights"]
    low = code.at(code["low"], code.times(pixel, ESA))

    def start(i: int, v: int) -> Value:
        place = v * tiling.lanes
        return code.build.fadd(code.load(weights, place, lanes[v]), code.load(low, i * ESA + place, lanes[v]))

    x = code.at(code["n"], code.times(pixel, CHANNELS))
    tile = product(code, tiling.pixels, lanes, start, x, CHANNELS, code.at(weights, ESA), CHANNELS)
    store_tile(code, tile, target, ESA, lanes)


def gated_tile(code: Code, tiling: Tiling, n: Value, hidden: Value, weights: Value) -> Tile:
    """relu6(f1)·f2 + sigmoid(gate)·f3 for one tile. Weights: those of gate, f3, f1 and f2, each after its bias."""
    lanes, build = [tiling.lanes] * tiling.vectors, code.build

    def next_product(x: Value, depth: int) -> Tile:
        nonlocal weights
        bias, weights = weights, code.at(weights, sum(lanes))
        tile = product(code, tiling.pixels, lanes, biases(code, bias, lanes), x, depth, weights, depth)
        weights = code.at(weights, sum(lanes) * depth)
        return tile

    def combined(function: Callable[..., Value], *operands: Tile) -> Tile:
        return [[function(*values) for values in zip(*rows, strict=True)] for rows in zip(*operands, strict=True)]

    gate = combined(code.sigmoid, next_product(hidden, ESA))
    gated = combined(build.fmul, gate, next_product(n, CHANNELS))
    first = combined(lambda x: code.clamp(x, 0, 6), next_product(n, CHANNELS))
    return combined(code.fma, first, next_product(n, CHANNELS), gated)


# CAB's convolutions


def write_convolution(
    module: ir.Module, tiling: Tiling, name: str, depth: int, channels: int, activation: Activation | None
) -> None:
    """A 3×3 convolution from `depth` to `channels`. `pack_convolution` puts the weights into the order of reading.

    Three neighbouring pixels lie one after the other, so each row of the kernel is one matrix product.
    """
    code, length, taps = Code(module, name, SIGNATURES[name]), tiling.convolution, 3 * depth
    with tiles(code, length, 3, depth) as (pixel, source, stride):
        target, weights = code.at(code["out"], code.times(pixel, channels)), code["weights"]
        for part in parts(channels, tiling):
            first, lanes = part[0][0], [n for _, n in part]
            bias, weights = weights, code.at(weights, sum(lanes))
            if lanes == [1]:
                values = single_channel(code, tiling, source, stride, depth, code.scalar(bias, 0), weights, activation)
                for i, value in enumerate(values):
                    code.store(value, target, i * channels + first)
            else:
                start = biases(code, bias, lanes)
                sums = [[code.variable(start(i, v)) for v in range(len(lanes))] for i in range(length)]
                with code.loop(0, 3) as row, code.loop(0, depth) as k:
                    line = code.at(source, code.add(code.times(row, stride), k))
                    kernel = code.at(weights, code.times(code.add(code.times(row, depth), k), 3 * sum(lanes)))
                    add_neighbours(code, sums, line, depth, kernel, lanes)
                tile = [[activation(code, total.get()) if activation else total.get() for total in row] for row in sums]
                store_tile(code, tile, code.at(target, first), channels, lanes)
            weights = code.at(weights, 3 * taps * sum(lanes))
    code.finish()


def add_neighbours(
    code: Code, sums: list[list[Variable]], x: Value, step: int, weights: Value, lanes: Sequence[int]
) -> None:
    """sums[pixel][vector] += Σ over three neighbours t of x[(pixel + t)·step] · weights[t]. Each x is read once."""
    width = sum(lanes)
    taps = [[code.load(weights, t * width + sum(lanes[:v]), n) for v, n in enumerate(lanes)] for t in range(3)]
    for i in range(len(sums) + 2):
        value = code.scalar(x, i * step)
        for pixel in range(max(0, i - 2), min(len(sums), i + 1)):
            for total, vector, n in zip(sums[pixel], taps[i - pixel], lanes, strict=True):
                total.set(code.fma(code.spread(value, n), vector, total.get()))


def single_channel(
    code: Code, tiling: Tiling, source: Value, stride: Value, depth: int, bias: Value, weights: Value,
    activation: Activation | None,
) -> list[Value]:  # fmt: skip
    """A tile of one channel. It would leave vectors of results empty, so the vectors run over the inputs."""
    taps, nothing = 3 * depth, {n: code.constant(0, n) for n in (HALF, SMALL)}
    vectors = groups(taps, HALF)
    sums = [{n: code.variable(zero) for n, zero in nothing.items()} for _ in range(tiling.convolution)]
    with code.loop(0, 3) as row:
        line, kernel = code.at(source, code.times(row, stride)), code.at(weights, code.times(row, taps))
        for lanes in nothing:
            places = [first for first, n in vectors if n == lanes]
            with code.loop(places[0], places[-1] + lanes, lanes) as k:
                vector = code.load(kernel, k, lanes)
                for i, totals in enumerate(sums):
                    value = code.load(line, code.add(k, i * depth), lanes)
                    totals[lanes].set(code.fma(value, vector, totals[lanes].get()))
    results = [code.build.fadd(bias, code.total([total.get() for total in totals.values()])) for totals in sums]
    if activation is None:
        return results
    together = activation(code, code.vector(results, 16))
    return [code.lane(together, i) for i in range(len(results))]


# Calling them


class Native:
    """The compiled functions, on tensors in float32.

    Raises:
        RuntimeError: LLVM cannot compile them for this machine.
    """

    def __init__(self, lanes: int) -> None:
        self.tiling = tiling = TILINGS[lanes]
        self._functions = Functions(SIGNATURES, lambda module: write(module, tiling), lanes, [Path(__file__)])
        edge = 7 * (tiling.depthwise + 6) + tiling.depthwise  # pixels: a copied tile of input, and its results
        self._scratch = max(tiling.block * (ESA + PADDED), edge * CHANNELS)

    def fits(self, f1: Tensor, gate_in: Tensor, squeeze: Tensor) -> bool:
        """Whether a block has the numbers of channels that the functions were written for, by three of its weights."""
        shapes = (WIDE, CHANNELS), (ESA, CHANNELS), (NARROW, CHANNELS, 3, 3)
        return (tuple(f1.shape), tuple(gate_in.shape), tuple(squeeze.shape)) == shapes

    def low(self, x: Tensor, weights: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
        """(h+6)×W×52 to h×W×16, with weights from `pack_low`."""
        return self._convolve("low", x, weights, ESA, 6, out, eps)

    def depthwise_normalise(self, x: Tensor, weights: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
        """(h+6)×W×52 to h×W×52, with weights from `pack_depthwise`."""
        return self._convolve("depthwise_normalise", x, weights, CHANNELS, 6, out, eps)

    def depthwise_mix(
        self, x: Tensor, weights: Tensor, other: Tensor, factors: Tensor, out: Tensor | None = None
    ) -> Tensor:
        """(h+6)×W×52 to h×W×52, plus other·factors: h×W×52 and 52."""
        return self._convolve("depthwise_mix", x, weights, CHANNELS, 6, out, other, factors)

    def squeeze(self, x: Tensor, weights: Tensor, out: Tensor | None = None) -> Tensor:
        """(h+2)×W×52 to h×W×17, with weights from `pack_convolution`."""
        return self._convolve("squeeze", x, weights, NARROW, 2, out)

    def expand(self, x: Tensor, weights: Tensor, out: Tensor | None = None) -> Tensor:
        """(h+2)×W×17 to h×W×52, with weights from `pack_convolution`."""
        return self._convolve("expand", x, weights, CHANNELS, 2, out)

    def gated(self, n: Tensor, low: Tensor, weights: Tensor, out: Tensor | None = None) -> Tensor:
        """P×52 and P×16 to P×52, with weights from `pack_gated`."""
        result = _result(out, n.shape, n)
        arguments = n.contiguous(), low.contiguous(), weights, result, n.new_empty(self._scratch)
        self._functions["gated"](*(tensor.data_ptr() for tensor in arguments), len(n))
        return _delivered(result, out)

    def _convolve(
        self,
        name: str,
        x: Tensor,
        weights: Tensor,
        channels: int,
        fewer: int,
        out: Tensor | None,
        *more: Tensor | float,
    ) -> Tensor:
        height, width = x.shape[0] - fewer, x.shape[1]
        result = _result(out, (height, width, channels), x)
        arguments = [x.contiguous(), weights, result, x.new_empty(self._scratch), height, width]
        arguments += [value.contiguous() if isinstance(value, Tensor) else value for value in more]
        self._functions[name](*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))
        return _delivered(result, out)


def _result(out: Tensor | None, shape: Sequence[int], like: Tensor) -> Tensor:
    """Where a function can write: `out` if it is contiguous and float32."""
    return out if out is not None and out.dtype is like.dtype and out.is_contiguous() else like.new_empty(shape)


def _delivered(result: Tensor, out: Tensor | None) -> Tensor:
    return result if out is None or out is result else out.copy_(result)


@cache
def load_native() -> Native | None:
    """The compiled functions, if this CPU can run them and they give correct results here."""
    lanes = vector_lanes()
    if not lanes:
        return None
    try:
        native = Native(lanes)
    except RuntimeError:
        return None
    return native if _is_correct(native) else None


def _is_correct(native: Native) -> bool:
    """Whether each function gives what PyTorch's public operators give, on a little data."""
    random = torch.Generator().manual_seed(0)

    def data(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random) - 0.5

    def convolved(x: Tensor, weight: Tensor, bias: Tensor, groups: int = 1) -> Tensor:
        padding = (0, weight.shape[-1] // 2)
        return F.conv2d(x.permute(2, 0, 1)[None], weight, bias, padding=padding, groups=groups)[0].permute(1, 2, 0)

    def layer(*shape: int) -> Linear:
        return data(*shape), data(shape[0])

    x, other, factors = data(8, 17, CHANNELS), data(2, 17, CHANNELS), data(CHANNELS)
    deep, wide, narrow = layer(CHANNELS, 1, 7, 7), layer(NARROW, CHANNELS, 3, 3), layer(CHANNELS, NARROW, 3, 3)
    f1, f2, f3 = (layer(WIDE, CHANNELS) for _ in range(3))
    gate_in, gate, g = layer(ESA, CHANNELS), layer(WIDE, ESA), layer(CHANNELS, WIDE)
    depthwise, n, low, eps = convolved(x, *deep, groups=CHANNELS), data(34, CHANNELS), data(34, ESA), 1e-5
    product = F.relu6(F.linear(n, *f1)) * F.linear(n, *f2)
    product += torch.sigmoid(F.linear(F.linear(n, *gate_in) + low, *gate)) * F.linear(n, *f3)
    pairs = [
        (
            native.low(x, pack_low(*deep, gate_in, native.tiling), eps),
            F.linear(F.layer_norm(depthwise, [CHANNELS], eps=eps), *gate_in),
        ),
        (native.depthwise_normalise(x, pack_depthwise(*deep), eps), F.layer_norm(depthwise, [CHANNELS], eps=eps)),
        (native.depthwise_mix(x, pack_depthwise(*deep), other, factors), depthwise + other * factors),
        (native.gated(n, low, pack_gated(gate_in, gate, f1, f2, f3, g, native.tiling)), F.linear(product, *g)),
        (native.squeeze(x, pack_convolution(*wide, native.tiling)), F.gelu(convolved(x, *wide))),
        (native.expand(x[..., :NARROW], pack_convolution(*narrow, native.tiling)), convolved(x[..., :NARROW], *narrow)),
    ]
    return all(torch.allclose(result, expected, atol=1e-4) for result, expected in pairs)


def pack_depthwise(weight: Tensor, bias: Tensor) -> Tensor:
    """52×1×7×7 and 52 → 7×7×52, then the bias."""
    return _packed([weight[:, 0].permute(1, 2, 0), bias])


def pack_low(weight: Tensor, bias: Tensor, product: Linear, tiling: Tiling) -> Tensor:
    """As `pack_depthwise`; then for each vector of the product's 16 channels its bias, and its matrix as 52×lanes."""
    pieces = [pack_depthwise(weight, bias)]
    for first, lanes in groups(ESA, tiling.lanes):
        pieces += [product[1][first : first + lanes], product[0][first : first + lanes].T]
    return _packed(pieces)


def pack_gated(gate_in: Linear, gate: Linear, f1: Linear, f2: Linear, f3: Linear, g: Linear, tiling: Tiling) -> Tensor:
    """Matrices O×I and biases O in the order in which `gated` reads them; a bias before its matrix, as I×O."""

    def padded(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(PADDED - len(x), *x.shape[1:])])

    pieces = [gate_in[1], gate_in[0].T]
    width = tiling.vectors * tiling.lanes
    for first in range(0, PADDED, width):
        for matrix, bias in (gate, f3, f1, f2):
            pieces += [padded(bias)[first : first + width], padded(matrix)[first : first + width].T]
    for part in parts(CHANNELS, tiling):
        channels = _channels(part)
        pieces += [g[1][channels], g[0][channels].T]
    return _packed(pieces)


def pack_convolution(weight: Tensor, bias: Tensor, tiling: Tiling) -> Tensor:
    """O×I×3×3 and O: for each part of a tile its bias, then 3×I×3×O; for a single channel 3×3×I."""
    pieces = []
    for part in parts(len(weight), tiling):
        channels = _channels(part)
        order = (2, 3, 1, 0) if part[0][1] == 1 else (2, 1, 3, 0)
        pieces += [bias[channels], weight[channels].permute(order)]
    return _packed(pieces)


def _channels(part: Sequence[Group]) -> slice:
    return slice(part[0][0], sum(part[-1]))


def _packed(pieces: Sequence[Tensor]) -> Tensor:
    return torch.cat([piece.float().reshape(-1) for piece in pieces])
