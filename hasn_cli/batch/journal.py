"""The journal: a file beside the outputs that records what a batch has done, so that `--resume` can continue it.

A journal consists of JSON lines and only grows: a `start` line before an output may appear, and a `done` line after it
is complete. Each line is appended by a single write, so several runs can share a journal. A power cut can only damage
the last line, which is then ignored.

A folder from a stranger may contain a journal. So a journal is opened only if it is a regular file that belongs to us,
never through a link. It is read line by line, within limits. Lines that this program could not have written are
ignored. A line about an output proves nothing until size, time and SHA-256 have been compared with the file.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Collection, Iterator
from pathlib import Path, PurePath
from typing import BinaryIO

from hasn_cli.batch import remote
from hasn_cli.batch.marks import Mark
from hasn_cli.errors import OutputError
from hasn_cli.files import CREATE, READ_REGULAR
from hasn_cli.redaction import redacted

NAME = ".hasn-journal.jsonl"
LONGEST_LINE = 1 << 16  # bytes; enough for two paths of 4,096 bytes with every byte escaped
LARGEST = 2 << 30  # bytes; about three million pictures
LARGEST_SCALE = 64  # larger than any real one


class Journal:
    """The journal of one folder: reads what it contains when it is opened, and appends to it.

    Args:
        root: the folder of the outputs, or its URL. The journal of a URL is kept on this machine.
        targets: the outputs whose records are needed; None: all.

    Raises:
        OutputError: the existing file is not a journal that can be trusted (see `refusal`).
    """

    def __init__(self, root: Path | str, targets: Collection[Path | str] | None = None) -> None:
        self.root = root
        self.path = path_for(root)
        self.records = read(self.path, None if targets is None else {self._key(target) for target in targets})
        self._lock = threading.Lock()
        self._file: int | None = None  # opened for the first line, so that a run that begins nothing leaves no file

    def __getitem__(self, target: Path | str) -> Mark | None:
        """The last record of an output, or None.

        In a `start` record, `earlier` is the fingerprint of the output before that start, if it is known.
        """
        return self.records.get(self._key(target))

    def start(self, target: Path | str, source: str | None = None) -> None:
        """Record that the output will be written, from the input `source`.

        Raises:
            OSError: the journal cannot be written.
            OutputError: a file that is not a trusted journal has appeared in its place.
        """
        known = {"source": source} if source is not None else {}
        self._append({"target": self._key(target), "state": "start", **known}, durable=False)

    def done(self, target: Path | str, facts: Mark) -> None:
        """Record that the output is complete. This proves that it is ours, so it is flushed to the disk at once."""
        self._append({"target": self._key(target), "state": "done", **facts}, durable=True)

    def close(self) -> None:
        """Close the file."""
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
            if written < len(line):  # the disk became full in the middle of a line: writing the rest raises the error
                os.write(self._file, line[written:])
            if durable:
                os.fsync(self._file)

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return os.open(self.path, CREATE | os.O_APPEND, 0o600)  # private, because it contains paths
        except FileExistsError:
            file = _open_own(self.path, os.O_RDWR | os.O_APPEND)
        length = os.fstat(file).st_size
        if length:
            os.lseek(file, length - 1, os.SEEK_SET)
            if os.read(file, 1) != b"\n":  # a power cut damaged the last line: end it before the next one
                os.write(file, b"\n")
        return file

    def _key(self, target: Path | str) -> str:
        if isinstance(target, Path) and isinstance(self.root, Path) and target.is_relative_to(self.root):
            return target.relative_to(self.root).as_posix()
        return redacted(target) if isinstance(target, str) else str(target)


def path_for(root: Path | str) -> Path:
    """The path of the journal for outputs below `root`."""
    if isinstance(root, Path):
        return root / NAME
    import hashlib

    from platformdirs import user_state_path

    name = hashlib.sha256(redacted(root).encode()).hexdigest()[:32]
    return user_state_path("hasn") / "journals" / f"{name}.jsonl"


def refusal(file: int) -> str | None:
    """Why an open file is not a journal to be trusted, or None if it may be one."""
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        return "is not a regular file"
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        return "belongs to another user"
    if found.st_nlink > 1:
        return "has a second name (a hard link)"
    if found.st_size > LARGEST:
        return f"is larger than {LARGEST >> 30} GiB"
    return None


def _open_own(path: Path, flags: int) -> int:
    """Open an existing journal.

    Raises:
        FileNotFoundError: it does not exist.
        OutputError: it is a link or not a journal to be trusted, or it cannot be opened.
    """
    try:
        file = os.open(path, READ_REGULAR | flags)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        if path.is_symlink():
            raise _untrusted(path, "is a link") from None
        if not path.is_file():  # for example a socket
            raise _untrusted(path, "is not a regular file") from None
        raise OutputError(f"{path}: {error.strerror}", "--no-journal runs without one") from error
    reason = "is a link" if path.is_symlink() else refusal(file)  # is_symlink: for systems without O_NOFOLLOW
    if reason is not None:
        os.close(file)
        raise _untrusted(path, reason)
    return file


def _untrusted(path: Path, reason: str) -> OutputError:
    return OutputError(f"{path}: {reason}, so it is not used as a journal", "delete it, or use --no-journal")


def read(path: Path, keys: Collection[str] | None = None) -> dict[str, Mark]:
    """Read the last record of each output; empty if there is no journal. Damaged and unknown lines are ignored.

    Args:
        path: the journal.
        keys: the outputs that matter, by their names in the journal; None: all. The others take no memory.

    Raises:
        OutputError: the file is not a journal that can be trusted.
    """
    records: dict[str, Mark] = {}
    try:
        file = _open_own(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return records
    with os.fdopen(file, "rb") as stream:
        for line in _lines(stream):
            record = _record_in(line)
            if record is not None and (keys is None or record["target"] in keys):
                _take(records, record)
    return records


def _take(records: dict[str, Mark], record: Mark) -> None:
    """Replace the last record of the output. A `start` record keeps the fingerprint that was known before."""
    last = records.get(record["target"], {})
    if record["state"] == "start" and (earlier := last.get("output") or last.get("earlier")):
        record = {**record, "earlier": earlier}
    records[record["target"]] = record


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a journal, up to the size limit. Lines that are too long are left out."""
    left = LARGEST
    whole = True
    while left > 0 and (piece := stream.readline(min(LONGEST_LINE, left))):
        left -= len(piece)
        ends = piece.endswith(b"\n")
        if whole and (ends or len(piece) < LONGEST_LINE):
            yield piece
        whole = ends


def _record_in(line: bytes) -> Mark | None:
    """The record in a line, or None if this program could not have written it. Checks all that readers rely on."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or "earlier" in record or record.get("state") not in ("start", "done"):
        return None
    names = [record.get("target"), *([record["source"]] if record.get("source") is not None else [])]
    marks = [record.get("input", {}), record.get("output", {})]
    known = all(map(_is_name, names)) and all(map(_is_mark, marks)) and _is_scale(record.get("scale", 1))
    return record if known else None


def _is_name(value: object) -> bool:
    """Whether a value can be a file name. Some strings in JSON cannot."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeError:
        return False
    return True


def _is_mark(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    return all(isinstance(fact, str | int) and not isinstance(fact, bool) for fact in value.values())


def _is_scale(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_SCALE


def outputs_recorded(folder: Path, among: Collection[Path]) -> frozenset[Path]:
    """Those of the files `among` that the journal in `folder` records as outputs of inputs in the same folder.

    If the inputs are elsewhere, the folder contains only outputs, which may be wanted as inputs of another run.

    Raises:
        OutputError: the journal cannot be trusted.
    """
    here = folder.resolve()
    keys = {path.relative_to(folder).as_posix(): path for path in among if path.is_relative_to(folder)}
    records = read(folder / NAME, keys)
    return frozenset(keys[key] for key, record in records.items() if _lies_in(record.get("source"), here))


def urls_recorded(folder: str) -> frozenset[str]:
    """Like `outputs_recorded`, for a folder at a URL. Secrets in the URLs are hidden."""
    records = read(path_for(folder))
    return frozenset(key for key, record in records.items() if _is_below(record.get("source"), folder))


def _is_below(source: str | None, folder: str) -> bool:
    return source is None or (remote.is_url(source) and source.startswith(redacted(folder).rstrip("/") + "/"))


def _lies_in(source: str | None, folder: Path) -> bool:
    """Whether a recorded path is in the folder, by its name alone: a stranger's line must not cause disk access."""
    return source is None or (".." not in PurePath(source).parts and PurePath(source).is_relative_to(folder))
