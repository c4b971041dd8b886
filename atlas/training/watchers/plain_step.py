"""The loss of a step's batch and its gradients, by code that shares nothing with the step but the model.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch
from torch import Tensor

from atlas.data.batch import Batch
from atlas.models.language_model import AtlasModel
from atlas.training.losses import polarisation_weight
from atlas.training.step import TrainStep
from atlas.training.step_result import StepResult
from atlas.training.update_ratio import part_of
from atlas.training.watchers.observations import Recomputed

MOST_LOGITS = 2**25  # of a micro-batch: 128 MB in float32
LEAST = 1e-3  # of the norm of the gradient: of a part with less, rounding would decide


def can_be_recomputed(model: AtlasModel, batch: Batch, step: TrainStep) -> bool:
    """Alone, with rows that start anew, and where memory is free: a recorded graph keeps that of a whole pass."""
    alone = step.ranks.world == 1 and not step.config.carry_memory and not step.records
    return alone and batch.inputs.numel() * model.embedding.num_embeddings <= MOST_LOGITS * step.config.accumulate


def recomputed(model: AtlasModel, batch: Batch, number: int, step: TrainStep, result: StepResult) -> Recomputed:
    """`model` has the weights before the step `number`, which has taken `batch`, on the CPU."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    loss, gradients = 0.0, {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    with step.autocast(), torch.enable_grad():
        for share, penalty in _losses(model, batch, number, step):
            loss += share.item()
            found = torch.autograd.grad(share + penalty, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    gradients[name] += gradient
    sums: dict[str, Tensor] = {}  # by part: of products, and of squares of both
    for name, gradient in gradients.items():
        given = step.gradients.get(name, torch.zeros_like(gradient)).double()
        own = gradient.double()
        three = torch.stack(((given * own).sum(), given.square().sum(), own.square().sum()))
        sums[part_of(name)] = sums.get(part_of(name), 0) + three
    by_part = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))  # one wait
    norm = sqrt(sum(own for *_, own in by_part.values()))
    cosines = {
        part: product / sqrt(given * own) if given > 0 else 0.0
        for part, (product, given, own) in by_part.items()
        if sqrt(own) > LEAST * norm
    }
    part = min(cosines, key=cosines.__getitem__, default="")
    return Recomputed(result.loss, loss, cosines.get(part, 1.0), part, result.gradient_norm, norm)


def _losses(model: AtlasModel, batch: Batch, number: int, step: TrainStep) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each micro-batch: its share of the batch's loss, and the polarisation of the gates."""
    recall, weights = batch.recall, batch.weights.double()
    share = recall.double().mean().item()  # text and recall are means of their own, by their shares of the rows
    per_row = torch.zeros(len(recall), dtype=torch.float64)
    for rows, part in ((~recall, 1 - share), (recall, share)):
        if (total := weights[rows].sum().item()) > 0:
            per_row[rows] = part / total
    polarisation = polarisation_weight(number, step.config.steps, step.config.gate) / step.config.accumulate
    first = 0
    for micro in batch.split(step.config.accumulate):
        scale = per_row[first : first + len(micro.recall), None].to(step.device)
        first += len(micro.recall)
        here = micro.to(step.device)
        read = model.read(here.inputs)
        if type(model).losses is AtlasModel.losses:
            logits = torch.nn.functional.linear(read.hidden, model.embedding.weight).float()
            losses = logits.logsumexp(-1) - logits.gather(-1, here.targets.unsqueeze(-1)).squeeze(-1)
        else:  # of the user's own: what is smoothed, for example, is for the user to say
            losses = model.losses(read.hidden, here.targets)
        counted = (losses.double() * here.weights * scale).sum()
        polarised = [1 - (2 * gate.float() - 1).abs().mean() for gate in read.gates]
        yield counted, polarisation * sum(polarised, torch.zeros_like(counted)) / max(len(polarised), 1)
