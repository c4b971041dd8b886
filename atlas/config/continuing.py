"""What may change when a run is continued: a rule for every key, used by refusals, messages and docs/continuing.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from atlas.config.keys import lies_in


class Effect(StrEnum):
    """What a changed setting does to the following steps."""

    exact = "training stays bitwise the same"
    differs = "numbers differ"
    refused = "refused"


@dataclass(frozen=True)
class ChangeRule:
    """`keys`: settings or whole groups. `kept`: the change is written into config.yaml, else it is for one start."""

    keys: tuple[str, ...]
    effect: Effect
    why: str
    kept: bool = True


CHANGE_RULES = (
    ChangeRule(
        ("logger", "telemetry", "checkpoint"),
        Effect.exact,
        "where and how often something is written; a rollback may find another checkpoint",
        kept=False,
    ),
    ChangeRule(
        ("device.threads", "device.kernels", "device.graph", "device.compile", "device.processes"),
        Effect.differs,
        "by rounding",
        kept=False,
    ),
    ChangeRule(("parallel.kind", "parallel.context"), Effect.differs, "by rounding", kept=False),
    ChangeRule(("parallel",), Effect.exact, "how long the processes of a run wait for each other", kept=False),
    ChangeRule(
        ("watch",),
        Effect.exact,
        "what is told; with `abort` or `rollback` a finding ends the run or goes back",
        kept=False,
    ),
    ChangeRule(("debug",), Effect.differs, "a rehearsed fault", kept=False),
    ChangeRule(("debug.profile",), Effect.exact, "a look at some steps", kept=False),
    ChangeRule(("trust",), Effect.exact, "whose code may be executed; never taken from a run folder", kept=False),
    ChangeRule(("resume", "sweep"), Effect.exact, "how the command was started", kept=False),
    ChangeRule(
        ("train.validation_every", "train.validation_batches"),
        Effect.exact,
        "validation losses are of other steps or over other batches",
    ),
    ChangeRule(("train.ema",), Effect.exact, "an average that is switched on starts with the weights of then"),
    ChangeRule(("train.patience",), Effect.exact, "the run ends at another step"),
    ChangeRule(("niah",), Effect.exact, "with `niah` among `rollback.triggers` the probes decide on rollbacks"),
    ChangeRule(
        ("calibration.measure", "calibration.threshold", "calibration.horizon", "calibration.rows"),
        Effect.exact,
        "the reset shock is measured at the end",
    ),
    ChangeRule(
        ("train.steps",),
        Effect.differs,
        "learning rate, gate polarisation and recall share follow the schedule of the new length",
    ),
    ChangeRule(("optim",), Effect.differs, "the optimiser keeps its state and takes the new values"),
    ChangeRule(("train.gradient_clip", "train.gate", "rollback"), Effect.differs, "hold from the next step on"),
    ChangeRule(("train.accumulate",), Effect.differs, "by rounding; refused with `train.carry_memory`"),
    ChangeRule(("device.kind", "device.precision"), Effect.differs, "by rounding"),
    ChangeRule(("data.paths", "data.path"), Effect.exact, "where the text lies now; another text is refused"),
    ChangeRule(("accept_changed_data",), Effect.differs, "the run continues although its text has changed", kept=False),
    ChangeRule(("model", "chunk_size"), Effect.refused, "the weights were trained with it"),
    ChangeRule(("stage2",), Effect.refused, "its schedule is one; `init_from` starts another stage"),
    ChangeRule(
        ("data", "seed", "train.batch_size", "train.sequence", "train.carry_memory", "train.pad_shards"),
        Effect.refused,
        "the batches would be others",
    ),
    ChangeRule(("optim._target_",), Effect.refused, "another optimiser cannot go on with the saved state"),
    ChangeRule(("rollback.watch_rows",), Effect.refused, "the watched perplexity is one series"),
    ChangeRule(
        ("calibration.enabled", "calibration.tokens", "calibration.attempts", "init_from"),
        Effect.refused,
        "it is over before step 1",
    ),
)
# May differ between two starts of one run without changing the hash of its configuration.
CHANGEABLE = tuple(key for rule in CHANGE_RULES if not rule.kept for key in rule.keys)


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Of nested settings, as a dataclass or config.yaml has them: the same for runs that must give the same numbers."""
    kept = deepcopy(dict(settings))
    for key in CHANGEABLE:
        group, _, name = key.partition(".")
        (kept.get(group, {}) if name else kept).pop(name or group, None)
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def changeable(key: str) -> bool:
    """Whether a change of this dotted key holds for one start only and is not recorded."""
    return lies_in(key, CHANGEABLE)


def change_rule(key: str) -> ChangeRule:
    """The rule of a flat key: that of the longest name which is the key or a group above it.

    Raises KeyError for a key without a rule.
    """
    found = {name: rule for rule in CHANGE_RULES for name in rule.keys if lies_in(key, [name])}
    if not found:
        raise KeyError(key)
    return found[max(found, key=len)]


def change_table() -> list[str]:
    """The rules as the table of docs/continuing.md."""
    lines = ["| setting | when it changes | |", "|---|---|---|"]
    for rule in CHANGE_RULES:
        effect = rule.effect.value + ("" if rule.kept else ", for this start only")
        lines.append(f"| {' '.join(f'`{key}`' for key in rule.keys)} | {effect} | {rule.why} |")
    return lines
