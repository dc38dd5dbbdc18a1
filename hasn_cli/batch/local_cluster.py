"""A Dask cluster of processes on this machine: `--cluster local:N`.

Other people may use this machine too, and whoever can connect to a scheduler can run code in its workers. So all
connections use TLS with a certificate that is made for the run and never leaves these processes. There is no dashboard
and no other web server. Dask writes to a private folder, because it also loads modules from there.
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

PICTURES_PER_WORKER = 4  # at most, so that pictures are decoded and encoded while the network computes another
SHARE_OF_FREE = 0.5  # of the memory, for all workers together, if no budget is given
HOST = "127.0.0.1"
SCRATCH = "temporary-directory"  # Dask's name for the setting


class NoWebServer:
    """Keeps a scheduler or worker from opening a port for its dashboard and statistics, which anybody could read."""

    def start_http_server(self, *args: Any, **options: Any) -> None:
        """Do nothing."""


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
        UsageError: N is not a number from 1 up.
    """
    count = address.removeprefix("local:")
    if not count.isdecimal() or int(count) < 1:
        raise UsageError(f"--cluster {address}: N must be a number from 1 up", "for example local:4")
    return int(count)


def start(count: int, *, use_gpus: bool) -> PrivateCluster:
    """Start a scheduler and `count` worker processes. A client connects with the cluster's `security`.

    Ctrl-C reaches every process of a terminal, but this process is the one that ends the workers. So they are started
    from a thread that blocks SIGINT, because the threads and processes that a thread starts inherit its signal mask.

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

    resource_tracker.ensure_running()  # if the thread below started it, SIGINT would be unblocked there
    threading.Thread(target=run, name="local cluster", daemon=True).start()
    return started.result()


def end(cluster: PrivateCluster) -> None:
    """End the cluster at once. Its workers have nothing left to finish, and a regular end would take seconds."""
    for nanny in cluster.workers.values():
        nanny.auto_restart = False
        with suppress(AttributeError, TypeError, ProcessLookupError):  # it is not running yet, or not any more
            os.kill(nanny.process.pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    _clear(cluster)  # first, because this process may be killed before the rest is done
    with suppress(TimeoutError):
        cluster.close(1)
    _clear(cluster)


def _clear(cluster: PrivateCluster) -> None:
    """Delete the scratch folder, and stop loading modules from it: from now on, anybody could make a folder there."""
    with suppress(AttributeError, OSError):
        cluster.scheduler._workdir.release()  # else Dask would report at exit that the folder is missing
    shutil.rmtree(cluster.scratch, ignore_errors=True)
    sys.path[:] = [folder for folder in sys.path if not folder.startswith(cluster.scratch)]


def worker_specs(count: int, gpus: int) -> dict[int, dict[str, Any]]:
    """The specifications of `count` workers. If there are GPUs, each worker gets one."""
    specs = {}
    for index in range(count):
        options: dict[str, Any] = {
            "nthreads": max(2, min(PICTURES_PER_WORKER, cores_share(count))),
            "memory_limit": 0,  # the upscaler keeps to its budget, so Dask need not kill a worker at a threshold
            "silence_logs": 50,
            "resources": {"GPU": 1} if gpus else {},
            "env": {"CUDA_VISIBLE_DEVICES": str(index % gpus)} if gpus else {},
        }
        specs[index] = {"cls": Nanny, "options": options}
    return specs


def cores_share(workers: int) -> int:
    """The number of cores for each worker."""
    return max(1, count_cores() // workers)


def memory_share(workers: int, budget: int | None) -> int:
    """The memory for each worker, in bytes."""
    return (budget or int(free_memory() * SHARE_OF_FREE)) // workers


def _count_gpus() -> int:
    import torch

    return int(torch.cuda.device_count())
