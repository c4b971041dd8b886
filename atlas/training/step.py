"""One optimiser step: forward, backward, clip, update; nothing is updated with a loss or gradient that is not finite.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from math import exp, isfinite, nan
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
    recall: float  # nats per answer byte; NaN in a batch without answers
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
        parts: list[LanguageLoss] = []
        gates: list[Tensor] = []
        carried: list[ModelState] = []
        polarisation = 0.0
        batch = batch.to(self.device)
        for index, micro in enumerate(batch.split(self.config.accumulate)):
            output, loss = self._forward(state, index, micro)
            part = share_of_batch(loss, micro, batch)
            total = part.total
            if output.gates and weight:
                penalty = weight * gate_polarisation(output.gates) / self.config.accumulate
                total = total + penalty
                polarisation += penalty.item()
            total.backward()
            parts.append(LanguageLoss(*(number.detach() for number in part)))
            gates += [gate.detach() for gate in output.gates]
            carried.append(output.state.detach())
        loss, text, recall = (sum(numbers).item() for numbers in zip(*parts, strict=True))
        norm = self._gradient_norm(state.model)
        finite = isfinite(loss) and isfinite(norm)
        lr = state.optimizer.step(step) if finite else state.optimizer.lr_at(step)
        if finite:
            state.step, state.tokens = step, state.tokens + batch.inputs.numel()
            state.carried = carried if self.config.carry_memory else []
        text, recall = (text if not batch.recall.all() else nan), (recall if batch.answers else nan)
        return StepResult(loss, text, recall, norm, polarisation, lr, finite, tuple(gates))

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


def share_of_batch(loss: LanguageLoss, micro: Batch, batch: Batch) -> LanguageLoss:
    """What a micro-batch adds to the losses of its batch: the sum over micro-batches is the loss of the whole.

    Each target counts by its weight among all of its kind in the batch. 0 for a kind of row that `micro` does not have.
    """
    nothing = torch.zeros_like(loss.total)

    def part(mean: Tensor, rows: Tensor, all_rows: Tensor) -> Tensor:
        whole = batch.weights[all_rows].sum()
        counts = rows.any() and whole != 0  # NaN counts: the step must see that its loss is not finite
        return mean * (micro.weights[rows].sum() / whole) if counts else nothing

    text = part(loss.text, ~micro.recall, ~batch.recall)
    recall = part(loss.recall, micro.recall, batch.recall)
    share = batch.recall.float().mean()
    return LanguageLoss((1 - share) * text + share * recall, text, recall)


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
