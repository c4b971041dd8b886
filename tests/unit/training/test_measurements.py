"""What is kept of a run's measurements."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from atlas.training import trainer as module
from atlas.training.clocks import Clocks
from atlas.training.measurements import Measurements
from atlas.training.trainer import Trainer
from atlas.training.watchers.observations import MemoryUse


@pytest.mark.parametrize(("measured", "kept"), [(20, True), (22, True), (30, False)])
def test_a_rollback_forgets_what_was_measured_at_an_undone_step(measured: int, kept: bool) -> None:
    """A rollback from step 30 to 22. The summary of a run that is stopped soon after it shows what is left."""
    found = Measurements.__new__(Measurements)
    state: Any = SimpleNamespace(step=22)
    probe: Any = SimpleNamespace(level="recall", step=measured)
    found.state, found.validation, found.memory_use = state, (measured, 1.5), MemoryUse(measured, 1.0, 3.0, 2.0)
    found.probe_results = [probe]
    found.forget_undone()
    assert (found.validation is not None, found.memory_use is not None, bool(found.probe_results)) == (kept,) * 3


@pytest.mark.parametrize("restored", [True, False])
def test_only_a_rollback_that_was_carried_out_forgets(restored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "decide", lambda *_: "a decision")
    forgotten: list[bool] = []
    trainer: Any = SimpleNamespace(
        state=SimpleNamespace(history=SimpleNamespace(readings=[]), rollbacks=0),
        config=SimpleNamespace(rollback=None),
        saver=SimpleNamespace(collect=lambda wait: None),
        clocks=Clocks(),
        recovery=SimpleNamespace(carry_out=lambda *_, **__: restored),
        measurements=SimpleNamespace(forget_undone=lambda: forgotten.append(True)),
    )
    assert Trainer._rolled_back(trainer, finite=True) is restored
    assert forgotten == [True] * restored
