"""Many pictures and videos: what to do (`jobs`, `naming`, `settings`), and doing it (`run`, `executors`, `process`)."""

from hasn_cli.batch.events import Done, Event, Failed, Progress, Skipped, Started, Stopped
from hasn_cli.batch.existing_outputs import OnExists
from hasn_cli.batch.jobs import Job
from hasn_cli.batch.pool import UpscalerPool
from hasn_cli.batch.run import plan_batch, run_batch
from hasn_cli.batch.settings import Settings

__all__ = [
    "Done",
    "Event",
    "Failed",
    "Job",
    "OnExists",
    "Progress",
    "Settings",
    "Skipped",
    "Started",
    "Stopped",
    "UpscalerPool",
    "plan_batch",
    "run_batch",
]
