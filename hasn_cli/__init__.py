"""hasn: faithful, exact image super-resolution with the Hybrid Attention Separable Network."""

from __future__ import annotations

__version__ = "0.1.0"
