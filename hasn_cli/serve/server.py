"""`serve`: listens on an address until it is interrupted."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from hasn_cli.batch.settings import Settings
from hasn_cli.errors import HasnError, UsageError
from hasn_cli.serve.app import make_app
from hasn_cli.serve.asking import Asking
from hasn_cli.serve.connection import connection_class
from hasn_cli.serve.engine import Engine
from hasn_cli.serve.jobs import Jobs, Task
from hasn_cli.serve.limits import Limits
from hasn_cli.serve.security import LARGEST_HEAD, SHORTEST_TOKEN, Guard, is_loopback, own_names

PREFIX = "hasn-serve-"
LOCK = "lock"
PATIENCE = 0.7  # seconds that requests under way get at the end
FILES = 4096  # that may be open at a time, if the system allows


@dataclass(frozen=True)
class Options:
    """How to listen.

    Attributes:
        host: the address to listen on.
        port: 0: any free one.
        token: what each request must have; None: nothing, which is allowed on the loopback only.
        allowed_hosts: more names of this server, for example behind a proxy.
        workers: pictures that are computed at a time.
    """

    host: str = "127.0.0.1"
    port: int = 7654
    token: str | None = None
    allowed_hosts: Sequence[str] = ()
    workers: int = 2
    limits: Limits = field(default_factory=Limits)


def choose_token(host: str, given: str | None) -> str | None:
    """The token for a server on `host`: the given one, else a new one if others can reach it, else None.

    Raises:
        UsageError: the given one is too short to be safe, or cannot be sent.
    """
    if given is None or given == "":
        return None if is_loopback(host) else secrets.token_urlsafe(24)
    if len(given) < SHORTEST_TOKEN or not all(c.isascii() and (c.isalnum() or c in "-_.~") for c in given):
        raise UsageError(
            "HASN_TOKEN cannot be used", f"use at least {SHORTEST_TOKEN} letters, digits and - _ . ~, chosen at random"
        )
    return given


def serve(
    settings: Settings,
    options: Options,
    *,
    weights: Sequence[str] = (),
    on_start: Callable[[int], None] = lambda port: None,
    on_end: Callable[[Task], None] = lambda task: None,
) -> None:
    """Serve until SIGINT or SIGTERM, which raises `KeyboardInterrupt` at the end. That takes less than two seconds.

    Args:
        settings: the device, precision and memory, and the weights for `auto`.
        options: how to listen.
        weights: other weights that a client may choose.
        on_start: called with the port when the server can be used.
        on_end: called with each picture that is done, has failed or was cancelled.

    Raises:
        UsageError: others could reach the server, and there is no token.
        HasnError: it cannot listen on this address.
    """
    if options.token is None and not is_loopback(options.host):
        raise UsageError("a server that others can reach needs a token")
    _allow_many_files()
    with listening(options.host, options.port) as listener, private_folder() as folder:
        port = int(listener.getsockname()[1])
        engine = Engine(settings, options.workers)
        jobs = Jobs(engine, folder, options.limits, workers=options.workers, on_end=on_end)
        try:
            Server(jobs, Asking(settings, weights), options, port, lambda: on_start(port)).run([listener])
        finally:
            engine.close()


class Server(uvicorn.Server):
    """uvicorn's server, which starts the jobs with the event loop, and stops them before it waits for requests.

    Args:
        jobs: the queue.
        asking: reads the parameters.
        options: how to listen.
        port: on which it does.
        on_start: called when it can be used.
    """

    def __init__(
        self, jobs: Jobs, asking: Asking, options: Options, port: int, on_start: Callable[[], None] = lambda: None
    ) -> None:
        guard = Guard(
            make_app(jobs, asking),
            names=own_names(options.host, options.allowed_hosts),
            any_address=not is_loopback(options.host),
            token=options.token,
            cookie=f"hasn-{port}",
        )
        super().__init__(_config(guard))
        self._jobs = jobs
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin."""
        await super().startup(sockets)
        self._jobs.start()
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End."""
        self._jobs.stop()
        self.config.timeout_graceful_shutdown = PATIENCE  # type: ignore[assignment]
        await super().shutdown(sockets)


def _config(guard: Guard) -> uvicorn.Config:
    return uvicorn.Config(
        guard,
        http=connection_class(),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=5,
        h11_max_incomplete_event_size=LARGEST_HEAD,
    )


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that is bound to the address. 0 as the port takes any free one.

    Raises:
        HasnError: that is not possible.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}: {error.strerror}", "give an address of this machine") from error
    with listener:
        if sys.platform != "win32":  # where it would let a second server take over the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            message = f"cannot listen on {host}, port {port}: {error.strerror}"
            raise HasnError(message, "another program may use this port; --port 0 takes any free one") from error
        yield listener


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder that only its owner can enter, deleted at the end. Deletes those that killed servers left, too."""
    place = Path(tempfile.gettempdir())
    for left in place.glob(f"{PREFIX}*"):
        _delete_if_abandoned(left)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    with (folder / LOCK).open("xb") as lock:
        _lock(lock.fileno())
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _delete_if_abandoned(folder: Path) -> None:
    if sys.platform == "win32":  # no such locks: the system's cleaning of temporary files has to do
        return
    with contextlib.suppress(OSError):
        if folder.is_symlink() or folder.lstat().st_uid != os.geteuid():
            return
        file = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
        try:
            _lock(file)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(file)


def _lock(file: int) -> None:
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _allow_many_files() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < FILES:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard), hard))
