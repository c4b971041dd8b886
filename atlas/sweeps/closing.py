"""The end of a sweep: the outcome of each job, the report, and the command that runs the jobs that are left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from atlas.config import RECALL
from atlas.config.untrusted import printable
from atlas.report.health import HEALTHY, brief
from atlas.report.wording import VALIDATION_LOSS
from atlas.runs.folder import reason, say
from atlas.runs.summary import RunSummary
from atlas.sweeps.outcome import JobOutcome, outcomes
from atlas.sweeps.resumption import KEY
from atlas.sweeps.stop import StopSign
from atlas.sweeps.sweep_record import read_record

HEAD = ("job", "settings", "status", VALIDATION_LOSS, RECALL.name, "health")


def close_sweep(folder: Path, shown: Path, interrupted: bool) -> int:
    """Print how the jobs of the sweep in `folder` ended and write its report; returns the exit status.

    `shown`: the folder as messages name it.
    """
    record = read_record(folder, "hydra.sweep.dir")
    found = outcomes(folder, record)
    rows = [_row(outcome, record.swept(outcome.job)) for outcome in found]
    print(printable("\n".join(_table([HEAD, *rows]))), flush=True)
    if any(outcome.summary for outcome in found):
        _report(folder)
    for outcome in found:
        if outcome.summary and not outcome.completed:
            say(f"job {outcome.job.number} {outcome.status}: {_why(outcome)}; see {shown / outcome.job.folder}")
    not_started, why = sum(outcome.summary is None for outcome in found), StopSign(folder).reason
    if not_started:
        say(f"{not_started} of the jobs not started" + (f": {why}" if why else ""))
    completed = sum(outcome.completed for outcome in found)
    if completed < len(found):
        say(f"python -m atlas.train -m {quote(f'{KEY}={shown}')} runs the jobs that are left")
    say(f"{completed} of {len(found)} jobs completed; see {shown}")
    return 130 if interrupted else int(completed < len(found))


def _report(folder: Path) -> None:
    """Write the report. An error here is a warning: the runs themselves are complete."""
    try:
        from atlas.report import write_report  # imported late: plotly and matplotlib take seconds
        from atlas.report.terminal import doubts

        said: list[str] = []
        page = write_report([folder], tell=lambda document: said.extend(doubts(document))) / "index.html"
        print(printable("\n".join([f"report: {page}", *said])), flush=True)
    except Exception as error:
        say(f"warning: the report was not written ({reason(error)}); python -m atlas.report {folder} tries again")


def _row(outcome: JobOutcome, swept: dict[str, str]) -> tuple[str, ...]:
    settings = " ".join(f"{name}={value}" for name, value in swept.items())
    summary = outcome.summary
    loss = "-"
    if summary and summary.validation_loss is not None:
        loss = f"{summary.validation_loss / summary.bytes_per_token:.4f}"
    recall = summary.niah.get(RECALL.name, {}).get("accuracy") if summary else None
    return (
        str(outcome.job.number),
        settings,
        outcome.status,
        loss,
        "-" if recall is None else f"{recall:{RECALL.unit.form}}",
        _health(summary),
    )


def _health(summary: RunSummary | None) -> str:
    if summary is None:
        return "-"
    spikes = sum(event["kind"] == "spike" for event in summary.history)
    found = brief([str(one["watch"]) for one in summary.watch], spikes, len(summary.warnings))
    return ", ".join(found) or (HEALTHY if summary.status == "completed" else "-")


def _why(outcome: JobOutcome) -> str:
    assert outcome.summary is not None
    if outcome.held:
        return "another process runs it"
    text = outcome.summary.reason or "its process ended without an error message"
    return text.splitlines()[0]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
