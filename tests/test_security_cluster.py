"""A local cluster on a machine with other users: nobody can connect without its certificate, or make it run code."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from test_batch import TWICE, of_type, save, save_many

distributed = pytest.importorskip("distributed", reason="needs the cluster extra")

from distributed.security import Security  # noqa: E402

from hasn_cli.batch import Done, Failed, Skipped, local_cluster, run_batch  # noqa: E402
from hasn_cli.batch.jobs import find_jobs  # noqa: E402
from hasn_cli.errors import MissingExtraError  # noqa: E402

EVIL = [os.fsdecode(b"\x1b[31m\xff\n.png"), '"},{"x.png', "$(touch pwned).png", "a\u2028b.png", "-rf.png"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def private():
    """A local cluster of one worker, as `--cluster local:1` starts it."""
    cluster = local_cluster.start(1, use_gpus=False)
    yield cluster
    local_cluster.end(cluster)
    assert not Path(cluster.scratch).exists()
    assert not any(folder.startswith(cluster.scratch) for folder in sys.path)


def listening(process: psutil.Process) -> set[int]:
    return {entry.laddr.port for entry in process.net_connections("inet") if entry.status == psutil.CONN_LISTEN}


@contextmanager
def client(address: str, security: Security | None):
    with distributed.Client(address, timeout="60s", security=security, set_as_default=False) as connected:
        yield connected


def test_only_clients_with_the_runs_certificate_can_connect_to_a_local_cluster(private):
    worker = next(iter(private.workers.values())).worker_address
    with client(private.scheduler_address, private.security) as ours:
        assert ours.submit(sum, [1, 2]).result(timeout=300) == 3
    for address in (private.scheduler_address, worker):
        port = int(address.rpartition(":")[2])
        strangers = [
            (f"tcp://127.0.0.1:{port}", None),
            (f"tls://127.0.0.1:{port}", Security.temporary()),
            (f"tls://127.0.0.1:{port}", Security(tls_ca_file=private.security.tls_ca_file, require_encryption=True)),
        ]
        for where, security in strangers:
            # now and then, Dask's client fails an assertion of its own while it gives up
            with pytest.raises((OSError, TypeError, ValueError, AssertionError)), client(where, security):
                pytest.fail(f"{where} accepted a stranger")


def test_every_port_of_a_local_cluster_asks_for_a_certificate(private):
    ours = psutil.Process()
    ports = set().union(*(listening(process) for process in (ours, *ours.children(recursive=True))))
    assert ports, "the scheduler, the nanny and the worker listen"
    for port in ports:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
            link.sendall(b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n")
            try:
                answer = link.recv(1 << 16)
            except ConnectionError:
                answer = b""
        assert not answer.startswith(b"HTTP"), f"a web server answers at {port}"


def test_the_key_of_a_local_cluster_is_in_no_command_line_and_its_files_are_private(private):
    assert Path(private.scratch).stat().st_mode & 0o777 == 0o700
    for process in psutil.Process().children(recursive=True):
        assert "PRIVATE KEY" not in " ".join([*process.cmdline(), *process.environ().values()])
    with client(private.scheduler_address, private.security) as ours:
        (place,) = ours.run(lambda dask_worker: dask_worker.local_directory).values()
        (theirs,) = ours.run(lambda: sys.path).values()
    assert place.startswith(private.scratch)
    for folder in (*sys.path, *theirs):  # Dask loads modules from its scratch folder, which is in /tmp by default
        assert "dask-scratch-space" not in folder or folder.startswith(private.scratch)


@pytest.mark.slow
def test_a_scratch_folder_prepared_by_somebody_else_is_not_used(folder):
    save_many(2)
    prepared = folder / "tmp" / "dask-scratch-space"
    prepared.mkdir(parents=True)
    for name in ("natsort", "simplejpeg", "tifffile", "json"):  # Dask loads modules from its scratch folder
        (prepared / f"{name}.py").write_text(f"open({str(folder / 'pwned')!r}, 'w').close()")
    command = [sys.executable, "-m", "hasn_cli", "upscale", "in", "-s", "2", "-o", "out", "--cluster", "local:1"]
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not (folder / "pwned").exists() and len(list(Path("out").glob("*.png"))) == 2
    assert [path.name for path in (folder / "tmp").iterdir()] == ["dask-scratch-space"], "something was left behind"


def test_hostile_names_work_on_a_cluster_and_in_its_journal(folder, private, monkeypatch):
    monkeypatch.setattr(local_cluster, "start", lambda *args, **options: private)  # whose connections use TLS
    monkeypatch.setattr(local_cluster, "end", lambda cluster: None)
    for name in EVIL:
        save(f"in/{name.removesuffix('.png')}.png")
    bad = os.fsdecode(b"in/bad\xff\x1b[2J.png")
    Path(bad).write_text("no picture")
    jobs = find_jobs(["in"], "out")
    events = list(run_batch(jobs, TWICE, cluster="local:1"))
    assert len(of_type(events, Done)) == len(EVIL)
    assert [event.job.name for event in of_type(events, Failed)] == [bad]
    again = list(run_batch(jobs, TWICE, cluster="local:1", resume=True))
    assert len(of_type(again, Skipped)) == len(EVIL)
    assert not Path("pwned").exists()


def test_a_link_at_an_outputs_name_is_not_followed_by_a_worker_either(folder):
    save("in/sub/a.png"), save("in/b.png")
    Path("in/b.png").chmod(0o600)
    Path("out").mkdir(), Path("away").mkdir()
    Path("out/b.png").symlink_to(folder / "away.png")
    Path("out/sub").symlink_to("../away")
    with cluster_inside() as address:
        jobs = find_jobs(["in"], "out", recursive=True)
        events = list(run_batch(jobs, TWICE, cluster=address, on_exists="overwrite"))
    (failed,) = of_type(events, Failed)
    assert "link to a folder" in str(failed.error) and not list(Path("away").iterdir())
    assert not Path("away.png").exists() and Path("out/b.png").lstat().st_mode & 0o777 == 0o600
    assert json.loads(json.dumps(failed.to_dict()))["error"].count("\n") == 0


@contextmanager
def cluster_inside():
    """A cluster in this process, with one worker."""
    plain = {"dashboard": False, "protocol": "inproc://"}
    worker = {"cls": local_cluster.PlainWorker, "options": {"nthreads": 2, "memory_limit": 0, "dashboard": False}}
    scheduler = {"cls": local_cluster.PlainScheduler, "options": plain}
    with distributed.SpecCluster(workers={0: worker}, scheduler=scheduler, silence_logs=50) as cluster:
        yield cluster.scheduler_address


def test_without_the_package_for_certificates_no_local_cluster_is_started(monkeypatch):
    def temporary():
        raise ImportError("no cryptography")

    monkeypatch.setattr(local_cluster.Security, "temporary", temporary)
    before = threading.active_count()
    with pytest.raises(MissingExtraError) as caught:
        local_cluster.start(1, use_gpus=False)
    assert "cluster" in caught.value.hint and threading.active_count() == before
