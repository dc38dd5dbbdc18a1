"""`Settings`: how to enlarge, compute and write each picture."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from hasn_cli.enlarge import Size
from hasn_cli.images import DEFAULT_MAX_PIXELS, EncodeOptions
from hasn_cli.video.containers import Codec

# These change where and in how much memory a result is computed, or whether there is one, but not the result itself.
# Weights are compared by their content instead of their name.
_WITHOUT_EFFECT = ("device", "memory", "max_pixels", "compile", "weights")


@dataclass(frozen=True)
class Settings:
    """The settings for each picture of a batch.

    Attributes:
        size: the size of the output.
        weights: see `hasn_cli.weights.resolve`.
        format: the output format; None: by the output's name, else the input's format.
        container, codec: of videos; see `hasn_cli.video.containers`. None: by the output's name, and its usual codec.
        encode: how to encode the output.
        consistent, alpha: see `hasn_cli.enlarge.enlarge`.
        keep_times: give the output the input's modification time.
        max_pixels: refuse inputs that declare more pixels; None: no limit.
        device: see `hasn_cli.inference.Upscaler`. Several devices, separated by commas, share a batch's pictures.
        precision, tile, overlap, memory, tta, compile: see `hasn_cli.inference.Upscaler`.

    Raises:
        UsageError: the tiles are too small, or too small for the overlap.
    """

    size: Size = field(default_factory=Size)
    weights: str = "hasn"
    format: str | None = None
    container: str | None = None
    codec: Codec | None = None
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    consistent: bool = False
    alpha: str = "blend"
    keep_times: bool = False
    max_pixels: int | None = DEFAULT_MAX_PIXELS
    device: str = "auto"
    precision: str = "auto"
    tile: int | None = None
    overlap: int | None = None
    memory: int | None = None
    tta: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.tile is not None or self.overlap is not None:
            from hasn_cli.inference.tiling import check_tile  # imported here, since it imports PyTorch

            check_tile(self.tile, self.overlap)

    @property
    def network_scale(self) -> int | None:
        """The scale, one of `enlarge.PASSES`; None if it depends on the size of a picture."""
        if self.size.width or self.size.height or self.size.fit or self.size.megapixels:
            return None
        return self.size.network_scale((1000, 1000))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values. `from_dict` makes equal settings of them."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return values

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Settings:
        """The settings from the values of `to_dict`."""
        size = dict(values["size"])
        if isinstance(size["factor"], str):
            size["factor"] = Fraction(size["factor"])
        if size["fit"] is not None:
            size["fit"] = tuple(size["fit"])
        return Settings(**{**values, "size": Size(**size), "encode": EncodeOptions(**values["encode"])})

    def fingerprint(self) -> str:
        """A hash that is equal for settings that give the same output from the same input with the same weights."""
        values = {key: value for key, value in self.to_dict().items() if key not in _WITHOUT_EFFECT}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
