"""Measures what `investigation.py` judges, on the device of the runs.

Legend: S tokens of a shard, n = 8 shards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.config import VOCABULARY, ConfigError, Kernels, RunConfig
from atlas.config.atomic import write_atomically
from atlas.config.composition import load_config
from atlas.config.untrusted import read_json
from atlas.kernels.library import use
from atlas.models.language_model import AtlasModel, ModelState
from atlas.ops.own_precision import products_in
from atlas.runs.build import build_data, build_model, build_optimizer, prepare_device
from atlas.runs.environment import device_name, git_revision, versions
from atlas.telemetry.run_files import CONFIG_FILE
from atlas.training.gate_monitor import GateMonitor
from atlas.training.rollback.history import History
from atlas.training.state import TrainState
from atlas.training.step import TrainStep
from experiments.phase2.chunk_runs import BASELINE, candidate_of
from experiments.phase2.investigation import SHARDS, InvestigationMachine, SetInvestigation
from experiments.phase2.quiet import MachineClock
from experiments.phase2.recorded import read_one
from experiments.phase2.sweeps import RecordedJob, RecordedSweep, readable
from experiments.speed.contestants import MemoryBranch
from experiments.speed.products import Recorder, peak_flops
from experiments.speed.race import race

INVESTIGATION_FILE = "investigation.json"  # in the sweep's folder: measured once
ROUNDS = 7  # the fastest counts: whatever else the machine does makes a call longer


def investigate(sweep: RecordedSweep) -> list[SetInvestigation | InvestigationMachine]:
    """Every set at the context of the model; none where the runs are of another device, other versions or revision.

    What was measured before is taken if it is of the device, versions and revision of the runs and of a quiet machine;
    else it is measured anew.
    """
    path, origin = sweep.folder / INVESTIGATION_FILE, _origin(sweep.jobs[0].summary)
    if path.is_file():
        with readable(sweep.folder):
            kept = read_json(path)
            if isinstance(kept, dict) and _origin(kept) == origin:
                sets = [read_one(SetInvestigation, one, f"{path} sets[{at}]") for at, one in enumerate(kept["sets"])]
                machine = read_one(InvestigationMachine, kept["machine"], f"{path} machine")
                if not machine.trouble:
                    return [*sets, machine]
    clock, found, peak = MachineClock(), [], 0.0
    for job in sweep.jobs:
        here = job.settings["train.sequence"] == job.settings["model.native.sequence"]
        if here and job.completed and job.round == sweep.jobs[0].round and candidate_of(job) != BASELINE:
            if not _from_here(job):
                return []
            config = load_config(job.folder / CONFIG_FILE)
            peak = peak or peak_flops(prepare_device(config.device)[0])
            found.append(measure(candidate_of(job), config, peak))
    machine = InvestigationMachine(**asdict(clock.read()))
    content = origin | {"machine": asdict(machine), "sets": [asdict(one) for one in found]}
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    return [*found, machine]


def _origin(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found.get(key) for key in ("device", "versions", "git")}


def _from_here(job: RecordedJob) -> bool:
    if (job.summary["versions"], job.summary["git"]) != (versions(), git_revision()):
        return False
    try:
        device, _ = prepare_device(load_config(job.folder / CONFIG_FILE).device)
    except ConfigError:  # no such device
        return False
    return bool(job.summary["device"] == device_name(device))


def measure(candidate: str, config: RunConfig, peak: float) -> SetInvestigation:
    """`peak` of the device, in floating-point operations per second."""
    device, precision = prepare_device(config.device)
    size = config.chunk_size.shard
    tokens = torch.randint(0, VOCABULARY, (SHARDS[-1], size), generator=torch.Generator().manual_seed(0)).to(device)
    output, gradient = _differences(config, tokens.view(1, -1))
    memory = replace(config.model.memory, use_global=False)  # it has no shards
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = AtlasModel(replace(config.model, memory=memory), config.chunk_size, VOCABULARY)
    branch = MemoryBranch(model).to(device)
    shards = {f"shards {count}": list(tokens.view(-1, 1, count * size)) for count in SHARDS}
    rows = {f"rows {count}": list(tokens.view(-1, count, size)) for count in SHARDS}
    steps = {name: partial(_learn, branch, pieces, precision) for name, pieces in (shards | rows).items()}
    for step in steps.values():
        step()
    seconds = {name: min(taken) for name, taken in race(steps, ROUNDS, device).items()}
    return SetInvestigation(
        candidate=candidate,
        flops_per_token=_flops_per_token(config, device, precision),
        peak_flops=peak,
        shard_speeds=[tokens.numel() / seconds[f"shards {count}"] for count in SHARDS],
        row_speeds=[tokens.numel() / seconds[f"rows {count}"] for count in SHARDS],
        products=[_products(branch, shards[f"shards {count}"][0], precision, config) for count in (1, SHARDS[-1])],
        output_difference=output,
        gradient_difference=gradient,
    )


def _learn(branch: MemoryBranch, pieces: Sequence[Tensor], precision: torch.dtype) -> None:
    """Forward and backward of the pieces [B, T], one after the other."""
    for piece in pieces:
        with products_in(precision, piece.device):
            loss = branch(F.pad(piece, (0, 1)))
        loss.backward()


def _products(branch: MemoryBranch, piece: Tensor, precision: torch.dtype, config: RunConfig) -> int:
    """Calls, not arithmetic. PyTorch's operations: nobody sees into a compiled kernel, which folds the same rows."""
    use(Kernels.torch)
    with Recorder() as seen:
        _learn(branch, [piece], precision)
    prepare_device(config.device)
    return sum(seen.counts.values())


def _flops_per_token(config: RunConfig, device: torch.device, precision: torch.dtype) -> float:
    """Of a training step as the run takes it, its optimiser included."""
    model = build_model(config).to(device)
    state = TrainState(model, build_optimizer(config, model), GateMonitor(config.train.gate), History(config.rollback))
    batch = build_data(config).batch(0)
    use(Kernels.torch)
    with Recorder() as seen:
        TrainStep(config.train, device, precision)(state, batch)
    prepare_device(config.device)
    return float(seen.flops / batch.inputs.numel())


def _differences(config: RunConfig, tokens: Tensor) -> tuple[float, float]:
    """Of outputs and of gradients over tokens [1, n S], between all shards at once and one after the other."""
    model = build_model(config).to(tokens.device, torch.float64)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(config.seed)
        for parameter in model.parameters():  # a memory's output weights start at zero, which would hide a difference
            parameter.add_(0.02 * torch.randn(parameter.shape).to(parameter))
    outputs, gradients = zip(
        *(_passed(model, tokens, size) for size in (tokens.shape[1], config.chunk_size.shard)), strict=True
    )
    return _relative(*outputs), _relative(*gradients)


def _passed(model: AtlasModel, tokens: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Outputs and gradients, each as one vector, when `size` tokens go through at a time."""
    state: ModelState | None = None
    logits = []
    for piece in tokens.split(size, dim=1):
        out = model(piece, state)
        state = out.state
        logits.append(out.logits)
    joined = torch.cat(logits, dim=1)
    loss = F.cross_entropy(joined[0, :-1], tokens[0, 1:])
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return joined.detach().flatten(), torch.cat([one.flatten() for one in gradients if one is not None])


def _relative(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / second.norm())
