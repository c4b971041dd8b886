"""Prints which Triton kernels a training step launches that were not compiled before; no GPU is needed.

python -m tests.triton.launched [OVERRIDE ...]      TRITON_INTERPRET must not be set

Nothing is compiled and no kernel runs: a kernel stands for what it would be compiled for.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from atlas.kernels import gpu
from tests.unit.training.test_compiled import losses

run = JITFunction.run


def told(kernel: Any, *given: Any, grid: Any, warmup: bool, **settings: Any) -> Any:
    """Prints what it does."""
    cache = kernel.device_caches[0][0]
    before = len(cache)
    found = run(kernel, *given, grid=grid, warmup=True, **settings)
    print(f"{kernel.__name__}: {'compiled' if warmup else 'NOT COMPILED' if len(cache) > before else 'launched'}")
    return found


def kept(kernel: Any, key: str, signature: Any, device: int, *rest: Any) -> Any:
    found = kernel.device_caches[device][0][key] = SimpleNamespace(metadata=SimpleNamespace(shared=0))
    return found


if __name__ == "__main__":
    target = GPUTarget("cuda", 90, 32)
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: target
        )
    )
    properties = SimpleNamespace(shared_memory_per_block_optin=2**20)
    with (
        patch.object(JITFunction, "run", told),
        patch.object(JITFunction, "_do_compile", kept),
        patch.object(gpu, "usable", lambda **places: True),
        patch("torch.cuda.get_device_properties", lambda: properties),
    ):
        losses(["device.precision=bf16", "device.kernels=torch", *sys.argv[1:]], compiled=False, steps=2)
