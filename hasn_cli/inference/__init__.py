"""Evaluates the network on pictures: exactly, fast, and in bounded memory."""

from hasn_cli.inference.upscaler import Plan, Progress, Upscaler

__all__ = ["Plan", "Progress", "Upscaler"]
