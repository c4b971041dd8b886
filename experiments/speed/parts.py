"""The parts of the benchmark: each times its contestants side by side and gives rows that need no further thought.

A row: name, batch, sequence, `seconds` of each round, and what else was measured; or `reason`, why nothing was.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from atlas.config import Kernels
from experiments.speed.contestants import Shape, TrainingStep
from experiments.speed.decoding import decode_rows
from experiments.speed.entries import Entry, entries
from experiments.speed.figures import Row, measured
from experiments.speed.names import TITANS
from experiments.speed.options import SHORTEST_CONTEXT, Options, model_config
from experiments.speed.peak import Peak, lack_of_memory, peak_of
from experiments.speed.products import Recorder, peak_flops
from experiments.speed.race import race

WARM_UPS = {"cpu": 1, "cuda": 3}
TITANS_TURN_SECONDS = 20.0  # or its few rounds would set a long step beside a single short one


def whole(options: Options, device: torch.device) -> dict[str, Any]:
    """Whole models at one shape: speed, peak memory, and how far each step is from its matrix products."""
    rows = _raced(
        entries("whole", options), options.rounds, device, compiled=options.compile, with_peaks=True, with_products=True
    )
    return {"rows": rows, "peak_flops": peak_flops(device)}


def contexts(options: Options, device: torch.device) -> dict[str, Any]:
    """Whole models over context lengths, as many tokens in every step. Long steps: half of the rounds.

    A GPU, whose speed is steady, takes one length after the other: it has no room for the graphs of all.
    """
    chosen, rounds = entries("contexts", options), max(options.rounds // 2, 1)
    groups = [chosen]
    if device.type == "cuda":
        groups = [[one for one in chosen if one[1].sequence == context] for context in options.contexts]
    rows: list[Row] = []
    for group in groups:
        rows += _raced(group, rounds, device, compiled=options.compile)
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    return {"rows": rows}


def branch(options: Options, device: torch.device) -> dict[str, Any]:
    """The memory of one block alone, over context lengths: what shards are worth."""
    rows = _raced(entries("branch", options), options.rounds, device, with_flops=True)
    return {"rows": rows, "peak_flops": peak_flops(device)}


def decode(options: Options, device: torch.device) -> dict[str, Any]:
    """Token by token after the shortest and the longest context."""
    return {"rows": decode_rows(entries("decode", options), options.rounds, device)}


def titans(options: Options, device: torch.device) -> dict[str, Any]:
    """titans-pytorch beside atlas and the anchor. Last and few rounds: a step takes most of a minute on a small CPU."""
    contestants, rounds = entries("titans", options), max(options.rounds // 2, 1)
    return {"rows": _raced(contestants, rounds, device, with_peaks=True, turn_seconds=TITANS_TURN_SECONDS)}


PARTS: dict[str, Callable[[Options, torch.device], dict[str, Any]]] = {
    function.__name__: function for function in (whole, contexts, branch, decode, titans)
}


def _raced(
    contestants: Sequence[Entry],
    rounds: int,
    device: torch.device,
    *,
    compiled: bool = False,
    with_peaks: bool = False,
    with_flops: bool = False,
    with_products: bool = False,
    turn_seconds: float = 0.0,
) -> list[Row]:
    rows: list[Row] = []
    # Memory first of all: this process holds little yet, and leaves the rest to its children.
    for name, shape in contestants:
        row: Row = {"name": name, "model": shape.model, "batch": shape.batch, "sequence": shape.sequence}
        rows.append(row | _memory(name, shape, device, with_peaks))
    steps: dict[str, TrainingStep] = {}
    for row in filter(measured, rows):
        prepared = _prepared(_shape(row), row["name"], device, compiled)
        if isinstance(prepared, str):
            row["reason"] = prepared
            continue
        steps[_key(row)] = prepared
        row |= {"parameters": prepared.parameters}
        if with_flops or with_products:
            row |= _products(prepared, device, replayed=with_products)
    seconds = race(steps, rounds, device, turn_seconds)
    for row in filter(measured, rows):
        row["seconds"] = seconds[_key(row)]
    return rows


def _key(row: Row) -> str:
    return f"{row['name']} {row['sequence']}"


def _shape(row: Row) -> Shape:
    return Shape(row["model"], row["batch"], row["sequence"])


def _memory(name: str, shape: Shape, device: torch.device, with_peak: bool) -> Row:
    """Peak memory if it is wanted, or the reason why the contestant cannot take part."""
    if name in TITANS and find_spec("titans_pytorch") is None:
        return {"reason": 'titans-pytorch is not installed: pip install -c constraints.txt -e ".[bench]"'}
    if reason := lack_of_memory(name, shape, _short(shape), device):
        return {"reason": reason}
    if not with_peak:
        return {}
    _say(f"{name}: peak memory")
    peak = peak_of(name, shape, device)
    return peak._asdict() if isinstance(peak, Peak) else {"reason": peak}


def _prepared(shape: Shape, name: str, device: torch.device, compiled: bool) -> TrainingStep | str:
    """A step that has run before, recorded on a GPU, or why there is none."""
    _say(f"{name}: first steps, {shape.batch} x {shape.sequence} tokens")
    try:
        step = TrainingStep(name, shape, device, compiled=compiled)
        for _ in range(WARM_UPS[device.type]):
            step()
        if device.type == "cuda":
            step.record()
            step()
    except torch.OutOfMemoryError as error:
        gc.collect()
        return f"out of memory: {str(error).splitlines()[0]}"
    return step


def _say(what: str) -> None:
    print(f"  {what}", flush=True)


def _short(shape: Shape) -> Shape:
    """One sequence, as short as the model's shard and memory permit."""
    shortest = max(SHORTEST_CONTEXT, model_config(shape.model).model.native.shard)
    return Shape(shape.model, 1, min(shape.sequence, shortest))


def _products(step: TrainingStep, device: torch.device, *, replayed: bool) -> Row:
    """Counted where PyTorch's operations do them: nobody sees into a compiled kernel of the same function."""
    kernels, step.kernels = step.kernels, Kernels.torch
    with Recorder() as seen:
        step.gradients()
        step.optimizer.step()
    step.kernels = kernels
    found: Row = {"flops": seen.flops} | ({"products_seconds": seen.replay_seconds(device)} if replayed else {})
    return found | ({"not_counted": sorted(seen.foreign)} if seen.foreign else {})
