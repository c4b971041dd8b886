"""Watchers of what the model reads, on real batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from atlas.data.batch import Batch
from atlas.training.watchers import JUDGES
from atlas.training.watchers.measuring import batch_facts, digest
from atlas.training.watchers.record import DIGESTS, Facts, Record

ROWS, TOKENS = 4, 32


def batch_of(tokens: Tensor, weights: Tensor | None = None, recall: bool = False) -> Batch:
    """From tokens [B, T + 1]."""
    weights = torch.ones(ROWS, TOKENS) if weights is None else weights
    flags = torch.full((ROWS,), recall), torch.ones(ROWS, dtype=torch.bool)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weights, *flags)


def drawn(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return batch_of(torch.randint(0, 256, (ROWS, TOKENS + 1), generator=generator))


def told(name: str, batches: list[Batch], baseline: float = 2.0) -> str | None:
    record = Record(Facts(steps=100, baseline=baseline))
    record.digests.extend(map(digest, batches))
    record.batches.extend(map(batch_facts, batches[::10]))
    found = JUDGES[name](record)
    return None if found is None else found.seen


DATA = ("labels", "repeated_batch", "one_symbol", "padding")


@pytest.mark.parametrize("name", DATA)
def test_calm_batches_and_too_few_of_them(name: str) -> None:
    assert told(name, [drawn(seed) for seed in range(DIGESTS)]) is None
    assert told(name, [drawn(0)] * (DIGESTS // 2)) is None
    assert told(name, []) is None


def test_one_batch_again_and_again() -> None:
    assert told("repeated_batch", [drawn(0)] * DIGESTS) == "the last 20 batches are only 1 different ones"
    assert told("repeated_batch", [drawn(seed % 3) for seed in range(DIGESTS)]) is None  # a text of three segments


def test_one_symbol() -> None:
    zeros = [batch_of(torch.zeros(ROWS, TOKENS + 1, dtype=torch.int64))] * DIGESTS
    assert told("one_symbol", zeros) == "100.0% of the targets are the same symbol"
    pattern = [drawn(seed) for seed in range(DIGESTS)]
    assert told("one_symbol", pattern, baseline=0.01) == "a bigram has a loss of 0.01 nats on the text"


def test_padding_of_text_rows_alone_counts() -> None:
    weights = torch.ones(ROWS, TOKENS)
    weights[:, 8:] = 0
    tokens = torch.arange(ROWS * (TOKENS + 1)).view(ROWS, -1)
    padded = [batch_of(tokens, weights)] * DIGESTS
    assert told("padding", padded) == "75% of the targets of text rows count nothing"
    assert told("padding", [batch_of(tokens, weights, recall=True)] * DIGESTS) is None  # only answers count there


def test_labels_that_are_shifted_or_copied() -> None:
    calm = [drawn(seed) for seed in range(DIGESTS)]
    copied = [replace(batch, targets=batch.inputs) for batch in calm]
    shifted = [replace(batch, targets=batch.targets.roll(-1, dims=1)) for batch in calm]
    found = told("labels", copied)
    assert found is not None
    assert found.endswith("% of the targets are the next token; they are the input itself, which the model sees")
    found = told("labels", shifted)
    assert found is not None
    assert found.endswith("% of the targets are the next token; they are other tokens")
    weights = torch.zeros(ROWS, TOKENS)
    weights[:, 3] = 1
    masked = [replace(batch, targets=torch.where(weights > 0, batch.targets, 0), weights=weights) for batch in calm]
    assert told("labels", masked) is None  # what has no weight may be anything


@pytest.mark.parametrize(
    ("before", "here", "first_step", "told"),
    [
        ([1, 2, 3], [1, 2, 3], 100, True),
        ([1, 2, 3], [101, 102, 103], 100, False),
        ([1, 2, 3], [1, 2, 3], 0, False),  # the first start
        ([1, 2, 3], [1, 2, 3], 2, False),  # stopped after two steps: batch 3 is new
    ],
)
def test_a_resumed_run_that_reads_its_first_batches_again_is_told(
    before: list[int], here: list[int], first_step: int, told: bool
) -> None:
    record = Record(Facts(steps=1000, first_step=first_step))
    record.load_state_dict(Record(Facts(steps=1000), first_digests=before).state_dict())
    for one in here:
        record.add_digest(one)
    found = JUDGES["data_again"](record)
    assert (found and found.seen) == ("the first 3 batches after step 100 are those of steps 1 to 3" if told else None)


def test_processes_with_the_same_rows_are_told_at_the_second_look() -> None:
    assert JUDGES["same_rows"](Record(Facts(steps=10), same_rows=1)) is None
    found = JUDGES["same_rows"](Record(Facts(steps=10), same_rows=2))
    assert found is not None
    assert found.seen == "two processes train on the same rows"
