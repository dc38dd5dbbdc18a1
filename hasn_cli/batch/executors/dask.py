"""Run a batch on a Dask cluster (needs the extra `cluster`).

Each picture is one task. The worker that runs it also reads and writes it, on a disk that all machines share or at
URLs. A plugin gives each worker a pool of networks, so that each loads the network only once. This process keeps the
journal and decides what to do about existing outputs.

A worker may die at any moment, and Dask then gives its pictures to other workers, even one that it had just finished.
So each task knows the state of the output before the batch. If the output has changed since and is a picture of the
right size, the task counts as done.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import tempfile
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from distributed import CancelledError, Client, Future, KilledWorker, Worker, get_worker
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.utils import silence_logging_cmgr

from hasn_cli import errors, files
from hasn_cli.batch import carried_weights, local_cluster
from hasn_cli.batch.events import Done, Event, Failed, Progress, Skipped, Started
from hasn_cli.batch.existing_outputs import ExistingOutputs, target_state
from hasn_cli.batch.jobs import Job
from hasn_cli.batch.local_cluster import PICTURES_PER_WORKER, PrivateCluster
from hasn_cli.batch.marks import Mark
from hasn_cli.batch.memory_limit import MemoryLimit
from hasn_cli.batch.pool import Cancelled, UpscalerPool
from hasn_cli.batch.process import Receipt, disk_is_full, do_job, finished_before, is_taken
from hasn_cli.batch.settings import Settings
from hasn_cli.decoding.pool import Closed, Decoders, in_use
from hasn_cli.errors import HasnError, ImageError, UsageError
from hasn_cli.files import Overwrite

GPU_SHARE = 1 / PICTURES_PER_WORKER  # the part of a worker's GPU that each picture claims
CONNECT_TIMEOUT = 10.0  # seconds
CLEANUP_TIMEOUT = 0.5  # seconds for each of at most four steps after Ctrl-C
WORKERS_TIMEOUT = 300.0  # seconds to wait for workers; a cluster that grows on demand takes a while
RESUME_HINT = "start it again with --resume"


@contextmanager
def on_cluster(
    jobs: Sequence[Job], settings: Settings, outputs: ExistingOutputs, address: str, most: int | None = None
) -> Iterator[Cluster]:
    """An executor for these jobs on the cluster at `address` (`tcp://…` or `local:N`).

    If `most` is given, the cluster never has more pictures than that at once.

    Raises:
        UsageError: the address is invalid, or a picture is read from or written to a standard stream.
        HasnError: no scheduler answers, there are no workers, or the cluster is lost.
    """
    for job in jobs:
        if "-" in (job.source, job.target):
            raise UsageError("a cluster cannot use the standard streams", "give files, folders or URLs")
    threads, local = None, None
    with ExitStack() as stack:
        stack.enter_context(silence_logging_cmgr(logging.CRITICAL))  # what matters is raised as an error here
        if address.startswith("local:"):
            count = local_cluster.count_of(address)
            local = local_cluster.start(count, use_gpus=settings.device != "cpu")
            stack.callback(_quietly, local_cluster.end, local)
            settings = replace(settings, memory=local_cluster.memory_share(count, settings.memory))
            threads = local_cluster.cores_share(count)
            address = local.scheduler_address
        security = None if local is None else local.security
        cluster = Cluster(_connect(address, security), settings, outputs, threads, most)
        stack.callback(cluster.close, local)
        cluster.start(jobs)
        yield cluster


def _connect(address: str, security: Any) -> Client:
    """Connect to the scheduler at `address`. Without `security`, the certificates in Dask's configuration are used."""
    if "://" not in address:
        hint = "give tcp://HOST:PORT of a running scheduler, or local:N"
        raise UsageError(f"--cluster {address}: this is not an address", hint)
    try:
        return Client(address, timeout=CONNECT_TIMEOUT, set_as_default=False, security=security)
    except (OSError, ValueError) as error:
        hint = "give tcp://HOST:PORT of a running Dask scheduler, or local:N"
        raise HasnError(f"--cluster {address}: no scheduler answers there", hint) from error


class Cluster:
    """One batch on one cluster, as this process sees it: an `Executor`."""

    def __init__(
        self, client: Client, settings: Settings, outputs: ExistingOutputs, threads: int | None, most: int | None = None
    ) -> None:
        self._threads = threads
        self._most = most
        self.id = f"hasn-{uuid.uuid4().hex[:12]}"
        self._client = client
        self._settings = settings
        self._outputs = outputs
        self._inbox: queue.SimpleQueue[Future | dict[str, Any]] = queue.SimpleQueue()
        self._flight: dict[Future, Job] = {}
        self._by_index: dict[int, Job] = {}
        self._started: set[int] = set()
        self._processes: set[str] = set()
        self._folders: set[Path] = set()
        self._known: list[dict[str, Any]] = []
        self._asked = 0.0
        self._deadline = time.monotonic() + WORKERS_TIMEOUT

    def start(self, jobs: Sequence[Job]) -> None:
        """Prepare the workers for these jobs."""
        self._client.subscribe_topic(self.id, self._receive)
        self._client.register_plugin(WorkerState(self.id, self._settings, self._threads), name=self.id)
        self._check_shared_disk(jobs)

    def close(self, local: PrivateCluster | None) -> None:
        """Stop all work of this run on the cluster. A cluster that was started for this run is ended."""
        interrupted = bool(self._flight)
        within = CLEANUP_TIMEOUT if interrupted else CONNECT_TIMEOUT
        if interrupted:
            _quietly(self._client.cancel, list(self._flight))
        _quietly(self._client.unregister_worker_plugin, self.id, within=within)
        alive: set[str] = set()
        if local is None:
            _quietly(lambda: alive.update(self._client.run(files.owner).values()), within=within)
        _quietly(self._client.close, CLEANUP_TIMEOUT)
        if local is not None:
            _quietly(local_cluster.end, local, within=within)
        dead = self._processes - alive if alive or local else set()
        for folder in self._folders:
            files.clear_abandoned(folder)
            for process in dead:  # on a disk without locks, nothing else shows that its files are abandoned
                files.clear_own(folder, process)

    def _workers(self) -> list[dict[str, Any]]:
        """The scheduler's information about its workers, at most a second old."""
        if time.monotonic() - self._asked > 1:
            try:
                self._known = list(self._client.scheduler_info(n_workers=-1)["workers"].values())
            except Exception as error:
                raise HasnError("the cluster is lost: its scheduler does not answer", RESUME_HINT) from error
            self._asked = time.monotonic()
        return self._known

    def capacity(self) -> int:
        """See `Executor.capacity`: as many pictures as the workers process, and one more for each."""
        carried = sum(min(int(worker["nthreads"]), PICTURES_PER_WORKER) + 1 for worker in self._workers())
        return max(1, carried if self._most is None else min(carried, self._most))

    def _check_shared_disk(self, jobs: Sequence[Job]) -> None:
        """Check that the workers can see local paths, which requires a disk that all machines share."""
        path = next((job.source.absolute() for job in jobs if isinstance(job.source, Path) and not job.problem), None)
        if path is None or not path.exists():
            return
        blind = [address for address, sees in self._client.run(path.exists).items() if not sees]
        if blind:
            hint = "use a folder that all machines share, or URLs such as s3://…"
            raise HasnError(f"{path}: the workers on {', '.join(blind)} cannot see this file", hint)

    def submit(self, job: Job) -> Event | None:
        """See `Executor.submit`."""
        try:
            verdict = self._outputs.check(job)
            if verdict.reason is not None:
                return Skipped(job, verdict.reason)
            self._outputs.begin(job)
        except Exception as error:
            return Failed(job, error)
        self._by_index[job.index] = job
        if isinstance(job.target, Path):
            self._folders.add(job.target.parent)
        resources = {"GPU": GPU_SHARE} if any("GPU" in worker["resources"] for worker in self._workers()) else None
        task = (self.id, _absolute(job), verdict.found, verdict.overwrite)
        future = self._client.submit(run_task, *task, key=f"{self.id}-{job.index}", resources=resources, pure=False)
        self._flight[future] = job
        future.add_done_callback(self._inbox.put)
        return None

    def _receive(self, event: tuple[float, dict[str, Any]]) -> None:
        self._inbox.put(event[1])

    def next_event(self) -> Event | None:
        """See `Executor.next_event`."""
        try:
            item = self._inbox.get(timeout=0.5)
        except queue.Empty:
            self._check_connection()
            return None
        if isinstance(item, Future):
            return self._finished(item, self._flight.pop(item))
        return self._event_from(item)

    def _check_connection(self) -> None:
        if self._client.status != "running":
            raise HasnError("the cluster is lost: its scheduler does not answer", RESUME_HINT)
        if self._workers():
            self._deadline = time.monotonic() + WORKERS_TIMEOUT
        elif time.monotonic() > self._deadline:
            raise HasnError("the cluster has no workers", "start some: dask worker ADDRESS")

    def _event_from(self, message: dict[str, Any]) -> Event | None:
        """The event for a message of a running task. Late messages, and a second start elsewhere, are ignored."""
        if "process" in message:
            self._processes.add(message["process"])
            return None
        job = self._by_index.get(message["index"])
        if job is None:
            return None
        if message["event"] == "progress":
            return Progress(job, message["fraction"], message["megapixels"])
        if job.index in self._started:
            return None
        self._started.add(job.index)
        size, target_size = tuple(message["size"]), tuple(message["target_size"])
        return Started(
            job, size, target_size, message["frames"], message["format"], message["plan"], message["details"]
        )

    def _finished(self, future: Future, job: Job) -> Event:
        self._by_index.pop(job.index)
        try:
            outcome = future.result()
        except KilledWorker:
            hint = "they may have run out of memory: give a smaller --memory"
            return Failed(job, HasnError(f"{job.name}: every worker that tried it died", hint))
        except CancelledError as error:
            raise HasnError("the cluster is lost: it dropped a picture", RESUME_HINT) from error
        except Exception as error:
            return Failed(job, error)
        finally:
            future.release()
        if "error" in outcome:
            failed = Failed(job, _error_from(outcome["error"]))
            if is_taken(failed.error):
                self._outputs.disown(job)
            return failed
        self._outputs.finish(job, Receipt(**outcome["receipt"]))
        return Done(job=job, **outcome["done"])


class WorkerState(WorkerPlugin):  # type: ignore[misc]
    """What a run keeps in each worker: the pool of networks, the memory limit, and the decoders.

    Args:
        name: the run's name.
        settings: the run's settings. Weights that are a local file or folder are sent along.
        threads: the number of threads for the network; None: as many as the worker has.
    """

    def __init__(self, name: str, settings: Settings, threads: int | None = None) -> None:
        self.name = name
        self._threads = threads
        self._settings = settings.to_dict()
        self._weights = carried_weights.pack(settings.weights)

    def setup(self, worker: Worker) -> None:
        """Set up a worker. Dask calls this in each one, also in those that join later."""
        import torch

        # Dask's default is one thread. This comes first, because `inference` reads the number when it is imported.
        torch.set_num_threads(self._threads or worker.state.nthreads)
        self._folder = tempfile.TemporaryDirectory(prefix="hasn-") if self._weights else None
        settings = Settings.from_dict(self._settings)
        if self._weights and self._folder:
            settings = replace(settings, weights=carried_weights.unpack(self._weights, Path(self._folder.name)))
        warnings.filterwarnings("ignore", module=r"PIL\.")  # as the command line does
        self.settings = settings
        self.pool = UpscalerPool(settings)
        self.memory = MemoryLimit(settings.memory)
        self.decoders = Decoders(PICTURES_PER_WORKER)
        worker.log_event(self.name, {"process": files.owner()})

    def teardown(self, worker: Worker) -> None:
        """Stop what still runs. Dask calls this in each worker when the run is over."""
        self.pool.stop()
        self.memory.close()
        self.decoders.close()
        if self._folder:
            self._folder.cleanup()


def run_task(run: str, job: Job, before: Mark | None, overwrite: Overwrite) -> dict[str, Any]:
    """Process one picture on a worker. Errors are returned as values, since not all of them can be pickled.

    Args:
        run: the run's name.
        job: the job, with absolute paths.
        before: the output's state when it was decided to run the job.
        overwrite: whether an existing output may be replaced.
    """
    worker = get_worker()
    state: WorkerState = worker.plugins[run]

    def tell(event: Started | Progress) -> None:
        # Without the names, which the receiver knows: a name that is not valid Unicode would end the connection.
        facts = {key: value for key, value in event.to_dict().items() if key not in ("input", "output")}
        worker.log_event(run, facts)

    try:
        found = target_state(job.target)
        changed = found if found != before else None
        with in_use(state.decoders):
            if job.video and not state.settings.encode.first_frame:
                raise ImageError(f"{job.name}: a cluster enlarges no videos", "run it without --cluster")
            finished = changed and finished_before(job, changed, state.settings, state.pool)
            done, receipt = finished or do_job(job, state.settings, state.pool, state.memory, tell, overwrite)
    except (Cancelled, Closed):
        return {"error": {"kind": "HasnError", "message": f"{job.name}: cancelled", "hint": None}}
    except Exception as error:
        return {"error": _error_to_dict(error)}
    return {"done": _without_job(done), "receipt": asdict(receipt)}


def _without_job(done: Done) -> dict[str, Any]:
    return {name: value for name, value in asdict(done).items() if name != "job"}


def _absolute(job: Job) -> Job:
    source = job.source.absolute() if isinstance(job.source, Path) else job.source
    target = job.target.absolute() if isinstance(job.target, Path) else job.target
    root = job.root.absolute() if isinstance(job.root, Path) else job.root
    return replace(job, source=source, target=target, root=root)


def _error_to_dict(error: Exception) -> dict[str, Any]:
    known = isinstance(error, HasnError)
    return {
        "kind": type(error).__name__,
        "message": str(error) if known else f"{type(error).__name__}: {error}",
        "hint": error.hint if isinstance(error, HasnError) else None,
        "traceback": "".join(traceback.format_exception(error)),
        "errno": errno.ENOSPC if disk_is_full(error) else errno.EEXIST if is_taken(error) else None,
    }


def _error_from(values: dict[str, Any]) -> HasnError:
    kind = getattr(errors, values["kind"], HasnError)
    error: HasnError = kind.__new__(kind)
    HasnError.__init__(error, values["message"], values["hint"])
    error.add_note(f"On the worker:\n{values.get('traceback', '')}")
    if number := values.get("errno"):
        error.__cause__ = OSError(number, os.strerror(number))
    return error


def _quietly(call: Any, *args: Any, within: float = CLEANUP_TIMEOUT) -> None:
    """Call something to clean up, but wait no longer than `within` seconds and ignore errors."""

    def run() -> None:
        with suppress(Exception):
            call(*args)

    thread = threading.Thread(target=run, name="clean-up", daemon=True)
    thread.start()
    thread.join(within)
