"""The Triton kernels of a run, compiled before step 1: what does not fit the GPU is known then."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from atlas.config import TRITON_CHUNK, TRITON_RULES, TRITON_WIDTHS, Rule, RunConfig
from atlas.kernels import gpu
from atlas.ops.whole_chunks import triton
from atlas.ops.whole_chunks.triton_scan import Variant


def require_kernels(config: RunConfig, device: torch.device, precision: torch.dtype) -> None:
    """Compile them. Raises `ConfigError` where `device.kernels=triton` insists on them and one cannot be launched."""
    on_gpu = device.type == "cuda"
    if precision is torch.bfloat16 and gpu.usable(on_gpu=on_gpu, on_cpu=not on_gpu):
        for variant in variants(config):
            triton.ready(*variant)


def variants(config: RunConfig) -> Iterator[Variant]:
    """What the scans of the memories launch; nothing where PyTorch's operations do the work."""
    memory, width = config.model.memory, config.model.width // config.model.heads
    sizes = width, memory.hidden, memory.feature_width or width
    known = memory.enabled and memory.rule in TRITON_RULES and memory.degree == 1
    if not known or not {*sizes} <= {*TRITON_WIDTHS}:
        return
    momentum = memory.rule is Rule.momentum
    for chunk in dict.fromkeys(config.chunk_size.local):
        if chunk <= TRITON_CHUNK:
            yield Variant(chunk, *sizes, prefix=True, momentum=momentum, products="bf16")
    size = config.chunk_size.global_size
    if memory.use_global and (size <= TRITON_CHUNK or size % TRITON_CHUNK == 0):
        momentum = momentum and size <= TRITON_CHUNK  # a longer chunk is cut into blocks, and momentum closes it
        yield Variant(min(size, TRITON_CHUNK), *sizes, prefix=False, momentum=momentum, products="bf16")
