"""Five more failures that were invented without looking at the watchers' code, and run once on the code as it was.

How many of them the watchers noticed, and what was added: README.md.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import atlas
from experiments.silent.bench import MIXED, STEPS, TEXT, Bench
from experiments.silent.failure import Facts, Failure, Procedure, facts, trained

TRUST = "trust=[experiments.silent]"
PACKAGE = Path(atlas.__file__).parent
# All rows are recall, which needs the memory.
RECALL = ("data=recall", *(setting for setting in MIXED if setting.startswith("data.recall.")))
KINDS = {  # of text, in the order of their folders; 100 kB each
    "c": sorted((PACKAGE / "kernels").glob("*.[ch]*")),
    "markdown": sorted((*PACKAGE.parent.glob("*.md"), *(PACKAGE.parent / "docs").glob("*.md"))),
    "python": sorted((PACKAGE / "models").glob("[!_]*.py")),
}


def of_three_kinds(bench: Bench, source: str) -> Facts:
    """A run on three kinds of text in a folder each, with the source `wrong_data.SOURCE`."""
    for kind, files in KINDS.items():
        (bench.scratch / "corpus" / kind).mkdir(parents=True)
        for file in files:
            shutil.copy(file, bench.scratch / "corpus" / kind)
    target = f"data._target_=experiments.silent.wrong_data.{source}"
    return facts(bench.run("data=text", f'data.paths=["{bench.scratch}/corpus/**/*"]', TRUST, target))


def read_in_order(bench: Bench, broken: bool) -> Facts:
    """Three kinds of text, one after the other, or shuffled."""
    return of_three_kinds(bench, "InOrder" if broken else "Sound")


def _failure(name: str, what: str, run_and_twin: tuple[Procedure, str]) -> Failure:
    run, twin = run_and_twin
    return Failure(name, "invented", what, run, twin)


def _with_padding(name: str) -> tuple[Procedure, str]:
    target = "data._target_=experiments.silent.wrong_data."
    return trained(f"{target}{name}", calm=(f"{target}Documents",), shared=(*TEXT, TRUST))


def _with_optimizer(name: str, group: str, data: Sequence[str] = TEXT) -> tuple[Procedure, str]:
    return trained(f"optim._target_=experiments.silent.wrong_optim.{name}", shared=(f"optim={group}", TRUST, *data))


FAILURES = (
    _failure(
        "schedule_ends_early",
        "the scheduler is stepped for each of four micro-batches: three quarters have the lowest learning rate",
        _with_optimizer("hasty", "adamw"),
    ),
    _failure(
        "rest_left_out",
        "Muon without the AdamW beside it: embedding, norms and initial memories are in no optimiser",
        _with_optimizer("matrices_alone", "muon"),
    ),
    _failure(
        "padding_counts",
        "documents of 16 to 64 tokens in rows of 64, whose padding counts in the loss",
        _with_padding("CountedPadding"),
    ),
    Failure(
        "read_in_order",
        "invented",
        "three kinds of text, read once from the first file to the last: nothing is shuffled",
        read_in_order,
    ),
    _failure(
        "silent_in_evaluation",
        "the memory writes only where gradients are on: validation measures a memory that is never written",
        _with_optimizer("silent_without_gradients", "adamw", (*RECALL, f"train.steps={2 * STEPS}")),
    ),
)
