"""A folder from a stranger does no harm: journals, links, names, permissions, and files that change meanwhile."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from test_batch import TWICE, FakeUpscaler, no_halves, of_type, save, save_many

from hasn_cli import files
from hasn_cli.batch import Done, Failed, Settings, Skipped, journal, marks, process, reading, run_batch
from hasn_cli.batch.jobs import Job, find_jobs
from hasn_cli.batch.journal import NAME, Journal
from hasn_cli.batch.lists import read_list
from hasn_cli.batch.pool import UpscalerPool
from hasn_cli.cli.main import run
from hasn_cli.console import printable, traceback_text
from hasn_cli.enlarge import Size
from hasn_cli.errors import HasnError, ImageError, OutputError, UsageError
from hasn_cli.files import Placing, replacing
from hasn_cli.images.encode import check_target
from hasn_cli.redaction import redacted, without_secrets
from hasn_cli.weights import bundled_path

pytestmark = pytest.mark.skipif(os.name != "posix", reason="about links, pipes and permissions as POSIX has them")
HUGE = 25 << 30  # bytes of a sparse file, which takes no space on the disk


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fake(monkeypatch):
    """Replace the network by one that repeats pixels."""
    monkeypatch.setattr(UpscalerPool, "_load", lambda *args: FakeUpscaler())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def failures(jobs, settings=TWICE, **options) -> list[HasnError]:
    return [event.error for event in of_type(run_batch(jobs, settings, **options), Failed)]


# --- journals that cannot be trusted ---


def as_link(path: Path) -> None:
    path.symlink_to("profile")


def as_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def as_hard_link(path: Path) -> None:
    os.link(path.parent / "profile", path)


def as_pipe(path: Path) -> None:
    os.mkfifo(path)


def as_sparse_file(path: Path) -> None:
    path.touch()
    os.truncate(path, HUGE)


def as_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
        path.open("rb").close()
    except OSError:
        pytest.skip("only root may make devices")


def as_another_user_s(path: Path) -> None:
    path.touch()
    try:
        os.chown(path, 12345, -1)
    except OSError:
        pytest.skip("only root may give files away")


UNTRUSTED = [as_link, as_dangling_link, as_hard_link, as_pipe, as_sparse_file, as_device, as_another_user_s]


@pytest.mark.parametrize("make", UNTRUSTED)
@pytest.mark.parametrize("resume", [False, True])
def test_an_untrusted_journal_is_refused_in_one_line_and_neither_followed_nor_read(folder, fake, make, resume):
    save("in/a.png"), save("in/$(touch pwned).png")
    profile = Path("in/profile")
    profile.write_text("export A=1\n")
    make(Path("in", NAME))
    with pytest.raises(OutputError, match=f"^in/{re.escape(NAME)}: .*not used as a journal") as caught:
        list(run_batch(find_jobs(["in"]), TWICE, resume=resume))
    assert "--no-journal" in caught.value.hint and "\n" not in str(caught.value)
    assert profile.read_text() == "export A=1\n" and not Path("in/nowhere").exists()
    assert not list(Path("in").glob("*_x4*")), "the batch was begun"


@pytest.mark.parametrize("make", UNTRUSTED)
def test_an_untrusted_journal_in_an_input_folder_is_reported_and_the_batch_continues(folder, fake, make):
    save("in/a.png"), save("in/sub/b.png")
    Path("in/sub/profile").write_text("export A=1\n")
    make(Path("in/sub", NAME))
    told = []
    jobs = find_jobs(["in"], "out", recursive=True, on_skip=lambda path, reason: told.append(path))
    assert told == [f"in/sub/{NAME}"]
    assert len(of_type(run_batch(jobs, TWICE), Done)) == 2
    assert Path("in/sub/profile").read_text() == "export A=1\n"


def test_a_journal_that_is_replaced_by_a_link_is_not_written(folder):
    save("profile.png")
    entry = Journal(folder)
    (folder / NAME).symlink_to("profile")
    with pytest.raises(OutputError, match="is a link"):
        entry.start(folder / "a.png")
    assert not (folder / "profile").exists()


def test_only_its_owner_can_read_a_journal(folder, fake):
    list(run_batch(save_many(2), TWICE))
    assert mode(Path("out", NAME)) == 0o600


def test_endless_lines_and_other_peoples_outputs_take_no_memory(folder):
    path = folder / NAME
    record = '{"target":"%s","state":"done"}\n'
    with path.open("w") as file:
        file.write(record % "a.png")
        file.write("x" * 1_000_000 + "\n")
        file.writelines(record % f"{number}.png" for number in range(20_000))
        file.write(record % "b.png")
        file.truncate(file.tell() + (20 << 20))  # one long line of zeros
    tracemalloc.start()
    try:
        assert set(journal.read(path, {"a.png", "b.png"})) == {"a.png", "b.png"}
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "line",
    [
        {"target": "a\0.png", "state": "done"},
        {"target": "\ud800.png", "state": "done"},
        {"target": "", "state": "done"},
        {"target": ["a"], "state": "done"},
        {"target": "0.png", "state": "done", "source": "a\0"},
        {"target": "0.png", "state": "start", "source": "\ud800"},
        {"target": "0.png", "state": "done", "output": 3},
        {"target": "0.png", "state": "done", "output": {"size": [1]}},
        {"target": "0.png", "state": "start", "earlier": {"size": 1}},
        {"target": "0.png", "state": "done", "input": {"size": None}},
        {"target": "0.png", "state": "done", "scale": 1e300},
        {"target": "0.png", "state": "done", "scale": True},
        {"target": "0.png", "state": "done", "scale": -2},
        {"target": "0.png", "state": ["done"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["in", "in/sub", "out"])
def test_lines_that_no_run_wrote_are_ignored_in_subfolders_too(folder, fake, line, where):
    save("in/0.png"), save("in/sub/1.png")
    Path(where).mkdir(exist_ok=True)
    Path(where, NAME).write_text(json.dumps(line) + "\n" + "[" * 60_000 + "\n")
    for resume in (False, True):
        jobs = find_jobs(["in"], "out", recursive=True)
        events = list(run_batch(jobs, TWICE, resume=resume))
        assert len(of_type(events, Skipped if resume else Done)) == 2 and not of_type(events, Failed)


def test_a_line_about_weights_that_do_not_exist_does_not_end_the_batch(folder, fake):
    (job,) = save_many(1)
    list(run_batch([job], TWICE, resume=True))
    path = Path("out", NAME)
    path.write_text(re.sub(r'"scale":2', '"scale":7', path.read_text()))
    assert len(of_type(run_batch([job], TWICE, resume=True), Done)) == 1


# --- what --resume may replace ---


def line(target: str, state: str, **facts: object) -> str:
    return json.dumps({"target": target, "state": state, **facts}) + "\n"


def test_no_forged_line_lets_resume_replace_a_file(folder, fake):
    (job,) = save_many(1)
    list(run_batch([job], TWICE, resume=True))
    record = json.loads(Path("out", NAME).read_text().splitlines()[-1])
    job.target.write_bytes(b"a photo of my own")
    found = job.target.stat()
    source = str(Path("in/0.png").resolve())
    size_and_time = {"size": found.st_size, "mtime": found.st_mtime_ns}
    made_up = [
        line("0.png", "start"),
        line("0.png", "start", source=source),
        line("0.png", "done", source=source),
        line("0.png", "done", source=source, output=size_and_time),
        line("0.png", "done", source=source, output={**size_and_time, "sha256": "0" * 64}),
        line("0.png", "done", output={**size_and_time, "sha256": "0" * 64}) + line("0.png", "start"),
        json.dumps({**record, "settings": "others", "output": {**record["output"], **size_and_time}}) + "\n",
    ]
    for lines in made_up:
        Path("out", NAME).write_text(lines)
        (error,) = failures([job], resume=True)
        assert "exists already" in str(error), lines
        assert job.target.read_bytes() == b"a photo of my own"


def test_a_picture_finished_just_before_a_run_was_killed_counts_as_done_if_it_is_the_same(folder, fake):
    (job,) = save_many(1)
    list(run_batch([job], TWICE, resume=True))
    path = Path("out", NAME)
    path.write_text(path.read_text().splitlines()[0] + "\n")
    whole = job.target.read_bytes()
    assert len(of_type(run_batch([job], TWICE, resume=True), Done)) == 1 and job.target.read_bytes() == whole
    assert len(of_type(run_batch([job], TWICE, resume=True), Skipped)) == 1


def test_a_run_killed_while_it_replaced_pictures_can_still_replace_the_old_ones(folder, fake):
    (job,) = save_many(1)
    list(run_batch([job], TWICE, resume=True))
    entry = Journal(Path("out"))
    entry.start(job.target, str(Path("in/0.png").resolve()))  # the run was killed after this
    entry.close()
    other = Settings(size=Size(width=30))
    assert len(of_type(run_batch([job], other, resume=True), Done)) == 1
    with Image.open(job.target) as image:
        assert image.width == 30


# --- links at the places of outputs ---


def test_a_dangling_link_is_an_output_that_exists_and_is_replaced_but_not_followed(folder, fake):
    save("in/a.png")
    link, away = Path("in/a_x2.png"), folder / "autostart.desktop"
    link.symlink_to(away)
    jobs = find_jobs(["in"], default_suffix="_x2")
    (error,) = failures(jobs)
    assert str(error) == "in/a_x2.png exists already" and not away.exists()
    (skipped,) = of_type(run_batch(jobs, TWICE, on_exists="skip"), Skipped)
    assert "exists" in skipped.reason
    assert len(of_type(run_batch(jobs, TWICE, on_exists="overwrite"), Done)) == 1
    assert not away.exists() and link.is_file() and not link.is_symlink()


def test_only_the_link_to_a_file_is_replaced_and_not_the_file(folder, fake):
    save("a.png")
    Path("notes.txt").write_text("mine")
    Path("b.png").symlink_to("notes.txt")
    os.link("notes.txt", "c.png")
    for name in ("b.png", "c.png"):
        jobs = find_jobs(["a.png"], name)
        assert "exists already" in str(failures(jobs)[0])
        assert len(of_type(run_batch(jobs, TWICE, on_exists="overwrite"), Done)) == 1
        assert Path("notes.txt").read_text() == "mine" and Path(name).read_bytes()[:4] == b"\x89PNG"
        assert not Path(name).is_symlink()


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_a_link_to_an_input_at_an_outputs_name_fails_one_picture_and_harms_no_input(folder, fake, link):
    save("in/a.png"), save("in/b.png", seed=1)
    Path("in/a_x2.png").symlink_to("b.png") if link == "symbolic" else os.link("in/b.png", "in/a_x2.png")
    content = Path("in/b.png").read_bytes()
    jobs = find_jobs(["in"], default_suffix="_x2")
    events = list(run_batch(jobs, TWICE))
    assert [event.job.name for event in of_type(events, Failed)] == ["in/a.png"] and len(of_type(events, Done)) == 1
    assert len(of_type(run_batch(jobs, TWICE, on_exists="overwrite"), Done)) == 2
    assert Path("in/b.png").read_bytes() == content


def test_system_links_are_never_replaced():
    for path in (Path("/dev/stdout"), Path("/dev/fd/1"), Path("/proc/self/exe")):
        if path.is_symlink():
            with pytest.raises(OutputError, match="is not a regular file"):
                check_target(path)


def test_a_link_to_a_folder_below_the_outputs_is_followed_only_on_request(folder, fake):
    save("in/sub/a.png"), save("in/b.png")
    Path("away").mkdir(), Path("out").mkdir()
    Path("out/sub").symlink_to(folder / "away")
    (error,) = failures(find_jobs(["in"], "out", recursive=True))
    assert "out/sub" in str(error) and "link to a folder" in str(error) and "--follow-links" in error.hint
    assert not list(Path("away").iterdir()) and Path("out/b.png").exists()
    jobs = find_jobs(["in"], "out", recursive=True, follow_links=True)
    assert len(of_type(run_batch(jobs, TWICE, on_exists="overwrite"), Done)) == 2 and Path("away/a.png").exists()


def test_the_folder_that_the_user_names_may_be_a_link(folder, fake):
    save("in/a.png")
    Path("away").mkdir()
    Path("out").symlink_to("away")
    assert len(of_type(run_batch(find_jobs(["in"], "out"), TWICE), Done)) == 1 and Path("away/a.png").exists()


def test_a_folder_that_is_replaced_by_a_link_while_a_picture_is_computed_is_not_followed(folder, fake, monkeypatch):
    save("in/sub/a.png")
    Path("away").mkdir(), Path("out/sub").mkdir(parents=True)
    real = process.enlarge

    def enlarge(*args, **options):
        Path("out/sub").rmdir()
        Path("out/sub").symlink_to(folder / "away")
        return real(*args, **options)

    monkeypatch.setattr(process, "enlarge", enlarge)
    (error,) = failures(find_jobs(["in"], "out", recursive=True))
    assert "link to a folder" in str(error) and not list(Path("away").iterdir())


def test_a_folder_that_is_moved_while_a_picture_is_encoded_still_gets_it(folder):
    Path("out").mkdir(), Path("away").mkdir()
    with replacing(Path("out/a.png"), Placing(overwrite=False)) as stream:
        stream.write(b"whole")
        Path("out").rename("moved")
        Path("out").symlink_to(folder / "away")
    assert Path("moved/a.png").read_bytes() == b"whole" and not list(Path("away").iterdir())
    assert no_halves(folder)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_link_that_appears_between_the_check_and_the_move_is_not_followed(folder, overwrite):
    target = Path("a.png")
    try:
        with replacing(target, Placing(overwrite=overwrite)) as stream:
            stream.write(b"whole")
            target.symlink_to("away")
    except FileExistsError:
        assert not overwrite and target.is_symlink()
    else:
        assert overwrite and target.read_bytes() == b"whole" and not target.is_symlink()
    assert not Path("away").exists() and no_halves(folder)


def test_only_our_own_unfinished_files_are_deleted(folder):
    Path("mine").write_text("mine")
    link, pipe, below = (Path(f".hasn-{name}.part") for name in ("link", "pipe", "folder"))
    link.symlink_to("mine")
    os.mkfifo(pipe)
    below.mkdir()
    files.clear_abandoned(folder)
    files.clear_own(folder, "folder")
    assert link.is_symlink() and pipe.is_fifo() and below.is_dir() and Path("mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["export", "--onnx", "{target}"], ["hasn.onnx"]),
        (["evaluate", "in", "-s", "2", "-f", "json", "-o", "{target}"], ["table.json"]),
        (["compare", "in/a.png", "-s", "2", "-o", "{target}"], ["page.html", "sheet.png"]),
        (["train", "in", "-o", "run", "-s", "2", "--iterations", "1"], ["run/log.csv", "run/checkpoint.pt"]),
        (["upscale", "in/a.png", "-s", "2", "-o", "{target}"], ["a.png"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_no_command_writes_through_a_link(folder, capfd, command, names):
    save("in/a.png", (120, 110))
    for name in names:
        target = Path(name)
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(folder / "away")
        assert run([word.format(target=target) for word in command]) == 1
        said = capfd.readouterr().err
        assert ("exists already" in said or "which training would replace" in said) and len(said.splitlines()) <= 2
        assert target.is_symlink() and not Path("away").exists()
        target.unlink()


# --- permissions ---


@pytest.mark.parametrize(
    ("given", "expected"),
    [(0o600, 0o600), (0o640, 0o640), (0o644, 0o644), (0o666, 0o644), (0o400, 0o600), (0o444, 0o644), (0o604, 0o604)],
    ids=oct,
)
def test_an_output_is_not_readable_for_more_people_than_its_input(folder, fake, given, expected):
    umask = subprocess.run(["sh", "-c", "umask"], capture_output=True, text=True).stdout
    (job,) = save_many(1)
    Path("in/0.png").chmod(given)
    list(run_batch([job], TWICE))
    assert mode(job.target) == expected & ~int(umask, 8) | 0o600


@pytest.mark.parametrize(
    ("source", "old", "expected"),
    [(0o644, 0o640, 0o640), (0o600, 0o644, 0o600), (0o640, 0o604, 0o600), (0o666, 0o666, 0o666), (0o644, 0o755, 0o644)],
    ids=oct,
)
def test_overwriting_keeps_permissions_within_those_of_the_input(folder, fake, source, old, expected):
    (job,) = save_many(1)
    Path("in/0.png").chmod(source)
    job.target.parent.mkdir()
    job.target.write_bytes(b"old")
    job.target.chmod(old)
    list(run_batch([job], TWICE, on_exists="overwrite"))
    assert mode(job.target) == expected


def test_permissions_of_a_group_do_not_pass_to_another_group(folder, fake):
    (job,) = save_many(1)
    try:
        os.chown("in/0.png", -1, 12345)
    except OSError:
        pytest.skip("only root may give files to any group")
    Path("in/0.png").chmod(0o640)
    list(run_batch([job], TWICE))
    assert mode(job.target) == 0o600


def test_an_unfinished_file_is_private(folder):
    with replacing(Path("a.png")) as stream:
        stream.write(b"half")
        stream.flush()
        (half,) = folder.glob(".hasn-*.part")
        assert mode(half) == 0o600
    assert mode(Path("a.png")) == 0o666 & ~_umask()


def _umask() -> int:
    return int(subprocess.run(["sh", "-c", "umask"], capture_output=True, text=True).stdout, 8)


@pytest.mark.parametrize("name", ["page.html", "sheet.png"])
def test_a_page_and_a_sheet_are_not_readable_for_more_people_than_their_pictures(folder, name, capfd):
    save("a.png", (20, 16)), save("b.png", (40, 32))
    Path("b.png").chmod(0o600)
    assert run(["compare", "a.png", "-s", "2", "-o", name]) == 0 and mode(Path(name)) == 0o666 & ~_umask()
    assert run(["compare", "a.png", "--reference", "b.png", "-s", "2", "-o", name, "--overwrite"]) == 0
    assert mode(Path(name)) == 0o600


# --- files that are huge, endless, or change ---


def huge_file(name: str, beginning: bytes = b"") -> None:
    Path(name).write_bytes(beginning)
    os.truncate(name, HUGE)


@pytest.mark.parametrize("resume", [False, True])
def test_huge_files_are_checked_before_they_are_hashed(folder, fake, monkeypatch, resume):
    Path("in").mkdir()
    huge_file("in/zeros.png")
    huge_file("in/declares.ppm", b"P6 100000 100000 255\n")
    huge_file("in/bitmap.bmp", b"BM" + bytes(60))
    monkeypatch.setattr(marks.hashlib, "file_digest", lambda *args: pytest.fail("a file was read to its end"))
    if resume:  # with a journal that makes hasn examine them
        Path("out").mkdir()
        facts = {"input": {"size": HUGE}, "output": {"size": 3}, "settings": TWICE.fingerprint(), "scale": 2}
        names = ["zeros.png", "declares.ppm", "bitmap.bmp"]
        Path("out", NAME).write_text("".join(line(name, "done", **facts) for name in names))
        for name in names:
            Path("out", name).write_bytes(b"old")
    errors = failures(find_jobs(["in"], "out"), resume=resume)
    assert len(errors) == 3 and all(isinstance(error, ImageError | OutputError) for error in errors)


def test_an_input_that_is_replaced_while_it_is_read_fails(folder, fake, monkeypatch):
    (job,) = save_many(1)
    save("other.png", seed=7)
    real = reading._read_small

    def read(path, *args, **options):
        data = real(path, *args, **options)
        Path("other.png").replace(path)
        return data

    monkeypatch.setattr(reading, "_read_small", read)
    (error,) = failures([job])
    assert "was changed while it was read" in str(error) and not job.target.exists()


def test_a_large_input_that_is_replaced_while_it_is_decoded_fails_and_leaves_nothing(folder, fake, monkeypatch):
    (job,) = save_many(1)
    save("other.png", seed=7)
    monkeypatch.setattr(reading, "READ_WHOLE", 0)  # every file counts as large
    real = process.plan_job

    def plan_job(*args):
        Path("other.png").replace("in/0.png")
        return real(*args)

    monkeypatch.setattr(process, "plan_job", plan_job)
    (error,) = failures([job])
    assert "was changed while it was read" in str(error)
    assert not job.target.exists() and no_halves(folder)


def test_a_pipe_that_replaces_a_file_does_not_block_the_batch(folder, fake, monkeypatch):
    (job,) = save_many(1)
    real = reading._identity

    def identity(path):
        found = real(path)
        if path.is_file():
            path.unlink()
            os.mkfifo(path)
        return found

    monkeypatch.setattr(reading, "_identity", identity)
    (error,) = failures([job])
    assert isinstance(error, ImageError) and not job.target.exists()


def test_a_list_that_never_ends_is_refused(monkeypatch):
    monkeypatch.setattr("hasn_cli.batch.lists.LARGEST", 1 << 20)
    with pytest.raises(UsageError, match="longer than"):
        read_list("/dev/zero", null=True)


# --- names and secrets in messages ---

EVIL = os.fsdecode(b"\x1b]0;owned\x07\x1b[2J\xff\n\xe2\x80\xae.png")


def test_control_characters_in_names_are_escaped_even_in_tracebacks(folder, capfdbinary):
    Path(EVIL).write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    for verbose in ([], ["-v"]):
        assert run(["upscale", EVIL, "gone" + EVIL, *verbose]) == 1
        out, err = capfdbinary.readouterr()
        assert not out and b"\x1b" not in err and b"\x07" not in err and b"\xe2\x80\xae" not in err
        assert b"\\x1b]0;owned" in err and (b"Traceback" in err) == bool(verbose)


def test_hostile_names_are_recorded_and_resumed(folder, fake):
    names = [EVIL, '"},{"target":"x.png', "$(touch pwned).png", "a\u2028b.png", "-rf.png", "\\u0000.png", "tab\t.png"]
    for name in names:
        save(f"in/{name.removesuffix('.png')}.png")
    jobs = find_jobs(["in"], "out")
    assert len(of_type(run_batch(jobs, TWICE), Done)) == len(names)
    assert len(of_type(run_batch(jobs, TWICE, resume=True), Skipped)) == len(names)
    assert set(journal.read(Path("out", NAME))) == {path.name for path in Path("out").glob("*.png")}


def test_passwords_tokens_and_keys_are_not_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "plain-looking-token")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMIK7MDENG")
    secrets = {
        "sftp://me:pa55word@host/a.png": "pa55word",
        "https://host/a.png?size=2&token=abc123def&x=1": "abc123def",
        "https://b.s3.amazonaws.com/a?X-Amz-Credential=AKIAABCDEFGHIJKLMNOP%2F1&X-Amz-Signature=0a1b2c": "0a1b2c",
        "https://store/a.png?sig=Zm9v%3D&se=2030": "Zm9v",
        "s3://AKIAABCDEFGHIJKLMNOP:sEcReT0@bucket/a.png": "sEcReT0",
        "401: Bearer hf_abcdefghijklmnopqrstuvwx": "hf_abcdef",
        "S3FileSystem(key='k', secret='very secret')": "very",
        "the header was {'authorization': 'Basic dXNlcjpwYXNz'}": "dXNlcjpwYXNz",
        "reading plain-looking-token failed": "plain-looking-token",
        "the key wJalrXUtnFEMIK7MDENG is unknown": "wJalrXUtnFEMIK7MDENG",
    }
    for text, secret in secrets.items():
        assert secret not in printable(text) and "***" in printable(text)
        assert secret not in json.dumps(without_secrets({"a": [text], "b": {"c": text}}))
        try:
            try:
                raise ValueError(text)
            except ValueError as cause:
                raise ImageError(f"x: {text}") from cause
        except ImageError as error:
            assert secret not in traceback_text(error) and "ValueError" in traceback_text(error)


@pytest.mark.parametrize(
    "text",
    [
        "photos/a@2x.png  200×100  1.2 s",
        "s3://bucket/a@2x.png: no such file",
        "https://host:8080/key/token.png?width=3&format=png",
        "hf://owner/repo@main/hasn_x4.safetensors",
        "error: the author's monkey.png: broken or not supported (invalid header)",
        "use --memory 2G, and fewer pictures at once, -j 1",
    ],
)
def test_text_without_secrets_stays(text):
    assert redacted(text) == text


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "token",
        ".-_",
        "://",
        "a://",
        "?a",
        "&",
        "-eyJ",
        "eyJ-.",
        "Basic ",
        "token =  ",
        "auth",
        "=",
        "x" * 50 + "://",
    ],
)
def test_no_text_takes_long_to_search_for_secrets(piece):
    for text in (piece * 20_000, piece * 20_000 + "@", "?" + piece * 20_000 + "=1"):
        redacted(text)


def test_a_journal_contains_no_password(folder, fake, monkeypatch):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    save("a.png")
    memory.pipe_file("/bucket/a.png?token=letmein99", Path("a.png").read_bytes())
    try:
        job = Job(0, "memory://bucket/a.png?token=letmein99", Path("out/a.png"), "a.png", Path("out"))
        events = list(run_batch([job], TWICE, resume=True))
        assert of_type(events, Done) and "letmein99" not in Path("out", NAME).read_text()
        assert of_type(run_batch([job], TWICE, resume=True), Skipped)
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_dangling_link_in_a_folder_is_reported(folder, capfd):
    save("in/a.png")
    Path("in/gone.png").symlink_to("/nowhere/b.png")
    Path("in/notes.txt").symlink_to("/nowhere/notes")
    os.mkfifo("in/pipe.png")
    assert run(["upscale", "in", "-s", "2", "-o", "out", "--json"]) == 1
    out, err = capfd.readouterr()
    assert "in/gone.png: a link to /nowhere/b.png, which does not exist" in err and "notes" not in err
    summary = json.loads(out.splitlines()[-1])
    assert (summary["done"], summary["failed"]) == (1, 1)
    run(["upscale", "in", "-s", "2", "-o", "out", "--overwrite", "-v"])
    assert "in/pipe.png  left out: a pipe, socket or device" in capfd.readouterr().err


# --- completion, compare, compiled code ---


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completing_a_hostile_name_runs_nothing(folder):
    for name in ("$(touch pwned).png", "`touch pwned`.png", "a;touch pwned;.png", "-o$(touch pwned)", "x\ny.png"):
        Path(name).touch()
    Path("hasn").write_text(f'#!/bin/sh\nexec {sys.executable} -m hasn_cli "$@"\n')
    Path("hasn").chmod(0o755)
    script = """
        compopt() { :; }  # works only while a shell completes
        eval "$(hasn completion bash)"
        for word in '' '$' '`' 'a;' '-o$(' 'x'; do
            COMP_WORDS=(hasn upscale "$word"); COMP_CWORD=2; COMPREPLY=()
            _hasn_completion hasn "$word" upscale
            printf '%s\\n' "${COMPREPLY[@]}"
        done
    """
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    assert not Path("pwned").exists()


def test_a_page_contains_no_script_from_the_picture_and_no_path(folder, monkeypatch, capfd):
    attack = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", attack)
    text.add_itxt("Title", attack)
    exif = Image.Exif()
    exif[0x010E] = attack  # ImageDescription
    Path("private place").mkdir()
    path = folder / "private place" / "a.png"
    Image.fromarray(np.zeros((16, 20, 3), np.uint8)).save(path, pnginfo=text, exif=exif)
    weights = folder / "private place" / "new.safetensors"
    shutil.copy(bundled_path(2), weights)
    command = ["compare", str(path), "-s", "2", "-w", str(weights), f"--output={folder}/private place/p.html"]
    monkeypatch.setattr(sys, "argv", ["hasn", *command])
    assert run(command) == 0
    page = (folder / "private place" / "p.html").read_text()
    assert "alert(" not in page and "private place" not in page and str(folder) not in page
    assert "new.safetensors" in page and "a.png" in page


def test_compiled_code_is_stored_where_nobody_else_can_write(folder, monkeypatch):
    from hasn_cli.inference.fusion import keep_compiled_code_private

    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    keep_compiled_code_private()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_compiled_code_private()
    place = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert place.is_relative_to(folder) and mode(place) == 0o700
