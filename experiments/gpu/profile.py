"""One training step under PyTorch's profiler: launches, how busy the device is, the longest kernels.

python -m experiments.gpu.profile [OVERRIDE ...]      such as model=atlas_60m chunk_size=c16 device.kernels=torch

Prints the figures and writes nothing.
"""

from __future__ import annotations

import sys
import time

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import atlas
from atlas.config.arguments import run_command
from atlas.runs.build import build_data, build_model, build_optimizer, prepare_device
from atlas.training.batch_ahead import BatchAhead
from atlas.training.gate_monitor import GateMonitor
from atlas.training.rollback.history import History
from atlas.training.state import TrainState
from atlas.training.step import TrainStep

WARM_UPS, LONGEST = 3, 10


def main(arguments: list[str]) -> int:
    config = atlas.compose(arguments)
    device, precision = prepare_device(config.device)
    model = build_model(config).to(device)
    optimizer = build_optimizer(config, model)
    state = TrainState(model, optimizer, GateMonitor(config.train.gate), History(config.rollback))
    step, batches = (
        TrainStep(config.train, device, precision, compiled=config.device.compile),
        BatchAhead(build_data(config), device),
    )
    for number in range(1, WARM_UPS + 1):
        step(state, batches.take(number))
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    with profile(activities=activities, record_shapes=True, acc_events=True) as found:
        began = time.perf_counter()
        step(state, batches.take(WARM_UPS + 1))
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    batches.close()
    place = DeviceType.CUDA if on_gpu else DeviceType.CPU
    kernels = [event for event in found.key_averages() if event.device_type == place and not event.is_user_annotation]
    busy = sum(event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in kernels) / 1e6
    tokens = config.train.batch_size * config.train.sequence
    print(f"{' '.join(arguments)} on {device}")
    print(f"step {seconds * 1e3:.1f} ms under the profiler, {tokens / seconds:,.0f} tokens/s")
    print(f"launches {sum(event.count for event in kernels):,}, device busy {busy / seconds:.0%} of the step")
    for event in sorted(kernels, key=lambda one: -(one.self_device_time_total if on_gpu else one.self_cpu_time_total))[
        :LONGEST
    ]:
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        print(f"{spent / 1e3:9.2f} ms {event.count:7,} x {event.key[:110]}")
    if on_gpu:
        print("\noperations and the shapes of their inputs")
        shaped = [one for one in found.key_averages(group_by_input_shape=True) if one.device_type == DeviceType.CPU]
        for event in sorted(shaped, key=lambda one: -one.self_device_time_total)[: 3 * LONGEST]:
            shapes = " ".join(str(shape).replace(" ", "") for shape in event.input_shapes if shape)
            print(f"{event.self_device_time_total / 1e3:9.2f} ms {event.count:7,} x {event.key[:40]} {shapes[:110]}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
