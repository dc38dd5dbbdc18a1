"""Puts load on `hasn serve`: how it answers, what memory it takes, and whether it stands what clients may do to it.

    python benchmarks/serve.py load --at-once 200      small pictures, all at the same time
    python benchmarks/serve.py memory --requests 1000  resident memory after 100 requests and after the last
    python benchmarks/serve.py abuse                   sockets that stall, send too much, or are gone; and how it ends

Everything stays on 127.0.0.1. The server is started for it, and its memory includes the processes that decode.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from PIL import Image


def small_picture(seed: int, width: int = 20, height: int = 16) -> bytes:
    """A PNG of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Server:
    """A server in a process of its own."""

    def __init__(self, *options: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        environment = {**os.environ, "TMPDIR": self.folder.name}
        command = [sys.executable, "-m", "hasn_cli", "serve", "--port", "0", "--quiet", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.port = int(self.process.stderr.readline().rstrip("/\n").rpartition(":")[2])

    def memory(self) -> float:
        """Resident memory of the server and its processes, in MiB."""
        server = psutil.Process(self.process.pid)
        return sum(one.memory_info().rss for one in [server, *server.children(recursive=True)]) / 2**20

    def files(self) -> int:
        """The number of files in its private folder, besides the lock."""
        found = [path for path in Path(self.folder.name).rglob("*") if path.is_file()]
        return len(found) - 1

    def end(self) -> float:
        """End it as Ctrl-C does; returns the seconds that it took."""
        began = time.perf_counter()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        return time.perf_counter() - began


@contextlib.contextmanager
def server(*options: str) -> Iterator[Server]:
    """A server, ended in any case."""
    running = Server(*options)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        running.folder.cleanup()


async def post(port: int, data: bytes, path: str = "/upscale?scale=2") -> int:
    """Send a picture over a connection of its own, and return the status; 0 if the connection broke."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()
        answer = await reader.read()
        writer.close()
        status, _, body = answer.partition(b"\r\n\r\n")
        if b" 200 " in status.splitlines()[0]:
            Image.open(io.BytesIO(body)).load()
        return int(status.split()[1])
    except (OSError, IndexError):
        return 0


async def post_all(port: int, count: int, at_once: int) -> tuple[Counter[int], list[float]]:
    """Send `count` pictures, at most `at_once` at a time; returns how often each status came, and the times taken."""
    gate = asyncio.Semaphore(at_once)
    times = []

    async def one(seed: int) -> int:
        async with gate:
            began = time.perf_counter()
            status = await post(port, small_picture(seed))
            times.append(time.perf_counter() - began)
            return status

    return Counter(await asyncio.gather(*map(one, range(count)))), times


def load(given: argparse.Namespace) -> None:
    """Send many small pictures at the same time."""
    with server() as running:
        asyncio.run(post_all(running.port, 2, 1))  # the first ones load the network
        began = time.perf_counter()
        statuses, times = asyncio.run(post_all(running.port, given.at_once, given.at_once))
        whole = time.perf_counter() - began
        times.sort()
        time.sleep(0.5)
        print(f"{given.at_once} at once: statuses {dict(statuses)}, {whole:.2f} s in all, "
              f"median {times[len(times) // 2]:.2f} s, last {times[-1]:.2f} s")  # fmt: skip
        print(f"files left: {running.files()}, memory {running.memory():.1f} MiB")


def memory(given: argparse.Namespace) -> None:
    """Print how the server's memory grows from the 100th request to the last."""
    with server() as running:
        sizes = {}
        for number in range(100, given.requests + 1, 100):
            statuses, _ = asyncio.run(post_all(running.port, 100, given.at_once))
            assert set(statuses) == {200}, statuses
            sizes[number] = running.memory()
            print(f"after {number}: {sizes[number]:.1f} MiB", flush=True)
        print(f"from the 100th to the last: {sizes[max(sizes)] - sizes[100]:+.1f} MiB")


# --- abuse ---


def stall(running: Server, begun: bytes, count: int = 1) -> list[socket.socket]:
    """Connections that send `begun` and nothing more."""
    links = []
    for _ in range(count):
        link = socket.create_connection(("127.0.0.1", running.port))
        link.sendall(begun)
        links.append(link)
    return links


def still_answers(running: Server) -> bool:
    """Whether an honest client is served."""
    return asyncio.run(post(running.port, small_picture(0))) == 200


def closed_after(links: list[socket.socket], most: float) -> str:
    """In what time the server ended all connections."""
    began = time.perf_counter()
    for link in links:
        link.settimeout(max(0.01, most - (time.perf_counter() - began)))
        try:
            while link.recv(1 << 16):
                pass
        except TimeoutError:
            return f"open after {most:.0f} s"
        except OSError:
            pass
    return f"closed by the server within {time.perf_counter() - began:.1f} s"


def abuse(given: argparse.Namespace) -> None:
    """Do what a hostile or broken client may do. After each step, an honest client must be served."""
    with server("--max-upload", "4M", "--max-queue", "64") as running:
        for name, attack in ATTACKS.items():
            outcome = attack(running)
            served = "served" if still_answers(running) else "NOT SERVED"
            time.sleep(0.5)
            print(f"{name}: {outcome}; then {served}, {running.files()} files, {running.memory():.0f} MiB", flush=True)
        links = stall(running, _upload(1200, 800))
        time.sleep(1.5)
        print(f"Ctrl-C while it computes and {len(links)} client waits: ended in {running.end():.2f} s, "
              f"exit code {running.process.returncode}, left {list(Path(running.folder.name).iterdir())}")  # fmt: skip


def _upload(width: int = 20, height: int = 16, path: str = "/upscale?scale=2") -> bytes:
    data = small_picture(0, width, height)
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def silent_sockets(running: Server) -> str:
    links = stall(running, b"", 1000)
    served = still_answers(running)
    outcome = f"an honest client was {'served' if served else 'NOT SERVED'} meanwhile, {closed_after(links, 15)}"
    _close(links)
    return outcome


def slow_loris(running: Server) -> str:
    links = stall(running, b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nX-", 300)
    outcome = closed_after(links, 15)
    _close(links)
    return outcome


def slow_body(running: Server) -> str:
    links = stall(running, b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nabc", 60)
    full = asyncio.run(post(running.port, small_picture(0)))
    outcome = f"with 60 uploads that stall, an honest client got {full}; {closed_after(links, 45)}"
    _close(links)
    return outcome


def huge_head(running: Server) -> str:
    links = stall(running, b"GET / HTTP/1.1\r\nHost: localhost\r\n", 20)
    for link in links:
        with contextlib.suppress(OSError):
            for number in range(200):
                link.sendall(f"X-{number}: ".encode() + b"x" * 60_000 + b"\r\n")
    outcome = closed_after(links, 15)
    _close(links)
    return outcome


def endless_chunks(running: Server) -> str:
    (link,) = stall(running, b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    sent = 0
    with contextlib.suppress(OSError):
        for _ in range(400):
            link.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            sent += 0x10000
    outcome = f"{sent / 2**20:.1f} MiB were sent of a body without an end, {closed_after([link], 15)}"
    _close([link])
    return outcome


def gone_while_uploading(running: Server) -> str:
    _close(stall(running, _upload(600, 400)[:200_000], 50))
    return "50 clients"


def gone_while_computing(running: Server) -> str:
    links = stall(running, _upload(400, 300), 50)
    time.sleep(1)
    _close(links)
    return "50 clients"


def unread_answers(running: Server) -> str:
    links = stall(running, b"GET /assets/page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000, 20)
    served = still_answers(running)
    _close(links)
    return f"40,000 requests whose answers nobody reads, {'served' if served else 'NOT SERVED'} meanwhile"


def rubbish(running: Server) -> str:
    rng = np.random.default_rng(0)
    links = []
    for begun in (
        b"",
        b"GET / HTTP/1.1\r\n",
        b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n",
    ):
        for _ in range(30):
            links += stall(running, begun + rng.bytes(2000))
    for link in links:
        with contextlib.suppress(OSError):
            link.shutdown(socket.SHUT_WR)
    outcome = closed_after(links, 45)
    _close(links)
    return outcome


def bombs(running: Server) -> str:
    buffer = io.BytesIO()
    Image.new("1", (40_000, 40_000)).save(buffer, "PNG")  # 1,600 megapixels in 200 kB
    declared = asyncio.run(post(running.port, buffer.getvalue()))
    buffer = io.BytesIO()
    frames = [Image.new("L", (3000, 3000), shade) for shade in range(40)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])  # 360 megapixels in 40 frames
    animated = asyncio.run(post(running.port, buffer.getvalue()))
    large = asyncio.run(post(running.port, small_picture(0, 1100, 900), "/upscale?scale=16&format=png&fit=30000x30000"))
    wide = asyncio.run(post(running.port, small_picture(0), "/upscale?width=1000000"))
    return f"a picture of 1600 megapixels {declared}, an animation of 360 {animated}, contradicting sizes {large}, " \
           f"a width of 1,000,000 {wide}"  # fmt: skip


def full_queue(running: Server) -> str:
    statuses, _ = asyncio.run(post_all(running.port, 300, 300))
    return f"300 at once into a queue of 64: {dict(statuses)}"


def _close(links: list[socket.socket]) -> None:
    for link in links:
        link.close()


ATTACKS = {
    "1000 silent sockets": silent_sockets,
    "slow loris": slow_loris,
    "bodies that stall": slow_body,
    "12 MB of headers": huge_head,
    "endless chunks": endless_chunks,
    "gone while uploading": gone_while_uploading,
    "gone while computing": gone_while_computing,
    "unread answers": unread_answers,
    "rubbish": rubbish,
    "bombs": bombs,
    "full queue": full_queue,
}


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["load", "memory", "abuse"])
    parser.add_argument("--at-once", type=int, default=200)
    parser.add_argument("--requests", type=int, default=1000)
    given = parser.parse_args()
    {"load": load, "memory": memory, "abuse": abuse}[given.what](given)


if __name__ == "__main__":
    main()
