"""`hasn watch`: real files appear in every way that files do; each is upscaled once, when it is complete."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from command import save, size_of

from hasn_cli.batch import run_batch
from hasn_cli.batch.events import Done, Failed, Skipped, Stopped
from hasn_cli.batch.settings import Settings
from hasn_cli.enlarge import Size
from hasn_cli.errors import HasnError, OutputError, UsageError
from hasn_cli.watch import Watch, is_being_written

SETTLE = 0.05
LOOKS = 12  # with pauses that are longer than SETTLE together


@pytest.fixture
def inbox(tmp_path):
    """The watched folder, beside `out` and `done`, which do not exist yet."""
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


def watch(inbox, **wishes) -> Watch:
    settings = wishes.pop("settings", Settings(size=Size(2)))
    return Watch(inbox, inbox.parent / "out", settings, settle=SETTLE, **wishes)


def looks(number=LOOKS, between=lambda index: None):
    """Let the watch look at the folder so many times; before each look, `between` may change something."""
    for index in range(number):
        between(index)
        time.sleep(SETTLE / 4)
        yield True


def outcomes(events) -> list[tuple[str, str]]:
    """Kind and name of how each picture ended."""
    kinds = {Done: "done", Failed: "failed", Skipped: "skipped"}
    return [(kinds[type(event)], event.job.source.name) for event in events if type(event) in kinds]


def run(watching: Watch, number=LOOKS, between=lambda index: None) -> list[tuple[str, str]]:
    return outcomes(watching.run(looks(number, between)))


def files(folder) -> list[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.rpartition("/")[2].startswith("."))


def test_pictures_that_are_there_and_that_appear_are_upscaled_as_on_the_command_line(inbox, hasn, tmp_path):
    save(inbox / "a.png")
    assert run(watch(inbox), 2 * LOOKS, lambda index: index == LOOKS and save(inbox / "b.jpg")) == [
        ("done", "a.png"), ("done", "b.jpg")]  # fmt: skip
    assert files(tmp_path / "out") == ["a.png", "b.jpg"]
    assert hasn("in", "-o", "other", "-s", "2").code == 0
    for name in ("a.png", "b.jpg"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whether a file is open for writing")
def test_a_file_is_not_taken_while_a_program_writes_it(inbox, tmp_path):
    data = save(tmp_path / "a.png").read_bytes()
    with (inbox / "a.png").open("wb") as stream:
        stream.write(data[:200])
        stream.flush()
        assert is_being_written(inbox / "a.png")
        assert run(watch(inbox)) == []
        watching = watch(inbox).run(looks(4 * LOOKS, lambda index: index == 2 * LOOKS and finish()))

        def finish():
            stream.write(data[200:])
            stream.close()

        assert outcomes(watching) == [("done", "a.png")]
    assert not is_being_written(inbox / "a.png")
    assert size_of(tmp_path / "out" / "a.png") == (40, 32)


def test_a_file_that_grows_is_taken_when_it_rests(inbox, tmp_path, monkeypatch):
    monkeypatch.setattr("hasn_cli.watch.is_being_written", lambda path: False)  # as on other systems
    data = save(tmp_path / "a.png").read_bytes()
    pieces = [data[start : start + 150] for start in range(0, len(data), 150)]
    lengths = []

    def write(index):
        if index < len(pieces):
            with (inbox / "a.png").open("ab") as stream:
                stream.write(pieces[index])

    for event in watch(inbox).run(looks(len(pieces) + LOOKS, write)):
        if isinstance(event, Done):
            lengths.append((inbox / "a.png").stat().st_size)
        assert not isinstance(event, Failed)
    assert lengths == [len(data)]


def test_a_file_that_is_renamed_into_place_is_taken_under_its_name(inbox, tmp_path):
    save(tmp_path / "a.png")
    shutil.move(tmp_path / "a.png", inbox / "a.png.part")
    rename = lambda index: index == LOOKS and (inbox / "a.png.part").rename(inbox / "a.png")  # noqa: E731
    assert run(watch(inbox), 2 * LOOKS, rename) == [("done", "a.png")]


def test_a_picture_that_is_replaced_is_upscaled_again(inbox, tmp_path):
    save(inbox / "a.png", (20, 16))
    save(tmp_path / "new.png", (10, 9))
    replace = lambda index: index == LOOKS and (tmp_path / "new.png").replace(inbox / "a.png")  # noqa: E731
    assert run(watch(inbox), 2 * LOOKS, replace) == [("done", "a.png"), ("done", "a.png")]
    assert size_of(tmp_path / "out" / "a.png") == (20, 18)


def test_a_file_that_is_deleted_is_forgotten_without_a_word(inbox, tmp_path):
    save(inbox / "a.png")
    assert run(watch(inbox), between=lambda index: index == 1 and (inbox / "a.png").unlink()) == []
    save(inbox / "b.png")
    assert run(watch(inbox), 2 * LOOKS, lambda index: index == LOOKS and (inbox / "b.png").unlink()) == [
        ("done", "b.png")
    ]
    assert files(tmp_path / "out") == ["b.png"]


def test_a_broken_picture_fails_once_and_again_when_it_has_changed(inbox, tmp_path):
    data = save(tmp_path / "a.png").read_bytes()
    (inbox / "a.png").write_bytes(data[:100])
    (inbox / "empty.png").touch()  # nothing yet
    save(inbox / "b.png")
    repair = lambda index: index == 2 * LOOKS and (inbox / "a.png").write_bytes(data)  # noqa: E731
    found = run(watch(inbox), 3 * LOOKS, repair)
    assert sorted(found[:2]) == [("done", "b.png"), ("failed", "a.png")] and found[2:] == [("done", "a.png")]


def test_a_failure_holds_no_picture_once_it_has_been_told(inbox):
    (inbox / "a.png").write_bytes(b"no picture")
    (failed,) = [event for event in watch(inbox).run(looks()) if isinstance(event, Failed)]
    error = failed.error
    while error is not None:
        assert error.__traceback__ is None
        error = error.__cause__ or error.__context__


def test_a_full_disk_is_waited_for(inbox, tmp_path, monkeypatch):
    full = [True]

    def on_full_disk(jobs, *args, **named):
        if full:
            full.clear()
            error = OutputError("out/a.png: no space left on device")
            error.__cause__ = OSError(errno.ENOSPC, "no space left on device")
            yield Failed(jobs[0], error)
            yield Stopped("no space left on device", 1)
        else:
            yield from run_batch(jobs, *args, **named)

    monkeypatch.setattr("hasn_cli.watch.run_batch", on_full_disk)
    monkeypatch.setattr("hasn_cli.watch.PAUSE", SETTLE)
    save(inbox / "a.png")
    save(inbox / "b.png")
    found = run(watch(inbox), 6 * LOOKS)
    assert found[0] == ("failed", "a.png") and sorted(found[1:]) == [("done", "a.png"), ("done", "b.png")]


def test_a_picture_that_changes_while_it_is_computed_is_done_again_and_only_the_end_is_told(
    inbox, tmp_path, monkeypatch
):
    save(inbox / "a.png", (20, 16))
    watching = watch(inbox, move_done=tmp_path / "done").run(looks(3 * LOOKS))
    seen = []
    for event in watching:
        if not seen:  # it has only been started
            save(inbox / "a.png", (10, 9))
        seen.append(event)
    assert outcomes(seen) == [("done", "a.png")]
    assert size_of(tmp_path / "out" / "a.png") == (20, 18)
    assert size_of(tmp_path / "done" / "a.png") == (10, 9)


def test_a_picture_that_changes_just_before_it_is_read_is_told_once(inbox, tmp_path, monkeypatch):
    save(inbox / "a.png", (20, 16))
    save(tmp_path / "b.png", (10, 9))

    def replaced_first(*args, **named):
        if (tmp_path / "b.png").exists():
            (tmp_path / "b.png").replace(inbox / "a.png")
        return run_batch(*args, **named)

    monkeypatch.setattr("hasn_cli.watch.run_batch", replaced_first)
    assert run(watch(inbox), 3 * LOOKS) == [("done", "a.png")]
    assert size_of(tmp_path / "out" / "a.png") == (20, 18)


def test_a_new_watch_continues_where_the_last_one_ended(inbox, tmp_path):
    save(inbox / "a.png")
    assert run(watch(inbox)) == [("done", "a.png")]
    before = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    save(inbox / "b.png", (9, 8))
    assert sorted(run(watch(inbox))) == [("done", "b.png"), ("skipped", "a.png")]
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == before
    three = Settings(size=Size(3))
    assert sorted(run(watch(inbox, settings=three))) == [("done", "a.png"), ("done", "b.png")]
    assert size_of(tmp_path / "out" / "b.png") == (27, 24)


def test_pictures_that_are_done_are_moved_with_their_folders(inbox, tmp_path):
    save(inbox / "a.png")
    save(inbox / "2026" / "b.png")
    (inbox / "broken.png").write_bytes(b"no picture")
    times = (inbox / "a.png").stat().st_mtime_ns
    found = run(watch(inbox, recursive=True, move_done=inbox / "done"))
    assert sorted(found) == [("done", "a.png"), ("done", "b.png"), ("failed", "broken.png")]
    assert files(inbox) == ["broken.png", "done/2026/b.png", "done/a.png"]
    assert (inbox / "done" / "a.png").stat().st_mtime_ns == times
    assert files(tmp_path / "out") == ["2026/b.png", "a.png"]


def test_moving_replaces_nothing_and_neither_does_a_new_picture_of_the_same_name(inbox, tmp_path):
    done = tmp_path / "done"
    save(inbox / "a.png", (20, 16))
    assert run(watch(inbox, move_done=done)) == [("done", "a.png")]
    save(inbox / "a.png", (10, 9))  # a scanner has begun to count anew
    assert run(watch(inbox, move_done=done)) == [("failed", "a.png")]
    (done / "a.png").unlink()  # somebody has tidied up
    assert run(watch(inbox, move_done=done)) == [("failed", "a.png")]
    assert size_of(tmp_path / "out" / "a.png") == (40, 32) and size_of(inbox / "a.png") == (10, 9)
    save(inbox / "b.png")
    save(done / "b.png", (5, 5))
    assert run(watch(inbox, move_done=done, exclude=["a.png"])) == [("failed", "b.png")]
    assert size_of(done / "b.png") == (5, 5) and (inbox / "b.png").exists()


def test_a_picture_that_was_done_but_not_moved_before_a_crash_is_moved(inbox, tmp_path):
    save(inbox / "a.png")
    assert run(watch(inbox)) == [("done", "a.png")]
    assert run(watch(inbox, move_done=tmp_path / "done")) == [("skipped", "a.png")]
    assert files(tmp_path / "done") == ["a.png"] and files(inbox) == []


def test_moving_to_another_disk_copies_and_then_deletes(inbox, tmp_path, monkeypatch):
    def cannot(*args, **named):
        raise OSError(18, "Invalid cross-device link")

    save(inbox / "a.png")
    data, times = (inbox / "a.png").read_bytes(), (inbox / "a.png").stat().st_mtime_ns
    monkeypatch.setattr("hasn_cli.watch.os.link", cannot)
    assert run(watch(inbox, move_done=tmp_path / "done")) == [("done", "a.png")]
    assert (tmp_path / "done" / "a.png").read_bytes() == data and files(inbox) == []
    assert (tmp_path / "done" / "a.png").stat().st_mtime_ns == times


def test_two_pictures_with_the_same_output_do_not_stop_the_others(inbox, tmp_path):
    for name in ("a.jpg", "a.png", "b.png"):
        save(inbox / name)
    found = run(watch(inbox, settings=Settings(size=Size(2), format="png")))
    assert sorted(kind for kind, _ in found) == ["done", "done", "failed"]
    assert ("done", "b.png") in found and files(tmp_path / "out") == ["a.png", "b.png"]


def test_results_inside_the_watched_folder_are_not_taken_for_pictures(inbox):
    save(inbox / "a.png")
    watching = Watch(inbox, inbox / "large", Settings(size=Size(2)), recursive=True, settle=SETTLE)
    assert run(watching, 3 * LOOKS) == [("done", "a.png")]
    assert files(inbox) == ["a.png", "large/a.png"]


def test_only_what_was_asked_for_is_taken(inbox, tmp_path):
    for name in ("a.png", "b.jpg", ".hidden.png", "notes.txt", "sub/c.png"):
        save(inbox / name) if name != "notes.txt" else (inbox / name).write_text("none")
    said = []
    assert run(watch(inbox, include=["*.png"], on_skip=lambda path, reason: said.append(reason))) == [("done", "a.png")]
    assert said == ["a subfolder, without -r"]  # once


def test_folders_that_cannot_work_are_refused(inbox, tmp_path):
    for folder, output, done in [
        (tmp_path / "none", tmp_path / "out", None),
        (inbox, inbox, None),
        (inbox, tmp_path / "out", inbox),
        (inbox, tmp_path / "out", tmp_path / "out"),
    ]:
        with pytest.raises(UsageError):
            Watch(folder, output, Settings(), move_done=done)


def test_a_watched_folder_that_goes_away_ends_the_watch_with_an_error(inbox):
    with pytest.raises(HasnError, match="gone"):
        list(watch(inbox).run(looks(between=lambda index: index == 2 and shutil.rmtree(inbox))))


def test_the_command_writes_a_line_for_each_picture_until_ctrl_c(inbox, tmp_path):
    pytest.importorskip("watchfiles", reason="the extra `web` is not installed")
    command = [sys.executable, "-m", "hasn_cli", "watch", "in", "-o", "out", "-s", "2", "--settle", "0.1", "--json"]
    command += ["--move-done", "done"]
    save(inbox / "a.png")
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        first = json.loads(process.stdout.readline())
        assert (first["event"], first["input"]) == ("done", os.path.join("in", "a.png"))  # noqa: PTH118 (as printed)
        save(tmp_path / "b.png")
        (tmp_path / "b.png").rename(inbox / "b.png")
        assert json.loads(process.stdout.readline())["input"].endswith("b.png")
        while files(inbox):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["summary"]
    assert "a.png" in err and "Traceback" not in err
    assert files(tmp_path / "done") == ["a.png", "b.png"]
