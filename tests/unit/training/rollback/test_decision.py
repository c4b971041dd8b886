"""A table of histories and what is decided from each."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest

from atlas.config import RollbackConfig
from atlas.training.rollback.decision import Decision, Verdict, decide
from atlas.training.rollback.history import History, Reading


def perplexities(*bad: bool, every: int = 10) -> list[Reading]:
    """A perplexity reading every `every` steps, each good or bad."""
    return [
        Reading("perplexity", every * number, is_bad, 10.0, 0.5 if is_bad else 0.0, "spike" if is_bad else "")
        for number, is_bad in enumerate(bad, start=1)
    ]


NON_FINITE = Reading("non_finite", 35, True, reason="loss nan")
COLLAPSED = Reading("gate", 33, True, reason="gate std 0")
NOT_A_NUMBER = Reading("perplexity", 40, True, nan, inf, "perplexity nan")
CALM = perplexities(False, False, False)

TABLE: list[tuple[str, list[Reading], int, dict[str, Any], Decision | None]] = [
    ("nothing was read", [], 0, {}, None),
    ("calm", CALM, 0, {}, None),
    ("one bad reading", perplexities(False, True), 0, {}, None),
    ("two bad readings", perplexities(False, True, True), 0, {}, None),
    ("a spike", perplexities(False, True, True, True), 0, {}, Decision(Verdict.restore, "perplexity", "spike", 11)),
    ("a spike that is over", perplexities(False, True, True, True, False), 0, {}, None),
    ("an interrupted streak", perplexities(False, True, True, False, True), 0, {}, None),
    (
        "patience 1",
        perplexities(False, False, True),
        0,
        {"patience": 1},
        Decision(Verdict.restore, "perplexity", "spike", 21),
    ),
    (
        "never a good reading",
        perplexities(True, True, True),
        0,
        {},
        Decision(Verdict.restore, "perplexity", "spike", 1),
    ),
    (
        "a non-finite perplexity needs no patience",
        [*CALM, NOT_A_NUMBER],
        0,
        {},
        Decision(Verdict.restore, "perplexity", "perplexity nan", 31),
    ),
    ("a non-finite step", [*CALM, NON_FINITE], 0, {}, Decision(Verdict.restore, "non_finite", "loss nan", 31)),
    ("a non-finite first step", [NON_FINITE], 0, {}, Decision(Verdict.restore, "non_finite", "loss nan", 1)),
    ("the last rollback allowed", [*CALM, NON_FINITE], 2, {}, Decision(Verdict.restore, "non_finite", "loss nan", 31)),
    ("the limit", [*CALM, NON_FINITE], 3, {}, Decision(Verdict.abort, "non_finite", "loss nan", 31)),
    ("limit 0", [*CALM, NON_FINITE], 0, {"limit": 0}, Decision(Verdict.abort, "non_finite", "loss nan", 31)),
    ("off", [*CALM, NON_FINITE], 0, {"enabled": False}, Decision(Verdict.record, "non_finite", "loss nan", 31)),
    (
        "observing",
        perplexities(False, True, True, True),
        9,
        {"observe": True},
        Decision(Verdict.record, "perplexity", "spike", 11),
    ),
    ("gates are no trigger by default", [*CALM, COLLAPSED], 0, {}, Decision(Verdict.record, "gate", "gate std 0", 31)),
    (
        "gates as a trigger",
        [*CALM, COLLAPSED],
        0,
        {"triggers": ["gate"]},
        Decision(Verdict.restore, "gate", "gate std 0", 31),
    ),
    (
        "a watcher is one where its setting says so",
        [*CALM, Reading("watch", 40, True, reason="loss up", passed_step=10)],
        0,
        {},
        Decision(Verdict.restore, "watch", "loss up", 11),
    ),
    (
        "perplexity switched off",
        perplexities(False, True, True, True),
        0,
        {"triggers": ["niah"]},
        Decision(Verdict.record, "perplexity", "spike", 11),
    ),
]


@pytest.mark.parametrize(
    ("history", "rollbacks", "settings", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_decisions(history: list[Reading], rollbacks: int, settings: dict[str, Any], expected: Decision | None) -> None:
    assert decide(history, rollbacks, RollbackConfig(**settings)) == expected


def test_a_good_reading_of_a_suspicious_step_vouches_for_nothing() -> None:
    readings = [*CALM, Reading("perplexity", 40, False, 10.0, suspicious=True), NON_FINITE]
    assert decide(readings, 0, RollbackConfig()) == Decision(Verdict.restore, "non_finite", "loss nan", 31)


def test_a_collapsed_niah_level_goes_back_to_where_it_passed() -> None:
    history = History(RollbackConfig(triggers=["niah"]))
    history.readings = list(CALM)
    history.add_probe(10, "recall", False, "recall 10 %")  # not learnt yet
    assert decide(history.readings, 0, history.settings) is None
    history.add_probe(20, "recall", True, "recall 90 %")
    history.add_probe(25, "memory", False, "cosine 0.1")
    history.add_probe(30, "recall", None, "not measured")
    restored = History(history.settings)
    restored.load_state_dict(history.state_dict())
    restored.add_probe(40, "recall", False, "recall 10 %")
    reason = "niah recall has collapsed: passed at step 20, now recall 10 %"
    assert decide(restored.readings, 0, history.settings) == Decision(Verdict.restore, "niah", reason, 21)
