"""The comparison as one labelled picture: the whole picture, and below it the spots side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hasn_cli.compare.comparison import around
from hasn_cli.compare.heat import HEAT_END, heat

if TYPE_CHECKING:
    from hasn_cli.compare.comparison import Comparison, Rendition, Spot

PAPER, INK, SOFT, ACCENT = "#ffffff", "#191a1b", "#5c5f62", "#0b62d6"
MARGIN, GAP = 48, 14  # pixels of the sheet, like all lengths here
CELL = 288  # side of a spot's square
OVERVIEW = 960  # width at most
HEAD = 110  # title and facts
LABELS = 62  # heads of the columns
SHAPE = 1.8  # desired ratio of width to height
FONTS = ("DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")  # Pillow's own font has only ASCII


@dataclass(frozen=True)
class Column:
    """One column of the sheet: its heading and what it shows of each spot."""

    title: str
    facts: str
    pixels: NDArray[np.uint8]


def sheet(comparison: Comparison) -> NDArray[np.uint8]:
    """Draw the sheet.

    Args:
        comparison: its spots become rows, and its views columns, followed by error maps.

    Returns:
        H×W×3 sRGB.
    """
    columns = _columns(comparison)
    spots = comparison.spots
    rows = _rows(len(spots), len(columns))
    grid_height = rows * (CELL + GAP) - GAP
    overview = _overview(comparison, grid_height)
    block_width = len(columns) * (CELL + GAP) + GAP
    grid_left = MARGIN + overview.width + 2 * GAP
    width = grid_left + -(-max(1, len(spots)) // rows) * block_width - 2 * GAP + MARGIN
    canvas = Image.new("RGB", (width, HEAD + LABELS + grid_height + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    _title(draw, comparison, width)
    canvas.paste(overview, (MARGIN, HEAD + LABELS))
    for index, spot in enumerate(spots):
        block, row = divmod(index, rows)
        corner = grid_left + block * block_width, HEAD + LABELS + row * (CELL + GAP)
        if row == 0:
            _heads(draw, columns, corner)
        for column in range(len(columns)):
            canvas.paste(_square(columns[column].pixels, spot), (corner[0] + column * (CELL + GAP), corner[1]))
        _number(draw, index + 1, corner)
    if not spots:
        _text(draw, (grid_left, HEAD + LABELS), "The pictures are equal.", 18, SOFT, CELL)
    return np.asarray(canvas)


def _rows(spots: int, columns: int) -> int:
    """How many spots to put below each other, so that the sheet gets the desired shape."""

    def badness(rows: int) -> float:
        blocks = -(-spots // rows)
        shape = (OVERVIEW + blocks * columns * CELL) / (HEAD + LABELS + rows * CELL)
        return abs(math.log(shape / SHAPE)) + (blocks * rows - spots) / 4  # empty places look worse

    return min(range(2, max(2, spots) + 1), key=badness)


def _heads(draw: ImageDraw.ImageDraw, columns: list[Column], corner: tuple[int, int]) -> None:
    for index, column in enumerate(columns):
        left = corner[0] + index * (CELL + GAP)
        _text(draw, (left, corner[1] - LABELS), column.title, 22, INK, CELL)
        _text(draw, (left, corner[1] - LABELS + 30), column.facts, 16, SOFT, CELL)


def _columns(comparison: Comparison) -> list[Column]:
    views = [Column(view.label, _facts(view), view.rgb) for view in comparison.views]
    errors = [
        Column(f"Error of {view.label}", f"0 black, {HEAT_END} grey levels pale", heat(view.error))
        for view in comparison.views
        if view.error is not None
    ]
    return views + errors


def _facts(view: Rendition) -> str:
    facts = [f"{view.seconds:.2f} s" if view.seconds is not None else view.detail]
    if view.psnr is not None:
        facts.append(f"{view.psnr:.2f} dB")
    if view.ssim is not None:
        facts.append(f"SSIM {view.ssim:.4f}")
    return ", ".join(facts)


def _title(draw: ImageDraw.ImageDraw, comparison: Comparison, width: int) -> None:
    (lr_height, lr_width), (sr_height, sr_width) = comparison.lr_size, comparison.sr_size
    facts = f"{lr_width} x {lr_height} to {sr_width} x {sr_height} pixels"
    if comparison.is_part:
        (height, width_shown), (top, left) = comparison.size, comparison.origin
        facts += f", of which {width_shown} x {height} at {left}, {top}"
    _text(draw, (MARGIN, 30), comparison.name, 34, INK, width - 2 * MARGIN)
    _text(draw, (MARGIN, 74), facts, 18, SOFT, width - 2 * MARGIN)


def _overview(comparison: Comparison, room: int) -> Image.Image:
    """The second view, scaled to the available space, with the spots framed and numbered."""
    height, width = comparison.size
    shrink = min(OVERVIEW / width, room / height)
    whole = Image.fromarray(comparison.views[1].rgb)
    image = whole.resize((max(1, round(width * shrink)), max(1, round(height * shrink))), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    for index, spot in enumerate(comparison.spots):
        left, top, side = (round(length * shrink) for length in (spot.left, spot.top, spot.side))
        draw.rectangle((left - 1, top - 1, left + side + 1, top + side + 1), outline="white", width=4)
        draw.rectangle((left, top, left + side, top + side), outline=ACCENT, width=2)
        _number(draw, index + 1, (left, top))
    return image


def _number(draw: ImageDraw.ImageDraw, number: int, corner: tuple[int, int]) -> None:
    left, top = corner
    draw.rectangle((left, top, left + 22, top + 24), fill=ACCENT)
    draw.text((left + 11, top + 12), str(number), "white", _font(16), anchor="mm")


def _square(pixels: NDArray[np.uint8], spot: Spot) -> Image.Image:
    crop = Image.fromarray(np.ascontiguousarray(around(pixels, spot, CELL)))
    return crop.resize((CELL, CELL), Image.Resampling.NEAREST)


def _text(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, size: int, colour: str, width: int) -> None:
    """Draw one line of text, shortened with dots if it is too wide."""
    font = _font(size, text.isascii())
    end = ""
    while text and font.getlength(text + end) > width:
        text, end = text[:-1], "..."
    draw.text(corner, text + end, colour, font)


@cache
def _font(size: int, ascii_only: bool = True) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in () if ascii_only else FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
