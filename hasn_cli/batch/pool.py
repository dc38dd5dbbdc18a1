"""`UpscalerPool`: the networks of one run, shared by all threads that have pictures.

Each device has one thread, which alone runs networks there. The others hand it their arrays and wait: while they decode
and encode, it computes.
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
from hasn_cli.enlarge import PASSES, passes
from hasn_cli.errors import HasnError, WeightsError
from hasn_cli.machine import may_have_gpu

if TYPE_CHECKING:
    from hasn_cli.inference import Plan, Upscaler
    from hasn_cli.network import HASN

Image = NDArray[Any]
Progress = Callable[[float], None]


class Cancelled(BaseException):
    """The run was stopped. Not an `Exception`, so that no handler takes it for a fault of the picture."""


@dataclass(eq=False)
class _Request:
    """One array on its way through a network; `result` gives the larger array and the seconds that it took."""

    scale: int
    image: Image
    progress: Progress | None
    result: Future[tuple[Image, float]] = field(default_factory=Future)


class UpscalerPool:
    """Upscalers by device and scale, loaded when first needed, and the threads that run them.

    Args:
        settings: weights, devices and all that `Upscaler` takes.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.devices = [name.strip() for name in settings.device.split(",")]
        self.network_seconds = 0.0
        self._upscalers: dict[tuple[str, int], Upscaler] = {}
        self._networks: dict[int, HASN] = {}  # by scale; every device gets a copy, whatever becomes of the file
        self._digests: dict[int, str] = {}
        self._refused: dict[int, HasnError] = {}
        self._loading = threading.Lock()
        self._requests: deque[_Request] = deque()
        self._change = threading.Condition()
        self._stopped = False
        self._threads: list[threading.Thread] = []

    def loaded(self, scale: int, device: str | None = None) -> Upscaler:
        """The upscaler for 2, 3 or 4 on one of the devices, by default the first.

        Raises:
            WeightsError: there are no such weights; the same again for whoever asks next.
            DeviceError: there is no such device.
        """
        device = device or self.devices[0]
        with self._loading:
            if scale in self._refused:
                raise self._refused[scale]
            if (device, scale) not in self._upscalers:
                try:
                    self._digest(scale)  # first: should the file change meanwhile, it is not taken for the one used
                    self._upscalers[device, scale] = self._load(scale, device)
                except HasnError as error:
                    self._refused[scale] = error
                    raise
            return self._upscalers[device, scale]

    def digest(self, scale: int) -> str:
        """The SHA-256 of the file that the network for `scale` was loaded from, or would be; of several passes, all.

        Args:
            scale: one of `enlarge.PASSES`.

        Raises:
            WeightsError: there are no such weights.
        """
        with self._loading:
            return "+".join(self._digest(one) for one in PASSES[scale])

    def _digest(self, scale: int) -> str:
        from hasn_cli.weights import resolve

        if scale not in self._digests:
            found = resolve(self.settings.weights, scale)
            try:
                self._digests[scale] = found.sha256
            except OSError as error:
                message = f"cannot read weights {found.path}: {error.strerror or error}"
                raise WeightsError(message, "check the path given to -w") from error
        return self._digests[scale]

    def _load(self, scale: int, device: str) -> Upscaler:
        from hasn_cli.inference import Upscaler
        from hasn_cli.weights import load_network

        wanted = self.settings
        if scale not in self._networks:
            self._networks[scale] = load_network(wanted.weights, scale)
        return Upscaler(
            copy.deepcopy(self._networks[scale]),
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
        """Whether the network runs elsewhere than on the CPU; known once an upscaler is loaded."""
        return any(upscaler.device.type != "cpu" for upscaler in self._upscalers.values())

    def plan(self, scale: int, size: tuple[int, int], channels: int, itemsize: int) -> list[Plan]:
        """How a picture of `size` (height, width) would be evaluated, pass by pass.

        Args:
            scale: one of `enlarge.PASSES`.

        Raises:
            WeightsError, DeviceError: as `loaded` does.
            BudgetError: one of the passes does not fit the memory budget.
        """
        return [self.loaded(step.scale).plan(step.size, channels, itemsize) for step in passes(scale, size)]

    def upscale(self, scale: int, image: Image, progress: Progress | None = None) -> tuple[Image, float]:
        """Have `image` (H×W×C, as `Upscaler.upscale` takes it) enlarged; waits for its turn.

        Returns:
            The larger image, and the seconds that the network took for it.

        Raises:
            Cancelled: the pool was stopped.
            Exception: what the network raises.
        """
        request = _Request(scale, image, progress)
        with self._change:
            if self._stopped:
                raise Cancelled
            if not self._threads:
                self._start()
            self._requests.append(request)
            self._change.notify()
        return request.result.result()

    def stop(self) -> None:
        """Cancel what waits and what runs. Does not wait for it."""
        with self._change:
            self._stopped = True
            waiting, self._requests = self._requests, deque()
            self._change.notify_all()
        for request in waiting:
            request.result.set_exception(Cancelled())

    def join(self, timeout: float) -> bool:
        """After `stop`: wait for the devices to come to rest, and say whether they did."""
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
        """Wait for a request and answer it; False if the pool was stopped. No array is held when it returns."""
        request = self._take()
        if request is None:
            return False
        try:
            request.result.set_result(self._run(self.loaded(request.scale, device), request))
        except BaseException as error:
            request.result.set_exception(error)
        return True

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
    """Plans as `UpscalerPool` does, for a dry run: without loading the network, where that is possible.

    On a CPU, with weights in safetensors, no PyTorch is needed: that takes a tenth of the time.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool = UpscalerPool(settings)
        self._checked: dict[int, bool] = {}  # scale → whether its weights could be checked without PyTorch

    def plan(self, scale: int, size: tuple[int, int], channels: int, itemsize: int) -> list[Plan]:
        """As `UpscalerPool.plan`."""
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

        if scale not in self._checked:
            found = resolve(self._settings.weights, scale)
            self._checked[scale] = header.scale_of(found.path) == scale
        return self._checked[scale]


class PooledUpscaler:
    """One picture's door to the pool, in the shape that `hasn_cli.enlarge` wants.

    Attributes:
        scale: 2, 3 or 4, from `for_scale`.
        seconds: that the network took so far.
        waited: seconds that went by until its turn came.
    """

    def __init__(self, pool: UpscalerPool) -> None:
        self.seconds = 0.0
        self.waited = 0.0
        self.scale = 0
        self._pool = pool

    def for_scale(self, scale: int) -> PooledUpscaler:
        """This, set to `scale`."""
        self.scale = scale
        return self

    def upscale(self, image: Image, progress: Progress | None = None) -> Image:
        """As `Upscaler.upscale`."""
        began = time.perf_counter()
        result, seconds = self._pool.upscale(self.scale, image, progress)
        self.seconds += seconds
        self.waited += max(0.0, time.perf_counter() - began - seconds)
        return result
