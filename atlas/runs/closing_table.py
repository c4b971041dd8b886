"""The rows that the console shows at the end of a run."""

from __future__ import annotations

from math import isfinite, log
from typing import Any

from atlas.config import LEVELS
from atlas.probes.result import NOT_ASKED
from atlas.report.health import HEALTHY, seen
from atlas.report.wording import overhead_name
from atlas.runs.baselines import Baseline
from atlas.runs.summary import RunSummary
from atlas.training.step_result import perplexity


def closing_table(summary: RunSummary) -> list[tuple[str, str]]:
    """Rows (name, value); what was not measured has none."""
    levels = dict.fromkeys([*LEVELS, *summary.niah]) if summary.niah else {}
    rollbacks = f"{summary.rollbacks} rollback{'s' * (summary.rollbacks != 1)}"
    rows = [
        ("reason", summary.reason or None),
        ("steps", f"{summary.step} of {summary.steps}, {summary.tokens:,} tokens, {rollbacks}"),
        ("loss", _nats(summary, summary.loss)),
        ("recall loss", _nats(summary, summary.recall_loss, "answer ")),
        ("validation loss", _nats(summary, summary.validation_loss)),
        ("bits per byte", _bits_per_byte(summary)),
        (summary.baseline_name, _nats(summary, summary.baseline_loss)),
        *[("without memory", Baseline(**one).told(_token(summary))) for one in summary.baselines],
        ("gates", _gates(summary)),
        *[(f"niah {level}", _niah(summary.niah.get(level))) for level in levels],
        ("memory", _memory_use(summary.memory_use)),
        ("local chunks", _local_chunks(summary)),
        ("reset shock", _reset_shock(summary.calibration)),
        ("speed", f"{summary.tokens_per_second:,.0f} tokens/s" if summary.tokens_per_second else None),
        ("utilisation", _utilisation(summary)),
        ("peak memory", f"{summary.peak_memory_bytes / 2**30:.2f} GiB" if summary.peak_memory_bytes else None),
        ("overhead", _overhead(summary.overhead)),
        ("health", _health(summary)),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _nats(summary: RunSummary, loss: float | None, of: str = "") -> str | None:
    if loss is None or not isfinite(loss):
        return None
    return f"{loss:.4f} nats/{of}{_token(summary)}, {loss / log(2):.3f} bits, perplexity {perplexity(loss):.2f}"


def _token(summary: RunSummary) -> str:
    return "byte" if summary.bytes_per_token == 1.0 else "token"


def _bits_per_byte(summary: RunSummary) -> str | None:
    """Of the validation text; where a token is a byte, the line before says it."""
    if summary.validation_bits_per_byte is None or summary.bytes_per_token == 1.0:
        return None
    return f"{summary.validation_bits_per_byte:.3f} of the validation text, {summary.bytes_per_token:.2f} bytes/token"


def _utilisation(summary: RunSummary) -> str | None:
    if summary.flops_utilisation is None or summary.peak_flops is None:
        return None
    return f"{summary.flops_utilisation:.1%} of {summary.peak_flops / 1e9:,.0f} GFLOP/s, the measured matrix product"


def _gates(summary: RunSummary) -> str | None:
    if summary.gate_mean is None:
        return None
    return f"mean {summary.gate_mean:.3f}, std {summary.gate_std:.3f}, polarised {summary.gate_polarised:.1%}"


def _niah(result: dict[str, object] | None) -> str:
    return NOT_ASKED if result is None else str(result["verdict"])


def _reset_shock(found: dict[str, Any]) -> str | None:
    if found.get("reset_shock") is None:
        return None
    change, tokens = found["reset_shock"], found["horizon_tokens"]
    return f"loss {change:+.2%} in the {tokens} tokens after a reset of the local memories"


def _local_chunks(summary: RunSummary) -> str | None:
    chunks = summary.local_chunks
    return f"{chunks['first']} at step 1, {chunks['last']} at step {summary.step}" if chunks else None


def _memory_use(found: dict[str, float]) -> str | None:
    if not found:
        return None
    on, off, frozen = (found[mode] for mode in ("on", "off", "frozen"))
    return f"loss of the watched rows {on:.4f} nats with it, {off:.4f} with it off, {frozen:.4f} if it writes nothing"


def _health(summary: RunSummary) -> str:
    """The last row: healthy, or what was seen."""
    steps: dict[str, list[str]] = {}
    for told in summary.watch:
        steps.setdefault(str(told["watch"]), []).append(str(told["step"]))
    watchers = [f"{name} at step{'s' * (len(each) > 1)} {', '.join(each)}" for name, each in steps.items()]
    spikes = sum(event["kind"] == "spike" for event in summary.history)
    found = seen(watchers, spikes, len(summary.warnings))
    if summary.status in ("failed", "aborted"):
        found.append(f"it has {summary.status}" if summary.status == "failed" else "it was aborted")
    return f"seen: {', '.join(found)}" if found else HEALTHY


def _overhead(shares: dict[str, float]) -> str:
    return ", ".join(f"{overhead_name(name)} {share:.2%}" for name, share in shares.items() if share > 0)
