"""The numbers of a training step, and its row in metrics.jsonl."""

from __future__ import annotations

from math import exp, isfinite, isnan, nan
from typing import NamedTuple

from atlas.training.gate_monitor import GateStatistics
from atlas.training.state import TrainState

PERPLEXITY_CAP = 80.0  # nats; exp of more than about 88 is infinite in float32


class StepResult(NamedTuple):
    loss: float  # nats: text and recall by their shares of the rows, without polarisation
    text: float  # nats per token; NaN in a batch without text
    recall: float  # nats per token of an answer; NaN in a batch without answers
    gradient_norm: float  # before clipping
    polarisation: float
    lr: float
    finite: bool  # of loss and gradient; False: the weights are unchanged
    gates: GateStatistics | None  # of all layers; None without a gate
    gate_seconds: float  # that their statistics took
    weight_norm: float  # of all weights, before the update
    tokens: int  # of all ranks
    rows: list[float]  # nats per weighted target of each row of this rank, 0 for a row without one

    @property
    def perplexity(self) -> float:
        """Of text; of recall in a batch without text."""
        return perplexity(self.recall if isnan(self.text) else self.text)


def perplexity(nats: float) -> float:
    """exp(nats), capped; NaN stays NaN."""
    return nats if isnan(nats) else exp(min(nats, PERPLEXITY_CAP))


def step_metrics(state: TrainState, result: StepResult, gates: GateStatistics | None) -> dict[str, float | int | None]:
    """What a step itself gives to its row in metrics.jsonl; None for a value that is missing or not finite.

    `Trainer._log` adds the speed and `memory_norms`; validation and probes fill other columns of the same row.
    """
    gates = gates or GateStatistics(nan, nan, nan)
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
