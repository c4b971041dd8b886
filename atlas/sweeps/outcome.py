"""The outcomes of a sweep's jobs, read from their folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atlas.config.lock import is_held
from atlas.runs.summary import RunSummary, read_summary
from atlas.sweeps.sweep_record import Job, SweepRecord
from atlas.telemetry.run_files import CHECKPOINTS


@dataclass(frozen=True)
class JobOutcome:
    job: Job
    summary: RunSummary | None  # None: it was not started
    held: bool = False  # another process runs it

    @property
    def status(self) -> str:
        """completed, failed, aborted, killed, running (by another process) or not started."""
        if self.held:
            return "running"
        status = self.summary.status if self.summary else "not started"
        return "killed" if status == "running" else status

    @property
    def completed(self) -> bool:
        return self.status == "completed"


def outcomes(folder: Path, record: SweepRecord) -> list[JobOutcome]:
    """One for each job, in their order. Not to be called while this process runs a job of the sweep."""
    places = [folder / job.folder for job in record.jobs]
    return [
        JobOutcome(job, read_summary(place), is_held(place / CHECKPOINTS))
        for job, place in zip(record.jobs, places, strict=True)
    ]


def left_over(folder: Path, record: SweepRecord) -> list[Job]:
    """The jobs that did not complete."""
    return [outcome.job for outcome in outcomes(folder, record) if not outcome.completed]


def cut_short(folder: Path, record: SweepRecord) -> list[Job]:
    """The jobs that were not started, and those whose process was killed."""
    return [outcome.job for outcome in outcomes(folder, record) if outcome.status in ("not started", "killed")]
