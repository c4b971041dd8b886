"""Watchers of the memories: whether they write, keep, and matter."""

from __future__ import annotations

from atlas.training.watchers.finding import Finding
from atlas.training.watchers.memory_limits import Limit, LimitWatcher
from atlas.training.watchers.observations import Probed
from atlas.training.watchers.record import Record

USED = 0.001  # of the loss with the memory: the default run has 1.2 with the memory off, 0.03 if it writes nothing, a
# calm text model of one layer 0.0017; one that ignores its memory 0.0000
USED_FROM = 100  # steps
WRITES_FROM = 500  # steps; before, a model may read its initial weights and write nothing of use yet
AWAY = -0.1  # cosine; calm memories have 0.2 and more, crowded ones too, and up the gradient -0.15 to -0.97
HARM = 0.005  # of the loss; calm runs of one layer have up to 0.003 for hundreds of steps
ERRORS = 4.0  # standard errors
KEY_BLIND = 0.75, 1.25  # times what the best key-blind reader finds: the model finds values, but not by the key
KEY_BLIND_FROM = 500  # steps; a model that learns recall passes through this
ABOVE_CHANCE = 2.0  # times chance: below, nothing is found at all


def resets(record: Record) -> Finding | None:
    """Known before step 1. One local memory without shards beside no global one is a design of its own."""
    facts = record.facts
    if not facts.memory:
        return None
    if facts.shard <= facts.largest_local:
        seen = f"the local memories are reset after every chunk (chunk_size.shard={facts.shard})"
        why, hint = "they keep nothing from one chunk to the next", "a longer chunk_size.shard"
    elif facts.shard >= facts.sequence and facts.has_global and not facts.carries:
        seen = f"no sequence of {facts.sequence} tokens reaches a reset (chunk_size.shard={facts.shard})"
        why = "the model never learns what a reset does, and longer texts have one"
        hint = "a shorter chunk_size.shard or a longer train.sequence"
    else:
        return None
    return Finding("resets", record.step, facts.shard, seen, why, hint)


UNWRITTEN = LimitWatcher(
    "global_memory",
    [
        Limit(
            "global/update_norm",
            lambda norm, _: norm == 0,
            lambda name, _: f"nothing was written into the global memory of {name}",
        )
    ],
    "it recalls its initial weights only",
    "a look at memory/<layer>/global/update_norm and at the inner rates",
)


def global_memory(record: Record) -> Finding | None:
    """By the lengths before step 1; by its writes afterwards."""
    facts = record.facts
    if not facts.has_global:
        return None
    read_tokens = facts.sequence * (max(facts.steps, 1) if facts.carries else 1)
    if facts.global_size >= read_tokens:
        return Finding(
            "global_memory",
            record.step,
            facts.global_size,
            f"its chunk of {facts.global_size} tokens is not shorter than the {read_tokens} tokens that a row has",
            "the global memory is never read after a write",
            "a smaller chunk_size.global_size or a longer train.sequence",
        )
    return UNWRITTEN(record)


LEADS_AWAY = LimitWatcher(
    "writes",
    [
        Limit(
            "learned",
            lambda learned, _: learned < AWAY,
            lambda name, learned: (
                f"writes change what {name} recalls of the keys just written away from their values (cosine "
                f"{learned:.2f})"
            ),
        )
    ],
    "it learns the opposite of what it is given",
    "a look at the sign of the update in a learning rule of yours",
)


def writes(record: Record) -> Finding | None:
    """By what the memories make of their own pairs; by the loss where that is far beyond chance."""
    found = LEADS_AWAY(record)
    if found is not None or not record.memory_use:
        return found
    use = record.memory_use[-1]
    harm = use.on - use.frozen
    if use.step < USED_FROM or harm < max(HARM * use.on, ERRORS * use.error):
        return None
    return Finding(
        "writes",
        use.step,
        harm,
        f"the loss of the watched rows is {use.on:.4f} nats, and {use.frozen:.4f} with a memory that writes nothing",
        "what the memory writes makes the model worse",
        "a look at a learning rule of yours, more steps, or another model.memory.rate_max",
        {"on": use.on, "frozen": use.frozen, "error": use.error},
    )


def memory_unused(record: Record) -> Finding | None:
    """Once the model predicts better than a bigram: before, it has no use for a memory."""
    baseline = record.facts.baseline
    if not record.memory_use or baseline is None:
        return None
    use = record.memory_use[-1]
    controls = {"with the memory off": use.off}
    if use.step >= WRITES_FROM:
        controls["with a memory that writes nothing"] = use.frozen
    control = min(controls, key=controls.__getitem__)
    gain = controls[control] - use.on
    known_by_probe = any(probe.level == "recall" and (probe.passed or _recalls(probe)) for probe in record.probed)
    if use.step < USED_FROM or use.on >= baseline or gain >= USED * use.on or known_by_probe:
        return None
    return Finding(
        "memory_unused",
        use.step,
        gain,
        f"the loss of the watched rows is {use.on:.4f} nats, and {controls[control]:.4f} {control}",
        "the model does without its memory",
        "more recall in training (data=mixed), a smaller model.window, or another seed",
        {"on": use.on, "off": use.off, "frozen": use.frozen},
    )


def _recalls(probe: Probed) -> bool:
    """Whether it finds values that it does not find with the memory off."""
    without = max(probe.chance, probe.control or 0.0)
    return probe.accuracy is not None and probe.accuracy > ABOVE_CHANCE * without


def key_blind(record: Record) -> Finding | None:
    recall = [probe for probe in record.probed if probe.level == "recall"]
    if not record.facts.memory or not recall or not _is_key_blind(recall[-1]):
        return None
    newest = recall[-1]
    return Finding(
        "key_blind",
        newest.step,
        newest.accuracy,
        f"recall finds {newest.accuracy or 0:.1%} of the needles, the best reader that ignores the key "
        f"{newest.key_blind or 0:.1%}",
        "the memory returns a value that it saw, not the one that is asked for",
        "more steps, more keys in training (data.recall.keys), or another rule",
    )


def _is_key_blind(probe: Probed) -> bool:
    if probe.passed is not False or probe.accuracy is None or probe.key_blind is None:
        return False
    low, high = (factor * probe.key_blind for factor in KEY_BLIND)
    return probe.step >= KEY_BLIND_FROM and max(low, ABOVE_CHANCE * probe.chance) <= probe.accuracy <= high
