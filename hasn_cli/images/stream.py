"""Pictures from pipes and sockets."""

from __future__ import annotations

from typing import BinaryIO

from hasn_cli.images.formats import sniff


def read_stream(stream: BinaryIO, *, max_pixels: int | None, name: str) -> bytes:
    """All of a stream that begins as pictures do; of any other, which may never end, the beginning."""
    head = stream.read(64)
    return head + stream.read() if sniff(head) else head
