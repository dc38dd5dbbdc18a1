"""`Limits`: how much the server accepts, and for how long it keeps what it has."""

from __future__ import annotations

from dataclasses import dataclass

MB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """The limits of one server. Sizes are in bytes, and times in seconds.

    Attributes:
        upload: of one picture's file.
        input_pixels: of one picture, all its frames or pages together.
        output_pixels: of one result, all its frames or pages together.
        waiting: pictures that wait or are being uploaded; the next one is refused until one of them begins.
        stored: all uploads and results together.
        kept: jobs whose results are kept.
        compute: the time that one picture may take, without the time in the queue.
        upload_time: the time that one upload may take.
        stall: the longest pause in an upload.
        keep: how long a result is kept that nobody deletes.
        abandoned: how long the pictures of a page are still computed after its last connection has ended.
    """

    upload: int = 256 * MB
    input_pixels: int = 100_000_000
    output_pixels: int = 1_000_000_000
    waiting: int = 256
    stored: int = 8192 * MB
    kept: int = 5000
    compute: float = 1800
    upload_time: float = 1800
    stall: float = 30
    keep: float = 3600
    abandoned: float = 120
