"""Five more failures that were invented without looking at the watchers' code, and run once on the code as it was.

How many of them the watchers noticed, and what was added: README.md.
"""

from __future__ import annotations

from experiments.silent.bench import TEXT, Bench
from experiments.silent.failure import Facts, Failure, Procedure, trained, with_data, with_optimizer
from experiments.silent.process import reported, told

TRUST = "trust=[experiments.silent]"


def seeds_alike(bench: Bench, broken: bool) -> Facts:
    """Three seeds of a fine-tuning, with a source that takes its seed or has one of its own; then their report."""
    base = bench.run(*TEXT, "train.steps=50", folder="base").folder
    source = f"data._target_=experiments.silent.wrong_data.{'OwnSeed' if broken else 'Sound'}"
    settings = (*TEXT, TRUST, source, f"init_from={base}", "train.steps=60")
    seeds = range(3 * bench.seed, 3 * bench.seed + 3)
    folders = [bench.run(*settings, f"seed={seed}", folder=f"tuned/{seed}").folder for seed in seeds]
    ended, text = reported(bench, *folders)
    return told(ended, text, ended.printed)


def _failure(name: str, what: str, run_and_twin: tuple[Procedure, str], says: str = "") -> Failure:
    run, twin = run_and_twin
    return Failure(name, "invented", what, run, twin, says)


def _with_carried_data(name: str) -> tuple[Procedure, str]:
    target = "data._target_=experiments.silent.wrong_data."
    return trained(f"{target}{name}", calm=(f"{target}Sound",), shared=(*TEXT, TRUST, "train.carry_memory=true"))


FAILURES = (
    _failure(
        "convolution_looks_ahead",
        "the memory's convolution is padded on both sides: it reads the token that is to be predicted",
        with_optimizer("looking_ahead"),
    ),
    _failure(
        "carried_to_strangers",
        "`train.carry_memory=true` with a source that shuffles: a row goes on with the memory of another text",
        _with_carried_data("Strangers"),
    ),
    _failure("rows_alike", "all rows of a batch are the same: their generators have one seed", with_data("RowsAlike")),
    _failure(
        "epsilon_dwarfs_gradients",
        "AdamW with `eps=0.1`: the second moment of small gradients does not count",
        with_optimizer("large_epsilon"),
    ),
    Failure(
        "seeds_alike",
        "invented",
        "three seeds of a fine-tuning with a source that ignores its seed: one result, and a spread of 0",
        seeds_alike,
        says=r"\bidentical\b|\balike\b|\b(the|one and the) same (run|numbers|result|results|losses|loss|weights)\b",
    ),
)
