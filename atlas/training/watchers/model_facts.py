"""What a run finds out about its whole model: what outputs depend on, and whether the gradient is that of the loss.

From one row of text, at one step, when no weight is 0 any more.

Legend: B sequences, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from math import sqrt

import torch
from torch import Tensor, nn

from atlas.models.language_model import AtlasModel, ModelState
from atlas.training.update_ratio import part_of
from atlas.training.watchers.observations import ModelFacts
from atlas.training.watchers.reach import reach

CHANGE = 0.003  # of the loss, that a part's weights are moved for
REACH = 0.02  # of the norm of these weights, at most
NEARER = (512, 4096)  # a loss that bends under way is measured so much nearer, in float64
LEAST = 1e-4  # of the loss: of a part that changes it by less, rounding would decide
SINGLE = 4  # last tokens that are read one by one
SURE = 0.05  # so near 1 a slope is right, and so near each other two of them do not bend


def model_facts(model: AtlasModel, row: Tensor, target: Tensor) -> ModelFacts:
    """`row`, `target` [1, T]. In evaluation mode, without gradients; weights and buffers are the same afterwards.

    Raises what a model raises that cannot be read so.
    """
    size = max(model.tokens_at_once // 4, 1)
    row, target = row[:, :size], target[:, :size]
    with buffers_kept(model):
        rows, future = _seen_too_much(model, row)
        noise, modes = _noise(model, row, target)
        found = slopes(model, row, target)
        return ModelFacts(
            rows, future, noise, modes, _in_parts(model, row), found, reach(model, row), _head(model, row, target)
        )


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Readings in training mode may move buffers: the running statistics of a batch norm."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            if name in before:
                buffer.copy_(before[name])


def _seen_too_much(model: AtlasModel, row: Tensor) -> tuple[float, float]:
    """The row with other tokens beside it, and its first half with others in its second."""
    other, half = (row + 1) % model.embedding.num_embeddings, row.shape[1] // 2
    later = torch.cat((row[:, :half], other[:, half:]), dim=1)
    calm, changed = (_read(model, torch.cat(rows)) for rows in ([row] * 4, [other, row, other, later]))
    changes = _change(calm, changed)  # [4, T]
    return changes[1].max().item(), changes[3, :half].max().item() if half else 0.0


def _noise(model: AtlasModel, row: Tensor, target: Tensor) -> tuple[float, bool]:
    """Between two readings in evaluation mode; and whether training mode gives other outputs or losses."""
    first, second = _read(model, row), _read(model, row)
    loss = _loss(model, row, target)
    model.train()
    in_training, loss_in_training = _read(model, row), _loss(model, row, target)
    model.eval()
    modes = not (torch.equal(first, in_training) and torch.equal(loss, loss_in_training))
    return _change(first, second).max().item(), modes


def _head(model: AtlasModel, row: Tensor, target: Tensor) -> float:
    """Between the mean loss as the model computes it, and the cross entropy of what it gives to generation."""
    logits = model(row).logits.double()
    entropies = logits.logsumexp(-1) - logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    gap: float = (entropies.mean() - _loss(model, row, target)).abs().item()
    return gap


def _in_parts(model: AtlasModel, row: Tensor) -> float:
    """Between the row as a whole, and in parts as generation reads it: two, whose border is no border of a chunk, and
    the last tokens one by one."""
    tokens = row.shape[1]
    cut = tokens // 2 + 1
    if cut >= tokens:
        return 0.0
    singly = max(tokens - SINGLE, cut)
    state: ModelState | None = None
    parts: list[Tensor] = []
    for part in row.tensor_split([cut, *range(singly, tokens)], dim=1):
        if part.shape[1]:
            read = model.read(part, state)
            state = read.state
            parts.append(read.hidden)
    return _change(_read(model, row), torch.cat(parts, dim=1).float()).max().item()


def slopes(model: AtlasModel, row: Tensor, target: Tensor) -> dict[str, float]:
    """By part of the model: how the loss changes along the part's gradient, over the norm of it. 1 in a sound model.

    Central differences in float32, whatever training computes in. Parts without a gradient, or with one that cannot be
    measured, are left out.
    """
    with torch.autocast(row.device.type, enabled=False):
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        with torch.enable_grad():
            loss = _loss(model, row, target)
            found = torch.autograd.grad(loss, [model.get_parameter(name) for name in names], allow_unused=True)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, gradient in zip(names, found, strict=True):
            if gradient is not None:
                parts.setdefault(part_of(name), {})[name] = gradient
        measured = {part: _slope(model, row, target, gradients, loss.item()) for part, gradients in parts.items()}
    return {part: slope for part, slope in measured.items() if slope is not None}


def _slope(model: AtlasModel, row: Tensor, target: Tensor, gradients: dict[str, Tensor], loss: float) -> float | None:
    """None where it cannot be measured."""
    norm, size = _norm(gradients.values()), _norm(model.get_parameter(name) for name in gradients)
    reach = min(CHANGE * loss / norm, REACH * size) if norm else 0.0
    if reach * norm < LEAST * loss:
        return None
    slope = _difference(model, row, target, gradients, reach / norm) / norm**2
    if abs(slope - 1) <= SURE:
        return slope
    exact = deepcopy(model).double()
    exactly = {name: gradient.double() for name, gradient in gradients.items()}
    far, near = (_difference(exact, row, target, exactly, reach / finer / norm) / norm**2 for finer in NEARER)
    return near if abs(near - far) <= SURE else None


def _difference(model: AtlasModel, row: Tensor, target: Tensor, gradients: dict[str, Tensor], far: float) -> float:
    """Of the losses `far` gradients ahead and behind, per gradient."""
    before = {name: model.get_parameter(name).clone() for name in gradients}
    losses = []
    try:
        for sign in (1, -1):
            for name, gradient in gradients.items():
                model.get_parameter(name).copy_(before[name] + sign * far * gradient)
            losses.append(_loss(model, row, target).item())
    finally:
        for name, weight in before.items():
            model.get_parameter(name).copy_(weight)
    ahead, behind = losses
    return (ahead - behind) / (2 * far)


def _norm(tensors: Iterable[Tensor]) -> float:
    return sqrt(sum(one.double().square().sum().item() for one in tensors))


def _loss(model: AtlasModel, row: Tensor, target: Tensor) -> Tensor:
    return model.losses(model.read(row).hidden, target).double().mean()


def _read(model: AtlasModel, rows: Tensor) -> Tensor:
    """[B, T, D]"""
    return model.read(rows).hidden.float()


def _change(calm: Tensor, changed: Tensor) -> Tensor:
    """[B, T]: the largest of each token, in root mean squares of the outputs."""
    return (calm - changed).abs().amax(dim=-1) / calm.square().mean().sqrt()
