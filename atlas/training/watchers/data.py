"""Watchers of what the model reads."""

from __future__ import annotations

from collections.abc import Sequence

from atlas.training.watchers.finding import Finding
from atlas.training.watchers.observations import BatchFacts
from atlas.training.watchers.own_files import FOUND_FROM
from atlas.training.watchers.record import (
    CONTINUED,
    DIGESTS,
    FIRST_BATCHES,
    LOOKED_AT,
    PASS,
    PLACES,
    ROWS,
    TAILS,
    Record,
)

BEFORE = 2  # times that a batch came before
COMMONEST = 0.95  # share of one symbol: indented source code has 0.5, a table of zeros with noise 0.9
BASELINE = 0.05  # nats of a bigram: real text, source code and logs have 1 and more
PADDED = 0.5  # of the targets of text rows: more than half of the work is for nothing
COUNTED_TAILS = 0.5  # of the text rows; indented source code has 0.1
WRONG = 0.5  # share of targets that are not the next token; a contract of every source, so any value would do
ALIKE = 0.5  # share of different rows in a batch: random places of a text coincide where it is not longer than a row
WENT_ON = 0.5  # share of rows; a token of another text is the expected one in one case of ten
PART = 0.4  # of the text, in which PLACES rows lie; by chance once in 10^10
NEVER = 20  # targets
NEW = 0.5  # share of rows
WHOLE = 0.8  # of the text: a pass in order leaves out less at its end
KNOWN_SHARE, KNOWN = 0.5, 2  # of validation rows, and rows; two parts without copies have none
AS_NOISE = 0.95  # of the loss of a uniform guess: base64 is at 0.75
NOISE = 0.05  # of the rows
SEEN = 0.2  # two parts of source code without copies have 0.04 in common, in pieces of 32 tokens 0.1
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
    batches = _full(record)
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


def text_part(record: Record) -> Finding | None:
    """Rows that go on with a row before lie where it lies, rightly."""
    if record.facts.carries or len(record.places) < PLACES:
        return None
    first, last = min(record.places), max(record.places)
    if last - first >= PART:
        return None
    return Finding(
        "text_part",
        record.step,
        last - first,
        f"the {len(record.places)} rows looked at lie between {first:.0%} and {last:.0%} of the training text",
        "a text that is read in order changes its kind under way, and of a part of it the rest is never read",
        "a data source that takes its rows from anywhere in the text",
    )


def rows_again(record: Record) -> Finding | None:
    """Rows that were read before, where a quarter of the text is not yet."""
    if len(record.new_rows) < ROWS or one_symbol(record) is not None:
        return None
    share = sum(record.new_rows) / ROWS
    if share >= NEW:
        return None
    return Finding(
        "rows_again",
        record.step,
        share,
        f"only {share:.0%} of the last {ROWS} rows are new, and less than {PASS:.0%} of the text was read so far",
        "the model learns a small part of its text again and again",
        "a data source that draws from all of its text: a limit that was left in, a cache, or a seed that comes again",
    )


def mixed_parts(record: Record) -> Finding | None:
    """Rows that are taken from the other part of the text. Where the parts have much in common the start tells."""
    known, rows = record.validation_known
    if rows and known >= max(KNOWN_SHARE * rows, KNOWN):
        value = known
        seen = f"{known} of {rows} validation rows stand in the training text"
    elif record.training_held_out >= KNOWN:
        value = record.training_held_out
        seen = f"{value} of the first training rows stand in the validation text, and not in that of training"
    else:
        return None
    return Finding(
        "mixed_parts",
        record.step,
        value,
        seen,
        "the model is validated on what it is trained on, so the validation loss says nothing about new text",
        "a data source whose batch() reads corpus.train, and whose validation() reads corpus.validation",
    )


def validation_seen(record: Record) -> Finding | None:
    """Of a source without a `corpus`. Where there is one, its two parts are compared before the start."""
    if record.validation_seen < SEEN:
        return None
    return Finding(
        "validation_seen",
        record.step,
        record.validation_seen,
        f"{record.validation_seen:.0%} of the text of the validation rows stood in training rows so far",
        "the model is validated on what it is trained on, so the validation loss says little about new text",
        "a data source whose batch() and validation() read two parts of the text that have nothing in common",
    )


def other_text(record: Record) -> Finding | None:
    """Not one piece of the text stands in the files that the settings name."""
    if record.in_files is None or record.in_files[0] > 0 or record.in_files[1] < FOUND_FROM:
        return None
    return Finding(
        "other_text",
        record.step,
        record.in_files[1],
        f"none of {record.in_files[1]} pieces of the text stands in the files that data.paths names, by their letters",
        "the run reads another text than its settings say: an older one, or that of other files",
        "to remove what a data source of yours has kept of an earlier text",
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


def one_symbol(record: Record) -> Finding | None:
    """The text has nothing to learn: one symbol, or each symbol follows from the one before."""
    batches = _full(record)
    share = min((batch.commonest for batch in batches), default=0.0)
    baseline = record.facts.baseline
    if share > COMMONEST:
        seen = f"{share:.1%} of the targets are the same symbol"
    elif baseline is not None and baseline < BASELINE:
        share, seen = baseline, f"the {record.facts.baseline_name} is {baseline:.3g} nats on the text"
    else:
        return None
    return Finding(
        "one_symbol",
        record.step,
        share,
        seen,
        "there is nothing to learn from it, and a low loss says nothing",
        "to look into the files that data.paths names",
    )


def padding(record: Record) -> Finding | None:
    batches = _full(record)
    share, tails = _mean([batch.padding for batch in batches]), _mean(record.tails)
    if len(record.tails) == TAILS and tails > COUNTED_TAILS and one_symbol(record) is None:
        return Finding(
            "padding",
            record.step,
            tails,
            f"{tails:.0%} of the text rows end with one repeated symbol that counts in the loss",
            "padding is easy to predict: the loss is lower than that of the text",
            "weights of 0 for the targets of padding, in training and in validation",
        )
    if share <= PADDED:
        return None
    return Finding(
        "padding",
        record.step,
        share,
        f"{share:.0%} of the targets of text rows count nothing",
        "so much of the time goes into padding, or into tokens that a mask leaves out",
        "a look at the weights that a data source of yours gives; for padding a shorter train.sequence or "
        "data.documents=packed",
    )


def noise_rows(record: Record) -> Finding | None:
    """Text rows of which the model knows no more than a uniform guess, when it knows the validation rows."""
    uniform, rows = record.facts.uniform, record.row_losses
    hard = sum(loss >= AS_NOISE * uniform for loss in rows)
    if len(rows) < ROWS or hard < NOISE * len(rows):
        return None
    return Finding(
        "noise_rows",
        record.step,
        hard / len(rows),
        f"{hard} of the last {len(rows)} text rows have a loss near that of a uniform guess ({uniform:.3f} nats) or "
        f"above it; the validation loss is {record.validations[-1][1]:.3f}",
        "nothing can be learned from rows that are noise, and validation has none of them",
        "to look at the rows that a data source of yours gives, or atlas.prepare --verify DIR for a token store",
    )


def masked_symbol(record: Record) -> Finding | None:
    """A symbol that stands in the text and is never to be predicted: a mask of padding that takes more."""
    never = {symbol: count for symbol, count in record.masked.items() if symbol not in record.counted}
    symbol = max(never, key=never.__getitem__, default=None)
    if symbol is None or never[symbol] < NEVER:
        return None
    return Finding(
        "masked_symbol",
        record.step,
        never[symbol],
        f"symbol {symbol} is {never[symbol]} times the target between two that count, and never counts itself",
        "the model never learns to write it, and the loss does not show that",
        "a mask that asks for the place of the padding, not for the symbol",
    )


def labels(record: Record) -> Finding | None:
    """Targets that are not the tokens after the inputs."""
    batches = _full(record)
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


def _full(record: Record) -> list[BatchFacts]:
    return list(record.batches) if len(record.batches) == LOOKED_AT else []


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
