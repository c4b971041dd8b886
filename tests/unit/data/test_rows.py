"""Rows of a batch that are made apart are those of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atlas.data.batch import Batch, Totals
from atlas.data.mixed import MixedData
from atlas.data.recall import RecallData, RecallTask
from atlas.data.source import DataSource
from atlas.data.text import StdlibData, TextData

ROWS = 8
TASK = RecallTask(
    pairs=4,
    queries=6,
    sparse_share=0.4,
    sparse_pairs=1,
    sparse_queries=2,
    key_bytes=2,
    value_bytes=1,
    value_alphabet=16,
    distance_min=16,
    haystack={"noise": 1.0, "random": 1.0, "text": 1.0, "none": 1.0},
    curriculum_steps=10,
    filler_weight=0.1,
)
Make = Callable[[list[str], dict[str, Any]], DataSource]


def text(paths: list[str], run: dict[str, Any]) -> DataSource:
    return TextData(paths=paths, encoding="bytes", validation_share=0.25, **run)


def stdlib(paths: list[str], run: dict[str, Any]) -> DataSource:
    return StdlibData(validation_share=0.1, **run)


def recall(paths: list[str], run: dict[str, Any]) -> DataSource:
    return RecallData(recall=TASK, paths=paths, encoding="bytes", validation_share=0.25, **run)


def mixed(paths: list[str], run: dict[str, Any]) -> DataSource:
    shares = {"recall_share_start": 0.75, "recall_share_end": 0.25, "recall_hold": 0.25, "recall_blend_end": 0.75}
    return MixedData(recall=TASK, paths=paths, encoding="bytes", validation_share=0.25, **shares, **run)


def made(make: Make, folder: Path, *, rows: int = ROWS, carry: bool = False) -> DataSource:
    file = folder / "a.txt"
    file.write_bytes(np.random.default_rng(0).integers(128, 256, 4000, dtype=np.uint8).tobytes())
    run = {"sequence": 128, "batch_size": rows, "seed": 3, "steps": 20, "carry_memory": carry}
    return make([str(file)], run)


def require_equal(one: Batch, other: Batch) -> None:
    for column in fields(Batch):
        assert torch.equal(getattr(one, column.name), getattr(other, column.name)), column.name


def joined(parts: list[Batch]) -> Batch:
    return Batch(*(torch.cat([getattr(part, column.name) for part in parts]) for column in fields(Batch)))


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("make", [text, stdlib, recall, mixed])
def test_rows_made_apart_are_those_of_the_whole_batch(make: Make, carry: bool, tmp_path: Path) -> None:
    data = made(make, tmp_path, carry=carry)
    for step in (1, 2, 11, 20):  # of `mixed`: 6, 6, 4 and 2 recall rows
        whole = data.batch(step)
        assert whole.inputs.shape == (ROWS, 128)
        for ends in ([0, 4, 8], [0, 3, 5, 8], list(range(ROWS + 1))):
            parts = [range(*pair) for pair in pairwise(ends)]
            require_equal(joined([data.batch(step, part) for part in reversed(parts)][::-1]), whole)


@pytest.mark.parametrize("make", [text, recall, mixed])
def test_steps_and_rows_differ(make: Make, tmp_path: Path) -> None:
    data = made(make, tmp_path)
    inputs = torch.cat([data.batch(step).inputs for step in range(1, 6)])
    assert len({bytes(row.tolist()) for row in inputs}) == 5 * ROWS


@pytest.mark.parametrize("make", [text, recall])
def test_a_row_does_not_depend_on_the_size_of_the_batch(make: Make, tmp_path: Path) -> None:
    few, many = made(make, tmp_path, rows=3), made(make, tmp_path, rows=8)
    require_equal(few.batch(7), many.batch(7, range(3)))


@pytest.mark.parametrize("rows", [range(6, 9), range(-1, 2), range(2, 2), range(0, 8, 2)])
def test_refuses_rows_that_are_not_in_the_batch(rows: range, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be neighbours in range\(0, 8\)"):
        made(mixed, tmp_path).batch(1, rows)


def test_the_totals_of_parts_add_up_to_those_of_the_batch(tmp_path: Path) -> None:
    data = made(mixed, tmp_path)
    whole = data.batch(11).totals()
    parts = [data.batch(11, range(row, row + 1)).totals() for row in range(ROWS)]
    assert Totals.sum(parts) == Totals.sum(parts[::-1]) == whole
    assert (whole.rows, whole.recall, whole.text_weight) == (8, 4, 4 * 128)
    assert whole.recall_weight == pytest.approx(data.batch(11).weights[:4].sum().item(), rel=1e-6)


def test_the_sparse_share_of_any_first_rows_is_right() -> None:
    starts = np.random.default_rng(0).random(200)
    counts = np.array([[TASK.sparse_rows(start, range(rows)).sum() for rows in range(9)] for start in starts])
    expected = 0.4 * np.arange(9)
    assert (abs(counts - expected) < 1).all()
    assert abs(counts.mean(axis=0) - expected).max() < 0.1
    all_sparse, none = replace(TASK, sparse_share=1.0), replace(TASK, sparse_share=0.0)
    assert all_sparse.sparse_rows(0.7, range(3, 8)).tolist() == [True] * 5
    assert none.sparse_rows(0.7, range(3, 8)).tolist() == [False] * 5
