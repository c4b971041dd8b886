"""Metrics of the user's own see the model and leave nothing behind."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import atlas
from atlas.models.language_model import AtlasModel
from atlas.training.own_metrics import own_metrics


def drawing(model: AtlasModel, step: int) -> dict[str, float]:
    drawn = torch.rand(()).item() + np.random.rand() + random.random()
    return {"drawn": drawn, "step": step, "infinite": float("inf"), "gradients": float(torch.is_grad_enabled())}


@pytest.fixture
def model() -> AtlasModel:
    return atlas.build_model(atlas.compose(["model.width=16", "model.feedforward=16", "model.layers=1"]))


def test_a_metric_may_draw_numbers_of_any_generator(model: AtlasModel) -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), np.random.rand(), random.random()

    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    wanted = draw()
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    found = own_metrics([f"{__name__}.drawing"], model, 7, pytest.fail)
    assert draw() == wanted
    assert {**found, "own/drawn": None} == {"own/drawn": None, "own/step": 7, "own/infinite": None, "own/gradients": 0}


def mistaken(model: AtlasModel, step: int) -> dict[str, object]:
    return {"tensor": torch.tensor(0.5), "none": None, "row": torch.ones(2), "right": np.float32(2)}


def test_what_is_no_number_leaves_a_gap_and_is_named(model: AtlasModel) -> None:
    said: list[str] = []
    found = own_metrics([f"{__name__}.mistaken"], model, 7, said.append)
    assert found == {"own/tensor": 0.5, "own/none": None, "own/row": None, "own/right": 2.0}
    assert {type(value) for value in found.values()} == {float, type(None)}  # what a file can hold
    line = f"telemetry.metrics={__name__}.mistaken: {{}} must be a number, not a {{}}; its column has a gap"
    assert said == [line.format("none", "NoneType"), line.format("row", "Tensor")]


def also(model: AtlasModel, step: int) -> dict[str, float]:
    return {"step": -1, "more": 2}


def test_of_two_metrics_with_one_name_the_second_is_told(model: AtlasModel) -> None:
    said: list[str] = []
    found = own_metrics([f"{__name__}.drawing", f"{__name__}.also"], model, 7, said.append)
    assert (found["own/step"], found["own/more"]) == (7.0, 2.0)
    allowed = "must be a name of its own, another metric has the column"
    assert said == [f"telemetry.metrics={__name__}.also: step {allowed}"]


def nothing(model: AtlasModel, step: int) -> None:
    return None


def failing(model: AtlasModel, step: int) -> dict[str, float]:
    raise KeyError("no such\nlayer")


def test_a_metric_that_fails_is_named_and_the_others_count(model: AtlasModel) -> None:
    said: list[str] = []
    names = [f"{__name__}.{one.__name__}" for one in (nothing, failing, drawing)]
    assert own_metrics(names, model, 7, said.append)["own/step"] == 7
    line = f"telemetry.metrics={__name__}.{{}}: must return numbers by name; its columns have gaps ({{}})"
    assert said == [
        line.format("nothing", "TypeError: 'NoneType' object is not iterable"),
        line.format("failing", "KeyError: 'no such\\nlayer'"),
    ]
