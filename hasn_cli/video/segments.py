"""The finished parts of a video whose run may be interrupted, and how they become one file.

A part is a Matroska file with a fixed number of frames that were encoded on their own, and a JSON file with their exact
times. The JSON file is written last, so a part that has one is complete. All parts of an output are in one folder
beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.container import OutputContainer
from av.packet import Packet

from hasn_cli.errors import OutputError, OutputExistsError
from hasn_cli.files import replacing

if sys.platform != "win32":
    import fcntl

FOLDER_SUFFIX = ".parts"
_LONGEST_NAME = 200
_PLAN = "plan.json"
PIXELS = 10_000_000  # input pixels in a part: one to three minutes of work on a small CPU
FEWEST, MOST = 12, 250  # frames in a part


def frames_per_part(size: tuple[int, int]) -> int:
    """How many frames of this (height, width) make a part."""
    return max(FEWEST, min(MOST, PIXELS // (size[0] * size[1])))


@dataclass(frozen=True)
class Part:
    """A finished part.

    Attributes:
        times: of its packets in the order of decoding, in units of the clip's time base.
        end: when its last frame ends.
        frames: how many frames it has.
        repeated: how many of them equal the frame before.
    """

    times: list[int]
    end: int
    frames: int
    repeated: int


class Parts:
    """The parts of one output, in a folder that only this process uses.

    Args:
        target: the output.
        key: what the result depends on; parts with another key are not used.
        resume: use the parts that are there. Otherwise there must be none.
        discard: delete the parts that are there.

    Raises:
        OutputExistsError: there are parts, and neither `resume` nor `discard` says what to do.
        OutputError: the folder cannot be used, or another process uses it.
    """

    def __init__(self, target: Path, key: str, *, resume: bool = False, discard: bool = False) -> None:
        self.folder = folder_of(target)
        self.restarted = False  # whether parts were deleted because they do not fit
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = self._locked(target)
        except OSError as error:
            raise OutputError(f"{self.folder}: {error.strerror}") from error
        try:
            self._prepare(target, key, resume, discard)
        except BaseException:
            self._lock.close()
            raise

    def _locked(self, target: Path) -> BinaryIO:
        stream = (self.folder / "lock").open("a+b")
        if sys.platform != "win32":
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.close()
                raise OutputError(f"{target}: another process is making it") from None
            except OSError:  # the disk does not support locks
                pass
        return stream

    def _prepare(self, target: Path, key: str, resume: bool, discard: bool) -> None:
        plan = self.folder / _PLAN
        found = self._read_json(plan)
        self.finished: list[Part] = []
        if found == {"key": key} and resume:
            self.finished = list(self._read_parts())
            return
        begun = any(self.folder.glob("*.json")) and found is not None and any(self._read_parts())
        if begun and not (resume or discard):
            hint = "--resume continues it, --overwrite starts again"
            raise OutputExistsError(f"{target}: an unfinished run has left finished parts of it", hint)
        self.restarted = begun and resume
        for path in self.folder.iterdir():
            if path.name != "lock":
                path.unlink()
        self._write_json(plan, {"key": key})

    def _read_parts(self) -> Iterator[Part]:
        for number in range(sys.maxsize):
            found = self._read_json(self._path(number, ".json"))
            if found is None or not self._path(number, ".mkv").exists():
                return
            yield Part(**found)

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"{number:06d}{suffix}"

    @staticmethod
    def _read_json(path: Path) -> dict[str, Any] | None:
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    @staticmethod
    def _write_json(path: Path, values: dict[str, object]) -> None:
        with replacing(path) as stream:
            stream.write(json.dumps(values).encode())

    @contextlib.contextmanager
    def writing(self) -> Iterator[OutputContainer]:
        """A container for the next part. Afterwards, call `finish`."""
        path = self._path(len(self.finished), ".mkv")
        try:
            with av.open(str(path), "w", format="matroska") as container:
                yield container
            with path.open("r+b") as stream:
                os.fsync(stream.fileno())
        except av.FFmpegError as error:
            raise OutputError(f"{path}: {error.strerror}") from error

    def finish(self, part: Part) -> None:
        """Record that the next part has been written."""
        try:
            self._write_json(self._path(len(self.finished), ".json"), asdict(part))
        except OSError as error:
            raise OutputError(f"{self.folder}: {error.strerror}") from error
        self.finished.append(part)

    def paths(self) -> list[Path]:
        """The files of the finished parts."""
        return [self._path(number, ".mkv") for number in range(len(self.finished))]

    def packets(self) -> Iterator[Packet[Any]]:
        """The packets of all finished parts, with the times that they have in the whole video."""
        order = decoding_times([part.times for part in self.finished], self.finished[-1].end)
        for path in self.paths():
            with av.open(str(path)) as container:
                for packet in container.demux(video=0):
                    if packet.size:
                        packet.pts, packet.dts, packet.duration = next(order)
                        yield packet

    def close(self, *, delete: bool) -> None:
        """Release the folder. `delete` removes it and the parts in it."""
        self._lock.close()
        empty = not self.finished
        if delete or empty:
            shutil.rmtree(self.folder, ignore_errors=True)


def folder_of(target: Path) -> Path:
    """The folder for the parts of an output."""
    name = target.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return target.parent / f".hasn-{name}{FOLDER_SUFFIX}"


def decoding_times(parts: Sequence[Sequence[int]], end: int) -> Iterator[tuple[int, int, int]]:
    """For each packet of all parts: when its frame is shown, when it is decoded, and its duration.

    Each part was encoded with decoding times of its own, which may overlap those of the part before. Here, the packet
    at position i is decoded when the frame at position i − d of the display is shown, with the smallest d for which no
    packet is decoded after it is shown. These times grow from packet to packet.

    Args:
        parts: when each packet's frame is shown, in the order of decoding.
        end: when the last frame ends.
    """
    shown = sorted(time for part in parts for time in part)
    ends = {time: after - time for time, after in zip(shown, [*shown[1:], end], strict=True)}
    rank = {time: position for position, time in enumerate(shown)}
    delay = max((position - rank[time] for position, time in enumerate(_all(parts))), default=0)
    for position, time in enumerate(_all(parts)):
        early = delay - position
        decoded = shown[position - delay] if early <= 0 else shown[0] - early * max(1, ends[shown[0]])
        yield time, decoded, ends[time]


def _all(parts: Sequence[Sequence[int]]) -> Iterator[int]:
    for part in parts:
        yield from part
