"""Watchers of what the model computes, whatever it has learned."""

from __future__ import annotations

from atlas.training.watchers.finding import Finding
from atlas.training.watchers.record import Record

LEAK = 0.01  # of the root mean square of the outputs; a sound model computes the same bits
GAP, GAP_FROM = 0.25, 50  # nats, steps: a working batch norm has 0.16 at step 10, and 0.09 at most from 50 on
RESTORED = 0.02  # nats; on a trained model bf16 makes a difference of 0.0005, other kernels one of 1e-7
PARTS = 0.05  # of the root mean square of the outputs; a sound model rounds in another order, in bf16 by 2 %
SLOPE = 0.1  # share by which a slope may differ from the gradient; central differences are right to 4 %


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
        f"the same text gives outputs that differ by {found.noise:.0%} when it is read again in evaluation mode",
        "validation and generation do not give what the model has learned",
        "to look at code of yours that draws numbers, or keeps something from call to call",
    )


def modes(record: Record) -> Finding | None:
    """Dropout makes the loss lower in evaluation, running statistics that follow training make it hardly higher."""
    if record.mode_gap is None or record.mode_gap[0] < GAP_FROM or record.mode_gap[1] <= GAP:
        return None
    step, gap = record.mode_gap
    return Finding(
        "modes",
        step,
        gap,
        f"the loss of the watched rows is {gap:.2f} nats higher in evaluation than in training mode",
        "what is validated, saved and generated with is not the model that is trained",
        "to look at running statistics that stand still, and at code of yours that asks for the mode",
    )


def restored(record: Record) -> Finding | None:
    found = record.restored
    if found is None:
        return None
    if not found.same_rows:
        return Finding(
            "restored",
            record.step,
            None,
            "the validation rows are not those of the start before",
            "losses and perplexities of the two starts cannot be compared",
            "a data source whose validation(index) depends on the index alone",
        )
    if found.loss_before is None or abs(found.loss - found.loss_before) <= RESTORED:
        return None
    return Finding(
        "restored",
        record.step,
        found.loss - found.loss_before,
        f"with the restored weights the watched rows have a loss of {found.loss:.3f} nats, and had one of "
        f"{found.loss_before:.3f} when they were saved",
        "what goes on is not the model that was saved",
        "to look at what has changed since: code of yours, packages, kernels",
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
