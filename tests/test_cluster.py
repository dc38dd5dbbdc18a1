"""A batch on a Dask cluster, with real scheduler and worker processes on this machine, some of which are killed."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from test_batch import MEANWHILE, TWICE, appearing, no_halves, of_type, save, save_many

distributed = pytest.importorskip("distributed", reason="needs the cluster extra")

from hasn_cli import files  # noqa: E402
from hasn_cli.batch import Done, Failed, Progress, Settings, Skipped, Started, local_cluster, run_batch  # noqa: E402
from hasn_cli.batch.executors import dask as cluster  # noqa: E402
from hasn_cli.batch.existing_outputs import ExistingOutputs, target_state  # noqa: E402
from hasn_cli.batch.jobs import Job, find_jobs  # noqa: E402
from hasn_cli.batch.journal import NAME  # noqa: E402
from hasn_cli.batch.marks import mark_output  # noqa: E402
from hasn_cli.batch.memory_limit import MemoryLimit  # noqa: E402
from hasn_cli.batch.pool import UpscalerPool  # noqa: E402
from hasn_cli.enlarge import Size  # noqa: E402
from hasn_cli.errors import HasnError, ImageError, OutputError, UsageError, WeightsError  # noqa: E402
from hasn_cli.machine import count_cores  # noqa: E402
from hasn_cli.weights import bundled_path, digest  # noqa: E402


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Processes:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self.workers: list[subprocess.Popen] = []
        file = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
        deadline = time.monotonic() + 300
        while not (file.exists() and file.stat().st_size):
            assert time.monotonic() < deadline and self.scheduler.poll() is None
            time.sleep(0.05)
        self.address: str = json.loads(file.read_text())["address"]

    def ensure_workers(self, count: int) -> None:
        """Start workers until this many are running, and wait until the scheduler knows them."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < count:
            self.workers.append(self._start("worker", self.address, "--no-nanny", "--nthreads", "2"))
        with distributed.Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=300)

    def _start(self, *command: str) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([sys.executable, "-m", "dask", *command, "--no-dashboard"], env=environment, **quiet)
        self._stack.callback(lambda: (process.kill(), process.wait()))
        return process


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    with ExitStack() as stack:
        yield Processes(stack, tmp_path_factory.mktemp("scheduler"))


@pytest.fixture
def processes(scheduler):
    """A scheduler and two workers, which the test may kill."""
    scheduler.ensure_workers(2)
    return scheduler


@pytest.fixture(scope="module")
def inside():
    """A cluster inside this process: one worker that claims to have a GPU, and one without."""
    with ExitStack() as stack:
        stack.callback(sys.path.__setitem__, slice(None), sys.path[:])  # workers leave their folders there
        worker = {
            "cls": distributed.Worker,
            "options": {"nthreads": 2, "dashboard_address": "127.0.0.1:0", "memory_limit": 0},
        }
        with_gpu = {"cls": distributed.Worker, "options": {**worker["options"], "resources": {"GPU": 1}}}
        scheduler = {
            "cls": distributed.Scheduler,
            "options": {"dashboard_address": "127.0.0.1:0", "protocol": "inproc://"},
        }
        both = {"plain": worker, "gpu": with_gpu}
        yield stack.enter_context(distributed.SpecCluster(workers=both, scheduler=scheduler, silence_logs=50))


def identity(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def count_loads():
    """On a worker: from now on, count how often a network is loaded."""
    from hasn_cli.batch.pool import UpscalerPool

    real = UpscalerPool._load
    UpscalerPool.loads = 0

    def load(self, *args):
        UpscalerPool.loads += 1
        return real(self, *args)

    UpscalerPool._load = load


def loads():
    from hasn_cli.batch.pool import UpscalerPool

    return UpscalerPool.loads


def test_a_cluster_gives_the_same_pictures_loads_the_model_once_per_worker_and_resumes(folder, processes):
    jobs = save_many(10)
    Path("in/bad.png").write_text("no picture")
    here = find_jobs(["in"], "here")
    list(run_batch(here, TWICE))
    there = find_jobs(["in"], "out")
    with distributed.Client(processes.address, set_as_default=False) as client:
        client.run(count_loads)
        events = list(run_batch(there, TWICE, cluster=processes.address))
        assert sorted(client.run(loads).values()) == [1, 1]

    assert {type(event) for event in events} == {Started, Progress, Done, Failed}
    assert all(event.plan and event.details for event in of_type(events, Started))
    assert [event.job.name for event in of_type(events, Failed)] == ["in/bad.png"]
    assert isinstance(of_type(events, Failed)[0].error, ImageError)
    assert sorted(event.job.index for event in of_type(events, Done)) == sorted(
        job.index for job in there if job.name != "in/bad.png"
    )
    for path in Path("here").glob("*.png"):
        assert (Path("out") / path.name).read_bytes() == path.read_bytes()
    assert len(list(Path("out").glob("*.png"))) == len(jobs)

    Path("out/3.png").unlink()
    again = list(run_batch(there, TWICE, cluster=processes.address, resume=True))
    assert [event.job.name for event in of_type(again, Done)] == ["in/3.png"]
    assert len(of_type(again, Skipped)) == 9


def test_a_killed_worker_loses_nothing_and_nothing_is_done_twice(folder, processes):
    jobs = save_many(30)
    before, done, killed = {}, [], False
    for event in run_batch(jobs, TWICE, cluster=processes.address):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Done):
            done.append(event.job.index)
        if len(done) >= 6 and not killed:
            processes.workers[0].send_signal(signal.SIGSTOP)  # so that it cannot write between this check and its death
            before = {path: identity(path) for path in Path("out").glob("*.png")}
            processes.workers[0].kill()
            killed = True
    assert sorted(done) == list(range(30))
    assert len(before) >= 6 and {path: identity(path) for path in before} == before
    for job in jobs:
        with Image.open(job.target) as image:
            assert image.size == (40, 32)
    assert no_halves(folder)
    assert processes.workers[0].wait() == -signal.SIGKILL


def test_a_dead_workers_unfinished_file_is_removed(folder, processes):
    jobs = save_many(2)
    half = Path("out") / f"{files.PREFIX}0123abcd-0{files.SUFFIX}"
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half")
    list(run_batch(jobs, TWICE, cluster=processes.address))
    assert no_halves(folder) and all(job.target.exists() for job in jobs)


@pytest.fixture
def task(folder, monkeypatch):
    """A picture and a worker in this process, on which `cluster.run_task` runs."""
    save("a.png")
    state = cluster.WorkerState("run", TWICE)
    state.settings, state.pool, state.memory = TWICE, UpscalerPool(TWICE), MemoryLimit()
    state.decoders = None  # pictures are decoded in this process
    worker = SimpleNamespace(plugins={"run": state}, log_event=lambda *args: None)
    monkeypatch.setattr(cluster, "get_worker", lambda: worker)
    return Job(0, Path("a.png"), Path("a_x4.png"), "a.png")


def test_a_picture_finished_by_a_worker_that_died_is_not_done_again(task):
    job = task
    save(job.target, (40, 32))
    before = identity(job.target)
    answer = cluster.run_task("run", job, before=None, overwrite=False)  # there was no output when the batch started
    assert answer["done"]["sr_size"] == (32, 40) and identity(job.target) == before
    assert answer["receipt"]["target"] == mark_output(job.target, target_state(job.target))
    assert answer["receipt"]["weights"] == digest("hasn", 2)


@pytest.mark.parametrize("meanwhile", ["gone", "a note", "another picture"])
def test_an_output_that_something_else_changed_does_not_count_as_finished(task, meanwhile):
    task.target.write_bytes(b"old")
    before = target_state(task.target)
    task.target.unlink()
    if meanwhile == "another picture":
        save(task.target, (30, 30))
    elif meanwhile == "a note":
        task.target.write_text("mine")
    answer = cluster.run_task("run", task, before, overwrite=True)
    with Image.open(task.target) as image:
        assert image.size == (40, 32)
    assert answer["receipt"]["target"] == mark_output(task.target, target_state(task.target))


def test_a_file_that_appears_on_a_cluster_is_not_replaced(task):
    task.target.write_text("mine")
    answer = cluster.run_task("run", task, before=None, overwrite=False)
    assert "exists already" in answer["error"]["message"] and task.target.read_text() == "mine"


def test_a_file_that_appeared_on_a_cluster_meanwhile_is_not_replaced_later(folder, inside, monkeypatch):
    jobs = save_many(1)
    appearing(monkeypatch, jobs[0])
    for _ in range(2):
        (failed,) = of_type(run_batch(jobs, TWICE, resume=True, cluster=inside.scheduler_address), Failed)
        assert isinstance(failed.error, OutputError) and "exists already" in str(failed.error)
        assert jobs[0].target.read_bytes() == MEANWHILE and no_halves(folder)


@pytest.mark.slow
def test_a_lost_scheduler_is_reported_and_finished_pictures_stay(folder):
    jobs = save_many(20)
    with ExitStack() as stack:
        started = Processes(stack, folder)
        started.ensure_workers(1)
        events = run_batch(jobs, TWICE, cluster=started.address)
        with pytest.raises(HasnError, match="the cluster is lost") as caught:
            for event in events:
                if isinstance(event, Done):
                    started.scheduler.kill()
        assert "--resume" in caught.value.hint
    again = list(run_batch(jobs, TWICE, resume=True))
    assert of_type(again, Skipped) and not of_type(again, Failed)
    assert len(list(Path("out").glob("*.png"))) == 20 and no_halves(folder)


def test_closing_stops_the_work_of_a_cluster(folder, processes):
    jobs = [*save_many(4, (400, 300)), *find_jobs(["in"], "out2")]
    jobs = [Job(index, job.source, job.target, job.name) for index, job in enumerate(jobs)]
    events = run_batch(jobs, Settings(), cluster=processes.address)
    assert next(event for event in events if isinstance(event, Progress))
    events.close()
    time.sleep(1.0)
    assert not list(folder.glob("out*/*.png")) and no_halves(folder)
    with distributed.Client(processes.address, set_as_default=False) as client:
        assert not any(client.processing().values()), "the workers still work for a batch that is over"


def test_a_batch_runs_in_processes_on_this_machine(folder):
    jobs = save_many(6)
    Path("w.safetensors").write_bytes(bundled_path(2).read_bytes())
    settings = Settings(size=Size(factor=2), weights="w.safetensors", memory=10**9)
    events = list(run_batch(jobs, settings, cluster="local:1"))
    assert len(of_type(events, Done)) == 6 and (Path("out") / NAME).exists()
    assert len(list(Path("out").glob("*.png"))) == 6


@pytest.mark.slow
def test_ctrl_c_ends_a_cluster_on_this_machine_quietly_within_two_seconds(folder):
    save_many(8, (400, 300))
    command = [sys.executable, "-m", "hasn_cli", "upscale", "in", "-o", "out", "--json", "--cluster", "local:2"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        assert any('"progress"' in line for line in process.stdout)
        began = time.perf_counter()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, which signals the workers too
        _, said = process.communicate(timeout=20)
        assert time.perf_counter() - began < 2
    assert process.returncode == 130
    assert said.startswith("interrupted: ") and len(said.splitlines()) == 1
    assert no_halves(folder) and not list(folder.glob("out/*.png"))


def test_urls_need_no_shared_disk(folder, inside):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for number in range(5):
        memory.pipe_file(f"/bucket/in/{number}.png", save("a.png", seed=number).read_bytes())
    try:
        jobs = find_jobs(["memory://bucket/in"], "memory://bucket/out")
        events = list(run_batch(jobs, TWICE, cluster=inside.scheduler_address))
        assert len(of_type(events, Done)) == 5
        assert Image.open(io.BytesIO(memory.cat_file("/bucket/out/3.png"))).size == (40, 32)
        (exists, *_) = run_batch(jobs, TWICE, cluster=inside.scheduler_address)
        assert isinstance(exists, Failed) and isinstance(exists.error, OutputError)
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_batch_of_urls_is_resumed_by_a_journal_on_this_machine(folder, inside, monkeypatch):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    for number in range(4):
        memory.pipe_file(f"/bucket/in/{number}.png", save("a.png", seed=number).read_bytes())
    try:
        jobs = find_jobs(["memory://bucket/in"], "memory://bucket/out")
        list(run_batch(jobs, TWICE, cluster=inside.scheduler_address))
        memory.rm("/bucket/out/2.png")
        memory.pipe_file("/bucket/in/3.png", save("a.png", seed=9).read_bytes())
        again = list(run_batch(jobs, TWICE, cluster=inside.scheduler_address, resume=True))
        assert sorted(event.job.index for event in of_type(again, Done)) == [2, 3]
        assert len(of_type(again, Skipped)) == 2 and not of_type(again, Failed)
    finally:
        memory.rm("/bucket", recursive=True)


def test_workers_with_a_gpu_get_the_work_and_are_not_overbooked(folder, inside):
    jobs = save_many(12)
    seen = []

    class Watch(distributed.SchedulerPlugin):
        def transition(self, key, start, finish, *args, **options):
            if finish == "processing" and str(key).startswith("hasn-"):
                task = inside.scheduler.tasks[key]
                worker = inside.scheduler.workers[task.processing_on.address]
                seen.append((worker.resources.get("GPU"), task.resource_restrictions["GPU"]))

    inside.scheduler.add_plugin(Watch(), name="watch")
    try:
        assert len(of_type(run_batch(jobs, TWICE, cluster=inside.scheduler_address), Done)) == 12
    finally:
        inside.scheduler.remove_plugin("watch")
    assert seen and all(gpu == 1 and 0 < share <= 1 for gpu, share in seen)


def test_workers_on_this_machine_share_its_gpus_and_cores():
    specs = local_cluster.worker_specs(3, gpus=2)
    assert [spec["options"]["env"]["CUDA_VISIBLE_DEVICES"] for spec in specs.values()] == ["0", "1", "0"]
    assert all(spec["options"]["resources"] == {"GPU": 1} for spec in specs.values())
    plain = local_cluster.worker_specs(2, gpus=0)
    assert all(not spec["options"]["resources"] and not spec["options"]["env"] for spec in plain.values())


@pytest.mark.parametrize("address", ["local:", "local:0", "local:many"])
def test_an_invalid_number_of_workers_is_refused(folder, address):
    with pytest.raises(UsageError, match="must be a number"):
        list(run_batch(save_many(1), TWICE, cluster=address))


def test_a_missing_scheduler_is_reported(folder, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT", 0.5)
    with pytest.raises(HasnError, match="no scheduler answers") as caught:
        list(run_batch(save_many(1), TWICE, cluster="tcp://127.0.0.1:1"))
    assert "tcp://HOST:PORT" in caught.value.hint


def test_standard_streams_are_refused(folder):
    with pytest.raises(UsageError, match="standard streams"):
        list(run_batch(find_jobs(["-"]), TWICE, cluster="local:1"))


def test_a_cluster_gets_no_more_pictures_at_once_than_requested(folder, inside):
    under_way, most = set(), 0
    for event in run_batch(save_many(8), TWICE, workers=1, cluster=inside.scheduler_address):
        if isinstance(event, Started):
            under_way.add(event.job.index)
            most = max(most, len(under_way))
        elif isinstance(event, Done):
            under_way.remove(event.job.index)
    assert most == 1 and len(list(Path("out").glob("*.png"))) == 8


def test_a_file_named_like_the_default_weights_is_not_used_for_them(folder, inside):
    Path("hasn").write_text("notes on upscaling")
    assert len(of_type(run_batch(save_many(2), TWICE, cluster=inside.scheduler_address), Done)) == 2


@pytest.mark.parametrize("given", ["mine", "mine/hasn_x2.safetensors", "."])
def test_weights_reach_workers_that_do_not_see_them(folder, monkeypatch, given):
    Path("mine").mkdir()
    shutil.copy(bundled_path(2), "mine/hasn_x2.safetensors")
    if given == ".":
        monkeypatch.chdir("mine")
    settings = Settings(size=Size(factor=2), weights=given)
    sent = pickle.dumps(cluster.WorkerState("run", settings, torch.get_num_threads()))
    monkeypatch.chdir(folder)
    shutil.rmtree("mine")
    state = pickle.loads(sent)
    state.setup(SimpleNamespace(log_event=lambda *args: None))
    try:
        assert state.pool.loaded(2).scale == 2
    finally:
        state.teardown(None)


@pytest.mark.parametrize("settings", [Settings(), Settings(tile=64)])
def test_the_network_of_a_worker_uses_the_threads_assigned_to_it(settings):
    script = """
import pickle, sys
from types import SimpleNamespace
pickle.load(sys.stdin.buffer).setup(SimpleNamespace(log_event=lambda *args: None))
from hasn_cli.inference.workers import CPU_THREADS
print(CPU_THREADS)
"""
    sent = pickle.dumps(cluster.WorkerState("run", settings, 2))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # like in Dask
    found = subprocess.run([sys.executable, "-c", script], input=sent, env=environment, capture_output=True)
    assert found.stdout.split() == [str(min(2, count_cores())).encode()], found.stderr


def test_missing_weights_are_reported_only_once(folder, inside):
    with pytest.raises(WeightsError, match="gone"):
        list(run_batch(save_many(3), Settings(weights="gone.safetensors"), cluster=inside.scheduler_address))


def test_a_disk_that_the_workers_cannot_see_is_reported(folder, inside, monkeypatch):
    jobs = save_many(1)
    monkeypatch.setattr(distributed.Client, "run", lambda self, function: {"tcp://elsewhere": False})
    with pytest.raises(HasnError, match="elsewhere cannot see this file") as caught:
        list(run_batch(jobs, TWICE, cluster=inside.scheduler_address))
    assert "URLs" in caught.value.hint


def test_errors_keep_their_type_across_the_cluster():
    for error in (OutputError("no", "do so"), WeightsError("none"), ZeroDivisionError("by 0")):
        back = cluster._error_from(cluster._error_to_dict(error))
        assert isinstance(back, type(error) if isinstance(error, HasnError) else HasnError)
        assert str(error) in back.message and back.hint == getattr(error, "hint", None)


def test_a_picture_that_kills_every_worker_fails_alone():
    run = cluster.Cluster(None, TWICE, ExistingOutputs(TWICE, keep=False), None)
    job = Job(0, Path("a.png"), Path("b.png"), "a.png")
    run._by_index[0] = job

    def result():
        raise distributed.KilledWorker("key", None, 3)

    event = run._finished(SimpleNamespace(result=result, release=lambda: None), job)
    assert isinstance(event, Failed) and "every worker that tried it died" in str(event.error)


def test_an_invalid_address_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="foo: this is not an address"):
        list(run_batch([], Settings(), cluster="foo"))
