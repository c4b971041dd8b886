from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atlas.config import ConfigError
from atlas.data.mixed import MixedData, RecallShare
from atlas.data.recall import RecallTask
from atlas.data.text import TextData

TASK = RecallTask(
    pairs=2,
    queries=4,
    sparse_share=0.0,
    sparse_pairs=1,
    sparse_queries=1,
    key_bytes=1,
    value_bytes=1,
    value_alphabet=10,
    distance_min=16,
    haystack={"noise": 1.0},
    curriculum_steps=0,
    filler_weight=0.1,
)
SHARES = {"recall_share_start": 1.0, "recall_share_end": 0.25, "recall_hold": 0.5, "recall_blend_end": 0.75}


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    (tmp_path / "a.txt").write_bytes(np.random.default_rng(0).integers(128, 256, 4000, dtype=np.uint8).tobytes())
    return [f"{tmp_path}/a.txt"]


def mixed(paths: list[str], *, carry: bool = False, **changes: Any) -> MixedData:
    settings = {"recall": TASK, **SHARES} | changes
    return MixedData(**settings, **shared(paths, carry))


def shared(paths: list[str], carry: bool) -> dict[str, Any]:
    run = {"sequence": 128, "batch_size": 8, "seed": 0, "steps": 100, "carry_memory": carry}
    return {"paths": paths, "encoding": "bytes", "validation_share": 0.25} | run


@pytest.mark.parametrize(
    ("progress", "share"), [(0.0, 1.0), (0.49, 1.0), (0.5, 1.0), (0.625, 0.625), (0.75, 0.25), (0.99, 0.25)]
)
def test_share_holds_then_blends_then_stays(progress: float, share: float) -> None:
    assert RecallShare(start=1.0, end=0.25, hold=0.5, blend_end=0.75).at(progress) == pytest.approx(share)


def test_share_may_step_at_once() -> None:
    assert [RecallShare(start=1.0, end=0.0, hold=0.5, blend_end=0.5).at(p) for p in (0.49, 0.5)] == [1.0, 0.0]


def test_recall_rows_come_first_and_their_number_follows_the_schedule(paths: list[str]) -> None:
    data = mixed(paths)
    for step, count in [(1, 8), (50, 8), (64, 5), (76, 2), (100, 2)]:
        batch = data.batch(step)
        assert batch.recall.tolist() == [True] * count + [False] * (8 - count)
        has_needles = (batch.inputs == 1).any(dim=1)
        assert torch.equal(has_needles, batch.recall)
        assert batch.weights[batch.recall].unique().tolist() == pytest.approx([0.1, 1.0])
        assert batch.weights[~batch.recall].eq(1.0).all()


@pytest.mark.parametrize(("batch_size", "share"), [(1, 0.5), (1, 0.1), (2, 0.25), (4, 0.125), (3, 0.1)])
def test_less_than_a_row_of_recall_is_a_row_in_some_steps(paths: list[str], batch_size: int, share: float) -> None:
    data = mixed(paths, recall_share_start=share, recall_share_end=share)
    data.batch_size = batch_size
    rows = [int(data.batch(step).recall.sum()) for step in range(1, 101)]
    assert sum(rows) == pytest.approx(100 * batch_size * share, abs=1)
    assert set(rows) == {0, 1}


def test_text_rows_are_those_of_the_text(paths: list[str]) -> None:
    batch = mixed(paths).batch(90)
    text = TextData(**shared(paths, carry=False)).batch(90)
    assert torch.equal(batch.inputs[2:], text.inputs[2:])
    assert batch.fresh.all()


def test_a_text_row_is_fresh_after_recall_and_continues_after_text(paths: list[str]) -> None:
    data = mixed(paths, carry=True)
    text = TextData(**shared(paths, carry=True))
    for step in range(2, 101):
        before, batch, reference = data.batch(step - 1), data.batch(step), text.batch(step)
        assert torch.equal(batch.fresh, batch.recall | before.recall | reference.fresh)
        for row in torch.nonzero(~batch.fresh).ravel().tolist():
            assert batch.inputs[row, 0] == before.targets[row, -1]
    assert (~data.batch(100).fresh).sum() > 3


def test_all_rows_are_fresh_at_the_first_step(paths: list[str]) -> None:
    assert mixed(paths, carry=True, recall_share_start=0.5).batch(1).fresh.all()


def test_batch_is_a_function_of_the_step(paths: list[str]) -> None:
    first, second = mixed(paths), mixed(paths)
    second.batch(3)
    for name in ("inputs", "targets", "weights", "recall", "fresh"):
        assert torch.equal(getattr(first.batch(60), name), getattr(second.batch(60), name))


def test_validation_and_baseline_are_the_texts(paths: list[str]) -> None:
    data, text = mixed(paths), TextData(**shared(paths, carry=False))
    assert torch.equal(data.validation(1).inputs, text.validation(1).inputs)
    assert not data.validation(1).recall.any()
    assert data.baseline(2) == text.baseline(2)


def test_no_paths_read_the_standard_library() -> None:
    assert str(mixed([]).describe()["source"]).endswith("standard library")


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"recall_share_start": 1.5}, "data.recall_share_start=1.5: must be in [0, 1]"),
        ({"recall_share_end": -0.1}, "data.recall_share_end=-0.1: must be in [0, 1]"),
        ({"recall_hold": "half"}, "data.recall_hold=half: must be in [0, 1]"),
        ({"recall_blend_end": 0.4}, "data.recall_blend_end=0.4: must be >= data.recall_hold=0.5"),
    ],
)
def test_refuses_bad_schedules(paths: list[str], changes: dict[str, object], start: str) -> None:
    with pytest.raises(ConfigError) as caught:
        mixed(paths, **changes)
    assert str(caught.value).startswith(start)
