"""Decoding on fixed memory is decoding, token by token. A stand-in repeats the recorded work as a CUDA graph would."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from atlas.config import Rule
from atlas.kernels import gpu
from atlas.models.decode_graph import DecodeGraph
from atlas.models.decoding import decode, prefilled
from atlas.models.plan import MemoryMode
from tests.unit.models.test_decoding import GREEDY, GRIDS, make, prompt_of, take

TOKENS = 19  # after 13: two ends of a shard


@pytest.fixture(autouse=True)
def graphs_are_tried() -> Iterator[None]:
    yield
    gpu._selection.graphless, gpu._selection.untold = "", []


class Repeating:
    """Does the recorded work again, with the numbers of Python that it was recorded with, on the same memory."""

    def __init__(self, factor: float = 1.0) -> None:
        self.recorded = self.replayed = 0
        self.factor = factor  # other than 1: a graph that is wrong

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        found = work().clone()
        self.recorded += 1

        def replay() -> None:
            found.copy_(work() * self.factor)
            self.replayed += 1

        return found, replay


@pytest.mark.parametrize(
    ("grid", "rule"),
    [
        ("trained", Rule.gd),
        *(pytest.param("trained", rule, marks=pytest.mark.slow) for rule in Rule if rule is not Rule.gd),
        *(pytest.param(grid, Rule.momentum, marks=pytest.mark.slow) for grid in GRIDS if grid != "trained"),
    ],
)
def test_a_replayed_token_is_bitwise_that_of_the_model(grid: str, rule: Rule) -> None:
    model, plan, capture = make(rule), GRIDS[grid], Repeating()
    tokens = prompt_of(13 + TOKENS)
    with torch.no_grad():
        state = replayed = prefilled(model, tokens[:, :13], plan, MemoryMode.learn)
    graph = DecodeGraph(model, plan, MemoryMode.learn, capture)
    for token in tokens[:, 13:].split(1, dim=1):
        with torch.no_grad():
            out = model(token, state, plan=plan)
        state = out.state
        logits, replayed = graph.step(token, replayed)
        assert torch.equal(logits, out.logits[:, -1])
        assert replayed.counters == state.counters
    assert 0 < capture.recorded < TOKENS < capture.replayed + 3  # a window of the rule may fill first


def test_the_tokens_are_those_without_a_graph() -> None:
    model, prompt = make(), prompt_of(13)
    expected = take(decode(model, prompt, GREEDY))
    capture = Repeating()
    assert torch.equal(take(decode(model, prompt, GREEDY, capture=capture)), expected)
    assert capture.recorded


def test_a_graph_that_is_wrong_is_given_up_and_told_once() -> None:
    model, prompt, capture = make(), prompt_of(13), Repeating(factor=1.1)
    assert torch.equal(take(decode(model, prompt, GREEDY, capture=capture)), take(decode(model, prompt, GREEDY)))
    assert capture.recorded == capture.replayed == 1
    reason = "RuntimeError: its logits are not those of the step without it"
    assert gpu.news() == [f"the CUDA graph of a token was given up: {reason}; the kernels are launched one by one"]
    assert gpu.news() == []


def test_a_graph_that_cannot_be_recorded_is_given_up() -> None:
    def fails(work: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    model, prompt = make(), prompt_of(13)
    found = take(decode(model, prompt, GREEDY, capture=fails))  # type: ignore[arg-type]
    assert torch.equal(found, take(decode(model, prompt, GREEDY)))
    assert "RuntimeError: operation not permitted when stream is capturing;" in gpu.news()[0]


def test_a_state_that_grows_is_never_recorded() -> None:
    capture = Repeating()
    take(decode(make(window=0), prompt_of(5), GREEDY, capture=capture))
    assert not capture.recorded
