"""The language model: embedding, MAG blocks, tied head. State in, state out.

Legend: B sequences, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from atlas.config import VOCABULARY, ChunkSizeConfig, ModelConfig
from atlas.config.choices import member
from atlas.models.block import AtlasMAGBlock, BlockState
from atlas.models.norm import RMSNorm
from atlas.models.plan import ChunkPlan, MemoryMode
from atlas.models.state_check import mismatch, shapes
from atlas.ops.rotary import Rotary
from atlas.parallel.relay import Relay

LOGITS_AT_ONCE = 1 << 24  # of a loss: 64 MiB in float32
TOKENS_AT_ONCE = 16_384  # of a forward pass without gradients, with bytes as tokens


class ModelState(NamedTuple):
    """What the model keeps of the tokens it has read. Its size is constant if attention has a window."""

    position: int  # tokens read so far
    blocks: tuple[BlockState, ...]

    @property
    def batch(self) -> int:
        return self.blocks[0].attention.keys.shape[0]

    @property
    def counters(self) -> tuple[object, ...]:
        """What its sequences share: the position and the number of tokens of each open chunk; all but the tensors."""
        return tuple(leaf for leaf in pytree.tree_leaves(self) if not isinstance(leaf, Tensor))

    def split(self) -> list[ModelState]:
        """One state per sequence."""
        leaves, structure = pytree.tree_flatten(self)
        rows = [leaf.chunk(self.batch) if isinstance(leaf, Tensor) else [leaf] * self.batch for leaf in leaves]
        return [pytree.tree_unflatten(list(row), structure) for row in zip(*rows, strict=True)]

    @staticmethod
    def join(states: Sequence[ModelState]) -> ModelState:
        """One state of all sequences. Raises ValueError where their `counters` differ."""
        if differing := {state.counters for state in states} - {states[0].counters}:
            raise ValueError(f"states with counters {states[0].counters} and {differing.pop()}: must have the same")
        joined: ModelState = pytree.tree_map(
            lambda first, *others: torch.cat((first, *others)) if isinstance(first, Tensor) else first, *states
        )
        return joined

    def detach(self) -> ModelState:
        """The same values, cut from the graph: truncated back-propagation."""
        detached: ModelState = pytree.tree_map_only(Tensor, lambda leaf: _own_storage(leaf.detach()), self)
        return detached


class Reading(NamedTuple):
    """What the model makes of tokens before its head."""

    hidden: Tensor  # [B, T, D], normalised
    state: ModelState
    gates: tuple[Tensor, ...]  # [B, T, D] per block with a gate


class ModelOutput(NamedTuple):
    logits: Tensor  # [B, T, vocabulary]
    state: ModelState
    gates: tuple[Tensor, ...]  # [B, T, D] per block with a gate


class AtlasModel(nn.Module):
    """`model(tokens)` or `model(tokens, state)`: the memory learns from the tokens in training and evaluation alike.

    Raises ValueError for tokens that are not integers [B >= 1, T >= 1] or, on the CPU, not in the vocabulary; for a
    state of another batch size or another model; for a plan without one chunk per local memory, or with less than a
    token; and for a memory whose weights are in half precision.
    """

    def __init__(self, config: ModelConfig, chunks: ChunkSizeConfig, vocabulary: int) -> None:
        super().__init__()
        self.plan, self.windowed = ChunkPlan.from_config(chunks), config.window > 0
        self.embedding = nn.Embedding(vocabulary, config.width)
        self.blocks = nn.ModuleList(AtlasMAGBlock(config, len(chunks.local)) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        with torch.no_grad():
            for block in self.mag_blocks:  # residual branches start small, so that the stream does not grow with depth
                block.out.weight.mul_((2 * config.layers) ** -0.5)
                block.feedforward.down.weight.mul_((2 * config.layers) ** -0.5)

        self.tokenizer_file: Path | None = None  # of its ids; `atlas.load` finds it. None: they are bytes, or unknown
        plans = self.plan, self.plan.with_lasting(1.0, 1)
        self._shapes = tuple(shapes(self.initial_state(1, plan)) for plan in plans)  # of the state of one sequence

    def _repr_html_(self) -> str:
        """In a notebook: parameters by part, those of all blocks together; `print(model)` lists the modules."""
        counts: dict[str, int] = {}
        for name, parameter in self.named_parameters():
            first, *rest = name.split(".")
            part = f"{len(self.blocks)} blocks: {rest[1]}" if first == "blocks" else first
            counts[part] = counts.get(part, 0) + parameter.numel()
        counts["parameters"] = sum(counts.values())
        rows = "".join(f"<tr><th>{part}</th><td>{count:,}</td></tr>" for part, count in counts.items())
        return f"<table>{rows}</table>"

    @property
    def mag_blocks(self) -> list[AtlasMAGBlock]:
        """`blocks` by their type, one a layer."""
        return cast(list[AtlasMAGBlock], list(self.blocks))  # or wrapped: a wrapper has their attributes

    def initial_state(self, batch: int, plan: ChunkPlan | None = None) -> ModelState:
        """The state before the first token of a sequence. Raises ValueError for batch < 1."""
        plan = plan or self.plan
        if batch < 1:
            raise ValueError(f"batch={batch}: must be >= 1")
        return ModelState(0, tuple(block.initial_state(batch, plan) for block in self.mag_blocks))

    def forward(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        *,
        plan: ChunkPlan | None = None,
        mode: MemoryMode | str = MemoryMode.learn,
        with_logits: bool = True,
        place: Tensor | None = None,
        relay: Relay | None = None,
    ) -> ModelOutput | Reading:
        """tokens [B, T] int64 -> logits [B, T, vocabulary] for the token after each, the state, the gates.

        `with_logits=False` is for `read`, so that the hooks of the model see its passes as well. `place`: see `Rotary`.
        `relay`: the tokens are a part of new sequences, whose other parts other ranks read at the same time.
        """
        plan, mode = plan or self.plan, member(MemoryMode, "mode", mode)
        self._check(tokens, state, plan)
        start = relay.part * tokens.shape[1] if relay else 0
        first, states = (state.position, state.blocks) if state else (start, [None] * len(self.blocks))
        x = self._embed(tokens)
        blocks, gates, rotary = [], [], Rotary(first, place)
        for block, before in zip(self.mag_blocks, states, strict=True):
            if relay is not None and not relay.begins:
                initial = block.initial_state(len(tokens), plan)
                x, crossing = relay.take(x, initial.crossing)
                before = initial.starting_from(crossing)
            x, block_state, gate = block(x, before, rotary, plan, mode)
            if relay is not None:
                x = relay.hand(x, block_state.crossing)
            blocks.append(block_state)
            gates += [] if gate is None else [gate]
        after = ModelState(first + tokens.shape[1], tuple(blocks))
        after = after if torch.is_grad_enabled() else after.detach()
        hidden = self.norm(x)
        if not with_logits:
            return Reading(hidden, after, tuple(gates))
        return ModelOutput(F.linear(hidden, self.embedding.weight), after, tuple(gates))

    def read(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        *,
        plan: ChunkPlan | None = None,
        mode: MemoryMode | str = MemoryMode.learn,
        relay: Relay | None = None,
    ) -> Reading:
        """As `model(tokens)`, without the logits: those of many tokens and a large vocabulary take the most memory."""
        reading: Reading = self(tokens, state, plan=plan, mode=mode, with_logits=False, relay=relay)
        return reading

    def losses(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Cross entropies [B, T] in nats of `targets` [B, T], from the `hidden` [B, T, D] of `read`.

        More than `LOGITS_AT_ONCE` logits are made in pieces, and again in the backward pass; of targets whose `weights`
        [B, T], on the CPU, are 0 they are then not made at all, and these losses are 0.
        """
        weight = self.embedding.weight
        if -(-targets.numel() * weight.shape[0] // LOGITS_AT_ONCE) <= 1:
            return _cross_entropies(hidden, weight, targets)
        hidden, wanted, counted = hidden.flatten(0, 1), targets.flatten(), None
        if weights is not None:
            counted = weights.flatten().nonzero().squeeze(1).to(hidden.device)
            hidden, wanted = hidden[counted], wanted[counted]
        pieces = max(-(-wanted.numel() * weight.shape[0] // LOGITS_AT_ONCE), 1)
        parts = zip(hidden.chunk(pieces), wanted.chunk(pieces), strict=True)
        again = partial(checkpoint, _cross_entropies, use_reentrant=False, preserve_rng_state=False)
        losses = torch.cat([again(part, weight, some) for part, some in parts])
        if counted is not None:
            losses = losses.new_zeros(targets.numel()).index_put((counted,), losses)
        return losses.view_as(targets)

    @property
    def tokens_at_once(self) -> int:
        """Tokens of a forward pass whose logits take a bounded amount of memory."""
        return max(TOKENS_AT_ONCE * VOCABULARY // self.embedding.num_embeddings, 1)

    def _embed(self, tokens: Tensor) -> Tensor:
        """Raises ValueError for a token id out of range on the CPU; looking at each id would make a GPU wait."""
        try:
            embedded: Tensor = self.embedding(tokens)
        except IndexError as error:
            found = f"[{int(tokens.min())}, {int(tokens.max())}]"
            raise ValueError(f"tokens in {found}: must be in [0, {self.embedding.num_embeddings})") from error
        return embedded

    def _check(self, tokens: Tensor, state: ModelState | None, plan: ChunkPlan) -> None:
        """Raise ValueError for tokens, state or plan that do not fit the model."""
        if not isinstance(tokens, Tensor):
            raise ValueError(f"tokens of type {type(tokens).__name__}: must be a tensor")
        shape = list(tokens.shape)
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"tokens of shape {shape}: must be [batch, tokens >= 1], batch >= 1")
        if tokens.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"tokens of {tokens.dtype}: must be of torch.int64 or torch.int32")
        if len(plan.local) != len(self.plan.local):
            allowed = f"as many as the model has local memories, {len(self.plan.local)}"
            raise ValueError(f"plan.local={plan.local}: must be {allowed}")
        plan.check()
        if state is None:
            return
        if not isinstance(state, ModelState):
            raise ValueError(f"state of type {type(state).__name__}: must be a ModelState, as `model(tokens).state`")
        if state.batch != tokens.shape[0]:
            raise ValueError(f"state of batch size {state.batch}: must be of {shape[0]}, as tokens of shape {shape}")
        wanted, cached = self._shapes[bool(plan.lasting)], 0 if self.windowed else state.position
        if wrong := mismatch(state, wanted, state.batch, cached, self.embedding.weight, "state"):
            raise ValueError(f"{wrong}; a state belongs to the model and the plan that made it")


def _cross_entropies(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """hidden [..., D], weight [vocabulary, D], targets [...] -> losses [...], in float32 whatever the logits are in."""
    logits = F.linear(hidden, weight)
    return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), reduction="none").view_as(targets)


def _own_storage(leaf: Tensor) -> Tensor:
    """Copy a small part of a large tensor, so that a state does not keep the tensors of a long prefill alive."""
    return leaf.clone() if leaf.untyped_storage().nbytes() > 2 * leaf.numel() * leaf.element_size() else leaf
