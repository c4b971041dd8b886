"""Decoding token by token equals one pass over prompt and continuation, for every rule, grid and mode.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from atlas.config import ChunkSizeConfig, ConfigError, MemoryConfig, ModelConfig, OmegaRuleConfig, Rule
from atlas.models import decoding
from atlas.models.decoding import Sampling, choose, decode, prefilled
from atlas.models.language_model import AtlasModel
from atlas.models.plan import ChunkPlan, MemoryMode

VOCABULARY, COUNT = 17, 12
TRAINED = ChunkPlan(local=(2, 4), global_size=8, shard=8)
GREEDY = Sampling(temperature=0)
GRIDS = {
    "trained": TRAINED,
    "no resets": TRAINED._replace(shard=None),
    "chunk 1": TRAINED._replace(local=(1, 1)),
    "chunk 1, no resets": ChunkPlan((1, 1), 8, None),
}


def make(rule: Rule = Rule.gd, window: int = 5) -> AtlasModel:
    torch.manual_seed(0)
    memory = MemoryConfig(rule=rule, hidden=8, rate_init=0.5, omega=OmegaRuleConfig(window=1))
    config = ModelConfig(width=16, layers=1, heads=2, window=window, feedforward=12, persistent_keys=6, memory=memory)
    model = AtlasModel(config, ChunkSizeConfig([2, 4], 8, 8), VOCABULARY).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, parameter in model.named_parameters():  # else the tied head repeats the last token for ever
            if name.endswith(("out.weight", "down.weight")):
                parameter.mul_(8)
    return model


def prompt_of(length: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(length))


def take(tokens: object, count: int = COUNT) -> Tensor:
    """[B, count]"""
    iterator = iter(tokens)  # type: ignore[call-overload]
    return torch.stack([next(iterator) for _ in range(count)], dim=1)


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize(("grid", "length"), [("trained", 1), *((grid, 13) for grid in GRIDS)])
def test_greedy_decoding_takes_the_likeliest_of_one_full_pass(rule: Rule, grid: str, length: int) -> None:
    """13 tokens end in the middle of a shard and of every chunk, and 12 more go past two ends of a shard."""
    model, prompt, plan = make(rule), prompt_of(length), GRIDS[grid]
    added = take(decode(model, prompt, GREEDY, prefill=plan, plan=plan))
    logits = model(torch.cat((prompt, added), dim=1), plan=plan).logits
    assert torch.equal(added, logits[:, length - 1 : -1].argmax(-1))
    assert len(set(added.flatten().tolist())) > 2  # not one token over and over, which would prove little


def test_chunk_1_is_another_function_than_the_trained_grid() -> None:
    model, tokens = make(), prompt_of(COUNT)
    outputs = [model(tokens, plan=plan).logits for plan in (TRAINED, GRIDS["chunk 1"])]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


@pytest.mark.parametrize("rule", list(Rule))
def test_a_prompt_on_the_trained_grid_and_its_continuation_at_chunk_1(rule: Rule) -> None:
    model, prompt, fine = make(rule), prompt_of(13), GRIDS["chunk 1"]
    added = take(decode(model, prompt, GREEDY, plan=fine))
    before = model(prompt[:, :-1], plan=TRAINED).state
    rest = torch.cat((prompt[:, -1:], added[:, :-1]), dim=1)
    assert torch.equal(added, model(rest, before, plan=fine).logits.argmax(-1))


@pytest.mark.parametrize("mode", list(MemoryMode))
def test_every_memory_mode_decodes_as_one_pass_in_that_mode(mode: MemoryMode) -> None:
    model, prompt = make(), prompt_of(13)
    added = take(decode(model, prompt, GREEDY, mode=mode))
    logits = model(torch.cat((prompt, added), dim=1), mode=mode).logits
    assert torch.equal(added, logits[:, 12:-1].argmax(-1))


def test_a_long_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = make(), prompt_of(29)
    whole = prefilled(model, prompt, TRAINED, MemoryMode.learn)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 7)
    pieces = prefilled(model, prompt, TRAINED, MemoryMode.learn)
    assert pieces.position == whole.position == 29
    torch.testing.assert_close(pytree.tree_leaves(pieces), pytree.tree_leaves(whole))


@pytest.mark.parametrize("rule", list(Rule))
def test_the_state_keeps_its_size(rule: Rule) -> None:
    model, plan = make(rule), GRIDS["no resets"]
    states = [prefilled(model, prompt_of(length), plan, MemoryMode.learn) for length in (5, 16, 29)]
    sizes = [[leaf.shape for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)] for state in states]
    assert sizes[0] == sizes[1] == sizes[2]


def test_gradients_stay_on_for_the_caller() -> None:
    tokens = decode(make(), prompt_of(3), GREEDY)
    first = next(tokens)
    assert torch.is_grad_enabled()
    assert not first.requires_grad


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \[batch, tokens >= 1\]"):
        next(decode(make(), prompt_of(3)[:, :0]))


def test_a_seed_draws_the_same_and_another_draws_something_else() -> None:
    model, prompt = make(), prompt_of(5)
    drawn = [take(decode(model, prompt, generator=torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(temperature=0.5), [0.6849, 0.2466, 0.0616, 0.0068]),  # p^2, scaled to sum 1
        (Sampling(top_k=2), [0.625, 0.375, 0, 0]),
        (Sampling(top_p=0.7), [0.625, 0.375, 0, 0]),
        (Sampling(top_p=0.81), [0.5263, 0.3158, 0.1579, 0]),
        (Sampling(top_p=0.01), [1, 0, 0, 0]),
        (Sampling(top_k=3, top_p=0.6), [0.625, 0.375, 0, 0]),
        (Sampling(temperature=0), [1, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_with_their_probabilities(sampling: Sampling, expected: list[float]) -> None:
    order = torch.tensor([2, 0, 3, 1])  # the likeliest is token 2
    logits = torch.empty(4).index_copy_(0, order, torch.tensor([0.5, 0.3, 0.15, 0.05]).log() + 7)
    drawn = choose(logits.expand(20_000, -1), sampling, torch.Generator().manual_seed(0))
    found = torch.bincount(drawn, minlength=4)[order] / 20_000
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float), rtol=0, atol=0.012)
    assert torch.equal(found == 0, torch.tensor(expected) == 0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_choose_no_token(temperature: float, wrong: float) -> None:
    logits = torch.tensor([[0.0, 1.0], [0.5, wrong]])
    why = "must be finite: the weights or what the memory has learnt have overflowed"
    with pytest.raises(ConfigError, match=f"^logits={wrong}: {why}$"):
        choose(logits, Sampling(temperature), None)
    assert choose(torch.tensor([[-float("inf"), 1.0]]), Sampling(temperature), None) == 1
