"""Fetching weights for a command, with a progress bar if they have to be downloaded."""

from __future__ import annotations

from collections.abc import Iterable

from hasn_cli.weights import WeightsFile, resolve


def fetch(weights: str, scales: Iterable[int]) -> list[WeightsFile]:
    """Find the files that `weights` means for these scales, and download those that are not on this machine yet.

    Raises:
        WeightsError: as from `resolve`.
    """
    from hasn_cli.cli.progress import fetching

    with fetching() as progress:
        return [resolve(weights, scale, progress=progress) for scale in scales]
