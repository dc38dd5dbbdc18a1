"""Pictures decoded in processes of their own, so that a decoder that crashes takes one picture with it and no more.

`pool.py` is the side that asks, `child.py` the process that decodes, `messages.py` what goes between them.
"""
