from __future__ import annotations

import pytest
import torch

from atlas.training.early_stop import EarlyStop
from atlas.training.weight_average import WeightAverage


def test_the_average_follows_its_recurrence_and_the_model_keeps_its_bits() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average, wanted = WeightAverage(model, decay=0.5), 0.0
    for step, value in ((1, 1.0), (2, 3.0), (30, -1.0)):
        torch.nn.init.constant_(model.weight, value)
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * value
    with average.applied(model):
        assert model.weight.tolist() == [pytest.approx([wanted, wanted])]
    assert model.weight.tolist() == [[-1.0, -1.0]]
    with pytest.raises(RuntimeError, match=r"^the averaged weights are those of another model$"):
        average.load({"weight": torch.zeros(1, 3)})


def test_only_a_lower_loss_starts_the_wait_anew() -> None:
    stop = EarlyStop(patience=2)
    for step, loss in enumerate((2.0, float("nan"), 1.5, 1.5)):
        stop.see(step, loss)
        assert stop.reason == ""
    stop.see(4, 1.6)
    assert stop.reason == ("early stop: 2 validations without a lower loss (lowest 1.5000 at step 2; train.patience=2)")
    other = EarlyStop(patience=3)
    other.load_state_dict(stop.state_dict())
    assert (other.waited, other.reason) == (2, "")
    at_the_end = EarlyStop(patience=2, last_step=4)
    at_the_end.load_state_dict(stop.state_dict())
    assert (at_the_end.waited, at_the_end.reason) == (2, "")  # the run ends there anyway
    never = EarlyStop(patience=1)
    never.see(1, float("nan"))
    assert never.reason == "early stop: 1 validations without a lower loss (none is a number; train.patience=1)"
