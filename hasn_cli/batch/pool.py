"""`UpscalerPool`: the networks of one run, shared by all threads that process pictures.

Each device has one thread, and only that thread runs networks there. The other threads give it their arrays and wait
for the results. It computes while they decode and encode.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from hasn_cli.batch.settings import Settings
from hasn_cli.choice import EIGHTHS
from hasn_cli.enlarge import PASSES, passes
from hasn_cli.errors import HasnError
from hasn_cli.machine import may_have_gpu

if TYPE_CHECKING:
    from hasn_cli.inference import Plan, Upscaler
    from hasn_cli.network import HASN

Image = NDArray[Any]
Progress = Callable[[float], None]


class Cancelled(BaseException):
    """The run was stopped. This is not an `Exception`, so that no handler takes it for an error of the picture."""


@dataclass(eq=False)
class _Request:
    """One array to enlarge. `result` gives the larger array and the seconds that the network took."""

    scale: int
    photo: int
    image: Image
    progress: Progress | None
    result: Future[tuple[Image, float]] = field(default_factory=Future)


class UpscalerPool:
    """Upscalers by device and scale, loaded when they are first needed, and the threads that run them.

    Args:
        settings: the weights, the devices, and the options of `Upscaler`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.devices = [name.strip() for name in settings.device.split(",")]
        self.network_seconds = 0.0
        self._upscalers: dict[tuple[str, int, int], Upscaler] = {}
        self._last: dict[str, Upscaler] = {}  # the one that each device has used last; only it keeps its threads
        # by scale and share; every device gets a copy, even if the file changes meanwhile
        self._networks: dict[tuple[int, int], HASN] = {}
        self._digests: dict[int, str] = {}
        self._refused: dict[int, HasnError] = {}
        self._loading = threading.Lock()
        self._requests: deque[_Request] = deque()
        self._change = threading.Condition()
        self._stopped = False
        self._threads: list[threading.Thread] = []

    def loaded(self, scale: int, device: str | None = None, photo: int = 0) -> Upscaler:
        """The upscaler for scale 2, 3 or 4 on one of the devices, by default the first.

        Args:
            photo: the share of the photo weights in eighths, if the weights are chosen for each picture.

        Raises:
            WeightsError: there are no such weights. Later calls raise the same error.
            DeviceError: there is no such device.
        """
        device = device or self.devices[0]
        with self._loading:
            if scale in self._refused:
                raise self._refused[scale]
            if (device, scale, photo) not in self._upscalers:
                try:
                    self._digest(scale)  # before loading: if the file changes between, --resume computes again
                    self._upscalers[device, scale, photo] = self._load(scale, device, photo)
                except HasnError as error:
                    self._refused[scale] = error
                    raise
            return self._upscalers[device, scale, photo]

    def digest(self, scale: int) -> str:
        """The SHA-256 of the file of the network for `scale`. With several passes: one for each, joined by `+`.

        Args:
            scale: one of `enlarge.PASSES`.

        Raises:
            WeightsError: there are no such weights.
        """
        with self._loading:
            return "+".join(self._digest(one) for one in PASSES[scale])

    def _digest(self, scale: int) -> str:
        from hasn_cli import weights

        if scale not in self._digests:
            self._digests[scale] = weights.digest(self.settings.weights, scale)
        return self._digests[scale]

    def _load(self, scale: int, device: str, photo: int) -> Upscaler:
        from hasn_cli.inference import Upscaler
        from hasn_cli.weights import load_blend, load_network

        wanted = self.settings
        if (scale, photo) not in self._networks:
            self._networks[scale, photo] = (
                load_blend(scale, photo / EIGHTHS) if photo else load_network(wanted.weights, scale)
            )
        return Upscaler(
            copy.deepcopy(self._networks[scale, photo]),
            device=device,
            precision=wanted.precision,
            tile=wanted.tile,
            overlap=wanted.overlap,
            memory=wanted.memory,
            tta=wanted.tta,
            compile=wanted.compile,
        )

    @property
    def accelerated(self) -> bool:
        """Whether the network runs on something other than the CPU. Known once an upscaler is loaded."""
        return any(upscaler.device.type != "cpu" for upscaler in self._upscalers.values())

    def plan(self, scale: int, size: tuple[int, int], channels: int, itemsize: int, photo: int = 0) -> list[Plan]:
        """The plan for a picture of `size` (height, width), one for each pass.

        Args:
            scale: one of `enlarge.PASSES`.
            photo: see `loaded`. The plan is the same for all, but only one network is then loaded.

        Raises:
            WeightsError, DeviceError: as from `loaded`.
            BudgetError: one of the passes does not fit into the memory budget.
        """
        return [
            self.loaded(step.scale, photo=photo).plan(step.size, channels, itemsize) for step in passes(scale, size)
        ]

    def upscale(
        self, scale: int, image: Image, progress: Progress | None = None, photo: int = 0
    ) -> tuple[Image, float]:
        """Enlarge `image` (H×W×C, as for `Upscaler.upscale`). Waits until a device is free. `photo`: see `loaded`.

        Returns:
            The larger image, and the seconds that the network took.

        Raises:
            Cancelled: the pool was stopped.
            Exception: any error from the network.
        """
        request = _Request(scale, photo, image, progress)
        with self._change:
            if self._stopped:
                raise Cancelled
            if not self._threads:
                self._start()
            self._requests.append(request)
            self._change.notify()
        return request.result.result()

    def stop(self) -> None:
        """Cancel what waits and what runs, without waiting for it to end."""
        with self._change:
            self._stopped = True
            waiting, self._requests = self._requests, deque()
            self._change.notify_all()
        for request in waiting:
            request.result.set_exception(Cancelled())

    def join(self, timeout: float) -> bool:
        """After `stop`: wait until the devices are idle, and return whether they are."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _start(self) -> None:
        for device in self.devices:
            thread = threading.Thread(target=self._serve, args=(device,), name=f"network on {device}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, device: str) -> None:
        while self._serve_next(device):
            pass

    def _serve_next(self, device: str) -> bool:
        """Wait for a request and answer it; False if the pool was stopped. When this returns, it holds no array."""
        request = self._take()
        if request is None:
            return False
        try:
            request.result.set_result(self._run(self._ready(device, request), request))
        except BaseException as error:
            request.result.set_exception(error)
        return True

    def _ready(self, device: str, request: _Request) -> Upscaler:
        """The upscaler for a request. The one before it on this device gives up its threads, and their memory."""
        upscaler = self.loaded(request.scale, device, request.photo)
        last = self._last.get(device)
        if last is not None and last is not upscaler:
            last.close()
        self._last[device] = upscaler
        return upscaler

    def _take(self) -> _Request | None:
        with self._change:
            while not self._requests and not self._stopped:
                self._change.wait()
            return None if self._stopped else self._requests.popleft()

    def _run(self, upscaler: Upscaler, request: _Request) -> tuple[Image, float]:
        def progress(fraction: float) -> None:
            if self._stopped:
                raise Cancelled
            if request.progress is not None:
                request.progress(fraction)

        began = time.perf_counter()
        image = upscaler.upscale(request.image, progress)
        seconds = time.perf_counter() - began
        with self._change:
            self.network_seconds += seconds
        return image, seconds


class Planner:
    """Makes the plans of `UpscalerPool` for a dry run, without loading the network if possible.

    On a CPU, with weights in safetensors, this needs no PyTorch and takes a tenth of the time.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool = UpscalerPool(settings)
        self._checked: dict[int, bool] = {}  # scale → whether its weights could be checked without PyTorch

    def plan(self, scale: int, size: tuple[int, int], channels: int, itemsize: int, photo: int = 0) -> list[Plan]:
        """See `UpscalerPool.plan`."""
        wanted = self._settings
        quick = wanted.device == "cpu" or (wanted.device == "auto" and not may_have_gpu())
        if not (quick and all(map(self._is_checked, PASSES[scale]))):
            return self._pool.plan(scale, size, channels, itemsize)
        from hasn_cli.inference.planning import plan_on_cpu

        return [
            plan_on_cpu(
                step.size,
                channels,
                itemsize,
                step.scale,
                precision=wanted.precision,
                tile=wanted.tile,
                overlap=wanted.overlap,
                memory=wanted.memory,
                tta=wanted.tta,
            )
            for step in passes(scale, size)
        ]

    def _is_checked(self, scale: int) -> bool:
        from hasn_cli.weights import header, resolve

        if scale not in self._checked:  # of the two sets in the package, the clean one stands for both
            found = resolve(self._settings.weights, scale)
            self._checked[scale] = header.scale_of(found.path) == scale
        return self._checked[scale]


class PooledUpscaler:
    """The pool as one picture sees it, with the interface that `hasn_cli.enlarge` expects.

    Attributes:
        scale: 2, 3 or 4, set by `for_scale`.
        seconds: how long the network has computed for this picture.
        waited: how long the picture has waited for a device, in seconds.
        photo: the share of the photo weights in eighths.
    """

    def __init__(self, pool: UpscalerPool) -> None:
        self.seconds = 0.0
        self.waited = 0.0
        self.photo = 0
        self.scale = 0
        self._pool = pool

    def for_scale(self, scale: int) -> PooledUpscaler:
        """Set the scale, and return this object."""
        self.scale = scale
        return self

    def upscale(self, image: Image, progress: Progress | None = None) -> Image:
        """See `Upscaler.upscale`."""
        began = time.perf_counter()
        result, seconds = self._pool.upscale(self.scale, image, progress, self.photo)
        self.seconds += seconds
        self.waited += max(0.0, time.perf_counter() - began - seconds)
        return result
