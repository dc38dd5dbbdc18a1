"""Which jobs are to be run at all: what exists, and what an earlier run has done."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hasn_cli.batch import remote
from hasn_cli.batch.inputs import Job, Place
from hasn_cli.batch.journal import Journal, Mark, input_unchanged, state
from hasn_cli.batch.settings import Settings
from hasn_cli.batch.work import Receipt, exists_already
from hasn_cli.enlarge import PASSES
from hasn_cli.errors import OutputError
from hasn_cli.images import check_target

OnExists = Literal["error", "overwrite", "skip"]


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a job.

    Attributes:
        reason: why there is nothing to do; None: it is to be run.
        found: the state of what is there at its output; None where nothing is.
        overwrite: whether what is there when the output is written may be replaced.
    """

    reason: str | None
    found: Mark | None
    overwrite: bool


class Gate:
    """Lets jobs in, and keeps the journals of those that were let in.

    Args:
        settings: those of this run.
        on_exists: what becomes of a job whose output is there already.
        resume: outputs that a journal says were made of these inputs are left if they are up to date, else replaced.
        keep: write journals.
    """

    def __init__(
        self, settings: Settings, *, on_exists: OnExists = "error", resume: bool = False, keep: bool = True
    ) -> None:
        self.on_exists = on_exists
        self.resume = resume
        self.keep = keep
        self._settings = settings
        self._fingerprint = settings.fingerprint()
        self._journals: dict[Place, Journal] = {}
        self._weights: dict[int, str] = {}

    def open(self, jobs: Sequence[Job]) -> None:
        """Read the journals of `jobs`."""
        if self.keep or self.resume:
            self._journals = {root: Journal(root) for root in {job.root for job in jobs} if root is not None}

    def check(self, job: Job) -> Verdict:
        """Whether a job is to be run, and over what.

        Raises:
            HasnError: its input is none.
            OutputError: its output is there, and may not be replaced.
        """
        if job.problem is not None:
            raise job.problem
        if isinstance(job.target, Path):
            check_target(job.target)
        found = target_state(job.target)
        reason = None if found is None else self._reason_to_leave(job, found)
        return Verdict(reason, found, self.on_exists == "overwrite" or found is not None)

    def _reason_to_leave(self, job: Job, now: Mark) -> str | None:
        asked = self.resume or self.on_exists == "error"
        record = self._record_of_same_input(job) if asked else None
        if self.resume and record:
            if record["state"] == "start":
                return None  # the run was killed between the output's appearing and the journal's saying so
            if record.get("output") == now:
                return "done already" if self._up_to_date(job, record) else None
        if self.on_exists == "skip":
            return f"{job.target} exists"
        if self.on_exists == "error":
            hint = "--resume goes on from there, " if record and not self.resume else ""
            raise exists_already(job.target, hint)
        return None

    def begin(self, job: Job) -> None:
        """The job's output is going to be written.

        Raises:
            OutputError: the folder or the journal in it cannot be.
        """
        if journal := self._journal_to_keep(job):
            try:
                journal.start(job.target, _source_name(job))
            except OSError as error:
                if not journal.path.exists():
                    message = f"cannot write into {journal.path.parent}: {error.strerror}"
                    raise OutputError(message, "give another folder: -o OUT/") from error
                raise OutputError(f"{journal.path}: {error.strerror}", "--no-journal keeps none") from error

    def finish(self, job: Job, receipt: Receipt) -> None:
        """The job's output stands."""
        journal = self._journal_to_keep(job)
        if journal is None:
            return
        facts: Mark = {
            "source": _source_name(job),
            "input": receipt.source,
            "output": receipt.target,
            "settings": self._fingerprint,
            "scale": receipt.scale,
            "weights": receipt.weights,
        }
        try:
            journal.done(job.target, facts)
        except OSError:
            return  # a full disk; the output stands all the same, and the next picture will tell

    def spare(self, job: Job) -> None:
        """What is there at the job's output is another's: no later run may take it for the one begun here."""
        if journal := self._journal_to_keep(job):
            with suppress(OSError):
                journal.done(job.target, {"source": _source_name(job)})

    def close(self) -> None:
        """Close the journals."""
        for journal in self._journals.values():
            journal.close()

    def _journal(self, job: Job) -> Journal | None:
        return self._journals.get(job.root) if job.root is not None else None

    def _journal_to_keep(self, job: Job) -> Journal | None:
        return self._journal(job) if self.keep else None

    def _record_of_same_input(self, job: Job) -> Mark | None:
        """What the journal says of the output, unless that was made of another picture, and is not ours to replace."""
        if job.source == "-":
            return None  # who knows what came through it then
        journal = self._journal(job)
        record = journal[job.target] if journal else None
        if record is None or record.get("source") in (None, _source_name(job)):
            return record
        return record if input_unchanged(job.source, record.get("input", {})) else None

    def _up_to_date(self, job: Job, record: Mark) -> bool:
        return (
            record.get("settings") == self._fingerprint
            and input_unchanged(job.source, record.get("input", {}))
            and record.get("weights") == self._weights_hash(record.get("scale", 0))
        )

    def _weights_hash(self, scale: int) -> str:
        from hasn_cli.weights import resolve

        if scale not in PASSES:
            return ""  # of no run of ours: a record that someone has edited
        if scale not in self._weights:
            self._weights[scale] = "+".join(resolve(self._settings.weights, one).sha256 for one in PASSES[scale])
        return self._weights[scale]


def target_state(target: Place) -> Mark | None:
    """What changes when the output does; None where there is none, or nowhere to look."""
    if target == "-":
        return None
    if isinstance(target, Path):
        return state(target)
    return remote.state(target)


def _source_name(job: Job) -> str:
    return str(job.source.resolve() if isinstance(job.source, Path) else job.source)
