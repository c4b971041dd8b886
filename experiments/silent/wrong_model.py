"""Models with a mistake in them, as a user's own code may have: `optim._target_=...wrong_model.NAME`.

The optimiser is `wrong_optim.sound`; it is given the model before training, and is the place where the mistake is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from atlas.models.language_model import AtlasModel, ModelOutput
from atlas.models.memory_inputs import MemoryInputs, MemoryTokens
from atlas.models.rule_controls import RuleControls
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
