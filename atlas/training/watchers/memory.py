"""Watchers of the memories: whether they write, keep, and matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from atlas.training.watchers.finding import Finding
from atlas.training.watchers.record import Probed, Record

LOWEST_RATE = 0.01  # of the largest rate of a batch: ten such writes make a tenth of a pair
CROWDED = 0.1  # share of chunks in which rates of equal keys add up to more than 4; 0.004 in the default run
GATE_SHUT, GATE_OPEN = 0.02, 0.98  # mean of a layer; half of the gates of a trained model are open
GATE_VARIES = 0.02  # deviation over tokens, mean over channels; 0.4 in a trained model
BOUND_SHARE = 0.9  # of the rows
COLLAPSED = 0.9  # mean |cosine| of the queries that local memories read with; random ones of 8 channels have 0.28
USED = 0.002  # of the loss with the memory: the default run has 1.2 with the memory off, 0.03 if it writes nothing
USED_FROM = 100  # steps
WRITES_FROM = 500  # steps; before, a model may read its initial weights and write nothing of use yet
KEY_BLIND = 0.75, 1.25  # times what the best key-blind reader finds: the model finds values, but not by the key
KEY_BLIND_FROM = 500  # steps; a model that learns recall passes through this
ABOVE_CHANCE = 2.0  # times chance: below, nothing is found at all


def rates_low(record: Record) -> Finding | None:
    low = _both(record, "rate_max", lambda rate: rate < LOWEST_RATE)
    return _finding(
        record,
        "rates_low",
        low,
        lambda name, rate: f"the highest inner rate of {name} in a batch is {rate:.2g}",
        "it writes nothing, and what it recalls does not depend on the text",
        "another seed, a higher model.memory.rate_init, or watch.rates_low=rollback",
    )


def rates_high(record: Record) -> Finding | None:
    crowded = _both(record, "crowded", lambda share: share > CROWDED)
    return _finding(
        record,
        "rates_high",
        crowded,
        lambda name, share: f"in {share:.0%} of the chunks of {name} the rates of equal keys add up to more than 4",
        "there float32 gradients may be wrong (docs/memory.md section 4)",
        "a lower model.memory.rate_max, or smaller chunks",
    )


def gates(record: Record) -> Finding | None:
    if not record.facts.gated:
        return None
    closed = _both(record, "gate_mean", lambda mean: mean < GATE_SHUT)
    opened = _both(record, "gate_mean", lambda mean: mean > GATE_OPEN)
    constant = _both(record, "gate_varies", lambda varies: varies < GATE_VARIES)
    return _finding(
        record,
        "gates",
        closed or opened or constant,
        lambda name, value: (
            f"the gates of {name} have a mean of {value:.3f}"
            if closed or opened
            else f"the gates of {name} are the same for every token (deviation {value:.2g})"
        ),
        "a gate that does not vary does not depend on the memory",
        "another seed, or a lower train.gate.polarisation_peak",
    )


def norm_bound(record: Record) -> Finding | None:
    full = _both(record, "at_bound", lambda share: share > BOUND_SHARE)
    return _finding(
        record,
        "norm_bound",
        full,
        lambda name, share: f"{share:.0%} of the rows of {name} end at the bound of their weights",
        "a memory at its bound forgets as much as it writes",
        "a higher model.memory.weight_norm_max or a lower rate_max",
    )


def queries(record: Record) -> Finding | None:
    same = _both(record, "read_cosine", lambda cosine: cosine > COLLAPSED)
    return _finding(
        record,
        "queries",
        same,
        lambda name, cosine: f"the queries of {name} lie on one line (mean |cosine| {cosine:.3f})",
        "its local memories answer the same, whatever is asked",
        "model.memory.qk_projection.mix=true, activate_keys=false, or another seed",
    )


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
    unwritten = {
        name: norm for name, norm in _both(record, "update_norm", lambda n: n == 0).items() if name.endswith("global")
    }
    return _finding(
        record,
        "global_memory",
        unwritten,
        lambda name, _: f"nothing was written into {name}",
        "it recalls its initial weights only",
        "a look at memory/<layer>/global/update_norm and at the inner rates",
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
    known_by_probe = any(probe.level == "recall" and probe.passed for probe in record.probed)
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


def _both(record: Record, quantity: str, is_out: Callable[[float], bool]) -> dict[str, float]:
    """The newest value of each memory or layer that was out of line in both of the newest measurements."""
    if not record.twice:
        return {}
    before, now = (one.of(quantity) for one in record.twice)
    return {name: value for name, value in now.items() if is_out(value) and is_out(before.get(name, value))}


def _finding(
    record: Record, watch: str, found: Mapping[str, float], tell: Callable[[str, float], str], why: str, hint: str
) -> Finding | None:
    """Of the first memory or layer; the others in `numbers`."""
    if not found:
        return None
    name, value = next(iter(found.items()))
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    since = record.measured[0].step - 1
    return Finding(watch, record.step, value, tell(name + more, value), why, hint, dict(found), since=max(since, 0))
