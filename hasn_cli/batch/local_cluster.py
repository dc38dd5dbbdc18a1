"""A Dask cluster of processes on this machine: `--cluster local:N`."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing import resource_tracker
from typing import Any

from distributed import Nanny, Scheduler, SpecCluster

from hasn_cli.errors import UsageError
from hasn_cli.machine import count_cores, free_memory

PICTURES_PER_WORKER = 4  # at most, so that decoding and encoding go on beside the network
SHARE_OF_FREE = 0.5  # of the memory, for all workers together, where no budget is given
LOOPBACK = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}


def count_of(address: str) -> int:
    """The N of `local:N`.

    Raises:
        UsageError: it is no number from 1.
    """
    count = address.removeprefix("local:")
    if not count.isdecimal() or int(count) < 1:
        raise UsageError(f"--cluster {address}: N must be a number from 1", "for instance local:4")
    return int(count)


def start(count: int, *, use_gpus: bool) -> SpecCluster:
    """Start a scheduler and `count` worker processes.

    Ctrl-C reaches every process of a terminal, but ending the workers is for us. So a thread starts them that is deaf
    to it: what a thread starts, threads and processes, inherits its deafness.
    """
    specs = worker_specs(count, _count_gpus() if use_gpus else 0)
    started: Future[SpecCluster] = Future()

    def run() -> None:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            scheduler = {"cls": Scheduler, "options": {"port": 0, **LOOPBACK}}
            started.set_result(SpecCluster(workers=specs, scheduler=scheduler, silence_logs=50, asynchronous=False))
        except BaseException as error:
            started.set_exception(error)

    resource_tracker.ensure_running()  # which would make the thread that starts it hear again
    threading.Thread(target=run, name="local cluster", daemon=True).start()
    return started.result()


def end(cluster: SpecCluster) -> None:
    """End it at once: its workers have nothing left to bring to an end, and would take seconds to say good-bye."""
    for nanny in cluster.workers.values():
        nanny.auto_restart = False
        with suppress(AttributeError, TypeError, ProcessLookupError):  # it is not up, or already down
            os.kill(nanny.process.pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    cluster.close(1)


def worker_specs(count: int, gpus: int) -> dict[int, dict[str, Any]]:
    """How `count` workers are started; where there are GPUs, each has one."""
    specs = {}
    for index in range(count):
        options: dict[str, Any] = {
            **LOOPBACK,
            "nthreads": max(2, min(PICTURES_PER_WORKER, cores_share(count))),
            "memory_limit": 0,  # the upscaler keeps to its budget; a worker killed at a threshold would help nobody
            "silence_logs": 50,
            "resources": {"GPU": 1} if gpus else {},
            "env": {"CUDA_VISIBLE_DEVICES": str(index % gpus)} if gpus else {},
        }
        specs[index] = {"cls": Nanny, "options": options}
    return specs


def cores_share(workers: int) -> int:
    """The cores for each worker."""
    return max(1, count_cores() // workers)


def memory_share(workers: int, budget: int | None) -> int:
    """The bytes for each worker."""
    return (budget or int(free_memory() * SHARE_OF_FREE)) // workers


def _count_gpus() -> int:
    import torch

    return int(torch.cuda.device_count())
