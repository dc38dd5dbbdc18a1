"""The one family of errors that a user is meant to read.

An error is raised where its fact is known, with a hint wherever there is something to do about it, and shown
once, at the top of the program.
"""

from __future__ import annotations


class HasnError(Exception):
    """Something the user can understand and, with the hint, usually mend.

    Args:
        message: what is wrong, in one line, naming the file or option.
        hint: what to do about it, in one line, or None where nothing can be said.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(HasnError):
    """Options or arguments that cannot be meant together (exit code 2)."""

    exit_code = 2


class WeightsError(HasnError):
    """Weights that are missing, unreadable, refused, or made for another network or scale."""


class DownloadError(WeightsError):
    """Weights that could not be brought from where they are published."""


class ImageError(HasnError):
    """A picture that cannot be read, or cannot be held by the format asked for."""


class OutputError(HasnError):
    """An output that cannot be written, or must not be."""


class OutputExistsError(OutputError):
    """An output that is there already, and may not be replaced."""


class DeviceError(HasnError):
    """A device or precision that is not to be had here."""


class BudgetError(HasnError):
    """A picture that does not fit the memory budget in any allowed way."""


class MissingExtraError(HasnError):
    """An optional dependency that is needed and not installed."""

    def __init__(self, need: str, extra: str) -> None:
        super().__init__(f"{need} needs an optional package", f"pip install 'hasn-cli[{extra}]'")
