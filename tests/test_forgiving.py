"""What people type in a hurry is guessed if that is safe; otherwise the error says what to type instead."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import save, size_of
from PIL import Image

from hasn_cli import upscale
from hasn_cli.batch import remote
from hasn_cli.batch.jobs import find_jobs
from hasn_cli.console import printable
from hasn_cli.errors import HasnError, ImageError, UsageError
from hasn_cli.evaluation.pictures import read_all

# --- commands ---


@pytest.mark.parametrize(
    "words", [["a.png", "-s", "2"], ["-s", "2", "a.png"], ["-v", "a.png", "-s", "2"], ["in", "-s", "2"]]
)
def test_a_path_alone_means_upscale(hasn, tmp_path, words):
    save(tmp_path / "a.png")
    save(tmp_path / "in/a.png")
    assert hasn(*words).code == 0
    assert size_of(tmp_path / ("in/a_x2.png" if "in" in words else "a_x2.png")) == (40, 32)


def test_a_pipe_alone_means_upscale(hasn, tmp_path):
    data = save(tmp_path / "a.png").read_bytes()
    assert hasn("-", "-s", "2", stdin=data).out.startswith(b"\x89PNG")


def test_the_error_for_a_missing_picture_says_that_upscale_was_assumed(hasn):
    result = hasn("gone.jpg")
    assert result.code == 1
    assert "gone.jpg: no such file" in result.err and "hasn upscale" in result.err


@pytest.mark.parametrize(("word", "meant"), [("upsacle", "upscale"), ("compair", "compare"), ("wieghts", "weights")])
def test_a_mistyped_command_is_recognised(hasn, word, meant):
    result = hasn(word, "a.png")
    assert result.code == 2
    assert f"Did you mean {meant}?" in result.err


def test_a_command_wins_over_a_folder_of_its_name(hasn, tmp_path):
    (tmp_path / "doctor").mkdir()
    assert "Usage: hasn doctor" in hasn("doctor", "--help").out.decode()


# --- inputs and outputs ---


def test_own_outputs_among_the_arguments_are_left_out_with_a_line(hasn, tmp_path):
    for name in ("a.png", "b.png"):
        save(tmp_path / name)
    assert hasn("upscale", "a.png", "b.png", "-s", "2").code == 0
    again = hasn("upscale", "a.png", "a_x2.png", "b.png", "b_x2.png", "-s", "2", "--skip-existing")
    assert again.code == 0
    assert "left out 2 pictures that hasn made" in again.err and "2 skipped" in again.err
    assert hasn("upscale", "a_x2.png", "-s", "2").code == 0  # alone, it is meant
    assert size_of(tmp_path / "a_x2_x2.png") == (80, 64)


def test_a_repeated_batch_says_once_that_the_outputs_exist(hasn, tmp_path):
    names = [f"{letter}.png" for letter in "abc"]
    for name in names:
        save(tmp_path / name)
    assert hasn("upscale", *names, "-s", "2").code == 0
    again = hasn("upscale", *names, "-s", "2")
    assert again.code == 1
    lines = again.err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "error: 3 outputs exist already, the first is a_x2.png"
    assert all(option in lines[1] for option in ("--resume", "--overwrite", "--skip-existing"))
    assert lines[2].startswith("0 done, 3 failed")


def test_each_failure_is_named_once_and_a_hint_too(hasn, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"broken")
    err = hasn("upscale", "a.png", "b.png", "gone.png").err
    assert all(err.count(name) == 1 for name in ("a.png: ", "b.png: "))


@pytest.mark.parametrize("output", ["b.png", "out/"])
def test_a_second_name_that_does_not_exist_may_be_the_output(hasn, tmp_path, output):
    save(tmp_path / "a.png")
    assert f"-o {output}" in hasn("upscale", "a.png", output, "--dry-run").err


def test_subfolders_that_are_left_out_are_reported(hasn, tmp_path):
    for name in ("a.png", "x/b.png", "y/c.png", ".hidden/d.png"):
        save(tmp_path / "in" / name)
    assert "2 subfolders left out; -r includes them" in hasn("upscale", "in", "-s", "2", "--dry-run").err
    assert "left out" not in hasn("upscale", "in", "-s", "2", "--dry-run", "-r").err
    assert "left out" not in hasn("upscale", "in", "-s", "2", "--dry-run", "-q").err


def test_a_percent_encoded_file_url_is_decoded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a b.png")
    (job,) = find_jobs([f"file://{tmp_path.as_posix()}/a%20b.png"])
    assert job.source == tmp_path / "a b.png" and job.problem is None


@pytest.mark.parametrize(
    ("url", "command"),
    [("https://x/a.png", "pip install aiohttp requests"), ("s3://x/a.png", "s3fs"), ("gs://x/a.png", "gcsfs")],
)
def test_a_missing_driver_is_named_with_the_command_that_installs_it(url, command, monkeypatch):
    core = pytest.importorskip("fsspec.core")

    def missing(url):
        raise ImportError("Install it")

    monkeypatch.setattr(core, "url_to_fs", missing)
    with pytest.raises(HasnError) as caught:
        remote.filesystem(url)
    assert command in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/some/a.jpg", "a_x4.jpg"),
        ("https://host/a%20b.png?size=9", "a b_x4.png"),
        ("https://host/..%2F..%2Fetc%2Fa.png", "a_x4.png"),
    ],
)
def test_a_picture_from_the_web_is_written_to_the_current_folder(url, name, monkeypatch):
    monkeypatch.setattr(remote, "filesystem", lambda url: (None, url))
    (job,) = find_jobs([url])
    assert job.source == url and job.target == Path(name)


def test_the_former_name_of_the_input_limit_works_and_is_not_shown(hasn, tmp_path):
    save(tmp_path / "a.png", (200, 100))
    for name in ("--max-megapixels", "--max-input-megapixels"):
        assert hasn("upscale", "a.png", "-s", "2", name, "0.01", "--dry-run").code == 1
    shown = hasn("upscale", "--help").out.decode()
    assert "--max-input-megapixels" in shown and "--max-megapixels" not in shown


def test_weights_are_downloaded_only_by_name(hasn):
    result = hasn("weights", "pull")
    assert result.code == 2 and "hasn weights pull OWNER/REPO" in result.err


def test_the_default_weights_need_no_name(hasn):
    assert len(hasn("weights", "path").out.splitlines()) == 3
    assert b"hasn_x4.safetensors" in hasn("weights", "info").out


def test_a_comparison_in_a_pipe_says_why_it_shows_nothing(hasn, tmp_path):
    save(tmp_path / "a.png")
    result = hasn("compare", "a.png", "--terminal")
    assert result.code == 0
    assert "nothing is shown: stdout is not a terminal" in result.err and "-o sheet.png" in result.err


# --- lines ---


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), (None, None)])
def test_error_lines_have_colours_only_where_they_are_wanted(tmp_path, variable, value):
    save(tmp_path / "a.png")
    environment = {key: text for key, text in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "hasn_cli", "upscale", "a.png", "-s", "99"],
        cwd=tmp_path,
        stderr=theirs,
        env=environment | ({variable: value} if variable else {}),
    )
    os.close(theirs)
    assert child.wait() == 2
    shown = os.read(ours, 65536)
    os.close(ours)
    assert b"error:" in shown
    assert (b"\x1b[" in shown) == (variable is None)


@pytest.mark.parametrize("name", ["n" * 245 + ".png", "n " * 120 + ".png", "é\udcff" * 80 + ".png"])
def test_a_long_name_leaves_the_reason_in_view(hasn, tmp_path, name):
    (line, *_) = hasn("upscale", name).err.splitlines()
    assert line.endswith("no such file")
    assert len(line) < 130


def test_a_shortened_line_keeps_both_ends():
    text = printable("a" * 600 + " exists already")
    assert text.startswith("aaa") and text.endswith("exists already") and len(text) < 130


# --- signals ---


def test_a_run_under_nohup_survives_a_closed_terminal(tmp_path):
    save(tmp_path / "a.png", (150, 150))
    child = subprocess.Popen(
        [sys.executable, "-m", "hasn_cli", "upscale", "a.png", "-s", "2", "--json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),  # as nohup does
    )
    try:
        for line in child.stdout:
            if b'"progress"' in line:
                break
        child.send_signal(signal.SIGHUP)
        child.communicate(timeout=300)
    finally:
        child.kill()
    assert child.returncode == 0
    assert size_of(tmp_path / "a_x2.png") == (300, 300)


# --- Python ---


def test_the_python_call_takes_bytes_files_and_sizes(tmp_path):
    path = save(tmp_path / "a.png")
    by_path = np.asarray(upscale(path, 2))
    assert np.array_equal(np.asarray(upscale(path.read_bytes(), 2)), by_path)
    with path.open("rb") as file:
        assert np.array_equal(np.asarray(upscale(file, 2)), by_path)
    assert upscale(path, width=30).size == (30, 24)
    assert upscale(path, height=32).size == (40, 32)
    assert upscale(path, fit=(1000, 20)).size == (25, 20)
    assert upscale(path, width=30, height=30, stretch=True).size == (30, 30)
    with pytest.raises(UsageError, match="excludes"):
        upscale(path, 2, width=30)
    with pytest.raises(ImageError, match="would distort"):
        upscale(path, width=30, height=30)
    with path.open(encoding="latin-1") as text, pytest.raises(ImageError) as caught:
        upscale(text)
    assert '"rb"' in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("shape", "hint"), [((3, 20, 16), r"C×H×W.*np\.moveaxis"), ((1, 20, 16, 3), "one picture"), ((4, 4, 5), "H×W")]
)
def test_an_array_of_another_layout_gets_a_hint(shape, hint):
    with pytest.raises(ImageError) as caught:
        upscale(np.zeros(shape, np.uint8))
    assert re.search(hint, caught.value.hint or "")


def test_an_image_is_still_an_image():
    assert upscale(Image.new("RGB", (16, 16)), 2).size == (32, 32)


# --- messages that say what to type instead ---


def test_a_word_unlike_any_command_is_not_taken_for_one(hasn):
    result = hasn("foto")
    assert result.code == 2
    assert "Did you mean" not in result.err and "hasn photo.jpg" in result.err


def test_a_large_scale_is_told_how_to_write_a_percentage(hasn, tmp_path):
    save(tmp_path / "a.png")
    assert "write 200%" in hasn("a.png", "-s", "200").err
    assert "%" not in hasn("a.png", "-s", "17").err


def test_an_unknown_format_is_told_the_known_ones(hasn, tmp_path):
    save(tmp_path / "a.png")
    hint = hasn("a.png", "-f", "docx").err.splitlines()[1]
    assert {"jpg,", "png,", "jxl,"} <= set(hint.split())


def test_a_file_used_as_a_folder_is_called_a_file(hasn, tmp_path):
    save(tmp_path / "a.png")
    assert "a.png is a file, not a folder" in hasn("a.png", "-o", "a.png/").err


def test_the_memory_named_by_the_hint_is_enough(hasn, tmp_path):
    save(tmp_path / "a.png")
    refused = hasn("a.png", "-s", "2", "--memory", "1M").err
    enough = re.search(r"hint: --memory (\d+M) is enough", refused)
    assert enough, refused
    assert hasn("a.png", "-s", "2", "--memory", enough[1]).code == 0


def test_a_picture_that_ends_early_is_described_in_plain_words(hasn, tmp_path):
    (tmp_path / "a.png").write_bytes(save(tmp_path / "whole.png").read_bytes()[:20])
    error = hasn("a.png").err
    assert "the file ends too early" in error and "unpack" not in error


def test_a_box_that_cannot_be_filled_is_told(hasn, tmp_path):
    save(tmp_path / "a.png")  # 20×16, so at most 320×256
    assert "--fit 4000x4000 is not reached: 16 times is the limit" in hasn("a.png", "--fit", "4000x4000").err
    assert size_of(tmp_path / "a_4000x4000.png") == (320, 256)
    assert "not reached" not in hasn("a.png", "--fit", "320x4000").err


def test_help_shows_defaults_without_ranges_and_brackets(hasn):
    for command in (["doctor"], ["export"], ["weights", "path"], ["upscale"]):
        text = hasn(*command, "--help").out.decode()
        assert "<=" not in text and ">=" not in text and "(5)" not in text


def test_a_wrong_box_in_python_is_told_the_right_form():
    with pytest.raises(UsageError, match="is not a box"):
        upscale(np.zeros((8, 8), np.uint8), fit="640x480")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.png", "-j", "many"), "'many' is not a whole number of at least 1"),
        (("doctor", "--seconds", "long"), "'long' is not a number from 0 to 600"),
        (("train", "in", "-o", "run", "--rate", "0"), "'0' is not a number above 0"),
        (("export", "--onnx", "a.onnx", "-s", "5"), "'5' is not a whole number from 2 to 4"),
    ],
)
def test_a_wrong_number_is_told_the_range_in_words(hasn, tmp_path, words, message):
    save(tmp_path / "a.png")
    result = hasn(*words)
    assert result.code == 2
    assert message in result.err


def test_a_list_of_pictures_alone_means_upscale(hasn, tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "list").write_text("a.png\n")
    assert hasn("--files-from", "list", "-s", "2").code == 0
    assert size_of(tmp_path / "a_x2.png") == (40, 32)


@pytest.mark.parametrize("word", ["help", "version"])
def test_a_word_that_is_an_option_elsewhere_gets_the_option(hasn, word):
    assert f"Did you mean hasn --{word}?" in hasn(word).err


def test_a_second_picture_to_compare_is_told_where_it_belongs(hasn, tmp_path):
    save(tmp_path / "a.png")
    error = hasn("compare", "a.png", "b.png").err
    assert "--reference" in error and "-o" in error


def test_a_skipped_picture_is_named_once(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    told: list[tuple[str, str]] = []
    assert list(read_all([tmp_path / "a.png"], 1, lambda *skip: told.append(skip))) == []
    assert [name for name, _ in told] == [str(tmp_path / "a.png")]
    assert "a.png" not in told[0][1]


def test_the_hub_s_client_logs_nothing_from_its_first_use_on():
    code = """
from hasn_cli.weights.hub import HubId, _explained
with _explained(HubId("owner/repo")):
    from huggingface_hub.utils import logging
    logging.get_logger("huggingface_hub.utils._http").warning("retrying")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == ""


def test_a_picture_that_memory_forces_into_tiles_is_told_and_one_in_chosen_tiles_is_not(hasn, tmp_path):
    save(tmp_path / "a.png", size=(400, 300))
    needed = re.search(r"--memory (\d+)M is enough", hasn("a.png", "-s", "2", "--memory", "1M").err)
    assert needed
    forced = hasn("a.png", "-s", "2", "--memory", f"{needed[1]}M")
    assert re.search(r"warning: computed in \d+ tiles, because memory is short", forced.err)
    assert "warning" not in hasn("a.png", "-s", "2", "--tile", "64", "--overwrite").err


def test_a_training_run_is_told_at_once_that_its_folder_is_a_file(hasn, tmp_path):
    (tmp_path / "run").write_text("")
    (tmp_path / "in").mkdir()
    result = hasn("train", "in", "-o", "run", "--iterations", "1")
    assert result.code == 2
    assert "is a file, not a folder" in result.err


def test_a_folder_without_a_selected_picture_blames_the_selection(hasn, tmp_path):
    save(tmp_path / "in/a.png")
    assert "no pictures in this folder that --include and --exclude select" in hasn("in", "--include", "*.gif").err
    (tmp_path / "in/a.png").unlink()
    assert "select" not in hasn("in").err
