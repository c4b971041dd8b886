"""Watchers of the validation loss and of the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite

from atlas.training.watchers.finding import Finding
from atlas.training.watchers.learning import RISE, RISE_SHARE
from atlas.training.watchers.record import Record

RISEN = 0.02  # of a validation loss: two of a run that has learned what it can differ by less
JUMPED = 2.0  # times the largest rise between two validations before


def validation_loss(record: Record) -> Finding | None:
    if not record.validations or isfinite(record.validations[-1][1]):
        return None
    step, loss = record.validations[-1]
    good = [at for at, value in record.validations if isfinite(value)]
    return Finding(
        "validation_loss",
        step,
        None,
        f"the validation loss at step {step} is {loss}",
        "the model, or the validation text, gives no number although the training loss does",
        "watch.validation_loss=rollback, or to look at the validation batches",
        since=max(good, default=0),
    )


def past_best(record: Record) -> Finding | None:
    """At the end, by validation losses of text: those of recall jump. What `last_steps` tells is not told again."""
    if not (record.ended and record.of_text and record.validations) or record.open_suspicion:
        return None
    step, loss = record.validations[-1]
    best, lowest = min(record.validations, key=lambda one: one[1])
    if not loss >= lowest + max(RISE, RISE_SHARE * lowest):
        return None
    return Finding(
        "past_best",
        step,
        loss - lowest,
        f"the validation loss ends at {loss:.3f} nats; at step {best} it was {lowest:.3f}",
        "the last weights are not the best ones that the run had",
        f"to stop at step {best}, or train.patience; if weights of your own are put back at the end, to copy them",
    )


def has_risen(losses: Sequence[float]) -> bool:
    """Whether the newest validation loss is above the lowest one before it, and has risen as never before; True where
    there is none before it, and for one that is no number."""
    *before, newest = losses
    if not before:
        return True
    usual = max((later - earlier for earlier, later in pairwise(before)), default=0.0)  # losses of recall jump
    near_the_lowest = newest <= min(before) * (1 + RISEN)
    return not (near_the_lowest or newest - before[-1] <= JUMPED * usual)


def last_steps(record: Record) -> Finding | None:
    if not (record.ended and record.open_suspicion):
        return None
    return Finding(
        "last_steps",
        record.step,
        None,
        f"at the last step {record.open_suspicion}",
        "the run ended before a rollback could be decided, so the last checkpoint is marked unhealthy",
        "the newest healthy checkpoint (atlas.load takes it), or resume=RUN train.steps=N",
    )
