"""A `hasn` for tests of scripts that starts at once: each call is forked from a process that has imported everything.

Apart from its start, it is the real program. The real start is tested elsewhere.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SHIM = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as link:
    link.connect({address!r})
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(link, [len(request).to_bytes(4, "big")], [0, 1, 2])
    link.sendall(request)
    sys.exit(int(link.recv(16)))
"""


@pytest.fixture(scope="session")
def path_with_hasn() -> Iterator[str]:
    """A PATH on which `hasn` and this Python come first."""
    if not hasattr(socket, "send_fds"):
        pytest.skip("this system cannot hand open files from one process to another")
    with tempfile.TemporaryDirectory() as folder:
        address = os.path.join(folder, "socket")  # noqa: PTH118 (short, as Unix sockets want it)
        shim = Path(folder, "hasn")
        shim.write_text(SHIM.format(python=sys.executable, address=address))
        shim.chmod(0o755)
        with subprocess.Popen([sys.executable, __file__, address], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout.readline() == "ready\n"
            yield os.pathsep.join([folder, str(Path(sys.executable).parent), os.environ["PATH"]])
            server.terminate()


def serve(address: str) -> None:
    """Answer calls at `address` until terminated; several may run at once."""
    import hasn_cli.batch
    import hasn_cli.inference.upscaler  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the child processes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            link, _ = listener.accept()
            if os.fork() == 0:
                attend(link)
            link.close()


def attend(link: socket.socket) -> None:
    """Run one call with the caller's open files, folder and environment, and send back its exit code."""
    from hasn_cli.cli.main import run

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, files, _, _ = socket.recv_fds(link, 4, 3)
    with link.makefile("rb") as stream:
        arguments, folder, environment = json.loads(stream.read(int.from_bytes(length, "big")))
    child = os.fork()
    if child == 0:
        for standard, file in enumerate(files):
            os.dup2(file, standard)
            os.close(file)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        os._exit(run(arguments))
    for file in files:
        os.close(file)  # otherwise a pipe would never end
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    link.sendall(str(code if code >= 0 else 128 - code).encode())
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
