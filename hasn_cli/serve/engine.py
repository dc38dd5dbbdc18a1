"""`Engine`: gives one picture at a time to the batch layer. Networks and decoders stay loaded between pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from hasn_cli.batch.events import Done, Progress, Started
from hasn_cli.batch.jobs import Job
from hasn_cli.batch.memory_limit import MemoryLimit
from hasn_cli.batch.pool import Cancelled, UpscalerPool
from hasn_cli.batch.process import do_job
from hasn_cli.batch.settings import Settings
from hasn_cli.decoding.pool import Closed, Decoders, in_use, open_picture
from hasn_cli.errors import HasnError, ImageError
from hasn_cli.images import EncodeOptions, Picture, write_picture
from hasn_cli.machine import count_cores

__all__ = ["Cancelled", "Closed", "Engine", "Tell"]

Tell = Callable[[Started | Progress], None]
"""Called with what happens to a picture. It may raise `Cancelled` to stop that picture."""

LARGEST_PREVIEW = 64_000_000  # pixels


class Engine:
    """Computes pictures for several threads, exactly as a batch does.

    Args:
        settings: the device, precision and memory, which are the same for all pictures.
        workers: the number of threads that will call it.
    """

    def __init__(self, settings: Settings, workers: int) -> None:
        self._settings = settings
        self._workers = workers
        self._memory = MemoryLimit(settings.memory)
        self._decoders = Decoders(min(workers, count_cores()))
        self._pools: dict[str, UpscalerPool] = {}  # by weights
        self._lock = threading.Lock()
        self._closed = False

    def warm_up(self) -> None:
        """Load the network for the usual scale, so that the first picture does not have to wait for it."""
        with suppress(Closed):  # start the other decoders, too, so that memory does not grow later
            for _ in range(1, min(self._workers, count_cores())):
                with self._decoders.lease(None, fresh=True):
                    pass
        with suppress(HasnError, Cancelled):  # whatever is wrong is reported when a picture needs it
            self._pool(self._settings).loaded(4)

    def compute(self, source: Path, target: Path, name: str, settings: Settings, tell: Tell) -> Done:
        """Enlarge the picture in `source`, and write the result to `target`.

        Args:
            source: the file.
            target: where to write. Its name must not end in a format's suffix.
            name: of the picture, for messages.
            settings: how to enlarge and to write it.
            tell: see `Tell`.

        Raises:
            HasnError: the picture failed, and nothing was written.
            Cancelled, Closed: it was stopped, and nothing was written.
        """
        job = Job(0, source, target, name)
        with in_use(self._decoders):
            done, _ = do_job(job, settings, self._pool(settings), self._memory, tell, overwrite=True)
        return done

    def preview(self, source: Path, target: Path, name: str) -> None:
        """Write the first frame or page of `source` as a PNG, for browsers that cannot show its format.

        Floats are shown from 0 to 1.

        Raises:
            HasnError: it cannot be read, or is too large.
            Closed: the engine was closed.
        """
        with in_use(self._decoders):
            picture = open_picture(source, max_pixels=None, name=name).first()
            if picture.size[0] * picture.size[1] > LARGEST_PREVIEW:
                raise ImageError(f"{name}: too large to show here", "download it, and open it in another program")
            with self._memory.take(3 * picture.nbytes):
                write_picture(_for_screens(picture), target, "png", EncodeOptions())

    def close(self) -> None:
        """Stop everything, without waiting."""
        with self._lock:
            self._closed = True
            pools = list(self._pools.values())
        for pool in pools:
            pool.stop()
        self._memory.close()
        self._decoders.close()

    def _pool(self, settings: Settings) -> UpscalerPool:
        with self._lock:
            if self._closed:
                raise Cancelled
            if settings.weights not in self._pools:
                self._pools[settings.weights] = UpscalerPool(replace(self._settings, weights=settings.weights))
            return self._pools[settings.weights]


def _for_screens(picture: Picture) -> Picture:
    """The picture's first frame, with floats made 8-bit numbers."""
    if picture.dtype.kind != "f":
        return picture
    (frame,) = picture.load().frames
    pixels = np.rint(np.nan_to_num(frame.pixels).clip(0, 1) * 255).astype(np.uint8)
    return replace(picture, frames=[replace(frame, pixels=pixels)], dtype=pixels.dtype)
