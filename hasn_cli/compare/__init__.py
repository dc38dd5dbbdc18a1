"""Shows two or more enlargements of a picture side by side: as an HTML page, a sheet, or in the terminal."""

from hasn_cli.compare.comparison import Comparison, Method, Rendition, Spot, bicubic, compare, network

__all__ = ["Comparison", "Method", "Rendition", "Spot", "bicubic", "compare", "network"]
