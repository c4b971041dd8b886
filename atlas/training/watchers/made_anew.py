"""Whether a run that starts again from what is saved would go on as this one does.

After one step: the state before it is taken up by a model and an optimiser that are made anew, with other random
numbers. With the gradients of the step they must take the same step, and the same text must give the same outputs: a
part that no checkpoint holds shows, whatever it is. Loss and gradients of the step are computed again as well
(`plain_step.py`). Nothing of the run is changed.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from atlas.checkpoint.snapshot import snapshot
from atlas.data.batch import Batch
from atlas.models.language_model import AtlasModel
from atlas.training.evaluating import evaluating
from atlas.training.optimizer import ScheduledOptimizer
from atlas.training.rng import rng_kept, seed_rng
from atlas.training.state import TrainState
from atlas.training.step import TrainStep
from atlas.training.step_result import StepResult
from atlas.training.update_ratio import part_of
from atlas.training.watchers.observations import Recomputed, Unsaved
from atlas.training.watchers.plain_step import can_be_recomputed, recomputed

Fresh = Callable[[], tuple[AtlasModel, ScheduledOptimizer]]  # as at the start of a run, on its device

LARGEST = 2**28  # parameters of a model that is made a second time
SEEDS = (1_000_003, 1_000_033)  # of random numbers that no start has
SURE = 0.01  # what draws numbers differs by more, from one time to the next


def can_be_made_twice(state: TrainState) -> bool:
    return state.slices is None and sum(one.numel() for one in state.model.parameters()) <= LARGEST


def saved(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds of model and optimiser, copied."""
    return snapshot({"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()})


def made_anew(
    state: TrainState, before: dict[str, Any], fresh: Fresh, step: TrainStep, batch: Batch, result: StepResult
) -> tuple[Unsaved, Recomputed | None]:
    """After `step` has trained on `batch` and watched its gradients. `before`: `saved` before it.

    Where the answer is not sure it is 0, or None: an optimiser that draws numbers takes another step each time, a model
    that does has other outputs. Raises what a part of the user's raises that cannot be made twice.
    """
    row = batch.inputs[:1, : state.model.tokens_at_once].to(step.device)
    with _other_random_numbers(SEEDS[0]):
        model, optimizer = _started(state, before, fresh)
        sure = can_be_recomputed(model, batch, step) and not _differ(model, model, row, step)
        plain = recomputed(model, batch, state.step, step, result) if sure else None
        _step(model, optimizer, state.step, step.gradients)
    gaps = _gaps(before["model"], state.model, model)
    part = max(gaps, key=gaps.__getitem__, default="")
    update = gaps.get(part, 0.0)
    if update > SURE:
        with _other_random_numbers(SEEDS[1]):
            again, optimizer = _started(state, before, fresh)
            _step(again, optimizer, state.step, step.gradients)
        update *= _gaps(before["model"], model, again).get(part, 0.0) <= SURE
    model.load_state_dict(state.model.state_dict())
    with evaluating(state.model), evaluating(model), _other_random_numbers(SEEDS[0]):
        noisy = _differ(state.model, state.model, row, step) > SURE
        outputs = 0.0 if noisy else _differ(state.model, model, row, step)
    return Unsaved(update, part, outputs), plain


def _started(state: TrainState, before: dict[str, Any], fresh: Fresh) -> tuple[AtlasModel, ScheduledOptimizer]:
    """Made anew, with the saved state."""
    model, optimizer = fresh()
    model.load_state_dict(before["model"])
    model.plan = state.model.plan
    optimizer.load_state_dict(snapshot(before["optimizer"]))  # PyTorch keeps the tensors that it is given
    optimizer.burst = state.optimizer.burst
    return model, optimizer


def _step(model: AtlasModel, optimizer: ScheduledOptimizer, number: int, gradients: Mapping[str, Tensor]) -> None:
    optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else None
    optimizer.step(number)


@torch.no_grad()
def _differ(one: AtlasModel, other: AtlasModel, row: Tensor, step: TrainStep) -> float:
    """Largest difference of their outputs, in root mean squares of these."""
    with step.autocast():
        first, second = (model.read(row).hidden.float() for model in (one, other))
    return ((first - second).abs().max() / first.square().mean().sqrt()).item()


@torch.no_grad()
def _gaps(before: Mapping[str, Tensor], one: AtlasModel, other: AtlasModel) -> dict[str, float]:
    """By part: the norm of the difference between two models, over that of the step of the first."""
    sums: dict[str, list[Tensor]] = {}
    for (name, here), there in zip(one.named_parameters(), other.parameters(), strict=True):
        old = before[name].to(here.device)
        pair = torch.stack(((here - there).double().square().sum(), (here - old).double().square().sum()))
        sums.setdefault(part_of(name), []).append(pair)
    totals = torch.stack([torch.stack(pairs).sum(0) for pairs in sums.values()]).tolist()  # one wait
    return {part: sqrt(gap / moved) for part, (gap, moved) in zip(sums, totals, strict=True) if moved > 0}


@contextmanager
def _other_random_numbers(seed: int) -> Iterator[None]:
    with rng_kept():
        seed_rng(seed)
        yield
