"""`connection_class`: uvicorn's HTTP connection, with an end to those that keep the server waiting.

uvicorn limits the size of a request's head and the pause between two requests. It has no limit for the time that a head
takes, for a client that does not read its answer, nor for the number of connections.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # to send the head of a request
READ_SECONDS = 60.0  # to read some of an answer
CLOSE_SECONDS = 10.0  # to read the rest of the last answer
MOST_CONNECTIONS = 512


@dataclass
class Crowd:
    """The connections of one server.

    Attributes:
        most: at a time. If there are more, the one that has been idle for longest is ended.
        head_seconds: the time for the head of a request.
        everyone: all of them.
        idle: those without a request under way, the one that waits for longest first.
    """

    most: int = MOST_CONNECTIONS
    head_seconds: float = HEAD_SECONDS
    everyone: set[H11Protocol] = field(default_factory=set)
    idle: dict[H11Protocol, None] = field(default_factory=dict)


def connection_class(crowd: Crowd | None = None) -> type[H11Protocol]:
    """The class for the connections of one server."""
    return type("Connection", (Connection,), {"crowd": crowd or Crowd()})


class Connection(H11Protocol):
    """One connection."""

    crowd: Crowd

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it, and make room for it."""
        super().connection_made(transport)
        crowd = self.crowd
        crowd.everyone.add(self)
        if len(crowd.everyone) > crowd.most:
            (next(iter(crowd.idle)) if crowd.idle else self).transport.abort()
        self._note_whether_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no more."""
        self.crowd.everyone.discard(self)
        self.crowd.idle.pop(self, None)
        self._stop_head_timer()
        self._stop_read_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read some of a request."""
        super().data_received(data)
        self._note_whether_idle()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._note_whether_idle()

    def _note_whether_idle(self) -> None:
        """Between two requests the head timer runs, unless uvicorn's timer for the pause between them does."""
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or self.transport.is_closing():
            self.crowd.idle.pop(self, None)
            self._stop_head_timer()
            return
        self.crowd.idle.setdefault(self)
        if self._head_timer is None and self.timeout_keep_alive_task is None:
            self._head_timer = self.loop.call_later(self.crowd.head_seconds, self.transport.abort)

    def pause_writing(self) -> None:
        """Give the client a limited time to read."""
        super().pause_writing()
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read enough to go on."""
        super().resume_writing()
        self._stop_read_timer()

    def timeout_keep_alive_handler(self) -> None:
        """Close it, even if the client does not read the rest of its last answer."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(CLOSE_SECONDS, self.transport.abort)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
