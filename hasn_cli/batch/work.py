"""One picture from its file to its file: opened, enlarged, written. Runs in a thread here, or on a cluster's worker."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from hasn_cli.batch import journal, remote
from hasn_cli.batch.events import Done, Progress, Started
from hasn_cli.batch.inputs import FALLBACK_FORMAT, Job, Place
from hasn_cli.batch.pool import Planner, PooledUpscaler, UpscalerPool
from hasn_cli.batch.room import Room
from hasn_cli.batch.settings import Settings
from hasn_cli.enlarge import PASSES, PLANE_BYTES, enlarge, passes
from hasn_cli.errors import DeviceError, HasnError, ImageError, OutputError, OutputExistsError, UsageError, WeightsError
from hasn_cli.images import FORMATS, Picture, check_can_hold, format_for_name, open_picture, write_picture
from hasn_cli.images.formats import sniff
from hasn_cli.images.picture import Shape

if TYPE_CHECKING:
    from hasn_cli.inference import Plan

READ_WHOLE = 64 << 20  # files up to so many bytes are read once, for the decoder and for the fingerprint alike
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

    source: journal.Mark
    target: journal.Mark
    scale: int
    weights: str


def do_job(
    job: Job, settings: Settings, pool: UpscalerPool, room: Room, tell: Tell, overwrite: bool
) -> tuple[Done, Receipt]:
    """Open, enlarge and write one picture; what is there at its output by then is replaced only with `overwrite`.

    Raises:
        HasnError: what a user can understand; there is no output then.
        Cancelled: the pool or the room was closed; there is no output then.
    """
    began = time.perf_counter()
    picture, mark = open_source(job.source, settings, job.name)
    target_size = settings.size.target(picture.size)
    upscaler = PooledUpscaler(pool)
    asked = time.perf_counter()
    with room.take(bytes_needed(picture, settings)):
        waited = time.perf_counter() - asked
        started = look(job, picture, settings, pool)
        length, state = _make(picture, started, settings, upscaler, tell, overwrite)
    seconds = time.perf_counter() - began - waited - upscaler.waited
    done = Done(job, seconds, upscaler.seconds, picture.size, target_size, length)
    scale = settings.size.network_scale(picture.size)
    return done, Receipt(mark, state, scale, pool.digest(scale))


def _make(
    picture: Picture, started: Started, settings: Settings, upscaler: PooledUpscaler, tell: Tell, overwrite: bool
) -> tuple[int, journal.Mark]:
    """Decode, enlarge and write. All that this takes room for is gone when it returns."""
    job = started.job
    if picture.frame_count == 1:
        picture = picture.load()  # ahead, while the network has another picture
    tell(started)
    progress = _reporter(job, picture, tell)
    sr = enlarge(picture, upscaler.for_scale, settings.size, consistent=settings.consistent, progress=progress)
    if sr.frame_count == 1:
        sr = sr.load()
    return write_result(sr, job, started.format, settings, overwrite)


def finished_before(
    job: Job, found: journal.Mark, settings: Settings, pool: UpscalerPool
) -> tuple[Done, Receipt] | None:
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
    return done, Receipt(mark, found, scale, pool.digest(scale))


def look(job: Job, picture: Picture, settings: Settings, pool: UpscalerPool | Planner) -> Started:
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


def open_source(source: Place, settings: Settings, name: str) -> tuple[Picture, journal.Mark]:
    """What is to be enlarged at a path, a URL, or on the standard input (`-`), and the fingerprint of what was read."""
    data: bytes | Path
    mark: journal.Mark
    if source == "-":
        data, mark = _read_stream(sys.stdin.buffer), {}
    elif isinstance(source, str):
        data, mark = journal.mark_url(source)
    else:
        data, mark = _read_file(source)
    picture = open_picture(data, max_pixels=settings.max_pixels, name=name)
    return picture.first() if settings.encode.first_frame else picture, mark


def _read_stream(stream: BinaryIO) -> bytes:
    """All of a stream that begins as pictures do; of any other, which may never end, the beginning."""
    head = stream.read(64)
    return head + stream.read() if sniff(head) else head


def _read_file(path: Path) -> tuple[bytes | Path, journal.Mark]:
    """The bytes of a small file or of a pipe, the path of a large one; and the fingerprint."""
    try:
        if path.is_file() and path.stat().st_size > READ_WHOLE:
            return path, journal.mark_input(path)
        before = journal.input_state(path)  # taken first: a change while we read must not go unnoticed
        data = path.read_bytes()
    except OSError:
        return path, {}  # open_picture finds the words for it
    return data, journal.mark_input(path, data, before)


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
            needed.append(_page_bytes(shape, settings))
    return max(needed, default=0)


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


def write_result(
    picture: Picture, job: Job, format: str, settings: Settings, overwrite: bool
) -> tuple[int, journal.Mark]:
    """Encode `picture` to where the job says; returns the number of bytes, and the output's state.

    Raises:
        OutputError: it cannot be written; or it is there, and `overwrite` is not given.
        ImageError: the format cannot hold it.
    """
    target = job.target
    if isinstance(target, Path):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{target.parent}: {error.strerror}") from error
        _write_file(picture, target, format, settings, overwrite)
        if settings.keep_times and isinstance(job.source, Path):
            times = job.source.stat()
            os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
        return target.stat().st_size, journal.state(target) or {}
    encoded = io.BytesIO()
    write_picture(picture, encoded, format, settings.encode)
    if target == "-":
        _write_stream(sys.stdout.buffer, encoded)
        return encoded.tell(), {}
    if not overwrite and remote.state(target) is not None:  # stores know no way to look and write at once
        raise exists_already(target) from FileExistsError(target)
    remote.write(target, encoded.getvalue())
    return encoded.tell(), dict(remote.state(target) or {})


def _write_file(picture: Picture, target: Path, format: str, settings: Settings, overwrite: bool) -> None:
    try:
        write_picture(picture, target, format, settings.encode, overwrite=overwrite)
    except OutputError as error:
        if is_taken(error):
            raise exists_already(target) from error.__cause__
        raise


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
