"""Trains the default model for SECONDS after some warm-up steps and prints its tokens per second.

python -m experiments.busy_machine.worker SECONDS [OVERRIDES]
"""

from __future__ import annotations

import sys
import time

import atlas

WARM_UP_STEPS = 3


def main(seconds: float, overrides: list[str]) -> float:
    config = atlas.compose(["niah=off", "logger=none", "device=cpu", *overrides])
    from atlas.runs.allocator import keep_freed_memory
    from atlas.runs.build import build_data, build_model, build_optimizer, prepare_device
    from atlas.training.gate_monitor import GateMonitor
    from atlas.training.rollback.history import History
    from atlas.training.state import TrainState
    from atlas.training.step import TrainStep

    keep_freed_memory()  # as a run does
    device, precision = prepare_device(config.device)
    model = build_model(config)
    data = build_data(config)
    state = TrainState(model, build_optimizer(config, model), GateMonitor(config.train.gate), History(config.rollback))
    step = TrainStep(config.train, device, precision)
    for number in range(1, WARM_UP_STEPS + 1):
        step(state, data.batch(number))
    tokens, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        batch = data.batch(state.step + 1)
        step(state, batch)
        tokens += batch.inputs.numel()
    return tokens / (time.perf_counter() - began)


if __name__ == "__main__":
    print(main(float(sys.argv[1]), sys.argv[2:]))
