"""Watchers of what the rows are made of: symbols, padding, noise."""

from __future__ import annotations

from collections.abc import Sequence

from atlas.training.watchers.finding import Finding
from atlas.training.watchers.observations import BatchFacts
from atlas.training.watchers.record import LOOKED_AT, ROWS, TAILS, Record

COMMONEST = 0.95  # share of one symbol: indented source code has 0.5, a table of zeros with noise 0.9
BASELINE = 0.05  # nats of a bigram: real text, source code and logs have 1 and more
PADDED = 0.5  # of the targets of text rows: more than half of the work is for nothing
COUNTED_TAILS = 0.5  # of the text rows; indented source code has 0.1
NEVER = 20  # targets
AS_NOISE = 0.95  # of the loss of a uniform guess: base64 is at 0.75
NOISE = 0.05  # of the rows


def one_symbol(record: Record) -> Finding | None:
    """The text has nothing to learn: one symbol, or each symbol follows from the one before."""
    batches = full_batches(record)
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
    batches = full_batches(record)
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


def full_batches(record: Record) -> list[BatchFacts]:
    """The batches that were looked into; none before there are enough."""
    return list(record.batches) if len(record.batches) == LOOKED_AT else []


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
