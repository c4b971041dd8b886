"""For how long a checkpoint holds up training: the copy of the state; a thread writes and verifies it meanwhile.

python -m experiments.gpu.checkpoint_stall [device=cpu] [model=atlas_60m] [saves=4]

One short step is trained before, as in a run: its freed memory takes the copies. `ready` is when the checkpoint is
verified.
Prints the table; the checkpoints are written into a temporary folder.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import atlas
from atlas.checkpoint.manager import CheckpointManager
from atlas.config import DeviceKind, require
from atlas.config.arguments import read_settings, run_command
from atlas.runs.allocator import keep_freed_memory
from atlas.runs.build import build_data, build_model, build_optimizer, prepare_device
from atlas.training.gate_monitor import GateMonitor
from atlas.training.rollback.history import History
from atlas.training.state import TrainState
from atlas.training.step import TrainStep

TOKENS = 1024  # of the step


@dataclass(frozen=True)
class Options:
    device: DeviceKind = DeviceKind.cpu
    model: str = "atlas_60m"
    saves: int = 4

    def __post_init__(self) -> None:
        require(self.saves >= 1, "saves", self.saves, ">= 1")


def main(arguments: list[str]) -> int:
    options = read_settings(Options, arguments)
    keep_freed_memory()
    shape = [f"{key}={TOKENS}" for key in ("train.sequence", "chunk_size.shard", "chunk_size.global_size")]
    overrides = [f"model={options.model}", *shape, "train.batch_size=1", "niah=off", "logger=none", "data=stdlib"]
    config = atlas.compose([*overrides, f"device={options.device.value}"])
    device, precision = prepare_device(config.device)
    model = build_model(config).to(device)
    state = TrainState(model, build_optimizer(config, model), GateMonitor(config.train.gate), History(config.rollback))
    TrainStep(config.train, device, precision)(state, build_data(config).batch(1))
    print("| save | MB | stall s | ready s |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = CheckpointManager(Path(folder), keep=2)
        for number in range(1, options.saves + 1):
            began = time.perf_counter()
            checkpoints.begin_save(number, state.payload(), {"healthy": True})
            stall = time.perf_counter() - began
            saved = checkpoints.collect(wait=True)
            assert saved is not None
            ready = time.perf_counter() - began
            print(f"| {number} | {saved.bytes / 1e6:.0f} | {stall:.3f} | {ready:.2f} |", flush=True)
        checkpoints.close()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
