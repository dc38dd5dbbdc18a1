"""Small files and folders whose structure asks for far more work, memory or stack than their size suggests."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest

from hasn_cli.api import upscale
from hasn_cli.batch.remote import local_path
from hasn_cli.batch.walk import Walk
from hasn_cli.cli.options import Box, Bytes
from hasn_cli.errors import ImageError, UsageError, WeightsError
from hasn_cli.images import open_picture
from hasn_cli.images.color import is_profile, to_srgb
from hasn_cli.weights import file_sha256
from hasn_cli.weights.documents import read_front_matter
from hasn_cli.weights.header import read_shapes

IDENTITY = b"matf" + bytes(4) + struct.pack(">HH12f", 3, 3, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0)


def profile(elements: list[bytes]) -> bytes:
    """An RGB profile, version 4.4, with only a chain of processing elements for each intent."""
    starts = np.cumsum([16 + 8 * len(elements), *map(len, elements)])
    table = b"".join(struct.pack(">II", start, len(one)) for start, one in zip(starts, elements, strict=False))
    chain = b"mpet" + bytes(4) + struct.pack(">HHI", 3, 3, len(elements)) + table + b"".join(elements)
    start = 132 + 4 * 12
    tags = b"".join(struct.pack(">4sII", b"D2B%d" % intent, start, len(chain)) for intent in range(4))
    length = start + len(chain)
    head = struct.pack(">I4sI4s4s4s", length, b"test", 0x04400000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp"
    white = struct.pack(">iii", 63190, 65536, 54061)
    return head.ljust(68, b"\0") + white + bytes(48) + struct.pack(">I", 4) + tags + chain


def curves(segments: int) -> bytes:
    """A set of three curves with that many segments, whose bytes they share."""
    curve = b"curf" + bytes(4) + struct.pack(">HH", segments, 0)
    curve += struct.pack(f">{segments - 1}f", *np.linspace(0, 1, segments - 1))
    curve += (b"parf" + bytes(4) + struct.pack(">HH4f", 0, 0, 1, 1, 0, 0)) * segments
    places = struct.pack(">II", 36, len(curve)) * 3
    return b"cvst" + bytes(4) + struct.pack(">HH", 3, 3) + places + curve


@pytest.mark.parametrize("elements", [[IDENTITY] * 20_000, [curves(60_000)] * 2], ids=["matrices", "segments"])
def test_a_profile_of_thousands_of_elements_or_segments_costs_no_time(elements):
    pixels = np.full((4, 4, 3), 100, np.uint8)
    began = time.process_time()
    assert np.array_equal(to_srgb(pixels, profile(elements)), pixels)  # as with any profile that is broken
    assert time.process_time() - began < 5  # without the check: over a minute


def test_a_profile_of_a_few_elements_is_used():
    assert is_profile(profile([IDENTITY] * 3))
    assert not is_profile(profile([IDENTITY] * 65))


def tiff(entries: dict[int, tuple[int, int, int]], pages: int, blob: bytes) -> bytes:
    """A TIFF whose pages all have the same entries: tag → type, count, value or offset; `blob` begins at 8."""
    table = struct.pack("<H", len(entries))
    table += b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(entries.items()))
    at = 8 + len(blob)
    size = len(table) + 4
    links = [at + size * page for page in range(1, pages)] + [0]
    return b"II*\0" + struct.pack("<I", at) + blob + b"".join(table + struct.pack("<I", link) for link in links)


GRAY = {258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1)}


@pytest.mark.parametrize("side", [64, 16_000])
def test_a_tiff_without_all_of_its_tiles_is_refused(side):
    tile = 16 if side == 64 else 1  # the larger one took 5 GB in 1 KB
    entries = {256: (4, 1, side), 257: (4, 1, side), 322: (4, 1, tile), 323: (4, 1, tile)}
    data = tiff(GRAY | entries | {324: (4, 1, 8), 325: (4, 1, tile * tile)}, 1, bytes(256))
    with pytest.raises(ImageError, match="some of its tiles are missing"):
        open_picture(data)


def test_a_tiff_without_all_of_its_strips_is_refused():
    entries = {256: (4, 1, 16), 257: (4, 1, 16), 278: (4, 1, 4), 273: (4, 2, 8), 279: (4, 2, 16)}
    blob = struct.pack("<4I", 24, 88, 64, 64) + bytes(128)
    with pytest.raises(ImageError, match="some of its strips are missing"):
        open_picture(tiff(GRAY | entries, 1, blob))


def test_pages_of_a_tiff_cannot_share_a_long_table_of_strips():
    rows = 50_000
    blob = struct.pack("<I", 8) * rows + struct.pack("<I", 1) * rows
    entries = {256: (4, 1, 1), 257: (4, 1, rows), 278: (4, 1, 1), 273: (4, rows, 8), 279: (4, rows, 8 + 4 * rows)}
    assert open_picture(tiff(GRAY | entries, 1, blob)).size == (rows, 1)
    with pytest.raises(ImageError, match="more data than the file contains"):
        open_picture(tiff(GRAY | entries, 500, blob))


@pytest.mark.skipif(os.name == "nt", reason="no pipes or devices with names")
def test_weights_are_never_read_from_a_pipe_a_device_or_a_huge_file(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe.pth")
    (huge := tmp_path / "huge.safetensors").touch()
    os.truncate(huge, 30 << 30)
    (link := tmp_path / "link.pth").symlink_to("/dev/zero")
    for path, reason in ((pipe, "not a regular file"), (link, "not a regular file"), (huge, "the limit is 268 MB")):
        assert read_shapes(path) is None
        with pytest.raises(WeightsError, match=reason):
            file_sha256(path)


@pytest.mark.parametrize("value", ['!!int ""', "!!omap [x: 1]"])
def test_a_model_card_with_types_of_its_own_says_nothing(tmp_path, value):
    card = tmp_path / "README.md"
    card.write_text(f"---\nlicense: {value}\n---\n")
    assert read_front_matter(card) == {}


@pytest.fixture
def deep(tmp_path, monkeypatch):
    """A folder with a picture 600 folders below it, for each of which a recursive walk needs at least two calls."""
    (root := tmp_path / "deep").mkdir()
    monkeypatch.chdir(root)
    for _ in range(600):
        Path("d").mkdir()
        os.chdir("d")
    Path("a.png").touch()
    os.chdir(tmp_path)
    yield root
    shutil.rmtree(root)


def test_folders_may_lie_deeper_than_the_stack(deep):
    found = Walk(readable=frozenset({".png"}), recursive=True).files(deep)
    assert [path.name for path in found] == ["a.png"]
    assert len(found[0].relative_to(deep).parts) == 601


def test_the_outputs_of_each_folder_are_looked_up_only_where_a_journal_lies(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("hasn_cli.batch.journal.outputs_recorded", lambda folder, among: asked.append(folder) or set())
    for name in ("x", "y", "z"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    (tmp_path / "y" / ".hasn-journal.jsonl").touch()
    Walk(readable=frozenset({".png"}), recursive=True).files(tmp_path)
    assert asked == [tmp_path / "y"]


def test_a_nul_in_a_path_is_an_error_of_one_line():
    with pytest.raises(UsageError, match="NUL"):
        local_path("file:///a%00b.png")
    with pytest.raises(ImageError, match="NUL"):
        upscale("a\0b.png", scale=2)


@pytest.mark.parametrize(("kind", "value"), [(Bytes(), "9" * 5000), (Box(), "9" * 5000 + "x1")])
def test_an_endless_number_is_wrong_usage(kind, value):
    with pytest.raises(click.UsageError):
        kind.convert(value, None, None)


def test_ctrl_c_while_the_program_is_still_loading_prints_no_traceback():
    script = """
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from hasn_cli.__main__ import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
