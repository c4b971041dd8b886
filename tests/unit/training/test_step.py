"""Rows of a batch that stand at different places of their sequences: a restarted one is a fresh sequence in everything.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import atlas
from atlas.config import Rule
from atlas.models.language_model import AtlasModel, ModelState
from atlas.training.carried_rows import restart_rows, run_rows

SEQUENCE, ROWS = 12, 5
SETTINGS = (
    "model.width=16", "model.heads=2", "model.feedforward=12", "model.layers=1", "model.window=5",
    "model.persistent_keys=4", "model.memory.hidden=6", "train.carry_memory=true",
    f"train.sequence={SEQUENCE}", "chunk_size.local=[2,4]", "chunk_size.shard=4", "chunk_size.global_size=12",
    "niah=off", "logger=none",
)  # fmt: skip
RESTARTS = [[], [0, 1], [1, 3], [0, 4]]  # rows that start anew at the segments after the first


def make(*overrides: str) -> tuple[AtlasModel, Tensor]:
    model = atlas.build_model(atlas.compose([*SETTINGS, *overrides])).double()
    tokens = torch.randint(0, 256, (ROWS, SEQUENCE * (len(RESTARTS) + 1)), generator=torch.Generator().manual_seed(0))
    return model, tokens


def leaves(states: list[ModelState]) -> list[Any]:
    return [leaf for state in states for row in state.split() for leaf in pytree.tree_leaves(row)]


@torch.no_grad()
def trained_as(model: AtlasModel, tokens: Tensor) -> tuple[Tensor, list[ModelState]]:
    """Logits of all segments [B, T, V] as a training step reads them one after the other, and the last states."""
    carried: list[ModelState] = []
    logits = []
    for index, segment in enumerate(tokens.split(SEQUENCE, dim=1)):
        fresh = torch.zeros(ROWS, dtype=torch.bool)
        fresh[RESTARTS[index - 1] if index else slice(None)] = True
        outputs = run_rows(model, segment, restart_rows(carried, fresh))
        carried = [output.state.detach() for output in outputs]
        logits.append(torch.cat([output.logits for output in outputs]))
    return torch.cat(logits, dim=1), carried


@torch.no_grad()
def one_by_one(model: AtlasModel, tokens: Tensor) -> tuple[Tensor, list[ModelState]]:
    """The same by sequences read alone, each in one pass from its restart on."""
    rows, states = [], []
    for row in range(ROWS):
        starts = [0, *(index for index, rows in enumerate(RESTARTS, start=1) if row in rows), len(RESTARTS) + 1]
        outputs = [model(tokens[row : row + 1, a * SEQUENCE : b * SEQUENCE]) for a, b in pairwise(starts)]
        rows.append(torch.cat([output.logits for output in outputs], dim=1))
        states.append(outputs[-1].state)
    return torch.cat(rows), states


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"model.memory.rule={rule}"] for rule in Rule),
        ["chunk_size.global_size=30"],  # longer than a segment: its chunk stays open at the end of one
        ["chunk_size.global_size=30", "model.memory.rule=momentum", "chunk_size.shard=12"],
        ["model.memory.qk_projection.range=chunk", "chunk_size.global_size=18"],
        ["model.window=0"],
        ["model=attention_only"],
    ],
    ids=lambda overrides: ",".join(overrides),
)
def test_a_restarted_row_is_a_fresh_sequence_and_the_others_go_on(overrides: list[str]) -> None:
    model, tokens = make(*overrides)
    logits, states = trained_as(model, tokens)
    expected, alone = one_by_one(model, tokens)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(leaves(states), leaves(alone))


def test_rows_at_one_place_go_through_together() -> None:
    model, tokens = make()
    first = tokens[:, :SEQUENCE]
    (output,) = run_rows(model, first, restart_rows([], torch.ones(ROWS, dtype=torch.bool)))
    assert torch.equal(output.logits, model(first).logits)
    before = restart_rows([output.state], torch.tensor([True, True, False, False, True]))
    assert [row is None for row in before] == [True, True, False, False, True]
    assert [out.state.batch for out in run_rows(model, first, before)] == [2, 2, 1]


def test_states_cut_in_another_way_are_the_same_rows() -> None:
    model, tokens = make()
    whole, none = model(tokens[:, :SEQUENCE]).state, torch.zeros(ROWS, dtype=torch.bool)
    parts = [ModelState.join(part) for part in (whole.split()[:2], whole.split()[2:])]
    outputs = [run_rows(model, tokens[:, :SEQUENCE], restart_rows(carried, none)) for carried in ([whole], parts)]
    assert [len(one) for one in outputs] == [1, 1]
    assert torch.equal(outputs[0][0].logits, outputs[1][0].logits)
