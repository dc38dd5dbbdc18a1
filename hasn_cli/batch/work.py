"""One picture from its file to its file: opened, enlarged, written. Runs in a thread here, or on a cluster's worker."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from hasn_cli.batch import remote
from hasn_cli.batch.events import Done, Progress, Started
from hasn_cli.batch.inputs import FALLBACK_FORMAT, Job, Place
from hasn_cli.batch.marks import Mark, mark_output, mark_written
from hasn_cli.batch.memory_limit import MemoryLimit
from hasn_cli.batch.pool import Planner, PooledUpscaler, UpscalerPool
from hasn_cli.batch.reading import open_input
from hasn_cli.batch.settings import Settings
from hasn_cli.enlarge import PASSES, PLANE_BYTES, enlarge, passes
from hasn_cli.errors import DeviceError, HasnError, ImageError, OutputError, OutputExistsError, UsageError, WeightsError
from hasn_cli.images import FORMATS, Picture, check_can_hold, format_for_name, notices_of, write_picture
from hasn_cli.images.picture import Shape
from hasn_cli.images.unfinished import Overwrite, Placing, make_folder

if TYPE_CHECKING:
    from hasn_cli.inference import Plan

FEATURE_BYTES = 700  # of the network's feature maps, an LR pixel
PROGRESS_INTERVAL = 0.1  # seconds between two reports on one picture

Tell = Callable[[Started | Progress], None]


@dataclass(frozen=True)
class Receipt:
    """What the journal has to know about a finished picture.

    Attributes:
        source: the input's fingerprint, taken as it was read.
        target: the output's state, taken as it was written.
        scale: of the network, or of its passes together.
        weights: the SHA-256 of the file that it was loaded from; of several passes, each, joined by `+`.
    """

    source: Mark
    target: Mark
    scale: int
    weights: str


def do_job(
    job: Job, settings: Settings, pool: UpscalerPool, memory: MemoryLimit, tell: Tell, overwrite: Overwrite
) -> tuple[Done, Receipt]:
    """Open, enlarge and write one picture; what is there at its output by then is replaced only as `overwrite` says.

    Raises:
        HasnError: what a user can understand; there is no output then.
        Cancelled: the pool or the room was closed; there is no output then.
    """
    began = time.perf_counter()
    picture, mark = open_source(job.source, settings, job.name)
    target_size = settings.size.target(picture.size)
    upscaler = PooledUpscaler(pool)
    asked = time.perf_counter()
    with memory.take(bytes_needed(picture, settings)):
        waited = time.perf_counter() - asked
        started = plan_job(job, picture, settings, pool)
        length, state = _make(picture, started, settings, upscaler, tell, overwrite)
    seconds = time.perf_counter() - began - waited - upscaler.waited
    notices = notices_of(replace(picture, size=target_size), started.format, settings.encode)
    done = Done(job, seconds, upscaler.seconds, picture.size, target_size, length, notices)
    scale = settings.size.network_scale(picture.size)
    return done, Receipt(mark, state, scale, pool.digest(scale))


def _make(
    picture: Picture, started: Started, settings: Settings, upscaler: PooledUpscaler, tell: Tell, overwrite: Overwrite
) -> tuple[int, Mark]:
    """Decode, enlarge and write. All that this takes room for is gone when it returns."""
    job = started.job
    if picture.frame_count == 1:
        picture = picture.load()  # ahead, while the network has another picture
    tell(started)
    progress = _reporter(job, picture, tell)
    sr = enlarge(
        picture,
        upscaler.for_scale,
        settings.size,
        consistent=settings.consistent,
        alpha=settings.alpha,
        progress=progress,
    )
    if sr.frame_count == 1:
        sr = sr.load()
    return write_result(sr, job, started.format, settings, overwrite)


def finished_before(job: Job, found: Mark, settings: Settings, pool: UpscalerPool) -> tuple[Done, Receipt] | None:
    """What `do_job` would have given, if what is found at the output can be its work: a picture of the right size."""
    picture, mark = open_source(job.source, settings, job.name)
    target_size = settings.size.target(picture.size)
    try:
        output, _ = open_source(job.target, replace(settings, max_pixels=None), job.target_name)
    except HasnError:
        return None
    if output.size != target_size:
        return None
    scale = settings.size.network_scale(picture.size)
    done = Done(job, 0.0, 0.0, picture.size, target_size, int(found.get("size", 0)))
    try:
        return done, Receipt(mark, mark_output(job.target, found), scale, pool.digest(scale))
    except OSError:  # it has changed again, or is a link
        return None


def plan_job(job: Job, picture: Picture, settings: Settings, pool: UpscalerPool | Planner) -> Started:
    """What is going to be done with a picture that has been opened; whatever forbids it is raised here.

    It may take decoding a frame to tell.

    Raises:
        ImageError: it is out of reach, or the format cannot hold it.
        WeightsError, DeviceError: from loading the network.
    """
    format = output_format(job.target, picture, settings)
    target_size = settings.size.target(picture.size)
    scale = settings.size.network_scale(picture.size)
    check_can_hold(picture, target_size, format, settings.encode)
    if settings.alpha == "separate" and picture.has_alpha:
        _check_data_alpha(picture, format, settings)
    channels = 1 if picture.channels < 3 else 3
    plans = pool.plan(scale, picture.size, channels, picture.dtype.itemsize)
    plan, details = plan_in_words(PASSES[scale], plans)
    return Started(job, picture.size, target_size, picture.frame_count, format, plan, details)


def plan_in_words(scales: Sequence[int], plans: Sequence[Plan]) -> tuple[str, str]:
    """What a user wants to know of the plan, and the details: each in one line."""
    largest = max(plans, key=lambda plan: plan.bytes)
    if len(plans) == 1:
        return largest.summary, largest.details
    steps = " and ".join(f"x{scale}" for scale in scales)
    details = "; ".join(f"x{scale}: {plan.details}" for scale, plan in zip(scales, plans, strict=True))
    return f"{len(plans)} passes ({steps}), {largest.summary}", details


def _check_data_alpha(picture: Picture, format: str, settings: Settings) -> None:
    """See that a format keeps alpha that is data, and the colour under it.

    Raises:
        ImageError: it does not.
    """
    title = FORMATS[format].title
    if format == "jpegxl" and not settings.encode.lossless:
        message = f"{picture.name}: {title} with loss drops the colour under transparent pixels"
        raise ImageError(message, "add --lossless, use -f png, or leave out --alpha separate")
    if format == "gif" or not FORMATS[format].alpha:
        message = f"{picture.name}: {title} cannot hold alpha as data"
        raise ImageError(message, "use -f png, or leave out --alpha separate")


def meets_every_picture(error: Exception, settings: Settings) -> bool:
    """Whether an error has nothing to do with a picture, so that every other would fail with it, too."""
    if isinstance(error, WeightsError):  # there may be some for the scale that another picture takes
        return settings.network_scale is not None
    return isinstance(error, DeviceError | UsageError)


def exists_already(target: Place, hint: str = "") -> OutputExistsError:
    """An output that is there and may not be replaced; `hint` stands before what can be done in any case."""
    return OutputExistsError(f"{target} exists already", f"{hint}--overwrite replaces it, --skip-existing leaves it")


def is_taken(error: Exception) -> bool:
    """Whether the output came to be there while it was computed, by another's hand."""
    return isinstance(error, OutputError) and isinstance(error.__cause__, FileExistsError)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk, or a used-up quota, is behind an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def open_source(source: Place, settings: Settings, name: str) -> tuple[Picture, Mark]:
    """What is to be enlarged at a path, a URL, or on the standard input (`-`), and the fingerprint of what was read."""
    picture, mark = open_input(source, settings.max_pixels, name)
    return picture.first() if settings.encode.first_frame else picture, mark


def output_format(target: Place, picture: Picture, settings: Settings) -> str:
    """The format asked for, else the output name's, else the input's where it can be written."""
    named = settings.format or (None if target == "-" else format_for_name(str(target)))
    return named or (picture.format if picture.format in FORMATS else FALLBACK_FORMAT)


def bytes_needed(picture: Picture, settings: Settings) -> int:
    """About how much memory a picture takes on its way; of pages, the one that takes most counts.

    The network's feature maps count only against a budget: without one, there is room for those of one picture at a
    time besides.
    """
    needed = []
    for shape in picture.shapes:
        with contextlib.suppress(ImageError):  # out of reach, which is said when its turn comes
            needed.append(_page_bytes(shape, settings) + _earlier_bytes(picture, shape, settings))
    return max(needed, default=0)


def _earlier_bytes(picture: Picture, shape: Shape, settings: Settings) -> int:
    """Of the two earlier frames, and their results, that are held for what stands still."""
    if picture.frame_count == 1 or picture.paged:
        return 0
    height, width = settings.size.target(shape.size)
    return 2 * shape.channels * shape.dtype.itemsize * (shape.size[0] * shape.size[1] + height * width)


def _page_bytes(shape: Shape, settings: Settings) -> int:
    pixel = shape.channels * shape.dtype.itemsize
    target_size = settings.size.target(shape.size)
    scale = settings.size.network_scale(shape.size)
    last = passes(scale, shape.size)[-1]  # which takes most
    lr = last.size[0] * last.size[1]
    sr = max(target_size[0] * target_size[1], lr * last.scale**2)
    features = FEATURE_BYTES * lr if settings.memory is not None else 0
    whole = target_size == (scale * shape.size[0], scale * shape.size[1])
    planes = 0 if whole and not settings.consistent else PLANE_BYTES * sr
    pictures = pixel * (lr + 3 * sr)  # 3: the result, the encoder's copy of it, and what it encodes into
    return features + planes + pictures


def write_result(picture: Picture, job: Job, format: str, settings: Settings, overwrite: Overwrite) -> tuple[int, Mark]:
    """Encode `picture` to where the job says; returns the number of bytes, and the output's fingerprint.

    Raises:
        OutputError: it cannot be written; or it is there, and `overwrite` forbids to replace it.
        ImageError: the format cannot hold it.
    """
    target = job.target
    if isinstance(target, Path):
        return _write_file(picture, job, target, format, settings, overwrite)
    encoded = io.BytesIO()
    write_picture(picture, encoded, format, settings.encode)
    if target == "-":
        _write_stream(sys.stdout.buffer, encoded)
        return encoded.tell(), {}
    data = encoded.getvalue()
    found = None if overwrite is True else remote.state(target)  # stores know no way to look and write at once
    if found is not None and not (overwrite == "same" and remote.read(target) == data):
        raise exists_already(target) from FileExistsError(target)
    remote.write(target, data)
    return len(data), {**(remote.state(target) or {}), "sha256": hashlib.sha256(data).hexdigest()}


def _write_file(
    picture: Picture, job: Job, target: Path, format: str, settings: Settings, overwrite: Overwrite
) -> tuple[int, Mark]:
    root = job.root if isinstance(job.root, Path) and not job.follow_links else None
    try:
        make_folder(target.parent, root)
    except OSError as error:
        raise OutputError(f"{target.parent}: {error.strerror}") from error
    models: tuple[os.stat_result, ...] | None = ()
    if isinstance(job.source, Path):
        try:
            models = (job.source.stat(),)
        except OSError:  # it has gone
            models = None
    times = (models[0].st_atime_ns, models[0].st_mtime_ns) if models and settings.keep_times else None
    placing = Placing(overwrite, models, times, root)
    try:
        written = write_picture(picture, target, format, settings.encode, placing=placing)
    except OutputError as error:
        if is_taken(error):
            raise exists_already(target) from error.__cause__
        raise
    assert written is not None
    return written.size, mark_written(written)


def _write_stream(stream: BinaryIO, encoded: io.BytesIO) -> None:
    stream.write(encoded.getbuffer())
    stream.flush()


def _reporter(job: Job, picture: Picture, tell: Tell) -> Callable[[float], None]:
    megapixels = picture.size[0] * picture.size[1] * picture.frame_count / 1e6
    last = 0.0

    def report(fraction: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_INTERVAL or fraction >= 1:
            last = now
            tell(Progress(job, fraction, fraction * megapixels))

    return report
