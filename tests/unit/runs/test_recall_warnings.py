"""What a run tells before step 1: nothing of the options of the package, one sentence of each mistake."""

from __future__ import annotations

import pytest

import atlas
from atlas.config.composition import options
from atlas.runs.build import build_data
from atlas.runs.recall_warnings import recall_warnings


def told(*overrides: str) -> list[str]:
    config = atlas.compose(overrides)
    return recall_warnings(config, build_data(config))


@pytest.mark.parametrize("group", ["model", "chunk_size", "ablation"])
def test_no_option_of_the_package_is_a_mistake(group: str) -> None:
    every = {option: told(f"{group}={option}", "data=recall") for option in options(group)}
    assert {option: found for option, found in every.items() if found} == {}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["data=recall", "data.recall.distance_min=40"],
            "attention reaches 62 tokens back (model.layers * (model.window - 1)), and questions are asked from"
            " data.recall.distance_min=40 tokens on: recall can be solved without the memory and does not show whether"
            " it is used",
        ),
        (
            ["model.window=0"],
            "attention sees the whole sequence (model.window=0), and questions are asked from"
            " data.recall.distance_min=64 tokens on: recall can be solved without the memory and does not show whether"
            " it is used",
        ),
        (
            ["data=recall", "ablation=no_global", "chunk_size.shard=64"],
            "recall cannot be solved: local memories are reset every 64 tokens, questions are asked from"
            " data.recall.distance_min=64 tokens on, and no global memory is read in between",
        ),
        (
            ["data=recall", "data.recall.distance_min=490"],
            "a recall sequence has 1.3 questions instead of 30.0: with data.recall.distance_min=490 the others find no"
            " room in train.sequence=512",
        ),
    ],
)
def test_a_mistake_is_told_in_a_sentence(overrides: list[str], sentence: str) -> None:
    assert told(*overrides) == [sentence]


def test_a_task_that_is_never_asked_says_nothing() -> None:
    assert told("data.recall_share_start=0", "data.recall_share_end=0", "data.recall.distance_min=0") == []
