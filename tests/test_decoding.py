"""A decoder that crashes fails one picture, which is named, and the run continues, here and on a cluster."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image

from hasn_cli.batch import Done, Failed, Settings, Skipped, run_batch
from hasn_cli.batch.jobs import find_jobs
from hasn_cli.batch.pool import UpscalerPool
from hasn_cli.decoding import messages, pool
from hasn_cli.decoding.messages import InvalidMessage, header_from, receive, send, to_plain
from hasn_cli.decoding.pool import Closed, Decoders, in_use, open_picture
from hasn_cli.enlarge import Size
from hasn_cli.errors import HasnError, ImageError
from hasn_cli.images import Frame, Metadata, Picture, Text
from hasn_cli.images.picture import Shape
from hasn_cli.inference.planning import Plan, plan_on_cpu
from hasn_cli.serve.engine import Engine
from hasn_cli.watch import Watch

TWICE = Settings(size=Size(factor=2))
MOST = 256_000_000

# Put into the import path of the decoding processes: pictures that contain one of these words make them misbehave.
HARM = """
import sys

if any("hasn_cli.decoding.child" in argument for argument in sys.orig_argv):
    import ctypes, os, signal, time
    from hasn_cli.images import codecs

    real = codecs.read
    seen = []

    def read(format, source, limit):
        data = source.read()
        seen.append(data)
        if b"SEGFAULT" in data or (b"SECOND" in data and len(seen) > 1):
            ctypes.string_at(0)
        if b"KILLED" in data:
            os.kill(os.getpid(), signal.SIGKILL)
        if b"PRINTS" in data:
            os.write(1, b"a library speaks"), os.write(2, b"a library complains")
        if b"ENDLESS" in data:
            import hasn_cli.decoding.child as child
            import resource
            resource.setrlimit(resource.RLIMIT_CPU, (1, -1))
            while True:
                pass
        if b"GREEDY" in data:
            import resource
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, -1))
            bytearray(2 << 30)
        if b"SLEEPY" in data:
            time.sleep(3600)
        if b"EXITS" in data:
            os._exit(7)
        if b"BABBLES" in data:
            os.write(3, b"x" * 100), time.sleep(3600)
        return real(format, source, limit)

    codecs.read = read
"""


@pytest.fixture
def harmful(tmp_path_factory, monkeypatch) -> Path:
    """Make decoders misbehave with pictures that contain the words of `HARM`."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "sitecustomize.py").write_text(HARM)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(word: str = "", size: int = 4, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "bmp")
    return buffer.getvalue() + word.encode()


def save_fifty(folder: Path, word: str) -> Path:
    """Save 50 pictures, of which the 20th contains `word`."""
    (folder / "in").mkdir()
    for index in range(50):
        (folder / "in" / f"{index:02}.bmp").write_bytes(picture(word if index == 19 else "", seed=index))
    return folder / "in"


class Nearest:
    """Enlarges by repeating pixels, instead of the network."""

    device = SimpleNamespace(type="cpu")

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def plan(self, size: tuple[int, int], channels: int, itemsize: int) -> Plan:
        return plan_on_cpu(size, channels, itemsize, self.scale)

    def upscale(self, image, progress=None):
        return image.repeat(self.scale, 0).repeat(self.scale, 1)


@pytest.fixture
def no_network(monkeypatch) -> None:
    monkeypatch.setattr(UpscalerPool, "_load", lambda self, scale, device, photo: Nearest(scale))


@contextmanager
def decoders(most: int = 1):
    found = Decoders(most)
    try:
        with in_use(found):
            yield found
    finally:
        found.close()


def opened(data: bytes | Path) -> Picture:
    return open_picture(data, max_pixels=MOST, name="a.bmp").load()


def decoding_processes(parent: int | None = None) -> list[psutil.Process]:
    children = psutil.Process(parent).children(recursive=True)
    return [child for child in children if any("hasn_cli.decoding.child" in word for word in child.cmdline())]


def wait_until(condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# a picture that crashes its decoder


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("SEGFAULT", "a.bmp: the decoder crashed (segmentation fault)"),
        ("KILLED", "a.bmp: the decoder was killed, most likely because memory ran out"),
        ("GREEDY", "a.bmp: the decoder ran out of memory"),
        ("ENDLESS", "a.bmp: the decoder took far longer than a picture of its size should"),
        ("BABBLES", "a.bmp: the decoder gave no answer"),
        ("EXITS", "a.bmp: the decoder ended without an answer (exit code 7)"),
    ],
)
def test_the_error_says_what_happened_and_the_next_picture_is_decoded(harmful, word: str, message: str):
    with decoders():
        assert opened(picture()).size == (4, 4)
        with pytest.raises(ImageError) as caught:
            opened(picture(word))
        assert caught.value.message == message
        assert caught.value.hint
        assert opened(picture()).size == (4, 4)


def test_a_picture_that_fails_because_of_an_earlier_one_is_tried_again_in_a_fresh_process(harmful):
    with decoders():
        assert opened(picture()).size == (4, 4)
        assert opened(picture("SECOND")).size == (4, 4)


def test_pictures_that_are_open_survive_the_crash_of_another(harmful, tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (10, 90, 170, 250)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=100)
    with decoders():
        moving = open_picture(tmp_path / "a.png", max_pixels=MOST, name="a.png")
        coming = iter(moving.frames)
        shades = [next(coming).pixels[0, 0, 0], next(coming).pixels[0, 0, 0]]
        with pytest.raises(ImageError):
            opened(picture("SEGFAULT"))
        shades += [frame.pixels[0, 0, 0] for frame in coming]
        assert shades == [10, 90, 170, 250]


def test_output_printed_by_a_library_is_discarded(harmful, capfd):
    with decoders():
        assert opened(picture("PRINTS")).size == (4, 4)
    assert capfd.readouterr() == ("", "")


def test_one_of_fifty_pictures_fails_by_name_also_when_the_run_is_resumed(harmful, folder, no_network):
    jobs = find_jobs([save_fifty(folder, "SEGFAULT")], "out/")
    events = list(run_batch(jobs, TWICE))
    failed = [event for event in events if isinstance(event, Failed)]
    assert [str(event.error) for event in failed] == [f"{folder}/in/19.bmp: the decoder crashed (segmentation fault)"]
    assert len([event for event in events if isinstance(event, Done)]) == 49
    assert len(list((folder / "out").glob("*.bmp"))) == 49
    events = list(run_batch(jobs, TWICE, resume=True))
    assert [event.job.name for event in events if isinstance(event, Failed)] == [f"{folder}/in/19.bmp"]
    assert len([event for event in events if isinstance(event, Skipped)]) == 49


@pytest.mark.slow
def test_the_command_fails_one_picture_of_fifty_by_name(harmful, folder):
    save_fifty(folder, "SEGFAULT")
    for more in ((), ("--resume",)):
        command = [sys.executable, "-m", "hasn_cli", "upscale", "in", "-o", "out/", "-s", "2", *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1
        assert "in/19.bmp: the decoder crashed (segmentation fault)" in done.stderr
        assert len(list((folder / "out").glob("*.bmp"))) == 49


@pytest.mark.slow
def test_on_a_cluster_one_picture_of_fifty_fails_by_name(harmful, folder):
    pytest.importorskip("distributed", reason="needs the cluster extra")
    save_fifty(folder, "SEGFAULT")
    for more in ((), ("--resume",)):
        command = [sys.executable, "-m", "hasn_cli", "upscale", "in", "-o", "out/", "-s", "2", "--cluster", "local:2"]
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=300)
        assert done.returncode == 1, done.stderr
        assert "in/19.bmp: the decoder crashed (segmentation fault)" in done.stderr
        assert len(list((folder / "out").glob("*.bmp"))) == 49
    assert decoding_processes() == []


def test_a_watch_survives_a_crash_even_of_a_single_picture(harmful, folder, no_network):
    (folder / "in").mkdir()
    (folder / "in" / "a.bmp").write_bytes(picture("SEGFAULT"))
    watching = Watch(folder / "in", folder / "out", TWICE, settle=0).run(iter([True] * 3))
    (failed,) = [event for event in watching if isinstance(event, Failed)]
    assert "the decoder crashed (segmentation fault)" in str(failed.error)


def test_the_server_s_engine_survives_a_crash(harmful, tmp_path, no_network):
    engine = Engine(TWICE, 1)
    try:
        for name, word in (("a", "SEGFAULT"), ("b", "")):
            (tmp_path / name).write_bytes(picture(word))
        with pytest.raises(ImageError, match="segmentation fault"):
            engine.compute(tmp_path / "a", tmp_path / "result", "a.bmp", TWICE, lambda event: None)
        engine.compute(tmp_path / "b", tmp_path / "result", "b.bmp", TWICE, lambda event: None)
        assert (tmp_path / "result").exists()
    finally:
        engine.close()


def test_a_dry_run_survives_a_crash_too(harmful, folder, no_network):
    from hasn_cli.batch import plan_batch

    jobs = find_jobs([save_fifty(folder, "SEGFAULT")], "out/")
    events = list(plan_batch(jobs, TWICE))
    assert [event.job.index for event in events if isinstance(event, Failed)] == [19]
    assert len(events) == 50


# nothing is left behind


def test_no_process_outlives_the_batch(folder, no_network):
    jobs = find_jobs([save_fifty(folder, "")], "out/")
    running = run_batch(jobs, TWICE)
    next(running)
    assert decoding_processes()
    running.close()
    assert decoding_processes() == []


def test_a_batch_is_stopped_while_a_decoder_is_busy(harmful, folder, no_network):
    jobs = find_jobs([save_fifty(folder, "SLEEPY")], "out/")
    running = run_batch(jobs, TWICE, workers=1)
    while len(list((folder / "out").glob("*.bmp"))) < 19:
        next(running)
    running.close()  # does not wait for the hour that the decoder would take
    assert decoding_processes() == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a signal of Unix")
@pytest.mark.parametrize("word", ["", "SLEEPY"])
def test_a_killed_parent_leaves_no_process_behind(harmful, folder, word: str):
    script = """
import sys
from pathlib import Path
from hasn_cli.decoding.pool import Decoders, in_use, open_picture
with in_use(Decoders(1)):
    open_picture(Path("a.bmp"), max_pixels=None, name="a")
    print("opened", flush=True)
    open_picture(Path("b.bmp"), max_pixels=None, name="b")
    print("idle", flush=True)
    sys.stdin.read()
"""
    Path("a.bmp").write_bytes(picture())
    Path("b.bmp").write_bytes(picture(word))
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"opened\n"
        if word:
            time.sleep(0.2)  # until it sleeps while decoding b
        else:
            assert parent.stdout.readline() == b"idle\n"
        (child,) = decoding_processes(parent.pid)
        child.send_signal(signal.SIGINT)  # a terminal sends it to both
        time.sleep(0.1)
        assert child.is_running()
        parent.kill()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_questions_after_the_end_are_refused():
    found = Decoders(1)
    with in_use(found):
        kept = open_picture(picture(), max_pixels=MOST, name="a")
        found.close()
        with pytest.raises(Closed):
            kept.load()


# how it is done


def test_the_process_that_decodes_imports_no_torch():
    code = "import sys, hasn_cli.decoding.child, hasn_cli.decoding.messages; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "False\n", done.stderr


def test_modules_of_the_working_folder_are_not_imported(folder):
    for name in ("PIL", "numpy", "json", "sitecustomize", "hasn_cli"):
        (folder / f"{name}.py").write_text("import os; os._exit(3)")
    with decoders():
        assert opened(picture()).size == (4, 4)


def test_if_no_process_can_be_started_pictures_are_decoded_in_this_one(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with decoders():
        assert opened(picture()).size == (4, 4)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with decoders():
        assert opened(picture()).size == (4, 4)


def test_a_single_picture_starts_no_process(folder, no_network, monkeypatch):
    monkeypatch.setattr("hasn_cli.batch.executors.threads.Decoders", lambda *_: pytest.fail("started"))
    Path("a.bmp").write_bytes(picture())
    assert any(isinstance(event, Done) for event in run_batch(find_jobs(["a.bmp"]), TWICE))


def test_errors_of_the_decoder_arrive_unchanged(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with decoders():
        with pytest.raises(ImageError, match=r"a\.png: not a picture of a known format") as caught:
            open_picture(tmp_path / "a.png", max_pixels=MOST, name="a.png")
        assert caught.value.hint
        assert "In the decoder's process" in caught.value.__notes__[0]
        with pytest.raises(ImageError, match="no such file"):
            open_picture(tmp_path / "none.png", max_pixels=MOST, name="none.png")


def test_another_process_is_started_when_waiting_costs_more(monkeypatch):
    monkeypatch.setattr(pool, "START_COST", 0.0)
    with decoders(most=2) as found:
        opened(picture())
        with found.lease(None), found.lease(None):
            assert len(decoding_processes()) == 2


# what comes back is checked


def whole() -> Picture:
    metadata = Metadata(icc=b"icc", exif=b"", dpi=(72, 72.5), text=(Text("a", "b\ud800", "en"),), srgb_intent=0)
    shapes = (Shape((4, 5), 3, np.dtype("uint16")), Shape((6, 7), 1, np.dtype("float32")))
    more = {"frame_count": 2, "paged": True, "lossless": False, "metadata": metadata, "page_shapes": shapes}
    return Picture("n", "tiff", (4, 5), 3, np.dtype("uint16"), (), **more)


def through_a_pipe(content: dict, blobs: list) -> tuple[dict, list]:
    pipe = io.BytesIO()
    send(pipe.write, content, blobs)
    pipe.seek(0)
    return receive(pipe.readinto)


def test_a_header_arrives_unchanged():
    blobs: list = []
    content, received = through_a_pipe({"picture": to_plain(whole(), blobs)}, blobs)
    assert vars(header_from(Picture, content["picture"], received, {"frames": ()})) == vars(whole())
    frame = to_plain(Frame(np.zeros(1), 40.0, b"p", (1, 2)), received := [])
    assert vars(header_from(Frame, frame, received, {"pixels": None})) == vars(Frame(None, 40.0, b"p", (1, 2)))


@pytest.mark.parametrize(
    "change",
    [
        {"size": [4, "5"]},
        {"size": [4]},
        {"size": 3},
        {"channels": 3.0},
        {"channels": True},
        {"dtype": "object"},
        {"dtype": "float64"},
        {"name": None},
        {"frames": []},
        {"__class__": "str"},
        {"page_shapes": [{"size": [1, 1]}]},
        {"metadata": {"icc": {"blob": 9}}},
        {"metadata": {"icc": {"blob": -1}}},
        {"metadata": {"icc": "text"}},
        {"metadata": []},
        {"loop": {}},
    ],
    ids=str,
)
def test_an_invalid_header_is_refused(change: dict):
    blobs: list = []
    plain = to_plain(whole(), blobs)
    with pytest.raises(InvalidMessage):
        header_from(Picture, plain | change, blobs, {"frames": ()})


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<I", 1 << 31),
        struct.pack("<I", 3) + b"[1]",
        struct.pack("<I", 2) + b"\xff{",
        struct.pack("<I", 30) + b'{"content": [], "blobs": [0]}  ',
        struct.pack("<I", 100_000) + b"[" * 100_000,
        *(
            struct.pack("<I", len(text)) + text
            for text in (json.dumps({"content": {}, "blobs": blobs}).encode() for blobs in ([-1], [1 << 40], ["a"], 3))
        ),
    ],
)
def test_an_invalid_message_is_refused(data: bytes):
    with pytest.raises(InvalidMessage):
        receive(io.BytesIO(data).readinto)


@pytest.mark.parametrize(
    "answer",
    [
        {"shape": [4, 4, 3], "dtype": "object"},
        {"shape": [4, 4], "dtype": "uint8"},
        {"shape": [1 << 20, 1 << 20, 3], "dtype": "uint8"},
        {"shape": [4, 4, 5], "dtype": "uint8"},
        {"shape": [0, 4, 3], "dtype": "uint8"},
        {"shape": [4, 4, 3], "dtype": "uint8", "frame": {"pixels": []}},
        {"error": "text"},
        {},
    ],
    ids=str,
)
def test_a_decoder_that_sends_an_invalid_frame_is_ended(monkeypatch, answer: dict):
    with decoders():
        kept = open_picture(picture(), max_pixels=MOST, name="a.bmp")
        monkeypatch.setattr(pool._Child, "ask", lambda *_: ({"frame": {}, **answer}, []))
        with pytest.raises(ImageError, match=r"a\.bmp: the decoder gave no answer"):
            kept.load()


def test_messages_of_other_kinds_cannot_be_sent():
    with pytest.raises(TypeError):
        to_plain(object(), [])
    assert messages.to_plain(np.float32(0.5), []) == 0.5
    assert issubclass(InvalidMessage, ValueError) and not issubclass(InvalidMessage, HasnError)
