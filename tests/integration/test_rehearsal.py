"""A checkpoint that cannot be continued is told by the run that writes it, or by the start that reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import atlas
from atlas.checkpoint.manager import CheckpointManager
from atlas.checkpoint.manifest import encode
from atlas.config import ConfigError
from atlas.training.optimizer import ScheduledOptimizer, adamw


class Unreadable(ScheduledOptimizer):
    def state_dict(self) -> dict[str, Any]:
        return {"scale": 1.0}


class Forgetful(ScheduledOptimizer):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Its moments are not taken up."""


def unreadable(*, model: torch.nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    return Unreadable(adamw(model=model, steps=steps, **settings).optimizers, 1e-3, steps, 0, 0.1)


def forgetful(*, model: torch.nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    return Forgetful(adamw(model=model, steps=steps, **settings).optimizers, 1e-3, steps, 0, 0.1)


def with_optimizer(tiny: Any, name: str, *more: str) -> Any:
    return tiny(f"optim._target_={__name__}.{name}", f"trust=[{__name__}]", "train.steps=2", *more)


@pytest.mark.slow
def test_an_optimiser_that_cannot_load_what_it_saves_ends_the_run_before_step_1(tiny: Any, tmp_path: Path) -> None:
    summary = atlas.train(with_optimizer(tiny, "unreadable"), tmp_path / "run")
    reason = "step-00000000 was saved and cannot be loaded: KeyError: 'optimizers'"
    assert (summary.status, summary.step, summary.reason) == ("aborted", 0, reason)


@pytest.mark.slow
def test_a_resume_that_would_lose_the_moments_of_the_optimiser_is_refused(tiny: Any, tmp_path: Path) -> None:
    config = with_optimizer(tiny, "forgetful")
    assert atlas.train(config, tmp_path / "run").status == "completed"
    longer = replace(config, resume="auto", train=replace(config.train, steps=4))
    with pytest.raises(ConfigError, match="must be a checkpoint that the run takes up as it was saved") as refusal:
        atlas.train(longer, tmp_path / "run")
    lost = "optimizer.optimizers.0.state.0.step is another one after loading (init_from=RUN takes the weights alone)"
    assert lost in str(refusal.value)


def test_a_checkpoint_that_is_not_healthy_is_loaded_with_a_warning(untrained: Path) -> None:
    checkpoints = CheckpointManager(untrained / "checkpoints", 1, 2)
    newest = checkpoints.list()[-1]
    (newest.path / "manifest.json").write_bytes(encode(replace(newest, healthy=False)))
    told = "step-00000007 is not healthy: the run had a bad reading or a suspicious loss at that step"
    with pytest.warns(UserWarning, match=f"^{told}$"):
        atlas.load(untrained)
