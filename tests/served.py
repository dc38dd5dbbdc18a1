"""A server of `hasn serve` in a thread of the test process, asked over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import numpy as np
from PIL import Image

from hasn_cli.batch.events import Done, Progress, Started
from hasn_cli.batch.jobs import Job
from hasn_cli.batch.settings import Settings
from hasn_cli.serve.asking import Asking
from hasn_cli.serve.connection import Crowd, connection_class
from hasn_cli.serve.engine import Cancelled
from hasn_cli.serve.jobs import Jobs
from hasn_cli.serve.limits import Limits
from hasn_cli.serve.server import Options, Server, listening


def png(width=20, height=16, mode="RGB", seed=0) -> bytes:
    """A picture's file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Gate:
    """An engine that computes nothing: each picture waits at the gate until it is opened, and comes out as it was."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.inside = 0
        self.most = 0
        self.names: list[str] = []
        self.closed = False
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        pass

    def compute(self, source: Path, target: Path, name: str, settings: Settings, tell: Any) -> Done:
        job = Job(0, source, target, name)
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.names.append(name)
        try:
            tell(Started(job, (16, 20), settings.size.target((16, 20)), 1, "png", "whole"))
            while not self.opened.wait(0.01):
                if self.closed:
                    raise Cancelled
                tell(Progress(job, 0.5, 0.1))
            target.write_bytes(source.read_bytes())
            return Done(job, 0.1, 0.1, (16, 20), (64, 80), target.stat().st_size)
        finally:
            with self._lock:
                self.inside -= 1

    def close(self) -> None:
        self.closed = True


@dataclass
class Served:
    """A running server.

    Attributes:
        folder: its private folder.
    """

    port: int
    jobs: Jobs
    folder: Path
    loop: asyncio.AbstractEventLoop
    server: Server
    client: httpx.Client = field(repr=False, default=None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End it, as Ctrl-C does."""
        self.server.should_exit = True

    def upscale(self, data: bytes, **wishes: object) -> httpx.Response:
        return self.client.post(f"/upscale?{urlencode(wishes)}", content=data)

    def create(self, data: bytes, **wishes: object) -> dict:
        answer = self.client.post(f"/jobs?{urlencode(wishes)}", content=data)
        assert answer.status_code == 202, answer.text
        return answer.json()

    def job(self, id: str) -> dict:
        return self.client.get(f"/jobs/{id}").json()

    def wait(self, id: str) -> dict:
        """Follow a job's events until it is over."""
        last = {}
        with self.client.stream("GET", f"/jobs/{id}/events") as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    last = json.loads(line.removeprefix("data: "))
        return last

    def raw(self, request: bytes) -> bytes:
        """What the server answers to these bytes, up to the end of the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as link:
            link.sendall(request)
            link.shutdown(socket.SHUT_WR)
            with link.makefile("rb") as stream:
                return stream.read()

    def call(self, function: Any, *args: object) -> Any:
        """Call a function in the thread of the event loop."""
        done = threading.Event()
        result: list[Any] = []

        def run() -> None:
            result.append(function(*args))
            done.set()

        self.loop.call_soon_threadsafe(run)
        assert done.wait(30)
        return result[0]


@contextlib.contextmanager
def served(
    folder: Path,
    engine: Any,
    *,
    limits: Limits | None = None,
    workers: int = 2,
    weights: tuple[str, ...] = (),
    head_seconds: float = 10,
    **options: Any,
) -> Iterator[Served]:
    """A server, as long as the context lasts."""
    settings = Settings(max_pixels=(limits or Limits()).input_pixels)
    chosen = Options(port=0, workers=workers, limits=limits or Limits(), **options)
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        started = threading.Event()
        jobs = Jobs(engine, folder, chosen.limits, workers=workers)
        server = Server(jobs, Asking(settings, weights), chosen, port, started.set)
        server.config.http = connection_class(Crowd(head_seconds=head_seconds))
        server.config.timeout_keep_alive = min(head_seconds, 5)
        loops: list[asyncio.AbstractEventLoop] = []

        async def main() -> None:
            loops.append(asyncio.get_running_loop())
            await server.serve([listener])

        thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
        thread.start()
        assert started.wait(30)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                yield Served(port, jobs, folder, loops[0], server, client)
        finally:
            server.should_exit = True
            thread.join(30)
            engine.close()
            assert not thread.is_alive()
