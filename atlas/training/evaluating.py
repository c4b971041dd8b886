"""A model in evaluation mode, for whatever reads it between two steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, restored afterwards. The memory learns in this mode too."""
    modes = [(module, module.training) for module in model.modules()]  # a part may stay in evaluation mode
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
