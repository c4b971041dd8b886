"""A sweep as `python -m atlas.train -m` leaves it, of made-up numbers: as many runs and rows as asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import atlas
from atlas.config.composition import save_config
from atlas.runs.summary import RunSummary
from atlas.telemetry.rows import make_row

RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
CHUNKS = ("[8]", "[16]", "[8,16]", "[32]")
MEMORIES = tuple(f"memory/layer{layer}/{place}" for layer in range(4) for place in ("local0", "global"))


def write_sweep(folder: Path, runs: int, rows: int) -> None:
    """One run in ten is aborted, one in ten rolled back; all have the same columns as a real run with two memories."""
    for number in range(runs):
        _write_run(folder / str(number), number, rows)


def _write_run(folder: Path, number: int, rows: int) -> None:
    folder.mkdir(parents=True)
    rate, chunk, seed = RATES[number % 5], CHUNKS[number // 5 % 4], number // 20
    overrides = [f"optim.lr={rate}", f"chunk_size.local={chunk}", f"seed={seed}", "logger=none"]
    save_config(atlas.compose(overrides), folder / "config.yaml")
    found = _columns(np.random.default_rng(number), rows, rate)
    aborted, rolled_back = number % 10 == 7, number % 10 == 3
    table = [
        make_row({"step": step + 1, "segment": 0} | {k: v[step] for k, v in found.items()}) for step in range(rows)
    ]
    if rolled_back:
        for row in table[rows // 2 :]:
            row["segment"] = 1
        undone = [row | {"segment": 0, "loss": row["loss"] + 8} for row in table[rows // 2 : rows // 2 + rows // 50]]
        table[rows // 2 : rows // 2] = undone
    _write_lines(folder / "metrics.jsonl", table)
    _write_lines(folder / "events.jsonl", _events(rows, aborted, rolled_back))
    RunSummary(
        str(folder),
        status="aborted" if aborted else "completed",
        reason="perplexity is above its limit, after 3 rollbacks (rollback.limit=3)" if aborted else "",
        step=rows, steps=rows, tokens=4096 * rows, rollbacks=int(rolled_back), loss=float(found["loss"][-1]),
        validation_loss=float(found["loss"][-1]) + 0.02, baseline_loss=2.25, tokens_per_second=9000.0 + 10 * number,
        niah={"recall": {"level": "recall", "outcome": "failed", "accuracy": 0.5 + 0.01 * number, "threshold": 0.8}},
    ).write()  # fmt: skip


def _columns(draw: np.random.Generator, rows: int, rate: float) -> dict[str, list[float]]:
    steps, noise = np.arange(1, rows + 1), lambda: draw.standard_normal(rows)
    loss = 1.6 + 40 * abs(rate - 4e-3) + 3.4 * np.exp(-steps / (0.1 * rows)) + 0.08 * noise()
    columns: dict[str, Any] = {
        "tokens": 4096 * steps, "loss": loss, "perplexity": np.exp(loss), "ppl_delta": 0.01 * noise(),
        "lr": rate * np.minimum(1, steps / 100), "grad_norm": draw.lognormal(size=rows),
        "tokens_per_second": 9000 + 300 * noise(),
        "gate/mean": 0.4 + 0.01 * noise(), "gate/std": 0.3 + 0.01 * noise(), "gate/polarised": 0.7 + 0.01 * noise(),
        "loss/text": loss, "loss/recall": loss + 0.3, "loss/polarisation": np.exp(-steps / rows), "time": 1.8e9 + steps,
    }  # fmt: skip
    for place in MEMORIES:
        columns[f"{place}/weight_norm"] = 1 + 0.01 * noise()
    return {name: [float(value) for value in values] for name, values in columns.items()}


def _events(rows: int, aborted: bool, rolled_back: bool) -> list[dict[str, Any]]:
    half, reached = rows // 2, rows // 2 + rows // 50
    events: list[dict[str, Any]] = [{"kind": "start", "step": 0, "time": 1.8e9}]
    if rolled_back:
        events.append({"kind": "spike", "step": reached, "time": 1.8e9, "message": "perplexity is above its limit"})
        told = {"from_step": reached, "segment": 1, "reason": "perplexity is above its limit", "change": "left out"}
        events.append({"kind": "rollback", "step": half, "time": 1.8e9, **told})
    status = "aborted" if aborted else "completed"
    return [*events, {"kind": "end", "step": rows, "time": 1.8e9 + rows, "status": status}]


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
