"""Every learning rule: fast == reference, causal, independent rows, cut anywhere, bounded.

Legend: N rows, T tokens, d head width, h hidden width, p feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from atlas.config import AtlasRuleConfig, MemoryConfig, OmegaRuleConfig, Rule
from atlas.ops.chunk_scan import Scan, ScanState, open_state, written
from atlas.ops.chunk_scan.reference import ReferenceMemory, Token, Weights
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights, read
from atlas.ops.newton_schulz import newton_schulz
from atlas.ops.rules import learning_rule
from atlas.ops.rules.atlas import Atlas
from atlas.ops.rules.muon import FLOOR, Muon
from atlas.ops.rules.omega import Omega
from atlas.ops.rules.rule import LearningRule

ROWS, TOKENS, WIDTH, HIDDEN, FEATURES = 2, 11, 4, 3, 5
NORM_MAX = 0.9  # small enough to bind
CURVATURE_MAX = 3.0  # of a global memory: binds in some of the chunks
CURVATURE_MAX_LOCAL = 20.0  # of a local one: binds at some of the tokens, whose keys are no unit vectors here
SETTINGS = MemoryConfig(
    momentum=0.5,
    retention=0.9,
    omega=OmegaRuleConfig(3, 0.5, 0.9),
    atlas=AtlasRuleConfig(iterations=3, window=3, gate=0.5),
)
CASES: dict[str, LearningRule] = {
    **{str(rule): learning_rule(replace(SETTINGS, rule=rule)) for rule in Rule},
    "omega 1": Omega(1, 0.5),
    "atlas 1": Atlas(Muon(0.5, 0.9, 0.1, 1.0, 5), 1, 0.5),
    "omega 6": Omega(6, 0.5, 0.9),  # longer than the chunks below
    "atlas 6": Atlas(Muon(0.5, 0.9, 0.1, 1.0, 3), 6, 0.5),
}
each_rule = pytest.mark.parametrize("name", CASES)
local_and_global = pytest.mark.parametrize("read_at_start", [False, True], ids=["local", "global"])


def random_weights(rows: int = ROWS, seed: int = 0) -> FastWeights:
    torch.manual_seed(seed)
    down = torch.randn(rows, WIDTH, HIDDEN, dtype=torch.float64) * 0.5
    up = torch.randn(rows, 2 * HIDDEN, FEATURES, dtype=torch.float64) * 0.5
    return FastWeights(down.requires_grad_(), up.requires_grad_())


def random_tokens(rule: LearningRule, tokens: int = TOKENS, rows: int = ROWS, seed: int = 1) -> ChunkInputs:
    torch.manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(rows, tokens, *shape, dtype=torch.float64)

    gates = torch.rand(rows, tokens, 1 + len(rule.controls), dtype=torch.float64)
    fields = (*(leaf(WIDTH) for _ in range(3)), leaf(FEATURES), leaf(FEATURES), gates[..., 0], gates[..., 1:])
    return ChunkInputs(*(field.detach().clone().requires_grad_() for field in fields))


def cut(tokens: ChunkInputs, first: int, end: int | None) -> ChunkInputs:
    return ChunkInputs(*(field[:, first:end] for field in tokens))


def limits(read_at_start: bool) -> tuple[float, float]:
    """Of the curvature: of the global memory and of the local ones."""
    return (CURVATURE_MAX, 0.0) if read_at_start else (0.0, CURVATURE_MAX_LOCAL)


def begun(name: str, weights: FastWeights, read_at_start: bool) -> ScanState:
    return open_state(CASES[name], weights, curved=read_at_start, curved_local=not read_at_start)


def run(
    name: str, weights: FastWeights, tokens: ChunkInputs, schedule: Sequence[tuple[int, int]], read_at_start: bool
) -> tuple[Tensor, ScanState]:
    """Run pieces of (tokens, chunk), one call each."""
    state, outputs, done = begun(name, weights, read_at_start), [], 0
    for count, chunk in schedule:
        scan = Scan(CASES[name], chunk, NORM_MAX, read_at_start, False, *limits(read_at_start))
        out, state = scan(state, cut(tokens, done, done + count))
        outputs.append(out)
        done += count
    return torch.cat(outputs, dim=1), state


def slow(rule: LearningRule) -> dict[str, int]:
    """What the reference has to know besides the names of the gates."""
    known = vars(rule) | vars(getattr(rule, "muon", rule))
    return {name: known[name] for name in ("window", "iterations") if name in known}


def run_reference(
    name: str, weights: FastWeights, tokens: ChunkInputs, schedule: Sequence[tuple[int, int]], read_at_start: bool
) -> tuple[Tensor, FastWeights]:
    """The same token by token: outputs, and the weights at the start of the chunk that comes next."""
    chunks = [chunk for count, chunk in schedule for _ in range(count)]
    outputs, downs, ups = [], [], []
    for row in range(tokens.rate.shape[0]):
        start = Weights(weights.down[row], *weights.up[row].chunk(2))
        gates = tuple(control.name for control in CASES[name].controls)
        whole, causal = limits(read_at_start)
        bounds = {"floor": FLOOR, "curvature_max": whole, "curvature_max_local": causal}
        memory = ReferenceMemory(start, read_at_start, NORM_MAX, gates, **slow(CASES[name]), **bounds)
        fields = (Token(*(field[row, t] for field in tokens)) for t in range(len(chunks)))
        outputs.append(torch.stack([memory.recall(token, chunk) for token, chunk in zip(fields, chunks, strict=True)]))
        downs.append(memory.weights.W1)
        ups.append(torch.cat((memory.weights.W2, memory.weights.W3)))
    return torch.stack(outputs), FastWeights(torch.stack(downs), torch.stack(ups))


def gradients(outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Of one fixed random projection of the outputs; zeros for leaves that nothing depends on."""
    generator = torch.Generator().manual_seed(2)
    loss = sum((out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum() for out in outputs)
    assert isinstance(loss, Tensor)
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]


def assert_equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@each_rule
@local_and_global
@pytest.mark.parametrize(
    "schedule",
    [[(11, 4)], [(11, 2)], [(7, 1)], [(6, 16)], [(6, 4), (3, 1), (2, 5)]],
    ids=["chunk 4", "chunk 2", "token recurrence", "open chunk", "chunk changes"],
)
def test_outputs_weights_and_all_gradients_equal_the_reference(
    name: str, read_at_start: bool, schedule: list[tuple[int, int]]
) -> None:
    weights, tokens = random_weights(), random_tokens(CASES[name], sum(count for count, _ in schedule))
    leaves = [*weights, *tokens]
    fast, state = run(name, weights, tokens, schedule, read_at_start)
    slow, end = run_reference(name, weights, tokens, schedule, read_at_start)
    assert_equal([fast, *state.start], [slow, *end])
    assert_equal(gradients([fast, *state.start], leaves), gradients([slow, *end], leaves))


def test_chunk_1_of_gd_is_the_plain_recurrence() -> None:
    weights, tokens = random_weights(1), random_tokens(CASES["gd"], 5, 1)
    free = Scan(CASES["gd"], 1, 1e6, False)
    fast, state = free(open_state(CASES["gd"], weights), tokens)
    down, up = (matrix[0] for matrix in weights)
    outputs = []

    def recall(x: Tensor, features: Tensor) -> Tensor:
        gate, linear = (up @ features).chunk(2)
        return x + down @ (gate * torch.sigmoid(gate) * linear)

    for t in range(5):
        error = recall(tokens.key[0, t], tokens.key_features[0, t]) - tokens.value[0, t]
        steps = torch.autograd.grad((1 + error @ error).sqrt(), (down, up))
        down, up = down - tokens.rate[0, t] * steps[0], up - tokens.rate[0, t] * steps[1]
        outputs.append(recall(tokens.query[0, t], tokens.query_features[0, t]))
    assert_equal([fast[0], state.start.down[0], state.start.up[0]], [torch.stack(outputs), down, up])


@pytest.mark.parametrize("orthogonal", [False, True], ids=["Titans Eq 13-15", "ATLAS Eq 32-33"])
def test_chunk_1_with_momentum_is_the_recurrence_of_the_papers(orthogonal: bool) -> None:
    """S_t = theta_t S_{t-1} + eta_t grad l(M_{t-1}), M_t = alpha_t M_{t-1} - S_t or - rho_t NS(S_t); M_t is read."""
    name = "muon" if orthogonal else "momentum"
    weights, tokens = random_weights(1), random_tokens(CASES[name], 5, 1)
    fast, state = Scan(CASES[name], 1, 1e6, False)(open_state(CASES[name], weights), tokens)
    M = [weights.down[0], *weights.up[0].chunk(2)]
    S = [torch.zeros_like(matrix) for matrix in M]
    outputs = []

    def recall(x: Tensor, features: Tensor) -> Tensor:
        return x + M[0] @ (F.silu(M[1] @ features) * (M[2] @ features))

    for t in range(5):
        theta, forget, *rate = tokens.controls[0, t]
        error = recall(tokens.key[0, t], tokens.key_features[0, t]) - tokens.value[0, t]
        steps = torch.autograd.grad((1 + error @ error).sqrt(), M, retain_graph=True)
        S = [theta * s + tokens.rate[0, t] * step for s, step in zip(S, steps, strict=True)]
        written = [rate[0] * newton_schulz(s[None], 5, FLOOR)[0] for s in S] if orthogonal else S
        M = [(1 - forget) * m - step for m, step in zip(M, written, strict=True)]
        outputs.append(recall(tokens.query[0, t], tokens.query_features[0, t]))
    assert_equal([fast[0], state.start.down[0], state.start.up[0]], [torch.stack(outputs), M[0], torch.cat(M[1:])])


@each_rule
@local_and_global
@pytest.mark.parametrize("first", range(1, TOKENS))
def test_two_parts_equal_one_pass_wherever_they_are_cut(name: str, read_at_start: bool, first: int) -> None:
    weights, tokens = random_weights(), random_tokens(CASES[name])
    leaves = [*weights, *tokens]
    whole, end = run(name, weights, tokens, [(TOKENS, 4)], read_at_start)
    parts, state = run(name, weights, tokens, [(first, 4), (TOKENS - first, 4)], read_at_start)
    ends = [leaf for leaf in pytree.tree_leaves((end, state)) if isinstance(leaf, Tensor)]
    half = len(ends) // 2
    assert_equal([whole, *ends[:half]], [parts, *ends[half:]])
    assert_equal(
        gradients([whole, *end.start, *end.update], leaves), gradients([parts, *state.start, *state.update], leaves)
    )


@each_rule
@local_and_global
def test_token_by_token_equals_one_pass(name: str, read_at_start: bool) -> None:
    weights, tokens = random_weights(), random_tokens(CASES[name])
    whole, _ = run(name, weights, tokens, [(TOKENS, 4)], read_at_start)
    steps, _ = run(name, weights, tokens, [(1, 4)] * TOKENS, read_at_start)
    assert_equal([whole], [steps])


@each_rule
@local_and_global
def test_later_tokens_change_nothing(name: str, read_at_start: bool) -> None:
    weights, tokens, other = random_weights(), random_tokens(CASES[name]), random_tokens(CASES[name], seed=5)
    whole, _ = run(name, weights, tokens, [(TOKENS, 4)], read_at_start)
    for t in range(TOKENS):
        mixed = ChunkInputs(
            *(torch.cat((a[:, : t + 1], b[:, t + 1 :]), dim=1) for a, b in zip(tokens, other, strict=True))
        )
        changed, _ = run(name, weights, mixed, [(TOKENS, 4)], read_at_start)
        torch.testing.assert_close(changed[:, : t + 1], whole[:, : t + 1], rtol=0, atol=1e-13)
        leaked = torch.autograd.grad(whole[:, t].sum(), tokens, retain_graph=True, allow_unused=True)
        assert all(grad is None or torch.count_nonzero(grad[:, t + 1 :]) == 0 for grad in leaked)


@each_rule
def test_rows_are_independent(name: str) -> None:
    weights, tokens = random_weights(3), random_tokens(CASES[name], rows=3)
    out, _ = run(name, weights, tokens, [(TOKENS, 4)], False)
    order = torch.tensor([2, 0, 1])
    permuted, _ = run(
        name,
        FastWeights(*(matrix[order] for matrix in weights)),
        ChunkInputs(*(field[order] for field in tokens)),
        [(TOKENS, 4)],
        False,
    )
    assert_equal([permuted], [out[order]])
    leaked = gradients([out[0]], [*weights, *tokens])
    assert all(torch.count_nonzero(grad[1:]) == 0 for grad in leaked)


@each_rule
def test_one_update_lowers_its_own_loss(name: str) -> None:
    weights, tokens = random_weights(8), random_tokens(CASES[name], 1, 8)
    small = tokens._replace(rate=torch.full_like(tokens.rate, 0.05), controls=torch.full_like(tokens.controls, 0.05))
    for index, control in enumerate(CASES[name].controls):
        if control.name == "forget":  # it is no part of the gradient step
            small.controls[..., index] = 0
    state = open_state(CASES[name], weights)
    _, after = Scan(CASES[name], 4, 8.0, True)(state, small)

    def loss(at: FastWeights) -> Tensor:
        return (read(at, tokens.key, tokens.key_features) - tokens.value).square().sum((1, 2))

    assert (loss(written(CASES[name], after, 0.0)) < loss(weights)).all()


@pytest.mark.parametrize(
    ("name", "controls"), [("omega 1", [1.0]), ("momentum", [0.0, 0.0])], ids=["omega 1", "momentum"]
)
@local_and_global
def test_a_rule_without_its_additions_is_gd(name: str, controls: list[float], read_at_start: bool) -> None:
    weights, plain = random_weights(), random_tokens(CASES["gd"])
    fixed = torch.tensor(controls, dtype=torch.float64).expand(ROWS, TOKENS, -1)
    out, _ = run(name, weights, plain._replace(controls=fixed), [(TOKENS, 4)], read_at_start)
    expected, _ = run("gd", weights, plain, [(TOKENS, 4)], read_at_start)
    leaves = [*weights, *plain[:-1]]
    assert_equal([out], [expected])
    assert_equal(gradients([out], leaves), gradients([expected], leaves))


@local_and_global
def test_atlas_with_a_window_of_1_and_open_gates_is_muon(read_at_start: bool) -> None:
    weights, tokens = random_weights(), random_tokens(CASES["muon"])
    gated = tokens._replace(controls=torch.cat((tokens.controls, torch.ones_like(tokens.controls[..., :1])), dim=-1))
    out, state = run("atlas 1", weights, gated, [(TOKENS, 4)], read_at_start)
    expected, end = run("muon", weights, tokens, [(TOKENS, 4)], read_at_start)
    leaves = [*weights, *tokens]
    assert_equal([out, *state.start], [expected, *end.start])
    assert_equal(gradients([out, *state.start], leaves), gradients([expected, *end.start], leaves))


@each_rule
def test_rates_and_controls_of_0_write_nothing(name: str) -> None:
    weights, tokens = random_weights(), random_tokens(CASES[name])
    weights = FastWeights(weights.down * 0.1, weights.up * 0.1)  # within the bound
    idle = tokens._replace(rate=tokens.rate * 0, controls=tokens.controls * 0)
    _, state = run(name, weights, idle, [(TOKENS, 4)], False)
    assert_equal([*state.start, *state.update], [*weights, weights.down * 0, weights.up * 0])


@each_rule
@local_and_global
def test_recomputation_changes_neither_outputs_nor_gradients(name: str, read_at_start: bool) -> None:
    weights, tokens = random_weights(), random_tokens(CASES[name], 40)
    leaves, results = [*weights, *tokens], []
    for recompute in (False, True):
        scan = Scan(CASES[name], 4, NORM_MAX, read_at_start, recompute, *limits(read_at_start))
        first, state = scan(begun(name, weights, read_at_start), cut(tokens, 0, 3))
        rest, state = scan(state, cut(tokens, 3, None))
        results.append([first, rest, *gradients([first, rest, *state.start], leaves)])
    assert_equal(*results)


@each_rule
@local_and_global
@pytest.mark.parametrize("kind", ["random", "repeated", "huge values", "forgetting"])
def test_extreme_rates_stay_finite_and_within_the_bound(name: str, read_at_start: bool, kind: str) -> None:
    rule = CASES[name]
    tokens = random_tokens(rule, 640)
    if kind == "repeated":
        tokens = ChunkInputs(*(field[:, :1].expand_as(field) for field in tokens))
    query, key, value, *features = (F.normalize(field.detach().float(), dim=-1) for field in tokens[:5])
    value = value * (1e10 if kind == "huge values" else 1)
    controls = torch.ones_like(tokens.controls).float()
    for index, control in enumerate(rule.controls):
        if control.name == "forget":
            controls[..., index] = float(kind == "forgetting")
    rate = torch.full_like(tokens.rate, 4.0).float()
    weights = FastWeights(*(matrix.detach().float() for matrix in random_weights()))
    scan = Scan(rule, 16, 8.0, read_at_start)
    out, state = scan(open_state(rule, weights), ChunkInputs(query, key, value, *features, rate, controls))
    down, up = (matrix.flatten(1).norm(dim=1).max().item() for matrix in state.start)
    assert out.isfinite().all()
    assert down <= 8 * HIDDEN**0.5 * (1 + 1e-5)
    assert up <= 8 * (HIDDEN * FEATURES / WIDTH) ** 0.5 * (1 + 1e-5)


@each_rule
def test_the_state_is_tensors_with_a_row_each_and_integers(name: str) -> None:
    weights, tokens = random_weights(), random_tokens(CASES[name])
    before = begun(name, weights, False)
    _, state = run(name, weights, tokens, [(TOKENS, 4)], False)
    leaves, structure = pytree.tree_flatten(state)
    assert {type(leaf) for leaf in leaves} == {Tensor, int}
    assert {leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor)} == {ROWS}
    assert structure == pytree.tree_flatten(before)[1]
    assert [leaf.shape for leaf in leaves if isinstance(leaf, Tensor)] == [
        leaf.shape for leaf in pytree.tree_leaves(before) if isinstance(leaf, Tensor)
    ]


@each_rule
@local_and_global
def test_autocast_changes_nothing(name: str, read_at_start: bool) -> None:
    """Not where features come in half precision either: a scan computes in the precision of its weights."""
    weights = FastWeights(*(matrix.detach().float() for matrix in random_weights()))
    wide = ChunkInputs(*(field.detach().bfloat16().float() for field in random_tokens(CASES[name])))
    mixed = wide._replace(query_features=wide.query_features.bfloat16(), key_features=wide.key_features.bfloat16())
    schedule = [(7, 3), (4, 3)]
    expected = run(name, weights, wide, schedule, read_at_start)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(name, weights, mixed, schedule, read_at_start)
    for ours, theirs in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))
