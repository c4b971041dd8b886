"""The records as two tables: accuracy beside the size of the state."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from experiments.mqar.contestants import MODELS
from experiments.mqar.tasks import MIXED, TASKS
from experiments.mqar.worker import Record

ABOUT = """\
Written by `python -m experiments.mqar`; do not edit. Accuracy: share of the values that are predicted at their keys, on
the test set, the best of all epochs and learning rates. Reachable: share of them that window and convolution of all
layers can bring to their questions, which bounds the accuracy. Epochs: until the first one of that accuracy. State:
numbers that the model keeps of a sequence, all layers. Training stops at 99 %."""
HEAD = "| length, pairs | width | model | parameters | state | reachable | accuracy | epochs | learning rate |"
ABOUT_MIXED = """\
## One model for all lengths

A column for each test (length, pairs), at the epoch where the mean of all but {beside} is the best: that one is ours,
for a comparison with the table above. State: of 512 tokens, in brackets of 1,024 where that is another."""


def document(records: Sequence[Record], epochs: int, count: int, tests: int) -> str:
    """RESULTS.md; the second table stands where it has a row."""
    names, tasks = list(MODELS), list(TASKS)
    ordered = sorted(records, key=lambda one: (tasks.index(one.task), one.width, names.index(one.name)))
    groups = groupby(ordered, key=lambda one: (one.task, one.width, one.name))
    best = [max(group, key=lambda one: (one.best, -len(one.accuracy))) for _, group in groups]
    single, mixed = ([one for one in records if (one.task == MIXED) is wanted] for wanted in (False, True))
    rows = [_row(one) for one in best if one.task != MIXED]
    parts = ["# MQAR: results", ABOUT]
    parts += [_about(single, f"At most {epochs} epochs of {count:,} sequences, tested on {tests:,}")] if single else []
    parts += [_table(HEAD, rows)]
    if mixed:
        task = TASKS[MIXED]
        trained = sum(one.count(count) for one in task.training)
        amounts = f"At most {task.epochs(epochs)} epochs of {trained:,} sequences of 64 to {task.tokens} tokens"
        asked = [*task.tests, *task.beside]
        head = ["width", "model", "parameters", "state", *map(str, asked), "mean", "epochs", "learning rate"]
        parts += [ABOUT_MIXED.format(beside=" and ".join(map(str, task.beside)))]
        parts += [_about(mixed, f"{amounts}, tested on {asked[0].count(tests):,} of each kind")]
        parts += [_table(f"| {' | '.join(head)} |", [_mixed_row(one) for one in best if one.task == MIXED])]
    return "\n\n".join(parts) + "\n"


def _about(records: Sequence[Record], amounts: str) -> str:
    rates = ", ".join(f"{rate:.2g}" for rate in sorted({one.rate for one in records}))
    machine = " or ".join(sorted({one.device for one in records}))
    revisions = " or ".join(sorted({one.git or "unknown" for one in records}))
    return f"{amounts}; one seed. Learning rates: {rates}. {machine}. Revision {revisions}."


def _table(head: str, rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def _row(best: Record) -> list[str]:
    asked = str(TASKS[best.task].tests[0])
    cells = [asked, str(best.width), best.name, f"{best.parameters:,}", f"{best.state:,}", f"{best.reachable:.1%}"]
    return [*cells, f"{best.best:.1%}", _epochs(best), f"{best.rate:.2g}"]


def _mixed_row(best: Record) -> list[str]:
    state = f"{best.state:,}" + (f" ({best.longest_state:,})" if best.longest_state != best.state else "")
    of_tests = best.by_test[best.accuracy.index(best.best)]
    accuracy = [f"{share:.1%}" for share in (*of_tests, best.best)]
    return [str(best.width), best.name, f"{best.parameters:,}", state, *accuracy, _epochs(best), f"{best.rate:.2g}"]


def _epochs(best: Record) -> str:
    ended = "" if best.finite else ", not finite"
    return f"{best.accuracy.index(best.best) + 1}{ended if best.ended else f', stopped after {len(best.accuracy)}'}"
