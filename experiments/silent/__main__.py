"""The catalogue of silent failures: each is caused, three seeds, beside calm runs without it.

python -m experiments.silent [KEY=VALUE ...]

  only=NAME,KIND     these failures, or all of a kind (learning, memory, data, machine, process)
  seeds=3            seeds 0, 1, ...
  folder=PATH        the runs are kept there; otherwise in a temporary folder

A run takes some seconds, all of them half an hour on one core. With all failures and three seeds it writes
silent.json and RESULTS.md beside this file, with fewer it prints the table. `python -m experiments.silent.calm` makes
the calm runs.
Exit status: 0 every failure was noticed or told, 1 not, 2 refused.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from atlas.config import ConfigError, require
from atlas.config.arguments import names, read_settings, run_command
from experiments.silent import data, learning, machine, memory, process
from experiments.silent.bench import Bench
from experiments.silent.failure import Facts, Failure
from experiments.silent.table import Caused, text_of, write_results

CATALOGUE = (*learning.FAILURES, *memory.FAILURES, *data.FAILURES, *machine.FAILURES, *process.FAILURES)
FULL_SEEDS = 3


@dataclass(frozen=True)
class Options:
    only: str = ""
    seeds: int = FULL_SEEDS
    folder: str = ""

    def __post_init__(self) -> None:
        require(self.seeds > 0, "seeds", self.seeds, ">= 1")


def chosen(only: str) -> list[Failure]:
    wanted = names(only)
    known = {failure.name for failure in CATALOGUE} | {failure.kind for failure in CATALOGUE}
    for name in wanted:
        if name not in known:
            raise ConfigError(f"only={name}: must be a failure or a kind: {', '.join(sorted(known))}")
    return [failure for failure in CATALOGUE if not wanted or {failure.name, failure.kind} & set(wanted)]


def cause(failures: Sequence[Failure], seeds: int, place: Path, *, keep: bool, record: bool) -> list[Caused]:
    """Run them all; twins that are the same run are made once. `record`: the results so far are written."""
    twins: dict[tuple[str, int], Facts] = {}
    found: list[Caused] = []
    for failure in failures:
        for seed in range(seeds):
            began = time.monotonic()
            key = failure.twin or failure.name, seed
            runs: list[Facts] = []
            for broken in (True, False):
                if not broken and key in twins:
                    runs.append(twins[key])
                    continue
                folder = place / failure.name / f"seed{seed}" / ("broken" if broken else "calm")
                runs.append(failure.run(Bench(folder, seed), broken))
                if not keep:
                    shutil.rmtree(folder, ignore_errors=True)
            twins[key] = runs[1]
            one = Caused(failure, seed, runs[0], runs[1], round(time.monotonic() - began, 1))
            print(f"{failure.name} seed {seed}: {one.outcome[0]} ({one.seconds} s) {one.outcome[2][:150]}", flush=True)
            found.append(one)
        if record:
            write_results(found, len(CATALOGUE))
    return found


def main(arguments: list[str]) -> int:
    options = read_settings(Options, arguments)
    failures = chosen(options.only)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        place, whole = Path(options.folder or scratch), len(failures) == len(CATALOGUE) and options.seeds == FULL_SEEDS
        found = cause(failures, options.seeds, place.resolve(), keep=bool(options.folder), record=whole)
    print(f"\n{text_of(found)}")
    return int(any(not one.noticed for one in found))


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
