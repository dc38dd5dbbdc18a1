"""What a batch has done, remembered beside its outputs."""

from __future__ import annotations

from pathlib import Path

NAME = ".hasn-journal.jsonl"


def outputs_recorded(folder: Path) -> frozenset[Path]:
    """The outputs that the journal in `folder` tells of."""
    return frozenset()
