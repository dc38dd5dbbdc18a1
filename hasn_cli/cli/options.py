"""What the commands' options have in common: groups in `--help`, values with units, and options of several commands."""

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
LARGEST_SCALE = 16  # as in `enlarge`, which takes longer to import than `hasn --help` may


class GroupedOption(click.Option):
    """An option that `--help` shows under the heading of its group."""

    def __init__(self, *args: Any, group: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """What `--help` shows in brackets. The range is left out: the help says it, and so does the error message."""
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
            self.fail(f"{value} is not above 1 and at most {LARGEST_SCALE}", param, ctx)
        return factor


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


class Quality(click.IntRange):
    """The quality of lossy formats, a number from 1 to 100."""

    def __init__(self) -> None:
        super().__init__(1, 100)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            quality = int(value)
        except ValueError:
            quality = 0
        if not 1 <= quality <= 100:
            self.fail(f"{value!r} is not a whole number from 1 (smallest file) to 100 (best picture)", param, ctx)
        return quality


class Megapixels(click.FloatRange):
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


def device_option(several: bool = False) -> Callable[[Decorated], Decorated]:
    """`--device`; `several` where a command can share its pictures between devices."""
    more = " Several share the pictures: cuda:0,cuda:1." if several else ""
    return option(
        "-d",
        "--device",
        group="Network",
        default="auto",
        show_default=True,
        metavar="DEVICE",
        help=f"cpu, cuda, cuda:1 or mps. auto takes a GPU if there is one.{more}",
    )


def limit_option(group: str) -> Callable[[Decorated], Decorated]:
    """`--max-input-megapixels`, for `most_pixels`; `--max-megapixels` is its former name."""
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


def most_pixels(given: dict[str, Any]) -> int | None:
    """The limit that `open_picture` takes, from the options of `limit_option`."""
    from hasn_cli.images import DEFAULT_MAX_PIXELS

    megapixels = given["max_input_megapixels"]
    if megapixels is None:
        megapixels = given["max_megapixels"]
    return DEFAULT_MAX_PIXELS if megapixels is None else int(megapixels * 1e6) or None
