"""The network evaluated on pictures: fast, in bounded memory, exactly."""

from hasn_cli.inference.upscaler import Plan, Progress, Upscaler

__all__ = ["Plan", "Progress", "Upscaler"]
