"""The commands of experiments/lengths, experiments/decoding and experiments/field, on models of no time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

import atlas
from atlas.config import RunConfig
from atlas.models.plan import MemoryMode
from atlas.runs.build import build_model
from experiments.field import worker
from experiments.field.record import Job
from experiments.lengths.needles import _meets_aim
from experiments.lengths.needles import main as needles
from tests.integration.small_runs import RUN

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = spec_from_file_location(f"experiment_{name}", EXPERIMENTS / name / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    return load("lengths", monkeypatch)  # type: ignore[return-value]


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    return load("decoding", monkeypatch)  # type: ignore[return-value]


def test_lengths_of_a_run(
    lengths: ModuleType, tiny: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    atlas.train(tiny("train.steps=2", "checkpoint.every=2"), tmp_path / "run")
    assert lengths.main([str(tmp_path / "run"), "rows=2"], tmp_path) == 0
    record = json.loads((tmp_path / "lengths.json").read_text())
    trained = record["lengths"]["as trained"]
    assert [one["factor"] for one in trained] == [1, 2, 4, 10]
    assert (trained[0]["change"], record["trained_length"]) == (0, 64)
    text = (tmp_path / "RESULTS.md").read_text()
    assert f"| as trained | {trained[0]['perplexity']:.3f} (+0.0%) |" in text
    assert f"The rule holds: {trained[-1]['change']:+.1%} at 10 times" in text
    for arguments, message in (
        (["rows=0"], "RUN=: must be one run"),
        ([str(tmp_path / "run"), "rows=0"], "rows=0: must be >= 1"),
        ([str(tmp_path / "run"), "lines=1"], "lines=1: must be one of the keys rows, seed"),
    ):
        assert lengths.main(arguments, tmp_path) == 2
        assert capsys.readouterr().err.startswith(f"atlas: {message}")


@pytest.mark.parametrize(("last", "expected"), [(5.49, True), (5.51, False), (float("inf"), False)])
def test_the_rule_of_lengths(lengths: ModuleType, last: float, expected: bool) -> None:
    one = lengths.Length
    assert lengths.holds({"as trained": [one(1, 5.0, 5.0), one(10, last, 5.0)]}) is expected


def test_a_round_of_decoding_is_the_continuation_of_its_context(
    decoding: ModuleType, tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "TOKENS", 8)
    model = build_model(tiny())
    sizes = set()
    for context in (16, 70):
        before, tokens = decoding.text_tokens(context)
        state = decoding.prefilled(model, before, model.plan, MemoryMode.learn)
        seconds, after = decoding.decode_round(model, state, model.plan, tokens)
        assert (seconds > 0, after.position) == (True, context + 8)
        sizes |= {decoding.state_bytes(state), decoding.state_bytes(after)}
    assert len(sizes) == 1
    scan = state.blocks[0].memory.local[0]
    assert next(iter(sizes)) > 4 * sum(matrix.numel() for matrix in (*scan.start, *scan.update))
    assert all(isinstance(one, torch.Tensor) for one in state.blocks[0].attention)


@pytest.mark.parametrize(
    ("milliseconds", "state", "peak", "expected"),
    [(5.4, 100, 1000, True), (5.6, 100, 1000, False), (5.0, 101, 1000, False), (5.0, 100, 1200, False)],
)
def test_the_rule_of_decoding(
    decoding: ModuleType, milliseconds: float, state: int, peak: int, expected: bool, tmp_path: Path
) -> None:
    costs = [decoding.Cost(c, g, 5.0, 0.1, 100, 1000) for g in ("trained", "chunk 1") for c in (1024, 16_384)]
    costs[-1] = decoding.Cost(16_384, "chunk 1", milliseconds, 0.1, state, peak)
    assert decoding.holds(costs) is expected
    verdict = decoding.write(costs, [], tmp_path)
    assert f"chunk 1: time x{milliseconds / 5:.3f}, peak x{peak / 1000:.3f}" in verdict
    assert f"| chunk 1 | 16384 | {milliseconds:.2f} | 10.0% | {state} bytes |" in (tmp_path / "RESULTS.md").read_text()


def mixed_settings(text: Path) -> list[str]:
    recall = ["pairs=4", "queries=3", "sparse_queries=3", "sparse_share=0", "distance_min=8"]
    mixed = ["data=mixed", f"data.paths=[{text}]", *(f"data.recall.{setting}" for setting in recall)]
    return [*(setting for setting in RUN if setting != "data=text"), *mixed, "train.steps=10", "calibration=off"]


@pytest.mark.slow
def test_the_field_trains_as_a_run_does(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = mixed_settings(text)
    ways = {"default": (), "attention alone": ("model.memory.enabled=false",)}

    def configuration(name: str, size: str = "tiny", seed: int = 0, steps: int = 10) -> RunConfig:
        return atlas.compose([*common, *ways[name], f"seed={seed}", f"train.steps={steps}"])

    monkeypatch.setattr(worker, "configuration", configuration)
    monkeypatch.setattr("experiments.field.contestants.configuration", configuration)
    for name, settings in ways.items():
        worker.main([name, "tiny", "1", "10", "2", str(tmp_path)])
        record = Job(name, "tiny", 1, 10, 2).record(tmp_path)
        assert record is not None
        found = asdict(record)
        run = atlas.train(atlas.compose([*common, *settings, "seed=1"]), tmp_path / name)
        assert (found["loss"], found["parameters"]) == (run.validation_loss, run.parameters)
        assert found["losses"][-1] == run.loss
        assert (found["recall_off"] is None, found["polarised_end"]) == (name != "default", run.gate_polarised)
        assert [*found["recall"]["noise"]] == ["64", "128", "256"]


@pytest.mark.parametrize(
    ("found", "met"), [({"8": 0.9, "32": 0.89}, True), ({"8": 0.9, "32": 0.8}, False), ({"8": 0.0, "32": 0.0}, False)]
)
def test_a_run_that_finds_nothing_does_not_meet_the_aim_of_length(found: dict[str, float], met: bool) -> None:
    assert _meets_aim(found, 8) == met


@pytest.mark.slow
def test_needles_compares_runs_of_a_seed(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common, losses = [*mixed_settings(text), "train.steps=2", "checkpoint.every=2"], []
    settings: tuple[tuple[str, ...], ...] = (
        (),
        ("seed=1",),
        ("model.memory.enabled=false",),
        ("model.fusion=additive",),
    )
    for job, overrides in enumerate(settings):
        folder = tmp_path / "sweep" / str(job)
        losses.append(atlas.train(atlas.compose([*common, *overrides]), folder).validation_loss)
    for arguments, message in (
        ([], "SWEEP=: must be one or more folders"),
        ([str(tmp_path)], "must be the folder of a sweep of which a job has completed"),
        ([str(tmp_path / "sweep"), "samples=0"], "samples=0: must be >= 1"),
    ):
        assert needles([*arguments, f"folder={tmp_path}"]) == 2
        assert message in capsys.readouterr().err
    assert needles([str(tmp_path / "sweep"), "samples=2", "factors=1,4", "lasting=0,0.9", f"folder={tmp_path}"]) == 0
    both = json.loads((tmp_path / "needles.json").read_text())["runs"]
    probed = [run for run in both if not run["lasting"]]
    for plain, lasting in zip(both[::2], both[1::2], strict=True):
        assert lasting["lasting"] == 0.9
        assert (plain["text"]["64"], plain["found"]["noise"]["64"]) == (
            lasting["text"]["64"],
            lasting["found"]["noise"]["64"],
        )
        assert plain["text"]["256"] != lasting["text"]["256"]
    assert [(run["setting"], run["seed"], run["needles"]) for run in probed] == [
        ("reference", 0, 6),
        ("reference", 1, 6),
        ("model.fusion=additive", 0, 6),
    ]
    page, losses_of_text = (tmp_path / "NEEDLES.md").read_text().split("## Loss of text")
    noise, of_text = (part.splitlines() for part in page.split("## In ")[1:])
    lasting = both[-1]["text"]
    assert f"| model.fusion=additive, lasting=0.9 | {lasting['64']:.4f} | {lasting['256']:.4f} |" in losses_of_text
    for rows, haystack in ((noise, "noise"), (of_text, "text")):
        short, long = (probed[2]["found"][haystack][length] for length in ("64", "256"))
        met = int(short >= 0.8 and short - long <= 0.015)
        cells = f"{short:.1%} | {long:.1%} | {short - long:+.1%} | {met} of 1 |"
        assert f"| model.fusion=additive | 0 | {losses[3]:.4f} | {cells}" in rows
    assert needles([str(tmp_path / "sweep"), "factors=0", f"folder={tmp_path}"]) == 2
    assert "atlas: factors=0: must be whole numbers >= 1" in capsys.readouterr().err
