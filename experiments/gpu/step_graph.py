"""Training steps with and without a CUDA graph: how fast, and how far apart their losses are.

python -m experiments.gpu.step_graph [steps=30] [OVERRIDE ...]      such as model=small chunk_size=c16

With device.compile=true both are run with compiled blocks too; on a CPU that takes a C++ compiler and minutes. Prints
milliseconds of a step (median), tokens/s, the largest relative difference of a loss from the first way, and why a graph
was given up if it was. Writes no file. On a CPU `device.graph` is never used. Exit status: 1 if it was given up.
"""

from __future__ import annotations

import sys
import time
from itertools import product
from statistics import median

import atlas
from atlas.config import RunConfig, require
from atlas.config.arguments import run_command
from atlas.kernels import gpu
from atlas.runs.build import build_data, build_model, build_optimizer, graph_capture, prepare_device
from atlas.training.batch_ahead import BatchAhead
from atlas.training.gate_monitor import GateMonitor
from atlas.training.rollback.history import History
from atlas.training.state import TrainState
from atlas.training.step import TrainStep
from experiments.gpu.options import integers

SETTLED = 6  # steps that warm up, record and compare


def trained(config: RunConfig, steps: int) -> tuple[list[float], float]:
    """Losses, and the milliseconds of a step."""
    device, precision = prepare_device(config.device)
    model = build_model(config).to(device)
    optimizer = build_optimizer(config, model)
    state = TrainState(model, optimizer, GateMonitor(config.train.gate), History(config.rollback))
    capture = graph_capture(config, device)
    step = TrainStep(config.train, device, precision, compiled=config.device.compile, capture=capture)
    batches = BatchAhead(build_data(config), device)
    losses, seconds = [], []
    for number in range(1, steps + 1):
        batch = batches.take(number)
        began = time.perf_counter()
        losses.append(step(state, batch).loss)  # a step ends with a read of the device
        seconds.append(time.perf_counter() - began)
    batches.close()
    return losses, 1e3 * median(seconds[min(SETTLED, steps - 1) :])


def main(arguments: list[str]) -> int:
    given = ["30", *(text.removeprefix("steps=") for text in arguments if text.startswith("steps="))][-1]
    found = integers("steps", given)
    require(len(found) == 1, "steps", given, "one integer >= 1")
    steps = found[0]
    overrides = [text for text in arguments if not text.startswith("steps=")]
    compiled = atlas.compose(overrides).device.compile
    losses: list[list[float]] = []
    # The first way twice: how far rounding takes two equal runs apart, where kernels add in any order.
    twice = [("false", "never"), *product(("false", "true") if compiled else ("false",), ("never", "auto"))]
    for compile_, graph in twice:
        ways = [f"device.compile={compile_}", f"device.graph={graph}"]
        config = atlas.compose([*overrides, *ways, f"train.steps={max(steps, 2)}"])
        of_way, spent = trained(config, steps)
        losses.append(of_way)
        apart = [abs(a - b) / abs(a) for a, b in zip(losses[0], of_way, strict=True)]
        tokens = config.train.batch_size * config.train.sequence
        speed = f"{spent:8.1f} ms a step, {1e3 * tokens / spent:12,.0f} tokens/s"
        print(f"{' '.join(ways):42}  {speed}, losses apart {apart[0]:.1e}, at most {max(apart):.1e}", flush=True)
    for lost in gpu.news():
        print(lost)
    return int(gpu.graphless())


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
