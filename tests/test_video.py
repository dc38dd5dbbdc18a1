"""Videos: what is kept, what is refused, and how a run that was killed goes on."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import RATE, Recipe, frames_of, make_clip, smooth_frames, sound_packets, times_of
from hypothesis import given
from hypothesis import strategies as st

from hasn_cli.choice import choose_for_video
from hasn_cli.errors import HasnError, ImageError, OutputError, OutputExistsError, UsageError
from hasn_cli.video import segments
from hasn_cli.video.clip import Clip, probe
from hasn_cli.video.containers import container_for_name, default_container, is_video
from hasn_cli.video.encoding import choose_encoding, quality_options
from hasn_cli.video.enlarging import Result, enlarge_file, enlarge_stream
from hasn_cli.video.segments import decoding_times, folder_of
from hasn_cli.video.still import still

HASN = [sys.executable, "-m", "hasn_cli"]


def doubled(pixels: np.ndarray) -> np.ndarray:
    """The frame with each pixel four times, in place of a network."""
    return pixels.repeat(2, axis=0).repeat(2, axis=1)


def halved(pixels: np.ndarray) -> np.ndarray:
    """The mean of each 2×2 pixels."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    return pixels[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1).mean((1, 3))


def upscale(
    source: Path,
    target: Path,
    *,
    codec: Any = None,
    enlarge: Any = doubled,
    quality: int | None = 95,
    scale: int = 2,
    **options: Any,
) -> Result:
    """Enlarge a file without the network."""
    clip = probe(source)
    container = container_for_name(target.name) or ""
    size = clip.size[0] * scale, clip.size[1] * scale
    encoding = choose_encoding(clip, size, container, codec, None if codec == "ffv1" else quality)
    return enlarge_file(source, target, clip, encoding, container, enlarge, key="test", **options)


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 5 frames."""
    monkeypatch.setattr(segments, "FEWEST", 5)
    monkeypatch.setattr(segments, "MOST", 5)


def test_every_frame_keeps_its_time_and_its_pixels(tmp_path: Path, short_parts: None) -> None:
    frames = smooth_frames(23)
    source = make_clip(tmp_path / "a.mp4", frames, Recipe(sound=True))
    result = upscale(source, tmp_path / "b.mp4")
    assert result.frames == 23
    assert times_of(tmp_path / "b.mp4") == times_of(source)
    for large, small in zip(frames_of(tmp_path / "b.mp4", "yuv420p"), frames_of(source, "yuv420p"), strict=True):
        luma, before = large[:72, :, None], small[:36, :, None]
        assert np.abs(halved(luma) - before).mean() < 1


def test_sound_is_copied_byte_by_byte_and_stays_in_sync(tmp_path: Path, short_parts: None) -> None:
    source = make_clip(tmp_path / "a.mp4", smooth_frames(30), Recipe(sound=True))
    upscale(source, tmp_path / "b.mp4")
    assert sound_packets(tmp_path / "b.mp4") == sound_packets(source)
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.audio[0].metadata["language"] == "deu"


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_variable_frame_rate_is_kept(tmp_path: Path, short_parts: None, ending: str) -> None:
    times = [0, 40, 47, 200, 201, 360, 400, 1000, 1033, 1066, 1900]
    source = make_clip(tmp_path / f"a.{ending}", smooth_frames(len(times)), Recipe(times=times))
    upscale(source, tmp_path / f"b.{ending}")
    assert times_of(tmp_path / f"b.{ending}") == pytest.approx(times_of(source), abs=1e-6)


def test_rotation_pixel_aspect_colour_chapters_and_title_are_kept(tmp_path: Path) -> None:
    recipe = Recipe(rotation=90, pixel_aspect=Fraction(4, 3), colour=(9, 16, 9, 1), chapters=True, title="Holiday")
    source = make_clip(tmp_path / "a.mp4", smooth_frames(4), recipe)
    result = upscale(source, tmp_path / "b.mp4")
    assert result.notices == ()
    with av.open(str(tmp_path / "b.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.sample_aspect_ratio == Fraction(4, 3)
        context = stream.codec_context
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (9, 16, 9, 1)
        assert container.metadata["title"] == "Holiday"
        assert container.chapters()[0]["metadata"] == {"title": "One"}
        assert next(container.decode(stream)).rotation == 90


def test_strip_leaves_out_the_title(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", smooth_frames(3), Recipe(title="Holiday"))
    upscale(source, tmp_path / "b.mp4", metadata=False)
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert "title" not in container.metadata


@pytest.mark.parametrize("colour", [(1, 1, 1, 1), (5, 6, 6, 1), (1, 13, 1, 2), None])
def test_no_colour_shifts(tmp_path: Path, colour: tuple[int, int, int, int] | None) -> None:
    source = make_clip(tmp_path / "a.mp4", smooth_frames(3), Recipe(colour=colour))
    upscale(source, tmp_path / "b.mkv", codec="ffv1")
    for large, small in zip(frames_of(tmp_path / "b.mkv", "yuv420p"), frames_of(source, "yuv420p"), strict=True):
        for rows in (slice(0, 36), slice(36, 54)):  # luma; both kinds of chroma, two rows beside each other
            after, before = large[2 * rows.start : 2 * rows.stop], small[rows]
            after = after.reshape(-1, 128) if rows.start == 0 else after.reshape(-1, 64)
            before = before if rows.start == 0 else before.reshape(-1, 32)
            assert abs(float(after.mean()) - float(before.mean())) < 0.6
            assert np.abs(halved(after[..., None])[..., 0] - before).mean() < 1


def test_untagged_colours_are_written_as_players_take_them_for_the_input(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", smooth_frames(2))
    upscale(source, tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.video[0].codec_context.colorspace == 6  # BT.601, as for any small video


@pytest.mark.parametrize(("codec", "ending"), [("h264", "mkv"), ("h265", "mp4"), ("av1", "mp4"), ("prores", "mov")])
def test_ten_bits_stay_ten_bits(tmp_path: Path, codec: str, ending: str) -> None:
    frames = [frame.astype(np.uint16) * 257 for frame in smooth_frames(3, 64, 64)]
    source = make_clip(tmp_path / "a.mkv", frames, Recipe("ffv1", "yuv422p10le"))
    upscale(source, tmp_path / f"b.{ending}", codec=codec)
    after = probe(tmp_path / f"b.{ending}")
    assert (after.depth, after.size) == (10, (128, 128))
    for large, small in zip(frames_of(tmp_path / f"b.{ending}", "rgb48le"), frames, strict=True):
        assert np.abs(halved(large) - small).mean() / 257 < 1.5


def test_transparency_is_kept_by_prores_and_ffv1_and_refused_by_h264(tmp_path: Path) -> None:
    alpha = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (36, 1))
    frames = [np.dstack([frame, alpha]) for frame in smooth_frames(3)]
    source = make_clip(tmp_path / "a.mkv", frames, Recipe("ffv1", "bgra"))
    for target, codec in ((tmp_path / "b.mov", None), (tmp_path / "b.mkv", "ffv1")):
        upscale(source, target, codec=codec)
        for large in frames_of(target, "rgba"):
            assert np.abs(halved(large)[..., 3] - alpha).max() <= 3
    with pytest.raises(ImageError, match="cannot hold its transparency") as raised:
        upscale(source, tmp_path / "b.mp4")
    assert "prores" in (raised.value.hint or "")


def test_gray_stays_gray(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mkv", smooth_frames(2), Recipe("ffv1", "gray"))
    upscale(source, tmp_path / "b.mkv", codec="ffv1")
    assert probe(tmp_path / "b.mkv").channels == 1
    assert np.array_equal(frames_of(tmp_path / "b.mkv", "gray")[1], doubled(frames_of(source, "gray")[1]))


def test_an_odd_size_loses_no_line(tmp_path: Path) -> None:
    frames = smooth_frames(2, 35, 63)
    source = make_clip(tmp_path / "a.mkv", frames, Recipe("ffv1"))
    result = upscale(source, tmp_path / "b.mp4", scale=3, enlarge=lambda p: p.repeat(3, axis=0).repeat(3, axis=1))
    assert "190×106" in result.notices[0]
    large = frames_of(tmp_path / "b.mp4")[0]
    assert large.shape == (106, 190, 3)
    assert np.abs(large[:105, :189].reshape(35, 3, 63, 3, 3).mean((1, 3)) - frames_of(source)[0]).mean() < 2


def test_equal_frames_are_computed_once(tmp_path: Path, short_parts: None) -> None:
    frames = [smooth_frames(8)[i] for i in (0, 0, 0, 1, 2, 2, 2, 2)]
    source = make_clip(tmp_path / "a.mkv", frames, Recipe("ffv1", "bgr0"))
    seen: list[np.ndarray] = []

    def counting(pixels: np.ndarray) -> np.ndarray:
        seen.append(pixels)
        return doubled(pixels)

    result = upscale(source, tmp_path / "b.mkv", codec="ffv1", enlarge=counting)
    assert (len(seen), result.repeated) == (3, 5)
    for large, small in zip(frames_of(tmp_path / "b.mkv"), frames, strict=True):
        assert np.array_equal(large, doubled(small))


def test_interlaced_frames_are_deinterlaced(tmp_path: Path) -> None:
    before, after = np.full((36, 64, 3), 60, np.uint8), np.full((36, 64, 3), 190, np.uint8)
    combed = before.copy()
    combed[1::2] = after[1::2]
    frames = [before] * 3 + [combed] + [after] * 3
    options = {"flags": "+ildct+ilme", "top": "1", "qscale": "1", "field_order": "tt"}
    source = make_clip(tmp_path / "a.mpg", frames, Recipe("mpeg2video", options=options))
    assert probe(source).interlaced
    result = upscale(source, tmp_path / "b.mkv", codec="ffv1")
    assert result.frames == len(frames)
    for large in frames_of(tmp_path / "b.mkv", "gray"):
        lines = large.astype(int).mean(axis=1)
        assert np.abs(np.diff(lines)).max() < 100  # combs would have 130


def test_what_the_container_cannot_hold_is_said(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", smooth_frames(3), Recipe(sound=True))
    result = upscale(source, tmp_path / "b.webm")
    assert result.notices == ("WebM cannot hold its sound (aac)",)


def test_attachments_and_subtitles_are_copied(tmp_path: Path) -> None:
    plain = make_clip(tmp_path / "plain.mkv", smooth_frames(3))
    source = tmp_path / "a.mkv"
    with av.open(str(plain)) as original, av.open(str(source), "w") as container:
        container.add_attachment("font.ttf", "font/ttf", b"a font")
        video = container.add_stream_from_template(original.streams.video[0], opaque=True)
        for packet in original.demux(video=0):
            if packet.size:
                packet.stream = video
                container.mux(packet)
    result = upscale(source, tmp_path / "b.mkv")
    assert result.notices == ()
    with av.open(str(tmp_path / "b.mkv")) as container:
        (attachment,) = container.streams.attachments
        assert (attachment.name, attachment.mimetype, attachment.data) == ("font.ttf", "font/ttf", b"a font")


def interrupted_at(call: int) -> Callable[[np.ndarray], np.ndarray]:
    """`doubled`, which is interrupted at a call."""
    calls = count(1)

    def enlarge(pixels: np.ndarray) -> np.ndarray:
        if next(calls) == call:
            raise KeyboardInterrupt
        return doubled(pixels)

    return enlarge


def test_an_interrupted_run_goes_on_and_gives_the_same_packets(tmp_path: Path, short_parts: None) -> None:
    source = make_clip(tmp_path / "a.mp4", smooth_frames(23), Recipe(sound=True))
    upscale(source, tmp_path / "whole.mp4")
    target = tmp_path / "b.mp4"
    with pytest.raises(KeyboardInterrupt):
        upscale(source, target, enlarge=interrupted_at(14), workers=1)
    assert not target.exists()
    assert folder_of(target).exists()
    with pytest.raises(OutputExistsError) as raised:
        upscale(source, target)
    assert "--resume" in (raised.value.hint or "")
    result = upscale(source, target, resume=True)
    assert result.resumed == 10
    assert target.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert not folder_of(target).exists()


def test_parts_of_another_input_are_not_used(tmp_path: Path, short_parts: None) -> None:
    source = make_clip(tmp_path / "a.mp4", smooth_frames(12))
    target = tmp_path / "b.mp4"
    with pytest.raises(KeyboardInterrupt):
        upscale(source, target, enlarge=interrupted_at(9), workers=1)
    result = upscale(source, target, quality=50, resume=True)
    assert result.resumed == 0
    assert "started again" in result.notices[0]


def test_two_runs_do_not_write_the_same_output(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", smooth_frames(3))
    target = tmp_path / "b.mp4"

    def second(pixels: np.ndarray) -> np.ndarray:
        with pytest.raises(OutputError, match="another process"):
            upscale(source, target)
        return doubled(pixels)

    assert upscale(source, target, enlarge=second).frames == 3


@given(st.lists(st.permutations(range(5)), min_size=1, max_size=4))
def test_packets_are_decoded_in_order_and_before_they_are_shown(orders: list[list[int]]) -> None:
    parts = [[10 * (5 * index + number) for number in order] for index, order in enumerate(orders)]
    packets = list(decoding_times(parts, 50 * len(parts)))
    assert [shown for shown, _, _ in packets] == [time for part in parts for time in part]
    decoded = [decoded for _, decoded, _ in packets]
    assert decoded == sorted(set(decoded))
    assert all(decoded <= shown for shown, decoded, _ in packets)
    assert sum(duration for _, _, duration in packets) == 50 * len(parts)


class Pipe(io.RawIOBase):
    """A stream that cannot seek, as a pipe."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.taken = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.stream.read(size)
        self.taken += len(data)
        return data

    def write(self, data: Any) -> int:
        return int(self.stream.write(data))


@pytest.mark.parametrize("container", ["nut", "mkv", "ts", "y4m"])
def test_a_pipe_gives_every_frame_and_the_sound(tmp_path: Path, container: str) -> None:
    source = make_clip(tmp_path / "a.mkv", smooth_frames(20), Recipe(sound=True))
    output = io.BytesIO()

    def prepare(clip: Clip) -> Any:
        return choose_encoding(clip, (72, 128), container), doubled

    with source.open("rb") as stream:
        result = enlarge_stream(Pipe(stream), Pipe(output), container, "pipe", prepare)  # type: ignore[arg-type]
    (tmp_path / "b").write_bytes(output.getvalue())
    assert (result.frames, len(frames_of(tmp_path / "b"))) == (20, 20)
    steps = np.diff(times_of(tmp_path / "b"))
    assert steps == pytest.approx(1 / RATE, abs=2e-3)
    if container != "y4m":
        added = 7 if container == "ts" else 0  # bytes of a header
        sound = [data[added:] for _, data in sound_packets(tmp_path / "b")]
        assert sound == [data for _, data in sound_packets(source)]


def test_an_mp4_with_its_index_at_the_end_is_refused_from_a_pipe(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", _noise(40))
    with source.open("rb") as stream, pytest.raises(ImageError, match="cannot be read from a pipe"):
        enlarge_stream(Pipe(stream), io.BytesIO(), "nut", "pipe", lambda clip: (None, None))  # type: ignore[arg-type, return-value]


def _noise(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 255, (64, 96, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "mpg"])
def test_a_video_that_was_cut_short_is_an_error_and_leaves_no_output(tmp_path: Path, ending: str) -> None:
    options = {"movflags": "faststart"} if ending == "mp4" else {}
    codec = "mpeg2video" if ending == "mpg" else "libx264"
    whole = make_clip(tmp_path / f"whole.{ending}", _noise(60), Recipe(codec))
    if options:
        with av.open(str(whole)) as original, av.open(str(tmp_path / "fast.mp4"), "w", options=options) as container:
            video = container.add_stream_from_template(original.streams.video[0], opaque=True)
            for packet in original.demux(video=0):
                if packet.size:
                    packet.stream = video
                    container.mux(packet)
        whole = tmp_path / "fast.mp4"
    source = tmp_path / f"cut.{ending}"
    data = whole.read_bytes()
    source.write_bytes(data[: len(data) * 6 // 10])
    target = tmp_path / "out.mkv"
    with pytest.raises(HasnError, match=r"broken after 0:0\d\.\d|cannot be|index") as raised:
        upscale(source, target)
    assert str(source) in raised.value.message
    assert not target.exists()


def test_a_recording_that_begins_between_key_frames_starts_with_the_first_whole_one(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.ts", _noise(40), Recipe(options={"g": "10", "crf": "12"}))
    data = source.read_bytes()
    cut = tmp_path / "cut.ts"
    cut.write_bytes(data[len(data) // 3 // 188 * 188 :])
    result = upscale(cut, tmp_path / "b.mkv")
    assert 15 <= result.frames < 40


@pytest.mark.parametrize(("codec", "format"), [("mjpeg", "yuvj420p"), ("prores_ks", "yuv422p10le")])
def test_a_damaged_frame_is_an_error_with_its_time(tmp_path: Path, codec: str, format: str) -> None:
    source = make_clip(tmp_path / "a.mkv", _noise(40), Recipe(codec, format))
    data = bytearray(source.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = np.random.default_rng(0).bytes(300)
    source.write_bytes(data)
    with pytest.raises(ImageError, match=r"broken after 0:0[01]\.\d"):
        upscale(source, tmp_path / "b.mkv")


def test_sound_alone_text_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        frame.sample_rate, frame.pts = 48000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ImageError, match="only sound"):
        probe(tmp_path / "a.mp4")
    for name, content in (("b.mp4", b"just text\n"), ("c.mkv", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match="not a video"):
            probe(tmp_path / name)


def test_a_frame_size_that_changes_is_an_error(tmp_path: Path) -> None:
    parts = [make_clip(tmp_path / f"{n}.ts", smooth_frames(5, *size)) for n, size in enumerate([(36, 64), (68, 64)])]
    source = tmp_path / "a.ts"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(ImageError, match="size changes from 64×36 to 64×68"):
        upscale(source, tmp_path / "b.mkv")


def test_what_a_codec_or_container_cannot_do_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    clip = probe(make_clip(tmp_path / "a.mp4", smooth_frames(2)))
    with pytest.raises(ImageError, match=r"9000×200 is too large for H\.264"):
        choose_encoding(clip, (200, 9000), "mp4")
    with pytest.raises(UsageError, match="MP4 cannot hold FFV1"):
        choose_encoding(clip, (72, 128), "mp4", "ffv1")
    with pytest.raises(UsageError, match="FFV1 has no loss"):
        choose_encoding(clip, (72, 128), "mkv", "ffv1", 50)


def test_a_higher_quality_gives_a_lower_crf() -> None:
    for codec in ("h264", "h265", "av1"):
        values = [float(quality_options(codec, quality)["crf"]) for quality in range(1, 101)]  # type: ignore[arg-type]
        assert values == sorted(values, reverse=True)
        assert 0 < values[-1] < values[0] <= 63


def test_names_choose_the_container() -> None:
    assert [container_for_name(name) for name in ("a.MP4", "mkv", "b.png", "c.avi")] == ["mp4", "mkv", None, None]
    assert [default_container(name) for name in ("a.mov", "a.avi", "a.3gp", "stdin")] == ["mov", "mkv", "mp4", "mkv"]


def test_videos_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    for ending in ("mp4", "mov", "mkv", "webm", "ts", "avi", "nut", "y4m", "mpg"):
        codec = {"webm": "libvpx-vp9", "y4m": "rawvideo", "mpg": "mpeg2video"}.get(ending, "libx264")
        path = make_clip(tmp_path / f"a.{ending}", smooth_frames(2), Recipe(codec))
        assert is_video(path.read_bytes()[:4096]), ending
    assert not is_video(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert not is_video(b"const a: number = 1;\n")


def test_a_strongly_compressed_h264_video_gets_more_of_the_photo_weights(tmp_path: Path) -> None:
    frames = _noise(10)
    shares = []
    for qp in (12, 26, 40):
        clip = probe(make_clip(tmp_path / f"{qp}.mp4", frames, Recipe(options={"qp": str(qp)})))
        choice = choose_for_video(clip.compression)
        assert "H.264 video, QP about" in choice.text
        shares.append(choice.photo)
    assert shares == sorted(set(shares))
    assert choose_for_video(clip.compression, "clean").photo == 0


def test_a_still_is_turned_as_players_turn_it(tmp_path: Path) -> None:
    frames = smooth_frames(6)
    for rotation in (0, 90, 180, 270):
        source = make_clip(tmp_path / f"{rotation}.mp4", frames, Recipe(rotation=rotation))
        picture = still(source, seconds=0.08)
        pixels = next(iter(picture.frames)).pixels
        expected = np.rot90(frames_of(source)[2], rotation // 90)
        assert np.abs(pixels.astype(int) - expected).mean() < 4, rotation  # FFmpeg's own colours are a little off
    with pytest.raises(ImageError, match="no frame at 0:09"):
        still(source, seconds=9)


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*HASN, *map(str, arguments)], capture_output=True, timeout=240, **options)


def test_the_command_enlarges_a_video_and_reports_frames(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "clip.mp4", smooth_frames(10, 16, 24), Recipe(sound=True))
    done = run("upscale", source, "-s", "2", "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["frames"] for event in events if event["event"] in ("start", "done")] == [10, 10]
    assert probe(tmp_path / "clip_x2.mp4").size == (32, 48)
    planned = run("upscale", source, "-s", "3", "--dry-run")
    assert b"10 frames" in planned.stderr
    assert b"to compute" in planned.stderr


def test_a_folder_takes_videos_too_and_a_second_run_skips_them(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    make_clip(folder / "clip.mp4", smooth_frames(3, 16, 24))
    still_path = folder / "photo.png"
    assert run("upscale", folder / "clip.mp4", "--first-frame", "-s", "2", "-o", still_path).returncode == 0
    (folder / "notes.ts").write_text("const a = 1;")
    assert run("upscale", folder, "-s", "2", "-o", tmp_path / "out").returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["clip.mp4", "photo.png"]
    again = run("upscale", folder, "-s", "2", "-o", tmp_path / "out", "--resume")
    assert again.returncode == 0
    assert again.stderr.count(b"done already") == 2


def test_a_frame_of_a_video_is_compared(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", smooth_frames(5, 16, 24))
    assert run("compare", source, "-s", "2", "--at", "0:00.1", "-o", tmp_path / "b.png").returncode == 0
    assert (tmp_path / "b.png").stat().st_size > 0
    late = run("compare", source, "-s", "2", "--at", "9", "-o", tmp_path / "c.png")
    assert late.returncode == 1
    assert b"no frame at 0:09.0" in late.stderr


def test_a_pipeline_of_the_command_gives_a_video(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.nut", smooth_frames(6, 16, 24))
    done = run("upscale", "-", "-o", "-", "-f", "nut", "-s", "2", input=source.read_bytes())
    assert done.returncode == 0, done.stderr
    assert [frame.shape for frame in frames_of(io.BytesIO(done.stdout))] == [(32, 48, 3)] * 6


def test_a_reader_that_closes_a_pipeline_ends_the_command_without_a_message(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.nut", smooth_frames(30, 64, 96))
    command = [*HASN, "upscale", str(source), "-o", "-", "-f", "y4m", "-s", "2", "-q"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    assert process.stdout.read(9) == b"YUV4MPEG2"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait(timeout=60)


def test_uncompressed_frames_are_written_to_a_file(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", smooth_frames(3, 16, 24))
    assert run("upscale", source, "-o", tmp_path / "new" / "b.y4m", "-s", "2").returncode == 0
    assert len(frames_of(tmp_path / "new" / "b.y4m")) == 3


def test_a_video_is_not_written_as_a_picture(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", smooth_frames(2, 16, 24))
    done = run("upscale", source, "-o", tmp_path / "b.png")
    assert done.returncode == 1
    assert b"--first-frame" in done.stderr


@pytest.mark.slow
def test_a_run_that_is_killed_ten_times_gives_the_same_frames(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", smooth_frames(10 * RATE, 16, 24), Recipe(sound=True))
    assert run("upscale", source, "-s", "2", "-o", tmp_path / "whole.mp4").returncode == 0
    command = [*HASN, "upscale", str(source), "-s", "2", "-o", str(tmp_path / "b.mp4"), "--resume"]
    random.seed(0)
    for _ in range(10):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(1, 8))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert run(*command[len(HASN) :]).returncode == 0
    whole, again = frames_of(tmp_path / "whole.mp4"), frames_of(tmp_path / "b.mp4")
    assert all(np.array_equal(one, other) for one, other in zip(whole, again, strict=True))
    assert sound_packets(tmp_path / "b.mp4") == sound_packets(source)
