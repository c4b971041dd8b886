"""Level `memory`: the learning rule keeps a pair, and every fault put into it is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from atlas.config import (
    AtlasRuleConfig,
    ChunkSizeConfig,
    MemoryConfig,
    ModelConfig,
    NIAHConfig,
    OmegaRuleConfig,
    Rule,
)
from atlas.data.needles import NeedleFormat
from atlas.models.hierarchy import pieces
from atlas.models.language_model import AtlasModel
from atlas.models.memory_inputs import MemoryInputs
from atlas.ops.chunk_scan import Scan, ScanState
from atlas.ops.dual_form import ChunkInputs
from atlas.probes.niah import NIAHProbe
from atlas.probes.result import NIAHResult, Outcome
from atlas.probes.subject import stretch


def sound_model(**memory: Any) -> AtlasModel:
    torch.manual_seed(0)
    settings = ModelConfig(width=64, layers=1, heads=1, window=8, feedforward=64, memory=MemoryConfig(**memory))
    return AtlasModel(settings, ChunkSizeConfig([16, 32], 64, 128), 256)


def probe(model: AtlasModel | None = None) -> NIAHResult:
    config = NIAHConfig(levels=["memory"], samples=6)
    return NIAHProbe(config, NeedleFormat(2, 1, 16), sequence=64).run(model or sound_model(), 1)[0]


def test_a_sound_memory_keeps_the_pair() -> None:
    result = probe()
    assert (result.outcome, result.reason) == (Outcome.passed, "")
    by_memory = {cell.task: cell for cell in result.cells if cell.haystack == "random keys"}
    lengths = {name: cell.length for name, cell in by_memory.items()}
    assert lengths == {"local 16": 100, "local 32": 100, "global 64": 127}
    for cell in by_memory.values():
        assert cell.accuracy == pytest.approx(0.98, abs=0.02)
        assert cell.control == pytest.approx(0.0, abs=0.2)


@pytest.mark.parametrize("rule", Rule)
def test_the_control_knows_nothing_of_the_pair_with_any_rule(rule: Rule) -> None:
    """Also where a window lets its successors write it, here with all gates open."""
    open_windows = {"omega": OmegaRuleConfig(gate=1.0), "atlas": AtlasRuleConfig(gate=1.0)}
    result = probe(sound_model(rule=rule, **open_windows))
    assert [cell.control for cell in result.cells] == pytest.approx([0.0] * len(result.cells), abs=0.2)
    assert result.accuracy is not None
    assert result.accuracy > 0.5


def test_the_longest_write_is_to_the_end_of_a_global_chunk() -> None:
    model = sound_model()
    assert stretch(model.plan, 100) == 129  # a shard of 128 and the token after it
    assert stretch(model.plan._replace(shard=None), 130) == 192


def never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(self: Scan, state: ScanState, tokens: ChunkInputs) -> tuple[Tensor, ScanState]:
        return tokens.query, state

    monkeypatch.setattr(Scan, "__call__", read_only)


def written_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = MemoryInputs.rates
    monkeypatch.setattr(MemoryInputs, "rates", lambda self, x: rates(self, x) * self.training)


def no_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.models.hierarchy.pieces", lambda tokens, offset, period: pieces(tokens, offset, None))


def shuffled_values(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = Scan.__call__

    def shuffled(self: Scan, state: ScanState, tokens: ChunkInputs) -> tuple[Tensor, ScanState]:
        return scan(self, state, tokens._replace(value=tokens.value.roll(1, dims=1)))

    monkeypatch.setattr(Scan, "__call__", shuffled)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (never_written, "the global memory is not written at all"),
        (never_written, "the local memory of chunk 16 is not written at all"),
        (written_in_training_only, "the local memory of chunk 32 is not written at all"),
        (no_reset, "the local memory of chunk 16 is not back at W_init after a shard boundary"),
        (shuffled_values, "below the threshold"),
    ],
)
def test_a_fault_is_caught(
    fault: Callable[[pytest.MonkeyPatch], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    result = probe()
    assert result.outcome is Outcome.failed
    assert reason in result.reason


def test_outputs_that_are_not_finite_are_not_measured() -> None:
    model = sound_model()
    with torch.no_grad():
        model.blocks[0].memory.local[1].up.fill_(float("nan"))  # type: ignore[union-attr, index, operator]
    result = probe(model)
    assert (result.outcome, result.accuracy) == (Outcome.not_measured, None)
