"""`MemoryLimit`: let many small pictures or one large picture into memory at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from hasn_cli.batch.pool import Cancelled
from hasn_cli.machine import free_memory

SHARE_OF_FREE = 0.25


class MemoryLimit:
    """Divides memory among pictures, first come, first served. A picture above the limit waits until it is alone.

    Args:
        limit: in bytes; None: a quarter of the memory that is free when the first picture comes.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._given = limit
        self._change = threading.Condition()
        self._queue: deque[object] = deque()
        self._used = 0
        self._inside = 0
        self._closed = False

    @cached_property
    def limit(self) -> int:
        """The limit in bytes."""
        if self._given is not None:
            return self._given
        return int(free_memory() * SHARE_OF_FREE)

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Wait until `amount` bytes are available, and hold them until the context ends.

        Raises:
            Cancelled: `close` was called.
        """
        ticket = object()
        with self._change:
            self._queue.append(ticket)
            self._change.wait_for(lambda: self._closed or (self._queue[0] is ticket and self._fits(amount)))
            if self._closed:
                raise Cancelled
            self._queue.popleft()
            self._used += amount
            self._inside += 1
            self._change.notify_all()
        try:
            yield
        finally:
            with self._change:
                self._used -= amount
                self._inside -= 1
                self._change.notify_all()

    def close(self) -> None:
        """Cancel all who wait now or come later."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def _fits(self, amount: int) -> bool:
        return self._inside == 0 or self._used + amount <= self.limit
