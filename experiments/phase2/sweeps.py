"""The recorded jobs of a sweep, and whether their timings may be compared. Imports no torch.

Timings are evidence only from one machine, one job after the other, in interleaved rounds. Every refusal is a
`ConfigError` that names the job and the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

from atlas.config import ConfigError, require
from atlas.config.continuing import settings_hash
from atlas.config.files import read_yaml
from atlas.config.keys import lies_in, nested
from atlas.config.untrusted import read_json
from atlas.telemetry.run_files import CONFIG_FILE, JOBS_FILE, SUMMARY_FILE, RunFiles

CHOICES_FILE = "multirun.yaml"  # written by Hydra
SERIAL = ("", "basic")  # launchers that run one job after the other; "" = none
ROUNDS_MIN = 2  # one round cannot tell a slow candidate from a slow moment
# Where something is written and how it is numbered; all other settings must agree unless the rule varies them.
IRRELEVANT = ("logger", "resume", "sweep")


class InRound(Protocol):
    @property
    def round(self) -> int: ...


Run = TypeVar("Run", bound=InRound)


@dataclass(frozen=True)
class RecordedJob:
    """One job: its settings as `group.key`, its summary.json, and its rows and events, read on first use."""

    job: int
    folder: Path
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return RunFiles(self.folder).rows

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        return RunFiles(self.folder).events

    def times(self, kind: str) -> list[float]:
        """When events of this kind happened, in seconds since 1970."""
        return [event["time"] for event in self.events if event["kind"] == kind]

    @property
    def round(self) -> int:
        return int(self.settings.get("sweep.round", 0))

    @property
    def completed(self) -> bool:
        return bool(self.summary["status"] == "completed")


@dataclass(frozen=True)
class RecordedSweep:
    """A sweep folder: `overrides` and flags as they were typed, the `experiment` it ran, or ""."""

    folder: Path
    experiment: str
    overrides: Sequence[str]
    jobs: Sequence[RecordedJob]  # in the order of their numbers

    @property
    def command(self) -> str:
        return " ".join(["python -m atlas.train -m", *map(_quoted, self.overrides)])


def read_sweep(folder: Path) -> RecordedSweep:
    """Raises `ConfigError` for a folder that is no sweep, and for a job without settings or summary."""
    for name in (JOBS_FILE, CHOICES_FILE):
        require((folder / name).is_file(), "SWEEP", folder, f"the folder of a sweep ({name} is not in it)")
    with readable(folder):
        record = read_json(folder / JOBS_FILE)
        choices = read_yaml(folder / CHOICES_FILE)["hydra"]["runtime"]["choices"]
        jobs = [_read_job(folder, job["folder"], job["number"]) for job in record["jobs"]]
        overrides = [*record.get("flags", ()), *record["task"]]
        return RecordedSweep(folder, choices.get("experiment") or "", overrides, jobs)


def _read_job(sweep: Path, name: str, number: int) -> RecordedJob:
    for file in (CONFIG_FILE, SUMMARY_FILE):
        allowed = f"finished: job {number} left no {file}; `python -m atlas.train -m sweep.resume={sweep}` runs it"
        require((sweep / name / file).is_file(), "SWEEP", sweep, allowed)
    files = RunFiles(sweep / name)
    return RecordedJob(number, sweep / name, files.settings, files.summary)


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turns the errors of damaged files, or of files of another version, into a `ConfigError`."""
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ConfigError(
            f"SWEEP={folder}: must be a sweep whose files can be read ({type(error).__name__}: {_one_line(error)})"
        ) from error


def require_sound(jobs: Sequence[RecordedJob], excused: Collection[int] = (), *, timed: bool = True) -> None:
    """What all rules require. `excused` jobs may have failed: that is evidence as well. Where no time is read
    (`timed=False`), jobs may run side by side and go on after an interruption."""
    folder = jobs[0].folder.parent if jobs else Path()
    require(len(jobs) > 0, "SWEEP", folder, "a sweep with at least one job")
    for job in jobs:
        name, launcher, status = f"job {job.job}", job.summary.get("launcher", ""), job.summary["status"]
        allowed = "basic: timings of jobs that ran in parallel are no evidence"
        require(launcher in SERIAL or not timed, f"{name} launcher", launcher, allowed)
        reason = _one_line(job.summary["reason"]) or "it was killed"
        require(job.completed or job.job in excused, f"{name} status", status, f"completed ({reason})")
        if job.completed:
            _require_whole(job)
    for what in ("device", "versions", "git", "data_digest"):
        _require_one(jobs, what, lambda job, what=what: _in_one_line(job.summary[what]))  # type: ignore[misc]
    if timed:
        _require_serial([job for job in jobs if job.job not in excused])


def _require_whole(job: RecordedJob) -> None:
    """It ran all of its steps, with the settings that it shows."""
    name, steps, frozen = f"job {job.job}", job.settings["train.steps"], settings_hash(nested(job.settings))
    require(job.summary["step"] == steps, f"{name} step", job.summary["step"], f"{steps}, as in train.steps")
    allowed = f"{frozen}, that of its {CONFIG_FILE}: one of both was changed after the run"
    require(job.summary["config_hash"] == frozen, f"{name} config_hash", job.summary["config_hash"], allowed)


def require_rounds(jobs: Sequence[RecordedJob], candidate: Callable[[RecordedJob], Hashable]) -> None:
    """Every candidate runs once a round, and a round ends before the next begins."""
    rounds = sorted({job.round for job in jobs})
    allowed = f"at least {ROUNDS_MIN} different values: one round cannot tell a slow candidate from a slow moment"
    require(len(rounds) >= ROUNDS_MIN, "sweep.round", rounds, allowed)
    order = [job.round for job in sorted(jobs, key=lambda job: job.job)]
    require(order == sorted(order), "sweep.round", order, "the first key of the sweep, so that rounds are interleaved")
    require_once_a_round(jobs, candidate)


def require_once_a_round(runs: Sequence[Run], candidate: Callable[[Run], Hashable]) -> None:
    """Every candidate has one run in each round."""
    counts = Counter((run.round, candidate(run)) for run in runs)
    for number in sorted({run.round for run in runs}):
        for name in dict.fromkeys(candidate(run) for run in runs):
            found = counts[number, name]
            require(found == 1, f"runs of {name} in round {number}", found, "1")


def require_same_settings(jobs: Sequence[RecordedJob], swept: Collection[str]) -> None:
    """All settings agree, except the `swept` ones; the name of a group stands for all its keys."""
    for key in sorted({key for job in jobs for key in job.settings}):
        if not lies_in(key, (*IRRELEVANT, *swept)):
            _require_one(jobs, key, lambda job, key=key: job.settings.get(key))  # type: ignore[misc]


def _require_serial(jobs: Sequence[RecordedJob]) -> None:
    """Each job started once, in the order of their numbers, after the job before it had ended, and never went back."""
    for job in jobs:
        starts = len(job.times("start"))
        require(starts == 1, f"job {job.job} starts", starts, "1: a continued run mixes the timings of two moments")
        rollbacks = len(job.times("rollback"))
        require(rollbacks == 0, f"job {job.job} rollbacks", rollbacks, "0: its times are of undone steps as well")
    for before, after in pairwise(jobs):
        gap = after.times("start")[0] - before.times("end")[-1]
        allowed = f"after the end of job {before.job}: the jobs overlapped, or were not run in their order"
        require(gap >= 0, f"job {after.job} start", f"{gap:+.1f} s", allowed)


def _require_one(jobs: Sequence[RecordedJob], what: str, value: Callable[[RecordedJob], Any]) -> None:
    first = value(jobs[0])
    for job in jobs[1:]:
        require(value(job) == first, f"job {job.job} {what}", value(job), f"{first}, as in job {jobs[0].job}")


def _in_one_line(value: Any) -> Any:
    return ", ".join(f"{name} {number}" for name, number in value.items()) if isinstance(value, dict) else value


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _quoted(override: str) -> str:
    """`override` for a shell: in quotes where it holds a character that a shell interprets."""
    plain = all(character.isalnum() or character in "=.,_/+-:@%~" for character in override)
    return override if plain else f"'{override}'"
