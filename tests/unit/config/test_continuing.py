"""What may change when a run goes on: every key has a rule, and docs/continuing.md says the same."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

import atlas
from atlas.config import CHANGEABLE
from atlas.config.continuing import CHANGE_RULES, Effect, change_rule, change_table
from atlas.config.keys import flat

DOCUMENT = Path(atlas.__file__).parents[1] / "docs" / "continuing.md"


def test_every_key_has_one_rule() -> None:
    names = [key for rule in CHANGE_RULES for key in rule.keys]
    assert len(names) == len(set(names))
    keys = [key for option in ("mixed", "tokens") for key in flat(asdict(atlas.compose([f"data={option}"])))]
    assert [change_rule(key) for key in keys]
    unused = [name for name in names if not any(key == name or key.startswith(f"{name}.") for key in keys)]
    assert unused == []


def test_the_nearest_rule_holds() -> None:
    assert change_rule("optim.lr").effect is Effect.differs
    assert change_rule("optim._target_").effect is Effect.refused
    assert change_rule("rollback.watch_every").effect is Effect.differs
    assert change_rule("rollback.watch_rows").effect is Effect.refused
    with pytest.raises(KeyError):
        change_rule("other")


def test_what_is_of_one_start_is_no_part_of_the_hash() -> None:
    kept = [
        "logger",
        "telemetry",
        "checkpoint",
        "device.threads",
        "device.kernels",
        "device.graph",
        "device.compile",
        "device.processes",
        "parallel.kind",
        "parallel.context",
        "parallel",
        "watch",
        "debug",
        "debug.profile",
        "trust",
        "resume",
        "sweep",
    ]
    assert list(CHANGEABLE) == [*kept, "accept_changed_data"]


def test_the_document_has_the_table() -> None:
    assert "\n".join(change_table()) in DOCUMENT.read_text(encoding="utf-8")
