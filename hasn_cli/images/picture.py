"""What a picture is between one file and the next: frames of plain arrays, and everything that is not pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasn_cli.errors import UsageError

Pixels = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of an animation, one page of a document, or the only one.

    Attributes:
        pixels: H×W×C; C = 1 gray, 2 gray and alpha, 3 RGB, 4 RGBA (alpha never multiplied into the colour); uint8 or
            uint16 over their whole range, or float32 in a range of its own (alpha in [0, 1]).
        duration: how long it is shown, in milliseconds; None where nothing moves.
        icc, dpi: of a document's page after the first, as `Metadata` has the first one's.
        min_is_white: it comes from a TIFF of gray whose zero is white, and is one again in another: integers are turned
            round here, floats have their values as stored.
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
    """All that a file says of a picture besides its pixels. The orientation is no part of it: it has been applied.

    Attributes:
        icc: ICC profile of the pixels as stored in `Frame.pixels`; None stands for sRGB (or gray with its curve).
        exif: a TIFF structure, without the "Exif\\0\\0" that some formats put before it; its orientation is 1.
        xmp: the XMP packet, UTF-8.
        extended_xmp: what a JPEG's packet refers to as its extension, as stored; no other format has such a thing.
        iptc: IPTC-IIM records, bare (no Photoshop resource round them).
        dpi: horizontal and vertical pixels per inch.
        text: PNG's text chunks, JPEG's and GIF's comments.
        gamma: PNG's gAMA, about 0.45455 for ordinary pictures.
        chromaticities: PNG's cHRM: white, red, green, blue, as x, y pairs.
        srgb_intent: PNG's sRGB chunk: the rendering intent, 0 to 3.
        cicp: primaries, transfer function, matrix and range after ITU-T H.273, as PNG's cICP has them.
        size: (height, width) of the picture that places and sizes in `exif` and `xmp` are about.
        notices: what of the file was broken, or does not come along; a few words each, to be told to the user.
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
    """What a frame is going to be: (height, width) as shown, channels and dtype as in `Frame.pixels`."""

    size: tuple[int, int]
    channels: int
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return self.size[0] * self.size[1] * self.channels * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as read or as computed: a header that is known at once, and frames that are made when asked for.

    Attributes:
        name: for messages.
        format: lower-case name of the format it was read from ("jpeg", "png", …).
        size: (height, width) of the first frame, as shown (orientation applied).
        channels: of the first frame, 1 to 4, as in `Frame.pixels`.
        dtype: of the first frame: uint8, uint16 or float32.
        frames: decoded or computed one by one while iterated, each iteration from the start; raises `ImageError`.
        frame_count: how many frames come.
        loop: how many times an animation is played, 0 for ever; None for what is no animation.
        paged: the frames are pages of a document, which may differ in size, and not an animation.
        one_palette: all frames of the file it was read from shared one palette.
        lossless: the file it was read from kept each pixel exactly.
        following: how many more pictures stand behind this one in its file, which are not read.
        broken: where the chain of frames or pages breaks off in the file, None where it is whole; the frames before
            that come, then an `ImageError`.
        page_shapes: of each page, as far as its header can be read; empty where all frames are as the first.
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

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of each page; of an animation or a still, one, which stands for every frame."""
        return self.page_shapes or (Shape(self.size, self.channels, self.dtype),)

    @property
    def nbytes(self) -> int:
        """Of all frames together."""
        if self.page_shapes:
            return sum(shape.nbytes for shape in self.page_shapes)
        return self.frame_count * self.shapes[0].nbytes

    @property
    def has_alpha(self) -> bool:
        return self.channels in (2, 4)

    def first(self) -> Picture:
        """The first frame or page alone, as a still; it is made when it is asked for, as all were."""
        frames = ReplayableFrames(lambda: (replace(frame, duration=None) for frame in islice(self.frames, 1)))
        return replace(
            self, frames=frames, frame_count=1, loop=None, page_shapes=self.page_shapes[:1], following=0, broken=None
        )

    def load(self) -> Picture:
        """Make every frame now and keep them; for a still this is where the decoding (or the network) runs.

        Raises:
            ImageError: the picture is broken.
        """
        return replace(self, frames=list(self.frames))


@dataclass(frozen=True)
class EncodeOptions:
    """How a picture is written.

    Attributes:
        quality: 1 to 100, for what is written with loss.
        lossless: no loss where the format can do without (WebP, AVIF unless animated, JPEG 2000, JPEG XL); None: as the
            picture was read, if it came in the same format, else lossy.
        strip: write no metadata but what the pixels need to be shown rightly (the ICC profile, durations).
        background: a colour name or #rrggbb to lay under transparent pixels when the format cannot hold them.
        first_frame: write only the first frame or page.

    Raises:
        UsageError: a quality or colour that does not exist.
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
        UsageError: there is no such colour.
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
