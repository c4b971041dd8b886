"""Finding the runs in the named folders: a folder is a run, or a sweep with a folder for each job."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas.config import require
from atlas.config.lock import is_held
from atlas.config.untrusted import read_json
from atlas.telemetry.run_files import CONFIG_FILE, JOBS_FILE, METRICS_FILE, SUMMARY_FILE, RunFiles

RUN_FILES = (CONFIG_FILE, SUMMARY_FILE, METRICS_FILE)
SWEEP_FILE = "multirun.yaml"


@dataclass(frozen=True)
class Selection:
    """The runs to report. `sweeps` holds those of the named folders that are sweeps."""

    given: Sequence[Path]
    sweeps: Sequence[Path]
    runs: Sequence[Path]

    @property
    def title(self) -> str:
        if len(self.given) > 1:
            return f"{len(self.runs)} runs"
        return f"{'sweep' if self.sweeps else 'run'} {self.given[0].name}"

    @property
    def goes_on(self) -> bool:
        """Whether a run has the status `running`, as one that was killed on another machine has, or a sweep is being
        run: between two of its jobs no run is."""
        running = any(RunFiles(run, strict=False).status == "running" for run in self.runs)
        return running or any(is_held(sweep) for sweep in self.sweeps)


def select_runs(folders: Sequence[Path]) -> Selection:
    """The runs in `folders`, each once. Raises `ConfigError` for a folder that holds none."""
    require(bool(folders), "DIR", "", "at least one folder of a run or a sweep")
    given = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    sweeps, runs = [], []
    for folder in given:
        require(folder.is_dir(), "DIR", folder, "a folder that exists")
        if is_run(folder):
            runs.append(folder)
            continue
        jobs = list(_runs_below(folder, deep=(folder / SWEEP_FILE).exists()))
        empty = "a sweep with at least one job; this one has none yet" if (folder / SWEEP_FILE).exists() else ""
        require(bool(jobs), "DIR", folder, empty or "the folder of a run (config.yaml, summary.json) or of a sweep")
        sweeps.append(folder)
        runs += jobs
    return Selection(given, sweeps, list(dict.fromkeys(runs)))


def missing_jobs(sweep: Path) -> list[str]:
    """The jobs that the sweep's record names and that have left nothing: folder and the settings that are their own."""
    try:
        jobs = {str(job["folder"]): list(map(str, job["overrides"])) for job in read_json(sweep / JOBS_FILE)["jobs"]}
    except (OSError, ValueError, TypeError, KeyError):  # a folder of runs, or one of a stranger
        return []
    gone = {folder: given for folder, given in jobs.items() if not is_run(sweep / folder)}
    common = set.intersection(*map(set, jobs.values())) if jobs else set()
    own = {folder: " ".join(text for text in given if text not in common) for folder, given in gone.items()}
    return [f"{folder} ({settings})" if settings else folder for folder, settings in own.items()]


def _runs_below(folder: Path, deep: bool) -> Iterator[Path]:
    """The runs in `folder`; `deep`: also in folders that are no run, since a sweep may name its jobs a/b."""
    for path in sorted(folder.iterdir(), key=_natural):
        if is_run(path):
            yield path
        elif deep and path.is_dir() and not path.is_symlink():
            yield from _runs_below(path, deep)


def is_run(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).is_file() for name in RUN_FILES)


def names_of(runs: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as tell them apart."""
    longest = max(len(path.parts) for path in runs)
    for parts in range(1, longest + 1):
        names = ["/".join(path.parts[-parts:]) for path in runs]
        if len(set(names)) == len(runs):
            break
    return names


def _natural(path: Path) -> list[tuple[int, str]]:
    """Job 10 comes after job 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]
