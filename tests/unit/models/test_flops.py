"""Operations counted from the configuration: against docs/memory.md, and against what PyTorch counts."""

from dataclasses import replace
from math import prod

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from atlas import compose
from atlas.config import Kernels
from atlas.models.flops import _chunked, flops_per_token
from atlas.runs.build import build_model, prepare_device

TOKENS = 128


@pytest.mark.parametrize(
    ("rule", "local", "of_global"),
    [
        ("gd", 46_080, 40_960),
        ("momentum", 46_080, 40_960),
        ("omega", 52_739, 41_763),
        ("muon", 778_240, 133_120),
        ("atlas", 783_616, 96_928),
    ],
)
def test_a_memory_has_the_products_of_the_documented_cost(rule: str, local: int, of_global: int) -> None:
    memory = compose([f"model.memory.rule={rule}", "niah=off"]).model.memory
    counted = _chunked(memory, 64, 16, prefix=True), _chunked(memory.of_global(), 64, 128, prefix=False)
    assert [round(number) for number in counted] == [local, of_global]


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["chunk_size=set_a", "model.memory.qk_projection.range=chunk"],
        ["model.memory.degree=2", "model.memory.feature_width=8"],
        ["ablation=no_memory"],
        ["model=transformer"],
        ["model.memory.rule=muon"],
    ],
)
def test_pytorch_counts_about_the_same_products(settings: list[str]) -> None:
    """It counts the masked part of the band of attention and of the Q-K projection too, but no convolution, and no
    scores of full attention on a CPU."""
    config = compose([*settings, "chunk_size.shard=128", "niah=off"])
    prepare_device(replace(config.device, kernels=Kernels.torch))
    model = build_model(config).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, TOKENS, dtype=torch.int64))
    counted = flops_per_token(config.model, config.chunk_size, TOKENS)
    assert counter.get_total_flops() / TOKENS == pytest.approx(counted.forward, rel=0.06)
    assert counted.training == 3 * counted.forward


def test_a_backward_pass_has_twice_the_products() -> None:
    """Counted with the products that are added in place, which PyTorch's counter leaves out."""
    config = compose(["chunk_size.shard=128", "niah=off"])
    prepare_device(replace(config.device, kernels=Kernels.torch))
    model = build_model(config)
    in_place = {torch.ops.aten.baddbmm_: lambda _, first, second, **__: 2 * prod(first) * second[-1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as forward:
        logits = model(torch.zeros(1, TOKENS, dtype=torch.int64)).logits
    with FlopCounterMode(display=False, custom_mapping=in_place) as backward:
        logits.sum().backward()
    assert backward.get_total_flops() / forward.get_total_flops() == pytest.approx(2, rel=0.02)
