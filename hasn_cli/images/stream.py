"""Reads a picture from a stream such as stdin. Other data may follow it, and the stream may never end."""

from __future__ import annotations

import io
from typing import BinaryIO

from hasn_cli.errors import ImageError
from hasn_cli.images.codecs import netpbm
from hasn_cli.images.faults import guarded
from hasn_cli.images.formats import HEAD, sniff
from hasn_cli.images.limits import MAX_FILE_BYTES, MAX_PIXELS, Limit, TooMuch

_PIECE = 1 << 20


def read_stream(stream: BinaryIO, *, max_pixels: int | None = MAX_PIXELS, name: str = "input") -> bytes:
    """Read the bytes of the picture at the beginning of a stream, for `open_picture`.

    Netpbm pictures are read as far as their headers say, including further Netpbm pictures that follow. Other formats
    are read up to `limits.MAX_FILE_BYTES`. If the stream does not begin like a picture, only its first bytes are read.

    Args:
        stream: open for reading; it need not be seekable.
        max_pixels: as for `open_picture`; None or 0 also lifts the limit on the number of bytes.
        name: for messages.

    Raises:
        ImageError: the stream is over a limit, or it cannot be read.
    """
    limit = Limit(max_pixels or None)
    reader = _StreamReader(stream, None if limit.max_pixels is None else MAX_FILE_BYTES)
    try:
        format = sniff(reader.up_to(HEAD))
        if format in ("ppm", "pfm"):
            guarded(name, lambda: _read_netpbm(reader, limit, name))
        elif format is not None:
            reader.rest()
    except TooMuch as error:
        raise ImageError(f"{name}: {error}", "save it to a file and pass that") from error
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror or error}") from error
    return reader.bytes()


class _StreamReader:
    """Reads a stream, and keeps all the bytes that have been read from it."""

    def __init__(self, stream: BinaryIO, most: int | None) -> None:
        self._stream = stream
        self._most = most
        self._read = io.BytesIO()
        self._length = 0

    def up_to(self, length: int, start: int = 0) -> bytes:
        """The bytes of the stream from `start` to `length`; fewer if it ends earlier."""
        while self._length < length and (piece := self._stream.read(min(_PIECE, length - self._length))):
            self._length += len(piece)
            if self._most is not None and self._length > self._most:
                raise TooMuch(f"it is longer than {self._most / 2**30:.4g} GiB, the limit for a stream")
            self._read.write(piece)
        with self._read.getbuffer() as view:
            return bytes(view[start:length])

    def skip_to(self, length: int) -> bool:
        """Read until `length` bytes of the stream have been read. Returns whether it has that many."""
        self.up_to(length, start=length)
        return self._length >= length

    def rest(self) -> None:
        """Read to the stream's end."""
        while self.skip_to(self._length + _PIECE):
            pass

    def bytes(self) -> bytes:
        """All bytes that have been read."""
        return self._read.getvalue()


def _read_netpbm(reader: _StreamReader, limit: Limit, name: str) -> None:
    """Read one picture after another, each as long as its header says."""
    start = pixels = 0
    while sniff(reader.up_to(start + HEAD, start)) in ("ppm", "pfm"):
        try:
            header = _header(reader, start)
        except ValueError:
            if start:  # the data after a picture need not be another picture
                return
            raise
        limit.check(name, header.height, header.width)
        pixels += header.height * header.width
        limit.check_total(name, pixels)
        start += netpbm.extent(header)
        if not reader.skip_to(start):
            return


def _header(reader: _StreamReader, start: int) -> netpbm.Header:
    """The header that begins at an offset, without reading far beyond it."""
    length = HEAD
    while True:
        known = reader.up_to(start + length, start)
        try:
            return netpbm.parse_header(known)
        except ValueError:
            if len(known) < length or length >= netpbm.MAX_HEADER:
                raise
        length *= 2
