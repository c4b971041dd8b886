import hashlib
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from atlas.config import ConfigError
from atlas.data.layout import depth_layout
from atlas.data.needles import RecallSequences
from atlas.data.recall import RecallData, RecallTask
from atlas.data.symbols import MARKER

TASK = RecallTask(
    pairs=8,
    queries=24,
    sparse_share=0.0,
    sparse_pairs=1,
    sparse_queries=1,
    key_bytes=2,
    value_bytes=2,
    value_alphabet=16,
    distance_min=64,
    haystack={"noise": 1.0},
    curriculum_steps=0,
    filler_weight=0.0,
)


def dense(count: int) -> NDArray[np.bool_]:
    """No row of `count` is sparse."""
    return np.zeros(count, dtype=np.bool_)


def source(task: RecallTask = TASK, *, seed: int = 0, paths: tuple[str, ...] = (), share: float = 0.5) -> RecallData:
    return RecallData(
        recall=task,
        paths=list(paths),
        encoding="bytes",
        validation_share=share,
        sequence=512,
        batch_size=4,
        seed=seed,
        steps=100,
        carry_memory=False,
    )


def events_of(row: bytes, task: RecallTask = TASK) -> list[tuple[int, bytes, bytes]]:
    """(position, key, value) of every event, read from the bytes alone."""
    head = 1 + task.key_bytes
    places = [place for place, byte in enumerate(row) if byte == MARKER]
    return [(p, row[p + 1 : p + head], row[p + head : p + task.format.slot]) for p in places]


def answers_by_hand(row: bytes, task: RecallTask = TASK) -> dict[int, tuple[int, int]]:
    """Target index of each answer byte -> (byte, distance to the same byte of the pair's latest event)."""
    answers: dict[int, tuple[int, int]] = {}
    latest: dict[bytes, tuple[int, bytes]] = {}
    for place, key, value in events_of(row, task):
        if key in latest:
            before, stored = latest[key]
            assert value == stored, "a query must be answered with its needle's value"
            for offset, byte in enumerate(stored):
                answers[place + 1 + task.key_bytes + offset - 1] = (byte, place - before)
        latest[key] = (place, value)
    return answers


@pytest.mark.parametrize("kind", ["noise", "random", "text", "none"])
@pytest.mark.parametrize("value_bytes", [1, 2])
def test_answers_are_the_needles_values_beyond_the_least_distance(kind: str, value_bytes: int) -> None:
    task = replace(TASK, haystack={kind: 1.0}, value_bytes=value_bytes)
    text = np.random.default_rng(1).integers(32, 127, 5000, dtype=np.uint8)
    sequences = task.generate(np.random.default_rng(0), dense(40), 512, text=text)
    for tokens, distance in zip(sequences.tokens, sequences.distance, strict=True):
        expected = answers_by_hand(bytes(tokens), task)
        assert len(expected) >= 20 * value_bytes
        assert {index: (int(tokens[index + 1]), int(distance[index])) for index in np.flatnonzero(distance)} == expected
        assert min(far for _, far in expected.values()) > task.distance_min


def test_keys_of_a_sequence_are_distinct() -> None:
    sequences = TASK.generate(np.random.default_rng(0), dense(40), 512)
    assert {len({key for _, key, _ in events_of(bytes(row))}) for row in sequences.tokens} == {8}


def test_the_rest_is_haystack() -> None:
    sequences = TASK.generate(np.random.default_rng(0), dense(5), 512)
    for row in sequences.tokens:
        kept = bytearray(row)
        for place, _, _ in reversed(events_of(bytes(row))):
            del kept[place : place + TASK.format.slot]
        assert b"The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again." in kept


def test_weights_are_one_on_answers_and_the_fillers_elsewhere() -> None:
    batch = source(replace(TASK, filler_weight=0.25)).batch(1)
    for inputs, targets, weights in zip(batch.inputs, batch.targets, batch.weights, strict=True):
        expected = np.full(512, 0.25)
        expected[list(answers_by_hand(bytes([*inputs.tolist(), int(targets[-1])])))] = 1.0
        assert weights.tolist() == expected.tolist()
    assert batch.recall.tolist() == batch.fresh.tolist() == [True] * 4


def test_golden_batch() -> None:
    # Change me only if you mean it: every recall batch of every old run changes; raise BATCHES then.
    inputs = source().batch(5).inputs.numpy().astype(np.uint8).tobytes()
    assert hashlib.sha256(inputs).hexdigest()[:16] == "f5e8f1224ac52b56"


def test_batch_is_a_function_of_seed_and_step() -> None:
    third = source().batch(3).inputs
    assert torch.equal(source().batch(3).inputs, third)
    assert not torch.equal(source().batch(4).inputs, third)
    assert not torch.equal(source(seed=1).batch(3).inputs, third)
    assert torch.equal(source(seed=1).validation(3).inputs, source().validation(3).inputs)


def test_the_curriculum_grows_the_distance_to_the_whole_sequence() -> None:
    task = replace(TASK, curriculum_steps=100)
    assert [task.distance_max(step, 512) for step in (1, 51, 101, 5000)] == [138, 325, 512, 512]
    assert TASK.distance_max(1, 512) == 512
    early = task.generate(np.random.default_rng(0), dense(20), 512, distance_max=task.distance_max(1, 512))
    late = task.generate(np.random.default_rng(0), dense(20), 512)
    assert early.distance.max() <= 138 < 300 < late.distance.max()
    drawn = source(task).batch(1)
    assert max(far for _, far in answers_by_hand(bytes(drawn.inputs[0].tolist())).values()) <= 138


def test_validation_weighs_answers_only_and_chance_is_the_baseline() -> None:
    data = source(replace(TASK, filler_weight=0.5, curriculum_steps=100))
    assert data.validation(0).weights.unique().tolist() == [0.0, 1.0]
    assert data.baseline(4) == pytest.approx(log(16))


def test_a_guesser_scores_chance() -> None:
    sequences = TASK.generate(np.random.default_rng(0), dense(400), 512)
    answers = sequences.tokens[:, 1:][sequences.answers]
    assert np.mean(answers == ord("7")) == pytest.approx(1 / 16, abs=0.01)


def test_probes_fill_their_own_layout() -> None:
    layout = depth_layout(np.random.default_rng(0), 6, 256, slot=TASK.format.slot, pairs=3, queries=1, depth=0.25)
    sequences: RecallSequences = TASK.fill(np.random.default_rng(1), layout, 256)
    for tokens, answers in zip(sequences.tokens, sequences.answers, strict=True):
        events = events_of(bytes(tokens))
        assert len(events) == 4
        place, _, value = events[-1]
        assert (place, value) == (252, bytes(tokens[-2:]))
        assert np.flatnonzero(answers).tolist() == [254, 255]
        assert (60, *events[-1][1:]) in events  # the needle, a quarter into the haystack


def test_text_haystacks_keep_training_and_validation_apart(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"t" * 1000 + b"v" * 1000)
    data = source(replace(TASK, haystack={"text": 1.0}), paths=(f"{tmp_path}/a.txt",))
    assert bytes([ord("v")]) * 4 not in bytes(data.batch(1).inputs[0].tolist())
    assert bytes([ord("v")]) * 4 in bytes(data.validation(0).inputs[0].tolist())
    assert data.describe()["train_bytes"] == 1000


BAD: list[tuple[dict[str, object], str]] = [
    ({"pairs": 0}, "data.recall.pairs=0: must be an integer >= 1"),
    ({"queries": 0}, "data.recall.queries=0: must be an integer >= 1"),
    ({"sparse_share": 1.5}, "data.recall.sparse_share=1.5: must be a number in [0, 1]"),
    ({"sparse_pairs": 9}, "data.recall.sparse_pairs=9: must be <= 8"),
    ({"sparse_queries": 25}, "data.recall.sparse_queries=25: must be <= 24"),
    ({"queries": 1.5}, "data.recall.queries=1.5: must be an integer >= 1"),
    ({"key_bytes": "two"}, "data.recall.key_bytes=two: must be an integer >= 1"),
    ({"key_bytes": 5}, "data.recall.key_bytes=5: must be <= 4"),
    ({"value_bytes": 0}, "data.recall.value_bytes=0: must be an integer >= 1"),
    ({"key_bytes": 1, "pairs": 53}, "data.recall.pairs=53: must be <= 52"),
    ({"value_alphabet": 1}, "data.recall.value_alphabet=1: must be an integer in [2, 62]"),
    ({"value_alphabet": 63}, "data.recall.value_alphabet=63: must be an integer in [2, 62]"),
    ({"distance_min": -1}, "data.recall.distance_min=-1: must be an integer >= 0"),
    ({"curriculum_steps": -1}, "data.recall.curriculum_steps=-1: must be an integer >= 0"),
    ({"filler_weight": -0.1}, "data.recall.filler_weight=-0.1: must be a number >= 0"),
    ({"filler_weight": float("nan")}, "data.recall.filler_weight=nan: must be a number >= 0"),
    ({"haystack": {"essays": 1.0}}, "data.recall.haystack={'essays': 1.0}: must be shares >= 0 of ['noise'"),
    ({"haystack": {"noise": 0.0}}, "data.recall.haystack={'noise': 0.0}: must be shares >= 0"),
    ({"haystack": {"noise": -1.0, "text": 2.0}}, "data.recall.haystack={'noise': -1.0, 'text': 2.0}: must be"),
]


@pytest.mark.parametrize(("changes", "start"), BAD)
def test_refuses_bad_settings(changes: dict[str, object], start: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(TASK, **changes)  # type: ignore[arg-type]
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"pairs": 79}, "data.recall.pairs=79: must be <= 78: pairs + queries=103 events of 5 bytes must fit"),
        ({"distance_min": 503}, "data.recall.distance_min=503: must be <= 502"),
    ],
)
def test_refuses_what_does_not_fit_into_the_sequence(changes: dict[str, int], start: str) -> None:
    with pytest.raises(ConfigError) as caught:
        source(replace(TASK, **changes))  # type: ignore[arg-type]
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize(
    ("changes", "sequence", "least"),
    [({}, 123, 159), ({"pairs": 1}, 123, 124), ({"pairs": 1, "queries": 1}, 9, 10)],
)
def test_a_sequence_too_short_for_one_pair_is_told_what_would_help(
    changes: dict[str, int], sequence: int, least: int
) -> None:
    task = replace(TASK, distance_min=0, **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        task.require_fit(sequence)
    assert str(caught.value) == (
        f"train.sequence={sequence}: must be >= {least}, into which data.recall.pairs + queries="
        f"{task.pairs + task.queries} events of 5 bytes fit; or give fewer of both, or choose data=text"
    )
    task.require_fit(least)
    assert task.generate(np.random.default_rng(0), dense(2), least).tokens.shape == (2, least + 1)


def test_the_largest_that_fits_does_fit() -> None:
    task = replace(TASK, pairs=78)
    assert source(task).batch(1).inputs.shape == (4, 512)
    assert source(replace(TASK, distance_min=502)).batch(1).inputs.shape == (4, 512)


def test_sparse_sequences_have_few_needles() -> None:
    task = replace(TASK, sparse_share=0.5, sparse_pairs=2, sparse_queries=3)
    sparse = task.sparse_rows(0.25, range(8))
    rows = task.generate(np.random.default_rng(0), sparse, 512).tokens
    shown = [len({key for _, key, _ in events_of(row.tobytes())}) for row in rows]
    assert shown == [8, 2] * 4
    asked = [len(events_of(row.tobytes())) - keys for row, keys in zip(rows, shown, strict=True)]
    assert max(asked[1::2]) <= 3 < min(asked[::2])
