"""A batch: what it reports, what it survives, what it holds in memory, how it stops."""

from __future__ import annotations

import gc
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hasn_cli import files
from hasn_cli.batch import (
    Done,
    Failed,
    Progress,
    Settings,
    Skipped,
    Started,
    Stopped,
    plan_batch,
    process,
    remote,
    run_batch,
)
from hasn_cli.batch.executors import threads
from hasn_cli.batch.jobs import Job, find_jobs
from hasn_cli.batch.journal import NAME
from hasn_cli.batch.memory_limit import MemoryLimit
from hasn_cli.batch.pool import Cancelled, UpscalerPool
from hasn_cli.enlarge import Size
from hasn_cli.errors import ImageError, OutputError, WeightsError
from hasn_cli.images import EncodeOptions
from hasn_cli.images.picture import ReplayableFrames
from hasn_cli.inference.planning import plan_on_cpu

TWICE = Settings(size=Size(factor=2))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(path: str | Path, size: tuple[int, int] = (20, 16), seed: int = 0) -> Path:
    """A picture of noise, `size` = (width, height)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def save_many(count: int, size: tuple[int, int] = (20, 16)) -> list[Job]:
    """Jobs for this many pictures: in/0.png → out/0.png and so on."""
    for number in range(count):
        save(f"in/{number}.png", size, seed=number)
    return find_jobs(["in"], "out")


class FakeUpscaler:
    """Doubles the size by repeating pixels, slowly, and records its inputs."""

    def __init__(self, seconds: float = 0.0, steps: int = 1) -> None:
        self.scale = 2
        self.device = SimpleNamespace(type="cpu")
        self.seconds, self.steps = seconds, steps
        self.calls = 0
        self.threads: set[int] = set()

    def plan(self, size, channels=3, itemsize=1):
        return plan_on_cpu(size, channels, itemsize, self.scale)

    def close(self):
        """Its threads would end."""

    def upscale(self, image, progress=None):
        self.calls += 1
        self.threads.add(threading.get_ident())
        for step in range(self.steps):
            time.sleep(self.seconds / self.steps)
            if progress:
                progress((step + 1) / self.steps)
        return image.repeat(2, axis=0).repeat(2, axis=1)


@pytest.fixture
def fake(monkeypatch):
    """A function that puts a `FakeUpscaler` for each device into every pool."""

    def install(**options):
        made: dict[str, FakeUpscaler] = {}

        def load(pool, scale, device, photo):
            return made.setdefault(device, FakeUpscaler(**options))

        monkeypatch.setattr(UpscalerPool, "_load", load)
        return made

    return install


def of_type(events, kind):
    return [event for event in events if isinstance(event, kind)]


def no_halves(folder: Path) -> bool:
    return not list(folder.rglob("*.part"))


# what it reports and writes


def test_every_picture_is_written_and_reported_in_order(folder):
    jobs = save_many(5)
    events = list(run_batch(jobs, TWICE))
    for job in jobs:
        own = [type(event) for event in events if event.job == job]
        assert own[0] is Started and own[-1] is Done and set(own[1:-1]) == {Progress}
        with Image.open(job.target) as image:
            assert image.size == (40, 32)
    done = of_type(events, Done)
    assert {(event.size, event.sr_size) for event in done} == {((16, 20), (32, 40))}
    assert all(0 < event.network_seconds <= event.seconds for event in done)
    assert [event.bytes for event in done] == [event.job.target.stat().st_size for event in done]


def test_every_event_is_json(folder):
    save("in/a.png")
    Path("in/bad.png").write_text("no picture")
    jobs = find_jobs(["in"], "out")
    events = [*run_batch(jobs, TWICE), *run_batch(jobs, TWICE, on_exists="skip"), Stopped("the disk is full", 3)]
    kinds = [json.loads(json.dumps(event.to_dict()))["event"] for event in events]
    assert set(kinds) == {"start", "progress", "done", "failed", "skipped", "stopped"}
    failure = of_type(events, Failed)[0].to_dict()
    assert failure["input"] == "in/bad.png" and "not a picture" in failure["error"]


def test_one_bad_picture_stops_no_other(folder):
    save("in/1.png"), save("in/5.png")
    Path("in/2.png").write_bytes(b"")
    Path("in/3.png").write_bytes(Path("in/1.png").read_bytes()[:200])
    Path("in/4.png").write_text("no picture")
    events = list(run_batch([*find_jobs(["in", "gone.png"], "out")], TWICE, workers=1))
    assert sorted(event.job.name for event in of_type(events, Failed)) == [
        "gone.png",
        "in/2.png",
        "in/3.png",
        "in/4.png",
    ]
    assert all(isinstance(event.error, ImageError) for event in of_type(events, Failed))
    assert sorted(path.name for path in Path("out").iterdir()) == [NAME, "1.png", "5.png"]


def test_a_bug_that_hits_one_picture_stops_no_other(folder, fake, monkeypatch):
    jobs = save_many(3)
    fake()
    real = process.enlarge

    def enlarge(picture, *args, **options):
        if picture.name == "in/1.png":
            raise ZeroDivisionError
        return real(picture, *args, **options)

    monkeypatch.setattr(process, "enlarge", enlarge)
    events = list(run_batch(jobs, TWICE))
    assert [event.job.name for event in of_type(events, Failed)] == ["in/1.png"]
    assert len(of_type(events, Done)) == 2


def test_an_existing_output_is_an_error_skipped_or_replaced(folder):
    jobs = save_many(1)
    Path("out").mkdir()
    jobs[0].target.write_text("mine")
    (failed,) = run_batch(jobs, TWICE)
    assert isinstance(failed.error, OutputError) and "overwrite" in failed.error.hint
    (skipped,) = run_batch(jobs, TWICE, on_exists="skip")
    assert isinstance(skipped, Skipped) and jobs[0].target.read_text() == "mine"
    assert of_type(run_batch(jobs, TWICE, on_exists="overwrite"), Done)
    with Image.open(jobs[0].target) as image:
        assert image.size == (40, 32)


MEANWHILE = b"somebody else wrote this meanwhile"


def appearing(monkeypatch, job: Job) -> None:
    """While the picture is computed, another program writes to the place of its output."""
    real = process.enlarge

    def enlarge(*args, **options):
        if isinstance(job.target, Path):
            job.target.write_bytes(MEANWHILE)
        else:
            remote.write(job.target, MEANWHILE)
        return real(*args, **options)

    monkeypatch.setattr(process, "enlarge", enlarge)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("on_exists", ["error", "skip", "overwrite"])
def test_an_output_that_appears_meanwhile_is_replaced_only_with_overwrite(folder, fake, monkeypatch, on_exists, links):
    fake()
    save("a.png")
    (job,) = find_jobs(["a.png"], "b.png")
    appearing(monkeypatch, job)
    if not links:
        monkeypatch.setattr(os, "link", refuse_links)
    events = list(run_batch([job], TWICE, on_exists=on_exists))
    assert no_halves(folder)
    if on_exists == "overwrite":
        assert of_type(events, Done) and job.target.read_bytes() != MEANWHILE
    else:
        (failed,) = of_type(events, Failed)
        assert isinstance(failed.error, OutputError) and str(failed.error) == "b.png exists already"
        assert job.target.read_bytes() == MEANWHILE


def refuse_links(*args, **options):
    raise PermissionError(1, "Operation not permitted")


def test_a_picture_is_written_on_a_disk_without_hard_links(folder, fake, monkeypatch):
    fake()
    (job,) = save_many(1)
    monkeypatch.setattr(os, "link", refuse_links)
    assert of_type(run_batch([job], TWICE), Done)
    assert Image.open(job.target).size == (40, 32) and no_halves(folder)


def test_a_file_that_appears_meanwhile_at_a_url_is_not_replaced(folder, fake, monkeypatch, server):
    fake()
    job = Job(0, save("a.png"), "server://large/a.png", "a.png")
    appearing(monkeypatch, job)
    (failed,) = of_type(run_batch([job], TWICE), Failed)
    assert "exists already" in str(failed.error)
    assert server.store["/large/a.png"].getvalue() == MEANWHILE


def test_stdin_and_stdout_can_be_input_and_output(folder, monkeypatch):
    path = save("a.png")
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(path.read_bytes())))
    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=out))
    events = list(run_batch(find_jobs(["-"]), TWICE))
    assert Image.open(out).size == (40, 32) and Image.open(out).format == "PNG"
    assert of_type(events, Done)[0].bytes == len(out.getvalue())


def test_times_are_kept_on_request(folder):
    path = save("a.png")
    os.utime(path, ns=(10**18, 10**18))
    list(run_batch(find_jobs(["a.png"], "b.png"), Settings(size=Size(factor=2), keep_times=True)))
    assert Path("b.png").stat().st_mtime_ns == 10**18


def test_urls_can_be_input_and_output(folder):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shop/a.png", save("a.png").read_bytes())
    try:
        events = list(run_batch(find_jobs(["memory://shop/a.png", "memory://shop/gone.png"], "memory://large"), TWICE))
        assert Image.open(io.BytesIO(memory.cat_file("/large/a.png"))).size == (40, 32)
        assert "no such file" in str(of_type(events, Failed)[0].error)
    finally:
        memory.rm("/shop", recursive=True), memory.rm("/large", recursive=True)


@pytest.fixture
def server():
    """A file server in memory, `server://…`, where files are visible from the first byte on and can be moved."""
    fsspec = pytest.importorskip("fsspec")
    from fsspec.implementations.memory import MemoryFileSystem

    class Server(MemoryFileSystem):
        protocol = "server"
        store, pseudo_dirs = {}, [""]
        broken = replaces = None  # what is wrong with it

        def pipe_file(self, path, value, **options):
            super().pipe_file(path, value[:100])
            if self.broken:
                raise ConnectionError("cut off")
            super().pipe_file(path, value)

        def mv(self, path1, path2, **options):
            if self.replaces is False and self.exists(path2):
                raise FileExistsError(path2)
            self.store[path2] = self.store.pop(path1)

        @classmethod
        def _strip_protocol(cls, path):
            return "/" + path.removeprefix("server://").strip("/")

    fsspec.register_implementation("server", Server, clobber=True)
    return Server


def test_a_connection_that_breaks_leaves_no_half_picture_on_a_server(folder, server):
    job = Job(0, save("a.png"), "server://large/a.png", "a.png")
    server.broken = True
    (failed,) = of_type(run_batch([job], TWICE), Failed)
    assert "cut off" in str(failed.error) and not server.store
    server.broken = False
    list(run_batch([job], TWICE))
    whole = server.store["/large/a.png"].getvalue()
    assert Image.open(io.BytesIO(whole)).size == (40, 32)
    server.broken = True
    list(run_batch([job], TWICE, on_exists="overwrite"))
    assert set(server.store) == {"/large/a.png"} and server.store["/large/a.png"].getvalue() == whole


def test_an_output_is_replaced_on_a_server_that_moves_onto_no_file(folder, server):
    server.replaces = False
    job = Job(0, save("a.png"), "server://large/a.png", "a.png")
    for factor, size in ((2, (40, 32)), (3, (60, 48))):
        assert of_type(run_batch([job], Settings(size=Size(factor=factor)), on_exists="overwrite"), Done)
        assert set(server.store) == {"/large/a.png"}
        assert Image.open(io.BytesIO(server.store["/large/a.png"].getvalue())).size == size


def test_an_unwritable_target_fails_alone(folder, fake):
    fake()
    save("a.png"), save("b.png")
    Path("file").write_text("in the way")
    jobs = [Job(0, Path("a.png"), Path("file/a.png"), "a.png"), Job(1, Path("b.png"), Path("b_x2.png"), "b.png")]
    events = list(run_batch(jobs, TWICE))
    assert [event.job.name for event in of_type(events, Failed)] == ["a.png"]
    assert isinstance(of_type(events, Failed)[0].error, OutputError)
    assert Path("b_x2.png").exists() and Path("file").read_text() == "in the way"


def test_a_dry_run_reports_and_writes_nothing(folder):
    jobs = save_many(2)
    Path("in/bad.png").write_text("no picture")
    events = list(plan_batch([*jobs, Job(2, Path("in/bad.png"), Path("out/bad.png"), "bad")], TWICE))
    assert [type(event) for event in events] == [Started, Started, Failed]
    assert events[0].target_size == (32, 40) and events[0].format == "png" and events[0].plan
    assert not Path("out").exists()


def test_missing_weights_are_reported_once(folder):
    jobs = save_many(3)
    with pytest.raises(WeightsError):
        list(run_batch(jobs, Settings(weights="gone.safetensors")))
    assert no_halves(folder)


def test_settings_survive_json_and_the_fingerprint_covers_what_changes_the_result():
    settings = Settings(
        size=Size(factor=Fraction(3, 2), fit=None),
        encode=EncodeOptions(quality=80, background="white"),
        tile=64,
        tta=True,
    )
    again = Settings.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert again == settings and again.fingerprint() == settings.fingerprint()
    boxed = Settings(size=Size(fit=(600, 800)), memory=10**9)
    assert Settings.from_dict(json.loads(json.dumps(boxed.to_dict()))) == boxed
    assert Settings(memory=1).fingerprint() == Settings().fingerprint()
    others = [Settings(tta=True), Settings(size=Size(factor=2)), Settings(encode=EncodeOptions(quality=90))]
    assert len({entry.fingerprint() for entry in [Settings(), *others]}) == 4


# the pipeline


def test_decoding_and_encoding_run_in_parallel_with_the_network(folder, fake, monkeypatch):
    jobs = save_many(6)
    fake()
    together = threading.Barrier(3)  # passed only by three threads at the same time
    wait_once(monkeypatch, process, "write_result", together, call=1)
    wait_once(monkeypatch, FakeUpscaler, "upscale", together, call=2)
    wait_once(monkeypatch, process, "open_source", together, call=3)
    assert len(of_type(run_batch(jobs, TWICE), Done)) == 6


def wait_once(monkeypatch, owner: object, name: str, barrier: threading.Barrier, call: int) -> None:
    """Make the call of that number wait at the barrier, and fail if the others do not come."""
    real, calls = getattr(owner, name), itertools.count(1)

    def waiting(*args, **options):
        if next(calls) == call:
            barrier.wait(60)
        return real(*args, **options)

    monkeypatch.setattr(owner, name, waiting)


def test_no_more_pictures_are_processed_at_once_than_there_are_workers(folder, fake, monkeypatch):
    jobs = save_many(20)
    fake(seconds=0.01)
    inside, most = set(), 0
    real = threads.do_job

    def counted(job, *args):
        nonlocal most
        inside.add(job.index)
        most = max(most, len(inside))
        try:
            return real(job, *args)
        finally:
            inside.discard(job.index)

    monkeypatch.setattr(threads, "do_job", counted)
    assert len(of_type(run_batch(jobs, TWICE, workers=3), Done)) == 20
    assert most == 3


def test_every_result_goes_to_its_own_picture(folder, fake):
    save_many(12), save("in/odd.png", (24, 16))
    fake(seconds=0.01)
    jobs = find_jobs(["in"], "out")
    assert len(of_type(run_batch(jobs, TWICE, workers=8), Done)) == 13
    for job in jobs:
        with Image.open(job.source) as small, Image.open(job.target) as large:
            assert np.array_equal(np.asarray(small).repeat(2, 0).repeat(2, 1), np.asarray(large))


def test_a_dry_run_reports_a_folder_that_cannot_be_written(folder, fake, monkeypatch):
    jobs = save_many(1)
    fake()
    access = os.access
    monkeypatch.setattr(
        "os.access", lambda path, mode: path != folder and access(path, mode)
    )  # root may write anywhere
    for events in (plan_batch(jobs, TWICE), run_batch(jobs, TWICE)):
        (failed,) = of_type(events, Failed)
        assert isinstance(failed.error, OutputError) and str(folder) in str(failed.error)


def test_a_slow_reader_of_events_slows_the_batch(folder, fake):
    jobs = save_many(20)
    fake()
    events = run_batch(jobs, TWICE, workers=2)
    while not isinstance(next(events), Done):
        pass
    time.sleep(0.3)
    assert len(list(Path("out").glob("*.png"))) <= 4
    events.close()


def test_several_devices_share_a_batch_one_thread_each(folder, fake):
    jobs = save_many(12)
    made = fake(seconds=0.03)
    assert len(of_type(run_batch(jobs, Settings(size=Size(factor=2), device="cuda:0, cuda:1")), Done)) == 12
    assert set(made) == {"cuda:0", "cuda:1"}
    assert all(len(upscaler.threads) == 1 and upscaler.calls >= 3 for upscaler in made.values())


def test_pictures_that_fit_run_together_and_a_too_large_one_runs_alone():
    room = MemoryLimit(100)
    order, inside, most = [], [], []

    def visit(name, amount):
        with room.take(amount):
            order.append(name), inside.append(amount), most.append(sum(inside))
            time.sleep(0.05)
            inside.remove(amount)

    visitors = [("a", 60), ("b", 40), ("large", 300), ("c", 50), ("d", 50)]
    threads = [threading.Thread(target=visit, args=visitor) for visitor in visitors]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert sorted(order[:2]) == ["a", "b"] and order[2] == "large"
    assert max(total for total in most if total != 300) <= 100


def test_nothing_is_admitted_after_the_memory_limit_is_closed():
    room = MemoryLimit(100)
    outcome = []

    def wait():
        try:
            with room.take(100):
                outcome.append("in")
        except Cancelled:
            outcome.append("turned away")

    with room.take(100):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.05)
        room.close()
        thread.join(60)
    assert outcome == ["turned away"]


def test_no_more_is_decoded_at_once_than_fits_into_memory(folder, fake, monkeypatch):
    for number in range(4):
        Image.new("RGBA", (20, 16), (number, 0, 0, 255)).save(f"{number}.png")
    fake()
    inside, most, lock = 0, 0, threading.Lock()
    real = process.open_source

    def open_source(*args):
        picture, mark = real(*args)

        def frames():
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            try:
                time.sleep(0.05)
                yield from picture.frames
            finally:
                with lock:
                    inside -= 1

        return replace(picture, frames=ReplayableFrames(frames)), mark

    monkeypatch.setattr(process, "open_source", open_source)
    jobs = find_jobs([f"{number}.png" for number in range(4)], "out/", format="jpeg")
    assert len(of_type(run_batch(jobs, replace(TWICE, memory=1)), Done)) == 4
    assert most == 1


def test_a_result_is_freed_after_its_picture_is_written(folder, fake, monkeypatch):
    (job,) = save_many(1)
    fake()
    results = []
    real = FakeUpscaler.upscale

    def upscale(self, image, progress=None):
        enlarged = real(self, image, progress)
        results.append(weakref.ref(enlarged))
        return enlarged

    monkeypatch.setattr(FakeUpscaler, "upscale", upscale)
    for event in run_batch([job], TWICE):
        if isinstance(event, Done):
            deadline = time.monotonic() + 60  # wait until its threads are idle
            while any(result() is not None for result in results) and time.monotonic() < deadline:
                gc.collect()
                time.sleep(0.01)
            assert len(results) == 1 and results[0]() is None


# stopping


def test_closing_stops_at_once_and_leaves_no_half_written_file(folder, fake):
    jobs = save_many(30)
    fake(seconds=1.0, steps=100)
    events = run_batch(jobs, TWICE)
    finished = 0
    for event in events:
        finished += isinstance(event, Done)
        if finished == 2:
            break
    events.close()
    written = list(Path("out").glob("*.png"))
    assert 2 <= len(written) <= 5 and no_halves(folder)
    for path in written:
        Image.open(path).load()
    time.sleep(0.3)
    assert len(list(Path("out").glob("*.png"))) == len(written), "something went on after the end"


def test_a_codec_that_cannot_be_stopped_is_abandoned_and_its_file_removed(folder, fake, monkeypatch):
    jobs = save_many(1)
    fake()
    writing, release, ended = threading.Event(), threading.Event(), threading.Event()

    def write(picture, target, format, options, placing):
        for owner in (files.owner(), "another"):
            target.with_name(f".hasn-{owner}-abc.part").write_text("half")
        writing.set()
        release.wait(100)
        ended.set()

    monkeypatch.setattr(process, "write_picture", write)
    events = run_batch(jobs, TWICE)
    assert isinstance(next(events), Started)
    assert writing.wait(60)
    events.close()
    assert not ended.is_set()
    assert [path.name for path in folder.rglob("*.part")] == [".hasn-another-abc.part"]
    assert not jobs[0].target.exists()
    release.set()


def test_a_full_disk_stops_the_batch_with_a_message_and_loses_nothing(folder):
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, for a small disk of our own")
    save_many(12, (64, 48))
    Path("out").mkdir()
    # the small disk disappears with the process, so its files are listed inside
    command = (
        "mount -t tmpfs -o size=128k none out;"
        f"{sys.executable} -m hasn_cli upscale in -s 2 -o out --json -q; code=$?; ls -A out >&2; exit $code"
    )
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "out"], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    result = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, timeout=300)
    events = [json.loads(line) for line in result.stdout.splitlines()]
    done = {Path(event["output"]).name for event in events if event["event"] == "done"}
    (stopped,) = [event for event in events if event["event"] == "stopped"]
    assert result.returncode == 1 and "No space left" in stopped["reason"]
    listed = set(result.stderr.split("\n")) - {""}
    assert done and {name for name in listed if name.endswith(".png") and "error" not in name} == done
    assert not [name for name in listed if name.endswith(".part")]
    assert len(list(Path("in").iterdir())) == 12


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_memory_does_not_grow_with_the_number_of_pictures(folder, count):
    psutil = pytest.importorskip("psutil")
    source = save("in/0.png", (15, 15))
    for number in range(1, count):
        os.link(source, f"in/{number}.png")
    process = psutil.Process()
    used = {}
    for done, event in enumerate(
        event for event in run_batch(find_jobs(["in"], "out"), TWICE) if isinstance(event, Done)
    ):
        assert isinstance(event, Done)
        if done in (50, count - 1):
            used[done] = process.memory_info().rss
    assert used[count - 1] - used[50] < 16 << 20
