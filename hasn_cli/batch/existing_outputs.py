"""Which jobs are to be run at all: what exists, and what an earlier run has done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hasn_cli.batch import remote
from hasn_cli.batch.inputs import Job, Place
from hasn_cli.batch.journal import Journal
from hasn_cli.batch.marks import Mark, input_unchanged, is_as_written, looks_as_written, output_state
from hasn_cli.batch.settings import Settings
from hasn_cli.batch.work import Receipt, exists_already
from hasn_cli.enlarge import PASSES
from hasn_cli.errors import OutputError, WeightsError
from hasn_cli.images import check_target
from hasn_cli.images.unfinished import Overwrite
from hasn_cli.redaction import redacted

OnExists = Literal["error", "overwrite", "skip"]


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a job.

    Attributes:
        reason: why there is nothing to do; None: it is to be run.
        found: the state of what is there at its output; None where nothing is.
        overwrite: what becomes of what is there when the output is written.
    """

    reason: str | None
    found: Mark | None
    overwrite: Overwrite


class ExistingOutputs:
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
        self._weights: dict[int, str | None] = {}

    def open(self, jobs: Sequence[Job]) -> None:
        """Read the journals of `jobs`.

        Raises:
            OutputError: one of them is a link, or something else that cannot be trusted.
        """
        if not (self.keep or self.resume):
            return
        targets: dict[Place, list[Place]] = {}
        for job in jobs:
            if job.root is not None and job.problem is None:
                targets.setdefault(job.root, []).append(job.target)
        self._journals = {root: Journal(root, below) for root, below in targets.items()}

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
        if found is None:
            return Verdict(None, None, self.on_exists == "overwrite")
        return self._verdict(job, found)

    def _verdict(self, job: Job, found: Mark) -> Verdict:
        """Of a job whose output is there already."""
        asked = self.resume or self.on_exists == "error"
        record = self._record_of_same_input(job) if asked else None
        if self.resume and record and self._is_done(job, record, found):
            return Verdict("done already", found, False)
        if self.on_exists == "overwrite":
            return Verdict(None, found, True)
        overwrite = self._what_resuming_may_replace(job, record, found) if self.resume and record else False
        if overwrite:
            return Verdict(None, found, overwrite)
        if self.on_exists == "skip":
            return Verdict(f"{job.target} exists", found, False)
        hint = "--resume goes on from there, " if record and not self.resume else ""
        raise exists_already(job.target, hint)

    def _what_resuming_may_replace(self, job: Job, record: Mark, found: Mark) -> Overwrite:
        """What a line about the output proves: that the file is ours, that it may be, or nothing."""
        written = record.get("earlier" if record["state"] == "start" else "output", {})
        if is_as_written(job.target, written, found):
            return True
        # the run may have been killed between the output's appearing and the journal's saying so; or a stranger wrote
        # that line: so it is computed again, and what is there stays unless it is the very same
        return "same" if record["state"] == "start" else False

    def _is_done(self, job: Job, record: Mark, found: Mark) -> bool:
        done = record["state"] == "done" and looks_as_written(record.get("output", {}), found)
        return done and self._up_to_date(job, record)

    def begin(self, job: Job) -> None:
        """The job's output is going to be written.

        Raises:
            OutputError: the folder or the journal in it cannot be written to.
        """
        if journal := self._journal_to_keep(job):
            try:
                journal.start(job.target, _source_name(job))
            except OSError as error:
                if not os.path.lexists(journal.path):
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

    def disown(self, job: Job) -> None:
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
        same = input_unchanged(job.source, record.get("input", {}), self._settings.max_pixels)
        return record if same else None

    def _up_to_date(self, job: Job, record: Mark) -> bool:
        return (
            record.get("settings") == self._fingerprint
            and input_unchanged(job.source, record.get("input", {}), self._settings.max_pixels)
            and record.get("weights") is not None
            and record["weights"] == self._weights_hash(record.get("scale", 0))
        )

    def _weights_hash(self, scale: int) -> str | None:
        """SHA-256 of this run's weights for a scale; None where there are none, as a made-up line may ask for any."""
        from hasn_cli.weights import resolve

        if scale not in PASSES:
            return None  # of no run of ours: a record that someone has edited
        if scale not in self._weights:
            try:
                found = [resolve(self._settings.weights, one) for one in PASSES[scale]]
                self._weights[scale] = "+".join(weights.sha256 for weights in found)
            except WeightsError:
                self._weights[scale] = None
        return self._weights[scale]


def target_state(target: Place) -> Mark | None:
    """What changes when the output does; None where there is none, or nowhere to look."""
    if target == "-":
        return None
    if isinstance(target, Path):
        return output_state(target)
    return remote.state(target)


def _source_name(job: Job) -> str:
    """What the journal calls the input: no password of a URL's goes there."""
    return str(job.source.resolve()) if isinstance(job.source, Path) else redacted(job.source)
