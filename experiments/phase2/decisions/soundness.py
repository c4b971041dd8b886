"""May these runs be compared? Timings are evidence only from one machine, one after the other, in interleaved rounds.

Every refusal is a `ConfigError` that names the job and the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from atlas.config import require
from experiments.phase2.decisions.recorded import RecordedRun, one_line

SERIAL = ("", "basic")  # launchers that run one job after the other; "" = none
ROUNDS_MIN = 2  # one round cannot tell a slow candidate from a slow moment
# Where something is written and how it is numbered; all other settings must agree unless the protocol varies them.
IRRELEVANT = ("logger", "resume", "sweep")


def require_sound(runs: Sequence[RecordedRun], excused: Collection[int] = ()) -> None:
    """What holds for every protocol. `excused` jobs may have failed: that is evidence as well."""
    folder = runs[0].folder.parent if runs else Path()
    require(len(runs) > 0, "SWEEP", folder, "a sweep with at least one job")
    for run in runs:
        _require_finished(run, run.job in excused)
    for what in ("device", "versions", "git"):
        _require_one(runs, what, lambda run, key=what: _canonical(run.summary[key]))  # type: ignore[misc]
    _require_serial([run for run in runs if run.job not in excused])


def require_rounds(runs: Sequence[RecordedRun], candidate: Callable[[RecordedRun], Hashable]) -> None:
    """Every candidate once a round, and a round over before the next begins."""
    rounds = sorted({run.round for run in runs})
    allowed = f"at least {ROUNDS_MIN} different values: one round cannot tell a slow candidate from a slow moment"
    require(len(rounds) >= ROUNDS_MIN, "sweep.round", rounds, allowed)
    order = [run.round for run in sorted(runs, key=lambda run: run.job)]
    require(order == sorted(order), "sweep.round", order, "the first key of the sweep, so that rounds are interleaved")
    counts = Counter((run.round, candidate(run)) for run in runs)
    for number in rounds:
        for name in {candidate(run) for run in runs}:
            found = counts[number, name]
            require(found == 1, "SWEEP", runs[0].folder.parent, f"one run of {name} in round {number}; {found} found")


def require_same_settings(runs: Sequence[RecordedRun], swept: Collection[str]) -> None:
    """All settings but the `swept` ones agree; a name stands for a whole group as well."""
    keys = sorted({key for run in runs for key in run.settings})
    for key in keys:
        if not _named(key, (*IRRELEVANT, *swept)):
            _require_one(runs, key, lambda run, key=key: run.settings.get(key))  # type: ignore[misc]


def _named(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _require_finished(run: RecordedRun, excused: bool) -> None:
    name, status = f"job {run.job} launcher", run.summary["status"]
    launcher = run.summary.get("launcher", "")
    require(launcher in SERIAL, name, launcher, "basic: timings of jobs that ran in parallel are no evidence")
    reason = one_line(run.summary["reason"]) or "it was killed"
    require(run.completed or excused, f"job {run.job} status", status, f"completed ({reason})")


def _require_serial(runs: Sequence[RecordedRun]) -> None:
    """One start each, in the order of the jobs, none before the one before it had ended."""
    for run in runs:
        starts = len(run.times("start"))
        require(starts == 1, f"job {run.job} starts", starts, "1: a continued run mixes the timings of two moments")
    for before, after in pairwise(runs):
        gap = after.times("start")[0] - before.times("end")[-1]
        allowed = f"after the end of job {before.job}: the jobs overlapped, or were not run in their order"
        require(gap >= 0, f"job {after.job} start", f"{gap:+.1f} s", allowed)


def _require_one(runs: Sequence[RecordedRun], what: str, value: Callable[[RecordedRun], Any]) -> None:
    first = value(runs[0])
    for run in runs[1:]:
        found = value(run)
        require(found == first, f"job {run.job} {what}", found, f"{first}, as in job {runs[0].job}")


def _canonical(value: Any) -> Any:
    """Versions as one text, so that a refusal shows them in one line."""
    return ", ".join(f"{name} {number}" for name, number in value.items()) if isinstance(value, dict) else value
