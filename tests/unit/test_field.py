"""The table of the field: what it says of recorded runs."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from atlas.config import ConfigError
from experiments.field.__main__ import Settings, in_turn, main, planned, speeds_of, steps_in_time
from experiments.field.contestants import (
    ATTENTION,
    CONVOLVED,
    DEFAULT,
    LSTM,
    MUON,
    TRANSFORMER,
    configuration,
    model_of,
)
from experiments.field.record import Job, Record
from experiments.field.table import Field, document

SPEEDS = {DEFAULT: 100.0, "no global memory": 104.0, ATTENTION: 150.0}


def record(
    name: str, seed: int, loss: float, found: float = 0.97, *, steps: int = 400, off: float | None = 0.06
) -> Record:
    recall = {haystack: {"512": found, "1024": 0.5} for haystack in ("noise", "text")}
    gates = 0.9 if off is not None else None
    return Record(name, seed, steps, 1000, loss, recall, off, 72, gates, gates, "abc")


def said(records: list[Record], in_time: dict[str, int]) -> str:
    return document(Field(records, SPEEDS, 400, in_time, "torch 1"))


def test_rows_compare_equal_tokens_and_equal_time() -> None:
    records = [record(DEFAULT, seed, loss) for seed, loss in enumerate((1.5, 1.7))]
    records += [record(ATTENTION, 0, 1.6, off=None), record(ATTENTION, 1, 1.65, off=None)]
    records += [record(ATTENTION, 0, 1.4, steps=600, off=None), record("no global memory", 0, 1.55, 0.1)]
    text = said(records, {DEFAULT: 400, "no global memory": 400, ATTENTION: 600})
    tokens, time = text.split("## At equal time")
    row = "| default | 1,000 | 0, 1 | 400 | 1.6000 (1.5000 to 1.7000) | 97% (97% to 97%) | 50% (50% to 50%) |"
    assert row in tokens
    assert "| attention alone | 1,000 | 0, 1 | 400 | 1.6250 (1.6000 to 1.6500) |" in tokens
    assert "| attention alone | 1,000 | 0 | 600 | 1.4000 | 97% | 50% | 97% | 50% | - | 1.50 |" in time
    assert "minus that of attention alone: -0.0250 (-0.1000 to +0.0500), below in 1 of 2." in text
    assert "At equal time the default's loss of text minus that of attention alone: +0.1000, below in 0 of 1." in text
    assert "TNT Table 3, no global memory raises the loss: reproduced, +0.0500, 1 seeds." in text
    assert text.endswith("Revision abc; torch 1.\n")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (0.97, "Of the fusions that pass the rule, fusion multiplicative has the lowest loss."),
        (0.9, "default has the lowest"),
    ],
)
def test_the_fusion_with_the_lowest_loss_must_recall(found: float, expected: str) -> None:
    assert expected in said([record(DEFAULT, 0, 1.5), record("fusion multiplicative", 0, 1.4, found)], {})


def test_other_iterations_are_compared_with_muon_where_they_are_asked_for() -> None:
    few = "muon 3 global 3 local"
    records = [record(name, seed, loss + seed) for name, loss in ((MUON, 1.5), (few, 1.55)) for seed in (0, 1)]
    text = document(Field(records, {DEFAULT: 100.0, MUON: 50.0, few: 75.0}, 400, {}, "torch 1"))
    assert f"- Loss of text of {few} minus that of muon: +0.0500 (+0.0500 to +0.0500), speed 1.50 of it." in text
    assert few not in Settings().contestants
    assert few in Settings(only=f"{DEFAULT},{few}", folder=str(Path(__file__).parent)).contestants


def test_a_contestant_has_the_steps_that_its_speed_allows() -> None:
    settings = Settings(seeds=2, only=f"{DEFAULT},no global memory,{ATTENTION}", folder=str(Path(__file__).parent))
    assert [steps_in_time(settings, SPEEDS, name) for name in settings.contestants] == [400, 400, 600]
    jobs = list(dict.fromkeys(planned(settings, SPEEDS)))
    assert jobs[:3] == [Job(name, "tiny", 0, 400, 24) for name in settings.contestants]
    assert jobs[6:] == [Job(ATTENTION, "tiny", 0, 600, 24), Job(ATTENTION, "tiny", 1, 600, 24)]


JOB = Job("no global memory", "tiny", 0, 400, 24)


def test_what_was_measured_otherwise_is_measured_again() -> None:
    assert JOB.file(Path("runs")) == Path("runs/no_global_memory-tiny-seed0-400steps-24samples.json")
    for other in (JOB._replace(samples=64), JOB._replace(size="small")):
        assert other.file(Path("runs")) != JOB.file(Path("runs"))


def test_a_record_is_whole_and_of_its_job(tmp_path: Path) -> None:
    assert JOB.record(tmp_path) is None
    found = record(JOB.name, 0, 1.5)
    JOB.file(tmp_path).write_text(json.dumps(asdict(found)))
    assert JOB.record(tmp_path) == found
    JOB.file(tmp_path).write_text(json.dumps(asdict(found))[:100])
    with pytest.raises(ConfigError, match=r"no_global_memory-tiny-.*: must be a whole record, or removed"):
        JOB.record(tmp_path)
    JOB.file(tmp_path).write_text(json.dumps(asdict(record(JOB.name, 1, 1.5))))
    with pytest.raises(ConfigError, match="it is of no global memory, tiny, seed 1, 400 steps"):
        JOB.record(tmp_path)


def test_what_is_interrupted_starts_no_further_job(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Job] = []

    def instead(job: Job, _: Path) -> bool:
        started.append(job)
        time.sleep(0.05)
        return True

    monkeypatch.setattr("experiments.field.__main__.work", instead)
    running = in_turn([JOB._replace(seed=seed) for seed in range(9)], Settings(jobs=1))
    assert next(running)
    running.close()  # as an interrupt does
    assert len(started) <= 2


@pytest.mark.parametrize(
    ("size", "names"),
    [
        ("tiny", (DEFAULT, "momentum", "fusion additive", ATTENTION, TRANSFORMER, *CONVOLVED, LSTM)),
        ("small", (DEFAULT, ATTENTION, TRANSFORMER)),
    ],
)
def test_contestants_have_equal_sizes(size: str, names: tuple[str, ...]) -> None:
    sizes = [
        sum(parameter.numel() for parameter in model_of(name, configuration(name, size)).parameters()) for name in names
    ]
    assert max(sizes) < 1.01 * min(sizes)


@pytest.mark.parametrize("name", CONVOLVED)
def test_convolved_attention_sees_no_token_after_its_own(name: str) -> None:
    model = model_of(name, configuration(name))
    tokens = torch.randint(0, 256, (2, 96), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 60:] = (changed[:, 60:] + 1) % 256
    with torch.no_grad():
        first, second = (model(rows).logits for rows in (tokens, changed))
    assert torch.equal(first[:, :60], second[:, :60])
    assert not torch.equal(first[:, 60:], second[:, 60:])
    (linear,) = {type(block.attention.qkv).__name__ for block in model.blocks}
    assert linear == "ConvolvedLinear"


def test_what_is_new_is_timed_in_turn_with_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "speeds-tiny.json").write_text('{"default": 100.0, "LSTM": 190.0}')
    timed: list[list[str]] = []

    def twice_as_fast(names: list[str], *_: object) -> dict[str, float]:
        timed.append(names)
        return dict.fromkeys(names, 300.0) | {DEFAULT: 200.0}

    monkeypatch.setattr("experiments.field.__main__.tokens_per_second", twice_as_fast)
    settings = Settings(only=f"{DEFAULT},{LSTM},{ATTENTION}", folder=str(tmp_path), runs=str(tmp_path))
    for _ in range(2):
        assert speeds_of(settings) == {DEFAULT: 100.0, ATTENTION: 150.0, LSTM: 190.0}
    assert timed == [[DEFAULT, ATTENTION]]
    (tmp_path / "speeds-tiny.json").write_text('{"default": 1')
    with pytest.raises(ConfigError, match=r"speeds-tiny.json: must be whole, or removed"):
        speeds_of(settings)


def test_a_small_field_has_a_folder_of_its_own() -> None:
    settings = Settings(size="small")
    assert settings.contestants == [DEFAULT, ATTENTION, TRANSFORMER]
    assert settings.runs == str(Path(settings.folder) / "measured")
    assert Path(settings.folder).name == "small"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("steps=1", "steps=1: must be >= 20"),
        ("seeds=0", "seeds=0: must be >= 1"),
        ("size=large", "size=large: must be tiny or small"),
        ("only=default,LSTM", "only=default,LSTM: must be used with folder=PLACE"),
        ("only=LSTM", "only=LSTM: must be default among others"),
        ("only=default,GRU", "only=default,GRU: must be some of default, momentum"),
        ("folder=nowhere", "folder=nowhere: must be a folder that exists"),
        ("runs=/dev/null/x", "runs=/dev/null/x: must be a folder that can be made (Not a directory)"),
    ],
)
def test_refusals(argument: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([argument]) == 2
    assert capsys.readouterr().err.startswith(f"atlas: {message}")
