"""The comparison as one HTML page that needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from hasn_cli import __version__
from hasn_cli.compare.comparison import Comparison, Rendition
from hasn_cli.compare.heat import HEAT_END, heat, heat_css

WEBP_SIDE = 16_383
INFINITE = 1e6  # decibels; JSON cannot express infinity


def page(comparison: Comparison, *, about: str = "") -> str:
    """The page's HTML, UTF-8.

    Args:
        comparison: what the page shows; every view is included without loss.
        about: a sentence on how it was made (device, command), shown below the table.
    """
    style = _asset("viewer.css") + _asset("page.css")
    script = _asset("viewer.js") + _asset("page.js")
    # only this script and style are allowed, and nothing may be fetched
    policy = f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}"
    data = json.dumps(_data(comparison, about), ensure_ascii=False, allow_nan=False)
    return _fill(
        _asset("page.html"),
        policy=policy,
        title=html.escape(f"{comparison.name} – hasn compare"),
        style=style,
        viewer=viewer(_asset("picks.html")),
        script=script,
        data=data.replace("<", "\\u003c"),  # no file name can close the script element
    )


def viewer(beside: str) -> str:
    """The HTML of the frame with the divider. `beside` is the HTML that stands beside its zoom buttons."""
    return _fill(_asset("viewer.html"), beside=beside)


def _data(comparison: Comparison, about: str) -> dict[str, object]:
    megapixels = comparison.sr_size[0] * comparison.sr_size[1] / 1e6
    views = [_view(view, megapixels, comparison.icc) for view in comparison.views]
    errors = [
        {"label": f"Error of {view.label}", "isError": True, "image": _data_url(_png(heat(view.error)), "png")}
        for view in comparison.views
        if view.error is not None
    ]
    return {
        "name": comparison.name,
        "source": comparison.format.upper(),
        "lrSize": comparison.lr_size,
        "srSize": comparison.sr_size,
        "size": comparison.size,
        "origin": comparison.origin,
        "isPart": comparison.is_part,
        "factor": comparison.factor,
        "views": views + errors,
        "spots": [vars(spot) for spot in comparison.spots],
        "infinite": INFINITE,
        "ramp": {"css": heat_css(), "end": f"{HEAT_END} and more"},
        "about": about or f"Made by hasn {__version__}.",
    }


def _view(view: Rendition, megapixels: float, icc: bytes | None) -> dict[str, object]:
    return {
        "label": view.label,
        "detail": view.detail,
        "seconds": view.seconds,
        "speed": megapixels / view.seconds if view.seconds else None,
        "psnr": view.psnr if view.psnr is None else min(view.psnr, INFINITE),
        "ssim": view.ssim,
        "image": _image_url(view.pixels, icc),
    }


def _image_url(pixels: NDArray[np.uint8], icc: bytes | None) -> str:
    """A lossless data URL: WebP, the smallest, or PNG if the picture is too large or grey with a grey profile."""
    if pixels.shape[2] < 3 or max(pixels.shape[:2]) > WEBP_SIDE:
        return _data_url(_png(pixels, icc), "png")
    from PIL import Image

    buffer = io.BytesIO()
    # exact keeps colour under transparency; quality means effort here: this takes half the time for 1% more bytes
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=0, method=1, exact=True, icc_profile=icc or b"")
    return _data_url(buffer.getvalue(), "webp")


def _png(pixels: NDArray[np.uint8], icc: bytes | None = None) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", icc_profile=icc)
    return buffer.getvalue()


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _source(text: str) -> str:
    """The name of an inline text in a content security policy (CSP level 3, hash-source)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _fill(template: str, **texts: str) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: texts[found[1]], template)


@cache
def _asset(name: str) -> str:
    return resources.files("hasn_cli.compare").joinpath(name).read_text(encoding="utf-8")
