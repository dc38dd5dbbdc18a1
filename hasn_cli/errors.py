"""All errors that are meant for the user.

An error is raised where the problem is found, with a hint wherever the user can do something about it. It is shown
once, at the top of the program.
"""

from __future__ import annotations

# How to install an optional group of packages. Every hint uses this line. Once the package is published, change it to
# 'pip install "hasn-cli[{extra}]"'; tests/test_packaging.py then names the pages that have to follow.
INSTALL_EXTRA = 'pip install ".[{extra}]"'


def install_command(extra: str) -> str:
    """The command that installs an optional group of packages, for example `pip install ".[onnx]"`."""
    return INSTALL_EXTRA.format(extra=extra)


def install_packages(packages: str) -> str:
    """The command that installs packages that belong to no extra, for example `pip install s3fs`."""
    return f"pip install {packages}"


class HasnError(Exception):
    """A problem that the user can understand and, with the hint, usually solve.

    Args:
        message: what is wrong, in one line, naming the file or option.
        hint: what to do about it, in one line, or None if there is nothing to suggest.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(HasnError):
    """Options or arguments that contradict each other or make no sense (exit code 2)."""

    exit_code = 2


class WeightsError(HasnError):
    """Weights that are missing, unreadable, refused, or made for another network or scale."""


class DownloadError(WeightsError):
    """Weights that could not be downloaded."""


class ImageError(HasnError):
    """A picture that cannot be read, or that the output format cannot hold."""


class OutputError(HasnError):
    """An output that cannot be written, or that must not be overwritten."""


class OutputExistsError(OutputError):
    """An output that is there already, and may not be replaced."""


class DeviceError(HasnError):
    """A device or precision that is not available on this machine."""


class BudgetError(HasnError):
    """A picture that does not fit into the memory budget, not even in tiles."""


class MissingExtraError(HasnError):
    """An optional package that is needed and not installed.

    Args:
        need: what needs it, as the beginning of a sentence, for example `writing ONNX`.
        extra: the optional group in `pyproject.toml` that contains it.
    """

    def __init__(self, need: str, extra: str) -> None:
        hint = install_command(extra)
        if '".[' in hint:  # the package is not published yet, so pip needs the source code
            hint += " in the folder with hasn's source code"
        super().__init__(f"{need} needs an optional package", hint)
