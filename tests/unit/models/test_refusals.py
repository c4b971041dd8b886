"""What a model cannot read is refused in one line that names it: tokens, states, plans, precisions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atlas.config import ChunkSizeConfig, MemoryConfig, ModelConfig, OmegaRuleConfig, QKProjectionConfig
from atlas.models.language_model import AtlasModel, ModelState
from atlas.models.plan import ChunkPlan, Lasting

TOKENS = torch.arange(11).remainder(7).expand(3, -1)
OWNER = "; a state belongs to the model and the plan that made it"
HALF = "must be of torch.float32 or torch.float64; for half precision leave them in torch.float32 and call the model in"


def make(local: tuple[int, ...] = (4,), memory: dict[str, Any] | None = None, **settings: Any) -> AtlasModel:
    torch.manual_seed(0)
    size = {"width": 16, "heads": 2, "window": 5, "feedforward": 12, "persistent_keys": 6} | settings
    config = ModelConfig(**size, memory=MemoryConfig(**({"hidden": 8} | (memory or {}))))  # type: ignore[arg-type]
    return AtlasModel(config, ChunkSizeConfig(list(local), 8, 8), 17)


def refusal(model: AtlasModel, *given: Any, **named: Any) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the tests compare the whole message)
        model(*given, **named)
    return str(error.value)


NO_MEMORY, NO_WINDOW, OFF = {"enabled": False}, {"window": 0}, {"qk_projection": QKProjectionConfig("off")}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reader", "writer", "message"),
    [
        ({}, {"local": (2, 4)}, "state.blocks[0].memory.local has 2 parts: must have 1"),
        ({"local": (2, 4)}, {}, "state.blocks[0].memory.local has 1 parts: must have 2"),
        ({}, {"memory": NO_MEMORY}, "state.blocks[0].memory is None: must be of type MemoryState"),
        ({"memory": NO_MEMORY}, {}, "state.blocks[0].memory is of type MemoryState: must be None"),
        ({"layers": 3}, {}, "state.blocks has 2 parts: must have 3"),
        ({}, {"window": 7}, "state.blocks[0].attention.keys of shape [3, 2, 6, 8]: must be of shape [3, 2, 4, 8]"),
        ({}, NO_WINDOW, "state.blocks[0].attention.keys of shape [3, 2, 11, 8]: must be of shape [3, 2, 4, 8]"),
        (NO_WINDOW, {}, "state.blocks[0].attention.keys of shape [3, 2, 4, 8]: must be of shape [3, 2, 11, 8]"),
        ({"heads": 4}, {}, "state.blocks[0].attention.keys of shape [3, 2, 4, 8]: must be of shape [3, 4, 4, 4]"),
        (
            {"memory": {"hidden": 6}},
            {},
            "state.blocks[0].memory.local[0].start.down of shape [6, 8, 8]: must be of shape [6, 8, 6]",
        ),
        (
            {},
            {"memory": {"rule": "omega"}},
            "state.blocks[0].memory.local[0].kept is of type OmegaState: must be of type tuple",
        ),
        (
            {"memory": {"rule": "omega", "omega": OmegaRuleConfig(1)}},
            {"memory": {"rule": "omega", "omega": OmegaRuleConfig(2)}},
            "state.blocks[0].memory.local[0].kept.window.key of shape [6, 1, 8]: must be of shape [6, 0, 8]",
        ),
        ({}, {"memory": OFF}, "state.blocks[0].memory.sums has 0 parts: must have 1"),
        ({}, {"memory": {"use_global": False}}, "state.blocks[0].memory.global_memory has 0 parts: must have 1"),
    ],
)
def test_a_state_of_another_model_is_refused(reader: dict[str, Any], writer: dict[str, Any], message: str) -> None:
    assert refusal(make(**reader), TOKENS, make(**writer)(TOKENS).state) == message + OWNER


def test_a_state_of_another_batch_size_precision_or_kind_is_refused() -> None:
    model = make()
    out = model(TOKENS)
    for rows in (1, 2):
        message = f"state of batch size 3: must be of {rows}, as tokens of shape [{rows}, 11]"
        assert refusal(model, TOKENS[:rows], out.state) == message
    double = make().double()(TOKENS).state
    message = "state.blocks[0].attention.keys of torch.float64: must be of torch.float32, as the model's weights"
    assert refusal(model, TOKENS, double) == message + OWNER
    message = "state of type ModelOutput: must be a ModelState, as `model(tokens).state`"
    assert refusal(model, TOKENS, out) == message


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (TOKENS[:0], "tokens of shape [0, 11]: must be [batch, tokens >= 1], batch >= 1"),
        (TOKENS[:, :0], "tokens of shape [3, 0]: must be [batch, tokens >= 1], batch >= 1"),
        (TOKENS[0], "tokens of shape [11]: must be [batch, tokens >= 1], batch >= 1"),
        (TOKENS.tolist(), "tokens of type list: must be a tensor"),
        (TOKENS.numpy(), "tokens of type ndarray: must be a tensor"),
        (TOKENS + 11, "tokens in [11, 17]: must be in [0, 17)"),
        (TOKENS.int() - 1, "tokens in [-1, 5]: must be in [0, 17)"),
        (TOKENS.float(), "tokens of torch.float32: must be of torch.int64 or torch.int32"),
        (TOKENS.to(torch.uint8), "tokens of torch.uint8: must be of torch.int64 or torch.int32"),
    ],
)
def test_tokens_of_a_wrong_shape_or_kind_are_refused(tokens: torch.Tensor, message: str) -> None:
    assert refusal(make(), tokens) == message
    assert refusal(make(memory=NO_MEMORY), tokens) == message


def test_no_sequence_has_no_state() -> None:
    with pytest.raises(ValueError, match=r"^batch=0: must be >= 1$"):
        make().initial_state(0)


def test_a_plan_of_other_local_memories_is_refused() -> None:
    message = "plan.local=(2, 4): must be as many as the model has local memories, 1"
    assert refusal(make(), TOKENS, plan=ChunkPlan((2, 4), 8, 8)) == message


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"local": (0,)}, "local[0]=0"),
        ({"local": (-4,)}, "local[0]=-4"),
        ({"global_size": 0}, "global_size=0"),
        ({"shard": 0}, "shard=0"),
        ({"lasting": Lasting(0.1, -5)}, "lasting.period=-5"),
    ],
)
def test_a_plan_with_less_than_a_token_is_refused(settings: dict[str, Any], named: str) -> None:
    model = make()
    assert refusal(model, TOKENS, plan=model.plan._replace(**settings)) == f"plan.{named}: must be >= 1"


def test_states_of_different_positions_are_not_joined() -> None:
    model = make()
    states = [model(TOKENS[:1, :length]).state for length in (3, 5, 3)]
    assert ModelState.join(states[::2]).batch == 2
    with pytest.raises(ValueError, match=r"^states with counters \(3, .*\) and \(5, .*\): must have the same$"):
        ModelState.join(states)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_memory_in_half_precision_says_what_to_use(dtype: torch.dtype) -> None:
    assert refusal(make().to(dtype), TOKENS) == f"weights of {dtype}: {HALF} torch.autocast(device, {dtype})"
    part = make()
    part.blocks[1].memory.to(dtype)
    assert refusal(part, TOKENS) == f"weights of {dtype}: {HALF} torch.autocast(device, {dtype})"


def test_states_of_every_kind_of_model_are_taken_back() -> None:
    """Also full attention, whose state grows, and a state made under autocast."""
    for settings in (
        {},
        {"local": (2, 4)},
        NO_WINDOW,
        {"memory": NO_MEMORY},
        {"memory": OFF},
        {"memory": {"rule": "omega"}},
    ):
        model = make(**settings)  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16):
            half = model(TOKENS).state
        assert model(TOKENS, model(TOKENS, half).state).state.position == 33


@pytest.mark.parametrize("memory", [{}, NO_MEMORY])
def test_second_derivatives_are_refused(memory: dict[str, Any]) -> None:
    model = make(memory=memory).double()
    loss = model(TOKENS).logits.square().sum()
    with pytest.raises(RuntimeError, match=r"^create_graph=True: second derivatives are not supported, gradients are$"):
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True, allow_unused=True)
