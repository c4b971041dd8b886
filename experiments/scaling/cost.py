"""What a training step keeps on each rank and sends, by layout: formulas over the shapes of the model's own parameters.

Legend: W ranks; C ranks that share a sequence; M micro-batches; L layers. Bytes are of float32 tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from atlas.config import ParallelKind, RunConfig
from atlas.models.flops import flops_per_token
from atlas.runs.build import build_model
from atlas.training.optimizer import parameter_groups

BYTES = 4  # of a weight, a gradient, a moment


class Backend(StrEnum):
    gloo = "gloo"  # sums whole tensors where slices are wanted: twice what is needed
    nccl = "nccl"


@dataclass(frozen=True)
class Shape:
    """Of a parameter. `matrix`: Muon keeps one moment of it, AdamW two of everything else."""

    rows: int
    columns: int  # elements of a row
    matrix: bool
    in_block: bool  # a block is whole on a rank only while it computes

    @property
    def elements(self) -> int:
        return self.rows * self.columns

    def own(self, world: int) -> int:
        """Elements of the largest slice: FSDP2 cuts rows, and the last ranks may have fewer or none."""
        return -(-self.rows // world) * self.columns


def shapes(config: RunConfig) -> list[Shape]:
    """Of all parameters of the model, which is not made."""
    with torch.device("meta"):
        model = build_model(config)
    matrices = {id(parameter) for parameter in parameter_groups(model)[0]}
    of_blocks = {id(p) for block in model.mag_blocks for p in block.parameters()}
    return [_shape(one, id(one) in matrices, id(one) in of_blocks) for one in model.parameters()]


def _shape(parameter: nn.Parameter, matrix: bool, in_block: bool) -> Shape:
    rows = parameter.shape[0] if parameter.dim() else 1
    return Shape(rows, parameter.numel() // rows, matrix, in_block)


def kept_bytes(parameters: Sequence[Shape], kind: ParallelKind, world: int) -> int:
    """Weights, gradients and moments of a rank between two steps, of the rank with the most."""

    def of(one: Shape) -> int:
        elements = one.own(world) if kind is ParallelKind.fsdp else one.elements
        return BYTES * elements * (3 if one.matrix else 4)

    return sum(map(of, parameters))


def whole_bytes(parameters: Sequence[Shape], layers: int) -> int:
    """With FSDP2: what is whole on a rank at a time besides its slices, two blocks and the rest of the model."""
    blocks = sum(one.elements for one in parameters if one.in_block)
    rest = sum(one.elements for one in parameters if not one.in_block)
    return BYTES * (rest + min(2, layers) * blocks // layers)


def sent_bytes(
    parameters: Sequence[Shape], kind: ParallelKind, world: int, backend: Backend, micro_batches: int = 1
) -> float:
    """By each rank in a step of M micro-batches; by rings, in which each rank sends all but one part."""
    ring = (world - 1) / world
    if kind is not ParallelKind.fsdp:
        return 2 * ring * BYTES * sum(one.elements for one in parameters)
    padded = [(one, world * one.own(world)) for one in parameters]
    gathered = sum((2 if one.in_block else 1) * size for one, size in padded)
    by_muon = sum(size for one, size in padded if one.matrix)
    summed = sum(size for _, size in padded) * (2 if backend is Backend.gloo else 1)
    return ring * BYTES * (micro_batches * gathered + by_muon + summed)


def crossing_elements(config: RunConfig) -> int:
    """Numbers that a part of one sequence hands on in all layers: window, convolution, global memory. Of any length."""
    with torch.device("meta"):
        state = build_model(config).initial_state(1)
    leaves = [leaf for block in state.blocks for leaf in pytree.tree_leaves(block.crossing)]
    return sum(leaf.numel() if isinstance(leaf, Tensor) else 1 for leaf in leaves)


def handed_bytes(config: RunConfig, context: int) -> int:
    """By a rank in a step, between the C ranks that share its rows: states on, and their gradients back."""
    neighbours = min(context - 1, 2)  # the first and the last rank have one
    return BYTES * neighbours * crossing_elements(config) * config.train.batch_size


def compute_seconds(config: RunConfig, tokens: int, flops_per_second: float) -> float:
    """Of a rank's `tokens` of a step, forward and backward."""
    flops = flops_per_token(config.model, config.chunk_size, config.train.sequence)
    return flops.training * tokens / flops_per_second


def context_efficiency(layers: int, micro_batches: int, context: int) -> float:
    """Share of the time in which C ranks that share a sequence by its shards work: ML / (ML + C - 1), a wavefront."""
    units = micro_batches * layers
    return units / (units + context - 1)
