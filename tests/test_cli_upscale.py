"""`hasn upscale` as users see it: names, sizes, streams, messages, exit codes, and no leftover files."""

from __future__ import annotations

import io
import json
import os
import pty
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
from command import save, size_of
from pictures import photo
from PIL import Image

from hasn_cli import __version__


def process(*args: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "hasn_cli", *map(str, args)], capture_output=True, **options)


@pytest.fixture
def film(tmp_path):
    """A GIF of three frames in the current folder."""
    frames = [Image.fromarray(np.roll(photo(16, 20), 3 * index, axis=1)) for index in range(3)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:], duration=100)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_output_lies_beside_the_input_and_is_exactly_scaled(hasn, tmp_path, scale):
    save(tmp_path / "photo.png", (23, 17))
    result = hasn("upscale", "photo.png", "-s", scale)
    assert (result.code, result.out) == (0, b"")
    assert size_of(tmp_path / f"photo_x{scale}.png") == (23 * scale, 17 * scale)
    assert f"{23 * scale}×{17 * scale}" in result.err


def test_the_default_scale_is_4(hasn, tmp_path):
    save(tmp_path / "photo.png", (16, 15))
    assert hasn("upscale", "photo.png").code == 0
    assert size_of(tmp_path / "photo_x4.png") == (64, 60)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (14, 14), (15, 3)])
def test_tiny_pictures_work(hasn, tmp_path, size):
    save(tmp_path / "tiny.png", size)
    assert hasn("upscale", "tiny.png", "-s", 2).code == 0
    assert size_of(tmp_path / "tiny_x2.png") == (2 * size[0], 2 * size[1])


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (["-s", "1.5"], (30, 24)),
        (["--width", "50"], (50, 40)),
        (["--height", "40"], (50, 40)),
        (["--fit", "1000x48"], (60, 48)),
        (["--width", "33", "--height", "47", "--stretch"], (33, 47)),
        (["--width", "33", "--height", "26"], (33, 26)),
        (["-s", "150%"], (30, 24)),
        (["--fit", "20x16"], (20, 16)),
        (["--fit", "10x90"], (10, 8)),
    ],
)
def test_other_sizes_are_exact_too(hasn, tmp_path, options, size):
    save(tmp_path / "a.png", (20, 16))
    assert hasn("upscale", "a.png", *options, "-o", "out.png").code == 0
    assert size_of(tmp_path / "out.png") == size


def test_a_pipe_in_and_a_pipe_out(hasn, tmp_path):
    data = save(tmp_path / "a.png").read_bytes()
    result = hasn("upscale", "-", "-o", "-", "-s", 2, stdin=data)
    assert result.code == 0
    with Image.open(io.BytesIO(result.out)) as image:
        assert (image.format, image.size) == ("PNG", (40, 32))


def test_stdout_in_another_format(hasn, tmp_path):
    save(tmp_path / "a.jpg")
    result = hasn("upscale", "a.jpg", "-o", "-", "-f", "png", "-s", 2)
    assert (result.code, result.out[:8]) == (0, b"\x89PNG\r\n\x1a\n")


def test_the_output_name_gives_the_format_and_jpeg_is_full_chroma(hasn, tmp_path):
    save(tmp_path / "a.png")
    assert hasn("upscale", "a.png", "-o", "b.jpg", "-s", 2).code == 0
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.format == "JPEG"
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3


def test_a_folder_goes_into_a_new_folder_and_keeps_its_tree(hasn, tmp_path):
    save(tmp_path / "in/a.png")
    save(tmp_path / "in/below/b.jpg")
    assert hasn("upscale", "in", "-r", "-s", 2, "-o", "out/").code == 0
    assert size_of(tmp_path / "out/a.png") == (40, 32)
    assert size_of(tmp_path / "out/below/b.jpg") == (40, 32)


def test_an_existing_output_is_an_error_and_stays_as_it_was(hasn, tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "a_x2.png").write_bytes(b"precious")
    result = hasn("upscale", "a.png", "-s", 2)
    assert result.code == 1
    assert "error:" in result.err and "--overwrite" in result.err
    assert (tmp_path / "a_x2.png").read_bytes() == b"precious"
    assert hasn("upscale", "a.png", "-s", 2, "--skip-existing").code == 0
    assert (tmp_path / "a_x2.png").read_bytes() == b"precious"
    assert hasn("upscale", "a.png", "-s", 2, "--overwrite").code == 0
    assert size_of(tmp_path / "a_x2.png") == (40, 32)


def test_an_output_onto_its_input_is_refused(hasn, tmp_path):
    before = save(tmp_path / "a.png").read_bytes()
    assert hasn("upscale", "a.png", "-s", 2, "-o", "a.png", "--overwrite").code == 2
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.png", b""),
        ("text.png", b"no picture at all"),
        ("cut.png", None),
        ("cut.jpg", None),
    ],
)
def test_a_bad_picture_fails_alone_and_leaves_nothing(hasn, tmp_path, name, content):
    bad = tmp_path / "in" / name
    if content is None:
        save(bad, (200, 200))
        content = bad.read_bytes()[: bad.stat().st_size // 2]
    save(tmp_path / "in/good.png")
    bad.write_bytes(content)
    result = hasn("upscale", "in", "-s", 2, "-o", "out/")
    assert result.code == 1
    assert [line for line in result.err.splitlines() if line.startswith("error:") and name in line]
    assert "Traceback" not in result.err
    assert [path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")] == ["good.png"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["missing.png"], 1, ["missing.png", "no such file"]),
        (["a.png", "-s", "17"], 2, ["17", "at most 16"]),
        (["a.png", "--width", "33", "--height", "47"], 1, ["distort", "--fit 33x47", "--stretch"]),
        (["a.png", "--stretch", "--width", "33"], 2, ["--height"]),
        (["a.png", "--quality", "high"], 2, ["high", "1", "100"]),
        (["a.png", "-s", "2", "--width", "90"], 2, ["--width", "exclude"]),
        (["a.png", "--overwrite", "--skip-existing"], 2, ["exclude"]),
        (["a.png", "-f", "xyz"], 2, ["xyz"]),
        (["a.png", "-o", "out.xyz"], 2, ["out.xyz", "unknown format .xyz", "-f png"]),
        (["a.png", "-w", "missing.safetensors"], 1, ["missing.safetensors"]),
        (["a.png", "-d", "cuda:77"], 1, ["cuda"]),
        (["a.png", "-d", "toaster"], 1, ["toaster"]),
        (["a.png", "--memory", "lots"], 2, ["lots"]),
        (["a.png", "--tile", "5"], 2, ["tile"]),
        (["a.png", "--tile", "-1"], 2, ["tile"]),
        (["a.png", "b.png", "--tile", "100", "--overlap", "40"], 2, ["overlap of 40", "a third"]),
        (["a.png", "b.png", "-d", "toaster", "--width", "30"], 1, ["toaster"]),
        (["a.png", "b.png", "-d", "toaster", "--width", "30", "--dry-run"], 1, ["toaster"]),
        (["a.png", "--resume", "--no-journal"], 2, ["--resume", "--no-journal"]),
        (["a.png", "--resume", "--no-journal", "--dry-run"], 2, ["--resume", "--no-journal"]),
        (["a.png", "--megapixels", "inf"], 2, ["--megapixels", "inf"]),
        (["a.png", "--megapixels", "1e308"], 2, ["--megapixels", "1e308"]),
        (["a.png", "--max-megapixels", "inf"], 2, ["--max-megapixels", "inf"]),
        (["a.png", "--max-input-megapixels", "0.0001"], 1, ["a.png", "--max"]),
        (["a.png", "--max-megapixels", "nan"], 2, ["--max-megapixels", "nan"]),
        (["a.png", "--frobnicate"], 2, ["--frobnicate"]),
        (["-0", "a.png"], 2, ["--files-from"]),
        ([], 2, ["no input"]),
        (["empty/"], 1, ["no pictures"]),
        (["a.png", "-o", "a.png/b.png"], 1, ["a.png"]),
    ],
)
def test_an_impossible_request_is_one_line_with_the_right_exit_code(hasn, tmp_path, args, code, words):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    result = hasn("upscale", *args)
    assert result.code == code
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert all(word in result.err for word in words), result.err
    assert "Traceback" not in result.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("options", [["--tile", "24"], ["--tile", "30", "--overlap", "10"]])
def test_possible_tiles_and_overlaps_are_accepted(hasn, tmp_path, options):
    save(tmp_path / "a.png", (40, 30))
    assert hasn("upscale", "a.png", "-s", 2, *options).code == 0
    assert size_of(tmp_path / "a_x2.png") == (80, 60)


def test_verbose_adds_the_traceback_and_the_plan(hasn, tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    result = hasn("upscale", "a.png", "b.png", "-s", 2, "-v")
    assert result.code == 1
    assert "Traceback" in result.err
    (plan,) = [line for line in result.err.splitlines() if line.startswith("a.png  20×16 → 40×32  whole picture, ")]
    assert "strips" not in plan
    detailed = hasn("upscale", "a.png", "-s", 3, "-vv").err
    assert "whole picture" in detailed and "strips of" in detailed and "fp32" in detailed


def test_every_command_shows_its_traceback_with_verbose(hasn):
    assert "Traceback" not in hasn("weights", "verify", "none.pth").err
    result = hasn("-v", "weights", "verify", "none.pth")
    assert result.code == 1
    assert "Traceback" in result.err and "error: there are no weights at none.pth" in result.err


def test_quiet_prints_only_errors(hasn, tmp_path):
    save(tmp_path / "a.png")
    assert hasn("upscale", "a.png", "-s", 2, "-q").err == ""
    assert "error:" in hasn("upscale", "a.png", "-s", 2, "-q").err


def test_json_reports_everything_on_stdout(hasn, tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    result = hasn("upscale", "a.png", "b.png", "-s", 2, "--json")
    kinds = [event["event"] for event in result.events]
    assert result.code == 1
    assert {"start", "progress", "done", "failed"} < set(kinds) and kinds[-1] == "summary"
    summary = result.events[-1]
    assert (summary["done"], summary["failed"], summary["interrupted"]) == (1, 1, False)
    assert summary["failures"][0]["input"] == "b.png"


def test_json_and_pixels_cannot_share_stdout(hasn, tmp_path):
    save(tmp_path / "a.png")
    assert hasn("upscale", "a.png", "-o", "-", "--json").code == 2


def test_a_dry_run_prints_and_writes_nothing(hasn, tmp_path):
    save(tmp_path / "a.png")
    before = sorted(tmp_path.rglob("*"))
    result = hasn("upscale", "a.png", "missing.png", "-s", 3, "--dry-run")
    assert result.code == 1
    assert "a.png → a_x3.png  20×16 → 60×48" in result.err
    assert result.err.splitlines()[-1] == "1 to do, 1 would fail"
    assert "Traceback" not in result.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_list_of_files(hasn, tmp_path):
    save(tmp_path / "a b.png")
    save(tmp_path / "-c.png")
    result = hasn("upscale", "-0", "--files-from", "-", "-s", 2, "-o", "out/", stdin=b"a b.png\0-c.png\0")
    assert result.code == 0
    assert sorted(p.name for p in (tmp_path / "out").glob("[!.]*")) == ["-c.png", "a b.png"]


def test_pillows_warnings_are_hidden_from_the_terminal_but_not_from_other_programs(tmp_path):
    source = save(tmp_path / "a.png")
    warn = "; import warnings; warnings.warn_explicit('odd', UserWarning, 'Image.py', 1, module='PIL.Image')"
    command = (
        f"from hasn_cli.cli.main import run; assert run(['upscale', {str(source)!r}, '-s', '2', '--dry-run']) == 0"
    )
    library = f"import pathlib; from hasn_cli.images import open_picture; open_picture(pathlib.Path({str(source)!r}))"
    shown = [
        subprocess.run([sys.executable, "-c", code + warn], capture_output=True, check=True).stderr
        for code in (command, library)
    ]
    assert b"UserWarning" not in shown[0] and b"UserWarning: odd" in shown[1]


def test_version_and_help():
    assert process("--version").stdout.decode().strip() == f"hasn, version {__version__}"
    shown = process("--help", env={**os.environ, "COLUMNS": "80", "LINES": "24"}).stdout.decode()
    assert len(shown.splitlines()) <= 24
    assert all(
        name in shown for name in ("upscale", "compare", "doctor", "-s 4", "-r", "hasn photo.jpg", "upscale - >")
    )


def test_help_imports_nothing_heavy():
    code = "import sys; from hasn_cli.cli.main import run; run(['--help']); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.decode().split()
    assert not {"torch", "numpy", "PIL", "rich", "huggingface_hub", "imagecodecs"} & set(modules)


def test_a_terminal_is_not_given_pixels(tmp_path):
    save(tmp_path / "a.png")
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "hasn_cli", "upscale", "a.png", "-o", "-"],
        cwd=tmp_path,
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert b"terminal" in done.stderr


def test_a_closed_pipe_ends_quietly(tmp_path):
    save(tmp_path / "a.png", (64, 64))
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "hasn_cli", "upscale", "a.png", "-o", "-", "-q"],
        cwd=tmp_path,
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("redirect", "missing"),
    [(">&-", ["stdout"]), ("2>&-", ["stderr"]), ("<&- >&- 2>&-", ["stdin", "stdout", "stderr"])],
)
def test_closed_standard_streams_do_no_harm(tmp_path, redirect, missing):
    save(tmp_path / "a.png")
    done = shell(f"upscale a.png -s 2 {redirect}", tmp_path)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr == b"" or ("stderr" not in missing and b"rror" not in done.stderr)
    assert size_of(tmp_path / "a_x2.png") == (40, 32)


def test_a_picture_from_or_to_a_closed_stream_is_an_error_and_not_a_bug(tmp_path):
    save(tmp_path / "a.png")
    unread = shell("upscale - -o b.png <&-", tmp_path)
    assert unread.returncode == 1 and b"standard input: the file is empty" in unread.stderr
    unwritten = shell("upscale a.png -o - >&-", tmp_path)
    assert unwritten.returncode == 2 and b"closed" in unwritten.stderr


def shell(command: str, folder) -> subprocess.CompletedProcess:
    """Run a real `hasn` in a shell, because only a shell can close streams."""
    line = f"{shlex.quote(sys.executable)} -m hasn_cli {command}"
    return subprocess.run(["sh", "-c", line], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True)


def on_terminal(folder, *args: object, stdout=None) -> tuple[int, str]:
    """Exit code and terminal output of a `hasn` with stderr on a terminal; with `stdout` None, stdout is there too."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "hasn_cli", *map(str, args)],
        cwd=folder,
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        shown += piece
    os.close(ours)
    return child.wait(), shown.decode()


HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor


def test_bars_are_drawn_on_a_terminal_and_cleared(tmp_path):
    save(tmp_path / "a.png", (96, 96))
    save(tmp_path / "b.png", (96, 96))
    code, text = on_terminal(tmp_path, "upscale", "a.png", "b.png", "-s", 2)
    assert code == 0
    assert "2 pictures" in text and "━" in text and "MP" in text
    assert "a_x2.png" in text and "2 done" in text


def test_json_goes_to_stdout_though_stderr_is_a_terminal_with_bars(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    with (tmp_path / "events").open("wb") as events:
        code, text = on_terminal(tmp_path, "upscale", "a.png", "b.png", "-s", 2, "--json", stdout=events)
    kinds = [json.loads(line)["event"] for line in (tmp_path / "events").read_text().splitlines()]
    assert code == 0
    assert kinds[-1] == "summary" and kinds.count("done") == 2
    assert "2 pictures" in text and '"event"' not in text


def test_json_on_the_terminal_itself_is_not_mixed_with_bars(tmp_path):
    save(tmp_path / "a.png")
    code, text = on_terminal(tmp_path, "upscale", "a.png", "-s", 2, "--json")
    events = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert code == 0 and events[-1]["event"] == "summary"
    assert "━" not in text


def test_when_the_reader_of_events_ends_the_cursor_comes_back_and_the_exit_code_is_right(tmp_path):
    save(tmp_path / "a.png")
    reader, writer = os.pipe()
    os.close(reader)
    code, text = on_terminal(tmp_path, "upscale", "a.png", "-s", 2, "--json", stdout=writer)
    os.close(writer)
    assert code == 1
    assert text.count(HIDE) == text.count(SHOW) > 0
    assert text.rindex(SHOW) > text.rindex(HIDE) and "Traceback" not in text


def test_an_endless_stream_that_is_no_picture_is_refused_at_once(tmp_path):
    yes = subprocess.Popen(["yes"], stdout=subprocess.PIPE)
    try:
        done = process("upscale", "-", "-o", tmp_path / "a.png", stdin=yes.stdout, timeout=300)
    finally:
        yes.kill()
        yes.stdout.close()
        yes.wait()
    assert done.returncode == 1 and b"not a picture" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_termination_and_a_closed_terminal_end_it_soon_with_a_summary_and_130(tmp_path, number):
    save(tmp_path / "large.png", (1500, 1500))
    child = subprocess.Popen(
        [sys.executable, "-m", "hasn_cli", "upscale", "large.png", "--json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        for line in child.stdout:
            if json.loads(line)["event"] == "progress":
                break
        child.send_signal(number)
        out, err = child.communicate(timeout=300)
    finally:
        child.kill()
    assert child.returncode == 130
    assert json.loads(out.splitlines()[-1])["interrupted"] is True
    assert b"interrupted" in err and b"Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["large.png"]


def test_completion_scripts_are_given_for_three_shells(hasn):
    for shell in ("bash", "zsh", "fish"):
        result = hasn("completion", shell)
        assert result.code == 0 and b"_HASN_COMPLETE" in result.out
    done = subprocess.run(
        [sys.executable, "-m", "hasn_cli"],
        env={**os.environ, "_HASN_COMPLETE": "bash_complete", "COMP_WORDS": "hasn ups", "COMP_CWORD": "1"},
        capture_output=True,
    )
    assert b"upscale" in done.stdout


def test_neither_a_pipe_nor_a_device_is_replaced_by_a_picture(hasn, tmp_path):
    save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    result = hasn("upscale", "a.png", "-s", 2, "-o", "pipe.png", "--overwrite")
    assert result.code == 1 and "not a regular file" in result.err and (tmp_path / "pipe.png").is_fifo()


def test_names_that_are_not_unicode_or_contain_control_characters_do_no_harm(hasn, tmp_path):
    name = os.fsdecode(b"q\xff\x1b[31m\n.png")
    result = hasn("upscale", name, "--json")
    assert result.code == 1
    assert result.events[0]["input"] == name
    assert (
        len([line for line in result.err.splitlines() if line.startswith("error:")]) == 1
        and "\x1b[31m" not in result.err
    )


def test_a_skipped_name_is_printed_without_its_control_characters(hasn, tmp_path):
    save(tmp_path / "in/a\x1b[31m.png")
    save(tmp_path / "in/a\x1b[31m_x4.png")
    result = hasn("upscale", "in", "-o", "out/", "-v")
    assert "\\x1b[31m_x4.png  left out" in result.err and "\x1b" not in result.err


def test_a_run_that_cannot_start_is_reported_in_json(hasn, tmp_path):
    save(tmp_path / "a.png")
    result = hasn("upscale", "a.png", "--json", "-w", "nowhere.pth")
    assert result.code == 1 and "nowhere.pth" in result.events[-1]["error"] and result.err.count("error:") == 1
    summary = hasn("upscale", "a.png", "--json", "-d", "cuda:77").events[-1]
    assert "cuda" in summary["error"]


def test_an_empty_argument_does_not_mean_the_current_folder(hasn, tmp_path):
    save(tmp_path / "a.png")
    assert hasn("upscale", "", "-s", 2).code == 2
    assert hasn("upscale", "a.png", "-o", "").code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_hasn_alone_shows_the_help_and_no_error(hasn):
    result = hasn()
    assert b"Commands:" in result.out and "error" not in result.err


@pytest.mark.parametrize("format", ["gif", "png", "webp"])
def test_the_first_frame_alone_is_enlarged_when_asked_for(hasn, film, format, tmp_path):
    result = hasn("upscale", "film.gif", "-s", "2", "-f", format, "--first-frame", "--json")
    assert result.code == 0
    assert [event["frames"] for event in result.events if "frames" in event] == [1]
    with Image.open(tmp_path / f"film_x2.{format}") as found:
        assert (getattr(found, "n_frames", 1), found.size) == (1, (40, 32))


@pytest.mark.parametrize(("given", "lossless"), [([], True), (["--quality", "50"], False), (["--lossless"], True)])
def test_lossless_input_stays_lossless_unless_a_quality_is_given(hasn, tmp_path, given, lossless):
    save(tmp_path / "a.webp", lossless=True)
    assert hasn("upscale", "a.webp", "-s", "2", *given).code == 0
    assert (b"VP8L" in (tmp_path / "a_x2.webp").read_bytes()) == lossless


def test_characters_that_stdout_cannot_encode_are_replaced():
    found = process("upscale", "--help", env=os.environ | {"PYTHONIOENCODING": "latin-1"})
    assert found.returncode == 0 and b"png, jpg, webp, tiff, ?" in found.stdout
