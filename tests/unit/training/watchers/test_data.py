"""Watchers of what the model reads, on real batches."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from atlas.data.batch import Batch
from atlas.training.watchers import JUDGES
from atlas.training.watchers.batch_facts import batch_facts, continued_share, digest
from atlas.training.watchers.facts import Facts
from atlas.training.watchers.finding import Finding
from atlas.training.watchers.record import CONTINUED, DIGESTS, Record

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
    for record.step, batch in enumerate(batches, 1):
        record.add_digest(digest(batch))
    record.batches.extend(map(batch_facts, batches[::10]))
    record.tails.extend(batch_facts(batch).counted_tails for batch in batches[::4])
    found = JUDGES[name](record)
    return None if found is None else found.seen


DATA = ("labels", "repeated_batch", "same_rows", "one_symbol", "padding")


@pytest.mark.parametrize("name", DATA)
def test_calm_batches_and_too_few_of_them(name: str) -> None:
    assert told(name, [drawn(seed) for seed in range(DIGESTS)]) is None
    assert told(name, [drawn(0)] * (DIGESTS // 2)) is None
    assert told(name, []) is None


def test_one_batch_again_and_again() -> None:
    seen = "each of the last 20 batches came at least 2 times before; the data repeat every "
    assert told("repeated_batch", [drawn(0)] * (DIGESTS + 1)) is None  # the second one came once before
    assert told("repeated_batch", [drawn(0)] * (DIGESTS + 2)) == f"{seen}step"
    for period in (6, 30):
        batches = [drawn(seed % period) for seed in range(2 * period + DIGESTS)]
        assert told("repeated_batch", batches) == f"{seen}{period} steps"
        assert told("repeated_batch", batches[:-1]) is None


def test_a_text_that_is_read_in_order_comes_again_rightly() -> None:
    record = Record(Facts(steps=100, tokens=ROWS * TOKENS, text=6 * ROWS * TOKENS + 40))
    for record.step in range(1, 60):
        record.add_digest(record.step % 6)
    assert JUDGES["repeated_batch"](record) is None
    assert JUDGES["repeated_batch"](replace(record, facts=replace(record.facts, text=12 * ROWS * TOKENS))) is not None


def test_one_symbol() -> None:
    zeros = [batch_of(torch.zeros(ROWS, TOKENS + 1, dtype=torch.int64))] * DIGESTS
    assert told("one_symbol", zeros) == "100.0% of the targets are the same symbol"
    pattern = [drawn(seed) for seed in range(DIGESTS)]
    assert told("one_symbol", pattern, baseline=0.01) == "the bigram baseline is 0.01 nats on the text"


def test_padding_that_counts_is_told() -> None:
    padded = [drawn(seed) for seed in range(DIGESTS)]
    for batch in padded:
        batch.inputs[:3, 20:], batch.targets[:3, 19:] = 0, 0
    seen = "75% of the text rows end with one repeated symbol that counts in the loss"
    assert told("padding", padded) == seen
    weightless = [replace(batch, weights=batch.weights * (batch.targets > 0)) for batch in padded]
    assert told("padding", weightless) is None
    assert told("padding", [replace(batch, recall=~batch.recall) for batch in padded]) is None


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


def test_batches_that_a_rollback_reads_again_are_no_repetition() -> None:
    record = Record(Facts(steps=1000, sequence=64, text=10**6, tokens=64 * 8))
    saved = record.state_dict()
    for _ in range(4):
        record.load_state_dict(saved)
        for record.step in range(1, DIGESTS + 1):
            record.add_digest(record.step)
            record.add_rows(range(8 * record.step, 8 * record.step + 8))
        assert (JUDGES["repeated_batch"](record), JUDGES["rows_again"](record)) == (None, None)
        assert (len(record.came), len(record.new_rows), all(record.new_rows)) == (DIGESTS, 128, True)
        record.ended, record.open_suspicion = True, "of the last step"
    record.load_state_dict(saved)
    assert (record.ended, record.open_suspicion) == (False, "")


def test_no_more_rows_are_kept_than_the_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.training.watchers.record.MOST_ROWS", 1000)
    record = Record(Facts(steps=1000, sequence=64, text=10**9))
    for first in range(0, 5000, 100):
        record.add_rows(range(first, first + 100))
    assert len(record.row_digests) == 1000


def test_processes_with_the_same_rows_are_told_at_the_second_look() -> None:
    assert JUDGES["same_rows"](Record(Facts(steps=10), same_rows=1)) is None
    found = JUDGES["same_rows"](Record(Facts(steps=10), same_rows=2))
    assert found is not None
    assert found.seen == "two processes train on the same rows"


def test_rows_of_a_batch_that_are_the_same_are_told() -> None:
    calm = [drawn(seed) for seed in range(DIGESTS)]
    one_row = [batch_of(torch.cat((one.inputs, one.targets[:, -1:]), 1)[:1].expand(ROWS, -1)) for one in calm]
    assert told("same_rows", one_row) == "only 25% of the rows of a batch are different ones"
    # Each kind of row counts for itself, and rows without a target that counts do not.
    half = torch.tensor([False, False, True, True])
    mixed = [replace(one, recall=half, inputs=torch.where(half[:, None], two.inputs, one.inputs))
             for one, two in zip(one_row, calm, strict=True)]  # fmt: skip
    assert told("same_rows", mixed) == "only 50% of the rows of a batch are different ones"
    empty = [replace(one, weights=one.weights * torch.tensor([1.0, 0.0, 0.0, 0.0])[:, None]) for one in one_row]
    assert told("same_rows", empty) is None
    assert told("same_rows", [batch_of(torch.zeros(ROWS, TOKENS + 1, dtype=torch.int64))] * DIGESTS) is None


def segments(steps: int) -> list[Batch]:
    """Rows that go on, each through a text of its own."""
    text = torch.randint(0, 256, (ROWS, steps * TOKENS + 1), generator=torch.Generator().manual_seed(0))
    cut = [text[:, step * TOKENS : (step + 1) * TOKENS + 1] for step in range(steps)]
    return [replace(batch_of(tokens), fresh=torch.full((ROWS,), step == 0)) for step, tokens in enumerate(cut)]


def carried(batches: list[Batch]) -> str | None:
    shares = [continued_share(before, batch) for before, batch in pairwise([None, *batches])]
    record = Record(Facts(steps=100, carries=True))
    record.continued.extend(share for share in shares if share is not None)
    found = JUDGES["carried_rows"](record)
    return None if found is None else found.seen


def test_rows_that_go_on_with_another_text_are_told() -> None:
    sound = segments(CONTINUED + 1)
    assert carried(sound) is None
    shuffled = [replace(one, fresh=sound[0].fresh if step == 0 else ~sound[0].fresh)
                for step, one in enumerate(drawn(seed) for seed in range(CONTINUED + 1))]  # fmt: skip
    assert carried(shuffled) == (
        "at most 0% of the rows that are said to go on begin where the same row has ended a step before"
    )
    assert carried(shuffled[:-1]) is None  # too few steps
    skipped = [*sound[:2], *segments(CONTINUED + 4)[4:]]  # a rollback leaves steps out
    assert carried(skipped) is None
    assert carried([replace(one, fresh=sound[0].fresh) for one in shuffled]) is None  # each row begins anew
    masked = [replace(one, weights=torch.zeros(ROWS, TOKENS)) for one in shuffled]
    assert carried(masked) is None  # what has no weight may be anything


def test_rows_from_a_part_of_the_text() -> None:
    def seen(places: list[float], carries: bool = False) -> str | None:
        found = JUDGES["text_part"](Record(Facts(steps=100, carries=carries), places=places))
        return None if found is None else found.seen

    part = [0.1 + 0.005 * index for index in range(32)]
    assert seen(part) == "the 32 rows looked at lie between 10% and 26% of the training text"
    assert seen(part[:-1]) is None
    assert seen(part, carries=True) is None
    assert seen([*part, 0.6]) is None


def test_a_symbol_that_never_counts() -> None:
    batches = [drawn(seed) for seed in range(4)]

    def without(batch: Batch, symbol: int) -> Batch:
        return replace(batch, weights=batch.weights * (batch.targets != symbol))

    def seen(batches: list[Batch]) -> str | None:
        record = Record(Facts(steps=100))
        for facts in map(batch_facts, batches):
            record.masked.update(facts.masked)
            record.counted |= facts.counted
        found = JUDGES["masked_symbol"](record)
        return None if found is None else found.seen

    few = [batch_of(one.targets[:, :1].repeat(1, TOKENS + 1) * 0 + torch.arange(TOKENS + 1) % 7) for one in batches]
    count = sum(int((batch.targets[:, 1:-1] == 3).sum()) for batch in few)
    assert seen([without(batch, 3) for batch in few]) == (
        f"symbol 3 is {count} times the target between two that count, and never counts itself"
    )
    assert seen([without(few[0], 3), *few[1:]]) is None  # it counts elsewhere
    assert seen(few) is None
    assert seen([replace(one, recall=~one.recall) for one in (without(batch, 3) for batch in few)]) is None


def test_rows_as_hard_as_noise_are_told_where_validation_is_not() -> None:
    def judged(losses: list[float], validation: float = 2.5) -> Finding | None:
        record = Record(Facts(steps=1000, uniform=5.5), step=200, validations=[(200, validation)])
        record.add_row_losses(losses)
        return JUDGES["noise_rows"](record)

    found = judged([5.3] * 8 + [2.6] * 120)
    assert found is not None
    assert (found.value, found.seen) == (
        8 / 128,
        "8 of the last 128 text rows have a loss near that of a uniform guess (5.500 nats) or above it; the validation "
        "loss is 2.500",
    )
    assert judged([5.2] * 64 + [2.6] * 64) is None  # hard, as base64 is, but no noise
    assert judged([5.3] * 6 + [2.6] * 122) is None
    assert judged([5.3] * 100) is None  # too few to tell
    assert judged([5.3] * 128, validation=3.6) is None  # learns yet


def test_rows_of_a_spike_are_no_noise() -> None:
    record = Record(Facts(steps=1000, uniform=5.5), step=200, validations=[(160, 2.5)])
    for loss in [2.6] * 30 + [9.0] * 3:
        record.add_row_losses([loss] * 4)
    assert JUDGES["noise_rows"](record) is None
