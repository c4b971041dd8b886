"""One optimiser step: forward, backward, clip, update. A loss or gradient that is not finite updates nothing.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import groupby, islice
from math import exp, isfinite, lcm, nan
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from atlas.config import TrainConfig
from atlas.data.batch import Batch, Totals
from atlas.kernels.gpu import Capture
from atlas.models.language_model import AtlasModel, ModelState
from atlas.parallel.ranks import ALONE, Ranks
from atlas.training.compiled import CompiledBlocks
from atlas.training.losses import LanguageLoss, gate_polarisation, mean_losses, polarisation_weight, row_losses
from atlas.training.regions import region
from atlas.training.state import TrainState
from atlas.training.step_graph import Done, Part, StepGraph, fixed_inputs
from atlas.training.watch.gate_monitor import GateStatistics, gate_numbers

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
    gates: GateStatistics | None  # of all layers; None without a memory
    gate_seconds: float  # that their statistics took
    weight_norm: float  # of all weights, before the update
    rows: list[float]  # nats per weighted target of each row of this rank, 0 for a row without one

    @property
    def perplexity(self) -> float:
        """Of text; of recall in a batch without text."""
        return perplexity(self.recall if self.text != self.text else self.text)


def perplexity(nats: float) -> float:
    """exp(nats), capped; NaN stays NaN."""
    return exp(min(nats, PERPLEXITY_CAP)) if nats == nats else nats


def step_metrics(state: TrainState, result: StepResult, gates: GateStatistics | None) -> dict[str, float | int | None]:
    """What a step itself gives to its row in metrics.jsonl; None for a value that is missing or not finite.

    `Trainer._log` adds the speed and `memory_norms`; validation and probes fill other columns of the same row.
    """
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


class Micro(NamedTuple):
    """What a micro-batch adds to the step. All but `total` is cut from the graph."""

    total: Tensor  # to be propagated backwards
    numbers: Tensor  # float64 [4]: shares of loss, text and recall in those of the batch; polarisation
    rows: Tensor  # [B] see `row_losses`
    gates: list[Tensor]  # per layer with a memory
    carried: list[ModelState]


class Forward(NamedTuple):
    """Of the rows of a micro-batch."""

    losses: Tensor  # [B, T] nats
    gates: list[Tensor]  # [B, T, D] per layer with a memory
    carried: list[ModelState]


class MicroStep(nn.Module):
    """The forward pass of a micro-batch up to its share of the batch's loss, as a module: DDP wraps one."""

    def __init__(self, model: AtlasModel, forward: Callable[..., Forward]) -> None:
        super().__init__()
        self.model, self._forward = model, forward

    def forward(
        self,
        micro: Batch,
        on_cpu: Batch,
        before: Sequence[ModelState | None],
        whole: Totals,
        weight: float,
        micro_batches: int,
    ) -> Micro:
        """`on_cpu`: the same as `micro`. `weight`: of the polarisation of the gates, a mean over `micro_batches`."""
        losses, gates, carried = self._forward(self.model, micro.inputs, micro.targets, before, on_cpu.weights)
        part = share_of_batch(mean_losses(losses, micro), on_cpu, whole)
        total, penalty = part.total, torch.zeros_like(part.total)
        if gates and weight:
            penalty = weight * gate_polarisation(gates) / micro_batches
            total = total + penalty
        if not total.requires_grad:  # no target of these rows counts; other ranks wait for this one's gradients
            total = total + 0 * losses.sum()
        numbers = torch.stack([number.detach().double() for number in (*part, penalty)])
        rows = row_losses(losses.detach(), micro.weights)
        return Micro(total, numbers, rows, [g.detach() for g in gates], carried)


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
        self._watched = watched
        step = state.step + 1
        state.optimizer.zero_grad()
        left = [p.grad for p in state.model.parameters() if self.watches_gradients and p.grad is not None]
        self.kept_gradients = any(bool(gradient.any()) for gradient in left)
        count = lcm(self.config.accumulate, self.groups) // self.groups
        micro_batches = count * self.ranks.world  # of the whole batch; each part of a sequence is in another one
        weight = polarisation_weight(step, self.config.steps, self.config.gate)
        tokens = batch.inputs.numel() * self.groups
        if self.relay is not None:
            batch = batch.shard_part(self.relay.part, self.relay.parts)
        totals = Totals.sum(self.ranks.gather(batch.totals()))
        if self._capture is None:
            parts, norms = self._run(state, batch, totals, weight, micro_batches)
        else:
            given = fixed_inputs(batch, totals, weight / micro_batches)
            parts, norms = self._graph_of(state.model, micro_batches).run(given, watched=watched)
        every = self.ranks.gather_rows(torch.stack([part.numbers for part in parts]))
        gates = [gate for part in parts for gate in part.gates]
        began = time.perf_counter()
        of_gates = gate_numbers(gates).unbind() if gates else ()
        gate_seconds = time.perf_counter() - began
        sums = [sum(column) for column in every[:, :3].float().T]
        rows = torch.cat([part.rows for part in parts])
        loss, text, recall, norm, weights, *others = read(
            *sums, norms, self._weight_norm(state.model), *rows, *of_gates, *every[:, 3]
        )
        of_rows, others = others[: len(rows)], others[len(rows) :]
        statistics = GateStatistics(*others[:3]) if gates else None
        polarisation = sum(others[len(of_gates) :])
        finite = isfinite(loss) and isfinite(norm)
        self.gradients = copied_gradients(state.model, self.ranks) if self.watches_gradients else {}
        with region("optimizer"), self.ranks.losing():  # Muon gathers its matrices from their slices
            lr = state.optimizer.step(step) if finite else state.optimizer.lr_at(step)
        if finite:
            state.step, state.tokens = step, state.tokens + tokens
            carries = self.config.carry_memory
            state.carried = [carried for part in parts for carried in part.carried] if carries else []
        text = text if totals.recall < totals.rows else nan
        recall = recall if totals.recall_weight > 0 else nan  # a short sequence may have no room for a question
        measured = polarisation, lr, finite, statistics, gate_seconds, weights, of_rows
        return StepResult(loss, text, recall, norm, *measured)

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
            # Rows that go on with a memory do not use W_init; without polarisation its weight may be used nowhere.
            some_unused = self.config.carry_memory or self.config.gate.polarisation_peak == 0
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


def share_of_batch(loss: LanguageLoss, micro: Batch, whole: Totals) -> LanguageLoss:
    """The part of the losses of a batch with totals `whole` that comes from a micro-batch; their sum is the loss of the
    whole batch.

    `micro` is on the CPU. A target counts by its weight among all targets of its kind in the batch. 0 for a kind of row
    that it lacks.
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
