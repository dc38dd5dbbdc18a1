"""Graphics drawn at random: text, user interfaces, line art, charts and flat illustrations.

They are drawn much larger than needed and averaged down, to the HR size and to the LR size. So both are what a program
that draws with antialiasing shows at that size, and neither is a bicubic reduction of the other.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from hasn_cli.errors import MissingExtraError
from hasn_cli.training.degrade import Image, box_average

Canvas = ImageDraw.ImageDraw
Colour = tuple[int, int, int]

OVERSAMPLING = 2  # pixels drawn per HR pixel, along each axis
TEXT_SIZES = (7, 28)  # height of letters in LR pixels
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "for",
    "on",
    "that",
    "by",
    "this",
    "with",
    "you",
    "it",
    "not",
    "or",
    "be",
    "are",
    "from",
    "at",
    "as",
    "your",
    "all",
    "have",
    "new",
    "more",
    "an",
    "was",
    "we",
    "will",
    "home",
    "can",
    "us",
    "about",
    "if",
    "page",
    "my",
    "has",
    "search",
    "free",
    "but",
    "our",
    "one",
    "other",
    "do",
    "no",
    "information",
    "time",
    "they",
    "site",
    "he",
    "up",
    "may",
    "what",
    "which",
    "their",
    "news",
    "out",
    "use",
    "any",
    "there",
    "see",
    "only",
    "so",
    "his",
    "when",
    "contact",
    "here",
    "business",
    "who",
    "web",
    "also",
    "now",
    "help",
    "get",
    "view",
    "online",
    "first",
    "been",
    "would",
    "how",
    "were",
    "services",
    "some",
    "these",
    "click",
    "its",
    "like",
    "service",
    "than",
    "find",
    "price",
    "date",
    "back",
    "top",
    "people",
    "def",
    "return",
    "import",
    "class",
    "self",
    "None",
    "True",
    "False",
    "while",
    "else",
    "print",
    "value",
    "index",
    "length",
    "string",
    "array",
    "width",
    "height",
]
SYMBOLS = "0123456789.,:;!?()[]{}<>+-=/*%&@#_'\""


def graphic(side: int, scale: int, random: np.random.Generator) -> tuple[Image, Image]:
    """Draw one graphic.

    Args:
        side: of the LR picture, in pixels.
        scale: how many times larger HR is.
        random: every random choice comes from here.

    Returns:
        LR, side×side×3, and HR, s·side × s·side × 3.

    Raises:
        MissingExtraError: matplotlib, whose fonts are used, is not installed.
    """
    unit = scale * OVERSAMPLING  # pixels drawn per LR pixel
    canvas = PillowImage.new("RGB", (side * unit, side * unit), _background(random))
    kind = KINDS[int(random.integers(len(KINDS)))]
    kind(ImageDraw.Draw(canvas), side, unit, random)
    drawn = np.asarray(canvas)
    return box_average(drawn, unit), box_average(drawn, OVERSAMPLING)


def _text(draw: Canvas, side: int, unit: int, random: np.random.Generator) -> None:
    """Lines of words, as in a document or a terminal; sometimes several colours, as in an editor."""
    height = float(np.exp(random.uniform(*np.log(TEXT_SIZES))))
    font = _font(random, round(height * unit))
    colours = [_ink(random) for _ in range(int(random.choice([1, 1, 2, 4])))]
    gap = random.uniform(1.15, 1.7) * height
    top = -random.uniform(0, height)
    while top < side:
        left = -random.uniform(0, 4 * height)
        while left < side:
            word = _word(random)
            colour = colours[int(random.integers(len(colours)))]
            draw.text((round(left * unit), round(top * unit)), word, colour, font)
            left += font.getlength(word + " ") / unit
        top += gap


def _interface(draw: Canvas, side: int, unit: int, random: np.random.Generator) -> None:
    """Panels, buttons, fields and icons with labels; edges lie on whole LR pixels, as on a screen."""
    for _ in range(int(random.integers(3, 9))):
        left, top = (int(random.integers(-side // 4, side)) for _ in range(2))
        width, height = int(random.integers(8, side)), int(random.integers(6, max(7, side // 2)))
        box = (left * unit, top * unit, (left + width) * unit - 1, (top + height) * unit - 1)
        line = int(random.integers(0, 3))
        outline = _ink(random) if line else None
        radius = int(random.integers(0, 7)) * unit
        draw.rounded_rectangle(box, min(radius, (box[3] - box[1]) // 2), _background(random), outline, line * unit)
        if random.random() < 0.7:
            size = random.uniform(8, 14)
            place = ((left + 3) * unit, round((top + height / 2 - size / 2) * unit))
            draw.text(place, _word(random), _ink(random), _font(random, round(size * unit)))


def _line_art(draw: Canvas, side: int, unit: int, random: np.random.Generator) -> None:
    """Straight, curved and round strokes from half a pixel to four pixels wide; grids and hatching."""
    ink = _ink(random)
    for _ in range(int(random.integers(4, 16))):
        width = max(1, round(random.choice([0.5, 1, 1, 1, 1.5, 2, 3, 4]) * unit))
        kind = random.integers(4)
        x, y, u, v = (random.uniform(-0.1, 1.1, 4) * side * unit).tolist()
        if kind == 0:
            draw.line((x, y, u, v), ink, width)
        elif kind == 1:
            box = (min(x, u), min(y, v), max(x, u), max(y, v))
            start, end = sorted(random.uniform(0, 720, 2).tolist())
            draw.arc(box, start, end, ink, width)
        elif kind == 2:
            _curve(draw, side * unit, ink, width, random)
        else:
            _strokes_on_the_grid(draw, side, unit, ink, random)
        if random.random() < 0.2:
            ink = _ink(random)


def _chart(draw: Canvas, side: int, unit: int, random: np.random.Generator) -> None:
    """Axes with ticks, bars or curves, and labels."""
    ink, font = _ink(random), _font(random, round(random.uniform(7, 12) * unit))
    left, bottom = int(random.integers(4, side // 3)), int(random.integers(side // 2, side - 4))
    draw.line((left * unit, 0, left * unit, bottom * unit), ink, unit)
    draw.line((left * unit, bottom * unit, side * unit, bottom * unit), ink, unit)
    step = int(random.integers(6, 20))
    for at in range(left, side, step):
        draw.line((at * unit, bottom * unit, at * unit, (bottom + 3) * unit), ink, unit)
        draw.text((at * unit, (bottom + 4) * unit), str(at * 5), ink, font)
        if random.random() < 0.5:
            height = random.uniform(0.1, 0.9) * bottom
            right = at + step * random.uniform(0.4, 1.0)
            draw.rectangle((at * unit, (bottom - height) * unit, right * unit, bottom * unit - 1), _ink(random))
    for _ in range(int(random.integers(0, 3))):
        _curve(draw, side * unit, _ink(random), round(random.choice([1, 1.5, 2]) * unit), random)


def _illustration(draw: Canvas, side: int, unit: int, random: np.random.Generator) -> None:
    """Flat polygons and ellipses, with or without an outline, as in comics and logos."""
    outline = _ink(random) if random.random() < 0.5 else None
    width = round(random.uniform(1, 3) * unit)
    for _ in range(int(random.integers(3, 12))):
        colour = _background(random)
        if random.random() < 0.5:
            x, y, u, v = (random.uniform(-0.2, 1.2, 4) * side * unit).tolist()
            draw.ellipse((min(x, u), min(y, v), max(x, u), max(y, v)), colour, outline, width)
        else:
            points = random.uniform(-0.2, 1.2, (int(random.integers(3, 8)), 2)) * side * unit
            angles = np.arctan2(*(points - points.mean(0)).T)
            corners = [tuple(point) for point in points[np.argsort(angles)].tolist()]
            draw.polygon(corners, colour, outline, width)


KINDS: tuple[Callable[[Canvas, int, int, np.random.Generator], None], ...] = (
    _text,
    _text,
    _interface,
    _line_art,
    _chart,
    _illustration,
)


def _curve(draw: Canvas, length: int, ink: Colour, width: int, random: np.random.Generator) -> None:
    """A smooth stroke: a cubic Bézier curve as a chain of short lines."""
    corners = random.uniform(-0.1, 1.1, (4, 2)) * length
    t = np.linspace(0, 1, 48)[:, None]
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    draw.line([tuple(point) for point in (weights @ corners).tolist()], ink, width, joint="curve")


def _strokes_on_the_grid(draw: Canvas, side: int, unit: int, ink: Colour, random: np.random.Generator) -> None:
    """Horizontal or vertical lines one or two LR pixels wide, at a regular distance, on whole LR pixels."""
    width, step = int(random.integers(1, 3)), int(random.integers(3, 17))
    upright = random.random() < 0.5
    start, end = sorted(random.integers(0, side + 1, 2).tolist())
    for at in range(int(random.integers(step)), side, step):
        box = (start, at, end, at + width) if not upright else (at, start, at + width, end)
        corners = [value * unit for value in box]
        if corners[2] > corners[0] and corners[3] > corners[1]:
            draw.rectangle((*corners[:2], corners[2] - 1, corners[3] - 1), ink)


def _word(random: np.random.Generator) -> str:
    if random.random() < 0.2:
        return "".join(SYMBOLS[i] for i in random.integers(len(SYMBOLS), size=int(random.integers(1, 8))))
    word = WORDS[int(random.integers(len(WORDS)))]
    return str(random.choice([word, word, word.capitalize(), word.upper()]))


def _background(random: np.random.Generator) -> Colour:
    """Mostly white, black or a light or dark grey, else any colour."""
    choice = random.random()
    if choice < 0.3:
        return (255, 255, 255)
    if choice < 0.6:
        grey = int(random.integers(0, 50) if random.random() < 0.5 else random.integers(200, 256))
        return (grey, grey, grey)
    return _colour(random)


def _ink(random: np.random.Generator) -> Colour:
    """Black or a grey in a third of the cases, else any colour."""
    if random.random() < 0.33:
        grey = int(random.choice([0, 0, 255, int(random.integers(256))]))
        return (grey, grey, grey)
    return _colour(random)


def _colour(random: np.random.Generator) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(*random.random(3).tolist())
    return round(red * 255), round(green * 255), round(blue * 255)


def _font(random: np.random.Generator, size: int) -> ImageFont.FreeTypeFont:
    names = _font_files()
    return _loaded(names[int(random.integers(len(names)))], max(4, size))


@lru_cache(maxsize=256)
def _loaded(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


@lru_cache(maxsize=1)
def _font_files() -> tuple[Path, ...]:
    """The text fonts that matplotlib brings: the same on every machine, so that a batch depends on its number alone."""
    try:
        folder = Path(str(files("matplotlib"))) / "mpl-data" / "fonts" / "ttf"
    except ModuleNotFoundError:
        raise MissingExtraError("--degrade photo, which draws text with matplotlib's fonts,", "train") from None
    prefixes = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr10", "cmss10", "cmtt10", "cmb10", "cmti10")
    return tuple(path for path in sorted(folder.glob("*.ttf")) if path.stem.startswith(prefixes))
