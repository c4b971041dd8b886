"""Level `recall`: fakes of known quality score what they must, leaks are caught, nothing passes unmeasured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atlas.config import ChunkSizeConfig, MemoryConfig, ModelConfig, NIAHConfig
from atlas.data.needles import NeedleFormat
from atlas.data.symbols import KEY_ALPHABET, MARKER, VALUE_ALPHABET
from atlas.models.language_model import AtlasModel, ModelOutput
from atlas.models.plan import MemoryMode
from atlas.niah import table
from atlas.ops.chunk_scan import Scan, ScanState, written
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import read
from atlas.probes.niah import NIAHProbe
from atlas.probes.recall import attention_reach, control_margin
from atlas.probes.result import NIAHResult, Outcome

NEEDLES = NeedleFormat(key_bytes=2, value_bytes=2, value_alphabet=4)
CHANCE = 1 / 16
TEXT = np.frombuffer(b"It was the best of times, it was the worst of times. " * 40, dtype=np.uint8)
SMALL = ModelConfig(width=16, layers=2, heads=1, window=8, feedforward=16)
CHUNKS = ChunkSizeConfig([4], 32, 32)


class Scripted(AtlasModel):
    """Answers with the value that followed the same key before, in the given modes; else a random value byte."""

    def __init__(self, knowing: tuple[MemoryMode, ...]) -> None:
        super().__init__(SMALL, CHUNKS, 256)
        self.knowing = knowing

    def forward(self, tokens: Tensor, *_: Any, mode: MemoryMode = MemoryMode.learn, **__: Any) -> ModelOutput:
        logits = torch.full((*tokens.shape, 256), -100.0)
        values = torch.from_numpy(VALUE_ALPHABET[: NEEDLES.value_alphabet].astype(np.int64))
        # Uniform over the value alphabet but for a hair, which depends on the tokens alone.
        hair = torch.sin(tokens.cumsum(1)[..., None] * (1.0 + torch.arange(len(values)))) * 1e-4
        logits[..., values] = hair
        if mode in self.knowing:
            for row in range(len(tokens)):
                self._answer(tokens[row].tolist(), logits[row])
        return ModelOutput(logits, self.initial_state(len(tokens)), ())

    def _answer(self, tokens: list[int], logits: Tensor) -> None:
        known: dict[tuple[int, ...], list[int]] = {}
        for place, token in enumerate(tokens):
            if token != MARKER:
                continue
            key = tuple(tokens[place + 1 : place + 3])
            for byte, value in enumerate(known.get(key, [])):
                if place + 2 + byte < len(tokens):
                    logits[place + 2 + byte] = -100.0
                    logits[place + 2 + byte, value] = 0.0
            known.setdefault(key, tokens[place + 3 : place + 5])


def probe(model: AtlasModel, *, sequence: int = 128, **settings: Any) -> NIAHResult:
    config = NIAHConfig(levels=["recall"], **settings)
    (result,) = NIAHProbe(config, NEEDLES, sequence=sequence, text=TEXT).run(model, 1, every_task=True)
    return result


def test_a_perfect_fake_finds_every_needle_of_every_task() -> None:
    tasks = ["single", "multi_key", "multi_query", "text", "multi_key_text"]
    result = probe(Scripted((MemoryMode.learn,)), tasks=tasks, all_depths=True, length_factors=[1, 2], samples=16)
    assert (result.outcome, result.reason, result.accuracy) == (Outcome.passed, "", 1.0)
    assert result.control == pytest.approx(CHANCE, abs=3 * (CHANCE * (1 - CHANCE) / 48) ** 0.5)
    assert result.details["likelihood"] == pytest.approx(1.0)
    assert {cell.accuracy for cell in result.cells if cell.samples} == {1.0}
    assert {(cell.task, cell.length) for cell in result.cells} == {(task, n) for task in tasks for n in (128, 256)}


def test_a_guess_scores_chance_and_fails() -> None:
    result = probe(Scripted(()), samples=128, tasks=["single"])
    assert (result.outcome, result.reason) == (Outcome.failed, "below the threshold")
    assert result.accuracy == pytest.approx(CHANCE, abs=3 * (CHANCE * (1 - CHANCE) / 384) ** 0.5)
    assert result.details["likelihood"] == pytest.approx(CHANCE, rel=1e-3)


class Blank(Scripted):
    """Likes a blank best everywhere, and is a guess among the values below it."""

    def forward(self, tokens: Tensor, *_: Any, **__: Any) -> ModelOutput:
        out = super().forward(tokens)
        out.logits[..., ord(" ")] = 5.0
        return out


def test_a_control_guesses_among_the_values_the_model_itself_may_say_anything() -> None:
    result = probe(Blank(()), samples=128, tasks=["single"])
    assert (result.outcome, result.accuracy) == (Outcome.failed, 0.0)
    assert result.control == pytest.approx(CHANCE, abs=3 * (CHANCE * (1 - CHANCE) / 384) ** 0.5)


def test_metrics_verdict_and_description() -> None:
    result = probe(Scripted((MemoryMode.learn,)), samples=4)
    assert result.metrics == {
        "niah/recall/accuracy": 1.0,
        "niah/recall/control": result.control,
        "niah/recall/chance": CHANCE,
        "niah/recall/key_blind": result.key_blind,
        "niah/accuracy": 1.0,
    }
    assert result.verdict.startswith("PASSED: 100.0% with memory, ")
    assert (result.describe()["passed"], result.describe()["verdict"]) == (True, result.verdict)
    assert "step" not in result.describe()  # an event brings its own


def test_needles_of_the_same_shard_and_of_earlier_ones_are_told_apart() -> None:
    result = probe(Scripted((MemoryMode.learn,)), samples=8, tasks=[], depths=[0.0, 0.4, 0.85, 1.0])
    assert [cell.span for cell in result.cells] == ["3 shards back", "2 shards back", "same shard", ""]
    assert result.cells[3].reason == "the needle lies within the 14 tokens that attention reaches"
    assert (result.details["same_shard"], result.details["earlier_shards"]) == (1.0, 1.0)


def test_a_control_that_finds_the_needle_is_a_leak() -> None:
    result = probe(Scripted((MemoryMode.learn, MemoryMode.off)), samples=8)
    assert (result.outcome, result.accuracy, result.control) == (Outcome.failed, 1.0, 1.0)
    assert result.reason == "the control finds 100.0% without the memory, chance is 6.2%: a leak"


def test_margin_of_the_control_is_five_points_or_three_standard_errors() -> None:
    assert control_margin(CHANCE, 10_000) == 0.05
    assert control_margin(CHANCE, 100) == pytest.approx(3 * (CHANCE * (1 - CHANCE) / 100) ** 0.5)


@pytest.mark.parametrize("chunks", [CHUNKS, ChunkSizeConfig([2], 2, 2)], ids=["chunks", "shorter than a needle"])
def test_a_memory_that_reads_what_the_whole_chunk_wrote_is_caught(
    chunks: ChunkSizeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = Scan.__call__

    def update_then_read(self: Scan, state: ScanState, tokens: ChunkInputs) -> tuple[Tensor, ScanState]:
        _, after = scan(self, state, tokens)
        return read(written(self.rule, after, self.curvature_max), tokens.query, tokens.query_features), after

    torch.manual_seed(0)
    model = AtlasModel(SMALL, chunks, 256)
    assert probe(model, samples=1, tasks=[], depths=[0.0]).details["causality_error"] < 1e-6
    monkeypatch.setattr(Scan, "__call__", update_then_read)
    result = probe(model, samples=1, tasks=[], depths=[0.0])
    assert result.outcome is Outcome.failed
    assert "the future leaks" in result.reason


class Broken(Scripted):
    def forward(self, tokens: Tensor, *arguments: Any, **settings: Any) -> ModelOutput:
        out = super().forward(tokens, *arguments, **settings)
        return out._replace(logits=out.logits * float("nan"))


def without_memory(window: int) -> AtlasModel:
    settings = ModelConfig(
        width=16, layers=2, heads=1, window=window, feedforward=16, memory=MemoryConfig(enabled=False)
    )
    return AtlasModel(settings, CHUNKS, 256)


@pytest.mark.parametrize(
    ("model", "sequence", "depths", "reason"),
    [
        (Broken((MemoryMode.learn,)), 128, [0.0], "the outputs are not finite"),
        (without_memory(8), 128, [0.0], "the model has no memory; the control is its own recall"),
        (AtlasModel(ModelConfig(width=16, heads=1, window=0), CHUNKS, 256), 128, [0.0], "attention sees the whole seq"),
        (Scripted((MemoryMode.learn,)), 14, [0.0], "14 tokens are not more than the 14 that attention reaches"),
        (Scripted((MemoryMode.learn,)), 128, [1.0], "the needle lies within the 14 tokens that attention reaches"),
    ],
)
def test_what_cannot_be_measured_does_not_pass(
    model: AtlasModel, sequence: int, depths: list[float], reason: str
) -> None:
    result = probe(model, sequence=sequence, depths=depths, samples=2, tasks=["single"])
    assert (result.outcome, result.accuracy, result.failed) == (Outcome.not_measured, None, False)
    assert result.reason.startswith(reason)
    assert result.metrics["niah/accuracy"] is None
    assert ("causality_error" in result.details) is not isinstance(model, Broken)  # not measured, never 0


def test_a_text_that_is_too_short_is_not_measured_and_the_rest_is() -> None:
    result = probe(Scripted((MemoryMode.learn,)), sequence=2560, samples=1, depths=[0.5], tasks=["single", "text"])
    assert [(cell.task, cell.accuracy, cell.reason) for cell in result.cells] == [
        ("multi_key", 1.0, ""),
        ("single", 1.0, ""),
        ("text", None, "no text of more than 2560 tokens"),
    ]


def test_mqar_and_ruler_are_asked_beyond_the_reach_of_attention() -> None:
    tasks = ["single", "mqar", "ruler"]
    result = probe(Scripted(()), sequence=512, samples=4, depths=[0.0], tasks=tasks)
    by_task = {cell.task: cell for cell in result.cells}
    assert by_task["ruler"].samples == 4
    assert 0 < by_task["mqar"].samples <= 4 * 64  # pairs of a sequence, less those asked for at once


def test_true_chance_of_mqar_and_ruler_is_printed() -> None:
    result = probe(Scripted(()), sequence=512, samples=4, depths=[0.0], tasks=["mqar", "ruler"], lengths=[128, 512])
    cells = {(cell.task, cell.length): cell for cell in result.cells}
    assert cells["mqar", 128].chance == 1 / 128
    assert cells["mqar", 128].key_blind["random value"] == 1 / 8  # zoology: 8 pairs in 128 tokens
    assert cells["mqar", 512].key_blind["random value"] == 1 / 64
    assert cells["ruler", 512].chance == 1 / 9_000_000  # numbers from 1,000,000 to 9,999,999
    lines = table([result])
    assert [line.split()[-4:-2] for line in lines if " ruler " in line and "512" in line] == [["100.0%", "1.1e-07"]]
    assert any(
        line.startswith("  ruler: RULER's niah_single_2, but: a token is a byte, or the number spelt in digits; ")
        for line in lines
    )
    assert any(
        line.startswith("  mqar: zoology's MQAR, but: all ids of the model, 256 with bytes, for 8,192; ")
        for line in lines
    )


class LastValue(Scripted):
    """Answers with the last value before the question, whatever the key: finds every single needle."""

    def _answer(self, tokens: list[int], logits: Tensor) -> None:
        last: list[int] = []
        for place, token in enumerate(tokens):
            if token == MARKER:
                for byte, value in enumerate(last):
                    if place + 2 + byte < len(tokens):
                        logits[place + 2 + byte, value] = 1.0
                last = tokens[place + 3 : place + 5]


def test_a_reader_that_ignores_the_key_finds_single_needles_and_fails() -> None:
    reader = LastValue((MemoryMode.learn,))
    result = probe(reader, samples=64, tasks=["single"], depths=[0.0, 0.4, 0.8])
    assert [cell.accuracy for cell in result.cells if cell.task == "single"] == [1.0]
    assert (result.outcome, result.reason) == (Outcome.failed, "below the threshold")
    assert result.accuracy == result.details["key-blind, last value"]

    easy = probe(reader, samples=64, tasks=[], depths=[0.0, 0.4, 0.8], threshold=0.2)
    assert easy.outcome is Outcome.failed
    assert easy.reason == (
        f"only {easy.details['certain']:.1%} are certain, and readers that ignore the key find {easy.key_blind:.1%}"
        " (niah.samples, niah.distractors, niah.depths)"
    )
    assert easy.details["certain"] < (easy.accuracy or 0.0) <= (easy.key_blind or 0.0)


class AtDepths(Scripted):
    """Answers with a value that stands at one of the probe's depths, whatever the key."""

    depths = (0.0, 0.4, 0.8)

    def _answer(self, tokens: list[int], logits: Tensor) -> None:
        slot, cells = NEEDLES.slot, (len(tokens) + 1) // NEEDLES.slot - 1
        places = [round(depth * (cells - 1)) * slot for depth in self.depths]
        values = [tokens[place + 3 : place + 5] for place in places if tokens[place] == MARKER]
        question = len(tokens) + 1 - slot
        for byte, value in enumerate(values[0]):
            logits[question + 2 + byte, value] = 1.0


@pytest.mark.parametrize("distractors", [1, 2, 3])
def test_a_reader_that_knows_the_depths_but_ignores_the_key_fails(distractors: int) -> None:
    depths = list(AtDepths.depths)
    result = probe(AtDepths((MemoryMode.learn,)), samples=64, tasks=[], depths=depths, distractors=distractors)
    by_place = result.details["key-blind, value at one depth"]
    assert by_place == pytest.approx(1 / 3 + 2 / 3 * CHANCE)
    assert (result.outcome, result.reason) == (Outcome.failed, "below the threshold")
    assert by_place <= (result.key_blind or 0.0) < 0.7
    perfect = probe(Scripted((MemoryMode.learn,)), samples=64, tasks=[], depths=depths, distractors=distractors)
    assert perfect.outcome is Outcome.passed


def test_a_perfect_model_does_not_pass_where_a_key_blind_reader_might_be_as_good() -> None:
    result = probe(Scripted((MemoryMode.learn,)), tasks=[], samples=1)
    assert (result.outcome, result.accuracy) == (Outcome.failed, 1.0)
    assert "readers that ignore the key find" in result.reason


@pytest.mark.parametrize(
    ("depths", "judged"),
    [([0.5], "0.5"), ([0.0, 0.95], "0"), ([0.5, 0.5], "0.5, 0.5"), ([0.5, 0.501, 0.95], "0.5, 0.501")],
)
def test_one_place_alone_measures_nothing(depths: list[float], judged: str) -> None:
    result = probe(Scripted((MemoryMode.learn,)), tasks=[], samples=64, depths=depths)
    assert (result.outcome, result.reason) == (
        Outcome.not_measured,
        f"only one place lies beyond the reach of attention (niah.depths: {judged}), and then it tells which needle is"
        " asked for",
    )


def test_depths_that_are_one_place_count_as_one_for_a_reader_that_knows_the_depths() -> None:
    """0.4 and 0.41 of 128 tokens are one place: the value there is right in two cells of three."""
    result = probe(Scripted((MemoryMode.learn,)), tasks=[], samples=64, depths=[0.4, 0.0, 0.41])
    assert result.details["key-blind, value at one depth"] == pytest.approx(2 / 3 + 1 / 3 * CHANCE)


def test_training_measures_what_is_judged_with_the_same_needles_as_the_table() -> None:
    config = NIAHConfig(levels=["recall"], samples=4, length_factors=[2, 1])
    niah = NIAHProbe(config, NEEDLES, sequence=128, text=TEXT)
    model = Scripted((MemoryMode.learn,))
    (short,), (full,) = niah.run(model, 1), niah.run(model, 1, every_task=True)
    assert {(cell.task, cell.length) for cell in short.cells} == {("multi_key", 128)}
    assert short.cells == tuple(cell for cell in full.cells if (cell.task, cell.length) == ("multi_key", 128))
    assert short.metrics == full.metrics
    assert short.verdict == full.verdict


def test_reach_of_attention() -> None:
    assert attention_reach(AtlasModel(SMALL, CHUNKS, 256)) == 14
    assert attention_reach(without_memory(0)) is None


def test_keys_of_the_fake_are_those_of_the_needles() -> None:
    events = NEEDLES.draw(np.random.default_rng(0), 1, 3)[0]
    assert (events[:, 0] == MARKER).all()
    assert np.isin(events[:, 1:3], KEY_ALPHABET).all()
