"""G2-3 and AC-P2-7: every way of getting the projection wrong turns the check red."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import atlas
from atlas.config import QKProjectionConfig
from atlas.models import qk_projection
from atlas.models.language_model import AtlasModel
from atlas.models.persistent import PersistentMemory
from atlas.models.qk_projection import QKProjection, QueryProjector
from atlas.ops.qk_projection import Accumulator
from experiments.phase2.check_projection import LayerEvidence, judge_projection, measure_projection
from experiments.phase2.finding import CheckOutcome

SHAPE = [
    "model.width=16",
    "model.layers=2",
    "model.feedforward=16",
    "model.memory.hidden=4",
    "model.persistent_keys=6",
    "model.window=4",
    "chunk_size.shard=8",
    "chunk_size.global_size=8",
    "train.sequence=16",
    "chunk_size.local=[2,4]",
    "niah=off",
]
Fault = Callable[[pytest.MonkeyPatch], None]


def build(*overrides: str) -> AtlasModel:
    model = atlas.build_model(atlas.compose([*SHAPE, *overrides]))
    torch.manual_seed(0)
    with torch.no_grad():  # as training would leave them: no tight frame, no unit norms
        for name, parameter in model.named_parameters():
            if name.endswith(("persistent.keys", "down")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def judge(model: AtlasModel) -> Any:
    return judge_projection(measure_projection(model), "a test")


@pytest.mark.parametrize("scale", ["range=shard", "range=chunk", "normalisation=per_key", "renormalise=false"])
def test_the_projection_equals_its_definition(scale: str) -> None:
    model = build(f"model.memory.qk_projection.{scale}")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = measure_projection(model)
    finding = judge_projection(layers, "a test")
    assert (finding.outcome, finding.detail) == (CheckOutcome.passed, "")
    assert [(one.layer, one.leaked, one.reached) for one in layers] == [(0, 0, 1.0), (1, 0, 1.0)]
    keys = model.blocks[1].persistent.keys
    assert layers[1].norms == pytest.approx([(head.double() ** 2).sum().item() for head in keys], rel=1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.embedding.weight.dtype is torch.float32


def norm_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PersistentMemory, "norm_persistent", property(lambda self: self.keys.new_zeros(len(self.keys))))


def norm_a_constant(patch: pytest.MonkeyPatch) -> None:
    """As if it stood in the configuration: right for the keys that a model starts with."""
    patch.setattr(
        PersistentMemory, "norm_persistent", property(lambda self: self.keys.new_full((len(self.keys),), 6.0))
    )


def keys_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PersistentMemory, "m_persistent", property(lambda self: self.keys.mT @ self.keys * 0))


def norm_left_out_at_resets(patch: pytest.MonkeyPatch) -> None:
    """The sequence starts right; the shards that are folded into the batch do not."""
    start = QueryProjector._start

    def faulty(self: QueryProjector, persistent: PersistentMemory, batch: int, rows: int) -> Accumulator:
        sums = start(self, persistent, batch, rows)
        return sums._replace(norm=sums.norm * 0) if rows != batch * self.heads else sums

    patch.setattr(QueryProjector, "_start", faulty)


def step_form_never_reset(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(QKProjection, "__init__", _init_once)
    patch.setattr(QKProjection, "reset_at_shard_boundary", lambda self: None)


def _init_once(self: QKProjection, persistent: PersistentMemory, normalisation: Any, degree: int = 1) -> None:
    self.persistent, self.per_key, self.degree = persistent, False, degree
    self.matrix, self.norm_sum = qk_projection.persistent_sums(persistent, False, degree)


def never_reset(patch: pytest.MonkeyPatch) -> None:
    whole = qk_projection.run_periods
    patch.setattr(qk_projection, "run_periods", lambda *given: whole(*given[:-1], None))


def gradient_cut_everywhere(patch: pytest.MonkeyPatch) -> None:
    project = QueryProjector._project

    def faulty(self: QueryProjector, start: Accumulator, tokens: tuple[Tensor, ...]) -> tuple[Tensor, Accumulator]:
        return project(self, start, tuple(field.detach() + 0 * field for field in tokens))

    patch.setattr(QueryProjector, "_project", faulty)


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        (norm_left_out, ["step form, start", "step form, reset", "parallel form, start", "forward pass, sums"]),
        (norm_a_constant, ["step form, start", "parallel form, start", "parallel form, queries"]),
        (keys_left_out, ["step form, start", "parallel form, start", "forward pass, sums", "forward pass, output"]),
        (norm_left_out_at_resets, ["parallel form, queries", "forward pass, output"]),
        (step_form_never_reset, ["step form, reset"]),
        (never_reset, ["parallel form, queries", "forward pass, sums", "forward pass, output"]),
    ],
)
def test_what_is_left_out_at_a_shard_boundary_is_named(
    fault: Fault, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    fault(monkeypatch)
    finding = judge(model)
    assert finding.outcome is CheckOutcome.failed
    told = " ".join((finding.detail, *finding.evidence))
    assert [name for name in names if f"layer 0: {name} differs from the definition by" not in told] == []
    assert [name for name in names if f"layer 1: {name} differs" not in told] == []


def test_a_mix_that_has_learnt_nothing_hides_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("model.memory.qk_projection.mix=true")
    mixes = [block.memory.mix for block in model.blocks]
    assert judge(model).outcome is CheckOutcome.passed
    assert all(block.memory.mix is mix for block, mix in zip(model.blocks, mixes, strict=True))
    never_reset(monkeypatch)
    assert "layer 1: forward pass, output differs" in " ".join(judge(model).evidence)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (never_reset, "components of a gradient cross the shard boundary through M_t"),
        (gradient_cut_everywhere, "AC-P2-7: gradients reach 0% of the keys of their own shard, wanted 100%"),
    ],
)
def test_a_gradient_mask_that_is_missing_or_too_wide_is_seen(
    fault: Fault, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    fault(monkeypatch)
    finding = judge(model)
    assert finding.outcome is CheckOutcome.failed
    assert complaint in " ".join((finding.detail, *finding.evidence))


@pytest.mark.parametrize("choice", ["model.memory.qk_projection.range=off", "model.memory.enabled=false"])
def test_a_model_without_a_projection_does_not_pass(choice: str) -> None:
    finding = judge(build(choice))
    assert (finding.outcome, finding.detail) == (CheckOutcome.failed, "the model has no Q-K projection")


def test_a_comparison_that_was_not_made_or_is_not_finite_does_not_pass() -> None:
    (sound, *_) = measure_projection(build())
    assert sound.errors["forward pass, sums"] < 1e-12
    for errors in ({}, {**sound.errors, "forward pass, sums": float("nan")}):
        broken = LayerEvidence(sound.layer, errors, sound.leaked, sound.reached, sound.norms)
        assert judge_projection([broken], "a test").outcome is CheckOutcome.failed


def test_the_default_normalises_the_projected_query_again() -> None:
    """So a wrong norm would not show in the loss: the reason why G2-3 measures without that as well."""
    assert QKProjectionConfig().renormalise is True
