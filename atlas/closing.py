"""How a run ends: its last numbers into summary.json and into the closing table."""

from __future__ import annotations

from math import exp, isfinite, log

import torch

from atlas.environment import peak_memory_bytes
from atlas.training.summary import RunSummary
from atlas.training.trainer import Trainer

OVERHEADS = ("probe", "watch", "telemetry", "checkpoint", "validation", "rollback")


def finish(summary: RunSummary, trainer: Trainer, device: torch.device) -> None:
    """Fill in what the run came to, and write summary.json."""
    state, last, clocks = trainer.state, trainer.last, trainer.clocks
    summary.step, summary.tokens = state.step, state.tokens
    summary.segment, summary.rollbacks = state.segment, state.rollbacks
    summary.validation_loss = trainer.validation_loss
    if last is not None:
        summary.loss, summary.perplexity, summary.recall_loss = last.loss, last.perplexity, last.recall
        if last.gates is not None:
            summary.gate_mean, summary.gate_std, summary.gate_polarised = last.gates
    summary.seconds = {name: round(seconds, 3) for name, seconds in clocks.seconds.items()}
    summary.overhead = {name: clocks.share(name) for name in OVERHEADS}
    if trainer.trained_tokens:
        summary.tokens_per_second = trainer.trained_tokens / clocks.seconds["train"]
    summary.peak_memory_bytes = peak_memory_bytes(device)
    summary.niah = {result.level: result.describe() for result in trainer.probe_results}
    summary.write()


def closing_table(summary: RunSummary) -> list[tuple[str, str]]:
    """What the console shows at the end, as (name, value)."""
    rows = [
        ("reason", summary.reason or None),
        ("steps", f"{summary.step} of {summary.steps}, {summary.tokens:,} tokens, {summary.rollbacks} rollbacks"),
        ("loss", _nats(summary.loss)),
        ("recall loss", _nats(summary.recall_loss, "nats/answer byte")),
        ("validation loss", _nats(summary.validation_loss)),
        ("bigram baseline", _nats(summary.baseline_loss)),
        ("gates", _gates(summary)),
        *[(f"niah {level}", _niah(result)) for level, result in summary.niah.items()],
        ("speed", f"{summary.tokens_per_second:,.0f} tokens/s" if summary.tokens_per_second else None),
        ("peak memory", f"{summary.peak_memory_bytes / 2**30:.2f} GiB" if summary.peak_memory_bytes else None),
        ("overhead", _overhead(summary.overhead)),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _nats(loss: float | None, unit: str = "nats/byte") -> str | None:
    if loss is None or not isfinite(loss):
        return None
    return f"{loss:.4f} {unit}, {loss / log(2):.3f} bits, perplexity {exp(min(loss, 80)):.2f}"


def _gates(summary: RunSummary) -> str | None:
    if summary.gate_mean is None:
        return None
    return f"mean {summary.gate_mean:.3f}, std {summary.gate_std:.3f}, polarised {summary.gate_polarised:.1%}"


def _niah(result: dict[str, object]) -> str:
    return str(result["verdict"])


def _overhead(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.2%}" for name, share in shares.items() if share > 0)
