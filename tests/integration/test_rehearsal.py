"""A checkpoint that cannot be continued is told by the run that writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import atlas
from atlas.training.optimizer import ScheduledOptimizer, adamw


class Unreadable(ScheduledOptimizer):
    def state_dict(self) -> dict[str, Any]:
        return {"scale": 1.0}


def unreadable(*, model: torch.nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    return Unreadable(adamw(model=model, steps=steps, **settings).optimizers, 1e-3, steps, 0, 0.1)


@pytest.mark.slow
def test_an_optimiser_that_cannot_load_what_it_saves_ends_the_run_before_step_1(tiny: Any, tmp_path: Path) -> None:
    config = tiny(f"optim._target_={__name__}.unreadable", f"trust=[{__name__}]", "train.steps=2")
    summary = atlas.train(config, tmp_path / "run")
    reason = "step-00000000 was saved and cannot be loaded: KeyError: 'optimizers'"
    assert (summary.status, summary.step, summary.reason) == ("aborted", 0, reason)
