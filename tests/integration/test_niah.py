"""`python -m atlas.niah` on a run folder, and training with probes against training without."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import atlas
from atlas.checkpoint.manager import CheckpointManager
from atlas.config import LEVELS, RECALL, RunConfig
from atlas.config.composition import save_config
from atlas.kernels import library
from atlas.niah import main
from atlas.runs.build import build_model

SMALL = [
    "model.width=32",
    "model.layers=1",
    "model.window=8",
    "model.feedforward=32",
    "train.sequence=64",
    "train.batch_size=2",
    "chunk_size.local=[8]",
    "chunk_size.shard=32",
    "chunk_size.global_size=32",
    "data=recall",
    "data.recall.queries=3",
    "data.recall.sparse_share=0",
    "data.recall.sparse_queries=3",
    "data.recall.distance_min=8",
    "data.recall.pairs=4",
    "logger=none",
    "device=cpu",
]


@cache
def composed(*overrides: str) -> RunConfig:
    return atlas.compose([*SMALL, *overrides])


def small_config(*overrides: str) -> RunConfig:
    return deepcopy(composed(*overrides))


@pytest.fixture
def untrained_run(tmp_path: Path) -> Path:
    """A run folder with one checkpoint, of a model that has learnt nothing."""
    return make_run(small_config(), tmp_path / "run")


def make_run(config: RunConfig, folder: Path) -> Path:
    folder.mkdir()
    save_config(config, folder / "config.yaml")
    model = build_model(config)
    checkpoints = CheckpointManager(folder / "checkpoints", keep=2)
    checkpoints.save(7, {"model": model.state_dict()}, {"loss": 1.0})
    checkpoints.close()
    return folder


@pytest.mark.slow
def test_a_checkpoint_is_probed_and_the_files_say_what_the_table_says(
    untrained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["niah=thorough", "niah.samples=2", "niah.depths=[0.0,0.8]", "niah.length_factors=[1,2]"]
    assert main([str(untrained_run), *settings]) == 1  # an untrained model recalls nothing
    record = json.loads((untrained_run / "niah.json").read_text(encoding="utf-8"))
    assert (record["checkpoint"], record["settings"]["samples"]) == ("step-00000007", 2)
    assert [(result["level"], result["step"]) for result in record["results"]] == [(level, 7) for level in LEVELS]
    recall = record["results"][2]
    assert recall["outcome"] == "failed"
    lengths = {(cell["task"], cell["length"]) for cell in recall["cells"]}
    assert lengths == {(task, n) for task in ("multi_key", *record["settings"]["tasks"]) for n in (64, 128)}
    assert (untrained_run / "niah.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    printed = capsys.readouterr().out
    assert all(f"{result['level']}  {result['verdict']}" in printed for result in record["results"])
    for _ in range(2):
        main([str(untrained_run), "niah=quick", "niah.levels=[memory]"])
        newest = json.loads((untrained_run / "niah.json").read_text(encoding="utf-8"))
        assert [result["level"] for result in newest["results"]] == ["memory"]
        assert newest["earlier"] == [{key: value for key, value in record.items() if key != "earlier"}]


@pytest.mark.slow
def test_a_model_trained_without_memory_answers_the_same_questions(untrained_run: Path, tmp_path: Path) -> None:
    other = make_run(small_config("model.memory.enabled=false"), tmp_path / "other")
    assert main([str(untrained_run), f"control={other}", "niah.samples=32"]) == 1
    results = json.loads((untrained_run / "niah.json").read_text(encoding="utf-8"))["results"]
    recall = next(result for result in results if result["level"] == RECALL.name)
    assert main([str(other), "niah.levels=[recall]", "niah.samples=32"]) == 1
    (own,) = json.loads((other / "niah.json").read_text(encoding="utf-8"))["results"]
    measured = [cell for cell in recall["cells"] if cell["samples"]]
    assert [cell["without"] for cell in recall["cells"]] == [cell["control"] for cell in own["cells"]]
    assert any(cell["without"] != cell["control"] for cell in measured)  # two different models


def test_a_file_that_would_be_lost_is_refused_before_the_work(
    untrained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = f"atlas: {untrained_run}/niah.json: must be a file that niah has written, or moved away: it would be lost\n"
    for content in ("mine", "[]", '{"results": "abc", "earlier": 3}', '{"results": [{"step": 1}], "earlier": []}'):
        (untrained_run / "niah.json").write_text(content)
        assert main([str(untrained_run), "niah=quick"]) == 2
        assert capsys.readouterr().err == told
        assert (untrained_run / "niah.json").read_text() == content


def test_a_trained_control_with_a_memory_is_refused(untrained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(untrained_run), f"control={untrained_run}", "niah=quick"]) == 2
    refusal = f"atlas: control={untrained_run}: must be a run trained without a memory\n"
    assert capsys.readouterr().err == refusal
    assert not (untrained_run / "niah.json").exists()


@pytest.mark.parametrize(
    ("control", "asked", "allowed"),
    [
        (["model.window=4"], "niah.levels=[recall]", "a run whose attention reaches {reach} tokens back, as that of "),
        (["model.window=0"], "niah.levels=[recall]", "a run whose attention reaches {reach} tokens back, as that of "),
        (["model.vocabulary=300"], "niah.levels=[recall]", "a run with the tokens of "),
        ([], "niah=quick", "left out without the level recall"),
    ],
)
def test_a_control_that_cannot_answer_the_same_questions_is_refused(
    control: list[str],
    asked: str,
    allowed: str,
    untrained_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = make_run(small_config("model.memory.enabled=false", *control), tmp_path / "other")
    assert main([str(untrained_run), f"control={other}", asked]) == 2
    model = small_config().model
    told = allowed.format(reach=model.layers * (model.window - 1))
    assert capsys.readouterr().err.startswith(f"atlas: control={other}: must be {told}")
    assert not (untrained_run / "niah.json").exists()


def test_a_checkpoint_folder_works_as_well_as_its_run_wherever_one_likes(
    untrained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = untrained_run / "checkpoints" / "step-00000007"
    where = ["device=cpu", "device.threads=1", "device.kernels=torch"]
    assert main([str(checkpoint), "niah=quick", "niah.levels=[memory]", *where]) == 0
    assert (torch.get_num_threads(), library.description()) == (1, "PyTorch kernels")
    assert capsys.readouterr().err == "atlas: level memory\n"
    record = json.loads((untrained_run / "niah.json").read_text(encoding="utf-8"))
    assert [result["outcome"] for result in record["results"]] == ["passed"]
    assert not (untrained_run / "niah.png").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["niah=deep"], "niah=deep: must be one of default, quick, thorough"),
        (["lasting=-1"], "lasting=-1.0: must be in [0, 1] (0 = all writes last)"),
        (["niah=off"], "niah=off: must be one of default, quick, thorough"),
        (["niah.sampels=3"], "niah.sampels=3: must be a key that exists"),
        (["niah.samples=0"], "niah.samples=0: must be in [1, 10000]"),
        (["niah.samples=few"], "niah.samples=few: must be an integer, such as 24\n"),
        (["niah.samples="], "niah.samples=: must be an integer, such as 24\n"),
        (["niah.samples=1,2"], "niah.samples=1,2: must be one value\n"),
        (["niah.length_factors=[0.1]"], "niah.length_factors=[0.1]: must be a list of integers, such as [8,16]\n"),
        (["niah.lengths=64"], "niah.lengths=64: must be a list of integers, such as [8,16]\n"),
        (["niah.depths=[0.5"], "niah.depths=[0.5: must be written KEY=VALUE or GROUP=OPTION (quote special characters"),
        (["niah.depths=[2]"], "niah.depths=[2.0]: must be in [0, 1]"),
        (["niah.lengths=[5]"], "niah.lengths=[5]: must be > 7 tokens, the reach of attention"),
        (
            ["seed=3"],
            "seed=3: must be niah or a key of it, or where it runs (device.threads=1): all else is the run's own",
        ),
        (["device.threads=5000"], "device.threads=5000: must be in [0, 1024] (0 = torch's own choice)"),
        (["device=tpu"], "device.kind=tpu: must be one of auto, cpu, cuda"),
        (["device.precision=bf16"], "device.precision=bf16: must be left out: a trained model is read in fp32"),
        (["--niah.samples=3"], "--niah.samples=3: must be written niah.samples=3: python -m atlas.niah RUN "),
        (["other"], "RUN="),
    ],
)
def test_a_bad_argument_is_refused(
    overrides: list[str], message: str, untrained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(untrained_run), *overrides]) == 2
    assert capsys.readouterr().err.startswith(f"atlas: {message}")
    assert not (untrained_run / "niah.json").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == (
        f"atlas: RUN={tmp_path / 'nowhere'}: must be a run folder (with checkpoints/) or one of its checkpoints\n"
    )


def test_losses_are_bitwise_the_same_with_probes_at_every_step_and_without(tmp_path: Path) -> None:
    series = []
    for name, overrides in (
        ("off", ["niah=off"]),
        ("on", ["niah.every=1", "niah.samples=1", "niah.tasks=[single]", "niah.depths=[0.0]"]),
    ):
        summary = atlas.train(small_config("train.steps=3", "telemetry.every=1", *overrides), tmp_path / name)
        assert summary.status == "completed"
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        series.append([(row["step"], row["loss"], row["grad_norm"]) for row in rows])
        probes = [event for event in events(tmp_path / name) if event["kind"] == "probe"]
        assert [event["level"] for event in probes] == ([*LEVELS] * 3 if name == "on" else [])
    assert series[0] == series[1]


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
