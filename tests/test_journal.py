"""Resuming: finished pictures are skipped, all others computed again, and nothing is lost or left behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_batch import TWICE, no_halves, of_type, save, save_many
from zygote import runs

from hasn_cli import files
from hasn_cli.batch import Done, Failed, Settings, Skipped, Started, journal, run_batch
from hasn_cli.batch.jobs import Job, find_jobs
from hasn_cli.batch.journal import NAME, Journal
from hasn_cli.batch.pool import UpscalerPool
from hasn_cli.enlarge import Size
from hasn_cli.errors import OutputError, UsageError
from hasn_cli.weights import bundled_path

RUNS = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes by POSIX signals")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def finished(folder):
    """The jobs of a finished batch of three."""
    jobs = save_many(3)
    assert len(of_type(run_batch(jobs, TWICE), Done)) == 3
    return jobs


def resume(jobs, settings=TWICE, **options) -> tuple[list[str], list[str]]:
    """Resume: the names of the pictures that were computed and skipped; a failure raises."""
    events = list(run_batch(jobs, settings, resume=True, **options))
    for event in of_type(events, Failed):
        raise event.error
    return sorted(event.job.name for event in of_type(events, Done)), sorted(
        event.job.name for event in of_type(events, Skipped)
    )


def identity(path: Path) -> tuple[int, int]:
    """A value that changes whenever the file is written again."""
    return path.stat().st_ino, path.stat().st_mtime_ns


ALL = ["in/0.png", "in/1.png", "in/2.png"]


def test_finished_pictures_are_skipped_without_loading_the_network(finished, monkeypatch):
    monkeypatch.setattr(UpscalerPool, "_load", lambda *args: pytest.fail("a network was loaded"))
    before = [identity(job.target) for job in finished]
    assert resume(finished) == ([], ALL)
    assert [identity(job.target) for job in finished] == before


def test_a_missing_output_is_computed_again(finished):
    finished[1].target.unlink()
    assert resume(finished) == (["in/1.png"], ["in/0.png", "in/2.png"])


def test_a_changed_input_is_computed_again(finished):
    save("in/1.png", seed=9)
    assert resume(finished) == (["in/1.png"], ["in/0.png", "in/2.png"])


def test_an_input_changed_with_the_same_size_and_time_is_computed_again(finished):
    path = Path("in/1.png")
    times, data = path.stat(), bytearray(path.read_bytes())
    save("in/1.png", seed=9)
    other = path.read_bytes()
    path.write_bytes(other[: len(data)].ljust(len(data), b"\0"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    events = list(run_batch(finished, TWICE, resume=True))
    assert {event.job.name for event in events if not isinstance(event, Skipped)} == {"in/1.png"}


def test_an_input_that_was_only_touched_or_copied_is_skipped(finished):
    Path("in/1.png").touch()
    shutil.copy("in/2.png", "copy.png")
    Path("copy.png").replace("in/2.png")
    assert resume(finished) == ([], ALL)


def test_changed_settings_compute_everything_again(finished):
    assert resume(finished, Settings(size=Size(factor=2), tta=True)) == (ALL, [])


def test_settings_without_effect_change_nothing(finished):
    assert resume(finished, Settings(size=Size(factor=2), memory=10**9, device="cpu")) == ([], ALL)


def test_changed_weights_compute_everything_again_and_renamed_ones_do_not(folder):
    jobs = save_many(3)
    shutil.copy(bundled_path(2), "w.safetensors")
    settings = Settings(size=Size(factor=2), weights="w.safetensors")
    list(run_batch(jobs, settings))
    Path("w.safetensors").replace("renamed.safetensors")
    renamed = Settings(size=Size(factor=2), weights="renamed.safetensors")
    assert resume(jobs, renamed) == ([], ALL)
    data = bytearray(Path("renamed.safetensors").read_bytes())
    data[-1] ^= 1
    Path("renamed.safetensors").write_bytes(data)
    assert resume(jobs, renamed) == (ALL, [])


def test_starting_an_unfinished_batch_again_suggests_resume(finished):
    events = list(run_batch(finished, TWICE))
    assert [type(event) for event in events] == [Failed] * 3
    assert all("--resume" in event.error.hint for event in events)


def test_an_output_that_someone_else_changed_is_not_replaced(finished):
    finished[1].target.write_bytes(b"retouched by hand")
    with pytest.raises(OutputError, match="exists already"):
        resume(finished)
    assert finished[1].target.read_bytes() == b"retouched by hand"
    assert resume(finished, on_exists="overwrite")[0] == ["in/1.png"]


def test_a_file_that_the_journal_does_not_know_is_not_replaced(finished):
    save("in/3.png")
    Path("out/3.png").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        resume(find_jobs(["in"], "out"))
    assert Path("out/3.png").read_text() == "mine"


def test_a_file_that_appeared_while_its_picture_was_computed_is_not_replaced_later(finished, monkeypatch):
    target = finished[1].target
    target.unlink()
    real = Journal.start

    def start(self, output, source=None):
        real(self, output, source)
        target.write_text("mine")

    monkeypatch.setattr(Journal, "start", start)
    for _ in range(2):
        with pytest.raises(OutputError, match="exists already"):
            resume(finished)
        assert target.read_text() == "mine"


def test_an_output_that_the_journal_does_not_record_as_done_is_done_again(finished):
    path = Path("out") / NAME
    lines = [line for line in path.read_text().splitlines() if not ('"done"' in line and "1.png" in line)]
    path.write_text("\n".join(lines) + "\n")
    assert resume(finished) == (["in/1.png"], ["in/0.png", "in/2.png"])
    assert resume(finished) == ([], ALL)


@pytest.mark.parametrize("torn", [1, 20, 200])
def test_an_incomplete_last_line_costs_at_most_one_picture(finished, torn):
    path = Path("out") / NAME
    path.write_bytes(path.read_bytes()[:-torn])
    done, skipped = resume(finished)
    assert len(done) <= 1 and sorted(done + skipped) == ALL
    assert resume(finished) == ([], ALL)


def test_invalid_lines_in_the_journal_are_ignored(finished):
    path = Path("out") / NAME
    path.write_bytes(b'\xff\xfe\n[]\n"x"\n{"state": "done"}\n3\n{}\n' + path.read_bytes())
    assert resume(finished) == ([], ALL)


@pytest.mark.parametrize(
    "line",
    [
        {"target": 5, "state": "done"},
        {"target": "x.png", "state": "done", "source": 5},
        {"target": "0.png"},
        {"target": "0.png", "state": "done", "input": []},
        {"target": "0.png", "state": "done", "scale": "2"},
    ],
    ids=str,
)
def test_a_line_that_this_program_did_not_write_is_ignored(finished, line):
    with (Path("out") / NAME).open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert resume(finished) == ([], ALL)
    assert find_jobs(["out"], "larger")


def test_files_left_by_a_dead_run_are_removed(finished):
    half = Path("out/.hasn-0a1b2c-3d4e5f.part")
    half.write_text("half")
    resume(finished)
    assert not half.exists()


def test_files_of_a_running_process_are_left_alone_even_with_the_same_process_id(finished):
    with files.replacing(Path("out/living.png")) as stream:
        stream.write(b"half, ")
        stream.flush()
        resume(finished)
        stream.write(b"and whole")
    assert Path("out/living.png").read_bytes() == b"half, and whole" and no_halves(Path("out"))


WRITES_ENDLESSLY = """
import time
from pathlib import Path
from hasn_cli import files
with files.replacing(Path("out/other.png")):
    print("writing", flush=True)
    time.sleep(600)
"""


def test_files_of_another_run_are_removed_once_it_is_killed(finished):
    with subprocess.Popen([sys.executable, "-c", WRITES_ENDLESSLY], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        resume(finished)
        assert not no_halves(Path("out"))
        process.kill()
    resume(finished)
    assert no_halves(Path("out")) and not Path("out/other.png").exists()


@pytest.mark.skipif(not files.LOCKS, reason="needs locks")
def test_a_file_removed_before_it_is_locked_is_created_again(folder, monkeypatch):
    real = files._lock

    def lock(stream, *, wait):
        monkeypatch.setattr(files, "_lock", real)
        files.clear_abandoned(folder)
        real(stream, wait=wait)

    monkeypatch.setattr(files, "_lock", lock)
    with files.replacing(folder / "a.png") as stream:
        stream.write(b"whole")
    assert (folder / "a.png").read_bytes() == b"whole" and no_halves(folder)


@pytest.mark.skipif(not files.LOCKS, reason="needs locks")
def test_on_a_disk_without_locks_everything_is_written_and_nothing_removed(folder, monkeypatch):
    def lock(*args, **options):
        raise OSError("no locks available")

    monkeypatch.setattr(files, "_lock", lock)
    with files.replacing(folder / "a.png") as stream:
        files.clear_abandoned(folder)
        stream.write(b"whole")
    assert (folder / "a.png").read_bytes() == b"whole" and no_halves(folder)


def test_outputs_of_other_pictures_are_not_replaced_and_resume_is_not_suggested(finished):
    for number in range(3):
        save(f"other/{number}.png", seed=10 + number)
    others = find_jobs(["other"], "out")
    before = [identity(job.target) for job in finished]
    for resumed in (False, True):
        events = list(run_batch(others, TWICE, resume=resumed))
        assert [type(event) for event in events] == [Failed] * 3
        assert all("--resume" not in event.error.hint for event in events)
    assert [identity(job.target) for job in finished] == before
    assert resume(finished) == ([], ALL)


def test_an_output_of_another_run_that_was_killed_is_not_replaced(finished):
    path = Path("out") / NAME
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if '"start"' in line))
    for number in range(3):
        save(f"other/{number}.png", seed=10 + number)
    with pytest.raises(OutputError, match="exists already"):
        resume(find_jobs(["other"], "out"))
    assert resume(finished) == (ALL, [])


def test_outputs_of_a_moved_folder_are_skipped(finished):
    Path("in").rename("moved")
    assert resume(find_jobs(["moved"], "out")) == ([], [name.replace("in/", "moved/") for name in ALL])


def test_standard_input_never_counts_as_the_same_input(finished):
    jobs = [*finished[:2], Job(2, "-", Path("out/stdin.png"), "standard input", Path("out"))]
    Path("out/stdin.png").write_text("an earlier one")
    journal = Journal(Path("out"))
    journal.start(Path("out/stdin.png"), "-")
    journal.close()
    with pytest.raises(OutputError, match="exists already"):
        resume(jobs)
    assert Path("out/stdin.png").read_text() == "an earlier one"


def test_weights_that_are_replaced_while_a_batch_runs_are_not_taken_for_those_it_used(folder):
    jobs = save_many(3)
    other = folder / "other.safetensors"
    data = bytearray(bundled_path(2).read_bytes())
    (folder / "w.safetensors").write_bytes(data)
    data[-1] ^= 1
    other.write_bytes(data)
    settings = Settings(size=Size(factor=2), weights="w.safetensors")
    for event in run_batch(jobs, settings, workers=1):
        if isinstance(event, Started) and other.exists():
            other.replace("w.safetensors")  # training replaces weights in this way
    assert resume(jobs, settings) == (ALL, [])
    assert resume(jobs, settings) == ([], ALL)


def test_every_device_gets_the_network_that_the_first_one_got(folder):
    shutil.copy(bundled_path(2), "w.safetensors")
    pool = UpscalerPool(Settings(size=Size(factor=2), weights="w.safetensors", device="cpu"))
    first = pool.loaded(2, "cpu")
    Path("w.safetensors").unlink()
    second = pool.loaded(2, "cpu:0")
    assert second.network is not first.network
    for name, tensor in first.network.state_dict().items():
        assert tensor.equal(second.network.state_dict()[name])


def test_resuming_without_a_journal_is_refused(finished):
    with pytest.raises(UsageError, match="--no-journal"):
        list(run_batch(finished, TWICE, resume=True, journal=False))


def test_only_several_pictures_leave_a_journal_and_only_if_allowed(folder):
    save("in/a.png")
    list(run_batch(find_jobs(["in/a.png"], "one/"), TWICE))
    assert not (Path("one") / NAME).exists()
    save("in/b.png")
    list(run_batch(find_jobs(["in"], "none"), TWICE, journal=False))
    assert not (Path("none") / NAME).exists()
    list(run_batch(find_jobs(["in"], "two"), TWICE))
    assert (Path("two") / NAME).exists()


def test_a_run_that_starts_nothing_creates_no_folder(folder):
    Path("in").mkdir()
    for name in ("a.png", "b.png"):
        Path("in", name).write_text("no picture")
    list(run_batch(find_jobs(["in"], "out"), TWICE))
    assert not Path("out").exists()


def test_outputs_beside_the_inputs_are_remembered_per_folder(folder):
    save("in/a.png"), save("in/sub/b.png")
    jobs = find_jobs(["in"], recursive=True, suffix="-big")
    list(run_batch(jobs, TWICE))
    assert set(journal.read(Path("in") / NAME)) == {"a-big.png", "sub/b-big.png"}
    # without the suffix, only the journal shows that they are outputs
    assert len(find_jobs(["in"], recursive=True)) == 2


def test_several_runs_can_share_a_journal(folder):
    journals = [Journal(folder), Journal(folder)]
    for number in range(50):
        journals[number % 2].start(folder / f"{number}.png")
        journals[number % 2].done(folder / f"{number}.png", {"output": {"size": number}})
    for entry in journals:
        entry.close()
    records = journal.read(folder / NAME)
    assert len(records) == 50 and all(record["state"] == "done" for record in records.values())


def test_names_that_are_not_unicode_are_recorded(folder):
    entry = Journal(folder)
    entry.start(folder / os.fsdecode(b"caf\xe9.png"))
    entry.close()
    assert Journal(folder)[folder / os.fsdecode(b"caf\xe9.png")]["state"] == "start"


def test_a_journal_that_cannot_be_written_is_reported_before_the_work(folder):
    save("in/a.png"), save("in/b.png")
    Path("out", NAME).mkdir(parents=True)
    with pytest.raises(OutputError, match=NAME) as caught:
        list(run_batch(find_jobs(["in"], "out"), TWICE))
    assert "no-journal" in caught.value.hint
    assert len(of_type(run_batch(find_jobs(["in"], "out"), TWICE, journal=False), Done)) == 2


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder where nobody may write")
def test_if_a_folder_cannot_be_created_the_error_names_it_and_not_its_journal(folder):
    save("in/a.png"), save("in/b.png")
    events = list(run_batch(find_jobs(["in"], "/sys/kernel/out"), TWICE))
    assert [type(event) for event in events] == [Failed, Failed]
    for event in events:
        assert str(event.error).startswith("cannot write into /sys/kernel/out: ") and NAME not in str(event.error)


# killed at any moment

PICTURES = 8


@pytest.fixture(scope="module")
def hasn_runs():
    with runs() as started:
        yield started


@pytest.fixture(scope="module")
def reference(tmp_path_factory, hasn_runs):
    """An undisturbed batch: its inputs, its outputs, and how long it took."""
    folder = tmp_path_factory.mktemp("reference")
    for number in range(PICTURES):
        save(folder / f"in/{number}.png", (24 + number % 3, 32), seed=number)
    assert hasn_runs.run("upscale", folder / "in", "-s", 2, "-o", folder / "warm") == 0
    began = time.perf_counter()
    assert hasn_runs.run("upscale", folder / "in", "-s", 2, "-o", folder / "out") == 0
    return folder, time.perf_counter() - began


def wait_for_pictures(out: Path, count: int) -> None:
    """Return when this many outputs exist."""
    deadline = time.monotonic() + 300
    while len(list(out.glob("*.png"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@RUNS
@pytest.mark.parametrize(
    "kills",
    [4, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
    ids=lambda kills: f"{kills} kills",
)
def test_if_killed_at_random_moments_nothing_is_lost_done_twice_or_left_behind(reference, hasn_runs, tmp_path, kills):
    folder, seconds = reference
    wanted = {path.name: path.read_bytes() for path in (folder / "out").glob("*.png")}
    assert len(wanted) == PICTURES
    chance = random.Random(kills)
    stages = set()
    for kill in range(kills):
        out = tmp_path / str(kill)
        command = ("upscale", folder / "in", "-s", 2, "-o", out)
        hasn_runs.start(*command)
        wait_for_pictures(out, chance.randrange(PICTURES))
        time.sleep(chance.uniform(0, seconds / PICTURES))
        hasn_runs.kill()
        status = hasn_runs.wait()
        assert status in (-signal.SIGKILL, 0)

        before = {path.name: identity(path) for path in out.glob("*.png")}
        assert all((out / name).read_bytes() == wanted[name] for name in before), "a half picture"
        known = {name for name, record in journal.read(out / NAME).items() if record["state"] == "done"}
        stages.add(len(before))

        assert hasn_runs.run(*command, "--resume") == 0
        assert {path.name: path.read_bytes() for path in out.glob("*.png")} == wanted
        assert {path.name for path in out.iterdir()} == {*wanted, NAME}, "something was left behind"
        for name in known:
            assert identity(out / name) == before[name], "something was done twice"
    assert len(stages) > 1, "every kill fell on the same moment"
    assert no_halves(tmp_path)


@RUNS
def test_a_run_that_is_killed_while_it_resumes_can_be_finished(reference, hasn_runs, tmp_path):
    folder, _ = reference
    command = ("upscale", folder / "in", "-s", 2, "-o", tmp_path, "--resume")
    counts = []
    for turn in (1, 2, 3):
        hasn_runs.start(*command)
        wait_for_pictures(tmp_path, 2 * turn)
        hasn_runs.kill()
        hasn_runs.wait()
        counts.append(len(list(tmp_path.glob("*.png"))))
    assert hasn_runs.run(*command) == 0
    assert counts == sorted(counts) and len(list(tmp_path.glob("*.png"))) == PICTURES and no_halves(tmp_path)
    lines = (tmp_path / NAME).read_text().splitlines()
    done = [json.loads(line)["target"] for line in lines if '"done"' in line]
    assert sorted(done) == sorted(set(done))
