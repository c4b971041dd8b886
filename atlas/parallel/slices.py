"""Weights in slices (FSDP2): every rank holds a part of each parameter, of its gradient and of its moments.

A block is whole on a rank while it computes. What reads weights outside of a training step reads a whole copy, so that
one rank alone can do it and it cannot change a bit of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

Model = TypeVar("Model", bound=nn.Module)
Weights = Mapping[str, Tensor]


class Slices(Generic[Model]):
    """The slices of a model's weights on the ranks of `mesh`. Every rank calls its methods at the same place.

    `units`: its submodules that are whole one at a time. FSDP2 takes no scalars: in slices they are vectors of one
    element, and scalars again where they are whole.
    """

    def __init__(self, model: Model, units: Sequence[nn.Module], mesh: DeviceMesh) -> None:
        self.model = model
        self._copy = deepcopy(model).to("meta")
        self._scalars = {name for name, parameter in model.named_parameters() if parameter.dim() == 0}
        for name in self._scalars:
            owner, _, attribute = name.rpartition(".")
            parameter = model.get_parameter(name)
            setattr(model.get_submodule(owner), attribute, nn.Parameter(parameter.detach().view(1)))
        modules: list[nn.Module] = [*units, model]
        for module in modules:
            fully_shard(module, mesh=mesh)
        for unit in _units(model):
            unit.set_gradient_divide_factor(1.0)  # a rank has divided its losses by what the whole batch counts
            unit.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it sums

    @contextmanager
    def whole_model(self) -> Iterator[Model]:
        """A copy of the model with whole weights."""
        training = self.model.training
        self._copy.load_state_dict(self.whole_weights(), assign=True)
        try:
            yield self._copy.train(training)
        finally:
            self._copy.to("meta")

    def whole_weights(self) -> dict[str, Tensor]:
        """Of the model."""
        return self.saved_weights(whole=True)

    def saved_weights(self, weights: Weights | None = None, *, whole: bool) -> dict[str, Tensor]:
        """Of the model, or others in the same slices, as a checkpoint has them: whole, or all but scalars in slices."""
        found = self.model.state_dict() if weights is None else weights
        return {name: self._saved(name, tensor, whole) for name, tensor in found.items()}

    def of_weights(self, weights: Weights) -> dict[str, Tensor]:
        """The slices of whole weights; what the model does not have stays as it is."""
        own = self.model.state_dict()
        return {name: slice_of(tensor, own[name]) if name in own else tensor for name, tensor in weights.items()}

    def load(self, weights: Weights) -> None:
        """Give the model these whole weights, the same on every rank."""
        self.model.load_state_dict(self.of_weights(weights))

    def saved_moments(self, optimizer: torch.optim.Optimizer, *, whole: bool) -> dict[str, Any]:
        """The state of an optimiser of the model's parameters, as a checkpoint has it."""
        state = optimizer.state_dict()
        return {**state, "state": self._moments(optimizer, state, partial(self._saved, as_whole=whole))}

    def of_moments(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
        """The same as this rank's `optimizer` loads it."""
        parameters = dict(self.model.named_parameters())

        def cut(name: str, value: Tensor) -> Tensor:
            parameter = parameters[name]
            return slice_of(value, parameter) if value.numel() == parameter.numel() else value

        return {**state, "state": self._moments(optimizer, state, cut)}

    def _moments(
        self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], turn: Callable[[str, Tensor], Tensor]
    ) -> dict[int, dict[str, Any]]:
        """All but the count of steps, which is no moment."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        return {
            index: {
                key: turn(order[index], value) if isinstance(value, Tensor) and key != "step" else value
                for key, value in moments.items()
            }
            for index, moments in state["state"].items()
        }

    def _saved(self, name: str, tensor: Tensor, as_whole: bool) -> Tensor:
        scalar = name in self._scalars
        found = whole(tensor.detach()) if as_whole or scalar else tensor.detach()
        return found.view(()) if scalar else found


def whole(tensor: Tensor) -> Tensor:
    """The tensor of all slices; a plain one as it is. A collective operation."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """The rank's slice; a plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def slice_of(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in the slices of `like`: nothing is sent, since every rank has it."""
    if not isinstance(like, DTensor):
        return tensor
    shaped = tensor.detach().to(like.device).view(like.shape)
    return distribute_tensor(shaped, like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def unsummed(module: nn.Module) -> Iterator[None]:
    """Backward passes in this context add to gradients of the rank's own."""
    root = next(_units(module))
    root.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        root.set_requires_gradient_sync(True)


def _units(module: nn.Module) -> Iterator[FSDPModule]:
    """The first is the whole model."""
    return (cast(FSDPModule, part) for part in module.modules() if isinstance(part, FSDPModule))
