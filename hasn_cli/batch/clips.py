"""Enlarge one video. The counterpart of `work.py`, which does the same for pictures."""

from __future__ import annotations

import hashlib
import io
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hasn_cli import __version__
from hasn_cli.batch.events import Done, Progress, Started
from hasn_cli.batch.jobs import Job
from hasn_cli.batch.marks import Mark, input_state, mark_input, mark_written
from hasn_cli.batch.memory_limit import MemoryLimit
from hasn_cli.batch.pool import Planner, PooledUpscaler, UpscalerPool
from hasn_cli.batch.process import (
    Receipt,
    Tell,
    exists_already,
    make_output_folder,
    placing_of,
    plan_in_words,
    throttled,
)
from hasn_cli.batch.settings import Settings
from hasn_cli.choice import Choice, choose_for_video
from hasn_cli.enlarge import PASSES, Size, enlarge_pixels
from hasn_cli.errors import ImageError, OutputError, UsageError
from hasn_cli.files import Overwrite, replacing, seal
from hasn_cli.images.formats import FORMATS
from hasn_cli.video.clip import Clip, probe
from hasn_cli.video.containers import CONTAINERS, container_for_name, default_container
from hasn_cli.video.encoding import TITLES, Encoding, choose_encoding
from hasn_cli.video.enlarging import AHEAD, Enlarge, Result, enlarge_file, enlarge_stream
from hasn_cli.video.still import still

SAMPLE = 256  # side of the crop whose time tells how long a video takes


@dataclass(frozen=True)
class _Run:
    """What is known about a video once it is open."""

    clip: Clip
    container: str
    encoding: Encoding
    choice: Choice


def do_clip(
    job: Job,
    settings: Settings,
    pool: UpscalerPool,
    memory: MemoryLimit,
    tell: Tell,
    overwrite: Overwrite,
    resume: bool = False,
) -> tuple[Done, Receipt]:
    """Open, enlarge and write one video.

    Args:
        overwrite: whether a file that is at the output may be replaced; if so, parts of an earlier run are deleted.
        resume: continue with the parts of an earlier run.

    Raises:
        HasnError: the video failed. The parts that are finished remain beside the output.
        Cancelled: the pool was stopped.
    """
    began = time.perf_counter()
    if isinstance(job.source, str) and job.source != "-":
        raise ImageError(f"{job.name}: a video at a URL cannot be enlarged", "download it first")
    if isinstance(job.target, str) and job.target != "-":
        raise ImageError(f"{job.target}: a video cannot be written to a URL", "write it to a file: -o FILE")
    if job.source == "-" or job.target == "-" or _container(job, settings) == "y4m":
        return _do_stream(job, settings, pool, tell, overwrite, began)
    assert isinstance(job.source, Path)
    assert isinstance(job.target, Path)
    before = input_state(job.source)
    clip = probe(job.source, job.name)
    run = _plan(job, clip, settings)
    mark = mark_input(job.source, before=before)
    enlarge = _Enlarger(clip, settings, pool, run.choice)
    with memory.take(bytes_needed(clip, settings, enlarge.workers)):
        started = _started(job, run, settings, pool)
        tell(started)
        make_output_folder(job, job.target)
        try:
            result = enlarge_file(
                job.source,
                job.target,
                clip,
                run.encoding,
                run.container,
                enlarge,
                key=_key(settings, mark, enlarge.digest, run.choice),
                workers=enlarge.workers,
                resume=resume,
                discard=overwrite is True,
                metadata=not settings.encode.strip,
                placing=placing_of(job, settings, overwrite),
                progress=_reporter(job, clip, tell),
            )
        except FileExistsError as error:
            raise exists_already(job.target) from error
        except OSError as error:
            raise OutputError(f"{job.target}: {error.strerror}") from error
    if input_state(job.source) != before:
        raise ImageError(f"{job.name}: was changed while it was read", "try again when no other program writes to it")
    assert result.written is not None
    done = _done(job, run, settings, result, time.perf_counter() - began, enlarge.seconds, result.written.size)
    return done, Receipt(mark, mark_written(result.written), enlarge.scale, enlarge.digest)


def _do_stream(
    job: Job, settings: Settings, pool: UpscalerPool, tell: Tell, overwrite: Overwrite, began: float
) -> tuple[Done, Receipt]:
    """The same for a pipe on either side, and for uncompressed frames. Nothing is kept of an interrupted run."""
    container = _container(job, settings)
    if job.target == "-" and not CONTAINERS[container].streams:
        raise UsageError(
            f"{CONTAINERS[container].title} cannot be written to a pipe", "use -f nut, mkv, ts or y4m, or a file"
        )
    run: list[_Run] = []
    enlargers: list[_Enlarger] = []
    reports: list[Callable[[int, float], None]] = []

    def prepare(clip: Clip) -> tuple[Encoding, Enlarge]:
        run.append(_plan(job, clip, settings))
        enlargers.append(_Enlarger(clip, settings, pool, run[0].choice))
        reports.append(_reporter(job, clip, tell))
        tell(_started(job, run[0], settings, pool))
        return run[0].encoding, enlargers[0]

    def to(target: BinaryIO) -> Result:
        with sys.stdin.buffer if job.source == "-" else Path(job.source).open("rb") as source:
            return enlarge_stream(
                source,
                target,
                container,
                job.name,
                prepare,
                workers=len(pool.devices) + 1,
                metadata=not settings.encode.strip,
                progress=lambda frames, seconds: reports[0](frames, seconds),
            )

    state: Mark = {}
    if isinstance(job.target, Path):
        make_output_folder(job, job.target)
        placing = placing_of(job, settings, overwrite)
        try:
            with replacing(job.target, placing) as stream:
                result = to(stream)
                written = seal(stream, placing.times)
        except FileExistsError as error:
            raise exists_already(job.target) from error
        state, size = mark_written(written), written.size
    else:
        counted = _Counted(sys.stdout.buffer)
        try:
            result = to(counted)  # type: ignore[arg-type]
            counted.flush()
        except Exception as error:
            raise counted.error or error from error
        size = counted.size
    enlarger = enlargers[0]
    done = _done(job, run[0], settings, result, time.perf_counter() - began, enlarger.seconds, size)
    return done, Receipt({}, state, enlarger.scale, enlarger.digest)


class _Counted(io.RawIOBase):
    """A stream that is only written to, and counts its bytes. FFmpeg hides why writing fails, so `error` keeps it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.size = 0
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.size += len(data)
        try:
            return self._stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        if not self.closed:
            self._stream.flush()


class _Enlarger:
    """Enlarges the frames of one video, from several threads."""

    def __init__(self, clip: Clip, settings: Settings, pool: UpscalerPool, choice: Choice) -> None:
        self._settings, self._pool, self._choice = settings, pool, choice
        self.scale = settings.size.network_scale(clip.size)
        self.digest = pool.digest(self.scale)
        self.workers = len(pool.devices) + 1  # one more than there are networks, to prepare the next frame
        self._times: list[float] = []

    @property
    def seconds(self) -> float:
        """How long the network has computed."""
        return sum(self._times)

    def __call__(self, pixels: NDArray[Any]) -> NDArray[Any]:
        upscaler = PooledUpscaler(self._pool)
        upscaler.photo = self._choice.photo
        settings = self._settings
        large = enlarge_pixels(
            pixels,
            upscaler.for_scale,
            settings.size,
            settings.consistent,
            alpha=settings.alpha,
            limit=self._choice.limit,
        )
        self._times.append(upscaler.seconds)
        return large


def plan_clip(job: Job, settings: Settings, pool: UpscalerPool | Planner) -> Started:
    """Plan what to do with a video, and measure on a piece of its first frame how long it would take.

    Raises:
        HasnError: it cannot be done.
    """
    if not isinstance(job.source, Path):
        raise ImageError(f"{job.name}: a dry run cannot look into a video that comes from a pipe or a URL")
    clip = probe(job.source, job.name)
    run = _plan(job, clip, settings)
    started = _started(job, run, settings, pool)
    seconds = _seconds_per_frame(still(job.source, job.name).load().frames, clip, settings, run.choice)
    return replace(started, estimate=seconds * started.frames if started.frames else None)


def _seconds_per_frame(frames: Any, clip: Clip, settings: Settings, choice: Choice) -> float:
    """How long the network takes for a frame, by the time for a crop of the first one."""
    pixels = next(iter(frames)).pixels[:SAMPLE, :SAMPLE]
    settings = replace(settings, size=Size(factor=settings.size.network_scale(clip.size)))
    pool = UpscalerPool(settings)
    try:
        _Enlarger(clip, settings, pool, choice)(pixels)  # the first time, the network is loaded
        enlarge = _Enlarger(clip, settings, pool, choice)
        enlarge(pixels)
    finally:
        pool.stop()
    return float(enlarge.seconds * clip.size[0] * clip.size[1] / pixels[..., 0].size)


def _plan(job: Job, clip: Clip, settings: Settings) -> _Run:
    container = _container(job, settings)
    if settings.format is not None or (isinstance(job.target, Path) and container_for_name(str(job.target)) is None):
        what = FORMATS[settings.format].title if settings.format else job.target
        raise ImageError(f"{job.name}: is a video, and {what} a picture", "--first-frame makes a picture of it")
    encode = settings.encode
    encoding = choose_encoding(
        clip,
        settings.size.target(clip.size),
        container,
        settings.codec,
        encode.quality if encode.lossless is False else None,  # otherwise no quality was given
        lossless=bool(encode.lossless),
    )
    raw = clip.codec == "rawvideo"
    return _Run(clip, container, encoding, choose_for_video(clip.compression, settings.weights, raw=raw))


def _container(job: Job, settings: Settings) -> str:
    if job.target == "-":
        return settings.container or "nut"
    return container_for_name(str(job.target)) or settings.container or default_container(job.name)


def _started(job: Job, run: _Run, settings: Settings, pool: UpscalerPool | Planner) -> Started:
    clip, scale = run.clip, settings.size.network_scale(run.clip.size)
    plans = pool.plan(scale, clip.size, min(3, clip.channels), clip.dtype.itemsize, run.choice.photo)
    plan, details = plan_in_words(PASSES[scale], plans)
    codec = TITLES[run.encoding.codec] if run.encoding.codec else "uncompressed"
    options = run.encoding.options
    how = f"{codec}, CRF {options['crf']}" if "crf" in options else codec
    return Started(
        job,
        clip.size,
        settings.size.target(clip.size),
        clip.expected_frames or 0,
        run.container,
        f"{how}, {run.encoding.pixel_format}; {plan}",
        details,
        tiles=max(one.tiles for one in plans),
        weights=run.choice.text,
        length=None if clip.duration is None else float(clip.duration),
    )


def _done(
    job: Job, run: _Run, settings: Settings, result: Result, seconds: float, network_seconds: float, size: int
) -> Done:
    notices = settings.size.notices(run.clip.size) + result.notices
    return Done(
        job,
        seconds,
        network_seconds,
        run.clip.size,
        run.encoding.size,
        size,
        notices,
        frames=result.frames,
        repeated=result.repeated,
        resumed=result.resumed,
    )


def _key(settings: Settings, mark: Mark, digest: str, choice: Choice) -> str:
    """What the frames of the result depend on, apart from how they are encoded."""
    facts = (settings.fingerprint(), mark.get("sha256"), digest, choice.photo, choice.limit, __version__)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def bytes_needed(clip: Clip, settings: Settings, workers: int) -> int:
    """About how much memory it takes, in bytes, without the network's own."""
    height, width = settings.size.target(clip.size)
    pixel = clip.channels * np.dtype(clip.dtype).itemsize
    small, large = clip.size[0] * clip.size[1] * pixel, height * width * pixel
    return (AHEAD + workers + 1) * small + (workers + 3) * large


def _reporter(job: Job, clip: Clip, tell: Tell) -> Callable[[int, float], None]:
    megapixels = clip.size[0] * clip.size[1] / 1e6
    expected = clip.expected_frames
    send = throttled(tell)

    def report(frames: int, seconds: float) -> None:
        fraction = min(1.0, frames / expected) if expected else 0.0
        send(Progress(job, fraction, frames * megapixels, frames, seconds))

    return report
