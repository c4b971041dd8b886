"""A whole model with compiled kernels beside the same one with PyTorch's operations."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import atlas
from atlas.config import Kernels, Rule, RunConfig
from atlas.kernels.library import use

SETTINGS = (
    "model.width=32", "model.heads=2", "model.feedforward=48", "model.layers=2", "model.window=8",
    "model.persistent_keys=4", "model.memory.hidden=16", "train.sequence=48", "chunk_size.local=[4,8]",
    "chunk_size.shard=24", "chunk_size.global_size=16", "niah=off", "logger=none",
)  # fmt: skip

SHORT_CHUNKS = ("chunk_size.local=[2,3]", "chunk_size.global_size=4")


def losses_and_gradients(config: RunConfig, kernels: Kernels, cut: int) -> list[Tensor]:
    """Of a stretch of 53 tokens, read in two pieces: no piece is a whole number of chunks."""
    use(kernels)
    model = atlas.build_model(config)
    tokens = torch.randint(0, 256, (2, 54), generator=torch.Generator().manual_seed(0))
    first = model(tokens[:, :cut])
    second = model(tokens[:, cut:-1], first.state)
    logits = torch.cat((first.logits, second.logits), dim=1)
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    return [logits, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"model.memory.rule={rule}"] for rule in Rule),
        ["model.memory.recompute=true"],
        ["model.memory.recompute=true", "model.memory.rule=momentum"],
        ["model.memory.rule=momentum", "chunk_size.local=[1]"],
        [*SHORT_CHUNKS, "model.memory.rule=omega", "model.memory.omega.window=6"],
        [*SHORT_CHUNKS, "model.memory.rule=atlas", "model.memory.atlas.window=6"],
        ["model.memory.weight_norm_max=0.2"],
        ["model.memory.qk_projection.range=chunk", "model.memory.qk_projection.normalisation=per_key"],
        ["model.memory.degree=2", "model.memory.feature_width=8"],
        ["model.window=0"],
    ],
    ids=lambda overrides: ",".join(overrides).replace("model.", ""),
)
def test_a_model_is_the_same_with_both(kernel: ctypes.CDLL, overrides: list[str]) -> None:
    config = atlas.compose([*SETTINGS, *overrides])
    found, wanted = (losses_and_gradients(config, kernels, 21) for kernels in (Kernels.compiled, Kernels.torch))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * max(1e-2, theirs.abs().max().item()))
