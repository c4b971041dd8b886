"""One optimiser step: forward, backward, clip, update. A loss or gradient that is not finite updates nothing.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby, islice
from math import exp, isfinite, nan
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from atlas.config import TrainConfig
from atlas.data.batch import Batch, Totals
from atlas.models.language_model import ModelState
from atlas.training.losses import LanguageLoss, gate_polarisation, mean_losses, polarisation_weight
from atlas.training.state import TrainState
from atlas.training.watch.gate_monitor import GateStatistics

Output = TypeVar("Output")
PERPLEXITY_CAP = 80.0  # nats; exp of more than about 88 is infinite in float32


class StepResult(NamedTuple):
    loss: float  # nats: text and recall by their shares of the rows, without polarisation
    text: float  # nats per byte; NaN in a batch without text
    recall: float  # nats per answer byte; NaN in a batch without answers
    gradient_norm: float  # before clipping
    polarisation: float
    lr: float
    finite: bool  # of loss and gradient; False: the weights are unchanged
    gates: tuple[Tensor, ...]  # [B / accumulate, T, D] of every layer and micro-batch

    @property
    def perplexity(self) -> float:
        """Of text; of recall in a batch without text."""
        return perplexity(self.recall if self.text != self.text else self.text)


def perplexity(nats: float) -> float:
    """exp(nats), capped; NaN stays NaN."""
    return exp(min(nats, PERPLEXITY_CAP)) if nats == nats else nats


def step_metrics(state: TrainState, result: StepResult, gates: GateStatistics | None) -> dict[str, float | int | None]:
    """The row of a step in metrics.jsonl; None for a value that is missing or not finite."""
    gates = gates or GateStatistics(float("nan"), float("nan"), float("nan"))
    metrics = {
        "segment": state.segment,
        "tokens": state.tokens,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "ppl_delta": state.history.delta,
        "lr": result.lr,
        "grad_norm": result.gradient_norm,
        "gate/mean": gates.mean,
        "gate/std": gates.std,
        "gate/polarised": gates.polarised,
        "loss/text": result.text,
        "loss/recall": result.recall,
        "loss/polarisation": result.polarisation,
    }
    return {key: value if value is None or isfinite(value) else None for key, value in metrics.items()}


class TrainStep:
    """`step(state, batch)` updates the state's model, optimiser, carried memory and counters."""

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
        totals = batch.totals()
        batch = batch.to(self.device)
        before = iter(restart_rows(state.carried, batch.fresh))
        for micro in batch.split(self.config.accumulate):
            with self.autocast():
                outputs = run_rows(state.model.read, micro.inputs, list(islice(before, len(micro.inputs))))
                targets = micro.targets.split([len(output.hidden) for output in outputs])
                read = zip(outputs, targets, strict=True)
                losses = join([state.model.losses(output.hidden, wanted) for output, wanted in read])
            micro_gates = [join(layer) for layer in zip(*(output.gates for output in outputs), strict=True)]
            part = share_of_batch(mean_losses(losses, micro), micro, totals)
            total = part.total
            if micro_gates and weight:
                penalty = weight * gate_polarisation(micro_gates) / self.config.accumulate
                total = total + penalty
                polarisation += penalty.item()
            total.backward()
            parts.append(LanguageLoss(*(number.detach() for number in part)))
            gates += [gate.detach() for gate in micro_gates]
            carried += [output.state.detach() for output in outputs]
        loss, text, recall = (sum(numbers).item() for numbers in zip(*parts, strict=True))
        norm = self._gradient_norm(state.model)
        finite = isfinite(loss) and isfinite(norm)
        lr = state.optimizer.step(step) if finite else state.optimizer.lr_at(step)
        if finite:
            state.step, state.tokens = step, state.tokens + batch.inputs.numel()
            state.carried = carried if self.config.carry_memory else []
        text = text if totals.recall < totals.rows else nan
        recall = recall if totals.recall_weight > 0 else nan  # a short sequence may have no room for a question
        return StepResult(loss, text, recall, norm, polarisation, lr, finite, tuple(gates))

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not torch.float32)

    def _gradient_norm(self, model: nn.Module) -> float:
        """Global norm before clipping; clips in place."""
        limit = self.config.gradient_clip or float("inf")
        return torch.nn.utils.clip_grad_norm_(model.parameters(), limit).item()


def share_of_batch(loss: LanguageLoss, micro: Batch, whole: Totals) -> LanguageLoss:
    """The part of the losses of a batch with totals `whole` that comes from a micro-batch; their sum is the loss of the
    whole batch.

    A target counts by its weight among all targets of its kind in the batch. 0 for a kind of row that `micro` lacks.
    """
    nothing = torch.zeros_like(loss.total)

    def part(mean: Tensor, rows: Tensor, weight: float) -> Tensor:
        counts = rows.any() and weight != 0  # NaN counts: the step must see that its loss is not finite
        return mean * (micro.weights[rows].sum() / weight) if counts else nothing

    text = part(loss.text, ~micro.recall, whole.text_weight)
    recall = part(loss.recall, micro.recall, whole.recall_weight)
    share = whole.recall / whole.rows
    return LanguageLoss((1 - share) * text + share * recall, text, recall)


def restart_rows(carried: Sequence[ModelState], fresh: Tensor) -> list[ModelState | None]:
    """The state that each row continues from; None where `fresh` [B] is true, and for all rows if none is carried.

    `carried` holds the states of all rows in order, in batches of any size.
    """
    rows = [row for state in carried for row in state.split()]
    if not rows:
        return [None] * len(fresh)
    return [None if restarts else row for row, restarts in zip(rows, fresh.tolist(), strict=True)]


def run_rows(
    model: Callable[[Tensor, ModelState | None], Output], tokens: Tensor, before: Sequence[ModelState | None]
) -> list[Output]:
    """Run the model, or its `read`, on tokens [B, T] whose rows are at different positions -> outputs in row order.

    Neighbouring rows at the same position are run together. A row without a state is a new sequence.
    """
    outputs, first = [], 0
    for _, group in groupby(before, lambda state: state and state.counters):
        rows = list(group)
        states = [state for state in rows if state is not None]
        outputs.append(model(tokens[first : first + len(rows)], ModelState.join(states) if states else None))
        first += len(rows)
    return outputs


def join(rows: Sequence[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))
