"""The peak of a device, measured by matrix products: what the speed of a run is compared with."""

from __future__ import annotations

import time

import torch

SIDES = {  # of square matrices: the larger ones come closer to the peak; a small one does not fill a GPU
    "cpu": (512, 1024, 2048, 4096, 8192),
    "cuda": (4096, 8192, 16384),
}
REPEATS = 3
SHARE = 0.005  # of the training time that may be spent; the smallest product is always measured


def measured_peak(device: torch.device, dtype: torch.dtype, training_seconds: float) -> float:
    """Operations per second of the fastest product; a multiplication with its addition is two."""
    left, best, took = SHARE * training_seconds, 0.0, 0.0
    for side in SIDES[device.type]:
        if 8 * took > left:  # twice the side is eight times the work
            break
        generator = torch.Generator(device).manual_seed(0)  # training's own random numbers stay as they are
        matrix = torch.randn(side, side, generator=generator, device=device, dtype=dtype)
        seconds = [_seconds(matrix) for _ in range(1 + REPEATS)]
        took = len(seconds) * min(seconds)  # without what the first product loads
        left -= took
        best = max(best, 2 * side**3 / min(seconds))
    return best


def _seconds(matrix: torch.Tensor) -> float:
    began = time.perf_counter()
    matrix @ matrix
    if matrix.is_cuda:
        torch.cuda.synchronize(matrix.device)
    return time.perf_counter() - began
