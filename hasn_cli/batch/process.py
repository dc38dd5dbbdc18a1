"""Open, enlarge and write one picture. Runs in a thread of this process, or on a cluster's worker."""

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
from hasn_cli.batch.jobs import Job
from hasn_cli.batch.location import Place
from hasn_cli.batch.marks import Mark, mark_input, mark_output, mark_written
from hasn_cli.batch.memory_limit import MemoryLimit
from hasn_cli.batch.pool import Planner, PooledUpscaler, UpscalerPool
from hasn_cli.batch.reading import open_input
from hasn_cli.batch.settings import Settings
from hasn_cli.choice import choose
from hasn_cli.decoding.pool import open_picture
from hasn_cli.enlarge import PASSES, PLANE_BYTES, enlarge, passes
from hasn_cli.errors import DeviceError, HasnError, ImageError, OutputError, OutputExistsError, UsageError, WeightsError
from hasn_cli.files import Overwrite, Placing, make_folder
from hasn_cli.images import FORMATS, Picture, check_can_hold, default_output, format_for_name, notices_of, write_picture
from hasn_cli.images.picture import Shape
from hasn_cli.images.sequence import pictures_in

if TYPE_CHECKING:
    from hasn_cli.inference import Plan

FEATURE_BYTES = 700  # of the network's feature maps, for each LR pixel
PROGRESS_INTERVAL = 0.1  # seconds between two reports on one picture

Tell = Callable[[Started | Progress], None]


@dataclass(frozen=True)
class Receipt:
    """What the journal records about a finished picture.

    Attributes:
        source: the input's fingerprint when it was read.
        target: the output's fingerprint when it was written.
        scale: the scale of the network, or of all its passes together.
        weights: the SHA-256 of the network's file. With several passes: one for each, joined by `+`.
    """

    source: Mark
    target: Mark
    scale: int
    weights: str


def do_job(
    job: Job, settings: Settings, pool: UpscalerPool, memory: MemoryLimit, tell: Tell, overwrite: Overwrite
) -> tuple[Done, Receipt]:
    """Open, enlarge and write one picture. `overwrite` says whether a file that is at its output may be replaced.

    Raises:
        HasnError: the picture failed, and nothing was written.
        Cancelled: the pool was stopped or the memory limit was closed; nothing was written.
    """
    if job.source == job.target == "-":
        return _do_sequence(job, settings, pool, memory, tell, overwrite)
    picture, mark = open_job(job, settings)
    return _do_picture(job, picture, mark, settings, pool, memory, tell, overwrite)


def _do_sequence(
    job: Job, settings: Settings, pool: UpscalerPool, memory: MemoryLimit, tell: Tell, overwrite: Overwrite
) -> tuple[Done, Receipt]:
    """Enlarge each picture of a pipe as it comes. The times and bytes are those of all together."""
    began = time.perf_counter()
    result: tuple[Done, Receipt] | None = None
    count = size = 0
    network_seconds = 0.0
    for data in pictures_in(sys.stdin.buffer, max_pixels=settings.max_pixels, name=job.name):
        count += 1
        name = job.name if count == 1 else f"{job.name}, picture {count}"
        picture = open_picture(data, max_pixels=settings.max_pixels, name=name)
        picture = picture.first() if settings.encode.first_frame else picture
        result = _do_picture(job, picture, {}, settings, pool, memory, tell, overwrite)
        size, network_seconds = size + result[0].bytes, network_seconds + result[0].network_seconds
        if settings.encode.first_frame:
            break
    if result is None:
        raise ImageError(f"{job.name}: there is nothing in it")
    seconds = time.perf_counter() - began
    frames = count if count > 1 else None
    done = replace(result[0], seconds=seconds, network_seconds=network_seconds, bytes=size, frames=frames)
    return done, result[1]


def _do_picture(
    job: Job,
    picture: Picture,
    mark: Mark,
    settings: Settings,
    pool: UpscalerPool,
    memory: MemoryLimit,
    tell: Tell,
    overwrite: Overwrite,
) -> tuple[Done, Receipt]:
    began = time.perf_counter()
    target_size = settings.size.target(picture.size)
    upscaler = PooledUpscaler(pool)
    asked = time.perf_counter()
    with memory.take(bytes_needed(picture, settings)):
        waited = time.perf_counter() - asked
        started = plan_job(job, picture, settings, pool)
        length, state = _make(picture, started, settings, upscaler, tell, overwrite)
    seconds = time.perf_counter() - began - waited - upscaler.waited
    notices = settings.size.notices(picture.size)
    if started.tiles > 1 and settings.tile is None:  # the user did not ask for tiles
        notices += (f"computed in {started.tiles} tiles, because memory is short",)
    notices += notices_of(replace(picture, size=target_size), started.format, settings.encode)
    done = Done(job, seconds, upscaler.seconds, picture.size, target_size, length, notices)
    scale = settings.size.network_scale(picture.size)
    return done, Receipt(mark, state, scale, pool.digest(scale))


def _make(
    picture: Picture, started: Started, settings: Settings, upscaler: PooledUpscaler, tell: Tell, overwrite: Overwrite
) -> tuple[int, Mark]:
    """Decode, enlarge and write. When this returns, it holds no more pixels."""
    job = started.job
    if picture.frame_count == 1:
        picture = picture.load()  # now, while the network may be computing another picture
    choice = choose(picture, settings.weights)
    upscaler.photo = choice.photo
    started = replace(started, weights=choice.text)
    tell(started)
    progress = _reporter(job, picture, tell)
    sr = enlarge(
        picture,
        upscaler.for_scale,
        settings.size,
        consistent=settings.consistent,
        alpha=settings.alpha,
        limit=choice.limit,
        progress=progress,
    )
    if sr.frame_count == 1:
        sr = sr.load()
    return write_result(sr, job, started.format, settings, overwrite)


def finished_before(job: Job, found: Mark, settings: Settings, pool: UpscalerPool) -> tuple[Done, Receipt] | None:
    """The result of `do_job`, if the file at the output may come from it: a picture of the right size. Else None."""
    picture, mark = open_job(job, settings)
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
    except OSError:  # the output has changed again, or is a link
        return None


def plan_job(job: Job, picture: Picture, settings: Settings, pool: UpscalerPool | Planner) -> Started:
    """Plan what to do with a picture that has been opened, and check that it can be done.

    This may decode a frame.

    Raises:
        ImageError: the size is not possible for this picture, or the format cannot hold the result.
        WeightsError, DeviceError: the network cannot be loaded.
    """
    format = output_format(job.target, picture, settings)
    target_size = settings.size.target(picture.size)
    scale = settings.size.network_scale(picture.size)
    check_can_hold(picture, target_size, format, settings.encode)
    if settings.alpha == "separate" and picture.has_alpha:
        _check_data_alpha(picture, format, settings)
    channels = 1 if picture.channels < 3 else 3
    choice = choose(picture, settings.weights, look=False)
    plans = pool.plan(scale, picture.size, channels, picture.dtype.itemsize, choice.photo)
    plan, details = plan_in_words(PASSES[scale], plans)
    return Started(
        job,
        picture.size,
        target_size,
        picture.frame_count,
        format,
        plan,
        details,
        tiles=max(p.tiles for p in plans),
        weights=choice.text,
    )


def plan_in_words(scales: Sequence[int], plans: Sequence[Plan]) -> tuple[str, str]:
    """A summary of the plan for users, and its details, in one line each."""
    largest = max(plans, key=lambda plan: plan.bytes)
    if len(plans) == 1:
        return largest.summary, largest.details
    steps = " and ".join(f"x{scale}" for scale in scales)
    details = "; ".join(f"x{scale}: {plan.details}" for scale, plan in zip(scales, plans, strict=True))
    return f"{len(plans)} passes ({steps}), {largest.summary}", details


def _check_data_alpha(picture: Picture, format: str, settings: Settings) -> None:
    """Check that a format keeps alpha that is data, and the colour under it.

    Raises:
        ImageError: the format does not.
    """
    title = FORMATS[format].title
    if format == "jpegxl" and not settings.encode.lossless:
        message = f"{picture.name}: lossy {title} drops the colour under transparent pixels"
        raise ImageError(message, "add --lossless, use -f png, or leave out --alpha separate")
    if format == "gif" or not FORMATS[format].alpha:
        message = f"{picture.name}: {title} cannot hold alpha as data"
        raise ImageError(message, "use -f png, or leave out --alpha separate")


def meets_every_picture(error: Exception, settings: Settings) -> bool:
    """Whether an error would stop every picture, and not only one."""
    if isinstance(error, WeightsError):  # other pictures may need another scale, for which there are weights
        return settings.network_scale is not None
    return isinstance(error, DeviceError | UsageError)


def exists_already(target: Place, hint: str = "") -> OutputExistsError:
    """The error for an output that exists and must not be replaced. `hint` comes before the usual advice."""
    return OutputExistsError(f"{target} exists already", f"{hint}--overwrite replaces it, --skip-existing leaves it")


def is_taken(error: Exception) -> bool:
    """Whether another program wrote the output while the picture was computed."""
    return isinstance(error, OutputError) and isinstance(error.__cause__, FileExistsError)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk or quota caused an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def open_job(job: Job, settings: Settings) -> tuple[Picture, Mark]:
    """Open the picture of a job; of a video, the first frame."""
    if not job.video:
        return open_source(job.source, settings, job.name)
    if not isinstance(job.source, Path):
        raise ImageError(f"{job.name}: a frame can only be taken from a video file", "save it as a file first")
    from hasn_cli.video.still import still

    return still(job.source, job.name), mark_input(job.source)


def open_source(source: Place, settings: Settings, name: str) -> tuple[Picture, Mark]:
    """Open the picture at a path, a URL, or on the standard input (`-`); returns it and the fingerprint of its file."""
    picture, mark = open_input(source, settings.max_pixels, name)
    return picture.first() if settings.encode.first_frame else picture, mark


def output_format(target: Place, picture: Picture, settings: Settings) -> str:
    """The format from the settings, else from the output's name, else the input's if it can be written, else PNG."""
    named = settings.format or (None if target == "-" else format_for_name(str(target)))
    return named or default_output(picture.format)


def bytes_needed(picture: Picture, settings: Settings) -> int:
    """About how much memory it takes to process a picture, in bytes. Of several pages, the largest counts.

    The network's feature maps count only if there is a budget. Without one, the memory that is not counted here is
    enough for those of one picture at a time.
    """
    needed = []
    for shape in picture.shapes:
        with contextlib.suppress(ImageError):  # an impossible size, which is reported when the picture is computed
            needed.append(_page_bytes(shape, settings) + _earlier_bytes(picture, shape, settings))
    return max(needed, default=0)


def _earlier_bytes(picture: Picture, shape: Shape, settings: Settings) -> int:
    """The bytes of the two earlier frames and their results, which are kept to find what stands still."""
    if picture.frame_count == 1 or picture.paged:
        return 0
    height, width = settings.size.target(shape.size)
    return 2 * shape.channels * shape.dtype.itemsize * (shape.size[0] * shape.size[1] + height * width)


def _page_bytes(shape: Shape, settings: Settings) -> int:
    pixel = shape.channels * shape.dtype.itemsize
    target_size = settings.size.target(shape.size)
    scale = settings.size.network_scale(shape.size)
    last = passes(scale, shape.size)[-1]  # the one that takes most memory
    lr = last.size[0] * last.size[1]
    sr = max(target_size[0] * target_size[1], lr * last.scale**2)
    features = FEATURE_BYTES * lr if settings.memory is not None else 0
    whole = target_size == (scale * shape.size[0], scale * shape.size[1])
    planes = 0 if whole and not settings.consistent else PLANE_BYTES * sr
    pictures = pixel * (lr + 3 * sr)  # 3: the result, the encoder's copy of it, and what it encodes into
    return features + planes + pictures


def write_result(picture: Picture, job: Job, format: str, settings: Settings, overwrite: Overwrite) -> tuple[int, Mark]:
    """Encode `picture` and write it to the job's output; returns the number of bytes and the output's fingerprint.

    Raises:
        OutputError: the output cannot be written, or it exists and `overwrite` does not allow replacing it.
        ImageError: the format cannot hold the picture.
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
    found = None if overwrite is True else remote.state(target)  # stores cannot check and write in one step
    if found is not None and not (overwrite == "same" and remote.read(target) == data):
        raise exists_already(target) from FileExistsError(target)
    remote.write(target, data)
    return len(data), {**(remote.state(target) or {}), "sha256": hashlib.sha256(data).hexdigest()}


def _write_file(
    picture: Picture, job: Job, target: Path, format: str, settings: Settings, overwrite: Overwrite
) -> tuple[int, Mark]:
    make_output_folder(job, target)
    try:
        written = write_picture(picture, target, format, settings.encode, placing=placing_of(job, settings, overwrite))
    except OutputError as error:
        if is_taken(error):
            raise exists_already(target) from error.__cause__
        raise
    assert written is not None
    return written.size, mark_written(written)


def placing_of(job: Job, settings: Settings, overwrite: Overwrite) -> Placing:
    """How the finished output is moved to its place: with the permissions, and perhaps the times, of the input."""
    models: tuple[os.stat_result, ...] | None = ()
    if isinstance(job.source, Path):
        try:
            models = (job.source.stat(),)
        except OSError:  # the input is gone
            models = None
    times = (models[0].st_atime_ns, models[0].st_mtime_ns) if models and settings.keep_times else None
    return Placing(overwrite, models, times, root_of(job))


def make_output_folder(job: Job, target: Path) -> None:
    """Create the folder for the output, if it is missing.

    Raises:
        OutputError: it cannot be created.
    """
    try:
        make_folder(target.parent, root_of(job))
    except OSError as error:
        raise OutputError(f"{target.parent}: {error.strerror}") from error


def root_of(job: Job) -> Path | None:
    """The folder below which links are not followed; None if they are."""
    return job.root if isinstance(job.root, Path) and not job.follow_links else None


def _write_stream(stream: BinaryIO, encoded: io.BytesIO) -> None:
    stream.write(encoded.getbuffer())
    stream.flush()


def _reporter(job: Job, picture: Picture, tell: Tell) -> Callable[[float], None]:
    megapixels = picture.size[0] * picture.size[1] * picture.frame_count / 1e6
    send = throttled(tell)
    return lambda fraction: send(Progress(job, fraction, fraction * megapixels))


def throttled(tell: Tell) -> Callable[[Progress], None]:
    """Pass on progress not too often, and always its end."""
    last = 0.0

    def send(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_INTERVAL or progress.fraction >= 1:
            last = now
            tell(progress)

    return send
