"""What a start changes of the run that it continues: reported in one message, kept in events.jsonl and config.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from atlas.checkpoint.folder import folders
from atlas.config import ConfigError, RunConfig
from atlas.config.composition import load_config, save_config
from atlas.config.continuing import Effect, change_rule
from atlas.data.source import DataSource
from atlas.runs.build import build_data, build_optimizer, with_vocabulary
from atlas.runs.environment import config_hash
from atlas.runs.resume import as_text, differences, transfer
from atlas.telemetry.logger import TelemetryLogger
from atlas.telemetry.run_files import CHECKPOINTS, CONFIG_FILE, SETTINGS
from atlas.training.state import TrainState


def recorded_config(folder: Path, trust: Sequence[str], data: DataSource) -> RunConfig | None:
    """The configuration that the run in `folder` has had so far; None for a new run.

    A start that failed early has left it as composed, without the vocabulary of `data`.
    """
    if not (folder / CONFIG_FILE).exists():
        return None
    found = load_config(folder / CONFIG_FILE, trust)
    return found if folders(folder / CHECKPOINTS) else with_vocabulary(found, data)


@dataclass(frozen=True)
class Changes:
    """`settings`: flat key -> value before and now, of all that is kept or changes the numbers."""

    recorded: RunConfig
    config: RunConfig
    settings: Mapping[str, tuple[Any, Any]]

    @classmethod
    def between(cls, recorded: RunConfig, config: RunConfig) -> Changes:
        found = differences(recorded, config)
        settings = {key: both for key, both in found.items() if change_rule(key).kept or _differs(key, config)}
        return cls(recorded, config, settings)

    @property
    def kept(self) -> list[str]:
        return [key for key in self.settings if change_rule(key).kept]

    def require_none(self, folder: Path, state: TrainState) -> None:
        """Raise `ConfigError` where there is a change to keep, for a run that has nothing left to do."""
        if self.kept:
            given = ", ".join(f"{key}={as_text(self.settings[key][1])}" for key in self.kept)
            more, why = f"train.steps > {state.step}", f"the run in {folder} is complete"
            if state.stop_reason:
                more, why = "a larger train.patience (0 = no early stop)", f"{why} ({state.stop_reason})"
            raise ConfigError(f"{given}: must be given with {more}: {why}")

    def apply(self, state: TrainState, data: DataSource) -> None:
        """Let the restored state continue under the new settings, on batches of `data`.

        The carried memories have read the last batch. Where the schedule of the new length gives another batch for that
        step, the next one continues other sequences, and the memories are dropped.
        """
        if "train.steps" in self.settings and state.carried:
            earlier = replace(self.config, train=replace(self.config.train, steps=self.recorded.train.steps))
            was, now = (one.batch(state.step + state.skipped).inputs for one in (build_data(earlier), data))
            if not torch.equal(was, now):
                state.carried = []

    def record(self, folder: Path, state: TrainState, telemetry: TelemetryLogger) -> None:
        """Write the event first, then config.yaml: a change in config.yaml is always in events.jsonl too."""
        if not self.settings:
            return
        kept = deepcopy(self.recorded)
        for key in self.kept:
            transfer(self.config, kept, key.split("."))
        telemetry.event(
            SETTINGS,
            state.step,
            changes={key: [as_text(value) for value in both] for key, both in self.settings.items()},
            former_config_hash=config_hash(self.recorded),
            config_hash=config_hash(kept),
            message=self._message(state),
        )
        save_config(kept, folder / CONFIG_FILE)

    def _message(self, state: TrainState) -> str:
        changed = ", ".join(
            f"{key}={as_text(now)} instead of {as_text(was)}" for key, (was, now) in self.settings.items()
        )
        differs = any(_differs(key, self.config) for key in self.settings)
        effect = "the numbers differ from those of a run without the change" if differs else Effect.exact.value
        return f"from step {state.step + 1} on {changed}: {effect}{self._learning_rate(state)}"

    def _learning_rate(self, state: TrainState) -> str:
        if state.step in (0, self.config.train.steps):
            return ""
        if not any(key == "train.steps" or key.startswith("optim.") for key in self.settings):
            return ""
        before = build_optimizer(self.recorded, state.model)
        before.scale = state.optimizer.scale
        was, now = before.lr_at(state.step), state.optimizer.lr_at(state.step + 1)
        steps = self.config.train.steps
        return f"; the learning rate goes from {was:.3g} to {now:.3g}, by the schedule of {steps} steps"


def _differs(key: str, config: RunConfig) -> bool:
    decides = key.startswith("niah.") and "niah" in config.rollback.triggers
    return decides or change_rule(key).effect is Effect.differs
