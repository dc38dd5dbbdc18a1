"""What a batch has done, remembered beside its outputs, so that a run that was killed can be taken up again.

A journal is a file of JSON lines that only ever grows: `start` before an output may appear, `done` after it stands.
Each line goes to the file by one write to its end, so several runs may share a journal, and a line torn by a power cut
is the last one and is passed over.

A journal may come with a folder from a stranger. So it is opened only if it is a regular file of ours, never through a
link; it is read line by line, within limits; and no line is believed that this program could not have written. What a
line says of an output proves nothing before size, time and digest have been compared with the file.
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
from hasn_cli.images.unfinished import CREATE, READ_REGULAR
from hasn_cli.redaction import redacted

NAME = ".hasn-journal.jsonl"
LONGEST_LINE = 1 << 16  # bytes; two paths of 4,096 bytes, each of them escaped, fit
LARGEST = 2 << 30  # bytes; some three million pictures
LARGEST_SCALE = 64  # more than there will ever be


class Journal:
    """One folder's journal: what it held when it was opened, and what is added.

    Args:
        root: the folder of the outputs, or its URL; a URL's journal is kept on this machine.
        targets: the outputs that are going to be asked for; None: all.

    Raises:
        OutputError: what is there is no journal that can be trusted (see `refusal`).
    """

    def __init__(self, root: Path | str, targets: Collection[Path | str] | None = None) -> None:
        self.root = root
        self.path = path_for(root)
        self.records = read(self.path, None if targets is None else {self._key(target) for target in targets})
        self._lock = threading.Lock()
        self._file: int | None = None  # opened for the first line: a run that begins nothing leaves nothing

    def __getitem__(self, target: Path | str) -> Mark | None:
        """The last line about an output, or None.

        If that is a `start`, its `earlier` is what the line before it said of the output as it was then.
        """
        return self.records.get(self._key(target))

    def start(self, target: Path | str, source: str | None = None) -> None:
        """Note that the output is going to be written, of `source`.

        Raises:
            OSError: the journal cannot be written.
            OutputError: what is there by now is no journal that can be trusted.
        """
        known = {"source": source} if source is not None else {}
        self._append({"target": self._key(target), "state": "start", **known}, durable=False)

    def done(self, target: Path | str, facts: Mark) -> None:
        """Note that the output stands; on the disk when this returns, since it is the proof that the output is ours."""
        self._append({"target": self._key(target), "state": "done", **facts}, durable=True)

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
        try:
            return os.open(self.path, CREATE | os.O_APPEND, 0o600)  # it tells paths
        except FileExistsError:
            file = _open_own(self.path, os.O_RDWR | os.O_APPEND)
        length = os.fstat(file).st_size
        if length:
            os.lseek(file, length - 1, os.SEEK_SET)
            if os.read(file, 1) != b"\n":  # a power cut tore the last line: end it, so that the next one is whole
                os.write(file, b"\n")
        return file

    def _key(self, target: Path | str) -> str:
        if isinstance(target, Path) and isinstance(self.root, Path) and target.is_relative_to(self.root):
            return target.relative_to(self.root).as_posix()
        return redacted(target) if isinstance(target, str) else str(target)


def path_for(root: Path | str) -> Path:
    """Where the journal of outputs under `root` lies."""
    if isinstance(root, Path):
        return root / NAME
    import hashlib

    from platformdirs import user_state_path

    name = hashlib.sha256(redacted(root).encode()).hexdigest()[:32]
    return user_state_path("hasn") / "journals" / f"{name}.jsonl"


def refusal(file: int) -> str | None:
    """Why an open file is no journal of ours, or None if it may be one."""
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        return "is no regular file"
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        return "belongs to another user"
    if found.st_nlink > 1:
        return "has a second name (a hard link)"
    if found.st_size > LARGEST:
        return f"is larger than {LARGEST >> 30} GiB"
    return None


def _open_own(path: Path, flags: int) -> int:
    """Open a journal that is there.

    Raises:
        FileNotFoundError: there is none.
        OutputError: it is a link, or something else that is no journal of ours; or it cannot be opened.
    """
    try:
        file = os.open(path, READ_REGULAR | flags)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        if path.is_symlink():
            raise _strange(path, "is a link") from None
        if not path.is_file():  # a socket, say
            raise _strange(path, "is no regular file") from None
        raise OutputError(f"{path}: {error.strerror}", "--no-journal keeps none") from error
    reason = "is a link" if path.is_symlink() else refusal(file)  # a link: for systems without O_NOFOLLOW
    if reason is not None:
        os.close(file)
        raise _strange(path, reason)
    return file


def _strange(path: Path, reason: str) -> OutputError:
    return OutputError(f"{path}: {reason}, and no journal of this program", "delete it, or use --no-journal")


def read(path: Path, keys: Collection[str] | None = None) -> dict[str, Mark]:
    """The last line about each output; none where there is no journal. Torn and strange lines are passed over.

    Args:
        path: the journal.
        keys: the outputs that matter, as the journal names them; None: all. The others take no memory.

    Raises:
        OutputError: what is there is no journal that can be trusted.
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
    """Put a record in place of the last one about its output; a `start` keeps what was said of the output before."""
    last = records.get(record["target"], {})
    if record["state"] == "start" and (earlier := last.get("output") or last.get("earlier")):
        record = {**record, "earlier": earlier}
    records[record["target"]] = record


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a journal, up to its length when this begins; those that are too long for one are left out."""
    left = LARGEST
    whole = True
    while left > 0 and (piece := stream.readline(min(LONGEST_LINE, left))):
        left -= len(piece)
        ends = piece.endswith(b"\n")
        if whole and (ends or len(piece) < LONGEST_LINE):
            yield piece
        whole = ends


def _record_in(line: bytes) -> Mark | None:
    """What a line says, if it is one that this program writes, as far as its readers rely on it."""
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
    """Whether it can name a file: some strings that JSON can hold cannot."""
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
    """Which of the files `among` the journal in `folder` tells of as outputs of inputs that lie in it, too.

    Where a folder holds outputs alone, they may well be wanted as inputs of another run.

    Raises:
        OutputError: what is there is no journal that can be trusted.
    """
    here = folder.resolve()
    keys = {path.relative_to(folder).as_posix(): path for path in among if path.is_relative_to(folder)}
    records = read(folder / NAME, keys)
    return frozenset(keys[key] for key, record in records.items() if _lies_in(record.get("source"), here))


def urls_recorded(folder: str) -> frozenset[str]:
    """As `outputs_recorded`, of a folder at a URL; the URLs without what is secret in them."""
    records = read(path_for(folder))
    return frozenset(key for key, record in records.items() if _is_below(record.get("source"), folder))


def _is_below(source: str | None, folder: str) -> bool:
    return source is None or (remote.is_url(source) and source.startswith(redacted(folder).rstrip("/") + "/"))


def _lies_in(source: str | None, folder: Path) -> bool:
    """Whether a recorded path lies there, by its name: a stranger's line is no reason to look at any disk."""
    return source is None or (".." not in PurePath(source).parts and PurePath(source).is_relative_to(folder))
