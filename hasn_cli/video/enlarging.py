"""Enlarges the frames of a video while others are decoded and encoded, in the memory of a few frames.

A file is made in parts (`segments.py`), so that a run that was killed can go on. A stream is made in one go.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from hasn_cli.errors import ImageError, OutputError
from hasn_cli.files import Placing, Written, replacing, seal
from hasn_cli.video.clip import PROBED_FRAMES, Clip, describe, first_frames, opened, reason, video_stream
from hasn_cli.video.containers import CONTAINERS
from hasn_cli.video.encoding import Encoder, Encoding
from hasn_cli.video.frames import Decoder, TimedFrame, decoded_frames
from hasn_cli.video.segments import Part, Parts, frames_per_part
from hasn_cli.video.tracks import (
    Copied,
    add_copies,
    choose_copied,
    copy_description,
    in_order,
    muxer_options,
    own,
    packets_of,
)

Pixels = NDArray[Any]
Enlarge = Callable[[Pixels], Pixels]
"""H×W×C → h×w×C of the same dtype. Called from several threads at once."""
Progress = Callable[[int, float], None]
"""Called with the number of finished frames and the seconds of the video that are finished. It may raise to cancel."""
AHEAD = 2  # frames that are decoded before they are needed
_REMEMBERED = 1000  # frames that an encoder may hold, and more
_NO_PIXELS = np.empty((0, 0, 0), np.uint8)
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LargeFrame:
    """A frame's result: h×w×C pixels, with the times of `TimedFrame`.

    Attributes:
        repeated: whether the frame equals the one before, so that it was not computed again.
    """

    pixels: Pixels
    time: int
    duration: int | None
    repeated: bool


@dataclass(frozen=True)
class Result:
    """A finished video.

    Attributes:
        frames: how many there are.
        repeated: how many equal the frame before, and were not computed again.
        resumed: how many were finished by an earlier run.
        notices: what could not be kept, in a few words each.
        written: the output file; None for a stream.
    """

    frames: int
    repeated: int
    resumed: int
    notices: tuple[str, ...]
    written: Written | None = None


def prefetched(items: Iterable[T], ahead: int = AHEAD) -> Generator[T]:
    """The same items, but a thread prepares the next ones while this one is used."""
    ready: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(entry: tuple[T | None, BaseException | None, bool]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None, False)):
                    return
            put((None, None, True))
        except BaseException as error:
            put((None, error, True))

    thread = threading.Thread(target=work, name="video decoder", daemon=True)
    thread.start()
    try:
        while True:
            item, error, last = ready.get()
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()


def enlarged(frames: Iterator[TimedFrame], enlarge: Enlarge, workers: int) -> Generator[LargeFrame]:
    """Enlarge frames, in order, `workers` at a time. Frames that equal the one before take its result."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="video frame")
    waiting: deque[tuple[TimedFrame, Future[Pixels], bool]] = deque()
    last: tuple[Pixels, Future[Pixels]] | None = None

    def first() -> LargeFrame:
        frame, future, repeated = waiting.popleft()
        return LargeFrame(future.result(), frame.time, frame.duration, repeated)

    try:
        for frame in frames:
            assert frame.pixels is not None
            repeated = last is not None and np.array_equal(last[0], frame.pixels)
            future = last[1] if last is not None and repeated else pool.submit(enlarge, frame.pixels)
            last = frame.pixels, future
            waiting.append((replace(frame, pixels=None), future, repeated))
            if len(waiting) > workers:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def enlarge_file(
    source: Path,
    target: Path,
    clip: Clip,
    encoding: Encoding,
    container: str,
    enlarge: Enlarge,
    *,
    key: str,
    workers: int = 2,
    resume: bool = False,
    discard: bool = False,
    metadata: bool = True,
    placing: Placing | None = None,
    progress: Progress | None = None,
) -> Result:
    """Enlarge a video file.

    Args:
        source: the input.
        target: the output. Parts are kept beside it until it is finished, also if this raises an error.
        clip: what the input is, from `probe`.
        encoding: from `choose_encoding`.
        container: one of `CONTAINERS`.
        enlarge: enlarges one frame to the size that `encoding` was chosen for.
        key: what the result depends on, apart from the encoding; parts with another key are not used.
        workers: how many frames to enlarge at once, at least 1.
        resume, discard: what to do with the parts of an earlier run; see `Parts`.
        metadata: copy the metadata.
        placing: how the finished file is moved to its target.
        progress: called after each frame.

    Raises:
        ImageError: the input is broken.
        OutputError: the output or its parts cannot be written.
    """
    with opened(source, clip.name) as container_in:
        copied = choose_copied(container_in, clip, container)
    parts = Parts(target, f"{key} {encoding!r} {av.library_versions}", resume=resume, discard=discard)
    finished = False
    try:
        resumed = sum(part.frames for part in parts.finished)
        _make_parts(source, clip, encoding, enlarge, parts, workers, progress)
        notices = (*clip.notices, *encoding.notices, *copied.notices)
        if parts.restarted:
            notices += ("started again, because the input or the settings have changed",)
        written = _join(source, target, clip, encoding, container, copied, parts, metadata, placing)
        finished = True
    finally:
        parts.close(delete=finished)
    frames, repeated = (sum(getattr(part, what) for part in parts.finished) for what in ("frames", "repeated"))
    return Result(frames, repeated, resumed, notices, written)


def _make_parts(
    source: Path,
    clip: Clip,
    encoding: Encoding,
    enlarge: Enlarge,
    parts: Parts,
    workers: int,
    progress: Progress | None,
) -> None:
    """Decode from the start, and enlarge and encode what follows the parts that are there.

    Decoding takes a hundredth of the network's time. Starting in the middle would save it, but could give other frames.
    """
    count = sum(part.frames for part in parts.finished)
    length = frames_per_part(clip.size)
    with ExitStack() as stack:
        opened_source = stack.enter_context(opened(source, clip.name))
        stream = video_stream(opened_source, clip.name)
        decoded = stack.enter_context(closing(prefetched(decoded_frames(opened_source, stream, clip, skip=count))))
        skipped = deque(islice(decoded, count), maxlen=1)
        if count and progress:
            progress(count, _seconds(clip, skipped[0].time))
        large = stack.enter_context(closing(enlarged(decoded, enlarge, workers)))
        while (first := next(large, None)) is not None:
            part = _write_part(clip, encoding, parts, first, islice(large, length - 1), count, progress)
            parts.finish(part)
            count += part.frames
    if not parts.finished:
        raise ImageError(f"{clip.name}: contains no frames")


def _write_part(
    clip: Clip,
    encoding: Encoding,
    parts: Parts,
    first: LargeFrame,
    others: Iterator[LargeFrame],
    count: int,
    progress: Progress | None,
) -> Part:
    shown: list[int] = []  # when each frame is shown, in the order of the display
    order: list[int] = []  # the number of each packet's frame, in the order of decoding
    repeated = end = 0
    with parts.writing() as container:
        encoder = Encoder(container, encoding, first.pixels.shape[2], first.pixels.dtype)

        def write(packets: Iterable[Packet[Any]]) -> None:
            for packet in packets:
                order.append(packet.pts or 0)
                container.mux(packet)

        for frame in chain([first], others):
            write(encoder.encode(frame.pixels))
            shown.append(frame.time)
            repeated += frame.repeated
            end = frame.time + (frame.duration or clip.step)
            if progress:
                progress(count + len(shown), _seconds(clip, end))
        write(encoder.finish())
    if sorted(order) != list(range(len(shown))):
        raise OutputError(f"{parts.folder}: the encoder wrote {len(order)} of {len(shown)} frames")
    return Part([shown[number] for number in order], end, len(shown), repeated)


def _seconds(clip: Clip, time: int) -> float:
    return float(time * clip.time_base)


def _join(
    source: Path,
    target: Path,
    clip: Clip,
    encoding: Encoding,
    container: str,
    copied: Copied,
    parts: Parts,
    metadata: bool,
    placing: Placing | None,
) -> Written:
    """Write all parts and the copied tracks into the output, without encoding anything again."""
    with replacing(target, placing) as stream, opened(source, clip.name) as original:
        path = target.parent / stream.name
        options = muxer_options(container, original.metadata if metadata else {})
        try:
            with av.open(str(path), "w", format=CONTAINERS[container].muxer, options=options) as joined:
                _fill(joined, original, clip, encoding, copied, parts, metadata)
        except av.FFmpegError as error:
            raise OutputError(f"{target}: {CONTAINERS[container].title} cannot be written: {reason(error)}") from error
        return seal(stream, placing.times if placing else None)


def _fill(
    joined: OutputContainer,
    original: InputContainer,
    clip: Clip,
    encoding: Encoding,
    copied: Copied,
    parts: Parts,
    metadata: bool,
) -> None:
    with av.open(str(parts.paths()[0])) as model:
        video = joined.add_stream_from_template(model.streams.video[0], opaque=True)
        assert isinstance(video, VideoStream)
    video.time_base = clip.time_base
    describe_track(video, original.streams[clip.stream], clip, encoding, metadata)
    copies = add_copies(joined, original, copied, metadata=metadata)
    copy_description(joined, original, metadata=metadata)

    def pictures() -> Iterator[Any]:
        for packet in parts.packets():
            packet.time_base = clip.time_base
            packet.stream = video
            yield packet

    for packet in in_order(pictures(), packets_of(original, copies)):
        joined.mux(packet)


def describe_track(video: VideoStream, original: Stream, clip: Clip, encoding: Encoding, metadata: bool) -> None:
    """Write what the container says about the video track: its shape, how it is turned, its language, its title."""
    video.codec_context.sample_aspect_ratio = encoding.pixel_aspect
    muxer = video.container.format.name
    if encoding.codec == "h265" and muxer in ("mp4", "mov"):
        video.codec_context.codec_tag = "hvc1"  # Apple's players want this name
    if clip.display_matrix is not None:
        video.set_display_matrix(clip.display_matrix)
    video.disposition = original.disposition
    if metadata:
        video.metadata.update(own(original.metadata))


def enlarge_stream(
    source: BinaryIO,
    target: BinaryIO,
    container: str,
    name: str,
    prepare: Callable[[Clip], tuple[Encoding, Enlarge]],
    *,
    workers: int = 2,
    metadata: bool = True,
    progress: Progress | None = None,
) -> Result:
    """Enlarge a video that is read from one pipe and written to another, in the memory of a few frames.

    Args:
        source, target: binary streams; neither needs to be seekable.
        container: one of `CONTAINERS` that can be streamed.
        name: the input's name in messages.
        prepare: called with the description of the video; returns how to encode and how to enlarge.
        workers, metadata, progress: see `enlarge_file`.

    Raises:
        ImageError: the input is not a video, or is broken.
    """
    with ExitStack() as stack:
        original = stack.enter_context(opened(source, name))
        stream = video_stream(original, name)
        packets = original.demux()
        early: list[Any] = []  # packets of other tracks that come before the first frame
        first = _first_frames(packets, stream, early, name)
        clip = describe(original, stream, first, name)
        encoding, enlarge = prepare(clip)
        copied = choose_copied(original, clip, container)
        options = {"strict": "-1"} if container == "y4m" else {}
        joined = stack.enter_context(av.open(target, "w", format=CONTAINERS[container].muxer, options=options))
        encoder = Encoder(joined, encoding, clip.channels, clip.dtype)
        if container != "y4m":
            describe_track(encoder.stream, stream, clip, encoding, metadata)
            copy_description(joined, original, metadata=metadata)
        copies = add_copies(joined, original, copied, metadata=metadata)
        joined.start_encoding()
        others: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for packet in early:
            if packet.stream_index in copies:
                others.put(packet)
        decoder = Decoder(clip, stream)

        def frames() -> Iterator[TimedFrame]:
            for frame in first:
                yield from decoder.convert(frame)
            try:
                for packet in packets:
                    if packet.stream_index == clip.stream:
                        yield from decoder.decode(packet)
                    elif packet.stream_index in copies and packet.size and packet.dts is not None:
                        others.put(packet)
            except av.FFmpegError as error:
                raise decoder.broken(reason(error)) from error

        count = repeated = 0
        clock = _Clock(clip)
        decoded = stack.enter_context(closing(prefetched(frames())))
        large = stack.enter_context(closing(enlarged(decoded, enlarge, workers)))
        for frame in large:
            _mux_waiting(joined, others, copies)
            clock.add(frame)
            for packet in encoder.encode(frame.pixels):
                joined.mux(clock.timed(packet))
            count, repeated = count + 1, repeated + frame.repeated
            if progress:
                progress(count, _seconds(clip, frame.time + (frame.duration or 0)))
        for packet in encoder.finish():
            joined.mux(clock.timed(packet))
        _mux_waiting(joined, others, copies)
    return Result(count, repeated, 0, (*clip.notices, *encoding.notices, *copied.notices))


class _Clock:
    """Gives the packets of an encoder, which counts frames, the times of the frames."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._first = 0
        self._frames: dict[int, LargeFrame] = {}
        self._count = 0

    def add(self, frame: LargeFrame) -> None:
        """Note the time of the next frame."""
        self._first = frame.time if self._count == 0 else self._first
        self._frames[self._count] = replace(frame, pixels=_NO_PIXELS)
        self._frames.pop(self._count - _REMEMBERED, None)
        self._count += 1

    def timed(self, packet: Packet[Any]) -> Packet[Any]:
        """The packet with times in the clip's unit."""
        shown, decoded = packet.pts or 0, packet.dts or 0
        packet.time_base = self._clip.time_base
        packet.duration = self._frames[shown].duration or self._clip.step
        packet.pts = self._frames[shown].time
        packet.dts = self._frames[decoded].time if decoded >= 0 else self._first + decoded * self._clip.step
        return packet


def _first_frames(packets: Iterator[Any], stream: VideoStream, early: list[Any], name: str) -> list[VideoFrame]:
    """The first frames of a pipe. Packets of other tracks go to `early`."""
    try:
        return first_frames(packets, stream, PROBED_FRAMES, name, early)
    except (av.FFmpegError, ImageError) as error:
        if "mov" in stream.container.format.name:
            message = f"{name}: the index of this MP4 or MOV comes after its frames, so it cannot be read from a pipe"
            raise ImageError(message, "name the file instead of piping it") from error
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: cannot be read: {reason(error)}") from error


def _mux_waiting(joined: OutputContainer, others: queue.SimpleQueue[Any], copies: dict[int, Any]) -> None:
    while not others.empty():
        packet = others.get()
        packet.stream = copies[packet.stream_index]
        joined.mux(packet)
