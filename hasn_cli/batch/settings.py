"""`Settings`: all that says what becomes of a picture, and how it is computed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from hasn_cli.enlarge import Size
from hasn_cli.images import DEFAULT_MAX_PIXELS, EncodeOptions

# these change where and in what room a result is computed, or whether there is one, but not what it is;
# weights are compared by what they hold and not by what they are called
_WITHOUT_EFFECT = ("device", "memory", "max_pixels", "compile", "weights")


@dataclass(frozen=True)
class Settings:
    """What becomes of each picture of a batch.

    Attributes:
        size: how large it becomes.
        weights: as `hasn_cli.weights.resolve` takes them.
        format: of the output; None: the output name's, else the input's.
        encode: how it is written.
        consistent, alpha: see `hasn_cli.enlarge.enlarge`.
        keep_times: the output gets the input's modification time.
        max_pixels: inputs that declare more are refused; None for no limit.
        device: see `hasn_cli.inference.Upscaler`; several, with commas between them, share a batch's pictures.
        precision, tile, overlap, memory, tta, compile: see `hasn_cli.inference.Upscaler`.

    Raises:
        UsageError: tiles that are too small, or cannot share the overlap.
    """

    size: Size = field(default_factory=Size)
    weights: str = "hasn"
    format: str | None = None
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
            from hasn_cli.inference.tiling import check_tile  # here, since it brings PyTorch with it

            check_tile(self.tile, self.overlap)

    @property
    def network_scale(self) -> int | None:
        """The network's scale, 2, 3 or 4, where it is the same for pictures of every size."""
        if self.size.width or self.size.height or self.size.fit or self.size.megapixels:
            return None
        return self.size.network_scale((1000, 1000))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values, from which `from_dict` makes equal settings."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return values

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Settings:
        """The settings that `to_dict` gave."""
        size = dict(values["size"])
        if isinstance(size["factor"], str):
            size["factor"] = Fraction(size["factor"])
        if size["fit"] is not None:
            size["fit"] = tuple(size["fit"])
        return Settings(**{**values, "size": Size(**size), "encode": EncodeOptions(**values["encode"])})

    def fingerprint(self) -> str:
        """Equal for settings that make the same output from the same input with the same weights."""
        values = {key: value for key, value in self.to_dict().items() if key not in _WITHOUT_EFFECT}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
