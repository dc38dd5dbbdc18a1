"""What a batch tells while it runs: one frozen event after the other, each JSON-able by `to_dict`."""

from __future__ import annotations

from dataclasses import dataclass

from hasn_cli.batch.inputs import Job
from hasn_cli.errors import HasnError


@dataclass(frozen=True)
class Started:
    """The picture has been opened, and is going to be enlarged.

    Attributes:
        size: (height, width) of the first frame.
        target_size: (height, width) that it will have.
        frames: how many there are.
        format: what will be written.
        plan: how the network goes about it, in one line.
    """

    job: Job
    size: tuple[int, int]
    target_size: tuple[int, int]
    frames: int
    format: str
    plan: str

    def to_dict(self) -> dict[str, object]:
        """The event as JSON-able values."""
        return _header("start", self.job) | {
            "size": list(self.size),
            "target_size": list(self.target_size),
            "frames": self.frames,
            "format": self.format,
            "plan": self.plan,
        }


@dataclass(frozen=True)
class Progress:
    """So much of the picture is done.

    Attributes:
        fraction: 0 to 1.
        megapixels: LR megapixels done, all frames together.
    """

    job: Job
    fraction: float
    megapixels: float

    def to_dict(self) -> dict[str, object]:
        """The event as JSON-able values."""
        done = {"fraction": round(self.fraction, 4), "megapixels": round(self.megapixels, 4)}
        return _header("progress", self.job) | done


@dataclass(frozen=True)
class Done:
    """The output stands where it belongs.

    Attributes:
        seconds: from opening the input to the finished output, the wait for its turn left out.
        network_seconds: of these, what the network took.
        size: (height, width) of the input's first frame.
        sr_size: (height, width) of the output's first frame.
        bytes: length of the output.
        notices: what of the input was broken or does not come along, a few words each.
    """

    job: Job
    seconds: float
    network_seconds: float
    size: tuple[int, int]
    sr_size: tuple[int, int]
    bytes: int
    notices: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """The event as JSON-able values."""
        return _header("done", self.job) | {
            "size": list(self.size),
            "sr_size": list(self.sr_size),
            "bytes": self.bytes,
            "seconds": round(self.seconds, 4),
            "network_seconds": round(self.network_seconds, 4),
            "notices": list(self.notices),
        }


@dataclass(frozen=True)
class Skipped:
    """Nothing was to be done."""

    job: Job
    reason: str

    def to_dict(self) -> dict[str, object]:
        """The event as JSON-able values."""
        return _header("skipped", self.job) | {"reason": self.reason}


@dataclass(frozen=True)
class Failed:
    """This picture could not be done; the batch goes on."""

    job: Job
    error: Exception

    def to_dict(self) -> dict[str, object]:
        """The event as JSON-able values."""
        known = self.error if isinstance(self.error, HasnError) else None
        message = known.message if known else f"{type(self.error).__name__}: {self.error}"
        return _header("failed", self.job) | {"error": message, "hint": known.hint if known else None}


@dataclass(frozen=True)
class Stopped:
    """The batch gives up, though pictures are left: going on could only fail (the disk is full).

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


def _header(event: str, job: Job) -> dict[str, object]:
    return {"event": event, "index": job.index, "input": str(job.source), "output": str(job.target)}
