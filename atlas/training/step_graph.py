"""Forward pass, backward pass and clipping of a step on fixed memory, and recorded as one CUDA graph.

A step of a small model launches its kernels more slowly than the device runs them. A graph launches all of them at
once. It repeats what was recorded, with the same memory and the same numbers of Python. So all that changes from step
to step is written into tensors before: tokens, targets, weights, the share of each row in the loss, and the weight of
the polarisation. Positions do not change: every row starts a sequence.

A graph that is wrong would be silent. So its first steps are also run without it, and the two must agree; else it is
given up with a warning. Hooks do not run in a graph: a step that needs them runs the same work without it.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from atlas.data.batch import Batch, Totals, sizes_of_parts
from atlas.kernels import gpu
from atlas.kernels.gpu import Capture
from atlas.models.language_model import AtlasModel
from atlas.training.losses import gate_polarisation, row_losses
from atlas.training.micro_step import Outputs, Part

WARM_UPS = 2  # steps without a graph before it is recorded
CHECKED = 2  # steps that also run without it: the batch that it was recorded with, and another one
CLOSE = 1e-3  # relative difference of losses and gradient norm that is rounding


class Done(NamedTuple):
    """Forward and backward passes of a step: the gradients are in the parameters, clipped."""

    parts: list[Part]
    norm: Tensor  # of the gradient before clipping


class FixedInputs(NamedTuple):
    """The tensors that a step reads, always at the same addresses."""

    inputs: Tensor  # [B, T] int64
    targets: Tensor  # [B, T] int64
    weights: Tensor  # [B, T]
    shares: Tensor  # [3, B] of a row's weighted losses in the loss of the batch, in text and in recall
    polarisation: Tensor  # []

    def split(self, parts: int) -> Iterator[FixedInputs]:
        """Into the micro-batches of `Batch.split`."""
        sizes = sizes_of_parts(len(self.inputs), parts)
        columns = (part.split(sizes) for part in self[:3])
        for inputs, targets, weights, shares in zip(*columns, self.shares.split(sizes, dim=1), strict=True):
            yield FixedInputs(inputs, targets, weights, shares, self.polarisation)


def fixed_inputs(batch: Batch, whole: Totals, polarisation: float) -> FixedInputs:
    """What a step reads of a batch on the CPU, a part of one with totals `whole`; its shares are those of
    `share_of_batch`."""
    text, recall = (1 / weight if weight else 0.0 for weight in (whole.text_weight, whole.recall_weight))
    of_text, of_recall = ~batch.recall * text, batch.recall * recall
    share = whole.recall / whole.rows
    shares = torch.stack([(1 - share) * of_text + share * of_recall, of_text, of_recall])
    return FixedInputs(batch.inputs, batch.targets, batch.weights, shares.float(), torch.tensor(polarisation))


class Recording(NamedTuple):
    """A recorded step."""

    done: Done  # its tensors, which a replay writes over
    replay: Callable[[], None]
    gradients: list[Tensor | None]  # of the parameters, which a replay writes over
    addresses: list[int]  # of the parameters, which it reads


class StepGraph:
    """`run(...)` does the work of a step; the gradients are then in the parameters."""

    def __init__(
        self,
        model: AtlasModel,
        forward: Callable[[AtlasModel, Tensor, Tensor, Sequence[None]], Outputs],
        clip: Callable[[nn.Module], Tensor],
        micro_batches: int,
        device: torch.device,
        capture: Capture,
    ) -> None:
        """`forward`: of model, inputs, targets and no states of a micro-batch. `clip`: returns the norm before."""
        self.model, self.micro_batches, self.device = model, micro_batches, device
        self._forward, self._clip, self._capture = forward, clip, capture
        self._parameters = list(model.parameters())
        self._fixed: FixedInputs | None = None
        self._steps = 0  # run on this memory
        self._recorded: Recording | None = None

    def run(self, given: FixedInputs, *, hooked: bool) -> Done:
        """`given` lies on the CPU. `hooked`: hooks of the model must run, so the graph does not."""
        self._take(given)
        self._steps += 1
        if hooked or gpu.graphless() or self._steps <= WARM_UPS:
            return self._one_by_one()
        if self._recorded is None or self._recorded.addresses != self._addresses():
            self._record()
            if self._recorded is None:
                return self._work()
        wanted = None
        if self._steps <= WARM_UPS + CHECKED:
            done = self._one_by_one()
            if self._recorded is None:  # given up
                return done
            wanted = _numbers(done)
        done = self._recorded.done
        self._recorded.replay()
        for parameter, gradient in zip(self._parameters, self._recorded.gradients, strict=True):
            parameter.grad = gradient
        if wanted is None or _agree(_numbers(done), wanted):
            return done
        self._recorded = None
        found = f"it gives {_numbers(done).tolist()}, the step without it {wanted.tolist()}"
        gpu.give_up_graph("a step", RuntimeError(found))
        return self._work()

    def _one_by_one(self) -> Done:
        """The work without the graph. The graph keeps the memory of a whole step: without room beside it, it is given
        up."""
        try:
            return self._work()
        except torch.OutOfMemoryError as error:
            if self._recorded is None:
                raise
            self._recorded = None
            gpu.give_up_graph("a step", error)
        return self._work()

    def _take(self, given: FixedInputs) -> None:
        """Copy what a step reads to where its work reads it; memory of another shape begins anew."""
        if self._fixed is None or [part.shape for part in self._fixed] != [part.shape for part in given]:
            self._fixed = FixedInputs(*(torch.empty_like(part, device=self.device) for part in given))
            self._steps, self._recorded = 0, None
        for part, values in zip(self._fixed, given, strict=True):
            on_host = values.pin_memory() if part.is_cuda and not values.is_pinned() else values
            part.copy_(on_host, non_blocking=True)

    def _record(self) -> None:
        try:
            done, replay = self._capture(self._work)
        except Exception as error:  # of the device, of many types
            self._recorded = None
            gpu.give_up_graph("a step", error)
            return
        self._recorded = Recording(done, replay, [one.grad for one in self._parameters], self._addresses())

    def _work(self) -> Done:
        assert self._fixed is not None
        for parameter in self._parameters:
            parameter.grad = None
        parts: list[Part] = []
        for micro in self._fixed.split(self.micro_batches):
            losses, gates, _ = self._forward(self.model, micro.inputs, micro.targets, [None] * len(micro.inputs))
            sums = (micro.shares.unsqueeze(2) * (losses * micro.weights)).sum((1, 2))
            penalty = micro.polarisation * gate_polarisation(gates) if gates else torch.zeros_like(micro.polarisation)
            (sums[0] + penalty).backward()
            numbers = torch.cat((sums, penalty.unsqueeze(0))).detach().double()
            rows = row_losses(losses.detach(), micro.weights)
            parts.append(Part(numbers, rows, [gate.detach() for gate in gates]))
        return Done(parts, self._clip(self.model))

    def _addresses(self) -> list[int]:
        return [parameter.data_ptr() for parameter in self._parameters]


def _numbers(done: Done) -> Tensor:
    """Loss, text, recall, polarisation and gradient norm: read at once, before a replay writes over them."""
    sums = torch.stack([part.numbers for part in done.parts]).sum(0)
    return torch.cat((sums, done.norm.double().unsqueeze(0))).cpu()


def _agree(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found, wanted, rtol=CLOSE, atol=1e-6, equal_nan=True)
