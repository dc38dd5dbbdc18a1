"""What a batch has done, remembered beside its outputs, so that a run that was killed can be taken up again.

A journal is a file of JSON lines that only ever grows: `start` before an output may appear, `done` after it stands.
Each line goes to the file by one write to its end, so several runs may share a journal, and a line torn by a power cut
is the last one and is passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from hasn_cli.batch import remote

NAME = ".hasn-journal.jsonl"

Mark = dict[str, Any]
"""JSON-able facts by which a file is known again."""


def state(path: Path) -> Mark | None:
    """What changes when the file at `path` does; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return {"size": found.st_size, "mtime": found.st_mtime_ns}


def input_state(path: Path) -> Mark | None:
    """`state`, and the time of the last change of anything about the file, which no program can set back."""
    found = state(path)
    return found and {**found, "ctime": path.stat().st_ctime_ns}


def mark_input(path: Path, data: bytes | None = None, before: Mark | None = None) -> Mark:
    """The fingerprint of an input: its state, and the SHA-256 of what it holds.

    Args:
        path: the file.
        data: its bytes, if they have been read.
        before: its `input_state` before they were read.
    """
    before = before or input_state(path) or {}
    if data is not None:
        return {**before, "sha256": hashlib.sha256(data).hexdigest()}
    with path.open("rb") as stream:
        return {**before, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def input_unchanged(source: Path | str, mark: Mark) -> bool:
    """Whether an input still is what `mark` was taken of; a file that was merely touched, moved or copied is."""
    if isinstance(source, str):
        return _url_unchanged(source, mark)
    now = input_state(source)
    if now is None or now["size"] != mark.get("size"):
        return False
    if all(now[key] == mark.get(key) for key in now):
        return True
    return bool(mark_input(source)["sha256"] == mark.get("sha256"))


def mark_url(url: str) -> tuple[bytes, Mark]:
    """The bytes at a URL, and their fingerprint."""
    before = remote.state(url) or {}
    data = remote.read(url)
    return data, {**before, "sha256": hashlib.sha256(data).hexdigest()}


def _url_unchanged(url: str, mark: Mark) -> bool:
    now = remote.state(url)
    if not now or now["size"] != mark.get("size"):
        return False
    if len(now) > 1 and all(value == mark.get(key) for key, value in now.items()):
        return True
    return bool(mark_url(url)[1]["sha256"] == mark.get("sha256"))


class Journal:
    """One folder's journal: what it held when it was opened, and what is added.

    Args:
        root: the folder of the outputs, or its URL; a URL's journal is kept on this machine.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = root
        self.path = path_for(root)
        self.records = read(self.path)
        self._lock = threading.Lock()
        self._file: int | None = None  # opened for the first line: a run that begins nothing leaves nothing

    def __getitem__(self, target: Path | str) -> Mark | None:
        """The last line about an output, or None."""
        return self.records.get(self._key(target))

    def start(self, target: Path | str, source: str | None = None) -> None:
        """Note that the output is going to be written, of `source`; on the disk when this returns.

        Raises:
            OSError: the journal cannot be written.
        """
        known = {"source": source} if source is not None else {}
        self._append({"target": self._key(target), "state": "start", **known}, durable=True)

    def done(self, target: Path | str, facts: Mark) -> None:
        """Note that the output stands. Should the line be lost with the power, the picture is merely done again."""
        self._append({"target": self._key(target), "state": "done", **facts}, durable=False)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _append(self, record: Mark, *, durable: bool) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            if self._file is None:
                self._file = self._open()
            written = os.write(self._file, line)
            if written < len(line):  # the disk got full in the middle of a line: the rest raises
                os.write(self._file, line[written:])
            if durable:
                os.fsync(self._file)

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        length = os.fstat(file).st_size
        if length:
            os.lseek(file, length - 1, os.SEEK_SET)
            if os.read(file, 1) != b"\n":  # a power cut tore the last line: end it, lest the next be lost with it
                os.write(file, b"\n")
        return file

    def _key(self, target: Path | str) -> str:
        if isinstance(target, Path) and isinstance(self.root, Path) and target.is_relative_to(self.root):
            return target.relative_to(self.root).as_posix()
        return str(target)


def path_for(root: Path | str) -> Path:
    """Where the journal of outputs under `root` lies."""
    if isinstance(root, Path):
        return root / NAME
    from platformdirs import user_state_path

    return user_state_path("hasn") / "journals" / f"{hashlib.sha256(root.encode()).hexdigest()[:32]}.jsonl"


def read(path: Path) -> dict[str, Mark]:
    """The last line about each output; none where there is no journal. Torn and strange lines are passed over."""
    records: dict[str, Mark] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return records
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_record(record):
            records[record["target"]] = record
    return records


def _is_record(record: Any) -> bool:
    """Whether a line is one that this program writes, as far as its readers rely on it."""
    return (
        isinstance(record, dict)
        and isinstance(record.get("target"), str)
        and record.get("state") in ("start", "done")
        and isinstance(record.get("source"), str | None)
        and isinstance(record.get("input", {}), dict)
        and isinstance(record.get("scale", 0), int)
    )


def outputs_recorded(folder: Path) -> frozenset[Path]:
    """The outputs that the journal in `folder` tells of and whose inputs lie in it, too: those are no pictures anew.

    Where a folder holds outputs alone, they may well be wanted as inputs of another run.
    """
    here = folder.resolve()
    records = read(folder / NAME)
    return frozenset(folder / key for key, record in records.items() if _lies_in(record.get("source"), here))


def urls_recorded(folder: str) -> frozenset[str]:
    """As `outputs_recorded`, of a folder at a URL."""
    records = read(path_for(folder))
    return frozenset(key for key, record in records.items() if _is_below(record.get("source"), folder))


def _is_below(source: str | None, folder: str) -> bool:
    return source is None or (remote.is_url(source) and remote.relative(source, folder) is not None)


def _lies_in(source: str | None, folder: Path) -> bool:
    return source is None or Path(source).resolve().is_relative_to(folder)
