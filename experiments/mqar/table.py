"""The records as a table: accuracy beside the size of the state."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from experiments.mqar.contestants import LENGTHS, MODELS
from experiments.mqar.worker import Record

ABOUT = """\
Written by `python -m experiments.mqar`; do not edit. Accuracy: share of the values that are predicted at their keys, on
the test set, the best of all epochs and learning rates. Reachable: share of them that window and convolution of all
layers can bring to their questions, which bounds the accuracy. Epochs: until the first one of that accuracy. State:
numbers that the model keeps of a sequence, all layers. Training stops at 99 %."""
HEAD = "| length, pairs | width | model | parameters | state | reachable | accuracy | epochs | learning rate |"


def document(records: Sequence[Record], epochs: int, count: int, tests: int) -> str:
    """RESULTS.md."""
    names = list(MODELS)
    ordered = sorted(records, key=lambda one: (one.length, one.width, names.index(one.name)))
    lines = [HEAD, "|---" * 9 + "|"]
    for (length, width, name), group in groupby(ordered, key=lambda one: (one.length, one.width, one.name)):
        best = max(group, key=lambda one: (one.best, -len(one.accuracy)))
        ended = "" if best.finite else ", not finite"
        if not best.ended:
            ended = f", stopped after {len(best.accuracy)}"
        cells = [f"{length}, {LENGTHS[length]}", str(width), name, f"{best.parameters:,}", f"{best.state:,}"]
        cells += [f"{best.reachable:.1%}", f"{best.best:.1%}"]
        cells += [f"{best.accuracy.index(best.best) + 1}{ended}", f"{best.rate:.2g}"]
        lines.append(f"| {' | '.join(cells)} |")
    trained = f"At most {epochs} epochs of {count:,} sequences, tested on {tests:,}; one seed."
    rates = ", ".join(f"{rate:.2g}" for rate in sorted({one.rate for one in records}))
    machine = " or ".join(sorted({one.device for one in records}))
    revisions = " or ".join(sorted({one.git or "unknown" for one in records}))
    about = f"{trained} Learning rates: {rates}. {machine}. Revision {revisions}."
    return "\n\n".join(["# MQAR: results", ABOUT, about, "\n".join(lines)]) + "\n"
