"""What the machine is and can do: versions, the kernels in use, one large product and one large copy.

python -m experiments.gpu.machine [device=cuda] [size=8192]       prints it and writes nothing
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from atlas.config import DeviceConfig, DeviceKind, require
from atlas.config.arguments import read_settings, run_command
from atlas.runs.build import prepare_device
from atlas.runs.environment import device_name, git_revision, versions
from experiments.speed.race import seconds_of

REPEATS = 10


@dataclass(frozen=True)
class Options:
    device: DeviceKind = DeviceKind.cuda
    size: int = 8192  # of the square matrices

    def __post_init__(self) -> None:
        require(self.size >= 1, "size", self.size, ">= 1")


def main(arguments: list[str]) -> int:
    options = read_settings(Options, arguments)
    device, _ = prepare_device(DeviceConfig(kind=options.device))
    print(f"device    {device_name(device)}")
    print(f"revision  {git_revision()}")
    print(f"versions  {', '.join(f'{name} {found}' for name, found in versions().items())}")
    square = torch.randn(options.size, options.size, device=device)
    for dtype in (torch.bfloat16, torch.float32):
        matrix = square.to(dtype)
        best = min(seconds_of(lambda matrix=matrix: matrix @ matrix, device) for _ in range(REPEATS))  # type: ignore[misc]
        print(f"product   {2 * options.size**3 / best / 1e12:8.1f} TFLOP/s  {dtype}")
    target = torch.empty_like(square)
    best = min(seconds_of(lambda: target.copy_(square), device) for _ in range(REPEATS))
    print(f"copy      {2 * square.nbytes / best / 1e9:8.1f} GB/s read and written")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
