"""How much memory a training step will need, before it starts, and the refusal of a run that cannot fit.

What a layer keeps for the backward pass depends on rule, kernels and precision, so it is counted: one and two sequences
go through models of one and two layers, and the rest follows in proportion to layers, sequences and tokens.
"""

from __future__ import annotations

import os
from dataclasses import replace
from math import lcm
from pathlib import Path

import torch
from torch import Tensor

from atlas.config import ConfigError, ParallelKind, RunConfig
from atlas.models.language_model import LOGITS_AT_ONCE
from atlas.models.plan import ChunkPlan
from atlas.ops.own_precision import products_in
from atlas.parallel.launch import processes_here
from atlas.runs.allocator import return_freed_memory
from atlas.runs.build import build_model, build_optimizer

FLOAT = 4  # bytes
WORKING = 0.5  # of what a layer keeps: the gradients of the backward pass that are alive at once (experiments/plan)
LOGIT_COPIES = 3  # logits, their softmax, and their gradient
LEAST_KEPT = 20  # floats that any layer keeps for a token and channel; `gd` keeps 60, `muon` some hundreds
SURELY = 20  # a need below this part of the memory, by `LEAST_KEPT`, is not looked at any closer
GIB: int = 2**30


class NoRoomError(ConfigError):
    """`needed`: bytes by part, see `step_memory`."""

    def __init__(self, message: str, needed: dict[str, int]) -> None:
        super().__init__(message)
        self.needed = needed


def require_room(config: RunConfig, device: torch.device, precision: torch.dtype, processes: int = 1) -> None:
    """Raise `NoRoomError` where a step cannot fit into the memory of the device, `ConfigError` where not even one
    sequence can.

    `config` has the vocabulary of its data. A run that needs a small part of the memory passes without a count.
    """
    most, train = device_memory(device, processes), config.train
    if SURELY * require_room_for_one(config, device, processes) < most:
        return
    needed = step_memory(config, device, precision, processes)
    peak = sum(needed.values())
    if peak > most:
        parts = ", ".join(f"{part} {_gib(size)}" for part, size in needed.items() if size > peak / 100)
        fitting = _fitting(config, processes, needed, most)
        hint = fitting or "one sequence at a time does not fit either: take a shorter train.sequence or a smaller model"
        must = f"must be {_must_fit(most, device, processes)} about {_gib(peak)} ({parts}); {hint}"
        raise NoRoomError(f"train.batch_size={train.batch_size}: {must}", needed)


def require_room_for_one(config: RunConfig, device: torch.device, processes: int = 1) -> float:
    """The least that a step needs, in bytes. Raises `ConfigError` where one sequence does not fit."""
    most, model = device_memory(device, processes), config.model
    of_row = FLOAT * LEAST_KEPT * model.layers * model.width * own_tokens(config)
    # Layers that cannot fit at all would take for ever to list.
    fixed = sum(fixed_memory(config, processes).values()) if of_row < most else 0
    if fixed + of_row > most:
        raise ConfigError(
            f"model.width={model.width}: must be, with model.layers, model.vocabulary and train.sequence,"
            f" {_must_fit(most, device, processes)} more than {_gib(fixed + of_row)} even with one sequence"
        )
    return fixed + micro_rows(config, processes) * of_row


def _must_fit(most: float, device: torch.device, processes: int) -> str:
    sharing = processes_here(processes) if device.type == "cpu" else 1
    share = f", a share for each of {sharing} processes" if sharing > 1 else ""
    return f"such that a training step fits into the {_gib(most)} of memory here{share}; it needs"


def step_memory(config: RunConfig, device: torch.device, precision: torch.dtype, processes: int = 1) -> dict[str, int]:
    """Bytes by part at the peak of a step, of one process; `process` is what it holds without a model."""
    sizes = fixed_memory(config, processes)
    rows, layers = micro_rows(config, processes), config.model.layers
    of_row, layer_of_row, of_layer = _kept(config, device, precision)
    activations = rows * (of_row + (layers - 1) * layer_of_row) + layers * of_layer + WORKING * rows * layer_of_row
    return_freed_memory()
    resident = resident_memory(device)
    logits = min(LOGITS_AT_ONCE, rows * own_tokens(config) * config.model.vocabulary)
    several = config.train.accumulate > 1 or processes > 1
    embedding = FLOAT * config.model.vocabulary * config.model.width  # the first gradient of the backward pass
    backward = {
        "process": resident,
        "weights": sizes["weights"],
        "gradients": sizes["gradients"] if several else embedding,
        "optimiser": sizes["optimiser"],
        "activations": round(activations),
        "logits": FLOAT * LOGIT_COPIES * logits,
    }
    update = {"process": resident, **sizes, "activations": 0, "logits": 0}
    return max(backward, update, key=lambda parts: sum(parts.values()))


def fixed_memory(config: RunConfig, processes: int = 1) -> dict[str, int]:
    """Bytes of what has the size of the weights, whatever the batch; of one process, which may hold a slice of it."""
    with torch.device("meta"):
        model = build_model(config)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    optimizers = getattr(build_optimizer(config, model), "optimizers", [])
    groups = [(isinstance(one, torch.optim.Muon), group) for one in optimizers for group in one.param_groups]
    # Muon keeps one average of a matrix, AdamW two, and what is not known counts as AdamW.
    state = sum((1 if muon else 2) * parameter.nbytes for muon, group in groups for parameter in group["params"])
    averages = weights if config.train.ema else 0
    parts = {"weights": weights + averages, "gradients": weights, "optimiser": state if groups else 2 * weights}
    slices = processes if config.parallel.kind is ParallelKind.fsdp else 1
    return {part: size // slices for part, size in parts.items()}


def micro_rows(config: RunConfig, processes: int) -> int:
    """Sequences of a micro-batch in one process."""
    return max(config.train.batch_size // lcm(config.train.accumulate, config.parallel.groups(processes)), 1)


def own_tokens(config: RunConfig) -> int:
    """Tokens of a sequence in one process."""
    return config.train.sequence // config.parallel.context


def counted_tokens(config: RunConfig) -> int:
    """Tokens of a sequence that stand for all: whole shards and global chunks, where attention has a window."""
    chunks, sequence = config.chunk_size, own_tokens(config)
    whole = -(-max(chunks.shard, chunks.global_size, config.model.window) // chunks.shard) * chunks.shard
    return min(whole, sequence) if config.model.window else sequence


def device_memory(device: torch.device, processes: int = 1) -> int:
    """All memory of the device, in bytes; on the CPU what the system, or the process's control group, has for each of
    the processes here."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):  # there is none, or "max"
            continue
    return min(limits) // processes_here(processes)


def resident_memory(device: torch.device) -> int:
    """Bytes that the process holds now; 0 on a GPU, whose allocator counts tensors only."""
    if device.type == "cuda":
        return 0
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _kept(config: RunConfig, device: torch.device, precision: torch.dtype) -> tuple[float, float, float]:
    """Bytes kept for the backward pass: of a sequence in a model of one layer, in each further layer, and what each
    layer keeps once, whatever the number of sequences (weights in half precision)."""
    one, two, both = (_count(config, device, precision, *case) for case in ((1, 1), (2, 1), (2, 2)))
    of_layer = (2 * two - both) / 2
    longer = own_tokens(config) / counted_tokens(config)
    first = one - of_layer
    return longer * first, longer * (both - two - first), of_layer


def _count(config: RunConfig, device: torch.device, precision: torch.dtype, layers: int, rows: int) -> int:
    model = build_model(replace(config, model=replace(config.model, layers=layers))).to(device)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a node that kept its own output would never be freed

    tokens = torch.zeros(rows, counted_tokens(config), dtype=torch.int64, device=device)
    smallest = ChunkPlan.at_step(config, config.train.steps)  # keeps most
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), products_in(precision, device):
        model.read(tokens, plan=smallest)
    return sum(kept.values())


def _fitting(config: RunConfig, processes: int, needed: dict[str, int], most: int) -> str:
    """The least train.accumulate with which a step fits; "" where none does."""
    batch, rows = config.train.batch_size, micro_rows(config, processes)
    of_row = needed["activations"] / rows
    others = sum(needed.values()) - needed["activations"] - needed["gradients"] + needed["weights"]
    for accumulate in range(config.train.accumulate + 1, batch + 1):
        parts = lcm(accumulate, config.parallel.groups(processes))
        if batch % parts == 0 and others + of_row * (batch // parts) <= most:
            return f"train.accumulate={accumulate} fits"
    return ""


def _gib(size: float) -> str:
    return f"{size / GIB:.3g} GiB"
