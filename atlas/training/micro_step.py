"""The forward pass of a micro-batch, up to its share of the batch's loss.

Legend: B sequences, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from atlas.data.batch import Batch, Totals
from atlas.models.language_model import AtlasModel, ModelState
from atlas.training.losses import LanguageLoss, gate_polarisation, mean_losses, row_losses


class Outputs(NamedTuple):
    """What the model gives for a micro-batch."""

    losses: Tensor  # [B, T] nats
    gates: list[Tensor]  # [B, T, D] per layer with a gate
    carried: list[ModelState]  # the states after it


class Part(NamedTuple):
    """What a micro-batch adds to the numbers of the step, detached."""

    numbers: Tensor  # float64 [4]: its shares of the batch's loss, text loss and recall loss; polarisation
    rows: Tensor  # [B] see `row_losses`
    gates: list[Tensor]  # [B, T, D] per layer with a gate
    carried: Sequence[ModelState] = ()  # of a step without a graph


class MicroStep(nn.Module):
    """The forward pass up to the loss as a module, since DDP wraps a module. `awaited`: other ranks wait for a gradient
    of every parameter."""

    def __init__(self, model: AtlasModel, forward: Callable[..., Outputs], *, awaited: bool) -> None:
        super().__init__()
        self.model, self._forward, self._awaited = model, forward, awaited

    def forward(
        self,
        micro: Batch,
        on_cpu: Batch,
        before: Sequence[ModelState | None],
        whole: Totals,
        weight: float,
        micro_batches: int,
    ) -> tuple[Tensor, Part]:
        """The loss to propagate backwards, and what the step keeps. The loss is this micro-batch's share of the batch's
        loss plus the polarisation of its gates.

        `on_cpu`: `micro` on the CPU. `weight`: of the polarisation, a mean over `micro_batches`.
        """
        losses, gates, carried = self._forward(self.model, micro.inputs, micro.targets, before, on_cpu.weights)
        shares = share_of_batch(mean_losses(losses, micro), on_cpu, whole)
        loss, penalty = shares.total, torch.zeros_like(shares.total)
        if gates and weight:
            penalty = weight * gate_polarisation(gates) / micro_batches
            loss = loss + penalty
        if not (shares.total if self._awaited else loss).requires_grad:  # no target of the batch counts
            loss = loss + 0 * losses.sum()
        numbers = torch.stack([number.detach().double() for number in (*shares, penalty)])
        rows = row_losses(losses.detach(), micro.weights)
        return loss, Part(numbers, rows, [gate.detach() for gate in gates], carried)


def share_of_batch(loss: LanguageLoss, micro: Batch, whole: Totals) -> LanguageLoss:
    """What a micro-batch adds to the losses of a batch with totals `whole`: these shares sum to the loss of the batch.

    `micro` is on the CPU. A target counts by its weight among all targets of its kind in the batch. A kind of row that
    the micro-batch lacks adds 0.
    """
    nothing = torch.zeros_like(loss.total)

    def part(mean: Tensor, rows: Tensor, weight: float) -> Tensor:
        counts = rows.any() and weight != 0  # NaN counts: the step must see that its loss is not finite
        return mean * (micro.weights[rows].sum() / weight) if counts else nothing

    text = part(loss.text, ~micro.recall, whole.text_weight)
    recall = part(loss.recall, micro.recall, whole.recall_weight)
    share = whole.recall / whole.rows
    return LanguageLoss((1 - share) * text + share * recall, text, recall)
