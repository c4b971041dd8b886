from dataclasses import replace

import numpy as np
import pytest
import torch

from atlas.data.batch import Batch


@pytest.fixture
def batch() -> Batch:
    tokens = np.arange(4 * 6, dtype=np.uint8).reshape(4, 6)
    weights = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)
    return Batch.from_tokens(
        tokens, weights, np.array([True, True, False, False]), np.array([True, False, True, False])
    )


def test_targets_are_the_inputs_one_token_later(batch: Batch) -> None:
    assert batch.inputs[1].tolist() == [6, 7, 8, 9, 10]
    assert batch.targets[1].tolist() == [7, 8, 9, 10, 11]
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.weights.dtype == torch.float32


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("weights", torch.ones(4, 1), r"weights of a batch: must be \[4, 5\], as its inputs, not \[4, 1\]"),
        ("weights", torch.ones(5), r"weights of a batch: must be \[4, 5\], as its inputs, not \[5\]"),
        ("targets", torch.zeros(4, 6, dtype=torch.int64), r"targets of a batch: must be \[4, 5\]"),
        ("recall", torch.zeros(1, dtype=torch.bool), r"recall of a batch: must be \[4\]"),
        ("fresh", torch.ones(4, dtype=torch.int64), r"fresh of a batch: must be bool, not torch.int64"),
    ],
)
def test_columns_that_would_be_stretched_or_taken_for_indices_are_refused(
    column: str, value: torch.Tensor, told: str, batch: Batch
) -> None:
    with pytest.raises(ValueError, match=told):
        replace(batch, **{column: value})


def test_split_keeps_rows_in_order(batch: Batch) -> None:
    parts = batch.split(2)
    assert [part.inputs[:, 0].tolist() for part in parts] == [[0, 6], [12, 18]]
    assert [part.recall.tolist() for part in parts] == [[True, True], [False, False]]
    assert [part.fresh.tolist() for part in parts] == [[True, False], [True, False]]
    assert torch.equal(torch.cat([part.weights for part in parts]), batch.weights)


def test_rows_that_cannot_be_cut_evenly_are_cut_about_evenly() -> None:
    column = torch.arange(13)
    batch = Batch(*(column[:, None],) * 3, column > 5, column > 7)
    parts = batch.split(4)
    assert [len(part.inputs) for part in parts] == [3, 3, 3, 4]
    assert torch.equal(torch.cat([part.recall for part in parts]), batch.recall)


@pytest.mark.parametrize("parts", [0, 5, 8])
def test_split_refuses_more_parts_than_rows(batch: Batch, parts: int) -> None:
    with pytest.raises(ValueError, match=f"parts={parts}"):
        batch.split(parts)


def test_to_moves_what_is_read_on_the_device(batch: Batch) -> None:
    moved = batch.to("meta")
    assert {part.device.type for part in (moved.inputs, moved.targets, moved.weights)} == {"meta"}
    assert {part.device.type for part in (moved.recall, moved.fresh)} == {"cpu"}  # the host asks for them
