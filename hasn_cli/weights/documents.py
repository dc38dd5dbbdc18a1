"""The small texts that lie beside weights: `config.json`, the model card, checksums. All may come from a stranger.

Each is a regular file of limited length, and whatever it holds, reading it takes little time and ends in a value or
in a `WeightsError`.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from hasn_cli.errors import WeightsError

MOST_BYTES = 1 << 20
MOST_FRONT_MATTER = 64 << 10  # characters
DEEPEST = 20  # lists and tables within each other in the front matter of a model card
FENCE = "---"


def read_text(path: Path, name: str) -> str:
    """A small UTF-8 text.

    Raises:
        WeightsError: it is none, or it cannot be read; `name` is what the message calls it.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise WeightsError(f"{name} cannot be read: it is no file of at most {MOST_BYTES >> 20} MiB")
        with path.open("rb") as file:
            return file.read(MOST_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{name} cannot be read ({error})") from error


def read_json_object(path: Path, name: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        WeightsError: as `read_text`, or it holds something else.
    """
    text = read_text(path, name)
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise WeightsError(f"{name} cannot be read (it is nested too deeply)") from error
    except ValueError as error:
        raise WeightsError(f"{name} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{name} is no JSON object")
    return content


def read_front_matter(path: Path) -> dict[str, Any]:
    """The YAML table between two lines `---` at the start of a text; empty where there is none that can be read.

    One without aliases, which multiply what they stand for, and not nested deeply, which takes a parser's stack.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        first, *lines = read_text(path, path.name).splitlines()
        if first.rstrip() != FENCE:
            return {}
        block = "\n".join(lines[: [line.rstrip() for line in lines].index(FENCE)])
        if len(block) > MOST_FRONT_MATTER or not _is_plain(block):
            return {}
        content = yaml.safe_load(block)
    except (WeightsError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_plain(block: str) -> bool:
    """Whether a YAML text has no aliases and no types of its own, and is nested no deeper than `DEEPEST`.

    Some types that a value can be said to have make the YAML library fail in ways of its own.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    import yaml

    depth = 0
    for event in yaml.parse(block, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            return False
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            return False
    return True
