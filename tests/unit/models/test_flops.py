"""The count of operations from the configuration, against what PyTorch counts while its own form runs."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from atlas.config import ChunkSizeConfig, Kernels, MemoryConfig, ModelConfig, QKProjectionConfig, Rule
from atlas.kernels.library import use
from atlas.models.flops import forward_products, training_flops
from atlas.models.language_model import AtlasModel

ROWS, TOKENS = 2, 128
CHUNKS = ChunkSizeConfig([8, 16], global_size=32, shard=64)
MEMORY = MemoryConfig(hidden=24)
CONFIG = ModelConfig(width=64, layers=2, heads=2, window=16, feedforward=40, persistent_keys=8, memory=MEMORY)
CASES = {
    **{rule.value: replace(CONFIG, memory=replace(MEMORY, rule=rule)) for rule in Rule},
    "full_attention": replace(CONFIG, window=0),
    "no_memory": replace(CONFIG, memory=replace(MEMORY, enabled=False)),
    "no_global": replace(CONFIG, memory=replace(MEMORY, use_global=False)),
    "projection_per_chunk": replace(CONFIG, memory=replace(MEMORY, qk_projection=QKProjectionConfig("chunk"))),
    "no_projection": replace(CONFIG, memory=replace(MEMORY, qk_projection=QKProjectionConfig("off"))),
    "polynomials": replace(CONFIG, memory=replace(MEMORY, degree=2, feature_width=6)),
}


aten = torch.ops.aten
UNKNOWN = {  # products that PyTorch's counter leaves out
    aten.baddbmm_: lambda _, a, b, **__: 2 * prod(a) * b[-1],
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: 2 * prod(q) * (k[-2] + v[-2]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_count_is_that_of_pytorch(name: str) -> None:
    config = CASES[name]
    use(Kernels.torch)
    model = AtlasModel(config, CHUNKS, config.vocabulary)
    tokens = torch.randint(0, config.vocabulary, (ROWS, TOKENS))
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN) as forward:
        logits = model(tokens).logits
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN) as backward:
        logits.sum().backward()
    products = sum(forward_products(config, CHUNKS, TOKENS).values())
    products += 2 * config.layers * config.window * config.width  # blocks of w see 2 w keys, half of them masked away
    counted = forward.get_total_flops() / (2 * ROWS * TOKENS)
    assert counted == pytest.approx(products, rel=0.005)  # M_persistent is made once a call, not for every token
    # Newton-Schulz and fused attention leave out some of the products of a backward pass, or of its count.
    assert 1.7 <= backward.get_total_flops() / forward.get_total_flops() <= 2.01


def test_operations_of_a_token_and_a_rule_of_ones_own() -> None:
    products = forward_products(CONFIG, CHUNKS, TOKENS)
    assert products["head"] == 256 * 64
    assert products["attention"] == 2 * (3 * 64**2 + 2 * (16 + 8) * 64)
    assert training_flops(CONFIG, CHUNKS, TOKENS) == 6 * sum(products.values())
    own = replace(CONFIG, memory=replace(MEMORY, own_rule={"_target_": "mine.Rule"}))
    assert training_flops(own, CHUNKS, TOKENS) is None
