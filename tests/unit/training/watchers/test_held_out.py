"""How much of the validation rows training reads as well."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atlas.data.batch import Batch
from atlas.training.watchers import JUDGES
from atlas.training.watchers.facts import Facts
from atlas.training.watchers.held_out import HeldOut
from atlas.training.watchers.record import Record

TOKENS = 128
TEXT = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 8192))


def cut(text: torch.Tensor, starts: list[int], *, recall: bool = False) -> Batch:
    rows = torch.stack([text[start : start + TOKENS + 1] for start in starts])
    flags = torch.full((len(rows),), recall), torch.ones(len(rows), dtype=torch.bool)
    return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), torch.ones(len(rows), TOKENS), *flags)


def test_what_training_reads_of_the_validation_rows_is_counted() -> None:
    held_out = HeldOut([cut(TEXT, list(range(0, 2048, TOKENS)))])
    assert (held_out.compares, held_out.share) == (True, 0.0)
    held_out.see(cut(TEXT, list(range(2048, 8000, 200))))
    assert held_out.share == 0.0
    held_out.see(cut(TEXT, [0, TOKENS], recall=True))
    assert held_out.share == 0.0
    held_out.see(cut(TEXT, [0, TOKENS]))  # 2 of 16 rows
    assert held_out.share == 2 / 16
    held_out.see(cut(TEXT, [0, 3 * TOKENS]))
    assert held_out.share == 3 / 16


def test_rows_that_are_cut_elsewhere_are_found() -> None:
    held_out = HeldOut([cut(TEXT, list(range(0, 2048, TOKENS)))])
    held_out.see(cut(TEXT, list(range(40, 1800, TOKENS))))
    assert held_out.share == pytest.approx(0.35)


@pytest.mark.parametrize("kind", ["one symbol", "few symbols", "the same rows", "few rows", "short rows", "recall"])
def test_what_comes_again_anywhere_says_nothing(kind: str) -> None:
    starts = list(range(0, 2048, TOKENS))
    batch = {
        "one symbol": cut(TEXT * 0, starts),
        "few symbols": cut(TEXT % 4, starts),
        "the same rows": cut(TEXT, [0] * 16),
        "few rows": cut(TEXT, [0]),
        "short rows": cut(TEXT, starts),
        "recall": cut(TEXT, starts, recall=True),
    }[kind]
    if kind == "short rows":
        batch = Batch(batch.inputs[:, :60], batch.targets[:, :60], batch.weights[:, :60], batch.recall, batch.fresh)
    assert not HeldOut([batch]).compares


def test_rows_of_any_length_are_compared() -> None:
    whole = cut(TEXT, list(range(0, 2048, TOKENS)))
    short = Batch(*(part[:, :40] for part in (whole.inputs, whole.targets, whole.weights)), whole.recall, whole.fresh)
    longer = Batch(*(part[:, :90] for part in (whole.inputs, whole.targets, whole.weights)), whole.recall, whole.fresh)
    held_out = HeldOut([whole, longer])
    held_out.see(short)  # 40 tokens are less than a piece
    assert held_out.share == 0.0


def test_validation_that_training_has_read_is_told() -> None:
    record = Record(Facts(steps=100), step=60, validation_seen=0.25)
    found = JUDGES["validation_seen"](record)
    assert found is not None
    assert found.seen == "25% of the text of the validation rows stood in training rows so far"
    record.validation_seen = 0.1  # tests of one package have that in common
    assert JUDGES["validation_seen"](record) is None
