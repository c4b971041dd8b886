"""`parallel.kind=fsdp`: cut a state that is ready to train into slices.

Until then every rank has it whole, so that agreement, resume and rollback's first checkpoint are those of any run.
"""

from __future__ import annotations

import torch

from atlas.config import ParallelKind, RunConfig
from atlas.parallel.ranks import Ranks
from atlas.runs.build import build_optimizer
from atlas.training.state import TrainState


def in_slices(config: RunConfig, ranks: Ranks) -> bool:
    """Whether the run trains weights in slices; one process has nothing to cut."""
    return config.parallel.kind is ParallelKind.fsdp and ranks.world > 1


def slice_state(config: RunConfig, state: TrainState, device: torch.device) -> None:
    """Cut weights, moments and the average of the weights into a slice for each rank, in place."""
    scale, moments = state.optimizer.scale, [one.state_dict() for one in state.optimizer.optimizers]
    average = dict(state.average.weights) if state.average else {}
    slices = state.slices = state.ranks.slices(state.model, state.model.mag_blocks, device)
    state.optimizer = build_optimizer(config, state.model)
    state.optimizer.scale = scale
    for optimizer, saved in zip(state.optimizer.optimizers, moments, strict=True):
        optimizer.load_state_dict(slices.of_moments(optimizer, saved))
    if state.average is not None:
        state.average.weights = slices.of_weights(average)
