"""The whole model: causal, rows apart, cut anywhere, learning in evaluation mode, for every rule and projection.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils import _pytree as pytree

from atlas.config import (
    ChunkSizeConfig,
    ConfigError,
    Fusion,
    MemoryConfig,
    ModelConfig,
    Normalisation,
    OmegaRuleConfig,
    ProjectionRange,
    QKProjectionConfig,
    Rule,
)
from atlas.models.decoding import Sampling, decode
from atlas.models.language_model import AtlasModel, ModelState
from atlas.models.plan import ChunkPlan, MemoryMode

VOCABULARY, TOKENS = 17, 21
PLAN = ChunkPlan(local=(2, 4), global_size=8, shard=8)
PROJECTIONS = [
    QKProjectionConfig(kind, normalisation)
    for kind, normalisation in product(ProjectionRange, Normalisation)
    if (kind, normalisation)
    not in ((ProjectionRange.off, Normalisation.per_key), (ProjectionRange.shard, Normalisation.sum))
]
# Every rule with the default projection, every other projection with the first rule.
CASES = [(rule, QKProjectionConfig()) for rule in Rule] + [(Rule.gd, one) for one in PROJECTIONS]
each_case = pytest.mark.parametrize(
    ("rule", "projection"), CASES, ids=[f"{rule}-{one.range}-{one.normalisation}" for rule, one in CASES]
)


def make(rule: Rule = Rule.gd, projection: QKProjectionConfig | None = None) -> tuple[AtlasModel, Tensor]:
    torch.manual_seed(0)
    memory = MemoryConfig(
        rule=rule, hidden=8, rate_init=0.5, omega=OmegaRuleConfig(2), qk_projection=projection or QKProjectionConfig()
    )
    config = ModelConfig(width=16, layers=2, heads=2, window=5, feedforward=12, persistent_keys=6, memory=memory)
    model = AtlasModel(config, ChunkSizeConfig([2, 4], 8, 8), VOCABULARY).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, torch.randint(0, VOCABULARY, (3, TOKENS))


def run(model: AtlasModel, tokens: Tensor, schedule: list[tuple[int, ChunkPlan]]) -> tuple[Tensor, ModelState]:
    state, outputs, done = model.initial_state(tokens.shape[0], schedule[0][1]), [], 0
    for count, plan in schedule:
        out = model(tokens[:, done : done + count], state, plan=plan)
        outputs.append(out.logits)
        state, done = out.state, done + count
    return torch.cat(outputs, dim=1), state


def tensors(state: ModelState) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]


@each_case
@pytest.mark.parametrize("plan", [PLAN, PLAN._replace(shard=None)], ids=["resets", "no resets"])
def test_streaming_equals_one_pass(rule: Rule, projection: QKProjectionConfig, plan: ChunkPlan) -> None:
    """Single tokens to the end: `test_prefill_on_one_grid_and_decoding_on_another`."""
    model, tokens = make(rule, projection)
    whole, end = run(model, tokens, [(TOKENS, plan)])
    for cuts in ([13, 8], [1, 2, 3, 4, 5, 6], [1, 1, 1, 18]):
        parts, state = run(model, tokens, [(count, plan) for count in cuts])
        torch.testing.assert_close(parts, whole)
        torch.testing.assert_close(tensors(state), tensors(end))


@each_case
def test_gradients_of_streaming_equal_those_of_one_pass(rule: Rule, projection: QKProjectionConfig) -> None:
    model, tokens = make(rule, projection)
    weight = torch.randn(3, TOKENS, VOCABULARY, dtype=torch.float64)
    gradients = []
    for schedule in ([(TOKENS, PLAN)], [(5, PLAN), (12, PLAN), (4, PLAN)]):
        out, _ = run(model, tokens, schedule)
        gradients.append(torch.autograd.grad((out * weight).sum(), list(model.parameters()), allow_unused=True))
    torch.testing.assert_close(*gradients)


@each_case
def test_prefill_on_one_grid_and_decoding_on_another(rule: Rule, projection: QKProjectionConfig) -> None:
    """After the chunk size changed, one pass and token by token are the same, resets or none."""
    model, tokens = make(rule, projection)
    for fine in (ChunkPlan((1, 1), 1, None), ChunkPlan((4, 2), 3, None), ChunkPlan((1, 2), 8, 8)):
        coarse = PLAN._replace(shard=fine.shard)
        prefill, left = [(15, coarse)], TOKENS - 15  # a shard ends at 16
        once, end = run(model, tokens, [*prefill, (left, fine)])
        steps, state = run(model, tokens, prefill + [(1, fine)] * left)
        torch.testing.assert_close(steps, once)
        torch.testing.assert_close(tensors(state), tensors(end))


@each_case
def test_later_tokens_change_nothing(rule: Rule, projection: QKProjectionConfig) -> None:
    model, tokens = make(rule, projection)
    whole, _ = run(model, tokens, [(TOKENS, PLAN)])
    for t in (0, 3, 7, 12, 15):  # 7 and 15 end a shard
        changed = tokens.clone()
        changed[:, t + 1 :] = (changed[:, t + 1 :] + 1) % VOCABULARY
        out, _ = run(model, changed, [(TOKENS, PLAN)])
        torch.testing.assert_close(out[:, : t + 1], whole[:, : t + 1], rtol=0, atol=1e-12)
        assert (out[:, t + 1] != whole[:, t + 1]).any(dim=-1).all()


@each_case
def test_rows_are_independent(rule: Rule, projection: QKProjectionConfig) -> None:
    model, tokens = make(rule, projection)
    whole, _ = run(model, tokens, [(TOKENS, PLAN)])
    order = torch.tensor([2, 0, 1])
    permuted, _ = run(model, tokens[order], [(TOKENS, PLAN)])
    alone, _ = run(model, tokens[1:2], [(TOKENS, PLAN)])
    torch.testing.assert_close(permuted, whole[order])
    torch.testing.assert_close(alone, whole[1:2])


@each_case
def test_the_memory_learns_in_evaluation_mode_as_in_training(rule: Rule, projection: QKProjectionConfig) -> None:
    model, tokens = make(rule, projection)
    outputs = [run(model.train(training), tokens, [(TOKENS, PLAN)])[0] for training in (True, False)]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    frozen = model(tokens, mode=MemoryMode.frozen).logits
    assert (
        (frozen - outputs[1]).abs().amax((0, 2))[8:] > 1e-4
    ).all()  # past the first global chunk every token differs


@pytest.mark.parametrize("rule", list(Rule))
def test_recomputation_changes_neither_outputs_nor_gradients(rule: Rule) -> None:
    model, tokens = make(rule)
    results = []
    for recompute in (False, True):
        for module in model.modules():
            config = getattr(module, "config", None)
            if isinstance(config, MemoryConfig):
                module.config = replace(config, recompute=recompute)  # type: ignore[assignment]
        out, _ = run(model, tokens, [(TOKENS, PLAN)])
        gradients = torch.autograd.grad(out.square().sum(), list(model.parameters()), allow_unused=True)
        results.append((out, *gradients))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("repeated", [False, True])
def test_extreme_rates_and_ten_times_the_length_stay_finite(rule: Rule, repeated: bool) -> None:
    """Every rate at its limit, in float32. Backward with resets: without, the true gradient itself overflows."""
    torch.manual_seed(0)
    memory = MemoryConfig(rule=rule, hidden=8, momentum=0.999, retention=1.0, omega=OmegaRuleConfig(2, 1.0))
    config = ModelConfig(width=16, layers=1, heads=2, window=5, feedforward=12, persistent_keys=6, memory=memory)
    model = AtlasModel(config, ChunkSizeConfig([2, 8], 8, 16), VOCABULARY)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ("inputs.rate" in name or "controls" in name) and name.endswith("bias"):
                parameter.fill_(30.0)
    tokens = torch.zeros(1, 160, dtype=torch.long) if repeated else torch.randint(0, VOCABULARY, (1, 160))
    out = model(tokens)
    nn.functional.cross_entropy(out.logits.flatten(0, 1), tokens.flatten()).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        endless = model(tokens, plan=model.plan._replace(shard=None))
    for leaf in (out.logits, endless.logits, *tensors(out.state), *tensors(endless.state)):
        assert leaf.isfinite().all()


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("rule", list(Rule))
def test_mixed_precision_keeps_what_is_summed_in_float32(rule: Rule) -> None:
    model, tokens = make(rule)
    expected, _ = run(model.float(), tokens, [(11, PLAN), (TOKENS - 11, PLAN)])
    with torch.autocast("cpu", torch.bfloat16):
        out, state = run(model, tokens, [(11, PLAN), (TOKENS - 11, PLAN)])
    out.float().square().mean().backward()
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.2)
    for block in state.blocks:
        assert block.memory is not None
        memories = (*block.memory.local, *block.memory.global_memory)
        assert {leaf.dtype for leaf in pytree.tree_leaves(memories) if isinstance(leaf, Tensor)} == {torch.float32}
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("mode", list(MemoryMode))
def test_a_mode_may_be_named_by_a_text(mode: MemoryMode) -> None:
    model, tokens = make()
    assert torch.equal(model(tokens, mode=mode.value).logits, model(tokens, mode=mode).logits)
    added = [next(decode(model, tokens, Sampling(temperature=0), mode=one)) for one in (mode.value, mode)]
    assert torch.equal(*added)


@pytest.mark.parametrize("mode", ["Off", "", None, False])
def test_an_unknown_mode_is_refused_with_and_without_a_memory(mode: str) -> None:
    plain = AtlasModel(ModelConfig(width=16, memory=MemoryConfig(enabled=False)), ChunkSizeConfig([2], 8, 8), 17)
    for model in (make()[0], plain):
        with pytest.raises(ConfigError) as refusal:
            model(torch.zeros(1, 4, dtype=torch.long), mode=mode)
        assert str(refusal.value) == f"mode={mode}: must be one of learn, frozen, off"


def test_a_model_of_texts_is_the_model_of_the_members_that_they_name() -> None:
    """Fusion, rule, range and normalisation, each another than the default."""
    logits = []
    for fusion, rule, kind, normalisation in (
        (Fusion.additive, Rule.omega, ProjectionRange.chunk, Normalisation.per_key),
        ("additive", "omega", "chunk", "per_key"),
    ):
        torch.manual_seed(0)
        memory = MemoryConfig(rule=rule, qk_projection=QKProjectionConfig(kind, normalisation))  # type: ignore[arg-type]
        config = ModelConfig(width=16, fusion=fusion, memory=memory)  # type: ignore[arg-type]
        model = AtlasModel(config, ChunkSizeConfig([4], 8, 8), VOCABULARY)
        logits.append(model(torch.arange(9).unsqueeze(0)).logits)
    assert torch.equal(*logits)


def test_tokens_of_a_wrong_shape_are_refused() -> None:
    model, tokens = make()
    for bad in (tokens[0], tokens[:, :0]):
        with pytest.raises(ValueError, match=r"must be \[batch, tokens >= 1\]"):
            model(bad)


@pytest.mark.parametrize("rule", Rule)
def test_a_state_keeps_no_more_than_its_own_numbers_alive(rule: Rule) -> None:
    model, tokens = make(rule)
    with torch.no_grad():
        prefilled = model(tokens.repeat(1, 15)).state
    carried = model(tokens.repeat(1, 15)).state.detach()
    for leaf in tensors(prefilled) + tensors(carried):
        assert leaf.untyped_storage().nbytes() <= 2 * leaf.numel() * leaf.element_size()


def test_wrapped_blocks_are_read_as_the_blocks() -> None:
    model, tokens = make()
    wanted, state = model(tokens).logits, model.initial_state(3)
    model.blocks[1] = checkpoint_wrapper(model.blocks[1])
    for before in (None, state):
        assert torch.equal(model(tokens, before).logits, wanted)
    model(tokens).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.blocks[1].parameters())
