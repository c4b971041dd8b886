"""Reading a model without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, full precision; afterwards every module is in the mode that it was in.

    Probes draw from generators of their own, so no random state needs to be put back.
    """
    training = [(module, module.training) for module in model.modules()]
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        for module, mode in training:
            module.training = mode
