"""Data sources that give other batches when they are asked again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atlas.runs.steady_data import data_warnings
from experiments.silent import wrong_data


def source(kind: type[wrong_data.Sound], folder: Path) -> wrong_data.Sound:
    text = folder / "text.txt"
    text.write_text("".join(f"line {number} of a text, {number * 7919}\n" for number in range(400)))
    given: dict[str, Any] = {"sequence": 32, "batch_size": 4, "seed": 0, "steps": 10, "carry_memory": False}
    return kind(**given, paths=[str(text)], encoding="bytes", validation_share=0.1)


@pytest.mark.parametrize("kind", [wrong_data.Sound, wrong_data.Repeated, wrong_data.Shifted])
def test_a_batch_that_is_a_function_of_its_step(kind: type[wrong_data.Sound], tmp_path: Path) -> None:
    assert data_warnings(source(kind, tmp_path), 1) == []


def test_batches_that_are_drawn_anew(tmp_path: Path) -> None:
    training, validation = data_warnings(source(wrong_data.DrawnAnew, tmp_path), 7)
    assert training.startswith("the data source gives another batch when it is asked for that of step 7 again: ")
    assert validation.startswith("the data source gives another validation batch when it is asked again: ")
