"""What the commands' options have in common: their groups in `--help`, and the values with units."""

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


class GroupedOption(click.Option):
    """An option that `--help` shows under a heading of its group's."""

    def __init__(self, *args: Any, group: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """What stands in brackets after the help; ranges are left to the error message, which tells them."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        return extra


class GroupedCommand(click.Command):
    """A command whose `--help` shows its options in groups, in the order in which the groups first appear."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Argument):
                continue  # the usage line and the text above tell of it
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
    """A factor of enlargement: 2, 3, 4, or a fraction such as 1.5 or 8/3, above 1 and up to 4."""

    name = "factor"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Fraction:
        try:
            factor = Fraction(str(value).lower().removeprefix("x"))
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is not a number", param, ctx)
        if not 1 < factor <= 4:
            self.fail(f"{value} is not above 1 and at most 4", param, ctx)
        return factor


class Bytes(click.ParamType[int]):
    """An amount of memory: 800M, 2G, 1.5GiB; K, M and G are powers of 1024."""

    name = "size"
    units: dict[str, int] = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}  # noqa: RUF012 (never changed)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE)
        if match is None:
            self.fail(f"{value!r} is not an amount of memory such as 800M or 2G", param, ctx)
        amount = int(float(match[1]) * 1024 ** self.units[match[2].upper()])
        if amount == 0:
            self.fail("the budget must be more than nothing", param, ctx)
        return amount


class Box(click.ParamType[tuple[int, int]]):
    """A box to fit into, WIDTHxHEIGHT; held as (height, width)."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([1-9]\d*)[x×]([1-9]\d*)", value.strip().lower())
        if match is None:
            self.fail(f"{value!r} is not a size such as 1920x1080", param, ctx)
        return int(match[2]), int(match[1])


class Megapixels(click.FloatRange):
    """Millions of pixels, from 0 up to any that can be counted: `inf` and `nan` are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        megapixels: float = super().convert(value, param, ctx)
        if not math.isfinite(megapixels * 1e6):
            self.fail(f"{value} is no amount of pixels", param, ctx)
        return megapixels


class TileSide(click.ParamType[int | None]):
    """`auto` (None), 0 for never, or the side of a tile in LR pixels."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "auto" or value is None:
            return None
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither auto nor a number", param, ctx)


precision_option = option(
    "-p",
    "--precision",
    group="Network",
    type=click.Choice(["auto", "fp32", "fp16", "bf16"]),
    default="auto",
    show_default=True,
    help="Of the feature maps.",
)
memory_option = option(
    "--memory", group="Network", type=Bytes(), metavar="2G", help="Budget.  [default: a share of what is free]"
)


def limit_option(group: str) -> Callable[[Decorated], Decorated]:
    """`--max-megapixels`, for `most_pixels`."""
    return option(
        "--max-megapixels", group=group, type=Megapixels(0), metavar="N", help="Refuse larger inputs; 0: no limit."
    )


def most_pixels(megapixels: float | None) -> int | None:
    """The limit that `open_picture` takes, from what `--max-megapixels` was given."""
    from hasn_cli.images import DEFAULT_MAX_PIXELS

    return DEFAULT_MAX_PIXELS if megapixels is None else int(megapixels * 1e6) or None
