"""Decide which jobs to run, by the outputs that exist and by what earlier runs recorded in the journal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hasn_cli.batch import remote
from hasn_cli.batch.jobs import Job
from hasn_cli.batch.journal import Journal
from hasn_cli.batch.location import Place
from hasn_cli.batch.marks import Mark, input_unchanged, is_as_written, looks_as_written, output_state
from hasn_cli.batch.process import Receipt, exists_already
from hasn_cli.batch.settings import Settings
from hasn_cli.enlarge import PASSES
from hasn_cli.errors import OutputError, WeightsError
from hasn_cli.files import Overwrite
from hasn_cli.images import check_target
from hasn_cli.redaction import redacted

OnExists = Literal["error", "overwrite", "skip"]


@dataclass(frozen=True)
class Verdict:
    """The decision about one job.

    Attributes:
        reason: why to skip it; None: run it.
        found: the state of the existing output; None if there is none.
        overwrite: whether writing may replace the existing output; see `files.Overwrite`.
    """

    reason: str | None
    found: Mark | None
    overwrite: Overwrite


class ExistingOutputs:
    """Decides which jobs to run, and records in journals what was begun and finished.

    Args:
        settings: the settings of this run.
        on_exists: what to do with a job whose output exists.
        resume: skip outputs that a journal shows to be up to date, and replace those that it shows to be out of date.
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
            OutputError: one of them is a link or something else that cannot be trusted.
        """
        if not (self.keep or self.resume):
            return
        targets: dict[Place, list[Place]] = {}
        for job in jobs:
            if job.root is not None and job.problem is None:
                targets.setdefault(job.root, []).append(job.target)
        self._journals = {root: Journal(root, below) for root, below in targets.items()}

    def check(self, job: Job) -> Verdict:
        """Decide whether to run a job, and whether it may replace its output.

        Raises:
            HasnError: the input cannot be read.
            OutputError: the output exists and must not be replaced.
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
        """The decision about a job whose output exists."""
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
        hint = "--resume continues the batch, " if record and not self.resume else ""
        raise exists_already(job.target, hint)

    def _what_resuming_may_replace(self, job: Job, record: Mark, found: Mark) -> Overwrite:
        """What to overwrite, by what the journal's record proves: the file is ours, it may be ours, or neither."""
        written = record.get("earlier" if record["state"] == "start" else "output", {})
        if is_as_written(job.target, written, found):
            return True
        # Either the run was killed after the output appeared and before the journal recorded it, or a stranger wrote
        # that line. So the picture is computed again, and the existing file counts only if it is exactly the same.
        return "same" if record["state"] == "start" else False

    def _is_done(self, job: Job, record: Mark, found: Mark) -> bool:
        done = record["state"] == "done" and looks_as_written(record.get("output", {}), found)
        return done and self._up_to_date(job, record)

    def begin(self, job: Job) -> None:
        """Record that the job's output will be written.

        Raises:
            OutputError: the folder, or the journal in it, cannot be written.
        """
        if journal := self._journal_to_keep(job):
            try:
                journal.start(job.target, _source_name(job))
            except OSError as error:
                if not os.path.lexists(journal.path):
                    message = f"cannot write into {journal.path.parent}: {error.strerror}"
                    raise OutputError(message, "give another folder: -o OUT/") from error
                raise OutputError(f"{journal.path}: {error.strerror}", "--no-journal runs without one") from error

    def finish(self, job: Job, receipt: Receipt) -> None:
        """Record that the job's output has been written."""
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
            return  # the disk is full: this output is complete all the same, and the next picture will fail

    def disown(self, job: Job) -> None:
        """Record that another program wrote the file at the job's output, so that no later run takes it for ours."""
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
        """The journal's record of the output, or None if it was made from another picture and must not be replaced."""
        if job.source == "-":
            return None  # nobody knows what it was at that time
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
        """SHA-256 of this run's weights for a scale; None if there are none."""
        from hasn_cli.weights import digest

        if scale not in PASSES:
            return None  # hasn never writes such a record
        if scale not in self._weights:
            try:
                self._weights[scale] = "+".join(digest(self._settings.weights, one) for one in PASSES[scale])
            except WeightsError:
                self._weights[scale] = None
        return self._weights[scale]


def target_state(target: Place) -> Mark | None:
    """Facts that change whenever the output changes; None if there is none, or for the standard output."""
    if target == "-":
        return None
    if isinstance(target, Path):
        return output_state(target)
    return remote.state(target)


def _source_name(job: Job) -> str:
    """The input's name in the journal, without passwords."""
    return str(job.source.resolve()) if isinstance(job.source, Path) else redacted(job.source)
