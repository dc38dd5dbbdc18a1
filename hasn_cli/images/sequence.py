"""Pictures that come one after another in a stream, as `ffmpeg -f image2pipe` writes them. Each is given in turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from hasn_cli.errors import ImageError
from hasn_cli.images.codecs import netpbm
from hasn_cli.images.decode import DEFAULT_MAX_PIXELS
from hasn_cli.images.following import first_end
from hasn_cli.images.formats import HEAD, sniff
from hasn_cli.images.limits import MAX_FILE_BYTES, Limit

_PIECE = 1 << 18


def pictures_in(
    stream: BinaryIO, *, max_pixels: int | None = DEFAULT_MAX_PIXELS, name: str = "input"
) -> Iterator[bytes]:
    """The bytes of each picture in a stream: PNG, JPEG, WebP, GIF, BMP, PPM and others that say where they end.

    A picture is given as soon as the first bytes of the next one, or the stream's end, show that it is complete. What
    follows the last picture and does not begin like one is ignored. A stream in any other format is one picture.

    Args:
        stream: open for reading; it need not be seekable. Its `read1`, if it has one, gives what is there at once.
        max_pixels: as for `open_picture`; None or 0 also lifts the limit on the bytes of a picture.
        name: for messages.

    Raises:
        ImageError: a picture is over a limit, or the stream cannot be read.
    """
    most = MAX_FILE_BYTES if Limit(max_pixels or None).max_pixels is not None else None
    data, ended, count, looked = bytearray(), False, 0, 0
    while True:
        # Looking for the end takes time for each byte, so it has to be worth it.
        end = None
        if ended or len(data) * 4 >= looked * 5:
            end, looked = _end_of_first(data, ended), len(data)
        if end is None:
            piece = _read(stream, name)
            ended = not piece
            data += piece
            if most is not None and len(data) > most:
                raise ImageError(f"{name}: a picture in it is longer than {most / 2**30:.4g} GiB")
            continue
        if count and sniff(bytes(data[:HEAD])) is None:  # what follows the last picture
            return
        yield bytes(data[:end])
        count, looked = count + 1, 0
        del data[:end]
        if not data and ended:
            return


def _end_of_first(data: bytearray, ended: bool) -> int | None:
    """Where the first picture ends; None if that is not known before more is read."""
    if len(data) < HEAD and not ended:
        return None
    format = sniff(bytes(data[:HEAD]))
    if format in ("ppm", "pfm"):
        end = _end_of_netpbm(bytes(data[: netpbm.MAX_HEADER]), data)
    else:
        end = first_end(bytes(data), format) if format else None
    if end is not None and (ended or len(data) >= end + HEAD):
        return end
    return len(data) if ended else None


def _end_of_netpbm(head: bytes, data: bytearray) -> int | None:
    try:
        header = netpbm.parse_header(head)
    except ValueError:
        return None
    if header.length is None or len(data) < netpbm.extent(header):
        return None
    end = netpbm.extent(header)
    while data[end : end + 1].isspace():  # between two pictures
        end += 1
    return end


def _read(stream: BinaryIO, name: str) -> bytes:
    read = getattr(stream, "read1", stream.read)
    try:
        piece: bytes = read(_PIECE)
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror or error}") from error
    return piece
