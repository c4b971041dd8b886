"""One optimiser step: forward, backward, clip, update; nothing is updated with a loss or gradient that is not finite.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from atlas.config import TrainConfig
from atlas.data.batch import Batch
from atlas.models.language_model import AtlasModel, ModelOutput, ModelState
from atlas.training.losses import LanguageLoss, gate_polarisation, language_loss, polarisation_weight
from atlas.training.state import TrainState

PERPLEXITY_CAP = 80.0  # nats; exp of more than about 88 is infinite in float32


class StepResult(NamedTuple):
    loss: float  # nats: text and recall by their shares of the rows, without polarisation
    text: float  # nats per byte; NaN in a batch without text
    recall: float  # nats per answer byte; NaN in a batch without recall
    gradient_norm: float  # before clipping
    polarisation: float
    lr: float
    finite: bool  # False: the loss or the gradient was not, and the weights were left as they were
    gates: tuple[Tensor, ...]  # [B / accumulate, T, D] of every layer and micro-batch

    @property
    def perplexity(self) -> float:
        """Of text; of recall where there is no text."""
        return perplexity(self.recall if self.text != self.text else self.text)


def perplexity(nats: float) -> float:
    return exp(min(nats, PERPLEXITY_CAP)) if nats == nats else nats


class TrainStep:
    """Callable on (state, batch): updates the state's model, optimiser, carried memory and counters."""

    def __init__(self, config: TrainConfig, device: torch.device, precision: torch.dtype) -> None:
        self.config, self.device, self.precision = config, device, precision

    def __call__(self, state: TrainState, batch: Batch) -> StepResult:
        step = state.step + 1
        state.optimizer.zero_grad()
        weight = polarisation_weight(step, self.config.steps, self.config.gate)
        losses: list[LanguageLoss] = []
        gates: list[Tensor] = []
        carried: list[ModelState] = []
        polarisation = 0.0
        for index, micro in enumerate(batch.to(self.device).split(self.config.accumulate)):
            output, loss = self._forward(state, index, micro)
            total = loss.total
            if output.gates and weight:
                penalty = weight * gate_polarisation(output.gates)
                total = total + penalty
                polarisation += penalty.item() / self.config.accumulate
            (total / self.config.accumulate).backward()
            losses.append(LanguageLoss(*(part.detach() for part in loss)))
            gates += [gate.detach() for gate in output.gates]
            carried.append(output.state.detach())
        means = _means(losses, batch.recall)
        norm = self._gradient_norm(state.model)
        finite = _finite(losses) and norm == norm and norm != float("inf")
        lr = state.optimizer.step(step) if finite else state.optimizer.lr_at(step)
        if finite:
            state.step, state.tokens = step, state.tokens + batch.inputs.numel()
            state.carried = carried if self.config.carry_memory else []
        return StepResult(*means, norm, polarisation, lr, finite, tuple(gates))

    def _forward(self, state: TrainState, index: int, micro: Batch) -> tuple[ModelOutput, LanguageLoss]:
        before = None
        if state.carried:
            before = restart_rows(state.carried[index], micro.fresh, state.model)
        with self.autocast():
            output = state.model(micro.inputs, before)
        return output, language_loss(output.logits, micro)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not torch.float32)

    def _gradient_norm(self, model: nn.Module) -> float:
        """Global norm before clipping; clips in place."""
        limit = self.config.gradient_clip or float("inf")
        return torch.nn.utils.clip_grad_norm_(model.parameters(), limit).item()


def _means(losses: Sequence[LanguageLoss], recall: Tensor) -> tuple[float, float, float]:
    """The losses of the whole batch: a micro-batch counts by its rows of the kind. `recall` [B]."""
    total, text, answers = torch.stack([torch.stack(loss) for loss in losses], dim=1).cpu()
    answering = recall.cpu().view(len(losses), -1).float().mean(1)

    def mean(values: Tensor, share: Tensor) -> float:
        return ((values * share)[share > 0].sum() / share.sum()).item()

    return total.mean().item(), mean(text, 1 - answering), mean(answers, answering)


def _finite(losses: Sequence[LanguageLoss]) -> bool:
    return bool(torch.stack([loss.total for loss in losses]).isfinite().all())


def restart_rows(state: ModelState, fresh: Tensor, model: AtlasModel) -> ModelState:
    """`state` with the rows that `fresh` [B] names put back to the state before a sequence's first token."""
    if not fresh.any():
        return state
    initial = model.initial_state(fresh.shape[0])

    def choose(old: object, new: object) -> object:
        if not isinstance(old, Tensor) or not isinstance(new, Tensor):
            return old
        rows = fresh.repeat_interleave(old.shape[0] // fresh.shape[0])
        return torch.where(rows.view(-1, *[1] * (old.dim() - 1)), new.to(old.dtype), old)

    merged: ModelState = pytree.tree_map(choose, state, initial)
    return merged
