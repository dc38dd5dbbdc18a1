"""Decodes a video into arrays, one frame after the other, with their times."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.filter import Graph
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from hasn_cli.errors import ImageError
from hasn_cli.video.clip import Clip, Colour, begins_anywhere, reason

EXACT = "flags=accurate_rnd+full_chroma_int+full_chroma_inp+bicubic"
"""How FFmpeg's scaler converts colours: with exact rounding, and colour at full resolution."""
LEEWAY = Fraction(1, 2)  # seconds that a file may be shorter than it declares
COUNTING = {"mov,mp4,m4a,3gp,3g2,mj2": Fraction(0), "avi": LEEWAY}
"""Containers that say how many frames there are, and how many seconds of them may be missing: AVI often counts one too
many. Matroska says how long it is; for others, FFmpeg only estimates it."""
MATRICES = {1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
"""Matrix coefficients in ITU-T H.273 → the scaler's name for them."""


@dataclass(frozen=True, eq=False)
class TimedFrame:
    """A frame and its time.

    Attributes:
        pixels: H×W×C as `Clip.channels` and `Clip.dtype` say; None if the pixels were not asked for.
        time: when it is shown, in units of `Clip.time_base`.
        duration: in the same unit; None if the file does not say.
    """

    pixels: NDArray[Any] | None
    time: int
    duration: int | None


def array_format(channels: int, dtype: np.dtype[Any]) -> str:
    """FFmpeg's name of the pixel format of H×W×C arrays, C = 1, 3 or 4."""
    wide = dtype.itemsize == 2
    return {1: "gray16le" if wide else "gray", 3: "rgb48le" if wide else "rgb24", 4: "rgba64le" if wide else "rgba"}[
        channels
    ]


def range_name(colour: Colour) -> str:
    """The scaler's name of a range."""
    return "pc" if colour.range == 2 else "tv"


def clock(seconds: Fraction | float) -> str:
    """A time in a video: `0:12.4`, `1:02:03.0`."""
    tenths = int(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    rest = f"{minutes}:{tenths // 10:02d}.{tenths % 10}"
    return f"{hours}:{minutes:02d}:{tenths // 10:02d}.{tenths % 10}" if hours else rest


class Decoder:
    """Turns the packets of a video into frames.

    Interlaced frames become whole frames by FFmpeg's filter bwdif, others are left alone.

    Args:
        clip: what the video is.
        stream: the opened stream.
        skip: so many frames at the beginning are decoded, but not converted to arrays.
    """

    def __init__(self, clip: Clip, stream: VideoStream, skip: int = 0) -> None:
        self._clip, self._stream, self._skip = clip, stream, skip
        self._graph: Graph | None = None
        self._graph_key: tuple[object, ...] = ()
        self._deinterlaces = clip.interlaced
        self._last: int | None = None
        self._count = 0

    def decode(self, packet: Packet[Any] | None) -> Iterator[TimedFrame]:
        """The frames that a packet completes; None at the end of the file.

        Raises:
            ImageError: a frame is broken, or its size or format changes.
        """
        try:
            decoded = self._stream.codec_context.decode(packet)
        except av.EOFError:
            return
        except av.FFmpegError as error:
            if self._last is None and packet is not None and begins_anywhere(self._clip.container):
                return
            raise self.broken(reason(error)) from error
        for frame in decoded:
            yield from self.convert(frame)
        if packet is None or packet.size == 0:
            yield from self._drained()

    def broken(self, what: str) -> ImageError:
        """The error for a video that breaks off, or becomes another, after the last frame."""
        time = clock(0 if self._last is None else self._last * self._clip.time_base)
        hint = "ffmpeg -i IN -c copy OUT may repair it, or -err_detect ignore_err with a new encoding"
        return ImageError(f"{self._clip.name}: broken after {time}: {what}", hint)

    def convert(self, frame: VideoFrame) -> Iterator[TimedFrame]:
        """The frames that a decoded frame completes; the filter that deinterlaces needs the next one.

        Raises:
            ImageError: the frame is broken, or has another size.
        """
        if frame.is_corrupt:
            raise self.broken("a frame is damaged or incomplete")
        if (frame.height, frame.width) != self._clip.size:
            old, new = (f"{width}×{height}" for height, width in (self._clip.size, (frame.height, frame.width)))
            raise self.broken(f"its size changes from {old} to {new}")
        yield from self._adapt(frame)
        assert self._graph is not None
        self._graph.push(frame)
        yield from self._pulled()

    def _adapt(self, frame: VideoFrame) -> Iterator[TimedFrame]:
        """Make a new filter graph if frames come in another format, or interlaced for the first time."""
        self._deinterlaces |= frame.interlaced_frame
        key = (frame.format.name, self._deinterlaces)
        if key != self._graph_key:
            yield from self._drained()
            self._graph, self._graph_key = self._make_graph(frame), key

    def _make_graph(self, frame: VideoFrame) -> Graph:
        clip, colour = self._clip, self._clip.colour
        graph = Graph()
        last = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=clip.time_base)
        steps = [("bwdif", "mode=send_frame:deint=interlaced")] if self._deinterlaces else []
        matrix = MATRICES.get(colour.matrix)
        source = f":in_color_matrix={matrix}:in_range={range_name(colour)}" if matrix else ""
        if clip.channels == 1:
            source = f":in_range={range_name(colour)}"
        steps += [("scale", f"{EXACT}{source}:out_range=pc"), ("format", array_format(clip.channels, clip.dtype))]
        for name, arguments in steps:
            node = graph.add(name, arguments)
            last.link_to(node)
            last = node
        last.link_to(graph.add("buffersink"))
        graph.configure()
        return graph

    def _drained(self) -> Iterator[TimedFrame]:
        """The frames that the filters still hold."""
        if self._graph is not None:
            self._graph.push(None)
            yield from self._pulled()
            self._graph, self._graph_key = None, ()

    def _pulled(self) -> Iterator[TimedFrame]:
        assert self._graph is not None
        while True:
            try:
                frame = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            assert isinstance(frame, VideoFrame)
            yield self._timed(frame)

    def _timed(self, frame: VideoFrame) -> TimedFrame:
        base = self._clip.time_base
        factor = (frame.time_base or base) / base  # bwdif has a finer unit
        given = frame.pts if frame.pts is not None else frame.dts
        time = self._next_time() if given is None else round(given * factor)
        if self._last is not None and time <= self._last:
            time = self._next_time()
        self._last = time
        self._count += 1
        duration = round(frame.duration * factor) if frame.duration else None
        if self._count <= self._skip:
            return TimedFrame(None, time, duration)
        pixels = frame.to_ndarray()
        return TimedFrame(pixels if pixels.ndim == 3 else pixels[..., None], time, duration)

    def _next_time(self) -> int:
        return 0 if self._last is None else self._last + self._clip.step


def decoded_frames(container: InputContainer, stream: VideoStream, clip: Clip, skip: int = 0) -> Iterator[TimedFrame]:
    """All frames of a video in a file. The first `skip` ones come without pixels.

    Raises:
        ImageError: a frame is broken, or the file ends before the number of frames that it declares.
    """
    decoder = Decoder(clip, stream, skip)
    packets, end = 0, Fraction(0)
    try:
        for packet in container.demux():
            if packet.dts is not None and packet.time_base:
                end = max(end, (max(packet.dts, packet.pts or 0) + (packet.duration or 0)) * packet.time_base)
            if packet.stream_index == clip.stream:
                packets += packet.dts is not None
                yield from decoder.decode(packet)
    except av.FFmpegError as error:
        raise decoder.broken(reason(error)) from error
    missing = (clip.frames or 0) - packets
    if missing > COUNTING.get(clip.container, Fraction(1_000_000)) * clip.rate:
        raise decoder.broken(f"only {packets} of {clip.frames} frames are there; the file was cut short")
    declared = Fraction(container.duration or 0, av.time_base)
    if clip.container == "matroska,webm" and end + LEEWAY < declared:
        raise decoder.broken(f"only {clock(end)} of {clock(declared)} are there; the file was cut short")


def frame_at(container: InputContainer, stream: VideoStream, clip: Clip, seconds: float) -> TimedFrame:
    """The frame that is shown at a time, in seconds after the first frame.

    Raises:
        ImageError: the video ends before, or a frame is broken.
    """
    wanted = (stream.start_time or 0) + int(seconds / clip.time_base)
    with contextlib.suppress(av.FFmpegError):  # where seeking is impossible, decode from the start
        container.seek(wanted, stream=stream)
    decoder = Decoder(clip, stream)
    shown: TimedFrame | None = None
    for packet in container.demux(stream):
        for frame in decoder.decode(packet):
            if shown is not None and frame.time > wanted:
                return shown
            shown = frame
    if shown is None or wanted >= shown.time + (shown.duration or clip.step):
        length = "" if clip.duration is None else f", which is {clock(clip.duration)} long"
        raise ImageError(f"{clip.name}: there is no frame at {clock(seconds)} in this video{length}")
    return shown
