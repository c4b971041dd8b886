"""Training losses: cross entropy of text and of recall answers, and gate polarisation.

Legend: B sequences, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atlas.config import GateConfig
from atlas.data.batch import Batch
from atlas.ops.first_order import first_order

PIECE = 32  # tokens


class LanguageLoss(NamedTuple):
    """Mean cross entropies in nats per weighted target; NaN if the batch has no row of the kind."""

    total: Tensor  # text and recall, weighted by their shares of the rows
    text: Tensor
    recall: Tensor


def mean_losses(losses: Tensor, batch: Batch) -> LanguageLoss:
    """Losses [B, T] of the targets -> mean losses.

    Text and recall are averaged separately: there are few answers and much text. A row without a weighted target, such
    as a recall sequence too short for a question, adds nothing.
    """
    weighted = losses * batch.weights
    share = batch.recall.float().mean().item()
    text, recall = (_mean(weighted, batch.weights, rows) for rows in (~batch.recall, batch.recall))
    if not batch.recall.any():
        return LanguageLoss(text, text, recall)
    if batch.recall.all():
        return LanguageLoss(recall, text, recall)
    return LanguageLoss((1 - share) * text + share * recall, text, recall)


def _mean(weighted: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
    """Weighted mean over the targets of `rows` [B]; NaN without rows, 0 if no target has weight."""
    total = rows_of(weights, rows).sum()
    return rows_of(weighted, rows).sum() / (total.clamp(min=torch.finfo(total.dtype).tiny) if rows.any() else total)


def row_losses(losses: Tensor, weights: Tensor) -> Tensor:
    """Losses and weights [B, T] -> weighted mean of each row [B]; 0 for a row without weight."""
    return (losses * weights).sum(1) / weights.sum(1).clamp(min=torch.finfo(weights.dtype).tiny)


def standard_error(values: Tensor, weights: Tensor) -> float:
    """Of the weighted mean of values [B, T], by pieces of PIECE tokens: neighbours are not independent. inf for one."""
    size = min(PIECE, values.shape[1])
    pieces = (values * weights)[:, : values.shape[1] // size * size].unflatten(1, (-1, size)).mean(2).flatten()
    if len(pieces) < 2:
        return inf
    return float(pieces.float().std() / (weights.mean() * len(pieces) ** 0.5))


def rows_of(values: Tensor, chosen: Tensor) -> Tensor:
    """The rows of `values` [B, T] where `chosen` [B], on the CPU, is true. A boolean index would wait for a GPU."""
    picked = [row for row, taken in zip(values.unbind(), chosen.tolist(), strict=True) if taken]
    return torch.stack(picked) if picked else values[:0]


def gate_polarisation(gates: Sequence[Tensor]) -> Tensor:
    """mean(1 - |2g - 1|) over all gates: 0 where every gate is 0 or 1, 1 where all are 1/2."""
    distances = [MeanDistance.apply(gate) for gate in gates]  # type: ignore[no-untyped-call]
    return 1 - 2 * torch.stack(distances).mean()


class MeanDistance(torch.autograd.Function):
    """mean(|g - 1/2|), with few passes over the gates."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor) -> Tensor:
        ctx.save_for_backward(gate)
        return (gate - 0.5).abs_().mean()

    @staticmethod
    @first_order
    def backward(ctx: Any, d_mean: Tensor) -> Tensor:
        (gate,) = ctx.saved_tensors
        d_gate: Tensor = (gate - 0.5).sign_().mul_(d_mean / gate.numel())
        return d_gate


def polarisation_weight(step: int, steps: int, gate: GateConfig) -> float:
    """Weight of the polarisation: the peak for `polarisation_hold` of the steps, then peak * decay ** progress."""
    progress = step / steps
    if progress <= gate.polarisation_hold:
        return gate.polarisation_peak
    return gate.polarisation_peak * float(gate.polarisation_decay**progress)
