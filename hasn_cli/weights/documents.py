"""Read the small texts beside weights: `config.json`, the model card, checksums. They may come from a stranger.

Each must be a regular file of limited length. Whatever it contains, reading it takes little time and gives a value or a
`WeightsError`.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from hasn_cli.errors import WeightsError

MOST_BYTES = 1 << 20
MOST_FRONT_MATTER = 64 << 10  # characters
DEEPEST = 20  # levels of lists and tables in the front matter of a model card
FENCE = "---"


def read_text(path: Path, name: str) -> str:
    """Read a small UTF-8 text. Error messages call it `name`.

    Raises:
        WeightsError: it is too long, not a regular file, not UTF-8, or cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise WeightsError(f"{name} cannot be read: it is not a regular file of at most {MOST_BYTES >> 20} MiB")
        with path.open("rb") as file:
            return file.read(MOST_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{name} cannot be read ({error})") from error


def read_json_object(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        WeightsError: as from `read_text`, or the file contains something else.
    """
    text = read_text(path, name)
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise WeightsError(f"{name} cannot be read (it is nested too deeply)") from error
    except ValueError as error:
        raise WeightsError(f"{name} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{name} is not a JSON object")
    return content


def read_front_matter(path: Path) -> dict[str, Any]:
    """Read the YAML table between two lines `---` at the start of a text; empty if there is no valid one.

    Tables with aliases, which can multiply their content, and deeply nested ones, which fill a parser's stack, are not
    read.
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
    """Whether a YAML text has no aliases, no tags, and at most `DEEPEST` levels.

    Some tags make the YAML library fail with errors of its own.

    Raises:
        yaml.YAMLError: it is not valid YAML.
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
