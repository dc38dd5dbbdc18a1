"""Decode pictures in separate processes, so that a decoder that crashes fails only one picture.

`pool.py` asks, `child.py` is the process that decodes, and `messages.py` defines what they exchange.
"""
