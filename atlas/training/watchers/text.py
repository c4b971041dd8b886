"""Watchers of the text: whether all of it is read, and training and validation read their own parts."""

from __future__ import annotations

from atlas.training.watchers.finding import Finding
from atlas.training.watchers.own_files import FOUND_FROM
from atlas.training.watchers.record import PASS, PLACES, ROWS, Record
from atlas.training.watchers.symbols import one_symbol

PART = 0.4  # of the text, in which PLACES rows lie; by chance once in 10^10
NEW = 0.5  # share of rows
KNOWN_SHARE, KNOWN = 0.5, 2  # of validation rows, and rows; two parts without copies have none
SEEN = 0.2  # two parts of source code without copies have 0.04 in common, in pieces of 32 tokens 0.1


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
        "a text that does not say the same again and again; in a data source of your own, rows of corpus.train in"
        " batch() and of corpus.validation in validation()",
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
