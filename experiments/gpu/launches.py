"""Counts the kernel launches and device waits of one training step on a GPU, without a GPU.

python -m experiments.gpu.launches [OVERRIDE ...]      such as model=atlas_60m chunk_size=c16 train.batch_size=1

The step runs on a stand-in (`stand_in.py`) whose tensors have shapes and no values; a Triton kernel is one launch, and
`device.kernels=torch` does without. Launches do not depend on the batch size. The first step makes the optimiser's
state; the second is counted. Prints the counts and the most frequent operations, and writes nothing.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from unittest.mock import patch

import torch

import atlas
from atlas.config import Kernels, Precision, RunConfig, require
from atlas.config.arguments import run_command
from atlas.kernels import gpu
from atlas.kernels.library import use
from atlas.ops.qk_projection import triton as products
from atlas.ops.whole_chunks import triton as chunks
from atlas.runs.build import build_data, build_model, build_optimizer
from atlas.training.gate_monitor import GateMonitor
from atlas.training.rollback.history import History
from atlas.training.state import TrainState
from atlas.training.step import TrainStep
from experiments.gpu.stand_in import DEVICE, Counts, counting, on_device

TOP = 10  # operations shown


class StepCounts(NamedTuple):
    update: Counter[str]  # launches of the optimiser, by operation
    whole: Counts  # of the step, the optimiser included


def count(config: RunConfig) -> StepCounts:
    """Of the second step of a run on CUDA."""
    kernels, allowed = config.device.kernels, "auto, triton or torch: the step is one on a GPU"
    require(kernels is not Kernels.compiled, "device.kernels", kernels, allowed)
    require(not config.device.compile, "device.compile", True, "false: what torch.compile launches is not counted")
    use(Kernels.torch)
    data = build_data(config)
    half = config.device.precision is not Precision.fp32
    step = TrainStep(config.train, DEVICE, torch.bfloat16 if half else torch.float32)
    with counting() as counts, triton_kernels():
        gpu.use(config.device.kernels)
        model = on_device(build_model(config))
        optimizer = build_optimizer(config, model)
        state = TrainState(model, optimizer, GateMonitor(config.train.gate), History(config.rollback))
        update: Counter[str] = Counter()
        run_update = optimizer.step

        def counted_update(number: int) -> float:
            before = counts.launches.copy()
            lr = run_update(number)
            update.update(counts.launches - before)
            return lr

        optimizer.step = counted_update  # type: ignore[method-assign]
        for number in (1, 2):
            counts.clear()
            update.clear()
            step(state, data.batch(number).pinned())
    return StepCounts(update, counts)


@contextmanager
def triton_kernels() -> Iterator[None]:
    """Every case that they take compiles; as operators they are launches like any other."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(gpu, "missing", lambda: ""))
        for kernels in (chunks, products):
            stack.enter_context(patch.object(kernels, "ready", lambda *variant: True))
        yield


def table(counts: StepCounts) -> str:
    whole = counts.whole
    lines = [
        f"launches     {whole.total:8,}  of these {counts.update.total():,} by the optimiser",
        f"waits        {whole.waits.total():8,}  {dict(whole.waits)}",
        f"host copies  {whole.copies:8,}  for which the host waits",
        "",
    ]
    return "\n".join(lines + [f"{number:8,}  {name}" for name, number in whole.launches.most_common(TOP)])


def main(arguments: list[str]) -> int:
    print(table(count(atlas.compose(arguments))))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
