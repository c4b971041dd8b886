"""A contestant's name -> a module that gives the loss of a batch, and its training step.

Legend: B sequences, T tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import atlas
from atlas.config import VOCABULARY, Kernels, RunConfig
from atlas.kernels import gpu
from atlas.kernels.library import use
from atlas.models.block import AtlasMAGBlock
from atlas.models.language_model import AtlasModel
from atlas.models.plan import MemoryMode
from atlas.training.compiled import CompiledBlocks
from experiments.speed.names import BRANCHES, MODELS, TITANS, Memory
from experiments.speed.plain_transformer import PlainTransformer

LEARNING_RATE = 1e-4  # small: the numbers stay finite on random bytes, whatever the model
TITANS_SEGMENT = 64  # tokens of titans-pytorch's attention segments
TITANS_EXTRA_TOKENS = 4  # persistent, and long-term per segment


class Shape(NamedTuple):
    """What a step is run on."""

    model: str  # option of conf/model
    batch: int  # B
    sequence: int  # T

    @property
    def tokens(self) -> int:
        return self.batch * self.sequence


class NextToken(nn.Module):
    """tokens [B, T + 1] -> mean cross-entropy of the next token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        out = self.model(tokens[:, :-1])
        logits = out.logits if isinstance(self.model, AtlasModel) else out
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


class MemoryBranch(nn.Module):
    """The memory of one block on embedded tokens [B, T + 1] -> mean square of what it recalls."""

    def __init__(self, model: AtlasModel) -> None:
        super().__init__()
        block = model.blocks[0]
        assert isinstance(block, AtlasMAGBlock)
        self.embedding, self.plan = model.embedding, model.plan
        self.memory, self.persistent = block.memory, block.persistent

    def forward(self, tokens: Tensor) -> Tensor:
        assert self.memory is not None
        assert self.persistent is not None
        x = self.embedding(tokens[:, :-1])
        state = self.memory.initial_state(x.shape[0], self.persistent, self.plan)
        recalled, _ = self.memory(x, state, 0, self.persistent, self.plan, MemoryMode.learn)
        loss: Tensor = recalled.float().square().mean()
        return loss


class TrainingStep:
    """Forward, backward and AdamW on random bytes: what all contestants are timed at, each with the same call.

    On a GPU forward and backward are one CUDA graph after `record`, as in a run of atlas; so the host's launches slow
    down no contestant. `compiled`: blocks by torch.compile, of every contestant.
    """

    def __init__(self, name: str, shape: Shape, device: torch.device, *, compiled: bool = False) -> None:
        torch.manual_seed(0)
        self.device = device
        self.kernels = _kernels(name)
        self.loss = build(name, shape).to(device)
        self.parameters = sum(parameter.numel() for parameter in self.loss.parameters())
        self.optimizer = torch.optim.AdamW(self.loss.parameters(), lr=LEARNING_RATE, fused=True)
        self.batch = torch.randint(0, VOCABULARY, (shape.batch, shape.sequence + 1)).to(device)
        self._blocks = _compiled_blocks(self.loss) if compiled else nullcontext
        self._replay: tuple[Tensor, Callable[[], None]] | None = None

    def __call__(self) -> Tensor:
        if self._replay is None:
            loss = self.gradients()
        else:
            loss, replay = self._replay
            replay()
        self.optimizer.step()
        return loss

    def gradients(self) -> Tensor:
        """Forward and backward."""
        use(self.kernels)
        gpu.use(self.kernels)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"), self._blocks():
            loss: Tensor = self.loss(self.batch)
        loss.backward()
        return loss.detach()

    def record(self) -> None:
        """Forward and backward as a CUDA graph from now on. Raises what the device raises."""
        self._replay = gpu.cuda_capture(self.gradients)


def _compiled_blocks(loss: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    if isinstance(loss, NextToken) and isinstance(loss.model, AtlasModel):
        return CompiledBlocks(loss.model)
    for block in loss.model.blocks:  # type: ignore[union-attr]
        block.compile(fullgraph=True, dynamic=False)
    return nullcontext


def _kernels(name: str) -> Kernels:
    memory = {**MODELS, **BRANCHES}.get(name)
    return Kernels.auto if memory is None or memory.compiled else Kernels.torch


def build(name: str, shape: Shape) -> nn.Module:
    """The loss module of a contestant. Raises `ConfigError` for a shape that its model cannot take."""
    if name in TITANS:
        return NextToken(_titans(int(name.removeprefix("titans_")), configuration("transformer", shape)))
    config = configuration(name, shape)
    if name == "transformer":
        return NextToken(PlainTransformer(config.model, VOCABULARY, shape.sequence))
    model = atlas.build_model(config)
    return MemoryBranch(model) if name in BRANCHES else NextToken(model)


def configuration(name: str, shape: Shape) -> RunConfig:
    """The run configuration behind a contestant; the plain Transformers take their width, layers and heads from it."""
    overrides = [f"model={shape.model}", f"train.sequence={shape.sequence}", "niah=off", "logger=none", "data=stdlib"]
    if memory := {**MODELS, **BRANCHES}.get(name):
        overrides += _memory_overrides(memory, shape)
    else:
        overrides.append("model.memory.enabled=false")
        # As conf/model/transformer.yaml makes one of tiny.
        overrides += [] if name == "attention" else ["model.window=0", "model.persistent_keys=0"]
    return atlas.compose(overrides)


def _memory_overrides(memory: Memory, shape: Shape) -> list[str]:
    overrides = [f"chunk_size={memory.chunk}", f"model.memory.rule={memory.rule}"]
    overrides += [] if memory.sharded else [f"chunk_size.shard={shape.sequence}"]
    return overrides + ([] if memory.use_global else ["model.memory.use_global=false"])


def _titans(chunk: int, config: RunConfig) -> nn.Module:
    """titans-pytorch's model of the same width, layers and heads; its own defaults for the rest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit.script, in what it imports
        from titans_pytorch import MemoryAsContextTransformer
    model = config.model
    titans: nn.Module = MemoryAsContextTransformer(
        num_tokens=VOCABULARY,
        dim=model.width,
        depth=model.layers,
        heads=model.heads,
        dim_head=model.width // model.heads,
        segment_len=TITANS_SEGMENT,
        neural_memory_segment_len=chunk,
        num_persist_mem_tokens=TITANS_EXTRA_TOKENS,
        num_longterm_mem_tokens=TITANS_EXTRA_TOKENS,
    )
    return titans
