"""Pictures from pipes and sockets, which may never end: no more is read than what has come so far can need."""

from __future__ import annotations

from typing import BinaryIO

from hasn_cli.errors import HasnError, ImageError, TooLargeError
from hasn_cli.images.decode import open_picture
from hasn_cli.images.formats import sniff
from hasn_cli.machine import free_memory

ALLOWANCE = 64 << 20  # bytes of metadata and the like, whatever the header declares
PER_BYTE = 4  # bytes of a file for each byte of its pixels: a plain PPM has up to four characters a sample
FIRST_LOOK = 1 << 16  # bytes, enough for most headers
SHARE_OF_FREE = 0.5  # of the memory, where no header tells
CHUNK = 1 << 20


def read_stream(stream: BinaryIO, *, max_pixels: int | None, name: str) -> bytes:
    """All of a stream that begins as pictures do; of any other, which may never end, the beginning.

    Args:
        stream: is read to its end.
        max_pixels: as `open_picture` takes it; a stream that declares more is read no further.
        name: for messages.

    Raises:
        TooLargeError: it declares too many pixels.
        ImageError: it goes on for longer than its header allows, or than the memory that is free.
    """
    data = bytearray(stream.read(64))
    if not sniff(bytes(data)):
        return bytes(data)
    most, looked = None, FIRST_LOOK
    ceiling = int(free_memory() * SHARE_OF_FREE)
    while chunk := stream.read(min(CHUNK, max(FIRST_LOOK, len(data)))):
        data += chunk
        if len(data) >= looked:
            most = _most_bytes(bytes(data), max_pixels, name)
            looked = max(2 * len(data), ALLOWANCE)
        if len(data) > (ceiling if most is None else min(most, ceiling)):
            length = f"{len(data) / 1e6:.0f} MB"
            message = f"{name}: goes on after {length}, far more than the picture that it begins with can need"
            raise ImageError(message, "give a file instead of a stream, if it is a picture")
    return bytes(data)


def _most_bytes(beginning: bytes, max_pixels: int | None, name: str) -> int | None:
    """How long a file may be that begins so, or None where that cannot be told yet."""
    if sniff(beginning[:64]) == "jpegxl":  # it would have to be decoded
        return None
    try:
        picture = open_picture(beginning, max_pixels=max_pixels, name=name)
    except TooLargeError:
        raise
    except (HasnError, MemoryError):  # what tells is still to come, or it is broken, which its reader will say
        return None
    return ALLOWANCE + PER_BYTE * picture.nbytes
