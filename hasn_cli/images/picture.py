"""A picture in memory: frames as plain arrays, and everything that is not pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasn_cli.errors import UsageError
from hasn_cli.images.compression import Compression

Pixels = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of an animation, one page of a document, or a still picture.

    Attributes:
        pixels: H×W×C; C = 1 gray, 2 gray and alpha, 3 RGB, 4 RGBA (the colour is never premultiplied by alpha); uint8
            or uint16 over their whole range, or float32 in a range of its own (alpha in [0, 1]).
        duration: how long it is shown, in milliseconds; None if the picture is not animated.
        icc, dpi: of a page after the first; `Metadata` has those of the first page.
        min_is_white: it comes from a gray TIFF in which zero is white, and is written like that to another TIFF.
            Integers are inverted here, so that zero is black; floats keep their stored values.
    """

    pixels: Pixels
    duration: float | None = None
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    min_is_white: bool = False


@dataclass(frozen=True)
class Text:
    """One entry of a PNG's text, or a comment of another format (key "Comment")."""

    key: str
    value: str
    language: str = ""
    translated_key: str = ""


@dataclass(frozen=True)
class Metadata:
    """Everything a file says about a picture, except its pixels and its orientation, which has been applied.

    Attributes:
        icc: ICC profile of the pixels as stored in `Frame.pixels`; None means sRGB (or gray with its curve).
        exif: a TIFF structure, without the "Exif\\0\\0" that some formats put before it; its orientation is 1.
        xmp: the XMP packet, UTF-8.
        extended_xmp: the segments of the extension to which a JPEG's packet refers, as stored. Only JPEG has this.
        iptc: IPTC-IIM records, without a Photoshop resource around them.
        dpi: horizontal and vertical pixels per inch.
        text: the text chunks of a PNG, or the comments of a JPEG or GIF.
        gamma: PNG's gAMA, about 0.45455 for ordinary pictures.
        chromaticities: PNG's cHRM: white, red, green and blue, as x, y pairs.
        srgb_intent: PNG's sRGB chunk: the rendering intent, 0 to 3.
        cicp: primaries, transfer function, matrix and range as defined by ITU-T H.273, in the form of PNG's cICP.
        size: (height, width) of the picture to which places and sizes in `exif` and `xmp` refer.
        notices: what was broken in the file or is not copied: a few words each, to show to the user.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    extended_xmp: tuple[bytes, ...] = ()
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: tuple[Text, ...] = ()
    gamma: float | None = None
    chromaticities: tuple[float, ...] | None = None
    srgb_intent: int | None = None
    cicp: bytes | None = None
    size: tuple[int, int] | None = field(default=None, compare=False)
    notices: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Shape:
    """The shape of a frame: (height, width) as shown, channels and dtype as in `Frame.pixels`."""

    size: tuple[int, int]
    channels: int
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return self.size[0] * self.size[1] * self.channels * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as read or as computed: a header that is known at once, and frames that are computed on request.

    Attributes:
        name: for messages.
        format: lower-case name of the format it was read from ("jpeg", "png", …).
        size: (height, width) of the first frame as shown, with the orientation applied.
        channels: of the first frame, 1 to 4, as in `Frame.pixels`.
        dtype: of the first frame: uint8, uint16 or float32.
        frames: decoded or computed one by one while they are iterated. Every iteration starts with the first frame;
            iterating may raise `ImageError`.
        frame_count: the number of frames.
        loop: how many times an animation is played, 0 means forever; None if the picture is not an animation.
        paged: the frames are the pages of a document, which may differ in size, and not an animation.
        one_palette: all frames in the source file shared one palette.
        lossless: the source file was compressed without loss.
        compression: the lossy compression of the source file; None if it is lossless. Where a file does not say which,
            it counts as lossy. Of several pages, this is the first one's.
        following: the number of further pictures after this one in its file, which are not read.
        broken: where the frames or pages break off in a damaged file, otherwise None. The frames before that point are
            read, then `ImageError` is raised.
        page_shapes: the shape of each page whose header can be read; empty if all frames are like the first.
    """

    name: str
    format: str
    size: tuple[int, int]
    channels: int
    dtype: np.dtype[Any]
    frames: Iterable[Frame]
    frame_count: int = 1
    loop: int | None = None
    paged: bool = False
    one_palette: bool = False
    lossless: bool = True
    metadata: Metadata = field(default_factory=Metadata)
    page_shapes: tuple[Shape, ...] = ()
    following: int = 0
    broken: str | None = None
    compression: Compression | None = None

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shape of each page. An animation or a still picture has one shape for all frames."""
        return self.page_shapes or (Shape(self.size, self.channels, self.dtype),)

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels of all frames together."""
        if self.page_shapes:
            return sum(shape.nbytes for shape in self.page_shapes)
        return self.frame_count * self.shapes[0].nbytes

    @property
    def has_alpha(self) -> bool:
        return self.channels in (2, 4)

    def first(self) -> Picture:
        """The first frame or page as a still picture. It is still computed on request."""
        frames = ReplayableFrames(lambda: (replace(frame, duration=None) for frame in islice(self.frames, 1)))
        return replace(
            self, frames=frames, frame_count=1, loop=None, page_shapes=self.page_shapes[:1], following=0, broken=None
        )

    def load(self) -> Picture:
        """Compute all frames now and keep them. For a still picture, this runs the decoder (or the network).

        Raises:
            ImageError: the picture is broken.
        """
        return replace(self, frames=list(self.frames))


@dataclass(frozen=True)
class EncodeOptions:
    """How a picture is written.

    Attributes:
        quality: 1 to 100, for lossy formats.
        lossless: compress without loss, if the format can (WebP, AVIF unless animated, JPEG 2000, JPEG XL). None:
            lossless if the picture was read from a lossless file of the same format, otherwise lossy.
        strip: write only the metadata that is needed to show the pixels correctly (the ICC profile, durations).
        background: a colour name or #rrggbb, put under transparent pixels if the format has no transparency.
        first_frame: write only the first frame or page.

    Raises:
        UsageError: the quality is out of range, or the colour is unknown.
    """

    quality: int = 95
    lossless: bool | None = None
    strip: bool = False
    background: str | None = None
    first_frame: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise UsageError(f"quality {self.quality} is not between 1 and 100")
        if self.background is not None:
            parse_color(self.background)


def parse_color(text: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a CSS colour name or #rrggbb.

    Raises:
        UsageError: the colour is unknown.
    """
    from PIL import ImageColor

    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise UsageError(f"unknown colour {text!r}", "use a name such as white, or #rrggbb") from None
    return red, green, blue


class ReplayableFrames:
    """Frames that are computed again each time they are iterated."""

    def __init__(self, make: Callable[[], Iterator[Frame]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Frame]:
        return self._make()
