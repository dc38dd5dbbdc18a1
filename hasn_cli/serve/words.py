"""Hints of the command line, in the words of the page and of the HTTP interface."""

from __future__ import annotations

import re

_OPTIONS = (
    (re.compile(r"--max-input-megapixels N \(0: no limit\)"), "hasn serve --max-input-megapixels N"),
    (re.compile(r"--background (\w+)"), r"background=\1"),
    (re.compile(r"--first-frame"), "first_frame=true"),
    (re.compile(r"--lossless"), "lossless=true"),
    (re.compile(r"--fit (\w+)"), r"fit=\1"),
    (re.compile(r"-f (?=\w)"), "format="),
    (re.compile(r"; if you trust it, upscale it alone, without this limit"), ""),
)


def for_clients(hint: str | None) -> str | None:
    """The hint with each option as the parameter of a request. A hint with other options is left out."""
    if hint is None:
        return None
    for pattern, words in _OPTIONS:
        hint = pattern.sub(words, hint)
    return None if re.search(r"(^|\s)--?[a-z]", hint.replace("hasn serve --max", "")) else hint
