"""A batch of pictures: opened, enlarged, written, one event after the other."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hasn_cli import remote
from hasn_cli.enlarge import Size, enlarge
from hasn_cli.errors import OutputError
from hasn_cli.events import Done, Event, Failed, Progress, Skipped, Started, Stopped
from hasn_cli.images import DEFAULT_MAX_PIXELS, EncodeOptions, Picture, open_picture, write_picture
from hasn_cli.images.formats import WRITABLE, check_can_hold, format_for_name
from hasn_cli.inputs import FALLBACK_FORMAT, Job, Place

if TYPE_CHECKING:
    from hasn_cli.inference import Upscaler

__all__ = ["Done", "Event", "Failed", "Job", "Progress", "Settings", "Skipped", "Started", "Stopped", "run_batch"]

OnExists = Literal["error", "overwrite", "skip"]


@dataclass(frozen=True)
class Settings:
    """All that says what becomes of a picture, and how it is computed.

    Attributes:
        size: how large it becomes.
        weights: as `hasn_cli.weights.resolve` takes them.
        format: of the output; None: the output name's, else the input's.
        encode: how it is written.
        consistent: see `hasn_cli.enlarge.enlarge`.
        keep_times: the output gets the input's modification time.
        max_pixels: inputs that declare more are refused; None for no limit.
        device, precision, tile, overlap, memory, tta, compile: see `hasn_cli.inference.Upscaler`.
    """

    size: Size = field(default_factory=Size)
    weights: str = "hasn"
    format: str | None = None
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    consistent: bool = False
    keep_times: bool = False
    max_pixels: int | None = DEFAULT_MAX_PIXELS
    device: str = "auto"
    precision: str = "auto"
    tile: int | None = None
    overlap: int | None = None
    memory: int | None = None
    tta: bool = False
    compile: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values, from which `from_dict` makes equal settings."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))  # type: ignore[no-any-return]

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Settings:
        """The settings that `to_dict` gave."""
        size = {key: _unlisted(value) for key, value in values["size"].items()}
        return Settings(**{**values, "size": Size(**size), "encode": EncodeOptions(**values["encode"])})

    def fingerprint(self) -> str:
        """Equal for settings that make the same output: where and in what memory it is computed is left out."""
        values = self.to_dict()
        for key in ("device", "memory", "max_pixels", "compile"):
            del values[key]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _unlisted(value: Any) -> Any:
    if isinstance(value, str):
        return Fraction(value)
    return tuple(value) if isinstance(value, list) else value


def run_batch(
    jobs: Sequence[Job],
    settings: Settings,
    *,
    on_exists: OnExists = "error",
    workers: int | None = None,
    resume: bool = False,
    journal: bool = True,
    cluster: str | None = None,
) -> Iterator[Event]:
    """Do every job and tell of it; one that fails does not stop the others.

    Closing the generator (or Ctrl-C inside it) stops everything within two seconds and leaves no half output.

    Args:
        jobs: from `find_jobs`.
        settings: what becomes of each picture.
        on_exists: what to do where the output is there already.
        workers: pictures under way at once; None chooses for the device.
        resume: what the journal says is done, from this very input with these settings, is skipped.
        journal: keep one beside the outputs.
        cluster: `tcp://HOST:PORT` of a Dask scheduler, or `local:N` for N worker processes on this machine.
    """
    pool = UpscalerPool(settings)
    for job in jobs:
        events: list[Event] = []
        try:
            if job.problem is not None:
                raise job.problem
            if isinstance(job.target, Path) and job.target.exists() and on_exists != "overwrite":
                if on_exists == "skip":
                    yield Skipped(job, f"{job.target} exists")
                    continue
                hint = "--overwrite replaces it, --skip-existing leaves it"
                raise OutputError(f"{job.target}: exists already", hint)
            yield do_job(job, settings, pool.upscaler, events.append)
        except Exception as error:
            yield Failed(job, error)


class UpscalerPool:
    """The networks of one run, by scale."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._upscalers: dict[int, Upscaler] = {}

    def upscaler(self, scale: int) -> Upscaler:
        """The upscaler for 2, 3 or 4."""
        from hasn_cli.inference import Upscaler
        from hasn_cli.weights import load_network

        if scale not in self._upscalers:
            wanted = self.settings
            self._upscalers[scale] = Upscaler(
                load_network(wanted.weights, scale),
                device=wanted.device,
                precision=wanted.precision,
                tile=wanted.tile,
                overlap=wanted.overlap,
                memory=wanted.memory,
                tta=wanted.tta,
                compile=wanted.compile,
            )
        return self._upscalers[scale]


def do_job(
    job: Job, settings: Settings, upscaler_for: Callable[[int], Upscaler], tell: Callable[[Event], None]
) -> Done:
    """Open, enlarge and write one picture."""
    began = time.monotonic()
    picture = open_source(job.source, settings, job.name)
    format = output_format(job.target, picture, settings)
    target_size = settings.size.target(picture.size)
    check_can_hold(picture, target_size, format, settings.encode)
    megapixels = picture.size[0] * picture.size[1] * picture.frame_count / 1e6
    upscaler = upscaler_for(settings.size.network_scale(picture.size))
    plan = str(upscaler.plan(picture.size, min(picture.channels, 3), picture.dtype.itemsize))
    tell(Started(job, picture.size, target_size, picture.frame_count, format, plan))

    def progress(fraction: float) -> None:
        tell(Progress(job, fraction, fraction * megapixels))

    sr = enlarge(picture, upscaler_for, settings.size, consistent=settings.consistent, progress=progress)
    written = write_result(sr, job, format, settings)
    return Done(job, time.monotonic() - began, 0.0, picture.size, target_size, written)


def open_source(source: Place, settings: Settings, name: str) -> Picture:
    """The picture at a path, a URL, or on the standard input (`-`)."""
    if source == "-":
        return open_picture(sys.stdin.buffer.read(), max_pixels=settings.max_pixels, name=name)
    if isinstance(source, str):
        return open_picture(remote.read(source), max_pixels=settings.max_pixels, name=name)
    return open_picture(source, max_pixels=settings.max_pixels, name=name)


def output_format(target: Place, picture: Picture, settings: Settings) -> str:
    """The format asked for, else the output name's, else the input's where it can be written."""
    named = settings.format or (None if target == "-" else format_for_name(str(target)))
    return named or (picture.format if picture.format in WRITABLE else FALLBACK_FORMAT)


def write_result(picture: Picture, job: Job, format: str, settings: Settings) -> int:
    """Encode `picture` to where the job says; returns the number of bytes."""
    target = job.target
    if isinstance(target, Path):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{target.parent}: {error.strerror}") from error
        write_picture(picture, target, format, settings.encode)
        if settings.keep_times and isinstance(job.source, Path):
            times = job.source.stat()
            os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
        return target.stat().st_size
    encoded = io.BytesIO()
    write_picture(picture, encoded, format, settings.encode)
    if target == "-":
        sys.stdout.buffer.write(encoded.getbuffer())
        sys.stdout.buffer.flush()
    else:
        remote.write(target, encoded.getvalue())
    return len(encoded.getbuffer())
