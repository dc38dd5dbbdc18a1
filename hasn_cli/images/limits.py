"""What a picture's file may cost before it is refused. Every limit lies far beyond what honest files hold.

Memory and time follow from what the header declares (`MAX_PIXELS`) and from how long the file is. The other numbers
close the ways round that: places where a few bytes of a file stand for much work. docs/security.md lists them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hasn_cli.errors import ImageError
from hasn_cli.images.picture import Metadata, Picture

MAX_PIXELS = 256_000_000
"""Of one frame or page: 16,000 × 16,000, more than any camera makes; as 8-bit RGB it takes 768 MB."""

MAX_TOTAL_PIXELS = 40 * MAX_PIXELS
"""Of all frames or pages together: 400 scanned pages of 25 megapixels, or three minutes of moving HD at 25 a second."""

MAX_FRAMES = 50_000
"""Half an hour at 25 frames a second; five times the pages of the longest documents."""

MAX_CHANNELS = 8
"""Samples a pixel: four inks, transparency, and three more."""

MAX_PARTS = 250_000
"""Chunks, segments, boxes, blocks or table entries of a file: a PNG of 2 GB has as many in chunks of 8 KB."""

MAX_METADATA = 32 * 2**20
"""Bytes of profiles, EXIF, XMP, IPTC and text together, unpacked. A large profile has 4 MB, EXIF with maker notes 1 MB,
XMP that carries a depth map or a sound 10 MB."""

MAX_FILE_BYTES = 2**31
"""Of a file or stream that is read as a whole: 256 megapixels of 16-bit RGBA. TIFF files and raw Netpbm pictures are
read piece by piece and may be larger."""


class TooMuch(Exception):
    """A file holds more of something than any honest one. The message says what, and begins with "it" or "its"."""


class Count:
    """Counts the parts of one file.

    Args:
        what: the parts, for the message ("chunks").
        most: how many there may be.
    """

    def __init__(self, what: str, most: int = MAX_PARTS) -> None:
        self._what = what
        self._most = most
        self.count = 0

    def add(self, count: int = 1) -> None:
        """Count some more.

        Raises:
            TooMuch: there are too many.
        """
        self.count += count
        if self.count > self._most:
            raise TooMuch(f"it has more than {self._most} {self._what}")


class Room:
    """Bytes of metadata that a file may still hold, or unpack to."""

    def __init__(self, most: int = MAX_METADATA) -> None:
        self._most = most
        self.left = most

    def take(self, length: int) -> None:
        """Use up so many bytes.

        Raises:
            TooMuch: there are not that many left.
        """
        self.left -= length
        if self.left < 0:
            raise TooMuch(f"its metadata take more than {self._most / 2**20:.4g} MiB")


@dataclass(frozen=True)
class Limit:
    """The most pixels that a picture may declare; None for any number."""

    max_pixels: int | None

    @property
    def max_total(self) -> int | None:
        """The most pixels of all frames together. A limit that is lower than the default holds for them as well."""
        if self.max_pixels is None or self.max_pixels < MAX_PIXELS:
            return self.max_pixels
        return max(self.max_pixels, MAX_TOTAL_PIXELS)

    def check(self, name: str, height: int, width: int) -> None:
        """Refuse a declared size.

        Raises:
            ImageError: it is no size, or beyond the limit.
        """
        if height < 1 or width < 1:
            raise ImageError(f"{name}: declares {width}×{height} pixels")
        if self.max_pixels is not None and height * width > self.max_pixels:
            raise self._refusal(f"{name}: declares {width}×{height} pixels,", height * width, self.max_pixels)

    def check_whole(self, picture: Picture) -> None:
        """Refuse a picture whose frames, or whose metadata, are too much together.

        Raises:
            ImageError: the frames are.
            TooMuch: the metadata are.
        """
        height, width = picture.size
        pixels = picture.frame_count * height * width
        if picture.page_shapes:
            pixels = sum(shape.size[0] * shape.size[1] for shape in picture.page_shapes)
        if picture.frame_count > 1:
            self.check_total(picture.name, pixels)
        check_metadata_size(picture.metadata)

    def check_total(self, name: str, pixels: int) -> None:
        """Refuse what all frames or pages declare together.

        Raises:
            ImageError: it is beyond the limit.
        """
        if self.max_total is not None and pixels > self.max_total:
            raise self._refusal(f"{name}: its frames have, all together,", pixels, self.max_total)

    def _refusal(self, what: str, pixels: int, most: int) -> ImageError:
        message = f"{what} {_megapixels(pixels)} megapixels, over the limit of {_megapixels(most)}"
        return ImageError(message, "if you trust it: hasn upscale and compare take --max-megapixels N (0: no limit)")


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:.4g}" if pixels < 10**10 else f"{pixels / 1e6:.0f}"


def check_metadata_size(metadata: Metadata) -> None:
    """See that all metadata together are no more than `MAX_METADATA`.

    Raises:
        TooMuch: they are more.
    """
    blocks: Iterable[bytes | None] = (metadata.icc, metadata.exif, metadata.xmp, metadata.iptc, *metadata.extended_xmp)
    room = Room()
    room.take(sum(len(block) for block in blocks if block))
    room.take(sum(len(text.key) + len(text.value) + len(text.translated_key) for text in metadata.text))
