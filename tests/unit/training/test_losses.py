from __future__ import annotations

from dataclasses import replace
from math import inf, log, nan

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from atlas.config import GateConfig
from atlas.data.batch import Batch
from atlas.training.losses import (
    LanguageLoss,
    gate_polarisation,
    mean_losses,
    polarisation_weight,
    row_losses,
    standard_error,
)
from atlas.training.micro_step import MicroStep, Outputs, share_of_batch


def batch(recall: list[bool]) -> tuple[Batch, torch.Tensor]:
    """4 tokens a row; a recall row has one answer, its last token."""
    torch.manual_seed(0)
    rows = len(recall)
    targets = torch.randint(0, 8, (rows, 4))
    weights = torch.ones(rows, 4)
    weights[recall, :3] = 0.0
    which = torch.tensor(recall)
    return Batch(targets, targets, weights, which, ~which), torch.randn(rows, 4, 8)


def language_loss(logits: torch.Tensor, rows: Batch) -> LanguageLoss:
    losses = F.cross_entropy(logits.flatten(0, 1), rows.targets.flatten(), reduction="none")
    return mean_losses(losses.view_as(rows.weights), rows)


def test_each_kind_is_a_mean_over_its_own_targets() -> None:
    rows, logits = batch([True, False, False, False])
    text = F.cross_entropy(logits[1:].flatten(0, 1), rows.targets[1:].flatten())
    answer = F.cross_entropy(logits[0, 3], rows.targets[0, 3])
    loss = language_loss(logits, rows)
    torch.testing.assert_close(loss.text, text)
    torch.testing.assert_close(loss.recall, answer)
    torch.testing.assert_close(loss.total, 0.75 * text + 0.25 * answer)


@pytest.mark.parametrize(("recall", "kind", "missing"), [(False, "text", "recall"), (True, "recall", "text")])
def test_a_batch_of_one_kind_has_its_loss_and_a_finite_gradient(recall: bool, kind: str, missing: str) -> None:
    rows, logits = batch([recall] * 3)
    logits.requires_grad_()
    loss = language_loss(logits, rows)
    assert torch.equal(loss.total, getattr(loss, kind))
    assert getattr(loss, missing).isnan()
    loss.total.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_recall_rows_without_a_question_add_nothing() -> None:
    rows, logits = batch([True, False, False, False])
    rows.weights[0] = 0.0
    logits.requires_grad_()
    text = F.cross_entropy(logits[1:].flatten(0, 1), rows.targets[1:].flatten())
    loss = language_loss(logits, rows)
    torch.testing.assert_close(loss.total, 0.75 * text)
    halves = zip(logits.split(2), rows.split(2), strict=True)
    parts = [share_of_batch(language_loss(piece, micro), micro, rows.totals()) for piece, micro in halves]
    torch.testing.assert_close(parts[0].total + parts[1].total, loss.total)
    loss.total.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_weight_that_is_not_a_number_is_never_lost() -> None:
    rows, logits = batch([True, False])
    rows.weights[:] = nan
    loss = language_loss(logits, rows)
    assert loss.total.isnan()
    assert share_of_batch(loss, rows, rows.totals()).total.isnan()


def test_a_uniform_prediction_costs_the_logarithm_of_the_vocabulary() -> None:
    rows, logits = batch([True, False])
    loss = language_loss(torch.zeros_like(logits), rows)
    assert [part.item() for part in loss] == pytest.approx([log(8)] * 3)


def test_polarisation_is_0_for_decided_gates_and_1_for_undecided_ones() -> None:
    gates = [torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.5, 0.5, 0.5])]
    assert gate_polarisation(gates[:1]).item() == 0.0
    assert gate_polarisation(gates[1:]).item() == 1.0
    assert gate_polarisation(gates).item() == 0.5
    assert gate_polarisation([torch.tensor([0.25, 0.9])]).item() == pytest.approx((0.5 + 0.2) / 2)


def test_the_gradient_of_the_polarisation_is_that_of_its_formula() -> None:
    gates = [torch.tensor([0.0, 0.5, 0.4, 1.0]), torch.tensor([[0.7, 0.2], [0.5, 0.1]]).mT]
    found, wanted = ([gate.double().requires_grad_() for gate in gates] for _ in range(2))
    gate_polarisation(found).mul(3).backward()
    torch.stack([(1 - (2 * gate - 1).abs()).mean() for gate in wanted]).mean().mul(3).backward()
    torch.testing.assert_close([gate.grad for gate in found], [gate.grad for gate in wanted])
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(gate_polarisation(found), found, create_graph=True)


@pytest.mark.parametrize(
    ("step", "weight"),
    [(1, 10.0), (100, 10.0), (101, 10 * 0.01**0.101), (500, 10 * 0.01**0.5), (1000, 0.1)],
)
def test_the_weight_holds_for_a_tenth_and_falls_to_a_hundredth(step: int, weight: float) -> None:
    assert polarisation_weight(step, 1000, GateConfig()) == pytest.approx(weight)


def test_losses_of_rows_are_weighted_means() -> None:
    losses = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [1.0, 1.0, 1.0, 1.0]])
    weights = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    assert row_losses(losses, weights).tolist() == [2.5, 7.75, 0.0]


def test_a_standard_error_takes_neighbours_together() -> None:
    values, weights = torch.arange(4.0).repeat_interleave(32).view(2, 64), torch.ones(2, 64)
    wanted = torch.arange(4.0).std().item() / 2
    assert standard_error(values, weights) == pytest.approx(wanted)
    weights[:, ::2] = 0  # half of the targets count
    assert standard_error(values, weights) == pytest.approx(wanted)
    assert standard_error(values[:1, :32], weights[:1, :32]) == inf


def test_every_parameter_has_the_gradient_that_other_processes_wait_for() -> None:
    """Where no target of the batch counts, and the gates alone have a gradient."""
    rows, _ = batch([False, False])
    rows = replace(rows, weights=torch.zeros_like(rows.weights))
    model = nn.ParameterDict({"head": nn.Parameter(torch.ones(2, 4)), "gate": nn.Parameter(torch.full((3,), 0.7))})

    def forward(*_: object) -> Outputs:
        return Outputs(2 * model["head"], [model["gate"].sigmoid()], [])

    micro_step = MicroStep(model, forward, awaited=True)  # type: ignore[arg-type]
    loss, _ = micro_step(rows, rows, [None, None], rows.totals(), 0.1, 2)
    loss.backward()
    assert model["head"].grad is not None
    assert not model["head"].grad.any()
    assert model["gate"].grad is not None
    assert model["gate"].grad.all()
