"""What became of the jobs of a sweep, read from their folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atlas.runs.summary import RunSummary, read_summary
from atlas.sweeps.record import Job, SweepRecord


@dataclass(frozen=True)
class Outcome:
    job: Job
    summary: RunSummary | None  # None: it was not started

    @property
    def status(self) -> str:
        """completed, failed, aborted, killed or not started."""
        status = self.summary.status if self.summary else "not started"
        return "killed" if status == "running" else status

    @property
    def completed(self) -> bool:
        return self.status == "completed"


def outcomes(folder: Path, record: SweepRecord) -> list[Outcome]:
    """One for each job, in their order; only of a sweep of which no job is running."""
    return [Outcome(job, read_summary(folder / job.folder)) for job in record.jobs]


def left_over(folder: Path, record: SweepRecord) -> list[Job]:
    """The jobs that did not complete."""
    return [outcome.job for outcome in outcomes(folder, record) if not outcome.completed]


def not_started(folder: Path, record: SweepRecord) -> list[Job]:
    """The jobs that left no summary."""
    return [outcome.job for outcome in outcomes(folder, record) if outcome.summary is None]
