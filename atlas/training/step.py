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
from atlas.parallel.ranks import ALONE, Ranks
from atlas.training.carried_rows import join, restart_rows, run_rows
from atlas.training.compiled import CompiledBlocks
from atlas.training.losses import polarisation_weight
from atlas.training.memory_norms import blocks_of
from atlas.training.micro_step import Forward, Micro, MicroStep
from atlas.training.regions import region
from atlas.training.state import TrainState
from atlas.training.step_graph import Done, Part, StepGraph, fixed_inputs
from atlas.training.step_result import StepResult
from atlas.training.watch.gate_monitor import GateStatistics, gate_numbers


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
        self.watches_gradients = False  # whether the next call fills the two below
        self.kept_gradients = False  # whether `zero_grad` has left some
        self.gradients: dict[str, Tensor] = {}  # copies of those that the optimiser was given, clipped
        self.clip = config.gradient_clip  # Stage 2 changes it
        self._replica: tuple[AtlasModel, nn.Module] | None = None
        self._compiles, self._capture, self._watched = compiled, capture, False
        self._compiled: tuple[AtlasModel, CompiledBlocks] | None = None
        self._graph: tuple[AtlasModel, StepGraph] | None = None
        self.relay, self.groups = ranks.relay(context), ranks.world // context  # of ranks with the same rows
        own, group = config.batch_size // self.groups, ranks.rank // context
        self.rows = range(group * own, (group + 1) * own) if self.groups > 1 else None  # None: all

    def __call__(self, state: TrainState, batch: Batch, *, watched: bool = False) -> StepResult:
        """`watched`: hooks of the model look on."""
        number, tokens = state.step + 1, batch.inputs.numel() * self.groups
        self._watched = watched
        self._clear_gradients(state)
        if self.relay is not None:
            batch = batch.shard_part(self.relay.part, self.relay.parts)
        totals = Totals.sum(self.ranks.gather(batch.totals()))
        weight = polarisation_weight(number, self.config.steps, self.config.gate)
        parts, norm = self._propagate(state, batch, totals, weight)
        result = self._read(state.model, parts, norm, totals, state.optimizer.lr_at(number))
        self.gradients = copied_gradients(state.model, self.ranks) if self.watches_gradients else {}
        if result.finite:
            with region("optimizer"), self.ranks.losing():  # Muon gathers its matrices from their slices
                state.optimizer.step(number)
            state.step, state.tokens = number, state.tokens + tokens
            carries = self.config.carry_memory
            state.carried = [carried for part in parts for carried in part.carried] if carries else []
        return result

    def _clear_gradients(self, state: TrainState) -> None:
        state.optimizer.zero_grad()
        left = [p.grad for p in state.model.parameters() if self.watches_gradients and p.grad is not None]
        self.kept_gradients = any(bool(gradient.any()) for gradient in left)

    def _propagate(self, state: TrainState, batch: Batch, totals: Totals, weight: float) -> Done:
        """Forward and backward pass of every micro-batch; the gradients are clipped."""
        count = lcm(self.config.accumulate, self.groups) // self.groups
        micro_batches = count * self.ranks.world  # of the whole batch; each part of a sequence is in another one
        if self._capture is None:
            return self._run(state, batch, totals, weight, micro_batches)
        given = fixed_inputs(batch, totals, weight / micro_batches)
        return self._graph_of(state.model, micro_batches).run(given, watched=self._watched)

    def _read(self, model: AtlasModel, parts: Sequence[Part], norm: Tensor, totals: Totals, lr: float) -> StepResult:
        """The numbers of the step, which all ranks have: the device is waited for once."""
        every = self.ranks.gather_rows(torch.stack([part.numbers for part in parts]))
        gates = [gate for part in parts for gate in part.gates]
        began = time.perf_counter()
        of_gates = gate_numbers(gates).unbind() if gates else ()
        gate_seconds = time.perf_counter() - began
        sums = [sum(column) for column in every[:, :3].float().T]
        rows = torch.cat([part.rows for part in parts])
        loss, text, recall, gradient_norm, weight_norm, *others = read(
            *sums, norm, self._weight_norm(model), *rows, *of_gates, *every[:, 3]
        )
        of_rows, others = others[: len(rows)], others[len(rows) :]
        return StepResult(
            loss=loss,
            text=text if totals.recall < totals.rows else nan,
            recall=recall if totals.recall_weight > 0 else nan,  # a short sequence may have no room for a question
            gradient_norm=gradient_norm,
            polarisation=sum(others[len(of_gates) :]),
            lr=lr,
            finite=isfinite(loss) and isfinite(gradient_norm),
            gates=GateStatistics(*others[:3]) if gates else None,
            gate_seconds=gate_seconds,
            weight_norm=weight_norm,
            rows=of_rows,
        )

    def _run(self, state: TrainState, batch: Batch, totals: Totals, weight: float, micro_batches: int) -> Done:
        """The step without fixed memory."""
        before = iter(restart_rows(state.carried, batch.fresh))
        count = micro_batches // self.ranks.world
        # What depends on the batch alone is asked of `batch`, on the CPU: asking the device would wait for it.
        micros = [
            (micro, on_cpu, list(islice(before, len(micro.inputs))), totals, weight, micro_batches)
            for micro, on_cpu in zip(batch.to(self.device).split(count), batch.split(count), strict=True)
        ]
        forward, parts = self._forward(state.model, micros[0]), list[Part]()
        for micro in micros:
            with self.ranks.losing(), nullcontext() if micro is micros[-1] else self.ranks.apart(forward):
                with region("forward"):
                    part: Micro = forward(*micro)
                with region("backward"):
                    part.total.backward()
            parts.append(Part(*part[1:]))
        with region("optimizer"):
            return Done(parts, self._gradient_norm(state.model))

    @property
    def records(self) -> bool:
        """Whether steps are recorded as a graph."""
        return self._capture is not None

    def _graph_of(self, model: AtlasModel, micro_batches: int) -> StepGraph:
        if self._graph is None or self._graph[0] is not model:
            made = StepGraph(model, self._losses, self._gradient_norm, micro_batches, self.device, self._capture)
            self._graph = model, made
        return self._graph[1]

    def _losses(
        self,
        model: AtlasModel,
        inputs: Tensor,
        targets: Tensor,
        before: Sequence[ModelState | None],
        weights: Tensor | None = None,
    ) -> Forward:
        """`weights`: see `AtlasModel.losses`; which of them are 0 must not shape a graph."""
        with self.autocast(), self._blocks(model):
            outputs = run_rows(partial(model.read, relay=self.relay), inputs, before)
            rows = [len(output.hidden) for output in outputs]
            counted = [None] * len(rows) if weights is None else weights.split(rows)
            read = zip(outputs, targets.split(rows), counted, strict=True)
            losses = join([model.losses(output.hidden, wanted, some) for output, wanted, some in read])
        gates = [join(layer) for layer in zip(*(output.gates for output in outputs), strict=True)]
        return Forward(losses, gates, [output.state.detach() for output in outputs])

    def _blocks(self, model: AtlasModel) -> AbstractContextManager[None]:
        """Inside, the blocks of the model are the compiled ones, where they are wanted. No hook runs in these."""
        if not self._compiles or self._watched:
            return nullcontext()
        if self._compiled is None or self._compiled[0] is not model:
            self._compiled = model, CompiledBlocks(model)
        return self._compiled[1]()

    def _forward(self, model: AtlasModel, micro: tuple[Any, ...]) -> nn.Module:
        """Of a micro-batch; its backward pass leaves gradients that are sums over all ranks. `micro`: any."""
        if self._replica is None or self._replica[0] is not model:
            # Rows that go on with a memory do not use W_init; a block without a gate does not use its sharpness.
            gates = [block.gate for block in blocks_of(model) if block.gate is not None]
            some_unused = self.config.carry_memory or any(gate.fusion is Fusion.additive for gate in gates)
            forward = self.ranks.replicate(MicroStep(model, self._losses), self.device, some_unused=some_unused)
            self._replica = model, forward
            if self.ranks.reorders:
                # DDP reorders the gradients after its first backward pass, and a sum of three is rounded by its place:
                # without this pass, a run that goes on would not be bitwise the run that never stopped.
                with self.ranks.losing():
                    forward(*micro).total.backward()
                model.zero_grad()
        return self._replica[1]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not torch.float32)

    def _gradient_norm(self, model: nn.Module) -> Tensor:
        """Global norm before clipping; clips in place."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = self.ranks.whole(torch.nn.utils.get_total_norm(gradients))
        limit = self.clip or float("inf")
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), limit, norm)
        return norm

    @torch.no_grad()
    def _weight_norm(self, model: nn.Module) -> Tensor:
        with self.ranks.losing():
            return self.ranks.whole(torch.nn.utils.get_total_norm(list(model.parameters())))


def copied_gradients(model: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """By the name of the parameter; of slices those of this rank."""
    named = ((name, parameter.grad) for name, parameter in model.named_parameters())
    return {name: ranks.own(gradient).clone() for name, gradient in named if gradient is not None}


def read(*numbers: Tensor) -> list[float]:
    """Numbers from the device: all at once, since each read waits for it."""
    found: list[float] = torch.stack([number.float() for number in numbers]).tolist()
    return found
