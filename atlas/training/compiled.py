"""The blocks of a model compiled by `torch.compile`, for the forward passes of training alone.

Validation, probes and decoding read stretches of many lengths, and each would be compiled anew. Blocks of one shape
share their code: two graphs, whatever their number, since the first block makes the rotary angles. A break in a graph
is an error: `fullgraph`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from atlas.kernels import call, gpu
from atlas.models.language_model import AtlasModel
from atlas.ops import causal_convolution, rotary, unit_rows
from atlas.ops.qk_projection import torch as products
from atlas.ops.qk_projection import triton as triton_products
from atlas.ops.whole_chunks import torch as chunks
from atlas.ops.whole_chunks import triton as triton_chunks

# Functions with a backward pass of their own that write into parts of a tensor: Dynamo takes each of them as one node,
# and AOTAutograd traces its operations.
WHOLE = (
    rotary.rotated,
    unit_rows.unit_rows,
    causal_convolution.causal_convolution,
    products.causal_products,
    chunks.fused_chunk,
)
# What the choice of kernels asks the machine; the answers hold for the whole process.
CONSTANT = (call.available, gpu.usable, triton_chunks.ready, triton_products.ready)

BACKEND = "inductor"


class CompiledBlocks:
    """`with compiled: model(...)` runs the compiled blocks. Raises what `torch.compile` raises."""

    def __init__(self, model: AtlasModel) -> None:
        for function in WHOLE:
            torch.compiler.allow_in_graph(function)
        for constant in CONSTANT:
            torch.compiler.assume_constant_result(constant)
        self._blocks: list[tuple[Any, Callable[..., Any]]] = [
            (block, torch.compile(block.forward, backend=BACKEND, fullgraph=True, dynamic=False))
            for block in model.blocks
        ]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        from torch._functorch import config as functorch  # with the compiler, which takes seconds to import

        for block, forward in self._blocks:
            block.forward = forward
        try:
            # The backward pass of a step runs outside of autocast.
            with functorch.patch(backward_pass_autocast="off"), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")  # its own
                yield
        finally:
            for block, _ in self._blocks:
                del block.forward
