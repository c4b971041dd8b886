"""An exponential moving average of the weights (`train.ema`), for evaluation: training itself does not see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

AVERAGE = "average"  # the part of a checkpoint that holds it


class WeightAverage:
    """A <- d A + (1 - d) W after every step, d = min(decay, (1 + step) / (10 + step)): early steps are forgotten."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {}
        self.start(model)

    def start(self, model: nn.Module) -> None:
        """Begin anew with the weights that the model has."""
        self.weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, weight in model.state_dict().items():
            self.weights[name].lerp_(weight, 1 - decay)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over a saved average. Raises RuntimeError for that of another model."""
        if {name: weight.shape for name, weight in weights.items()} != {n: w.shape for n, w in self.weights.items()}:
            raise RuntimeError("the averaged weights are those of another model")
        for name, weight in weights.items():
            self.weights[name].copy_(weight)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own bits again afterwards."""
        own = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(own)
