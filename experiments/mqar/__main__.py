"""MQAR, trained as zoology does for two figures: accuracy beside the size of the state, with and without a memory.

python -m experiments.mqar [KEY=VALUE ...]

  tasks=64,128,256,512,mixed   tokens, with 4, 8, 16 and 64 pairs; mixed: one model for 64 to 1,024 tokens, trained on
                               up to 256
  widths=64,128                of the models; a head for each full 64 of it
  models=memory,memory of 16,memory of 4,window of 16,window of 64,window of 16 with convolution,full attention,
         full attention with convolution: memories of the hidden widths 64, 16 and 4, beside a window of 16; the
                               convolution is the memory's
  rates=                       highest learning rates; the best one counts. Empty: 1e-4,4.6e-4,2.2e-3,1e-2, for mixed
                               1e-3,3.2e-3,1e-2,3.2e-2
  epochs=64                    at most, half of them for mixed; training stops at an accuracy of 99 %
  examples=100000              training sequences of an epoch; for mixed those of 64 tokens, of others a fifth
  tests=3000                   test sequences; for mixed a third of them of each length and number of pairs
  folder=experiments/mqar      where RESULTS.md goes, a folder that exists
  runs=                        what is measured, a file for each; what is there is not done again, and a training that
                               was stopped goes on after its last whole epoch. Empty: `measured` in the folder

Shortest length first, mixed last. Writes RESULTS.md after every epoch, of all that `runs` has by these amounts of
epochs, examples and tests. Meant for a GPU: on a core an epoch takes minutes. Two commands may share `runs` where they
train other models and have other folders. Exit status: 0 all measured, 2 refused, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import inf
from pathlib import Path
from typing import NamedTuple

from atlas.config import ConfigError, require
from atlas.config.arguments import names, read_settings, run_command
from atlas.config.atomic import write_atomically
from experiments.mqar.contestants import MODELS, heads
from experiments.mqar.table import document
from experiments.mqar.tasks import TASKS
from experiments.mqar.worker import Record, measured

HERE = Path(__file__).parent


@dataclass
class Settings:
    tasks: str = ",".join(TASKS)
    widths: str = "64,128"
    models: str = ",".join(MODELS)
    rates: str = ""
    epochs: int = 64
    examples: int = 100_000
    tests: int = 3000
    folder: str = str(HERE)
    runs: str = ""

    def __post_init__(self) -> None:
        for key, known in (("tasks", list(TASKS)), ("models", list(MODELS))):
            given = names(getattr(self, key))
            right = bool(given) and set(given) <= set(known)
            require(right, key, getattr(self, key), f"some of {', '.join(known)}")
        widths = _numbers(self.widths)
        whole = bool(widths) and all(one >= 8 and one.is_integer() for one in widths)
        require(whole, "widths", self.widths, "whole numbers >= 8")
        for width in map(int, widths):
            allowed = f"such that the heads, one for each full 64, have an even width (RoPE); those of {width} have not"
            require(width % (2 * heads(width)) == 0, "widths", self.widths, allowed)
        rates = _numbers(self.rates)
        right = not self.rates or (bool(rates) and all(0 < one < inf for one in rates))
        require(right, "rates", self.rates, "empty, or numbers > 0")
        rows = max(TASKS[task].rows for task in names(self.tasks))
        for key, least in (("epochs", 1), ("examples", rows), ("tests", 1)):
            require(getattr(self, key) >= least, key, getattr(self, key), f">= {least}")
        require(bool(self.folder) and Path(self.folder).is_dir(), "folder", self.folder, "a folder that exists")
        self.runs = self.runs or str(Path(self.folder) / "measured")

    @property
    def amounts(self) -> str:
        return f"{self.epochs}x{self.examples}-{self.tests}"

    @property
    def jobs(self) -> Iterator[Job]:
        for task in filter(names(self.tasks).__contains__, TASKS):
            axes = map(int, _numbers(self.widths)), _numbers(self.rates or TASKS[task].rates), names(self.models)
            for width, rate, name in product(*axes):
                yield Job(name, task, width, rate)


class Job(NamedTuple):
    name: str
    task: str
    width: int
    rate: float

    def file(self, settings: Settings) -> Path:
        name = f"{self.name.replace(' ', '_')}-{self.task}-{self.width}-{self.rate:g}"
        return Path(settings.runs) / f"{name}-{settings.amounts}.json"


def _known(settings: Settings) -> dict[Job, Record]:
    """What was measured before, by these amounts. Raises `ConfigError` for a file that no training left."""
    found = {}
    for file in sorted(Path(settings.runs).glob(f"*-{settings.amounts}.json")):
        try:
            record = Record(**json.loads(file.read_text(encoding="utf-8")))
            job = Job(record.name, record.task, record.width, record.rate)
            right = job.file(settings) == file and job.name in MODELS and job.task in TASKS and 0 <= record.best <= 1
        except (OSError, ValueError, TypeError, AttributeError):
            right = False
        if not right:
            raise ConfigError(f"{file}: must be as a training left it; remove it to measure this model again")
        found[job] = record
    return found


def _trained(job: Job, settings: Settings) -> Iterator[Record]:
    """The record after each epoch, once it is written."""
    print(f"{job.name}, task {job.task}, width {job.width}, rate {job.rate:g}: ", end="", flush=True)
    file = job.file(settings)
    checkpoint = file.with_suffix(".pt")
    epochs, count, tests = settings.epochs, settings.examples, settings.tests
    for record in measured(*job, epochs=epochs, count=count, tests=tests, checkpoint=checkpoint):
        write_atomically(file, json.dumps(asdict(record), indent=1) + "\n")
        print(f"{record.accuracy[-1]:.1%} ", end="", flush=True)
        yield record
    print(f"(best {record.best:.1%}, {len(record.accuracy)} epochs)", flush=True)
    checkpoint.unlink(missing_ok=True)


def _write_table(settings: Settings, records: dict[Job, Record]) -> None:
    text = document(list(records.values()), settings.epochs, settings.examples, settings.tests)
    write_atomically(Path(settings.folder) / "RESULTS.md", text)


def _numbers(text: str) -> list[float]:
    """Empty where one is no number."""
    try:
        return [float(one) for one in names(text)]
    except ValueError:
        return []


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(measure, arguments, __doc__ or "")


def measure(arguments: Sequence[str]) -> int:
    """Train, measure, write. Raises `ConfigError` for arguments that cannot be used."""
    settings = read_settings(Settings, arguments)
    try:
        Path(settings.runs).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"runs={settings.runs}: must be a folder that can be made ({error.strerror})") from error
    records = _known(settings)
    if records:
        _write_table(settings, records)
    try:
        for job in settings.jobs:
            if job not in records or not records[job].ended:
                for record in _trained(job, settings):
                    records[job] = record
                    _write_table(settings, records)
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on after the last whole epoch")
        return 130
    print(f"\nwritten to {Path(settings.folder) / 'RESULTS.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
