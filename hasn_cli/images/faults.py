"""Turns whatever decoders raise for a broken file into an `ImageError` that says what to do."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeVar

from hasn_cli.errors import HasnError, ImageError
from hasn_cli.images.formats import READ_ONLY
from hasn_cli.images.limits import TooMuch

_HINTS = {
    "heic": "copy it from the phone or camera again, or export it as JPEG there",
    "raw": "copy it from the camera or its card again",
    **dict.fromkeys(READ_ONLY.keys() - {"raw"}, "save it as PNG or TIFF in another program, and upscale that"),
}
"""Format → what to do about a file that is broken or not supported."""

T = TypeVar("T")


def guarded(name: str, read: Callable[[], T], format: str = "") -> T:
    """Call a decoder and turn its exceptions into an `ImageError`. Decoders raise many kinds for a broken file.

    Args:
        name: for messages.
        read: calls the decoder.
        format: of the file, for the hint.
    """
    hint = _HINTS.get(format)
    try:
        return read()
    except (HasnError, MemoryError):
        raise
    except TooMuch as error:
        raise ImageError(f"{name}: {error}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # decoders raise OSError too, but without an error number
            raise ImageError(f"{name}: {error.strerror}") from error
        if isinstance(error, struct.error | IndexError):  # a header was read beyond the end of what the file contains
            raise ImageError(f"{name}: broken: the file ends too early, or its header is damaged", hint) from error
        words = str(error).split()
        detail = " ".join(words)[:200] if words else type(error).__name__
        raise ImageError(f"{name}: broken or not supported ({detail})", hint) from error
