"""Is recall learnt in token space? The default recipe on a store of 8k ids, for 2,000 steps and several seeds.

python -m experiments.corpus.recall [store=outputs/corpus/store] [folder=outputs/corpus/recall] [seeds=0,1,2]
                                    [steps=2000]

The store is that of `python -m experiments.corpus.recipe`. Judged is keyed recall: several needles beyond the reach of
attention, the right one asked for; the control is the same model without its memory. A run that was killed goes on
where it stopped. Writes a table to the console. Exit status 1: a run does not pass, or its recall is not above 80 %.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas.config import require
from atlas.config.arguments import names, read_settings, run_command
from experiments.corpus.recipe import train

WANTED = 0.8
SETTINGS = [
    "data=mixed_tokens", "logger=none", "device=cpu", "device.threads=1", "calibration=off", "checkpoint.every=100",
    "niah.levels=[recall]", "niah.samples=32",
]  # fmt: skip


@dataclass
class RecallSettings:
    store: str = "outputs/corpus/store"
    folder: str = "outputs/corpus/recall"
    seeds: str = "0,1,2"
    steps: int = 2000

    def __post_init__(self) -> None:
        seeds = names(self.seeds)
        require(bool(seeds) and all(seed.isdigit() for seed in seeds), "seeds", self.seeds, "numbers, such as 0,1,2")
        require(self.steps >= 1, "steps", self.steps, ">= 1")


def main(arguments: Sequence[str]) -> int:
    settings = read_settings(RecallSettings, arguments)
    store, folder = Path(settings.store).resolve(), Path(settings.folder).resolve()
    reached = True
    print("| seed | keyed recall | without memory | chance | verdict |\n|" + " --- |" * 5, flush=True)
    for seed in names(settings.seeds):
        given = [*SETTINGS, f"data.path={store}", f"train.steps={settings.steps}", f"seed={seed}"]
        level = train(folder / f"seed{seed}", given)["niah"]["recall"]
        found, control, chance = (level[key] for key in ("accuracy", "control", "chance"))
        reached = reached and level["passed"] and found > WANTED
        print(f"| {seed} | {found:.1%} | {control:.1%} | {chance:.1%} | {level['verdict']} |", flush=True)
    return int(not reached)


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
