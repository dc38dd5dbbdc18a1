"""What a client may ask for: the parameters of a request, as settings, and names that are safe to show and to store.

The table `PARAMETERS` is also the source of the OpenAPI description, so that the two cannot differ.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from hasn_cli.batch.naming import size_suffix
from hasn_cli.batch.settings import Settings
from hasn_cli.enlarge import LARGEST, Size
from hasn_cli.errors import UsageError
from hasn_cli.images import EncodeOptions, format_for_name
from hasn_cli.images.formats import FORMATS, SUFFIXES, format_names, suffix_for_format

AUTO = "auto"
LONGEST_PART = 100  # characters of a file's or folder's name
DEEPEST = 8  # folders in a name
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # on Windows
_GROUP = re.compile(r"[A-Za-z0-9_-]{16,64}")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a request.

    Attributes:
        read: makes the value from the text, or raises `ValueError`.
        meaning: for the description, and for the message if the text has no valid value.
        schema: JSON Schema of the value.
    """

    read: Callable[[str], Any]
    meaning: str
    schema: dict[str, Any]


def _scale(text: str) -> Fraction:
    match = re.fullmatch(r"x?(\d{1,4}(?:\.\d{1,6})?)(%?)", text)
    factor = Fraction(match[1]) / (100 if match[2] else 1) if match else Fraction(0)
    if not 1 < factor <= LARGEST:
        raise ValueError
    return factor


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = int(text) if re.fullmatch(r"[0-9]{1,7}", text) else -1
        if not least <= number <= most:
            raise ValueError
        return number

    return read


def _box(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,5})[x×]([1-9]\d{0,5})", text)
    if match is None:
        raise ValueError
    return int(match[2]), int(match[1])


def _format(text: str) -> str:
    found = format_for_name(text) if len(text) <= 16 else None
    if found is None:
        raise ValueError
    return found


def _flag(text: str) -> bool:
    return {"": True, "1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False}[text]


def _colour(text: str) -> str:
    if len(text) > 32:
        raise ValueError
    EncodeOptions(background=text)  # checks it
    return text


_WHOLE = {"type": "integer", "minimum": 1}
_FLAG = {"type": "boolean", "default": False}

PARAMETERS: dict[str, Parameter] = {
    "scale": Parameter(
        _scale, f"how many times larger, above 1 and at most {LARGEST}, for example 4, 1.5 or 200%",
        {"type": "string", "default": "4"},
    ),
    "width": Parameter(_whole(1, 1_000_000), "the width of the result in pixels, instead of a scale", _WHOLE),
    "height": Parameter(_whole(1, 1_000_000), "the height of the result in pixels, instead of a scale", _WHOLE),
    "fit": Parameter(_box, "a box that the result fits into, for example 3840x2160, instead of a scale",
                     {"type": "string", "pattern": r"^\d+x\d+$"}),
    "format": Parameter(_format, f"the format of the result ({', '.join(format_names())}); by default that of the "
                        "picture", {"type": "string", "enum": format_names()}),
    "quality": Parameter(_whole(1, 100), "the quality in lossy formats, from 1 to 100",
                         {"type": "integer", "minimum": 1, "maximum": 100}),
    "lossless": Parameter(_flag, "true or false: no loss, in formats that have the choice", _FLAG),
    "background": Parameter(_colour, "the colour under transparent pixels, in formats without transparency, for "
                            "example white", {"type": "string"}),
    "first_frame": Parameter(_flag, "true or false: only the first frame or page", _FLAG),
    "strip": Parameter(_flag, "true or false: write no metadata", _FLAG),
}  # fmt: skip
"""Name → parameter, of all that change the result. `weights` is added by the server, which knows the choices."""

NAME = Parameter(str, "the picture's file name, for messages and for the name of the result", {"type": "string"})
GROUP = Parameter(
    str,
    "16 to 64 letters and digits that a client chooses at random, to watch several jobs together",
    {"type": "string"},
)


@dataclass(frozen=True)
class Asked:
    """One request's wishes: the settings, the picture's name, and the group of jobs that it belongs to."""

    settings: Settings
    name: str
    group: str | None = None


class Asking:
    """Reads the parameters of requests.

    Args:
        settings: what the server was started with: device, precision, memory, limits, and the weights for `auto`.
        weights: the names that clients may choose from, besides `auto`.
    """

    def __init__(self, settings: Settings, weights: Sequence[str] = ()) -> None:
        self._settings = settings
        self.weights = (AUTO, *weights)

    def parameters(self) -> dict[str, Parameter]:
        """All parameters, for the description."""
        schema = {"type": "string", "enum": list(self.weights), "default": AUTO}
        weights = Parameter(str, f"the weights: {', '.join(self.weights)}", schema)
        return {**PARAMETERS, "weights": weights, "name": NAME}

    def read(self, given: Iterable[tuple[str, str]], *, name: str = "", grouped: bool = False) -> Asked:
        """Read a request's parameters.

        Args:
            given: names and values.
            name: the picture's name, if the parameters contain none.
            grouped: whether `group` is allowed.

        Raises:
            UsageError: a parameter is unknown, repeated or invalid, or two of them exclude each other.
        """
        known = {**self.parameters(), **({"group": GROUP} if grouped else {})}
        values: dict[str, Any] = {}
        for key, text in given:
            if key not in known:
                raise UsageError(f"there is no parameter '{clean(key)}'", f"the parameters are {', '.join(known)}")
            if key in values:
                raise UsageError(f"the parameter {key} was given twice", "give it once")
            try:
                values[key] = known[key].read(text)
            except (ValueError, KeyError, OverflowError):
                raise UsageError(f"{key} cannot be '{clean(text)}'", f"it is {known[key].meaning}") from None
            except UsageError as error:
                raise UsageError(error.message, f"it is {known[key].meaning}") from None
        group = values.get("group")
        if group is not None and not _GROUP.fullmatch(group):
            raise UsageError("this is not a valid group", f"it is {GROUP.meaning}")
        return Asked(self._make(values), safe_name(values.get("name") or name), group)

    def _make(self, values: dict[str, Any]) -> Settings:
        from dataclasses import replace

        sizes = [" or ".join(keys) for keys in (("scale",), ("fit",), ("width", "height")) if values.keys() & set(keys)]
        if len(sizes) > 1:
            raise UsageError(f"{sizes[0]} and {sizes[1]} exclude each other", "give one of them")
        weights = values.get("weights", AUTO)
        if weights not in self.weights:
            raise UsageError(f"weights cannot be '{clean(weights)}'", f"use one of {', '.join(self.weights)}")
        quality = values.get("quality")
        encode = EncodeOptions(
            quality=quality or EncodeOptions.quality,
            lossless=values.get("lossless") or (None if quality is None else False),
            strip=values.get("strip", False),
            background=values.get("background"),
            first_frame=values.get("first_frame", False),
        )
        size = Size(
            factor=values.get("scale", Fraction(4)),
            width=values.get("width"),
            height=values.get("height"),
            fit=values.get("fit"),
        )
        chosen = self._settings.weights if weights == AUTO else weights
        return replace(self._settings, size=size, format=values.get("format"), encode=encode, weights=chosen)


def clean(text: str, longest: int = 80) -> str:
    """A text from a client in one line: without control characters, and not too long."""
    shown = "".join(c if c.isprintable() else "�" for c in text)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def safe_name(text: str) -> str:
    """A client's file name as a relative path that is safe on every system, with `/` between folders.

    It is used in messages, as the name of a download and in a ZIP archive, but never on this machine's disk.
    """
    parts = re.split(r"[/\\]", unicodedata.normalize("NFC", text[:4096]))
    safe = [_safe_part(part) for part in parts if part.strip(". ")]
    return "/".join([*safe[:-1][:DEEPEST], *safe[-1:]]) or "picture"


def _safe_part(part: str) -> str:
    printable = "".join(c if c.isprintable() and c not in '<>:"|?*' else "_" for c in part).strip(" ").rstrip(". ")
    stem, dot, ending = printable.rpartition(".")
    if len(printable) > LONGEST_PART:
        printable = (
            stem[: LONGEST_PART - len(ending) - 1] + dot + ending if len(ending) < 10 else printable[:LONGEST_PART]
        )
    return f"_{printable}" if _RESERVED.match(printable) or printable.startswith(".") else printable or "_"


def result_name(name: str, settings: Settings, format: str) -> str:
    """The name of a result: `photo.jpg` enlarged four times is `photo_x4.jpg`, as on the command line."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.rpartition(".")
    own = SUFFIXES.get(f".{ending}".lower()) if dot and stem else None
    base = stem if own else file
    suffix = f".{ending}" if own == format else suffix_for_format(format)
    return f"{folder}{slash}{base}{size_suffix(settings.size)}{suffix}"


def media_type(format: str) -> str:
    """The media type of a format."""
    special = {"jpeg2000": "image/jp2", "jpegxl": "image/jxl", "ppm": "image/x-portable-anymap", "tga": "image/x-tga",
               "pfm": "image/x-portable-floatmap", "ico": "image/x-icon"}  # fmt: skip
    return special.get(format, f"image/{format}" if format in FORMATS else "application/octet-stream")
