"""What a video file is: its pictures, its times, its colours. Everything that can be refused is refused here."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.encparams import VideoEncParams, VideoEncParamsType
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as Kind
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from hasn_cli.errors import ImageError
from hasn_cli.images.compression import Compression

Source = Path | BinaryIO
"""A file, or a stream that is read once."""

MATRIX_RGB, BT709, UNKNOWN, BT470BG, SMPTE170M, BT2020 = 0, 1, 2, 5, 6, 9  # ITU-T H.273
LIMITED, FULL = 1, 2  # FFmpeg's names for the ranges of samples
HD_LINES = 720  # from this height on, players take untagged colours for those of BT.709
ENCRYPTED = ("encv", "drmi", "drmv")
ATTACHED_PICTURE = 0x400
LOSSLESS = frozenset(
    ("apng", "bmp", "cscd", "ffv1", "ffvhuff", "flashsv", "gif", "huffyuv", "magicyuv", "mszh", "png", "qtrle", "r210",
     "rawvideo", "tiff", "utvideo", "v210", "v410", "wrapped_avframe", "zlib")
)  # fmt: skip
"""Decoders of codecs that compress without loss."""
MASTER = frozenset(("prores", "dnxhd", "cfhd", "mjpeg", "dvvideo", "jpeg2000"))
"""Decoders of codecs that compress each frame alone, mostly for editing."""
TITLES = {
    "h264": "H.264", "hevc": "H.265", "libdav1d": "AV1", "av1": "AV1", "mpeg4": "MPEG-4", "mpeg2video": "MPEG-2",
    "mpeg1video": "MPEG-1", "prores": "ProRes", "dnxhd": "DNxHD", "mjpeg": "Motion JPEG", "dvvideo": "DV",
}  # fmt: skip
"""FFmpeg's names of decoders → the codec's name for people, where it is not the same in capital letters."""
PROBED_FRAMES = 8  # so many frames are looked at to describe a video


@dataclass(frozen=True)
class Colour:
    """How samples stand for colours: code points of ITU-T H.273, and FFmpeg's `LIMITED` or `FULL` range."""

    primaries: int = UNKNOWN
    transfer: int = UNKNOWN
    matrix: int = BT709
    range: int = LIMITED


@dataclass(frozen=True)
class Clip:
    """A video as it was opened.

    Attributes:
        name: for messages.
        container: FFmpeg's name, or several names, of the container.
        codec: FFmpeg's name of the decoder.
        size: (height, width) of the frames as they are stored. Players may turn them, by `display_matrix`.
        channels: 1 gray, 3 RGB or 4 RGBA, as frames are decoded here.
        dtype: uint8, or uint16 if the file has more than 8 bits.
        depth: bits of a sample in the file.
        pixel_format: FFmpeg's name of the frames' format.
        colour: as the file says it, or as players take it.
        pixel_aspect: width of a pixel divided by its height.
        display_matrix: nine numbers that turn or mirror the frames when they are shown; None: as they are.
        interlaced: whether one of the first frames is made of two fields.
        frames: how many there are, as the file says; None if it does not.
        duration: in seconds; None if the file does not say.
        rate: frames a second, on average.
        time_base: the unit of all times, in seconds.
        stream: the index of the video among the file's streams.
        quantizer: of H.264: QP, 0 to 51, the mean over the first frames; None for other codecs.
        notices: what will be lost, in a few words each.
    """

    name: str
    container: str
    codec: str
    size: tuple[int, int]
    channels: int
    dtype: np.dtype[Any]
    depth: int
    pixel_format: str
    colour: Colour
    pixel_aspect: Fraction
    display_matrix: tuple[int, ...] | None
    interlaced: bool
    frames: int | None
    duration: Fraction | None
    rate: Fraction
    time_base: Fraction
    stream: int
    quantizer: float | None = None
    notices: tuple[str, ...] = ()

    @property
    def has_alpha(self) -> bool:
        return self.channels == 4

    @property
    def lossless(self) -> bool:
        """Whether the file was compressed without loss."""
        return self.codec in LOSSLESS

    @property
    def intra(self) -> bool:
        """Whether each frame was compressed alone, as for editing."""
        return self.codec in MASTER

    @property
    def compression(self) -> Compression | None:
        """The lossy compression of the file; None if it is lossless."""
        if self.lossless:
            return None
        quantizer = None if self.quantizer is None else round(self.quantizer)
        title = TITLES.get(self.codec, self.codec.upper())
        return Compression(title, video=True, intra=self.intra, quantizer=quantizer)

    @property
    def step(self) -> int:
        """How long a frame is shown, on average, in units of `time_base`; at least 1."""
        return max(1, round(1 / (self.rate * self.time_base)))

    @property
    def expected_frames(self) -> int | None:
        """The number of frames, estimated from the duration if the file does not say it."""
        if self.frames:
            return self.frames
        return None if self.duration is None else max(1, round(self.duration * self.rate))


@contextlib.contextmanager
def opened(source: Source, name: str) -> Iterator[InputContainer]:
    """Open a video file or stream.

    Raises:
        ImageError: it cannot be read, or is not a video.
    """
    try:
        container = av.open(str(source) if isinstance(source, Path) else source, "r", metadata_errors="replace")
    except av.FFmpegError as error:
        raise _unreadable(name, error) from error
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror or error}") from error
    with container:
        yield container


def _unreadable(name: str, error: av.FFmpegError) -> ImageError:
    if isinstance(error, OSError) and error.errno and isinstance(error, FileNotFoundError | PermissionError):
        return ImageError(f"{name}: {error.strerror}")
    message = f"{name}: not a video that can be read, or its index is missing"
    return ImageError(message, "a recording or download that was cut short has no index; copy the file again")


def probe(source: Path, name: str = "") -> Clip:
    """Open a video and describe it. Its first frames are decoded.

    Raises:
        ImageError: there is no video in it, or it cannot be decoded.
    """
    name = name or str(source)
    with opened(source, name) as container:
        stream = video_stream(container, name)
        try:
            frames = first_frames(container.demux(stream), stream, PROBED_FRAMES, name)
        except av.FFmpegError as error:
            raise ImageError(f"{name}: cannot be read: {reason(error)}") from error
        return describe(container, stream, frames, name)


def first_frames(
    packets: Iterable[Packet[Any]], stream: VideoStream, count: int, name: str, others: list[Packet[Any]] | None = None
) -> list[VideoFrame]:
    """Decode packets until there are `count` frames, or the end is reached. Packets of other tracks go to `others`.

    Raises:
        ImageError: they cannot be decoded.
    """
    found: list[VideoFrame] = []
    failure: av.FFmpegError | None = None
    for packet in packets:
        if packet.stream_index != stream.index:
            if others is not None:
                others.append(packet)
            continue
        try:
            found += stream.codec_context.decode(packet)
        except av.EOFError:
            break
        except av.FFmpegError as error:
            failure = failure or error
            if found or not begins_anywhere(stream.container.format.name):
                break
        if len(found) >= count:
            break
    if not found and failure is not None:
        raise ImageError(f"{name}: the first frames cannot be decoded: {reason(failure)}") from failure
    return found


def begins_anywhere(container: str) -> bool:
    """Whether recordings in this container may begin between two key frames, so that the first frames are missing."""
    return container in ("mpegts", "mpeg")


def reason(error: av.FFmpegError) -> str:
    """What FFmpeg says about an error, in a few words."""
    return (error.strerror or "invalid data").lower()


def video_stream(container: InputContainer, name: str) -> VideoStream:
    """The video among a file's streams: the first one that is not a cover picture.

    Raises:
        ImageError: there is none, or it is encrypted, or no decoder knows it.
    """
    found = [stream for stream in container.streams.video if not stream.disposition & ATTACHED_PICTURE]
    if not found:
        what = "only sound" if container.streams.audio else "no video"
        raise ImageError(f"{name}: there is {what} in this file")
    stream = found[0]
    if stream.codec_context is None:
        raise ImageError(f"{name}: its codec is unknown, so it cannot be decoded", "convert it to H.264 first")
    if stream.codec_context.codec_tag in ENCRYPTED:
        raise ImageError(f"{name}: is encrypted (DRM), so it cannot be decoded")
    stream.thread_type = "AUTO"
    # damaged frames are errors, and not made up; and frames say how they were quantized
    stream.codec_context.options = {"err_detect": "explode", "export_side_data": "venc_params"}
    return stream


def describe(container: InputContainer, stream: VideoStream, frames: list[VideoFrame], name: str) -> Clip:
    """Describe the video in `stream`, whose first frames are `frames`.

    Raises:
        ImageError: there are no frames.
    """
    if not frames:
        raise ImageError(f"{name}: contains no frames")
    first = frames[0]
    pixel_format, components = first.format, first.format.components
    alpha = any(part.is_alpha for part in components) or pixel_format.has_palette
    depth = 8 if pixel_format.has_palette else max(part.bits for part in components)
    gray = not has_colour(pixel_format)
    duration = stream.duration * stream.time_base if stream.duration and stream.time_base else None
    if duration is None and container.duration:
        duration = Fraction(container.duration, av.time_base)
    return Clip(
        name=name,
        container=container.format.name,
        codec=stream.codec_context.codec.name,
        size=(first.height, first.width),
        channels=4 if alpha else 1 if gray else 3,
        dtype=np.dtype(np.uint8 if depth <= 8 else np.uint16),
        depth=depth,
        pixel_format=pixel_format.name,
        colour=_colour(first),
        pixel_aspect=stream.sample_aspect_ratio or Fraction(1),
        display_matrix=_display_matrix(first),
        interlaced=any(frame.interlaced_frame for frame in frames),
        frames=stream.frames or None,
        duration=duration,
        rate=stream.average_rate or stream.guessed_rate or Fraction(25),
        time_base=stream.time_base or Fraction(1, 90_000),
        stream=stream.index,
        quantizer=_quantizer(frames),
        notices=tuple(_losses(container, stream, first)),
    )


def _losses(container: InputContainer, stream: VideoStream, first: VideoFrame) -> Iterator[str]:
    kinds = {data.type for data in _side_data(first)}
    if kinds & {Kind.MASTERING_DISPLAY_METADATA, Kind.CONTENT_LIGHT_LEVEL}:
        yield "HDR mastering metadata is not kept"
    if kinds & {Kind.DOVI_METADATA, Kind.DOVI_RPU_BUFFER, Kind.DYNAMIC_HDR_PLUS}:
        yield "dynamic HDR metadata is not kept"
    others = [other for other in container.streams.video if not other.disposition & ATTACHED_PICTURE]
    if len(others) > 1:
        yield f"only the first of {len(others)} video tracks is enlarged, the others are copied"


def has_colour(format: VideoFormat) -> bool:
    """Whether a format of samples holds colour, and not only gray."""
    return format.is_rgb or format.has_palette or sum(not part.is_alpha for part in format.components) >= 3


def _colour(frame: VideoFrame) -> Colour:
    """What the frame says; where it says nothing, what players assume."""
    if frame.format.is_rgb or frame.format.has_palette:
        return Colour(frame.color_primaries, frame.color_trc, MATRIX_RGB, FULL)
    matrix = int(frame.colorspace)
    if matrix in (MATRIX_RGB, UNKNOWN):
        matrix = BT709 if frame.height >= HD_LINES else SMPTE170M
    usually_full = frame.format.name.startswith("yuvj") or not has_colour(frame.format)
    full = frame.color_range == FULL or (usually_full and frame.color_range != LIMITED)
    return Colour(int(frame.color_primaries), int(frame.color_trc), matrix, FULL if full else LIMITED)


def _side_data(frame: VideoFrame) -> Iterator[SideData]:
    return iter(frame.side_data)  # type: ignore[arg-type]  # PyAV's own hint takes it for a mapping


def _quantizer(frames: list[VideoFrame]) -> float | None:
    """The mean of H.264's quantization parameters over all blocks of all frames."""
    found = [data for frame in frames for data in _side_data(frame) if data.type == Kind.VIDEO_ENC_PARAMS]
    values = [
        float(data.qp_map().mean())
        for data in found
        if isinstance(data, VideoEncParams) and data.codec_type == VideoEncParamsType.H264
    ]
    return float(np.mean(values)) if values else None


def _display_matrix(frame: VideoFrame) -> tuple[int, ...] | None:
    for data in _side_data(frame):
        if data.type == Kind.DISPLAYMATRIX:
            return struct.unpack("=9i", memoryview(data)[:36])
    return None
