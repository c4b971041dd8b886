"""One optimiser step: forward, backward, clip, update. A loss or gradient that is not finite updates nothing.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from math import isfinite, lcm, nan
from typing import Any

import torch
from torch import Tensor, nn

from atlas.config import Fusion, TrainConfig
from atlas.data.batch import Batch, Totals
from atlas.kernels.gpu import Capture
from atlas.models.language_model import AtlasModel, ModelState
from atlas.ops.own_precision import products_in
from atlas.parallel.ranks import ALONE, Ranks
from atlas.training.carried_rows import join, restart_rows, run_rows
from atlas.training.compiled import CompiledBlocks
from atlas.training.gate_monitor import GateStatistics, gate_numbers
from atlas.training.losses import polarisation_weight
from atlas.training.micro_step import MicroStep, Outputs, Part
from atlas.training.regions import region
from atlas.training.state import TrainState
from atlas.training.step_graph import Done, StepGraph, fixed_inputs
from atlas.training.step_result import StepResult


class TrainStep:
    """`step(state, batch)` updates the state's model, optimiser, carried memory and counters.

    With several ranks `batch` holds the `rows` of this one, and what the step changes is the same on all of them.
    """

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        precision: torch.dtype,
        ranks: Ranks = ALONE,
        *,
        compiled: bool = False,
        capture: Capture | None = None,
        context: int = 1,
    ) -> None:
        """`compiled`: the blocks by `torch.compile`. `capture` records the work as a graph, see `StepGraph`.
        `context`: ranks that share a sequence.
        """
        self.config, self.device, self.precision, self.ranks = config, device, precision, ranks
        self.gradients: dict[str, Tensor] = {}  # copies of those that the optimiser was given, clipped
        self.kept_gradients = False  # whether `zero_grad` has left some
        self.clip = config.gradient_clip  # Stage 2 changes it
        self._replica: tuple[AtlasModel, nn.Module] | None = None
        self._compiles, self._capture, self._hooked = compiled, capture, False
        self._compiled: tuple[AtlasModel, CompiledBlocks] | None = None
        self._graph: tuple[AtlasModel, StepGraph] | None = None
        self.relay, self.groups = ranks.relay(context), ranks.world // context  # of ranks with the same rows
        own, group = config.batch_size // self.groups, ranks.rank // context
        self.rows = range(group * own, (group + 1) * own) if self.groups > 1 else None  # None: all
        of_rank = lcm(config.accumulate, self.groups) // self.groups
        self._micro_batches = of_rank * ranks.world  # of the whole batch; each part of a sequence is in another one

    def __call__(
        self, state: TrainState, batch: Batch, *, hooked: bool = False, copy_gradients: bool = False
    ) -> StepResult:
        """`hooked`: hooks of the model must run, so nothing compiled or recorded does. `copy_gradients`: fill the
        attributes `gradients` and `kept_gradients`."""
        number = state.step + 1
        self._hooked = hooked
        state.optimizer.zero_grad()
        self.kept_gradients = copy_gradients and any_gradient(state.model)
        if self.relay is not None:
            batch = batch.sequence_part(self.relay.part, self.relay.parts)
        totals = Totals.sum(self.ranks.gather(batch.totals()))
        weight = polarisation_weight(number, self.config.steps, self.config.gate)
        parts, norm = self._forward_backward(state, batch, totals, weight)
        result = self._result(state.model, parts, norm, totals, state.optimizer.lr_at(number))
        self.gradients = copied_gradients(state.model, self.ranks) if copy_gradients else {}
        if result.finite:
            with region("optimizer"), self.ranks.losing():  # Muon gathers its matrices from their slices
                state.optimizer.step(number)
            state.step, state.tokens = number, state.tokens + totals.tokens
            carries = self.config.carry_memory
            state.carried = [carried for part in parts for carried in part.carried] if carries else []
        return result

    def _forward_backward(self, state: TrainState, batch: Batch, totals: Totals, weight: float) -> Done:
        """Forward and backward pass of every micro-batch, then clipping."""
        if self._capture is not None:
            given = fixed_inputs(batch, totals, weight / self._micro_batches)
            return self._graph_of(state.model, self._capture).run(given, hooked=self._hooked)
        micros = self._micros(state, batch, totals, weight)
        forward, parts = self._replicated(state.model, micros[0]), list[Part]()
        for arguments in micros:
            with self.ranks.losing(), nullcontext() if arguments is micros[-1] else self.ranks.apart(forward):
                with region("forward"):
                    loss, part = forward(*arguments)
                with region("backward"):
                    loss.backward()
            parts.append(part)
        with region("optimizer"):
            return Done(parts, self._clip_gradients(state.model))

    def _micros(self, state: TrainState, batch: Batch, totals: Totals, weight: float) -> list[tuple[Any, ...]]:
        """What `MicroStep.forward` takes, for each micro-batch of this rank."""
        before, count = iter(restart_rows(state.carried, batch.fresh)), self._micro_batches // self.ranks.world
        # What depends on the batch alone is read from `batch`, on the CPU: reading the device would wait for it.
        return [
            (micro, on_cpu, list(islice(before, len(micro.inputs))), totals, weight, self._micro_batches)
            for micro, on_cpu in zip(batch.to(self.device).split(count), batch.split(count), strict=True)
        ]

    def _result(self, model: AtlasModel, parts: Sequence[Part], norm: Tensor, totals: Totals, lr: float) -> StepResult:
        """The numbers of the step, the same on all ranks. The device is waited for once."""
        every = self.ranks.gather_rows(torch.stack([part.numbers for part in parts]))
        gates = [gate for part in parts for gate in part.gates]
        began = time.perf_counter()
        of_gates = gate_numbers(gates) if gates else every.new_empty(0)
        gate_seconds = time.perf_counter() - began
        found = to_host(
            sums=torch.stack([sum(column) for column in every[:, :3].float().T]),
            norms=torch.stack((norm, self._weight_norm(model))),
            rows=torch.cat([part.rows for part in parts]),
            gates=of_gates,
            polarisation=every[:, 3],
        )
        (loss, text, recall), (gradient_norm, weight_norm) = found["sums"], found["norms"]
        return StepResult(
            loss=loss,
            text=text if totals.recall < totals.rows else nan,
            recall=recall if totals.recall_weight > 0 else nan,  # a short sequence may have no room for a question
            gradient_norm=gradient_norm,
            polarisation=sum(found["polarisation"]),
            lr=lr,
            finite=isfinite(loss) and isfinite(gradient_norm),
            gates=GateStatistics(*found["gates"]) if gates else None,
            gate_seconds=gate_seconds,
            weight_norm=weight_norm,
            tokens=totals.tokens,
            rows=found["rows"],
        )

    @property
    def records(self) -> bool:
        """Whether steps are recorded as a graph."""
        return self._capture is not None

    def _graph_of(self, model: AtlasModel, capture: Capture) -> StepGraph:
        if self._graph is None or self._graph[0] is not model:
            made = StepGraph(model, self._outputs, self._clip_gradients, self._micro_batches, self.device, capture)
            self._graph = model, made
        return self._graph[1]

    def _outputs(
        self,
        model: AtlasModel,
        inputs: Tensor,
        targets: Tensor,
        before: Sequence[ModelState | None],
        weights: Tensor | None = None,
    ) -> Outputs:
        """The forward pass of a micro-batch. `weights`: see `AtlasModel.losses`; a recorded step passes none, since
        which of them are 0 changes from batch to batch."""
        with self.autocast(), self._compiled_blocks(model):
            outputs = run_rows(partial(model.read, relay=self.relay), inputs, before)
            rows = [len(output.hidden) for output in outputs]
            counted = [None] * len(rows) if weights is None else weights.split(rows)
            pieces = zip(outputs, targets.split(rows), counted, strict=True)
            losses = join([model.losses(output.hidden, wanted, some) for output, wanted, some in pieces])
        gates = [join(layer) for layer in zip(*(output.gates for output in outputs), strict=True)]
        return Outputs(losses, gates, [output.state.detach() for output in outputs])

    def _compiled_blocks(self, model: AtlasModel) -> AbstractContextManager[None]:
        """Inside, the model runs its compiled blocks, where they are wanted and no hook must run."""
        if not self._compiles or self._hooked:
            return nullcontext()
        if self._compiled is None or self._compiled[0] is not model:
            self._compiled = model, CompiledBlocks(model)
        return self._compiled[1]()

    def _replicated(self, model: AtlasModel, micro: tuple[Any, ...]) -> nn.Module:
        """A `MicroStep` whose backward pass leaves gradients summed over all ranks. `micro`: any one of `_micros`."""
        if self._replica is None or self._replica[0] is not model:
            # Rows that go on with a memory do not use W_init; a block without a gate does not use its sharpness.
            gates = [block.gate for block in model.mag_blocks if block.gate is not None]
            some_unused = self.config.carry_memory or any(gate.fusion is Fusion.additive for gate in gates)
            micro_step = MicroStep(model, self._outputs, awaited=self.ranks.world > 1)
            forward = self.ranks.replicate(micro_step, self.device, some_unused=some_unused)
            self._replica = model, forward
            if self.ranks.reorders:
                # DDP reorders the gradients after its first backward pass, and a sum of three is rounded by its place:
                # without this pass, a run that goes on would not be bitwise the run that never stopped.
                with self.ranks.losing():
                    loss, _ = forward(*micro)
                    loss.backward()
                model.zero_grad()
        return self._replica[1]

    def autocast(self) -> torch.autocast:
        return products_in(self.precision, self.device)

    def _clip_gradients(self, model: nn.Module) -> Tensor:
        """Clip them in place; returns their global norm before."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = self.ranks.whole(torch.nn.utils.get_total_norm(gradients))
        limit = self.clip or float("inf")
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), limit, norm)
        return norm

    @torch.no_grad()
    def _weight_norm(self, model: nn.Module) -> Tensor:
        with self.ranks.losing():
            return self.ranks.whole(torch.nn.utils.get_total_norm(list(model.parameters())))


def any_gradient(model: nn.Module) -> bool:
    """Whether an element of a gradient is not 0."""
    return any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())


def copied_gradients(model: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """By the name of the parameter; of slices those of this rank."""
    named = ((name, parameter.grad) for name, parameter in model.named_parameters())
    return {name: ranks.own(gradient).clone() for name, gradient in named if gradient is not None}


def to_host(**numbers: Tensor) -> dict[str, list[float]]:
    """Numbers [n] from the device, by name; in one transfer, since each waits for the device."""
    found = iter(torch.cat([part.float() for part in numbers.values()]).tolist())
    return {name: list(islice(found, len(part))) for name, part in numbers.items()}
