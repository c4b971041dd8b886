"""Watchers of what the model computes, whatever it has learned."""

from __future__ import annotations

from atlas.training.watchers.finding import Finding
from atlas.training.watchers.record import Record

LEAK = 0.01  # of the root mean square of the outputs; a sound model computes the same bits
GAP, GAP_FROM = 0.25, 50  # nats, steps: a working batch norm has 0.16 at step 10, and 0.09 at most from 50 on
RESTORED = 0.02  # nats; on a trained model bf16 makes a difference of 0.0005, other kernels one of 1e-7
PARTS = 0.05  # of the root mean square of the outputs; a sound model rounds in another order, in bf16 by 2 %
STEP = 0.02  # of an update: a sound optimiser takes the same step to the bit
LOSS = 0.02  # nats, or a share: plain code has the same loss to 1e-5, in bf16 to 1e-3
COSINE = 0.9  # of gradients of one batch: those of its halves have 0.7
NORM = 1.5  # times
ORDER = 1e-4  # of that mean square: positions at random make 0.1
REACH = 1e-6  # of the root mean square of the outputs: what rounding makes of a token that does not count
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


def unsaved(record: Record) -> Finding | None:
    """The same code on the same device makes the same bits of the same state."""
    found = record.unsaved
    if found is None or (found.update <= STEP and found.outputs <= PARTS):
        return None
    if found.outputs > PARTS:
        seen = f"a model that is made anew, with the same weights, has outputs that differ by {found.outputs:.0%}"
        hint = "to keep what a module draws or counts in a buffer"
    else:
        seen = (
            "an optimiser that is made anew, with the saved state and the same gradients, takes another step: that of "
            f"{found.part} differs by {found.update:.0%}"
        )
        hint = "to keep what an optimiser of yours remembers in its state_dict()"
    why = "a part of the run is in no checkpoint, so a resumed run and a loaded model are others"
    return Finding("unsaved", record.step, max(found.update, found.outputs), seen, why, hint)


def recomputed(record: Record) -> Finding | None:
    found = record.recomputed
    if found is None:
        return None
    ratio = found.norm / found.plain_norm if found.plain_norm else 1.0
    if abs(found.loss - found.plain_loss) > LOSS * max(found.plain_loss, 1.0):
        value = found.loss
        seen = f"a step had a loss of {value:.3f} nats, plain code has {found.plain_loss:.3f} of the same batch"
    elif found.cosine < COSINE:
        value = found.cosine
        seen = f"the gradients of {found.part} in a step have a cosine of {value:.2f} with those of its batch"
    elif not 1 / NORM < ratio < NORM:
        value, seen = ratio, f"the gradient of a step was {ratio:.2f} times as large as that of its batch"
    else:
        return None
    why = "steps do not follow the loss that is reported, of all rows of a batch"
    hint = "to look at hooks on parameters, at zero_grad() in a forward pass, and at what accumulates micro-batches"
    return Finding("recomputed", record.step, value, seen, why, hint)


def head(record: Record) -> Finding | None:
    found = record.model_facts
    if found is None or found.head <= LOSS:
        return None
    return Finding(
        "head",
        record.step,
        found.head,
        f"in evaluation the losses of the model differ by {found.head:.2f} nats from the cross entropy of its logits",
        "perplexities are not those of the model that generates",
        "losses() of your own that smooths, scales or weighs in training alone",
    )


def reach(record: Record) -> Finding | None:
    """Of the order of tokens: a layer may leave it out, but not all of them."""
    found = record.model_facts.reach if record.model_facts else {}
    orders = [key for key in found if key.endswith("/order")]
    lost = {key: size for key, size in found.items() if size <= REACH and key not in orders}
    if orders and max(found[key] for key in orders) <= ORDER:
        value, seen = found[orders[0]], "attention gives the same in whatever order the tokens before it stand"
        why, hint = "it cannot tell a text from its words", "its positions"
    elif lost:
        layer, _, part = min(lost, key=lost.__getitem__).partition("/")
        value = min(lost.values())
        what = "the older half of its window" if part == "attention" else "what it has read a chunk before"
        seen = f"the {part} of {layer} gives the same whatever stands in {what}"
        why, hint = "it reaches less far back than its settings say", "its masks, and the state that it hands on"
    else:
        return None
    return Finding("reach", record.step, value, seen, why, f"to look at code of your own in the model: {hint}")


def parts(record: Record) -> Finding | None:
    found = record.model_facts
    if found is None or found.parts <= PARTS:
        return None
    return Finding(
        "parts",
        record.step,
        found.parts,
        f"a text that is read in parts gives outputs that differ by {found.parts:.0%} from those of one reading",
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
