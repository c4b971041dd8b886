"""Watchers of what the model computes, whatever it has learned."""

from __future__ import annotations

from atlas.training.watchers.finding import Finding
from atlas.training.watchers.record import Record

LEAK = 0.01  # of the root mean square of the outputs; a sound model computes the same bits
PARTS = 0.05  # the same; a sound model rounds in another order, in bf16 by 1 %
SLOPE = 0.1  # share by which a slope may differ from the gradient; central differences are right to 2 %


def leaks(record: Record) -> Finding | None:
    """Of rows that see each other, what they see of the future says nothing more; of noise neither says anything."""
    found = record.model_facts
    if found is None or found.noise > LEAK or max(found.rows, found.future) <= LEAK:
        return None
    if found.rows > LEAK:
        seen = f"other rows of the batch change the outputs of a row by {found.rows:.0%}"
        why, hint = (
            "what a row means depends on its neighbours, and generation reads it alone",
            "its order of batch and heads",
        )
    else:
        seen = f"tokens change the outputs before them by {found.future:.0%}"
        why, hint = "it sees what it is to predict, which generation does not have", "its masks and convolutions"
    value = max(found.rows, found.future)
    return Finding("leaks", record.step, value, seen, why, f"to look at code of your own in the model: {hint}")


def noise(record: Record) -> Finding | None:
    found = record.model_facts
    if found is None or found.noise <= LEAK:
        return None
    return Finding(
        "noise",
        record.step,
        found.noise,
        f"the same text gives outputs that differ by {found.noise:.0%}, in evaluation or between it and training",
        "what is validated and generated is not the model that is trained",
        "to look at code of yours that draws numbers, keeps something from call to call, or asks for the mode",
    )


def parts(record: Record) -> Finding | None:
    found = record.model_facts
    if found is None or found.parts <= PARTS:
        return None
    return Finding(
        "parts",
        record.step,
        found.parts,
        f"a text that is read in two parts gives outputs that differ by {found.parts:.0%} from those of one reading",
        "generation and carried memory go on from a state that is not the one of training",
        "to look at the state that a module of yours hands on, and at its positions",
    )


def slopes(record: Record) -> Finding | None:
    found = record.model_facts
    wrong = {part: slope for part, slope in found.slopes.items() if abs(slope - 1) > SLOPE} if found else {}
    if not wrong:
        return None
    part = max(wrong, key=lambda name: abs(wrong[name] - 1))
    return Finding(
        "slopes",
        record.step,
        wrong[part],
        f"the loss changes along the gradient of {part} {wrong[part]:.2f} times as much as the gradient says",
        "the gradient is not that of the loss, so steps go where the loss does not fall",
        "to look at detach(), no_grad() and backward passes of your own in this part of the model",
        wrong,
    )
