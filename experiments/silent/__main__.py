"""The catalogue of silent failures: each is caused, three seeds, beside calm runs without it.

python -m experiments.silent [KEY=VALUE ...]

  only=NAME,KIND     these failures, or all of a kind (learning, memory, data, machine, process, contract, invented)
  seeds=3            seeds 0, 1, ...
  folder=PATH        the runs are kept there; otherwise in a temporary folder
  older=true         runs of earlier revisions in silent.json stay, but for those of `only`; each names its revision

A run takes some seconds, all of them half an hour on one quiet core. After each it writes silent.json and RESULTS.md
beside this file: a command that was stopped, or that asks for others, goes on from there with the same revision.
`python -m experiments.silent.calm` makes the calm runs.
Exit status: 0 every failure that was asked for was noticed or told, 1 not, 2 refused.
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
from atlas.kernels.library import library
from experiments.silent.bench import Bench
from experiments.silent.catalogue import CATALOGUE
from experiments.silent.failure import Facts, Failure
from experiments.silent.table import Caused, read_results, revision, text_of, write_results


@dataclass(frozen=True)
class Options:
    only: str = ""
    seeds: int = 3
    folder: str = ""
    older: bool = False

    def __post_init__(self) -> None:
        require(self.seeds > 0, "seeds", self.seeds, ">= 1")


def chosen(only: str) -> list[Failure]:
    wanted = names(only)
    known = {failure.name for failure in CATALOGUE} | {failure.kind for failure in CATALOGUE}
    for name in wanted:
        if name not in known:
            raise ConfigError(f"only={name}: must be a failure or a kind: {', '.join(sorted(known))}")
    return [failure for failure in CATALOGUE if not wanted or {failure.name, failure.kind} & set(wanted)]


def cause(failures: Sequence[Failure], seeds: int, place: Path, found: list[Caused], *, keep: bool) -> None:
    """Add to `found` what it lacks, and write the results after each; twins that are the same run are made once."""
    twins = {(one.failure.twin, one.seed): one.calm for one in found if one.failure.twin}
    done = {(one.failure.name, one.seed) for one in found}
    for failure in failures:
        for seed in range(seeds):
            if (failure.name, seed) in done:
                continue
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
            one = Caused(failure, seed, runs[0], runs[1], round(time.monotonic() - began, 1), revision())
            print(f"{failure.name} seed {seed}: {one.outcome[0]} ({one.seconds} s) {one.outcome[2][:150]}", flush=True)
            found.append(one)
            write_results(found, CATALOGUE)


def main(arguments: list[str]) -> int:
    options = read_settings(Options, arguments)
    failures = chosen(options.only)
    again = {failure.name for failure in failures} if options.only else set()
    found = [
        one
        for one in read_results(CATALOGUE, older=options.older)
        if one.failure.name not in again or one.git == revision() or one.seed >= options.seeds
    ]
    torch.set_num_threads(1)
    library()  # loaded once, and not by every run
    with tempfile.TemporaryDirectory() as scratch:
        cause(failures, options.seeds, Path(options.folder or scratch).resolve(), found, keep=bool(options.folder))
    wanted = {failure.name for failure in failures}
    asked = [one for one in found if one.failure.name in wanted]
    print(f"\n{text_of(asked)}")
    return int(any(not one.noticed for one in asked))


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
