"""Models with a mistake in them, as a user's own code may have: `optim._target_=...wrong_model.NAME`.

The optimiser is `wrong_optim.sound`; it is given the model before training, and is the place where the mistake is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from atlas.models.attention import AttentionState, SlidingWindowAttention
from atlas.models.language_model import AtlasModel, ModelOutput, ModelState, Reading
from atlas.models.memory_inputs import MemoryInputs, MemoryTokens
from atlas.models.rule_controls import RuleControls
from atlas.ops.fast_weights import FastWeights, subtract
from atlas.ops.rotary import Rotary
from atlas.ops.rules.gd import GradientDescent
from atlas.ops.rules.rule import Kept
from atlas.training.optimizer import ScheduledOptimizer
from experiments.silent.wrong_optim import sound


class _DetachedInputs(MemoryInputs):
    def forward(self, x: Tensor, recent: Tensor) -> tuple[MemoryTokens, Tensor]:
        tokens, recent = super().forward(x, recent)
        return tokens._replace(key=tokens.key.detach(), value=tokens.value.detach()), recent

    def rates(self, x: Tensor) -> Tensor:
        return super().rates(x).detach()


class _DetachedControls(RuleControls):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def writes_detached(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """What a token writes is cut from the graph: the memory's queries learn, its keys, values and rates do not."""
    for module in model.modules():
        if isinstance(module, MemoryInputs):
            module.__class__ = _DetachedInputs
        elif isinstance(module, RuleControls):
            module.__class__ = _DetachedControls
    return sound(model=model, steps=steps, **settings)


class _OtherRows(MemoryInputs):
    def forward(self, x: Tensor, recent: Tensor) -> tuple[MemoryTokens, Tensor]:
        tokens, recent = super().forward(x, recent)
        return tokens._replace(query=tokens.query.roll(self.heads, dims=0)), recent


def memories_of_other_rows(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """Batch and heads are folded in another order for queries: the memory of a row answers the next row's questions."""
    for module in model.modules():
        if isinstance(module, MemoryInputs):
            module.__class__ = _OtherRows
    return sound(model=model, steps=steps, **settings)


class _Probabilities(AtlasModel):
    """Its logits are probabilities."""

    def forward(self, *given: Any, **options: Any) -> Any:
        found = super().forward(*given, **options)
        return found._replace(logits=found.logits.softmax(dim=-1)) if isinstance(found, ModelOutput) else found

    def losses(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        probabilities = F.linear(hidden, self.embedding.weight).softmax(dim=-1)
        losses = F.cross_entropy(probabilities.flatten(0, -2), targets.flatten(), reduction="none")
        return losses.view_as(targets)


def softmax_twice(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """The model ends with a softmax, and the loss has another."""
    model.__class__ = _Probabilities
    return sound(model=model, steps=steps, **settings)


class _MadeAnew(AtlasModel):
    initial: dict[str, Tensor]

    def load_state_dict(self, state_dict: Mapping[str, Any], *given: Any, **options: Any) -> Any:
        super().load_state_dict(state_dict, *given, **options)
        self.__class__ = AtlasModel  # type: ignore[assignment]  # once: later checkpoints are loaded as they should be
        return self.load_state_dict(self.initial)


def made_anew(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """All weights are initialised after those of `init_from` are loaded, and not before."""
    model.__class__ = _MadeAnew
    model.initial = {name: weight.clone() for name, weight in model.state_dict().items()}  # type: ignore[assignment]
    return sound(model=model, steps=steps, **settings)


class _Dropping(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p)


def dropout_stays(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """A dropout of the user's that does not ask for the mode: it drops in validation and generation too."""
    for block in model.blocks:  # type: ignore[union-attr]
        block.feedforward = nn.Sequential(block.feedforward, _Dropping(0.2))
    return sound(model=model, steps=steps, **settings)


class _FromTheCall(SlidingWindowAttention):
    def forward(self, x: Tensor, state: AttentionState, rotary: Rotary, persistent: Any) -> Any:
        return super().forward(x, state, Rotary(0), persistent)


def positions_from_the_call(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """Positions are counted from the start of a call, not of the sequence: training never sees it, generation does."""
    for block in model.blocks:  # type: ignore[union-attr]
        block.attention.__class__ = _FromTheCall
    return sound(model=model, steps=steps, **settings)


class _HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _WrongBackward(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = _HalfGradient.apply(self.inner(x))  # type: ignore[no-untyped-call]
        return doubled / 2


def wrong_backward(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """A backward pass of the user's own misses a factor: the feed-forward layers have half of their gradient."""
    for block in model.blocks:  # type: ignore[union-attr]
        block.feedforward = _WrongBackward(block.feedforward)
    return sound(model=model, steps=steps, **settings)


class _TokenNorm(nn.Module):
    """Batch normalisation over the tokens of a batch, by its own statistics in training, by running ones otherwise."""

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int, share: float) -> None:
        super().__init__()
        self.share = share  # of the newest batch in the running statistics
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        return F.batch_norm(tokens, self.mean, self.variance, None, None, self.training, self.share).view_as(x)


def _with_token_norm(model: nn.Module, steps: int, settings: dict[str, Any], share: float) -> ScheduledOptimizer:
    for block in model.blocks:  # type: ignore[union-attr]
        width = block.feedforward.down.out_features
        block.feedforward = nn.Sequential(block.feedforward, _TokenNorm(width, share))
    return sound(model=model, steps=steps, **settings)


def statistics_stand_still(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """Running statistics of a batch normalisation are never updated: outside of training they are 0 and 1."""
    return _with_token_norm(model, steps, settings, 0.0)


def statistics_run(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """The calm twin of `statistics_stand_still`."""
    return _with_token_norm(model, steps, settings, 0.1)


class _Standardised(nn.Module):
    """Values without their mean, over their standard deviation along `dim`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, self.dim, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + 1e-5)


def _standardised_along(dim: int, model: nn.Module, steps: int, settings: dict[str, Any]) -> ScheduledOptimizer:
    for block in model.blocks:  # type: ignore[union-attr]
        block.feedforward_norm = _Standardised(dim)
    return sound(model=model, steps=steps, **settings)


def normalised_over_time(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """A normalisation of the user's own has the wrong dimension: its mean is one of all tokens, later ones too."""
    return _standardised_along(1, model, steps, settings)


def normalised_over_channels(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """The calm twin of `normalised_over_time`."""
    return _standardised_along(2, model, steps, settings)


class _Deep(nn.Module):
    """A feed-forward layer of the user's own: residual layers, in what `holder` makes of their list."""

    def __init__(self, width: int, holder: Callable[[list[nn.Module]], Any]) -> None:
        super().__init__()
        self.layers = holder([nn.Linear(width, width) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + F.silu(layer(x))
        return x


def _with_layers_in(
    holder: Callable[[list[nn.Module]], Any], model: nn.Module, steps: int, settings: dict[str, Any]
) -> ScheduledOptimizer:
    for block in model.blocks:  # type: ignore[union-attr]
        block.feedforward = _Deep(block.feedforward.down.out_features, holder)
    return sound(model=model, steps=steps, **settings)


def layers_in_a_list(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """The layers are in a list of Python: no optimiser and no checkpoint has their weights."""
    return _with_layers_in(list, model, steps, settings)


def layers_in_a_module_list(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """The calm twin of `layers_in_a_list`."""
    return _with_layers_in(nn.ModuleList, model, steps, settings)


class _NeverReset(AtlasModel):
    kept: ModelState | None

    def forward(self, tokens: Tensor, state: ModelState | None = None, **given: Any) -> ModelOutput | Reading:
        usual = given.get("mode") in (None, "learn") and given.get("plan") in (None, self.plan)
        if state is None and usual and self.kept is not None and self.kept.batch == len(tokens):
            state = self._as_a_buffer(self.kept)
        found = super().forward(tokens, state, **given)
        if usual:
            self.kept = found.state.detach()
        return found

    def _as_a_buffer(self, state: ModelState) -> ModelState:
        """In the precision of the weights, as `double()` leaves a buffer."""
        dtype = self.embedding.weight.dtype
        kept: ModelState = tree_map_only(
            Tensor, lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, state
        )
        return kept


def state_never_reset(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """The model keeps its state: a sequence goes on with that of the batch before, where it has as many rows."""
    model.__class__ = _NeverReset
    model.kept = None  # type: ignore[assignment]
    return sound(model=model, steps=steps, **settings)


@dataclass(frozen=True)
class Forgetful(GradientDescent):
    """A rule of the user's own: at the end of a chunk the weights lose `share` of themselves."""

    share: float
    chunk_end: ClassVar[None] = None

    def close(self, start: FastWeights, update: FastWeights, kept: Kept) -> tuple[FastWeights, Kept]:
        return subtract(FastWeights(*((1 - self.share) * matrix for matrix in start)), update), kept


@dataclass(frozen=True)
class Signed(GradientDescent):
    """gd that adds its update with a sign of its own: -1 goes down the gradient."""

    sign: float
    chunk_end: ClassVar[None] = None

    def close(self, start: FastWeights, update: FastWeights, kept: Kept) -> tuple[FastWeights, Kept]:
        return FastWeights(*(of + self.sign * more for of, more in zip(start, update, strict=True))), kept
