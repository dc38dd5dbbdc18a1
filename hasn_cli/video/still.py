"""One frame of a video as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from hasn_cli.images.picture import Frame, Metadata, Picture
from hasn_cli.video.clip import Clip, opened, probe, video_stream
from hasn_cli.video.frames import TimedFrame, decoded_frames, frame_at


def still(path: Path, name: str = "", seconds: float | None = None) -> Picture:
    """A frame of a video, turned as it is shown.

    Args:
        path: the video.
        name: for messages; by default the path.
        seconds: the time after the first frame; None for the first frame itself.

    Raises:
        ImageError: it is not a video, is broken, or has no frame at that time.
    """
    name = name or str(path)
    clip = probe(path, name)
    with opened(path, name) as container:
        stream = video_stream(container, name)
        frame = _first(container, stream, clip) if seconds is None else frame_at(container, stream, clip, seconds)
    assert frame.pixels is not None
    pixels = turned(frame.pixels, clip.display_matrix)
    return Picture(
        name=name,
        format="png",
        size=(pixels.shape[0], pixels.shape[1]),
        channels=pixels.shape[2],
        dtype=pixels.dtype,
        frames=[Frame(pixels)],
        lossless=clip.lossless,
        compression=clip.compression,
        metadata=Metadata(notices=_notices(clip)),
    )


def _first(container: InputContainer, stream: VideoStream, clip: Clip) -> TimedFrame:
    return next(decoded_frames(container, stream, clip))


def _notices(clip: Clip) -> tuple[str, ...]:
    return (
        () if clip.pixel_aspect == 1 else (f"its pixels are not square ({clip.pixel_aspect}), which is not corrected",)
    )


def turned(pixels: np.ndarray, matrix: tuple[int, ...] | None) -> np.ndarray:
    """H×W×C pixels, turned and mirrored by quarter turns as a display matrix says.

    The matrix maps (x, y) to (a·x + c·y, b·x + d·y) (ISO/IEC 14496-12, 8.2.2.3). Other angles are left alone.
    """
    if matrix is None:
        return pixels
    a, b, c, d = (np.sign(matrix[index]) for index in (0, 1, 3, 4))
    if a == d == 0:  # x and y change places
        pixels = pixels.swapaxes(0, 1)
        across, down = c, b
    else:
        across, down = a, d
    pixels = pixels[:, ::-1] if across < 0 else pixels
    return np.ascontiguousarray(pixels[::-1] if down < 0 else pixels)
