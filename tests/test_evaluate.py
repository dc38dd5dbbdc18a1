"""`hasn evaluate` prints the published numbers, and clear errors."""

from __future__ import annotations

import csv
import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from hasn_cli.cli.main import run
from hasn_cli.resize import resize
from hasn_cli.weights.catalogue import entries


@pytest.fixture
def folders(tmp_path):
    """Two HR pictures (one of odd sides, one gray) and their LR pictures by the two usual names."""
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    hr.mkdir()
    lr.mkdir()
    y, x = np.mgrid[:51, :67]
    color = np.stack([127 + 120 * np.sin(x / 3 + y / (4 + c)) for c in range(3)], -1).astype(np.uint8)
    gray = color[:48, :64, :1]
    for name, image in (("a", color), ("b10", np.repeat(gray, 3, -1))):
        Image.fromarray(image[..., 0] if name == "b10" else image).save(hr / f"{name}.png")
        cut = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
        Image.fromarray(resize(cut, scale=0.5)).save(lr / (f"{name}.png" if name == "a" else f"{name}x2.png"))
    return hr, lr


def evaluate(capsys, *arguments):
    code = run(["evaluate", *map(str, arguments), "-d", "cpu"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_released_weights_nearly_give_the_published_figure(shared, capsys):
    """Published is 32.18 dB, which the network alone gives. The mirrored border costs these weights 0.03 dB."""
    folder = shared / "bench" / "Set5" / "x4"
    released = shared / "weights" / "HASN_x4_released.pth"
    code, out, _ = evaluate(capsys, folder / "HR", "-s", 4, "--lr", folder / "LR", "-w", released, "-f", "json")
    mean = json.loads(out)["mean"]
    assert code == 0
    assert mean["psnr_y"] == pytest.approx(32.15, abs=0.01)
    assert mean["bicubic_psnr_y"] == pytest.approx(28.43, abs=0.01)
    assert mean["bicubic_ssim_y"] == pytest.approx(0.811, abs=0.001)


@pytest.mark.parametrize("entry", list(entries(["clean"])), ids=lambda entry: f"x{entry.scale}")
def test_the_weights_in_the_box_score_what_their_card_says(shared, capsys, entry):
    folder = shared / "bench" / "Set5" / f"x{entry.scale}"
    _, out, _ = evaluate(capsys, folder / "HR", "-s", entry.scale, "--lr", folder / "LR", "-w", "clean", "-f", "json")
    mean = json.loads(out)["mean"]
    assert mean["psnr_y"] == pytest.approx(entry.psnr["Set5"], abs=0.01)
    assert mean["psnr_y"] > mean["bicubic_psnr_y"] + 1


def test_lr_pictures_given_or_made_score_the_same(folders, capsys):
    made, given = (
        json.loads(evaluate(capsys, folders[0], "-s", 2, "-f", "json", *lr)[1]) for lr in ([], ["--lr", folders[1]])
    )
    for one, other in zip([*made["pictures"], made["mean"]], [*given["pictures"], given["mean"]], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    values = [picture["psnr_y"] for picture in made["pictures"]]
    assert made["mean"]["psnr_y"] == pytest.approx(sum(values) / 2)


def test_table_and_csv_hold_each_picture_and_the_mean(folders, capsys, tmp_path):
    _, table, _ = evaluate(capsys, folders[0], "-s", 2)
    assert [line.split()[0] for line in table.splitlines() if line[0] != "─"] == ["picture", "a.png", "b10.png", "mean"]
    code, out, _ = evaluate(capsys, folders[0], "-s", 2, "-f", "csv", "-o", tmp_path / "scores.csv")
    assert (code, out) == (0, "")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "scores.csv").read_text())))
    assert [row["name"] for row in rows] == ["a.png", "b10.png", "mean"]
    assert f"{float(rows[-1]['psnr_y']):.2f}" in table.splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="file names elsewhere are Unicode")
@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_a_name_that_is_not_unicode_is_escaped(folders, capsys, tmp_path, form):
    (folders[0] / "a.png").rename(folders[0] / os.fsdecode(b"caf\xe9.png"))
    code, _, _ = evaluate(capsys, folders[0], "-s", 2, "-f", form, "-o", tmp_path / "scores")
    assert code == 0
    assert "caf" in (tmp_path / "scores").read_text("utf-8")


def test_a_perfect_score_is_null_in_json(capsys, tmp_path):
    Image.new("RGB", (40, 40), (90, 90, 90)).save(tmp_path / "flat.png")
    code, out, _ = evaluate(capsys, tmp_path, "-s", 2, "-f", "json")

    def refuse(name):
        raise AssertionError(name)

    scores = json.loads(out, parse_constant=refuse)
    assert code == 0
    assert scores["pictures"][0]["bicubic_psnr_y"] is None


def test_a_picture_of_one_colour_does_not_spoil_the_mean(folders, capsys):
    before = json.loads(evaluate(capsys, folders[0], "-s", 2, "-f", "json")[1])["mean"]
    Image.new("RGB", (40, 40), (90, 90, 90)).save(folders[0] / "flat.png")
    code, out, err = evaluate(capsys, folders[0], "-s", 2, "-f", "json")
    assert code == 0 and "leaves out 1 of 3" in err
    assert {**json.loads(out)["mean"], "seconds": 0} == {**before, "seconds": 0}
    assert "nan" not in evaluate(capsys, folders[0], "-s", 2)[1]


def test_linked_pictures_count_and_skipped_ones_are_reported(folders, capsys, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in folders[0].iterdir():
        (linked / path.name).symlink_to(path)
    Image.new("RGB", (102, 134), (9, 9, 9)).save(linked / "a_x2.png")
    code, out, err = evaluate(capsys, linked, "-s", 2, "-f", "json")
    assert [picture["name"] for picture in json.loads(out)["pictures"]] == ["a.png", "b10.png"]
    assert (code, err.count("skipped:")) == (0, 1) and "a_x2.png: an output of hasn" in err


def test_a_dash_is_stdout(folders, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = evaluate(capsys, folders[0], "-s", 2, "-f", "json", "-o", "-")
    assert code == 0 and len(json.loads(out)["pictures"]) == 2 and not (tmp_path / "-").exists()


@pytest.mark.parametrize(
    ("target", "message"), [("a.png/scores.csv", "a.png is a file, not a folder"), (".", "not a regular file")]
)
def test_a_file_that_cannot_be_written_is_reported_before_the_work(folders, capsys, monkeypatch, target, message):
    monkeypatch.setattr("hasn_cli.evaluation.benchmark.benchmark", lambda *_, **__: pytest.fail("begun"))
    monkeypatch.chdir(folders[0])
    assert message in evaluate(capsys, folders[0], "-s", 2, "-o", target, "--overwrite")[2]


def test_what_cannot_be_measured_is_an_error(folders, capsys, tmp_path):
    hr, lr = folders
    (tmp_path / "empty").mkdir()
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    Image.new("RGB", (12, 12)).save(tiny / "t.png")
    speck = tmp_path / "speck"
    speck.mkdir()
    Image.new("RGB", (3, 3)).save(speck / "s.png")
    for arguments, code, message in [
        ([tmp_path / "none"], 2, "is not a folder"),
        ([tmp_path / "empty"], 2, "holds no pictures"),
        ([tiny, "-s", 2], 1, "t.png: SSIM needs"),
        ([speck, "-s", 4], 1, "s.png is too small to be reduced 4 times"),
        ([hr, "-s", 2, "--lr", hr.parent / "tiny"], 2, "no LR picture for a.png"),
        ([hr, "-s", 3, "--lr", lr], 1, "a.png is no x3 reduction of "),
        ([hr, "-s", 2, "-o", speck / "s.png" / "file"], 1, "s.png"),
    ]:
        found, out, error = evaluate(capsys, *arguments)
        assert (found, out) == (code, ""), error
        assert message in error


def test_jpeg_is_what_pillow_saves_of_the_lr_picture(folders, capsys, tmp_path):
    saved = tmp_path / "saved"
    saved.mkdir()
    for path in folders[1].iterdir():
        Image.open(path).convert("RGB").save(saved / f"{path.stem}.jpg", quality=60, subsampling="4:2:0")
    given = json.loads(evaluate(capsys, folders[0], "-s", 2, "-f", "json", "--lr", saved)[1])
    made = json.loads(evaluate(capsys, folders[0], "-s", 2, "-f", "json", "--jpeg", "60")[1])
    assert [picture["jpeg"] for picture in made["pictures"]] == [60, 60]
    for name in ("psnr_y", "ssim_y", "psnr_b", "bicubic_psnr_y", "bicubic_psnr_b"):
        assert made["means"][0][name] == pytest.approx(given["mean"][name])


def test_each_jpeg_quality_is_a_line_of_the_table(folders, capsys):
    code, table, _ = evaluate(capsys, folders[0], "-s", 2, "--jpeg", "90,20")
    assert code == 0
    head, *lines = table.splitlines()
    assert head.split() == ["JPEG", "PSNR-Y", "bicubic", "gain", "SSIM-Y", "bicubic", "PSNR-B", "bicubic"]
    assert [line.split()[0] for line in lines] == ["90", "20"]
    assert float(lines[0].split()[2]) > float(lines[1].split()[2]) + 1
    assert all(float(line.split()[6]) <= float(line.split()[1]) for line in lines)


@pytest.mark.parametrize("qualities", ["", "high", "90,,40", "0", "101", "75.5"])
def test_jpeg_qualities_are_whole_numbers_from_1_to_100(folders, capsys, qualities):
    code, _, error = evaluate(capsys, folders[0], "-s", 2, "--jpeg", qualities)
    assert code == 2
    assert "from 1 (smallest file) to 100" in error
