"""Muon on stacked weights is PyTorch's Muon on each of their matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from atlas import compose
from atlas.models.stacked_linear import StackedLinear
from atlas.runs.build import build_model
from atlas.training.muon import Muon, orthogonalised

SHAPES = [((6, 4), 1), ((12, 4), 3), ((4, 6), 2), ((5, 5), 1), ((12, 4), 3), ((12, 4), 1)]  # of a weight, and its parts
SETTINGS = {"lr": 0.1, "weight_decay": 0.1}


def weights(generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(shape, generator=generator) for shape, _ in SHAPES]


def trained() -> tuple[list[Tensor], dict[str, object]]:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(weight) for weight in weights(generator)]
    unused = nn.Parameter(torch.ones(6, 4))
    parts = dict(zip(parameters, (parts for _, parts in SHAPES), strict=True)) | {unused: 1}
    optimizer = Muon(parts, **SETTINGS)
    for _ in range(3):
        for parameter, gradient in zip(parameters, weights(generator), strict=True):
            parameter.grad = gradient
        optimizer.step()
    assert torch.equal(unused, torch.ones(6, 4))
    return [parameter.detach() for parameter in parameters], optimizer.state_dict()


def trained_apart() -> list[Tensor]:
    """The reference: PyTorch's Muon, to which each matrix is a parameter of its own."""
    generator = torch.Generator().manual_seed(0)
    parameters = [
        [nn.Parameter(part.clone()) for part in weight.chunk(parts)]
        for weight, (_, parts) in zip(weights(generator), SHAPES, strict=True)
    ]
    every = [matrix for matrices in parameters for matrix in matrices]
    optimizer = torch.optim.Muon(every, **SETTINGS, adjust_lr_fn="match_rms_adamw")  # type: ignore[arg-type]
    for _ in range(3):
        for matrices, gradient in zip(parameters, weights(generator), strict=True):
            for matrix, part in zip(matrices, gradient.chunk(len(matrices)), strict=True):
                matrix.grad = part.clone()
        optimizer.step()
    return [torch.cat([matrix.detach() for matrix in matrices]) for matrices in parameters]


def test_each_matrix_of_a_stack_is_updated_by_itself() -> None:
    found, _ = trained()
    torch.testing.assert_close(found, trained_apart(), rtol=0, atol=3e-3)  # Newton-Schulz in bfloat16


def test_the_state_is_that_of_pytorch() -> None:
    _, state = trained()
    parameters = [nn.Parameter(torch.zeros(shape)) for shape, _ in SHAPES] + [nn.Parameter(torch.ones(6, 4))]
    theirs = torch.optim.Muon(parameters, **SETTINGS, adjust_lr_fn="match_rms_adamw")  # type: ignore[arg-type]
    theirs.load_state_dict(state)
    (group,) = theirs.param_groups
    assert group["adjust_lr_fn"] == "match_rms_adamw"
    for place, kept in state["state"].items():  # type: ignore[attr-defined]
        assert torch.equal(theirs.state[parameters[place]]["momentum_buffer"], kept["momentum_buffer"])


def test_the_stacked_layers_of_the_model() -> None:
    model = build_model(compose(["device=cpu"]))
    stacked = {
        name.split(".", 2)[2]: layer.parts for name, layer in model.named_modules() if isinstance(layer, StackedLinear)
    }
    assert stacked == {"attention.qkv": 3, "memory.inputs.qkv": 3, "feedforward.up": 2}


@pytest.mark.parametrize("shape", [(3, 8, 5), (3, 5, 8)])
def test_a_direction_has_singular_values_near_1(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalised(matrices, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    assert found.dtype is torch.bfloat16
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.5
    assert values.max() < 1.3
