"""What watchers measure on a model, against the definitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from atlas.config import ChunkSizeConfig, Fusion, MemoryConfig, ModelConfig, Rule
from atlas.data.batch import Batch
from atlas.models.block import AtlasMAGBlock
from atlas.models.language_model import AtlasModel
from atlas.ops.chunk_scan import written
from atlas.ops.fast_weights import FastWeights, add, read
from atlas.ops.rules.gd import GradientDescent
from atlas.ops.rules.rule import Kept
from atlas.training.memory_norms import catching, memory_norms
from atlas.training.update_ratio import copied
from atlas.training.watchers.batch_facts import places
from atlas.training.watchers.measuring import descent, directions, due, measure, memory_sizes, moved_elements
from atlas.training.watchers.observations import Measured


def made(
    rate: float = 0.5,
    bound: float = 8.0,
    rule: Rule = Rule.gd,
    fusion: Fusion = Fusion.gated_sum,
    limit: float = 2.0,
) -> AtlasModel:
    torch.manual_seed(0)
    memory = MemoryConfig(hidden=8, rate_init=rate, weight_norm_max=bound, rule=rule, curvature_max_local=limit)
    sizes = {"width": 16, "layers": 2, "heads": 2, "window": 5, "feedforward": 12, "persistent_keys": 6}
    config = ModelConfig(**sizes, fusion=fusion, memory=memory)
    return AtlasModel(config, ChunkSizeConfig([4], 8, 8), 17)


def measured(model: AtlasModel, tokens: torch.Tensor, still: tuple[str, ...] = ()) -> Measured:
    """After a pass and an update of all parameters but `still`."""
    before = copied(model)
    with catching(model) as catch:
        model(tokens).logits.sum().backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in still:
                parameter.add_(1e-3)
    return measure(100, model, catch, moved_elements(before, model), memory_norms(catch))


def test_a_sound_model() -> None:
    model = made()
    found = measured(model, torch.randint(0, 17, (3, 16)))
    assert (found.unmoved, found.unmoved_share) == ([], 0.0)
    rates = found.of("rate_max")
    assert set(rates) == {f"layer{layer}/{name}" for layer in (0, 1) for name in ("local0", "global")}
    assert all(rate == pytest.approx(0.5, abs=0.01) for rate in rates.values())  # after an update of its bias
    assert set(found.of("at_bound").values()) == {0.0}
    assert set(found.of("learned")) == set(rates)
    assert all(learned > 0.2 for learned in found.of("learned").values())
    assert set(found.of("update_norm")) == set(rates)
    assert all(varies > 0.02 for varies in found.of("gate_varies").values())
    for quantity in ("query_directions", "key_directions", "value_directions", "read_directions"):
        assert all(3.0 < number < 8.0 for number in found.of(quantity).values()), quantity


def test_parameters_that_did_not_move_are_named() -> None:
    names = ("embedding.weight", "norm.weight")
    model = made()
    found = measured(model, torch.randint(0, 17, (1, 16)), still=names)
    assert found.unmoved == list(names)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert found.unmoved_share == pytest.approx(sum(sizes[name] for name in names) / sum(sizes.values()))


@pytest.mark.parametrize("rule", [Rule.muon, Rule.atlas])
def test_the_path_is_the_sum_of_rho_over_the_chunks(rule: Rule) -> None:
    found = measured(made(rule=rule), torch.randint(0, 17, (3, 24))).of("path")  # rho is 0.1
    chunks = {"local0": 2, "global": 3}  # of 4 tokens in a shard of 8, of 8 tokens in the sequence
    assert found == {
        f"layer{layer}/{name}": pytest.approx(0.1 * count) for layer in (0, 1) for name, count in chunks.items()
    }
    assert measured(made(), torch.randint(0, 17, (3, 24))).of("path") == {}


def test_equal_keys_with_large_rates_crowd_a_chunk() -> None:
    """One token again and again: after the convolution's first tokens all keys of the first layer are equal."""
    model, same = made(rate=0.99, limit=0.0), torch.zeros(2, 16, dtype=torch.int64)
    assert measured(model, same).values["layer0/local0/crowded"] == 0.0  # 4 times 0.99 is below 4
    model.plan = model.plan._replace(local=(8,))
    assert measured(model, same).values["layer0/local0/crowded"] == 1.0
    limited = made(rate=0.99)
    limited.plan = model.plan
    assert measured(limited, same).values["layer0/local0/crowded"] == 0.0
    assert measured(made(rate=0.1, limit=0.0), same).values["layer0/local0/crowded"] == 0.0
    assert measured(made(rate=0.6, limit=0.0), same).values["layer0/local0/crowded"] == 0.0
    with_momentum = made(rate=0.6, rule=Rule.momentum, limit=0.0)  # theta is 0.5: each write counts twice
    assert measured(with_momentum, same).values["layer0/local0/crowded"] > 0.0
    assert "layer0/local0/crowded" not in measured(made(rule=Rule.muon), same).values
    assert measured(model, same).values["layer0/key_directions"] < 1.6


def test_memories_at_their_bound_and_gates_without_a_memory() -> None:
    model = made(bound=0.01)
    for block in model.blocks:
        assert isinstance(block, AtlasMAGBlock)
        assert block.gate is not None
        torch.nn.init.zeros_(block.gate.linear.weight)
        torch.nn.init.constant_(block.gate.linear.bias, 3.0)
    found = measured(model, torch.randint(0, 17, (1, 16)))
    assert set(found.of("at_bound").values()) == {1.0}
    assert all(varies < 1e-6 for varies in found.of("gate_varies").values())
    assert all(mean > 0.99 for mean in found.of("gate_mean").values())


def test_a_fusion_without_a_gate_has_all_but_its_numbers() -> None:
    tokens = torch.randint(0, 17, (3, 16))
    gated, additive = (measured(made(fusion=fusion), tokens).values for fusion in (Fusion.gated_sum, Fusion.additive))
    of_gates = {f"layer{layer}/{name}" for layer in (0, 1) for name in ("gate_mean", "gate_varies")}
    assert gated.keys() - additive.keys() == of_gates


def test_a_model_without_a_memory_has_its_weights_alone() -> None:
    torch.manual_seed(0)
    config = ModelConfig(width=16, layers=1, heads=2, feedforward=12, memory=MemoryConfig(enabled=False))
    model = AtlasModel(config, ChunkSizeConfig([4], 8, 8), 17)
    assert measured(model, torch.randint(0, 17, (1, 16))).values == {}


def test_directions_do_not_depend_on_the_width() -> None:
    generator = torch.Generator().manual_seed(0)
    for width in (4, 16, 64):
        vectors = torch.randn(200, 64, width, generator=generator)
        assert directions(vectors).item() == pytest.approx(width, rel=0.02)
        line = vectors[:, :1] * torch.randn(200, 64, 1, generator=generator)
        assert directions(line).item() == pytest.approx(1.0)
    corners = torch.eye(8)[torch.arange(64) % 2].expand(3, 64, 8)  # two lines, half of the vectors each
    assert directions(corners).item() == pytest.approx(64 * 63 / (64 * 31))


def test_the_memory_of_this_process_is_that_of_its_tensors() -> None:
    before = memory_sizes(torch.device("cpu"))
    kept = torch.ones(20_000_000)
    after = memory_sizes(torch.device("cpu"))
    assert set(before) == {"the process"}
    assert 7e7 < after["the process"] - before["the process"] < 1e8
    del kept


def test_when_a_model_is_measured() -> None:
    assert [step for step in range(1, 301) if due(step)] == [10, 50, 100, 200, 300]


@torch.no_grad()
def test_how_far_a_step_goes_down_its_gradient() -> None:
    model = made()
    before, gradients = copied(model), {name: torch.randn_like(weight) for name, weight in model.named_parameters()}
    assert descent(before, gradients, model) is None
    for name, weight in model.named_parameters():
        weight.sub_(gradients[name] * 0.01)
    assert descent(before, gradients, model) == pytest.approx(1, abs=1e-3)  # weights are rounded
    aside = {name: torch.randn_like(gradient) for name, gradient in gradients.items()}
    assert descent(before, aside, model) == pytest.approx(0, abs=0.05)
    for name, weight in model.named_parameters():
        weight.copy_(before[name] + gradients[name])
    assert descent(before, gradients, model) == pytest.approx(-1, abs=1e-3)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_where_rows_stand_in_the_text(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    text = np.random.default_rng(0).integers(0, 200, 10_000).astype(kind)
    text[:500] = text[500:1000]  # stands there twice

    def batch(*starts: int, recall: bool = False) -> Batch:
        rows = np.stack([text[start : start + 65] for start in starts])
        weights = np.ones((len(starts), 64), dtype=np.float32)
        return Batch.from_tokens(rows, weights, np.full(len(starts), recall), np.ones(len(starts), dtype=bool))

    assert places(text, batch(2000, 9000, 100)) == pytest.approx([0.2008, 0.9008])  # of the middle of a row
    assert places(text, batch(2000, recall=True)) == []
    elsewhere = np.random.default_rng(1).integers(0, 200, 10_000).astype(kind)
    assert places(elsewhere, batch(2000)) == []
    everywhere = batch(*range(1000, 9900, 7))
    whole = places(text, everywhere)
    monkeypatch.setattr("atlas.training.watchers.batch_facts.PIECE", 100)  # most rows lie across the end of one
    assert places(text, everywhere) == whole
    assert len(whole) == len(everywhere.inputs)
    monkeypatch.setattr("atlas.training.watchers.batch_facts.SEARCHED", 2 * text.nbytes)  # of a longer text fewer rows
    assert places(text, everywhere) == whole[:2]


@dataclass(frozen=True)
class Added(GradientDescent):
    """gd that goes up the gradient."""

    chunk_end: ClassVar[None] = None

    def close(self, start: FastWeights, update: FastWeights, kept: Kept) -> tuple[FastWeights, Kept]:
        return add(start, update), kept


def test_writes_up_the_gradient_lead_away() -> None:
    model = made()
    for block in model.blocks:
        assert isinstance(block, AtlasMAGBlock)
        assert block.memory is not None
        block.memory.rule = block.memory.global_rule = Added()
    cosines = measured(model, torch.randint(0, 17, (3, 16))).of("learned")
    assert all(cosine < -0.12 for cosine in cosines.values())


def test_what_writes_have_learned_is_a_cosine() -> None:
    """One chunk, all of it at one rate."""
    model = made(rate=0.1)
    block = model.blocks[0]
    assert isinstance(block, AtlasMAGBlock)
    memory = block.memory
    assert memory is not None
    with catching(model) as catch:
        model(torch.randint(0, 17, (2, 4)))
    after, key, value = catch.layers[0].after, catch.layers[0].key.float(), catch.layers[0].value.float()
    with torch.no_grad():
        start, end = memory.local[0](2, len(key)).start, written(memory.rule, after.local[0], 0.0)
        before, now = (read(weights, key, memory.features(key)) for weights in (start, end))
        wanted, changed = (value - before).flatten(), (now - before).flatten()
        found = measure(1, model, catch, moved_elements(copied(model), model), {})
    cosine = (wanted @ changed / wanted.norm() / changed.norm()).item()
    assert found.values["layer0/local0/learned"] == pytest.approx(cosine, rel=1e-3)
