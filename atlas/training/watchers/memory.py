"""Watchers of the memories: whether they write, keep, and matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from typing import NamedTuple

from atlas.training.watchers.facts import Facts
from atlas.training.watchers.finding import Finding
from atlas.training.watchers.observations import Probed
from atlas.training.watchers.record import Record

LOWEST_RATE = 0.01  # of the largest rate of a batch: ten such writes make a tenth of a pair
CROWDED = 0.1  # share of chunks in which rates of equal keys add up to more than 4; 0.004 in the default run
PATH = 25.0  # sum of rho over chunks: gradients are right to 1 % up to here, wrong from 32 on (docs/memory.md 4)
GATE_SHUT, GATE_OPEN = 0.02, 0.98  # mean of a layer; half of the gates of a trained model are open
GATE_VARIES = 0.02  # deviation over tokens, mean over channels; 0.4 in a trained model
FORGOTTEN, TINY = 0.02, 1e-30  # nats of the norm a token: half is gone after 35; calm memories keep 0.9 of it in all
BOUND_SHARE = 0.9  # of the rows
# Directions, see `directions` in measuring.py: a calm model has 3.3 of queries with heads of width 4, 5 with 8, 9 with
# 16 and 14 to 22 with 64, of values 2.9, 4, 6 and more; deep layers of 4 have fewer, 3.7 of keys after 200 steps.
FEWEST, FEWEST_SHARE = 3.2, 0.4  # of queries and keys; the share is that of the head width
# Deep layers begin with 2 directions: the last of 4 layers with heads of 64 has 1.8 at step 50 and 3.2 at step 200.
DIRECTIONS_FROM = 200  # steps
PADDED = 0.1  # of the targets: directions are those of the last tokens, and padding has one
GROWTH = 1.1  # between two measurements
ONE_LINE = 1.5  # of values, and of projected queries, which have 2 and more without `mix`
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


class Limit(NamedTuple):
    """Of what is measured of every memory or layer."""

    quantity: str
    is_out: Callable[[float, Facts], bool]
    tell: Callable[[str, float], str]  # of (layer or memory, value)
    grows: bool = False  # one that is out and rises is on its way


@dataclass(frozen=True)
class LimitWatcher:
    """Tells of values that are beyond a limit in both of the newest measurements; one alone may be chance."""

    watch: str
    limits: Sequence[Limit]
    why: str
    hint: str
    applies: Callable[[Facts], bool] = lambda facts: True
    first: int = 0  # step from which it judges
    of_last_tokens: bool = False  # which are padding in some texts

    def __call__(self, record: Record) -> Finding | None:
        """Of the first memory or layer; the others in `numbers`."""
        if not (record.twice and self.applies(record.facts)) or record.twice[1].step < self.first:
            return None
        if self.of_last_tokens and max((batch.padding for batch in record.batches), default=0.0) > PADDED:
            return None
        before, now = record.twice
        for limit in self.limits:
            was = before.of(limit.quantity)
            found = {
                name: value
                for name, value in now.of(limit.quantity).items()
                if all(limit.is_out(one, record.facts) for one in (value, was.get(name, value)))
                and not (limit.grows and value > GROWTH * was.get(name, value))
            }
            if found:
                name, value = next(iter(found.items()))
                seen = limit.tell(name + (f" and {len(found) - 1} more" if len(found) > 1 else ""), value)
                since = max(before.step - 1, 0)
                return Finding(self.watch, record.step, value, seen, self.why, self.hint, found, since=since)
        return None


def fewest_directions(head_width: int) -> float:
    """Random vectors have as many directions as channels, and queries that lie on one line before their convolution
    over 4 tokens have 3."""
    return min(FEWEST, FEWEST_SHARE * head_width)


def _gate_mean(name: str, mean: float) -> str:
    return f"the gates of {name} have a mean of {mean:.3f}"


def _directions(what: str) -> Callable[[str, float], str]:
    return lambda name, directions: f"the {what} of {name} have only {directions:.2g} directions"


LIMITS = (
    LimitWatcher(
        "rates_low",
        [
            Limit(
                "rate_max",
                lambda rate, _: rate < LOWEST_RATE,
                lambda name, rate: f"the highest inner rate of {name} in a batch is {rate:.2g}",
            )
        ],
        "it writes nothing, and what it recalls does not depend on the text",
        "another seed, a higher model.memory.rate_init, or watch.rates_low=rollback",
    ),
    LimitWatcher(
        "rates_high",
        [
            Limit(
                "crowded",
                lambda share, _: share > CROWDED,
                lambda name, share: (
                    f"in {share:.0%} of the chunks of {name} the rates of equal keys add up to more than 4"
                ),
            ),
            Limit(
                "path",
                lambda path, _: path > PATH,
                lambda name, path: f"from reset to reset the steps of {name} have a length of {path:.0f} in all",
            ),
        ],
        "there float32 gradients may be wrong (docs/memory.md section 4)",
        "a lower model.memory.rate_max, or smaller chunks; with muon and atlas a lower rate_max of their own, or a"
        " shorter chunk_size.shard",
    ),
    LimitWatcher(
        "gates",
        [
            Limit("gate_mean", lambda mean, _: mean < GATE_SHUT, _gate_mean),
            Limit("gate_mean", lambda mean, _: mean > GATE_OPEN, _gate_mean),
            Limit(
                "gate_varies",
                lambda varies, _: varies < GATE_VARIES,
                lambda name, varies: f"the gates of {name} are the same for every token (deviation {varies:.2g})",
            ),
        ],
        "a gate that does not vary does not depend on the memory",
        "another seed, or a lower train.gate.polarisation_peak",
        lambda facts: facts.gated,
    ),
    LimitWatcher(
        "forgets",
        [
            Limit(
                "kept",
                lambda kept, facts: -log(max(kept, TINY)) > FORGOTTEN * facts.sequence,
                lambda name, kept: f"the weights of {name} have {kept:.1%} of their norm left at the end of a sequence",
            )
        ],
        "it forgets what it writes within some tens of tokens",
        "a look at the retention of a learning rule of yours: 1 keeps all",
    ),
    LimitWatcher(
        "norm_bound",
        [
            Limit(
                "at_bound",
                lambda share, _: share > BOUND_SHARE,
                lambda name, share: f"{share:.0%} of the rows of {name} end at the bound of their weights",
            )
        ],
        "a memory at its bound forgets as much as it writes",
        "a higher model.memory.weight_norm_max or a lower rate_max",
    ),
    LimitWatcher(
        "queries",
        [
            Limit(
                "query_directions",
                lambda found, facts: found < fewest_directions(facts.head_width),
                _directions("queries"),
                grows=True,
            ),
            Limit("read_directions", lambda found, _: found < ONE_LINE, _directions("projected queries"), grows=True),
        ],
        "memories answer the same, whatever is asked",
        "model.memory.qk_projection.mix=true, activate_keys=false, or another seed",
        first=DIRECTIONS_FROM,
        of_last_tokens=True,
    ),
    LimitWatcher(
        "pairs",
        [
            Limit(
                "key_directions",
                lambda found, facts: found < fewest_directions(facts.head_width),
                _directions("keys"),
                grows=True,
            ),
            Limit("value_directions", lambda found, _: found < ONE_LINE, _directions("values"), grows=True),
        ],
        "memories cannot tell one pair from another",
        "another seed, or a look at the weights of memory.inputs.qkv",
        first=DIRECTIONS_FROM,
        of_last_tokens=True,
    ),
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
