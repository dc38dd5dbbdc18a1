"""Makes videos for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame

RATE = 25
SOUND_RATE = 48_000


def smooth_frames(count: int, height: int = 36, width: int = 64, seed: int = 0) -> list[np.ndarray]:
    """Moving frames without fine detail, so that compression changes little: H×W×3, uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 216, (height // 12 + 3, width // 12 + count // 12 + 3, 3)).astype(np.float64)
    whole = np.kron(coarse, np.ones((12, 12, 1)))
    kernel = np.ones(13) / 13
    for axis in (0, 1):
        whole = np.apply_along_axis(np.convolve, axis, whole, kernel, mode="same")
    return [whole[6 : 6 + height, 6 + i : 6 + i + width].round().astype(np.uint8) for i in range(count)]


@dataclass
class Recipe:
    """What `make_clip` writes. `times` are in units of 1/1000 s; None means a constant rate."""

    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    times: Sequence[int] | None = None
    sound: bool = False
    options: dict[str, str] | None = None
    rotation: int = 0
    pixel_aspect: Fraction = Fraction(1)
    colour: tuple[int, int, int, int] | None = None  # primaries, transfer, matrix, range
    chapters: bool = False
    title: str = ""


def make_clip(path: Path, frames: Sequence[np.ndarray], recipe: Recipe | None = None) -> Path:
    """Write a video of H×W×(3 or 4) frames of uint8 or uint16."""
    recipe = recipe or Recipe()
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(recipe.codec, rate=RATE)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = recipe.pixel_format
        default = {"crf": "12"} if recipe.codec.startswith("libx26") else {}
        stream.codec_context.options = default if recipe.options is None else recipe.options
        stream.codec_context.sample_aspect_ratio = recipe.pixel_aspect
        unit = Fraction(1, 1000) if recipe.times else Fraction(1, RATE)
        stream.codec_context.time_base = unit
        if recipe.colour:
            context = stream.codec_context
            context.color_primaries, context.color_trc, context.colorspace, context.color_range = recipe.colour
        if recipe.rotation:
            stream.set_display_rotation(recipe.rotation)
        if recipe.title:
            container.metadata["title"] = recipe.title
        sound = container.add_stream("aac", rate=SOUND_RATE) if recipe.sound else None
        if sound is not None:
            sound.metadata["language"] = "deu"
        if recipe.chapters:
            container.set_chapters(
                [{"id": 1, "start": 0, "end": 500, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}}]
            )
        for number, pixels in enumerate(frames):
            kind = {(3, 1): "rgb24", (4, 1): "rgba", (3, 2): "rgb48le", (4, 2): "rgba64le"}
            frame = VideoFrame.from_ndarray(pixels, kind[pixels.shape[2], pixels.itemsize])
            matrix = recipe.colour[2] if recipe.colour else 6
            full = 2 if recipe.colour and recipe.colour[3] == 2 else 1
            if not recipe.pixel_format.startswith(("gbr", "rgb", "bgr")):
                frame = frame.reformat(
                    format=recipe.pixel_format,
                    dst_colorspace={1: "ITU709", 6: "smpte170m"}.get(matrix, "smpte170m"),
                    dst_color_range=full,
                )
            frame.pts = recipe.times[number] if recipe.times else number
            frame.time_base = unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _add_sound(container, sound, len(frames) / RATE)
    return path


def _add_sound(container: Any, stream: Any, seconds: float) -> None:
    times = np.arange(int(seconds * SOUND_RATE)) / SOUND_RATE
    wave = (0.3 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)
    for start in range(0, len(wave) - 1023, 1024):
        frame = av.AudioFrame.from_ndarray(np.stack([wave[start : start + 1024]] * 2), "fltp", "stereo")
        frame.sample_rate, frame.pts = SOUND_RATE, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def frames_of(path: Path | Any, format: str = "rgb24") -> list[np.ndarray]:
    """All frames, as FFmpeg converts them."""
    with av.open(str(path) if isinstance(path, Path) else path) as container:
        return [frame.to_ndarray(format=format) for frame in container.decode(video=0)]


def times_of(path: Path) -> list[float]:
    """When each frame is shown, in seconds, in the order of the display."""
    with av.open(str(path)) as container:
        return [float(frame.time) for frame in container.decode(video=0)]


def sound_packets(path: Path) -> list[tuple[float, bytes]]:
    """The time and the bytes of each packet of the first sound track."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return [(float(p.pts * p.time_base), bytes(p)) for p in container.demux(stream) if p.size]
