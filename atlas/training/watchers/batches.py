"""Watchers of the batches: what comes again, and whether targets and rows are what they should be."""

from __future__ import annotations

from atlas.training.watchers.finding import Finding
from atlas.training.watchers.record import CONTINUED, DIGESTS, FIRST_BATCHES, LOOKED_AT, Record
from atlas.training.watchers.symbols import full_batches, one_symbol

BEFORE = 2  # times that a batch came before
WHOLE = 0.8  # of the text: a pass in order leaves out less at its end
ALIKE = 0.5  # share of different rows in a batch: random places of a text coincide where it is not longer than a row
WENT_ON = 0.5  # share of rows; a token of another text is the expected one in one case of ten
WRONG = 0.5  # share of targets that are not the next token; a contract of every source, so any value would do
COPIED = 0.9  # share of targets that are the input itself; a run of blanks gives 0.3


def repeated_batch(record: Record) -> Finding | None:
    """The newest batches came before, again and again. A text that is read in order from end to end may do so."""
    came, facts = record.came, record.facts
    if len(came) < DIGESTS or min(times for times, _ in came) < BEFORE:
        return None
    period = max(steps for _, steps in came)
    if facts.text and period * facts.tokens >= WHOLE * facts.text:
        return None
    return Finding(
        "repeated_batch",
        record.step,
        period,
        f"each of the last {DIGESTS} batches came at least {BEFORE} times before; the data repeat every "
        f"{f'{period} steps' if period > 1 else 'step'}",
        "the model learns them by heart",
        "a longer text, or a source whose batch(step) depends on the step",
    )


def data_again(record: Record) -> Finding | None:
    """The first batches of a resumed run are those of its first steps."""
    first, here, resumed_at = record.first_digests, record.digests_here, record.facts.first_step
    if resumed_at < FIRST_BATCHES or len(here) < FIRST_BATCHES or first != here:
        return None
    return Finding(
        "data_again",
        record.step,
        None,
        f"the first {FIRST_BATCHES} batches after step {resumed_at} are those of steps 1 to {FIRST_BATCHES}",
        "the run reads again what it has read, and never the end of its text",
        "a data source whose batch(step) depends on the step alone",
    )


def same_rows(record: Record) -> Finding | None:
    """Within a batch, or of two processes. Rows of a text that is one symbol are the same rightly."""
    batches = full_batches(record)
    different = max((batch.different_rows for batch in batches), default=1.0)
    if different <= ALIKE and one_symbol(record) is None:
        return Finding(
            "same_rows",
            record.step,
            different,
            f"only {different:.0%} of the rows of a batch are different ones",
            "a batch is worth fewer rows than train.batch_size",
            "a data source whose random numbers depend on the row, or a longer text",
        )
    if record.same_rows < LOOKED_AT:
        return None
    return Finding(
        "same_rows",
        record.step,
        record.same_rows,
        "two processes train on the same rows",
        "the batch is smaller than train.batch_size, and the other rows are never read",
        "a data source that makes the rows it is asked for: batch(step, rows)",
    )


def carried_rows(record: Record) -> Finding | None:
    """With `carry_memory`: rows that do not begin where the same row has ended one step before."""
    share = max(record.continued, default=1.0)
    if len(record.continued) < CONTINUED or share >= WENT_ON:
        return None
    return Finding(
        "carried_rows",
        record.step,
        share,
        f"at most {share:.0%} of the rows that are said to go on begin where the same row has ended a step before",
        "the memory of one text is carried into another",
        "a data source that reads one segment after the other, or fresh=true for rows that begin anew",
    )


def labels(record: Record) -> Finding | None:
    """Targets that are not the tokens after the inputs."""
    batches = full_batches(record)
    right = max((batch.next_tokens for batch in batches), default=1.0)
    copies = min((batch.copies for batch in batches), default=0.0)
    if right >= 1 - WRONG or not batches:
        return None
    kind = "the input itself, which the model sees" if copies > COPIED else "other tokens"
    return Finding(
        "labels",
        record.step,
        right,
        f"only {right:.1%} of the targets are the next token; they are {kind}",
        "the model learns another task than the one it is used for",
        "targets[:, t] = tokens[:, t + 1] in the data source",
    )
