"""The field: what the default, other rules, ablations and models without a memory learn in equal tokens and time.

python -m experiments.field [KEY=VALUE ...]

  size=tiny                    small: models of 4.9 M parameters, sequences of 1024 tokens, the first three contestants
  steps=400                    of 8 sequences, for the table at equal tokens and for the default
  seeds=3
  samples=24                   needles at each of three depths, by haystack and length
  jobs=2                       models trained at once, on a thread each
  rounds=9                     training steps of every model that are timed in turn, before the rest
  only=default,LSTM            some of the contestants (contestants.py), the default among them, with a folder of
                               their own; empty: all but those of other iterations
  equal_time=true              false: the table at equal tokens alone
  folder=experiments/field     where RESULTS.md goes; of another size its own folder there
  runs=                        what is measured, a file for each model, and not measured again. Empty: `measured` in
                               the folder

All contestants are trained by one loop with the step, data, optimiser and schedule of a run. At equal time a
contestant makes as many steps as its speed allows in the time of the default; where that is within 5 % of `steps`, its
run at equal tokens counts. Writes RESULTS.md after every model, in hours on 2 cores: 4 minutes a model and core. The
machine should be quiet while the steps are timed. Exit status: 0 all measured, 1 a contestant failed, 2 refused, 130
stopped by Ctrl-C or SIGTERM, once the models in training are measured or have ended.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from atlas.config import ConfigError, require
from atlas.config.arguments import names, read_settings, run_command
from atlas.config.atomic import write_atomically
from atlas.runs.environment import versions
from experiments.field.contestants import DEFAULT, ITERATIONS, SIZES
from experiments.field.record import Job
from experiments.field.speed import tokens_per_second
from experiments.field.table import Field, document

HERE = Path(__file__).parent
NEAR = 0.05  # of the steps: so near, the run at equal tokens counts as one of equal time
LEAST_STEPS = 20


@dataclass
class Settings:
    size: str = "tiny"
    steps: int = 400
    seeds: int = 3
    samples: int = 24
    jobs: int = 2
    rounds: int = 9
    only: str = ""
    equal_time: bool = True
    folder: str = ""
    runs: str = ""

    def __post_init__(self) -> None:
        require(self.steps >= LEAST_STEPS, "steps", self.steps, f">= {LEAST_STEPS}")
        for key in ("seeds", "samples", "jobs", "rounds"):
            require(getattr(self, key) >= 1, key, getattr(self, key), ">= 1")
        require(self.size in SIZES, "size", self.size, " or ".join(SIZES))
        known = SIZES[self.size]
        require(set(names(self.only)) <= set(known), "only", self.only, f"some of {', '.join(known)}")
        require(not self.only or DEFAULT in names(self.only), "only", self.only, f"{DEFAULT} among others")
        allowed = "used with folder=PLACE: RESULTS.md here is of all contestants"
        require(not self.only or bool(self.folder), "only", self.only, allowed)
        require(not self.folder or Path(self.folder).is_dir(), "folder", self.folder, "a folder that exists")
        self.folder = self.folder or str(HERE if self.size == "tiny" else HERE / self.size)
        self.runs = self.runs or str(Path(self.folder) / "measured")

    @property
    def contestants(self) -> list[str]:
        chosen = set(names(self.only)) or SIZES[self.size].keys() - ITERATIONS.keys()
        return [name for name in SIZES[self.size] if name in chosen]


def speeds_of(settings: Settings) -> dict[str, float]:
    """Measured once for a folder of runs: steps at equal time follow from them. What is new is timed in turn with the
    default, whose speed of then counts."""
    file = Path(settings.runs) / f"speeds-{settings.size}.json"
    try:
        known: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: must be whole, or removed to time the steps again ({error})") from error
    missing = [name for name in settings.contestants if name not in known]
    if missing:
        print("times the training steps in turn", flush=True)
        found = tokens_per_second(list(dict.fromkeys([DEFAULT, *missing])), settings.size, settings.rounds)
        scale = known.get(DEFAULT, found[DEFAULT]) / found[DEFAULT]
        known |= {name: scale * found[name] for name in missing}
        write_atomically(file, json.dumps(known, indent=1) + "\n")
    return {name: known[name] for name in settings.contestants}


def steps_in_time(settings: Settings, speeds: dict[str, float], name: str) -> int:
    steps = round(settings.steps * speeds[name] / speeds[DEFAULT])
    return settings.steps if abs(steps - settings.steps) <= NEAR * settings.steps else max(steps, LEAST_STEPS)


def planned(settings: Settings, speeds: dict[str, float]) -> Iterator[Job]:
    """Seed by seed, so that a table of one seed is whole first; equal tokens before equal time."""
    for timed in (False, True)[: 1 + settings.equal_time]:
        for seed in range(settings.seeds):
            for name in settings.contestants:
                steps = steps_in_time(settings, speeds, name) if timed else settings.steps
                yield Job(name, settings.size, seed, steps, settings.samples)


def work(job: Job, runs: Path) -> bool:
    """Whether the job is measured now. Its process writes errors to the console."""
    if job.file(runs).is_file():
        return True
    print(f"{job.name}, seed {job.seed}, {job.steps} steps", flush=True)
    command = [sys.executable, "-m", "experiments.field.worker", *job, runs]
    return subprocess.run(list(map(str, command)), check=False).returncode == 0


def in_turn(jobs: Sequence[Job], settings: Settings) -> Iterator[bool]:
    """Whether each is measured, as they end. What interrupts it starts no further one."""
    pool = ThreadPoolExecutor(settings.jobs)
    try:
        for one in as_completed([pool.submit(work, job, Path(settings.runs)) for job in jobs]):
            yield one.result()
    finally:
        pool.shutdown(cancel_futures=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    try:
        return run_command(measure, arguments, __doc__ or "")
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def measure(arguments: Sequence[str]) -> int:
    """Train, measure, write. Raises `ConfigError` for arguments and files that cannot be used."""
    settings = read_settings(Settings, arguments)
    runs = Path(settings.runs)
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"runs={runs}: must be a folder that can be made ({error.strerror})") from error
    speeds = speeds_of(settings)
    jobs = list(dict.fromkeys(planned(settings, speeds)))
    in_time = {name: steps_in_time(settings, speeds, name) for name in settings.contestants}
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    timed = in_time if settings.equal_time else {}

    def write() -> None:
        records = [record for job in jobs if (record := job.record(runs))]
        field = Field(records, speeds, settings.steps, timed, packages, settings.size)
        write_atomically(Path(settings.folder) / "RESULTS.md", document(field))

    write()
    finished: list[bool] = []
    for one in in_turn(jobs, settings):
        finished.append(one)
        write()
    print(f"\nwritten to {Path(settings.folder) / 'RESULTS.md'}")
    return int(not all(finished))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
