"""The MAG block: a closed gate is exactly 0, and a gate can learn to close."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from atlas.config import Fusion, MemoryConfig, ModelConfig, Rule
from atlas.models.block import AtlasMAGBlock
from atlas.models.gate import Gate
from atlas.models.plan import ChunkPlan, MemoryMode
from atlas.ops.rotary import Rotary
from atlas.training.losses import gate_polarisation

PLAN = ChunkPlan((4,), 8, 8)


each_gated_fusion = pytest.mark.parametrize("fusion", [Fusion.multiplicative, Fusion.gated_sum])


def make(fusion: Fusion = Fusion.multiplicative) -> AtlasMAGBlock:
    torch.manual_seed(0)
    config = ModelConfig(width=16, heads=2, window=4, feedforward=8, fusion=fusion, memory=MemoryConfig(hidden=8))
    return AtlasMAGBlock(config, 1)


def branch_of(block: AtlasMAGBlock, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the block adds to the stream before its feed-forward part, and the gates, if it has any."""
    seen: list[Tensor] = []
    hook = block.out.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    _, _, gate = block(x, block.initial_state(x.shape[0], PLAN), Rotary(0), PLAN, MemoryMode.learn)
    hook.remove()
    return seen[0], gate


@each_gated_fusion
@pytest.mark.parametrize("bias", [-1e4, float("-inf")])
def test_a_gate_of_0_makes_the_branch_exactly_0(fusion: Fusion, bias: float) -> None:
    """AC-P1-4"""
    block, x = make(fusion), torch.randn(2, 12, 16)
    assert block.gate is not None
    with torch.no_grad():
        block.gate.linear.weight.mul_(1e-2)
        block.gate.linear.bias.fill_(bias)
    branch, gate = branch_of(block, x)
    assert gate is not None
    assert torch.count_nonzero(gate) == torch.count_nonzero(branch) == 0


def test_the_multiplicative_gate_scales_the_attention_branch() -> None:
    block, x = make(), torch.randn(2, 12, 16)
    assert block.gate is not None
    with torch.no_grad():
        block.gate.linear.weight.zero_()
        block.gate.linear.bias.fill_(float("inf"))  # an open gate: attention alone
    open_branch, _ = branch_of(block, x)
    attended, _ = block.attention(block.norm(x), block.attention.initial_state(2), Rotary(0), block.persistent)
    torch.testing.assert_close(open_branch, block.out(attended))
    with torch.no_grad():
        block.gate.linear.bias.zero_()
    half, _ = branch_of(block, x)
    torch.testing.assert_close(half, open_branch / 2)


def test_the_gated_sum_multiplies_attention_and_recall() -> None:
    block, x = make(Fusion.gated_sum), torch.randn(2, 12, 16)
    assert block.gate is not None
    with torch.no_grad():
        block.gate.log_sharpness.zero_()
        block.gate.linear.bias.normal_()
    branch, gate = branch_of(block, x)
    assert gate is not None
    attended, _ = block.attention(block.norm(x), block.attention.initial_state(2), Rotary(0), block.persistent)
    recalled = torch.logit(gate) - block.gate.linear.bias  # m W_g
    torch.testing.assert_close(branch, block.out((attended + recalled) * gate))


@each_gated_fusion
def test_the_gate_learns_to_suppress_a_noise_branch(fusion: Fusion) -> None:
    """AC-P1-1: the attention branch is noise, the target is no branch at all; the mean gate falls below 0.01."""
    block, x = make(fusion), torch.randn(2, 8, 16)
    assert block.memory is not None
    assert block.persistent is not None
    assert block.gate is not None
    state = block.memory.initial_state(2, block.persistent, PLAN)
    recalled = block.memory(block.norm(x), state, 0, block.persistent, PLAN, MemoryMode.learn)[0].detach()
    optimizer = torch.optim.Adam(block.gate.parameters(), lr=0.1)
    for _ in range(400):
        branch, gate = block.gate(torch.randn_like(recalled), recalled)
        optimizer.zero_grad()
        block.out(branch).square().mean().sqrt().backward()
        optimizer.step()
    assert gate.mean().item() < 0.01


@each_gated_fusion
def test_the_polarisation_loss_makes_a_gate_sharper_up_to_the_limit_only(fusion: Fusion) -> None:
    torch.manual_seed(0)
    gate, inputs = Gate(16, fusion, sharpness_max=30.0), (torch.randn(2, 8, 16), torch.randn(2, 8, 16))

    def gradients(sharpness: float) -> tuple[float, float]:
        """Of log_sharpness: by the polarisation loss, and by a loss of the branch."""
        found = []
        for loss in (lambda: gate_polarisation([gate(*inputs)[1]]), lambda: gate(*inputs)[0].square().mean()):
            gate.zero_grad()
            with torch.no_grad():
                gate.log_sharpness.fill_(log(sharpness))
            loss().backward()
            found.append(float(gate.log_sharpness.grad))
        return found[0], found[1]

    assert gradients(29.0)[0] < 0
    assert gradients(31.0)[0] == 0
    assert gradients(31.0)[1] != 0
    gate.sharpness_max = Gate(16, fusion).sharpness_max
    assert gradients(31.0)[0] < 0, "runs from before the limit"


def test_additive_fusion_adds_the_logits_and_has_no_gate() -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 12, 16)
    block = make(Fusion.additive)
    assert block.gate is not None
    assert block.memory is not None
    assert block.persistent is not None
    with torch.no_grad():
        block.gate.linear.bias.normal_()
    branch, gate = branch_of(block, x)
    assert gate is None
    inputs, state = block.norm(x), block.memory.initial_state(2, block.persistent, PLAN)
    attended, _ = block.attention(inputs, block.attention.initial_state(2), Rotary(0), block.persistent)
    recalled, _ = block.memory(inputs, state, 0, block.persistent, PLAN, MemoryMode.learn)
    torch.testing.assert_close(branch, block.out(attended + block.gate.linear(recalled) + block.gate.linear.bias))


@pytest.mark.parametrize("fusion", Fusion)
def test_an_adapter_on_any_linear_layer_acts(fusion: Fusion) -> None:
    """A layer whose weight alone is read would ignore its hooks, a LoRA for example."""
    x = torch.randn(2, 12, 16)
    block = make(fusion)
    state = block.initial_state(2, PLAN)
    before, *_ = block(x, state, Rotary(0), PLAN, MemoryMode.learn)
    for name, layer in block.named_modules():
        if isinstance(layer, torch.nn.Linear):
            hook = layer.register_forward_hook(lambda _layer, _inputs, output: output + torch.ones_like(output))
            after, *_ = block(x, state, Rotary(0), PLAN, MemoryMode.learn)
            hook.remove()
            assert not torch.equal(after, before), name


def test_a_fusion_without_a_branch_fails() -> None:
    gate = Gate(16, "new")  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="Expected code to be unreachable, but got: 'new'"):
        gate(torch.randn(1, 2, 16), torch.randn(1, 2, 16))


@pytest.mark.parametrize("rule", Rule)
def test_gradients_are_the_same_with_activation_checkpointing(rule: Rule) -> None:
    memory = MemoryConfig(hidden=8, rule=rule)
    torch.manual_seed(0)
    block = AtlasMAGBlock(ModelConfig(width=16, heads=2, window=4, feedforward=8, memory=memory), 1)
    x = torch.randn(2, 16, 16, requires_grad=True)

    def added(x: Tensor) -> Tensor:
        return block(x, block.initial_state(2, PLAN), Rotary(0), PLAN, MemoryMode.learn)[0]

    used = [x, *block.parameters()]
    plain, again = (
        torch.autograd.grad(out.square().sum(), used, allow_unused=True)
        for out in (added(x), checkpoint(added, x, use_reentrant=False))
    )
    assert [part is None for part in plain] == [part is None for part in again]
    for one, other in zip(plain, again, strict=True):
        assert one is None or torch.equal(one, other)
