"""Maps points and boxes of a picture to their new places when it is turned upright and enlarged."""

from __future__ import annotations

from dataclasses import dataclass

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Geometry:
    """A picture that is turned by an EXIF orientation (1 to 8) and then enlarged.

    Coordinates start at the upper left corner and run right and down, from 0 to the width and the height.

    Attributes:
        orientation: applied to the stored pixels to show them upright.
        before: (height, width) of the picture as stored.
        after: (height, width) of the result.
    """

    orientation: int
    before: tuple[int, int]
    after: tuple[int, int]

    @classmethod
    def turning(cls, orientation: int, size: tuple[int, int]) -> Geometry:
        """Turn a stored picture of this (height, width), without enlarging it."""
        return cls(orientation, size, size if orientation < 5 else size[::-1])

    @property
    def swaps_axes(self) -> bool:
        """Whether rows become columns."""
        return self.orientation >= 5

    @property
    def mirrored(self) -> bool:
        """Whether the orientation mirrors the picture, whether or not it also turns it."""
        return self.orientation in (2, 4, 5, 7)

    @property
    def changes(self) -> bool:
        """Whether anything is turned or scaled."""
        return self.orientation != 1 or self.before != self.after

    @property
    def scales(self) -> tuple[float, float]:
        """The factors for horizontal and vertical lengths, in the directions that they have after the turn."""
        height, width = self.before[::-1] if self.swaps_axes else self.before
        return self.after[1] / width, self.after[0] / height

    def lengths(self, across: float, down: float) -> tuple[float, float]:
        """Map a width and a height in pixels."""
        across, down = (down, across) if self.swaps_axes else (across, down)
        return across * self.scales[0], down * self.scales[1]

    def point(self, x: float, y: float, frame: tuple[float, float] | None = None) -> tuple[float, float]:
        """Map a point in pixels, in the picture or in a larger `frame` (height, width) that is turned as a whole."""
        turned = _turn(self.orientation, x, y, frame or self.before)
        return turned[0] * self.scales[0], turned[1] * self.scales[1]

    def box(
        self, left: float, top: float, width: float, height: float, frame: tuple[float, float] | None = None
    ) -> Numbers:
        """Map left, top, width and height of a box in pixels, in the picture or in a larger frame."""
        return _boxed(self.point(left, top, frame), self.point(left + width, top + height, frame))

    def centred_box(self, x: float, y: float, width: float, height: float) -> Numbers:
        """Map centre, width and height of a box in pixels."""
        return *self.point(x, y), *self.lengths(width, height)

    def relative_point(self, x: float, y: float) -> tuple[float, float]:
        """Map a point given as fractions of the width and the height."""
        return _turn(self.orientation, x, y, (1, 1))

    def relative_box(self, left: float, top: float, width: float, height: float) -> Numbers:
        """Map left, top, width and height of a box, as fractions of the picture's size."""
        return _boxed(self.relative_point(left, top), self.relative_point(left + width, top + height))

    def relative_centred_box(self, x: float, y: float, width: float, height: float) -> Numbers:
        """Map centre, width and height of a box, as fractions of the picture's size."""
        return *self.relative_point(x, y), *((height, width) if self.swaps_axes else (width, height))


def _turn(orientation: int, x: float, y: float, size: tuple[float, float]) -> tuple[float, float]:
    height, width = size
    if orientation >= 5:
        x, y, width, height = y, x, height, width
    if orientation in (2, 3, 6, 7):
        x = width - x
    if orientation in (3, 4, 7, 8):
        y = height - y
    return x, y


def _boxed(one: tuple[float, float], other: tuple[float, float]) -> Numbers:
    left, right = sorted((one[0], other[0]))
    top, bottom = sorted((one[1], other[1]))
    return left, top, right - left, bottom - top
