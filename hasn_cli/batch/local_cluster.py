"""A Dask cluster of processes on this machine: `--cluster local:N`.

Others may use this machine, too, and whoever can talk to a scheduler can run code in its workers. So all of it talks by
TLS, with a certificate that is made for the run and never leaves these processes; there is no dashboard, nor any other
web server; and what Dask writes, and looks for modules in, is a folder that is ours alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing import resource_tracker
from typing import Any

import dask
from distributed import Nanny, Scheduler, SpecCluster, Worker
from distributed.security import Security

from hasn_cli.errors import MissingExtraError, UsageError
from hasn_cli.machine import count_cores, free_memory

PICTURES_PER_WORKER = 4  # at most, so that decoding and encoding go on beside the network
SHARE_OF_FREE = 0.5  # of the memory, for all workers together, where no budget is given
HOST = "127.0.0.1"
SCRATCH = "temporary-directory"  # Dask's name for the setting


class NoWebServer:
    """Keeps a part of the cluster from opening a port for its dashboard and statistics, where anybody may look."""

    def start_http_server(self, *args: Any, **options: Any) -> None:
        """Start none."""


class PlainScheduler(NoWebServer, Scheduler):  # type: ignore[misc]
    """A scheduler without a web server."""


class PrivateCluster(SpecCluster):  # type: ignore[misc]
    """The cluster, and the folder that its processes write to."""

    scratch = ""


class PlainWorker(NoWebServer, Worker):  # type: ignore[misc]
    """A worker without a web server."""


def count_of(address: str) -> int:
    """The N of `local:N`.

    Raises:
        UsageError: it is no number from 1.
    """
    count = address.removeprefix("local:")
    if not count.isdecimal() or int(count) < 1:
        raise UsageError(f"--cluster {address}: N must be a number from 1", "for instance local:4")
    return int(count)


def start(count: int, *, use_gpus: bool) -> PrivateCluster:
    """Start a scheduler and `count` worker processes; its `security` is what a client needs to talk to them.

    Ctrl-C reaches every process of a terminal, but ending the workers is for us. So a thread starts them that is deaf
    to it: what a thread starts, threads and processes, inherits its deafness.

    Raises:
        MissingExtraError: the package that makes certificates is not installed.
    """
    try:
        security = Security.temporary()
    except ImportError as error:
        raise MissingExtraError("--cluster local:N (cryptography)", "cluster") from error
    scratch = tempfile.mkdtemp(prefix="hasn-cluster-")
    common = {"host": HOST, "protocol": "tls://", "security": security, "dashboard": False}
    specs = worker_specs(count, _count_gpus() if use_gpus else 0)
    for spec in specs.values():
        spec["options"] |= {**common, "worker_class": PlainWorker, "local_directory": scratch}
    started: Future[PrivateCluster] = Future()

    def run() -> None:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            scheduler = {"cls": PlainScheduler, "options": {"port": 0, **common}}
            with dask.config.set({SCRATCH: scratch}):  # a scheduler has no option for it
                cluster = PrivateCluster(specs, scheduler, security=security, silence_logs=50, asynchronous=False)
            cluster.scratch = scratch
            started.set_result(cluster)
        except BaseException as error:
            shutil.rmtree(scratch, ignore_errors=True)
            started.set_exception(error)

    resource_tracker.ensure_running()  # which would make the thread that starts it hear again
    threading.Thread(target=run, name="local cluster", daemon=True).start()
    return started.result()


def end(cluster: PrivateCluster) -> None:
    """End it at once: its workers have nothing left to bring to an end, and would take seconds to say good-bye."""
    for nanny in cluster.workers.values():
        nanny.auto_restart = False
        with suppress(AttributeError, TypeError, ProcessLookupError):  # it is not up, or already down
            os.kill(nanny.process.pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    _clear(cluster)  # first, since whoever ends us may not wait for the rest
    with suppress(TimeoutError):
        cluster.close(1)
    _clear(cluster)


def _clear(cluster: PrivateCluster) -> None:
    """Delete its scratch folder, and forget it: Dask looks for modules there, and the name is free for anybody now."""
    with suppress(AttributeError, OSError):
        cluster.scheduler._workdir.release()  # or Dask would miss it when the program ends, and say so
    shutil.rmtree(cluster.scratch, ignore_errors=True)
    sys.path[:] = [folder for folder in sys.path if not folder.startswith(cluster.scratch)]


def worker_specs(count: int, gpus: int) -> dict[int, dict[str, Any]]:
    """How `count` workers are started; where there are GPUs, each has one."""
    specs = {}
    for index in range(count):
        options: dict[str, Any] = {
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
