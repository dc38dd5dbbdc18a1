"""Options that several commands share, types for their values, and groups in `--help`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeVar

import click
from click.types import OptionHelpExtra

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

HELP_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
LARGEST_SCALE = 16  # the same as in `enlarge`, which would make `hasn --help` slow if it were imported here


class GroupedOption(click.Option):
    """An option that `--help` shows under the heading of its group."""

    def __init__(self, *args: Any, group: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """What `--help` shows in brackets. Ranges are left out, since the help and the error messages state them."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        return extra


class GroupedCommand(click.Command):
    """A command whose `--help` shows its options in groups, in the order in which the groups first appear."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Argument):
                continue  # described in the usage line and the text above
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(param, "group", "Help"), []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def option(*declarations: str, group: str, **attributes: Any) -> Callable[[Decorated], Decorated]:
    """`click.option` with a group."""
    return click.option(*declarations, cls=GroupedOption, group=group, **attributes)


class Factor(click.ParamType[Fraction]):
    """How many times larger: 2, 1.5, 8/3, x4 or 200%; above 1 and at most 16."""

    name = "factor"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Fraction:
        text = str(value).strip().lower()
        try:
            if text.endswith("%"):
                factor = Fraction(text[:-1]) / 100
            else:
                factor = Fraction(text.removeprefix("x").removesuffix("x"))
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is not a scale such as 2, 1.5 or 200%", param, ctx)
        if not 1 < factor <= LARGEST_SCALE:
            advice = f"; for a percentage, write {value}%" if 100 < factor <= 100 * LARGEST_SCALE else ""
            self.fail(f"the scale must be above 1 and at most {LARGEST_SCALE}, not {value}{advice}", param, ctx)
        return factor


class ClipTime(click.ParamType[float]):
    """A time in a video: 12.5 for seconds, or 1:02.5, or 1:00:02."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        parts = str(value).split(":")
        try:
            numbers = [float(part) for part in parts]
        except ValueError:
            numbers = [-1.0]
        if len(parts) > 3 or not all(0 <= number < 1e6 for number in numbers):
            self.fail(f"{value!r} is not a time such as 12.5 or 1:02.5", param, ctx)
        return sum(number * 60.0**power for power, number in enumerate(reversed(numbers)))


_MOST_BYTES = 1 << 60


class Bytes(click.ParamType[int]):
    """An amount of memory: 800M, 2G, 1.5GiB. K, M and G are powers of 1024."""

    name = "size"
    units: dict[str, int] = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}  # noqa: RUF012 (never changed)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE)
        if match is None:
            self.fail(f"{value!r} is not an amount of memory such as 800M or 2G", param, ctx)
        exact = float(match[1]) * 1024 ** self.units[match[2].upper()]
        if exact > _MOST_BYTES:
            self.fail("that is more memory than any machine has", param, ctx)
        amount = int(exact)
        if amount == 0:
            self.fail("the amount of memory must be above 0", param, ctx)
        return amount


class Box(click.ParamType[tuple[int, int]]):
    """A box to fit into, WIDTHxHEIGHT; kept as (height, width)."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([1-9]\d{0,11})[x×]([1-9]\d{0,11})", value.strip().lower())
        if match is None:
            self.fail(f"{value!r} is not a size such as 1920x1080", param, ctx)
        return int(match[2]), int(match[1])


class Whole(click.IntRange):
    """A whole number in a range, with an error message in words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number: int = super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is not a whole number{self._range()}", param, ctx)
        return number

    def _range(self) -> str:
        return f" from {self.min} to {self.max}" if self.max is not None else f" of at least {self.min}"


class Number(click.FloatRange):
    """A number from 0 up or above 0, or in a range, with an error message in words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number: float = super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is not a number {self._range()}", param, ctx)
        return number

    def _range(self) -> str:
        if self.max is not None:
            return f"from {self.min:g} to {self.max:g}"
        return f"above {self.min:g}" if self.min_open else f"of at least {self.min:g}"


class Quality(Whole):
    """The quality of lossy formats, a number from 1 to 100."""

    def __init__(self) -> None:
        super().__init__(1, 100)

    def _range(self) -> str:
        return " from 1 (smallest file) to 100 (best picture)"


class Megapixels(Number):
    """Millions of pixels: a finite number from 0 up."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        megapixels: float = super().convert(value, param, ctx)
        if not math.isfinite(megapixels * 1e6):
            self.fail(f"{value} is not a number of megapixels", param, ctx)
        return megapixels


class TileSide(click.ParamType[int | None]):
    """`auto` (None), 0 for never, or the side of a tile in pixels of the input."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "auto" or value is None:
            return None
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither auto nor a number of pixels", param, ctx)


precision_option = option(
    "-p",
    "--precision",
    group="Network",
    type=click.Choice(["auto", "fp32", "fp16", "bf16"]),
    default="auto",
    show_default=True,
    metavar="TYPE",
    help="Number format to compute in: auto, fp32, fp16 or bf16. auto is fp16 on CUDA, else fp32.",
)
memory_option = option(
    "--memory",
    group="Network",
    type=Bytes(),
    metavar="SIZE",
    help="Memory to use, e.g. 2G or 800M.  [default: 60 % of what is free]",
)


def complete_formats(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The names of formats that begin with `incomplete`, for a shell."""
    from hasn_cli.images.formats import format_names

    return [name for name in format_names() if name.startswith(incomplete)]


def complete_devices(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The kinds of devices that begin with `incomplete`, for a shell."""
    return [name for name in ("auto", "cpu", "cuda", "mps") if name.startswith(incomplete)]


def device_option(several: bool = False) -> Callable[[Decorated], Decorated]:
    """`--device`. `several`: whether the command can divide its pictures among devices."""
    more = " Several share the pictures: cuda:0,cuda:1." if several else ""
    return option(
        "-d",
        "--device",
        group="Network",
        default="auto",
        show_default=True,
        metavar="DEVICE",
        shell_complete=complete_devices,
        help=f"cpu, cuda, cuda:1 or mps. auto takes a GPU if there is one.{more}",
    )


def limit_option(group: str) -> Callable[[Decorated], Decorated]:
    """`--max-input-megapixels`, for `most_pixels`. Its old name `--max-megapixels` still works, but is hidden."""
    current = option(
        "--max-input-megapixels",
        "max_input_megapixels",
        group=group,
        type=Megapixels(0),
        metavar="N",
        help="Refuse inputs of more than N megapixels, all frames or pages together. 0: no limit."
        "  [default: 256 for one frame, 10240 in all]",
    )
    former = click.option("--max-megapixels", "max_megapixels", type=Megapixels(0), hidden=True)

    def both(command: Decorated) -> Decorated:
        return current(former(command))

    return both


def most_pixels(megapixels: float | None, old: float | None) -> int | None:
    """The limit for `open_picture`, from the two names of `limit_option`."""
    from hasn_cli.images import DEFAULT_MAX_PIXELS

    limit = old if megapixels is None else megapixels
    return DEFAULT_MAX_PIXELS if limit is None else int(limit * 1e6) or None
