"""Training steps as CUDA graphs.

A step consists of some two thousand small kernels, and starting them one by one takes longer than running them. A CUDA
graph is recorded once for each scale and then started as a whole, with new values in the same memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EAGER = 20  # steps of each scale before its graph is recorded, so that optimizers and compilers are past their starts

Found = tuple[Tensor, list[list[Tensor]]]  # the loss, and the features of each piece
Update = Callable[[int, Tensor, Tensor], Found]


class CapturedSteps:
    """Calls `update(scale, lr, hr)`: at first directly, then as a CUDA graph.

    Args:
        update: must only do work on the device, with the same shapes each time.
    """

    def __init__(self, update: Update) -> None:
        self._update = update
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._made: dict[int, int] = {}
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Found]] = {}

    def __call__(self, scale: int, lr: Tensor, hr: Tensor) -> Found:
        self._made[scale] = self._made.get(scale, 0) + 1
        if self._made[scale] <= EAGER:
            return self._eagerly(scale, lr, hr)
        if scale not in self._graphs:
            self._graphs[scale] = self._record(scale, lr.clone(), hr.clone())
        graph, its_lr, its_hr, (loss, features) = self._graphs[scale]
        its_lr.copy_(lr, non_blocking=True)
        its_hr.copy_(hr, non_blocking=True)
        graph.replay()
        return loss.clone(), features

    def _eagerly(self, scale: int, lr: Tensor, hr: Tensor) -> Found:
        """On the stream that records, or the gradient's nodes would belong to another one."""
        outer = torch.cuda.current_stream()
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            found = self._update(scale, lr, hr)
        outer.wait_stream(self._stream)
        torch.cuda.synchronize()  # so that no memory is used again too early on the other stream
        return found

    def _record(self, scale: int, lr: Tensor, hr: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Found]:
        """Recording does not run anything: the weights stay as they are."""
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # other threads may go on using the device: one brings the next batches there
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            found = self._update(scale, lr, hr)
        return graph, lr, hr, found
