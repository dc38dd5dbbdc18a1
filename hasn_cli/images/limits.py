"""Limits on how much a picture's file may contain before it is refused. Every limit is far above what real files need.

Memory and time depend on the size that the header declares (`MAX_PIXELS`) and on the length of the file. The other
limits cover places where a few bytes of a file cause a lot of work. docs/security.md lists them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hasn_cli.errors import ImageError
from hasn_cli.images.picture import Metadata, Picture

MAX_PIXELS = 256_000_000
"""Pixels of one frame or page: 16,000 × 16,000, more than any camera makes. As 8-bit RGB this takes 768 MB."""

MAX_TOTAL_PIXELS = 40 * MAX_PIXELS
"""Pixels of all frames or pages: 400 scanned pages of 25 megapixels, or three minutes of HD at 25 frames a second."""

MAX_FRAMES = 50_000
"""Frames or pages: half an hour at 25 frames a second, or five times the pages of the longest documents."""

MAX_CHANNELS = 8
"""Samples per pixel: four inks, transparency and three more."""

MAX_PARTS = 250_000
"""Chunks, segments, boxes, blocks or table entries of a file: a PNG of 2 GB with chunks of 8 KB has this many."""

MAX_METADATA = 32 * 2**20
"""Bytes of profiles, EXIF, XMP, IPTC and text together, unpacked. A large profile has 4 MB, EXIF with maker notes 1 MB,
XMP with a depth map or a sound recording 10 MB."""

MAX_FILE_BYTES = 2**31
"""Bytes of a file or stream that is read as a whole: 256 megapixels of 16-bit RGBA. TIFF files and raw Netpbm pictures
are read piece by piece and may be larger."""


class TooMuch(Exception):
    """A file contains more of something than any real file. The message says what, and begins with "it" or "its"."""


class Count:
    """Counts the parts of one file.

    Args:
        what: what the parts are called in the message ("chunks").
        most: how many are allowed.
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
    """The number of metadata bytes that a file may still contain or unpack to."""

    def __init__(self, most: int = MAX_METADATA) -> None:
        self._most = most
        self.left = most

    def take(self, length: int) -> None:
        """Use up `length` bytes.

        Raises:
            TooMuch: fewer are left.
        """
        self.left -= length
        if self.left < 0:
            raise TooMuch(f"its metadata takes more than {self._most / 2**20:.4g} MiB")


@dataclass(frozen=True)
class Limit:
    """The most pixels that a picture may declare; None means any number."""

    max_pixels: int | None

    @property
    def max_total(self) -> int | None:
        """The most pixels of all frames together. A limit below the default also applies to their sum."""
        if self.max_pixels is None or self.max_pixels < MAX_PIXELS:
            return self.max_pixels
        return max(self.max_pixels, MAX_TOTAL_PIXELS)

    def check(self, name: str, height: int, width: int) -> None:
        """Refuse a declared size.

        Raises:
            ImageError: a side is below 1, or the size is over the limit.
        """
        if height < 1 or width < 1:
            raise ImageError(f"{name}: declares {width}×{height} pixels")
        if self.max_pixels is not None and height * width > self.max_pixels:
            raise self._refusal(f"{name}: declares {width}×{height} pixels,", height * width, self.max_pixels)

    def check_whole(self, picture: Picture) -> None:
        """Refuse a picture whose frames or whose metadata are too large together.

        Raises:
            ImageError: the frames are too large.
            TooMuch: the metadata is too large.
        """
        height, width = picture.size
        pixels = picture.frame_count * height * width
        if picture.page_shapes:
            pixels = sum(shape.size[0] * shape.size[1] for shape in picture.page_shapes)
        if picture.frame_count > 1:
            self.check_total(picture.name, pixels)
        check_metadata_size(picture.metadata)

    def check_total(self, name: str, pixels: int) -> None:
        """Refuse the sum of the pixels that all frames or pages declare.

        Raises:
            ImageError: it is over the limit.
        """
        if self.max_total is not None and pixels > self.max_total:
            raise self._refusal(f"{name}: all its frames together have", pixels, self.max_total)

    def _refusal(self, what: str, pixels: int, most: int) -> ImageError:
        message = f"{what} {_megapixels(pixels)} megapixels, over the limit of {_megapixels(most)}"
        return ImageError(message, "if you trust the file, raise the limit: --max-input-megapixels N (0: no limit)")


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:.4g}" if pixels < 10**10 else f"{pixels / 1e6:.0f}"


def check_metadata_size(metadata: Metadata) -> None:
    """Check that all metadata together takes at most `MAX_METADATA` bytes.

    Raises:
        TooMuch: it takes more.
    """
    blocks: Iterable[bytes | None] = (metadata.icc, metadata.exif, metadata.xmp, metadata.iptc, *metadata.extended_xmp)
    room = Room()
    room.take(sum(len(block) for block in blocks if block))
    room.take(sum(len(text.key) + len(text.value) + len(text.translated_key) for text in metadata.text))
