"""Level `accumulator`: what it measures is what the algebra says, and every fault put in is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from atlas.config import ChunkSizeConfig, MemoryConfig, ModelConfig, NIAHConfig, Normalisation
from atlas.data.needles import NeedleFormat
from atlas.models.hierarchy import run_periods
from atlas.models.language_model import AtlasModel
from atlas.models.persistent import PersistentMemory
from atlas.models.qk_projection import QKProjection
from atlas.ops.features import homogeneous_features
from atlas.probes.accumulator import coherent_cosine, expected_cosine
from atlas.probes.niah import NIAHProbe
from atlas.probes.result import NIAHResult, Outcome


def probe(samples: int = 8, model: AtlasModel | None = None) -> NIAHResult:
    if model is None:
        torch.manual_seed(0)
        settings = ModelConfig(width=64, layers=1, heads=1, window=8, feedforward=64)
        model = AtlasModel(settings, ChunkSizeConfig([16], 32, 32), 256)
    config = NIAHConfig(levels=["accumulator"], samples=samples)
    return NIAHProbe(config, NeedleFormat(2, 1, 16), sequence=64).run(model, 1)[0]


def test_homogeneous_features_have_the_power_of_the_product_as_kernel() -> None:
    x, y = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for degree in (1, 2):
        kernel = (homogeneous_features(x, degree) * homogeneous_features(y, degree)).sum(-1)
        torch.testing.assert_close(kernel, (x * y).sum(-1) ** degree, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalisation", list(Normalisation))
@pytest.mark.parametrize("degree", [1, 2])
def test_pairs_injected_together_are_as_one_after_the_other(normalisation: Normalisation, degree: int) -> None:
    torch.manual_seed(3)
    persistent = PersistentMemory(2, 4, 6).double()
    keys, values = torch.randn(2, 3, 5, 2, 6, dtype=torch.float64)
    query = torch.randn(3, 2, 6, dtype=torch.float64)
    together, single = (QKProjection(persistent, normalisation, degree) for _ in range(2))
    together.inject_all(keys, values)
    for token in range(5):
        single.inject_memory(keys[:, token], values[:, token])
    torch.testing.assert_close(together.query_memory(query), single.query_memory(query), rtol=1e-12, atol=1e-12)


def test_expectations_of_the_plan() -> None:
    assert expected_cosine(164, 64, 1) == pytest.approx(0.5298, abs=1e-4)
    assert coherent_cosine(164, 64) == pytest.approx(0.3148, abs=1e-4)
    assert expected_cosine(164, 64, 2) == pytest.approx(0.9464, abs=1e-4)


def test_a_sound_model_passes_with_the_cosine_that_the_algebra_predicts() -> None:
    result = probe(samples=12)
    assert (result.outcome, result.reason) == (Outcome.passed, "")
    assert result.accuracy == pytest.approx(expected_cosine(164, 64, 2), abs=0.03)
    assert result.control == pytest.approx(0.0, abs=0.15)
    assert result.details["raw_accuracy"] == pytest.approx(coherent_cosine(164, 64), abs=0.06)
    assert result.details["scale"] == pytest.approx(1, abs=1e-5)


def no_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PersistentMemory, "norm_persistent", property(lambda self: self.keys.new_zeros(len(self.keys))))


def no_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    reset = QKProjection.reset_at_shard_boundary
    monkeypatch.setattr(
        QKProjection, "reset_at_shard_boundary", lambda self: None if hasattr(self, "matrix") else reset(self)
    )


def no_reset_in_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*arguments: object) -> object:
        return run_periods(*arguments[:5], None)  # type: ignore[arg-type]

    monkeypatch.setattr("atlas.models.qk_projection.run_periods", endless)


def numerator_reset_only(monkeypatch: pytest.MonkeyPatch) -> None:
    reset = QKProjection.reset_at_shard_boundary

    def half(self: QKProjection) -> None:
        norm = getattr(self, "norm_sum", None)
        reset(self)
        self.norm_sum = self.norm_sum if norm is None else norm

    monkeypatch.setattr(QKProjection, "reset_at_shard_boundary", half)


def shuffled_values(monkeypatch: pytest.MonkeyPatch) -> None:
    inject = QKProjection.inject_all

    def shuffled(self: QKProjection, keys: Tensor, values: Tensor) -> None:
        inject(self, keys, values.roll(1, dims=0))

    monkeypatch.setattr(QKProjection, "inject_all", shuffled)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (no_norm, "norm_persistent?"),
        (no_norm, "after a shard boundary the model's norm is not norm_persistent"),
        (no_reset, "after a reset it is off its persistent keys"),
        (numerator_reset_only, "after a reset it is off its persistent keys"),
        (no_reset_in_the_model, "after a shard boundary the model's sum is not M_persistent"),
        (shuffled_values, "times as large as the algebra says"),
    ],
)
def test_a_fault_is_caught(
    fault: Callable[[pytest.MonkeyPatch], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    result = probe()
    assert result.outcome is Outcome.failed
    assert reason in result.reason


def test_shuffled_values_lose_the_needle(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffled_values(monkeypatch)
    result = probe()
    assert result.accuracy == pytest.approx(0.0, abs=0.25)


def test_without_a_memory_it_is_not_measured() -> None:
    settings = ModelConfig(width=16, layers=1, heads=1, window=8, feedforward=16, memory=MemoryConfig(enabled=False))
    result = probe(model=AtlasModel(settings, ChunkSizeConfig([16], 32, 32), 256))
    assert (result.outcome, result.reason, result.accuracy) == (Outcome.not_measured, "the model has no memory", None)


def test_outputs_that_are_not_finite_are_not_measured() -> None:
    settings = ModelConfig(width=16, layers=1, heads=1, window=8, feedforward=16)
    model = AtlasModel(settings, ChunkSizeConfig([16], 32, 32), 256)
    with torch.no_grad():
        model.blocks[0].persistent.keys.fill_(float("nan"))  # type: ignore[union-attr, operator]
    result = probe(model=model)
    assert (result.outcome, result.accuracy) == (Outcome.not_measured, None)
