"""Turns arrays into the packets of a video: which codec, which format of samples, which quality."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.codec.context import Flags
from av.container import OutputContainer
from av.filter import Graph
from av.packet import Packet
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from hasn_cli.errors import ImageError, UsageError
from hasn_cli.video.clip import BT709, HD_LINES, LIMITED, MATRIX_RGB, SMPTE170M, Clip, Colour, has_colour
from hasn_cli.video.containers import CONTAINERS, Codec
from hasn_cli.video.frames import EXACT, MATRICES, array_format, range_name

os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder writes to stderr on its own: only errors

QUALITY = 80
"""The quality of videos if none is given."""
ENCODERS = {"h264": "libx264", "h265": "libx265", "av1": "libsvtav1", "prores": "prores_ks", "ffv1": "ffv1"}
TITLES = {"h264": "H.264", "h265": "H.265", "av1": "AV1", "prores": "ProRes", "ffv1": "FFV1"}
LARGEST = {"h264": (8192, 35_651_584), "h265": (8192, 35_651_584), "av1": (8704, 142_606_336)}
"""The longest side, and the most pixels, of each codec's highest level (H.264 and H.265: 6.2). AV1: SVT-AV1's own."""
PRORES_PROFILES = ((75, "hq"), (50, "standard"), (25, "lt"), (0, "proxy"))
EVEN = frozenset(("h264", "h265", "av1", "prores"))  # codecs whose sides must be even if colour has half the resolution


@dataclass(frozen=True)
class Encoding:
    """How the frames of an output are encoded.

    Attributes:
        codec: one of `containers.CODECS`, or None for uncompressed frames (Y4M).
        options: of the encoder.
        pixel_format: FFmpeg's name of the format of samples.
        size: (height, width), with the lines that were added to make it even.
        colour: as it is written.
        pixel_aspect: width of a pixel divided by its height.
        rate: frames a second, on average.
        notices: what is lost or changed, in a few words each.
    """

    codec: Codec | None
    options: dict[str, str]
    pixel_format: str
    size: tuple[int, int]
    colour: Colour
    pixel_aspect: Fraction
    rate: Fraction
    notices: tuple[str, ...] = ()


def choose_encoding(
    clip: Clip,
    target_size: tuple[int, int],
    container: str,
    codec: Codec | None = None,
    quality: int | None = None,
    lossless: bool = False,
) -> Encoding:
    """How to encode the result of `clip`.

    Args:
        clip: the input.
        target_size: (height, width) of the result.
        container: one of `CONTAINERS`.
        codec: None for the container's usual one.
        quality: 1 to 100; see `quality_options`.
        lossless: without loss, in H.264, H.265 and FFV1.

    Raises:
        UsageError: the container cannot hold the codec, or the codec has no such quality.
        ImageError: the codec cannot hold frames of this size, or transparency.
    """
    if container == "y4m":
        return _raw(clip, target_size, codec)
    codec = codec or _usual_codec(clip, container)
    if codec not in CONTAINERS[container].codecs:
        held = ", ".join(CONTAINERS[container].codecs)
        hint = f"it holds {held}; MKV holds all codecs: -f mkv"
        raise UsageError(f"{CONTAINERS[container].title} cannot hold {TITLES[codec]}", hint)
    _check_size(clip, target_size, codec)
    if clip.pixel_aspect != 1 and container in ("mkv", "webm") and codec not in ("h264", "h265"):
        message = (
            f"{clip.name}: its pixels are not square, which cannot be written with {TITLES[codec]} into this container"
        )
        raise ImageError(message, "use --codec h264 or h265, or -f mov")
    pixel_format, notices = choose_pixel_format(clip, codec)
    size, added = _even(target_size, codec, pixel_format)
    return Encoding(
        codec,
        quality_options(codec, quality, lossless) | _profile(codec, clip, quality),
        pixel_format,
        size,
        _written_colour(clip, pixel_format),
        clip.pixel_aspect,
        clip.rate,
        (*notices, *added, *_container_losses(clip, container)),
    )


def _container_losses(clip: Clip, container: str) -> list[str]:
    if clip.display_matrix is not None and not CONTAINERS[container].turns:
        return [f"{CONTAINERS[container].title} does not say that the frames are turned when they are shown"]
    return []


def _usual_codec(clip: Clip, container: str) -> Codec:
    if clip.has_alpha:
        for codec in ("prores", "ffv1"):
            if codec in CONTAINERS[container].codecs:
                return codec
    return CONTAINERS[container].codecs[0]


def _raw(clip: Clip, target_size: tuple[int, int], codec: Codec | None) -> Encoding:
    if codec is not None:
        raise UsageError("Y4M holds uncompressed frames, so --codec has no effect", "leave it out, or use -f nut")
    if clip.has_alpha:
        raise ImageError(f"{clip.name}: Y4M cannot hold transparency", "use -f nut --codec ffv1")
    known = ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le")
    pixel_format = clip.pixel_format if clip.pixel_format in known else "yuv444p" if clip.depth <= 8 else "yuv444p10le"
    colour = _written_colour(clip, pixel_format)
    notices = []
    if clip.pixel_aspect != 1:
        notices.append("Y4M does not say that the pixels are not square")
    return Encoding(None, {}, pixel_format, target_size, colour, clip.pixel_aspect, clip.rate, tuple(notices))


def _check_size(clip: Clip, size: tuple[int, int], codec: Codec) -> None:
    side, pixels = LARGEST.get(codec, (0, 0))
    if side and (max(size) > side or size[0] * size[1] > pixels):
        hint = "choose a smaller size, or --codec ffv1 (in MKV) or prores (in MOV)"
        raise ImageError(f"{clip.name}: {size[1]}×{size[0]} is too large for {TITLES[codec]}", hint)


def choose_pixel_format(clip: Clip, codec: Codec) -> tuple[str, list[str]]:
    """The format of samples that keeps most of the input's: its transparency, colour resolution and depth.

    Returns:
        FFmpeg's name of the format, and what it loses.

    Raises:
        ImageError: the codec cannot hold transparency.
    """
    source = VideoFormat(clip.pixel_format, 64, 64)
    formats = [VideoFormat(one.name, 64, 64) for one in av.Codec(ENCODERS[codec], "w").video_formats or ()]
    usable = [one for one in formats if _is_usable(one, codec)]
    if clip.has_alpha:
        usable = [one for one in usable if _has_alpha(one)]
        if not usable or codec == "h265":  # few players show H.265 with transparency
            hint = "use --codec prores (MOV, MKV) or ffv1 (MKV)"
            raise ImageError(f"{clip.name}: {TITLES[codec]} cannot hold its transparency", hint)
    else:
        usable = [one for one in usable if not _has_alpha(one)]
    best = min(usable, key=lambda one: _loss(source, clip.depth, one))
    depth = max(part.bits for part in best.components)
    notices = []
    if depth < clip.depth:
        notices.append(f"{clip.depth} bits become {depth}, the most that {TITLES[codec]} has here")
    if _chroma(best) < _chroma(source):
        notices.append(f"colour has a lower resolution, as {TITLES[codec]} has it here")
    return best.name, notices


def _is_usable(format: VideoFormat, codec: Codec) -> bool:
    """Whether a format is planar or packed samples in a well-known layout; and gray only where players show it."""
    gray = not has_colour(format)
    odd = format.name.startswith(("yuvj", "nv", "yuv440", "yuv411", "yuv410", "yaf")) or "f16" in format.name
    return not odd and "f32" not in format.name and not (gray and codec != "ffv1")


def _has_alpha(format: VideoFormat) -> bool:
    return any(part.is_alpha for part in format.components)


def _chroma(format: VideoFormat) -> int:
    """How much colour a format of 64×64 pixels holds: the samples of one colour component."""
    if format.is_rgb or format.has_palette:
        return 64 * 64
    return format.components[1].width * format.components[1].height if has_colour(format) else 0


def _loss(source: VideoFormat, depth: int, format: VideoFormat) -> tuple[int, int, int, int]:
    """Smaller is better: lost colour, lost depth, then a change between RGB and YUV, then more than is needed."""
    bits = max(part.bits for part in format.components)
    lost_colour = max(0, _chroma(source) - _chroma(format))
    changed = int((source.is_rgb or source.has_palette) != format.is_rgb)
    surplus = abs(_chroma(format) - _chroma(source)) + abs(bits - depth)
    return lost_colour, max(0, depth - bits), changed, surplus


def quality_options(codec: Codec, quality: int | None, lossless: bool = False) -> dict[str, str]:
    """The encoder's options for a quality from 1 to 100, by default 80.

    H.264 gets a CRF of 51 − 0.43 × quality, so 80 is CRF 16.6 and 100 is CRF 8. H.265 gets 2 more, and AV1 a CRF of
    63 − 0.5 × quality.

    Raises:
        UsageError: the codec has no such choice.
    """
    if codec == "ffv1":
        if quality is not None:
            raise UsageError("FFV1 has no loss, so --quality has no effect", "leave it out")
        return {"level": "3", "slicecrc": "1", "slices": "4"}
    if lossless:
        if codec not in ("h264", "h265"):
            raise UsageError(f"{TITLES[codec]} has no lossless form", "use --codec ffv1, h264 or h265")
        return {"qp": "0"} if codec == "h264" else {"x265-params": "lossless=1:log-level=error"}
    wanted = QUALITY if quality is None else quality
    if codec == "h264":
        return {"crf": f"{51 - 0.43 * wanted:.1f}"}
    if codec == "h265":
        return {"crf": f"{min(51, 53 - 0.43 * wanted):.1f}", "x265-params": "log-level=error"}
    if codec == "av1":
        return {"crf": f"{63 - 0.5 * wanted:.0f}", "preset": "6"}
    return {"vendor": "apl0"}


def _profile(codec: Codec, clip: Clip, quality: int | None) -> dict[str, str]:
    if codec != "prores":
        return {}
    if clip.has_alpha or _chroma(VideoFormat(clip.pixel_format, 64, 64)) == 64 * 64:
        return {"profile": "4444"}
    wanted = QUALITY if quality is None else quality
    return {"profile": next(name for lowest, name in PRORES_PROFILES if wanted >= lowest)}


def _even(size: tuple[int, int], codec: Codec, pixel_format: str) -> tuple[tuple[int, int], list[str]]:
    """The size with as many lines added as the codec needs."""
    format = VideoFormat(pixel_format, 64, 64)
    if codec not in EVEN or format.is_rgb or not has_colour(format):
        return size, []
    chroma = format.components[1]
    steps = 64 // chroma.height, 64 // chroma.width
    if codec == "av1":
        steps = 2, 2
    height, width = (-(-side // step) * step for side, step in zip(size, steps, strict=True))
    if (height, width) == size:
        return size, []
    return (height, width), [f"one line was added, because {TITLES[codec]} needs even sides: {width}×{height}"]


def _written_colour(clip: Clip, pixel_format: str) -> Colour:
    """The colour of the output. Its matrix is always written, because players guess it from the size, which changes."""
    rgb, source = VideoFormat(pixel_format, 64, 64).is_rgb, clip.colour
    if rgb:
        return Colour(source.primaries, source.transfer, MATRIX_RGB, 2)
    if source.matrix == MATRIX_RGB or source.matrix not in MATRICES:
        matrix = BT709 if clip.size[0] >= HD_LINES or source.matrix == MATRIX_RGB else SMPTE170M
        return Colour(source.primaries, source.transfer, matrix, LIMITED)
    return source


class Encoder:
    """Encodes arrays into the packets of a new stream of `container`.

    The encoder counts frames and knows nothing of their times, so that it sees a constant rate. The `pts` and `dts` of
    its packets are numbers of frames, from 0; `dts` may begin below 0.

    Args:
        container: an output that has not been started.
        encoding: how to encode.
        channels, dtype: of the arrays.
    """

    def __init__(self, container: OutputContainer, encoding: Encoding, channels: int, dtype: np.dtype[Any]) -> None:
        self._encoding = encoding
        self._array_format = array_format(channels, dtype)
        self.stream = self._make_stream(container, encoding)
        self._graph = self._make_graph(encoding)
        self._count = 0

    @staticmethod
    def _make_stream(container: OutputContainer, encoding: Encoding) -> VideoStream:
        name = ENCODERS[encoding.codec] if encoding.codec else "wrapped_avframe"
        stream = container.add_stream(name, rate=encoding.rate)
        assert isinstance(stream, VideoStream)
        context = stream.codec_context
        context.height, context.width = encoding.size
        context.pix_fmt = encoding.pixel_format
        context.time_base = 1 / encoding.rate
        context.sample_aspect_ratio = encoding.pixel_aspect
        context.color_primaries = encoding.colour.primaries
        context.color_trc = encoding.colour.transfer
        context.colorspace = encoding.colour.matrix
        context.color_range = encoding.colour.range
        context.flags |= Flags.global_header
        context.options = dict(encoding.options)
        context.thread_type = "AUTO"
        return stream

    def _make_graph(self, encoding: Encoding) -> Graph:
        graph, colour = Graph(), encoding.colour
        height, width = encoding.size
        source = graph.add_buffer(
            width=width, height=height, format=VideoFormat(self._array_format), time_base=1 / encoding.rate
        )
        matrix = MATRICES.get(colour.matrix)
        target = f":out_color_matrix={matrix}" if matrix else ""
        scale = graph.add("scale", f"{EXACT}:in_range=pc{target}:out_range={range_name(colour)}")
        source.link_to(scale)
        kind = graph.add("format", encoding.pixel_format)
        scale.link_to(kind)
        kind.link_to(graph.add("buffersink"))
        graph.configure()
        return graph

    def encode(self, pixels: NDArray[Any]) -> Iterator[Packet[Any]]:
        """Encode the next frame, H×W×C pixels. The packets that are complete by then may be of earlier frames."""
        height, width = self._encoding.size
        if pixels.shape[:2] != self._encoding.size:
            more = ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0))
            pixels = np.pad(pixels, more, mode="edge")
        pixels = np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        frame = VideoFrame.from_ndarray(pixels, format=self._array_format)
        frame.pts, frame.time_base = self._count, 1 / self._encoding.rate
        self._count += 1
        self._graph.push(frame)
        converted = self._graph.pull()
        assert isinstance(converted, VideoFrame)
        converted.color_range = self._encoding.colour.range
        converted.colorspace = self._encoding.colour.matrix
        converted.color_primaries = self._encoding.colour.primaries
        converted.color_trc = self._encoding.colour.transfer
        yield from self._counted(self.stream.encode(converted))

    def finish(self) -> Iterator[Packet[Any]]:
        """The packets that the encoder still holds."""
        yield from self._counted(self.stream.encode(None))

    def _counted(self, packets: Iterable[Packet[Any]]) -> Iterator[Packet[Any]]:
        for packet in packets:
            unit = packet.time_base * self._encoding.rate
            packet.pts, packet.dts = round((packet.pts or 0) * unit), round((packet.dts or 0) * unit)
            packet.duration, packet.time_base = 1, 1 / self._encoding.rate
            yield packet
