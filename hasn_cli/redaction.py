"""Hide passwords, tokens and keys in everything that is shown or stored: messages, tracebacks, JSON, journals."""

from __future__ import annotations

import os
import re
import traceback

HIDDEN = "***"
_SHORTEST = 6  # characters; hiding shorter values of environment variables would hide ordinary words

# Names may come from a stranger, so no pattern may be slow on any text. Repetitions are bounded or cannot overlap.
_WORDS = r"token|secret|passw(?:or)?d|passphrase|signature|credential|api[_-]?key|access[_-]?key|auth(?!or)"
_SECRET_NAME = re.compile(rf"{_WORDS}|\A(?:sig|key|pass|pwd|authorization)\Z", re.IGNORECASE)
_USER = re.compile(r"(?<![\w+.\-])([A-Za-z][\w+.\-]{0,30}://)[^\s/?#'\"]*@")  # up to the last @ before the path
_QUERY = re.compile(r"([?&;#])([\w.%\-]{1,200})=([^\s&;#'\"]*)")
_ASSIGNED = re.compile(
    rf"""((?:{_WORDS})[\w.\-]{{0,40}}['"]?\s{{0,3}}[:=]\s{{0,3}}['"]?)(?!\*\*\*)[^\s'",;&)}}]{{4,}}""", re.IGNORECASE
)
_HEADER = re.compile(r"\b(Bearer|Basic)\s{1,3}[\w.~+/=\-]{8,}")
_KNOWN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|ya29\.[\w\-]{20,}|eyJ[\w\-]{10,2000}\.[\w\-]{10,4000}\.[\w\-]*)"
)
_SECRET_VARIABLE = re.compile(
    r"(?i:TOKEN|SECRET|PASSW|PASSPHRASE|API_?KEY|ACCESS_?KEY)(?!.*(?:_FILE|_PATH|_DIR|_URL|_ID)\Z)"
)
"""Names of environment variables that contain a secret, and not its path or the like."""


def redacted(text: str) -> str:
    """Replace secrets in `text` by stars.

    These are: user and password in a URL; values in its query that are named token, key, signature and the like; the
    values of environment variables with such names (HF_TOKEN, AWS_SECRET_ACCESS_KEY, …); values assigned to such a
    name; and keys of well-known services, recognised by their form.
    """
    for value in _secrets_of_environment():
        text = text.replace(value, HIDDEN)
    if "://" in text:
        text = _USER.sub(rf"\g<1>{HIDDEN}@", text)
    if "=" in text:
        text = _QUERY.sub(_without_value, text)
    text = _HEADER.sub(rf"\g<1> {HIDDEN}", text)
    text = _KNOWN.sub(HIDDEN, text)
    return _ASSIGNED.sub(rf"\g<1>{HIDDEN}", text)


def redacted_traceback(error: BaseException) -> list[str]:
    """The lines of an error's traceback, without secrets."""
    text = redacted("".join(traceback.format_exception(error)))  # before splitting, since a secret may span lines
    return [line for line in text.split("\n") if line]


def without_secrets(value: object) -> object:
    """A copy of a JSON-able value in which every string is `redacted`."""
    if isinstance(value, dict):
        return {key: without_secrets(held) for key, held in value.items()}
    if isinstance(value, list):
        return [without_secrets(held) for held in value]
    return redacted(value) if isinstance(value, str) else value


def _without_value(found: re.Match[str]) -> str:
    mark, name, value = found.groups()
    return f"{mark}{name}={HIDDEN}" if value and _SECRET_NAME.search(name) else found[0]


def _secrets_of_environment() -> list[str]:
    values = [value for name, value in os.environ.items() if len(value) >= _SHORTEST and _SECRET_VARIABLE.search(name)]
    return sorted(values, key=len, reverse=True)  # the longest first, because one may contain another
