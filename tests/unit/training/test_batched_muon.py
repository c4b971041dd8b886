"""Muon over all matrices of a shape at once is Muon over one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from atlas.training.batched_muon import BatchedMuon, orthogonalised

SHAPES = [(6, 4), (4, 6), (5, 5), (6, 4), (4, 6)]
SETTINGS = {"lr": 0.1, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}


def trained(kind: type[torch.optim.Optimizer], state: dict[str, object] | None = None) -> tuple[list[Tensor], object]:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    unused = nn.Parameter(torch.ones(6, 4))
    optimizer = kind([*parameters, unused], **SETTINGS)  # type: ignore[arg-type]
    if state is not None:
        optimizer.load_state_dict(state)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    assert torch.equal(unused, torch.ones(6, 4))
    return [parameter.detach() for parameter in parameters], optimizer.state_dict()


def test_both_update_the_same() -> None:
    ours, state = trained(BatchedMuon)
    theirs, expected = trained(torch.optim.Muon)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-3)  # Newton-Schulz in bfloat16, sums in another order
    torch.testing.assert_close(state["state"], expected["state"])  # type: ignore[index]
    crossed, _ = trained(BatchedMuon, expected)  # type: ignore[arg-type]
    again, _ = trained(torch.optim.Muon, state)  # type: ignore[arg-type]
    torch.testing.assert_close(crossed, again, rtol=0, atol=3e-3)


@pytest.mark.parametrize("shape", [(3, 8, 5), (3, 5, 8)])
def test_a_direction_has_singular_values_near_1(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalised(matrices, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    assert found.dtype is torch.bfloat16
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.5
    assert values.max() < 1.3
