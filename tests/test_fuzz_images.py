"""A damaged file gives a picture or an `ImageError`, within limits of time and memory, whatever the damage."""

from __future__ import annotations

import io
import json
import os
import random
import re
import resource
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from format_table import foreign_file, foreign_files
from mutations import mutated, restructured, with_true_checksums
from pictures import SKIMAGE, animation, full_metadata, interlaced, photo, picture
from PIL import Image

from hasn_cli.errors import HasnError, ImageError
from hasn_cli.images import FORMATS, READ_ONLY, EncodeOptions, Frame, open_picture, write_picture
from hasn_cli.images.codecs.plugins import is_available

MAX_PIXELS = 4_000_000
READABLE = [*FORMATS, *filter(is_available, READ_ONLY)]
MAX_SECONDS = 10.0
ROUNDS = {"quick": 60, "long": int(os.environ.get("HASN_FUZZ_ROUNDS", "5000"))}


def written(shown, format: str) -> bytes:
    buffer = io.BytesIO()
    write_picture(shown, buffer, format, EncodeOptions(lossless=True))
    return buffer.getvalue()


def seeds(format: str) -> list[bytes]:
    """Files to start from: one with everything that the format can hold, and real ones."""
    if format in READ_ONLY:
        return foreign_files(format)
    entry = FORMATS[format]
    full = {"metadata": full_metadata()}
    files = [written(picture(photo(), **full), format), written(picture(photo(9, 7, channels=1)), format)]
    if entry.alpha:
        files.append(written(picture(photo(channels=4), **full), format))
    if entry.deep:
        files.append(written(picture(photo(dtype=np.uint16)), format))
    if entry.animation:
        files.append(written(animation(), format))
    if entry.pages:
        pages = [Frame(photo()), Frame(photo(5, 6, channels=1))]
        files.append(written(picture(photo(), frames=pages, frame_count=2, paged=True), format))
    real = {
        "jpeg": ["rocket.jpg"],
        "png": ["horse.png", "chessboard_GRAY.png", "phantom.png"],
        "gif": ["no_time_for_that_tiny.gif"],
        "tiff": ["multipage.tif", "multipage_rgb.tif"],
    }
    files += [(SKIMAGE / name).read_bytes() for name in real.get(format, [])]
    return [*files, foreign_file(format), *others(format)]


def others(format: str) -> list[bytes]:
    """Files that this program reads but never writes."""
    image = Image.fromarray(photo())
    kinds: dict[str, list[tuple[Image.Image, dict[str, object]]]] = {
        "jpeg": [(image, {"progressive": True}), (image.convert("CMYK"), {}), (image.convert("L"), {})],
        "png": [(image.quantize(16), {"bits": 4, "transparency": 3}), (image.convert("1"), {})],
        "tiff": [
            (image, {"compression": "tiff_lzw"}),
            (image, {"compression": "jpeg"}),
            (image.convert("1"), {"compression": "group4"}),
            (image.convert("CMYK"), {}),
            (image.quantize(16), {}),
        ],
        "bmp": [(image.quantize(16), {}), (image.convert("1"), {})],
        "gif": [(image.quantize(8), {"transparency": 3})],
        "tga": [(image.quantize(16), {}), (image, {})],
        "jpeg2000": [(image, {"irreversible": True, "quality_layers": [20]}), (image.convert("LA"), {})],
        "webp": [(image, {"quality": 50}), (image.convert("RGBA"), {"quality": 50})],
    }
    files = []
    for shown, options in kinds.get(format, []):
        buffer = io.BytesIO()
        shown.save(buffer, format.upper(), **options)
        files.append(buffer.getvalue())
    if format == "png":
        files += [interlaced(photo(), 8), interlaced(photo(9, 7, dtype=np.uint16), 16)]
    if format == "avif":
        files.append(bytes(imagecodecs.avif_encode(photo(dtype=np.uint16) >> 6, level=90, bitspersample=10)))
    if format == "ppm":
        files += [b"P1\n# one\n3 2\n101\n010\n", b"P4 9 2\n\xff\x80\x55\0", b"P3 2 1 99 1 2 3 4 5 99\n"]
    return files


def attempt(data: bytes, format: str, folder: Path) -> bool:
    """Read a file and write it again. Returns whether it was a picture.

    Raises:
        AssertionError: it took too long.
        Exception: any error that is not meant for users.
    """
    target = folder / "out"
    start = time.process_time()
    try:
        shown = open_picture(data, max_pixels=MAX_PIXELS, name="fuzz")
        write_picture(shown, target, "tiff" if shown.paged else "png", EncodeOptions(first_frame=True))
    except HasnError as error:
        assert isinstance(error, ImageError), error
        assert re.match(r"fuzz(, (frame|page) \d+)?: ", str(error)), error
        assert "\n" not in str(error)
        assert list(folder.iterdir()) == []
        return False
    finally:
        seconds = time.process_time() - start
        target.unlink(missing_ok=True)
        assert seconds < MAX_SECONDS, f"{format}: {seconds:.1f} s"
    return True


def fuzz(format: str, rounds: int, seed: int, folder: Path) -> tuple[int, int]:
    """The number of damaged files that were refused, and of those that were still pictures."""
    dice = random.Random(f"{format} {seed}")
    files = seeds(format)
    for data in files:
        assert attempt(data, format, folder), f"an undamaged {format} is not read"
    pictures = 0
    for _ in range(rounds):
        data = mutated(dice.choice(files), dice)
        if format == "png" and dice.random() < 0.7:
            data = with_true_checksums(data)
        # kept for debugging; written in advance, because a codec may crash the process
        (folder.parent / f"fuzz-{format}.bin").write_bytes(data)
        pictures += attempt(data, format, folder)
    return rounds - pictures, pictures


@pytest.mark.parametrize("format", READABLE)
def test_broken_files_give_an_error_or_a_picture_and_no_other_output(format, tmp_path, capfd):
    refused, _ = fuzz(format, ROUNDS["quick"], 0, tmp_path)
    assert refused > 0
    assert capfd.readouterr() == ("", "")


BATCH = 50  # mutations that one process reads, one after the other
MEMORY = 1 << 30  # bytes of address space that it may reserve beyond what it begins with
MOST_MEMORY = 500 * 2**20  # bytes that it may really take


@dataclass
class Tally:
    """What became of mutations."""

    refused: int = 0
    read: int = 0
    slowest: float = 0.0
    largest: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.refused += other.refused
        self.read += other.read
        self.slowest = max(self.slowest, other.slowest)
        self.largest = max(self.largest, other.largest)
        self.failures += other.failures


def watched(format: str, files: list[bytes], seeds: range, folder: Path) -> Tally:
    """Read mutations in a process of its own, under a limit of memory and a clock; go on after one that ends it."""
    tally = Tally()
    left = list(seeds)
    while left:
        receiving, sending = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(receiving)
                _read_all(format, files, left[:BATCH], folder, sending)
                os._exit(0)
            finally:
                os._exit(99)
        os.close(sending)
        with os.fdopen(receiving, "rb") as answers:
            lines = [json.loads(line) for line in answers.read().splitlines()]
        _, status = os.waitpid(child, 0)
        for line in lines:
            _note(tally, line, f"{format} {line['seed']}")
        done = len(lines)
        if (ended := os.waitstatus_to_exitcode(status)) and done < len(left[:BATCH]):
            tally.failures.append(f"{format} {left[done]}: ended by {ended}")
            done += 1
        left = left[done:]
        for file in folder.iterdir():
            file.unlink()
    return tally


def _note(tally: Tally, line: dict, name: str) -> None:
    tally.slowest, tally.largest = max(tally.slowest, line["seconds"]), max(tally.largest, line["peak"])
    tally.refused += line["found"] == "refused"
    tally.read += line["found"] == "read"
    if line["found"] not in ("refused", "read"):
        tally.failures.append(f"{name}: {line['found']}")
    elif line["peak"] > MOST_MEMORY:
        tally.failures.append(f"{name}: took {line['peak'] >> 20} MiB")
    elif line["seconds"] > MAX_SECONDS:
        tally.failures.append(f"{name}: took {line['seconds']:.1f} s")


def _read_all(format: str, files: list[bytes], seeds: list[int], folder: Path, sending: int) -> None:
    """In the child: read one mutation after the other and tell of each in a line."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, even in a codec's loop
    most = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        data = mutation(format, files, seed)
        signal.setitimer(signal.ITIMER_REAL, 12 * MAX_SECONDS)  # others may use the machine, too
        signal.setitimer(signal.ITIMER_PROF, 2 * MAX_SECONDS)
        began = time.process_time()
        try:
            found = "read" if attempt(data, format, folder) else "refused"
        except BaseException as error:
            found = repr(error)[:300]
        seconds = time.process_time() - began
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        line = {"seed": seed, "found": found, "seconds": seconds, "peak": peak}
        os.write(sending, json.dumps(line).encode() + b"\n")


def mutation(format: str, files: list[bytes], seed: int) -> bytes:
    """The mutation of that number, the same each time."""
    dice = random.Random(f"{format} {seed}")
    data = dice.choice(files)
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        data = restructured(data, format, dice) if dice.random() < 0.5 else mutated(data, dice)
        data = data or b"\0"
    return with_true_checksums(data) if format == "png" and dice.random() < 0.8 else data


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("format", READABLE)
def test_thousands_of_broken_files_end_soon_and_in_bounded_memory(format, tmp_path):
    tally = watched(format, seeds(format), range(ROUNDS["long"]), tmp_path)
    print(
        f"{format}: {tally.refused} refused, {tally.read} read, slowest {tally.slowest:.2f} s,"
        f" largest {tally.largest >> 20} MiB"
    )
    assert not tally.failures, "\n".join(tally.failures[:20])
    assert tally.refused > 0
