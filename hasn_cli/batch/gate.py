"""Which jobs are to be run at all: what exists, what an earlier run has done, and what it left lying."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from hasn_cli.batch import remote
from hasn_cli.batch.inputs import Job, Place
from hasn_cli.batch.journal import Journal, Mark, input_unchanged, state
from hasn_cli.batch.settings import Settings
from hasn_cli.batch.work import Receipt
from hasn_cli.errors import OutputError
from hasn_cli.images import TEMPORARY_PREFIX, check_target

OnExists = Literal["error", "overwrite", "skip"]


class Gate:
    """Lets jobs in, and keeps the journals of those that were let in.

    Args:
        settings: those of this run.
        on_exists: what becomes of a job whose output is there already.
        resume: outputs that a journal tells of are this program's: they are left if they are up to date, else replaced.
        keep: write journals.
    """

    def __init__(
        self, settings: Settings, *, on_exists: OnExists = "error", resume: bool = False, keep: bool = True
    ) -> None:
        self.on_exists = on_exists
        self.resume = resume
        self.keep = keep or resume
        self._settings = settings
        self._fingerprint = settings.fingerprint()
        self._journals: dict[Place, Journal] = {}
        self._weights: dict[int, str] = {}

    def open(self, jobs: Sequence[Job]) -> None:
        """Read the journals of `jobs`."""
        if self.keep:
            self._journals = {root: Journal(root) for root in {job.root for job in jobs} if root is not None}

    def check(self, job: Job) -> str | None:
        """None for a job that is to be run; for one that is not, the reason why there is nothing to do.

        Raises:
            HasnError: its input is none.
            OutputError: its output is there, and may not be replaced.
        """
        if job.problem is not None:
            raise job.problem
        if isinstance(job.target, Path):
            check_target(job.target)
        now = target_state(job.target)
        if now is None:
            return None
        if self.resume and (record := self._record(job)):
            if record["state"] == "start":
                return None  # the run was killed between the output's appearing and the journal's saying so
            if record.get("output") == now:
                return "done already" if self._up_to_date(job, record) else None
        if self.on_exists == "skip":
            return f"{job.target} exists"
        if self.on_exists == "error":
            hint = "--overwrite replaces it, --skip-existing leaves it"
            known = not self.resume and self._record(job) is not None
            raise OutputError(f"{job.target} exists already", f"--resume goes on from there, {hint}" if known else hint)
        return None

    def begin(self, job: Job) -> None:
        """The job's output is going to be written.

        Raises:
            OutputError: the folder or the journal in it cannot be.
        """
        if journal := self._journal(job):
            try:
                journal.start(job.target)
            except OSError as error:
                if not journal.path.exists():
                    message = f"cannot write into {journal.path.parent}: {error.strerror}"
                    raise OutputError(message, "give another folder: -o OUT/") from error
                raise OutputError(f"{journal.path}: {error.strerror}", "--no-journal keeps none") from error

    def finish(self, job: Job, receipt: Receipt) -> None:
        """The job's output stands."""
        journal = self._journal(job)
        if journal is None:
            return
        facts: Mark = {
            "source": str(job.source.resolve() if isinstance(job.source, Path) else job.source),
            "input": receipt.source,
            "output": receipt.target,
            "settings": self._fingerprint,
            "scale": receipt.scale,
            "weights": self._weights_hash(receipt.scale),
        }
        try:
            journal.done(job.target, facts)
        except OSError:
            return  # a full disk; the output stands all the same, and the next picture will tell

    def close(self) -> None:
        """Close the journals."""
        for journal in self._journals.values():
            journal.close()

    def _journal(self, job: Job) -> Journal | None:
        return self._journals.get(job.root) if job.root is not None else None

    def _record(self, job: Job) -> Mark | None:
        journal = self._journal(job)
        return journal[job.target] if journal else None

    def _up_to_date(self, job: Job, record: Mark) -> bool:
        return (
            record.get("settings") == self._fingerprint
            and input_unchanged(job.source, record.get("input", {}))
            and record.get("weights") == self._weights_hash(record.get("scale", 0))
        )

    def _weights_hash(self, scale: int) -> str:
        from hasn_cli.weights import resolve

        if scale not in self._weights:
            self._weights[scale] = resolve(self._settings.weights, scale).sha256
        return self._weights[scale]


def target_state(target: Place) -> Mark | None:
    """What changes when the output does; None where there is none, or nowhere to look."""
    if target == "-":
        return None
    if isinstance(target, Path):
        return state(target)
    return remote.state(target)


def clear_leftovers(folders: Iterable[Path], owner: int | None = None) -> None:
    """Delete half-written files whose program is no more, or that belong to the process `owner`."""
    for folder in folders:
        for path in folder.glob(f"{TEMPORARY_PREFIX}*.part"):
            process = path.name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]
            abandoned = process == str(owner) if owner is not None else not _runs(process)
            if abandoned:
                path.unlink(missing_ok=True)


def _runs(process: str) -> bool:
    """Whether a process of that number is running here."""
    if not process.isdecimal():
        return False
    import psutil

    return int(process) != os.getpid() and psutil.pid_exists(int(process))
