"""`python -m atlas.train --plan`: what a run will need, before anything starts."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch

from atlas.config import ConfigError, DeviceKind, RunConfig, require
from atlas.config.console import duration
from atlas.config.cores import share_of_cores, usable_cores
from atlas.models.flops import flops_per_token
from atlas.ops.own_precision import products_in
from atlas.parallel.launch import processes_here
from atlas.parallel.ranks import ALONE, Ranks
from atlas.runs.build import build_data, build_model, prepare_device, with_vocabulary
from atlas.runs.step_memory import (
    GIB,
    NoRoomError,
    counted_tokens,
    device_memory,
    fixed_memory,
    micro_rows,
    require_room,
    require_room_for_one,
    step_memory,
)
from atlas.training.update_ratio import part_of

PIECE_FLOPS = 2e10  # of the piece of a step that is timed
PARTS = {"out": "attention", "persistent": "attention", "feedforward_norm": "norms", "norm": "norms"}


class Plan(NamedTuple):
    """What a run will need."""

    table: str  # parameters, operations, memory and, where it fits, time
    refusal: ConfigError | None = None  # why it would not start: a step needs more memory than there is


def plan(config: RunConfig, ranks: Ranks = ALONE) -> Plan:
    """What the run will need. Raises `ConfigError` where not even one sequence fits."""
    require(config.resume is None, "resume", config.resume, "left out with --plan")
    data = build_data(config)
    config = with_vocabulary(config, data)
    if config.device.kind is DeviceKind.cuda and not torch.cuda.is_available():
        return Plan(_without_device(config))
    device, precision = prepare_device(config.device, ranks)
    _ = data.corpus  # its text is part of what the process holds
    processes = max(ranks.world, config.device.processes)
    require_room_for_one(config, device, processes)
    try:
        require_room(config, device, precision, processes)
    except NoRoomError as refusal:
        return Plan("\n".join([*_work(config), *_peak(refusal.needed, device, processes)]), refusal)
    train = config.train
    tokens = train.batch_size * train.sequence
    flops = flops_per_token(config.model, config.chunk_size, train.sequence)
    with _share_of_threads(config, device, processes) as share:
        speed = share * _speed(config, device, precision, processes)
    memory = step_memory(config, device, precision, processes)  # after it: libraries have loaded what they need
    seconds = flops.training * tokens / processes / speed
    lines = [
        *_work(config),
        *_peak(memory, device, processes),
        _row("a step", f"{seconds:.3g} s", f"at {_engineering(speed)}/s, measured in a piece of a step"),
        _row("the run", duration(seconds * train.steps), f"{train.steps:,} steps; probes and validation not counted"),
    ]
    return Plan("\n".join(lines))


def _peak(memory: dict[str, int], device: torch.device, processes: int) -> list[str]:
    there = f"of {_bytes(device_memory(device, processes))} on {device.type}, a process"
    return [
        _row("peak memory", _bytes(sum(memory.values())), there),
        *(_row("", _bytes(size), part) for part, size in memory.items()),
    ]


def _without_device(config: RunConfig) -> str:
    """For a GPU that is not here: what a layer keeps there, and how fast it is, would have to be measured on it."""
    memory = fixed_memory(config, config.device.processes)
    lines = [
        *_work(config),
        _row("memory", _bytes(sum(memory.values())), "without activations, a process"),
        *(_row("", _bytes(size), part) for part, size in memory.items()),
        _row("not known", "", "activations, and the time of a step: no GPU was found"),
    ]
    return "\n".join(lines)


def _work(config: RunConfig) -> list[str]:
    """Parameters and operations, by part."""
    tokens, counted = config.train.batch_size * config.train.sequence, parameters(config)
    flops = flops_per_token(config.model, config.chunk_size, config.train.sequence)
    return [
        _row("parameters", f"{sum(counted.values()):,}", ""),
        *(_row("", f"{count:,}", part) for part, count in counted.items()),
        _row("operations", _engineering(flops.training * tokens), f"a step of {tokens:,} tokens, forward and backward"),
        *(_row("", _engineering(3 * one * tokens), part) for part, one in flops._asdict().items() if one),
    ]


def parameters(config: RunConfig) -> dict[str, int]:
    """By part, the largest first."""
    with torch.device("meta"):
        model = build_model(config)
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = part_of(name)
        found[PARTS.get(part, part)] += parameter.numel()
    return dict(found.most_common())


@contextmanager
def _share_of_threads(config: RunConfig, device: torch.device, processes: int) -> Iterator[float]:
    """Inside, torch has the threads of one of the processes here; yields the share of them that has a core."""
    here, before = processes_here(processes) if device.type == "cpu" else 1, torch.get_num_threads()
    if here == 1:
        yield 1.0
        return
    given = config.device.threads or "OMP_NUM_THREADS" in os.environ
    threads = before if given else share_of_cores(here)
    torch.set_num_threads(threads)
    try:
        yield min(1.0, usable_cores() / (here * threads))
    finally:
        torch.set_num_threads(before)


def _speed(config: RunConfig, device: torch.device, precision: torch.dtype, processes: int) -> float:
    """Operations per second of a process in the forward and backward pass of a model of at most two layers."""
    few = replace(config, model=replace(config.model, layers=min(config.model.layers, 2)))
    tokens = counted_tokens(config)
    of_row = flops_per_token(few.model, few.chunk_size, tokens).training * tokens
    rows = min(max(round(PIECE_FLOPS / of_row), 1), micro_rows(config, processes))
    model = build_model(few).to(device)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(few.model.vocabulary, (rows, tokens + 1), generator=generator).to(device)
    began = 0.0
    for _ in range(2):  # the first pass builds kernels and takes memory from the system
        began = time.perf_counter()
        with products_in(precision, device):
            loss = model.losses(model.read(drawn[:, :-1]).hidden, drawn[:, 1:]).mean()
        loss.backward()
        loss.item()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return rows * of_row / (time.perf_counter() - began)


def _row(what: str, figure: str, meaning: str) -> str:
    return f"{what:<12} {figure:>14}  {meaning}".rstrip()


def _engineering(number: float) -> str:
    power, unit = next((one for one in ((12, "TFLOP"), (9, "GFLOP")) if number >= 10 ** one[0]), (6, "MFLOP"))
    return f"{number / 10**power:.3g} {unit}"


def _bytes(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 100 * GIB else f"{size / 2**20:,.0f} MiB"
