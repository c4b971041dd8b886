"""G2-6 on recorded runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import atlas
from experiments.phase2.check_rollback import judge_rollback
from experiments.phase2.evidence import FAULT, CheckedRun, rehearsal_overrides
from experiments.phase2.finding import CheckOutcome

SPIKE = {"kind": "spike", "step": 513, "trigger": "perplexity", "message": "perplexity 20 is 200% above 6"}
ROLLBACK = {
    "kind": "rollback",
    "step": 500,
    "from_step": 513,
    "trigger": "perplexity",
    "change": "14 batches left out",
}


@pytest.fixture
def forced(made: Any) -> CheckedRun:
    """Struck at step 505, rolled back, and better at the end than ever before the fault."""
    record = made(inject="weights@505:1", events=[SPIKE, ROLLBACK], rollbacks=1)
    for row in record.rows[5:]:
        row["segment"] = 1
    return record


def test_a_spike_that_is_rolled_back_and_overcome_passes(forced: CheckedRun, made: Any) -> None:
    finding = judge_rollback(forced, made(), made())
    assert (finding.outcome, finding.detail) == (CheckOutcome.passed, "")
    assert finding.numbers == {
        "fault": "weights@505:1",
        "trigger": "perplexity",
        "noticed_at_step": 513,
        "restored_step": 500,
        "rollbacks": 1,
        "loss_before": 2.5,
        "loss_after": 2.0,
        "false_alarms": {"calm": 0, "long": 0},
    }
    assert finding.evidence == (
        "spike, step 513: perplexity 20 is 200% above 6",
        "rollback, step 500: 14 batches left out",
        "calm run: 1000 steps, 0 alarms",
        "long run: 1000 steps, 0 alarms",
    )


def test_every_way_of_not_recovering_fails(forced: CheckedRun, made: Any) -> None:
    def complaint(record: CheckedRun) -> str:
        finding = judge_rollback(record, made())
        assert finding.outcome is CheckOutcome.failed
        return finding.detail

    assert complaint(replace(forced, events=[])) == "the forced spike was not noticed"
    assert complaint(replace(forced, events=[SPIKE])) == "the forced spike was noticed and not rolled back"
    early = SPIKE | {"step": 200}
    assert complaint(replace(forced, events=[early, ROLLBACK])) == "a false alarm at step 200, before the fault"
    assert complaint(made()) == "no fault was injected"
    aborted = made(inject="weights@505:1", status="aborted", reason="after 3 rollbacks", step=513)
    assert complaint(aborted) == "the run with the spike: aborted at step 513: after 3 rollbacks"
    forced.rows[-1]["validation/loss"] = 2.6
    assert complaint(forced) == "not recovered: loss 2.6000 after the spike, 2.5000 before"
    for row in forced.rows:
        row["segment"] = 0
    assert complaint(forced) == "the loss before or after the spike was not measured"


def test_a_false_alarm_fails(forced: CheckedRun, made: Any) -> None:
    alarmed = made(events=[SPIKE, ROLLBACK])
    assert judge_rollback(forced, alarmed).detail == "false alarms in the calm run: 1"
    assert judge_rollback(forced, made(), alarmed).detail == "false alarms in the long run: 1"
    rehearsed = made(inject="nan_loss@513", events=[SPIKE, ROLLBACK])
    assert judge_rollback(forced, made(), rehearsed).outcome is CheckOutcome.passed  # it was disturbed on purpose
    assert judge_rollback(forced, rehearsed).detail == "the calm run was not calm: debug.inject=nan_loss@513"
    assert judge_rollback(forced, made(config_hash="other")).detail == (
        "the calm run had other settings than the one with the spike"
    )
    assert judge_rollback(forced, made(status="failed", reason="x", step=1)).detail == (
        "the calm run: failed at step 1: x"
    )


def test_the_rehearsal_heeds_what_is_on_trial_and_nothing_else() -> None:
    given = ["rollback=off", "seed=3", "model=small", "train.steps=1000", "device.threads=1", "niah.every=500"]
    config = atlas.compose([*rehearsal_overrides(given), FAULT])
    assert (config.rollback.enabled, config.seed, config.device.threads) == (False, 3, 1)
    assert (config.model.width, config.train.steps, config.niah.enabled) == (32, 260, False)
    default = atlas.compose(rehearsal_overrides([]))
    assert default.rollback == atlas.compose().rollback
    assert default.optim == atlas.compose().optim
