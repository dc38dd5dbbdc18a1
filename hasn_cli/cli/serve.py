"""`hasn serve`: a page to drop pictures on, and an HTTP interface for other programs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from hasn_cli.cli.options import (
    HELP_SETTINGS,
    Bytes,
    GroupedCommand,
    Megapixels,
    Number,
    Whole,
    device_option,
    memory_option,
    option,
    precision_option,
)
from hasn_cli.errors import MissingExtraError

if TYPE_CHECKING:
    from hasn_cli.serve.jobs import Task

ADDRESS, LIMITS, NETWORK, MESSAGES = "Address", "Limits", "Network", "Messages"


@click.command("serve", cls=GroupedCommand, context_settings=HELP_SETTINGS)
@option("--port", group=ADDRESS, type=Whole(0, 65_535), default=7654, show_default=True, metavar="N",
        help="Port to listen on; 0 takes any free one.")  # fmt: skip
@option("--host", group=ADDRESS, default="127.0.0.1", show_default=True, metavar="ADDRESS",
        help="Address to listen on. 0.0.0.0 lets other machines in, with a token only.")  # fmt: skip
@option("--allow-host", group=ADDRESS, multiple=True, metavar="NAME",
        help="Another name of this server, for example behind a proxy.")  # fmt: skip
@option("--open", "open_it", group=ADDRESS, is_flag=True, help="Open the page in the browser.")
@option("--max-upload", group=LIMITS, type=Bytes(), default="256M", show_default=True, metavar="SIZE",
        help="Largest file of a picture.")  # fmt: skip
@option("--max-input-megapixels", group=LIMITS, type=Megapixels(0, min_open=True), default=100, show_default=True,
        metavar="N", help="Largest picture, all frames or pages together.")  # fmt: skip
@option("--max-output-megapixels", group=LIMITS, type=Megapixels(0, min_open=True), default=1000, show_default=True,
        metavar="N", help="Largest result, all frames or pages together.")  # fmt: skip
@option("--max-queue", group=LIMITS, type=Whole(1, 100_000), default=256, show_default=True, metavar="N",
        help="Pictures that may wait. More are refused, with the time after which to try again.")  # fmt: skip
@option("--max-stored", group=LIMITS, type=Bytes(), default="8G", show_default=True, metavar="SIZE",
        help="Disk space for uploads and results.")  # fmt: skip
@option("--time-limit", group=LIMITS, type=Number(0, min_open=True), default=1800, show_default=True, metavar="SECONDS",
        help="Longest time to compute a picture.")  # fmt: skip
@option("-j", "--jobs", group=LIMITS, type=Whole(1, 64), default=2, show_default=True, metavar="N",
        help="Pictures to work on at once.")  # fmt: skip
@option("-w", "--weights", group=NETWORK, default="hasn", show_default=True, metavar="WEIGHTS",
        type=click.Path(readable=False, path_type=str),
        help="As for hasn upscale. Clients can also choose among those in the package.")  # fmt: skip
@device_option(several=True)
@precision_option
@memory_option
@option("-q", "--quiet", group=MESSAGES, is_flag=True, help="Show only errors.")
@option("-v", "--verbose", group=MESSAGES, is_flag=True, help="Show tracebacks of errors.")
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> int:
    """Serve a page to drop pictures on, and an HTTP interface, on this machine.

    \b
      hasn serve --open                                          the page, in the browser
      curl -F picture=@a.jpg localhost:7654/upscale -o large.jpg   another program

    Only this machine can reach it, unless --host says otherwise. Then a token is needed: that in the environment
    variable HASN_TOKEN, or one that is printed. Ctrl-C ends it.
    """
    ctx.obj.verbose |= given["verbose"]
    try:
        from hasn_cli.serve.server import Options, choose_token, serve
    except ImportError as error:
        raise MissingExtraError("hasn serve", "web") from error
    from hasn_cli.batch.settings import Settings
    from hasn_cli.cli.upscale import fetch_weights
    from hasn_cli.serve.limits import Limits
    from hasn_cli.weights import AUTOMATIC, NAMES, RELEASED

    limits = Limits(
        upload=given["max_upload"],
        input_pixels=int(given["max_input_megapixels"] * 1e6),
        output_pixels=int(given["max_output_megapixels"] * 1e6),
        waiting=given["max_queue"],
        stored=given["max_stored"],
        compute=given["time_limit"],
    )
    token = choose_token(given["host"], os.environ.get("HASN_TOKEN"))
    options = Options(given["host"], given["port"], token, given["allow_host"], given["jobs"], limits)
    settings = Settings(
        weights=given["weights"],
        device=given["device"],
        precision=given["precision"],
        memory=given["memory"],
        max_pixels=limits.input_pixels,
    )

    def on_start(port: int) -> None:
        _announce(given, token, port)

    fetch_weights(settings)
    others = [name for name in NAMES if name not in (AUTOMATIC, RELEASED)]  # RELEASED would have to be downloaded
    serve(settings, options, weights=others, on_start=on_start, on_end=_Log(given["quiet"]))
    return 0


def _announce(given: dict[str, Any], token: str | None, port: int) -> None:
    """Print the address on stderr, and open it if wanted. It contains the token, which is why it is not `printable`."""
    host = given["host"]
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    link = f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
    click.echo(f"hasn serve: {link}", err=True)
    if not given["quiet"]:
        if host in ("0.0.0.0", "::"):
            click.echo(f"from other machines: put the name or address of this one in place of {shown}", err=True)
        click.echo("Ctrl-C ends it", err=True)
    if given["open_it"]:
        click.launch(link)


class _Log:
    """Prints a line for each picture that is over."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    def __call__(self, task: Task) -> None:
        from hasn_cli.console import duration, error_line, printable
        from hasn_cli.serve.jobs import DONE, FAILED

        if task.state == FAILED:
            click.echo(error_line(task.error or ""), err=True)
        elif not self._quiet and task.state == DONE:
            height, width = task.facts["target_size"]
            click.echo(
                printable(f"{task.asked.name}  {width}×{height}  done in {duration(task.facts['seconds'])}"), err=True
            )
        elif not self._quiet:
            click.echo(printable(f"{task.asked.name}  cancelled"), err=True)
        sys.stderr.flush()
