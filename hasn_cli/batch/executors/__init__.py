"""Where jobs run: in threads of this process, or on a Dask cluster."""

from __future__ import annotations

from typing import Protocol

from hasn_cli.batch.events import Event
from hasn_cli.batch.jobs import Job


class Executor(Protocol):
    """Runs jobs, several at once. `hasn_cli.batch.run.run_jobs` gives it work and collects the events."""

    def capacity(self) -> int:
        """The largest number of jobs to have under way now, at least 1."""

    def submit(self, job: Job) -> Event | None:
        """Start a job. Returns an event if it ends at once, skipped or failed; otherwise None."""

    def next_event(self) -> Event | None:
        """Wait for an event of a job that is under way; None if none has come for a while."""
