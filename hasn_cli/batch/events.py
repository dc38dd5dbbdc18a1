"""The events that a batch yields while it runs. Each is immutable and has a JSON-able form, `to_dict`."""

from __future__ import annotations

from dataclasses import dataclass

from hasn_cli.batch.jobs import Job
from hasn_cli.errors import HasnError


@dataclass(frozen=True)
class Started:
    """The picture has been opened and will be enlarged.

    Attributes:
        size: (height, width) of the input's first frame.
        target_size: (height, width) of the output's first frame.
        frames: the number of frames or pages.
        format: the format of the output.
        plan: whether the picture is computed whole or in tiles, and in how much memory, in one line.
        details: device, precision and strips, in one line.
        tiles: the number of tiles that the picture is cut into. 1: it is computed whole.
        weights: which weights were chosen and why, in a few words; empty if the user named them.
        length: of a video, in seconds; None for pictures, and if it is not known.
        estimate: of a video in a dry run: about how many seconds it would take; None if that is not known.
    """

    job: Job
    size: tuple[int, int]
    target_size: tuple[int, int]
    frames: int
    format: str
    plan: str
    details: str = ""
    tiles: int = 1
    weights: str = ""
    length: float | None = None
    estimate: float | None = None

    def to_dict(self) -> dict[str, object]:
        """The event as JSON-able values."""
        return _header("start", self.job) | {
            "size": list(self.size),
            "target_size": list(self.target_size),
            "frames": self.frames,
            "format": self.format,
            "plan": self.plan,
            "details": self.details,
            "tiles": self.tiles,
            "weights": self.weights,
            **_given(length=self.length, estimate=self.estimate),
        }


@dataclass(frozen=True)
class Progress:
    """A part of the picture has been enlarged.

    Attributes:
        fraction: the part that is done, 0 to 1.
        megapixels: the input megapixels that are done, all frames together.
        frames: of a video: how many are done.
        seconds: of a video: how much of its time is done.
    """

    job: Job
    fraction: float
    megapixels: float
    frames: int | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, object]:
        """The event as JSON-able values."""
        done = {"fraction": round(self.fraction, 4), "megapixels": round(self.megapixels, 4)}
        return _header("progress", self.job) | done | _given(frames=self.frames, seconds=self.seconds)


@dataclass(frozen=True)
class Done:
    """The output has been written.

    Attributes:
        seconds: from opening the input to the finished output, without waiting for other pictures.
        network_seconds: the part of `seconds` that the network took.
        size: (height, width) of the input's first frame.
        sr_size: (height, width) of the output's first frame.
        bytes: length of the output.
        notices: what was damaged in the input or could not be kept, in a few words each.
        frames: of a video: how many there are.
        repeated: of a video: how many of them equal the frame before, and were not computed again.
        resumed: of a video: how many of them an earlier run had finished.
    """

    job: Job
    seconds: float
    network_seconds: float
    size: tuple[int, int]
    sr_size: tuple[int, int]
    bytes: int
    notices: tuple[str, ...] = ()
    frames: int | None = None
    repeated: int | None = None
    resumed: int | None = None

    def to_dict(self) -> dict[str, object]:
        """The event as JSON-able values."""
        return _header("done", self.job) | {
            "size": list(self.size),
            "sr_size": list(self.sr_size),
            "bytes": self.bytes,
            "seconds": round(self.seconds, 4),
            "network_seconds": round(self.network_seconds, 4),
            "notices": list(self.notices),
            **_given(frames=self.frames, repeated=self.repeated, resumed=self.resumed),
        }


@dataclass(frozen=True)
class Skipped:
    """The picture was left out."""

    job: Job
    reason: str

    def to_dict(self) -> dict[str, object]:
        """The event as JSON-able values."""
        return _header("skipped", self.job) | {"reason": self.reason}


@dataclass(frozen=True)
class Failed:
    """This picture failed. The batch continues."""

    job: Job
    error: Exception

    def to_dict(self) -> dict[str, object]:
        """The event as JSON-able values."""
        known = self.error if isinstance(self.error, HasnError) else None
        message = known.message if known else f"{type(self.error).__name__}: {self.error}"
        return _header("failed", self.job) | {"error": message, "hint": known.hint if known else None}


@dataclass(frozen=True)
class Stopped:
    """The batch stopped before its end, because every further picture would fail (the disk is full).

    Attributes:
        reason: why.
        left: how many pictures were not tried.
    """

    reason: str
    left: int

    def to_dict(self) -> dict[str, object]:
        """The event as JSON-able values."""
        return {"event": "stopped", "reason": self.reason, "left": self.left}


Event = Started | Progress | Done | Skipped | Failed | Stopped


def _given(**values: float | None) -> dict[str, object]:
    """The values that are not None; pictures have none of them."""
    return {name: round(value, 3) for name, value in values.items() if value is not None}


def _header(event: str, job: Job) -> dict[str, object]:
    return {"event": event, "index": job.index, "input": str(job.source), "output": str(job.target)}
