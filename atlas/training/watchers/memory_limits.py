"""Watchers of what is measured of every memory or layer, each with its limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from typing import NamedTuple

from atlas.training.watchers.facts import Facts
from atlas.training.watchers.finding import Finding
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
