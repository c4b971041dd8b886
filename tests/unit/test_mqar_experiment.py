"""The experiment on MQAR: its batches, its table, and a whole run of the command on few sequences."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from atlas.config import ConfigError
from atlas.data.mqar import IGNORED
from experiments.mqar.__main__ import Settings, main
from experiments.mqar.contestants import CONVOLVED_NARROW, FULL, MEMORY, NARROW, configuration, model_of
from experiments.mqar.data import TEST, TRAINING, batches, epoch, examples, share_within
from experiments.mqar.progress import DIGEST
from experiments.mqar.table import document
from experiments.mqar.tasks import MIXED, TASKS, Segment
from experiments.mqar.worker import Record, measured, reach

SHORT = Segment(64, 4)


def test_an_epoch_has_every_sequence_once_with_the_values_at_their_keys() -> None:
    sequences = examples(10, SHORT, TRAINING)
    parts = [*batches(sequences, 4), *batches(sequences, 4, np.random.default_rng(0))]
    assert [len(part.inputs) for part in parts] == [4, 4, 2, 4, 4]
    shuffled = {tuple(row.tolist()) for part in parts[3:] for row in part.inputs}
    assert len(shuffled) == 8
    assert shuffled <= {tuple(row) for row in sequences.inputs.tolist()}
    for part in parts:
        for inputs, targets, weights in zip(part.inputs, part.targets, part.weights, strict=True):
            written = dict(zip(inputs[0:8:2].tolist(), inputs[1:8:2].tolist(), strict=True))
            places = weights.nonzero().flatten().tolist()
            assert {inputs[place].item(): targets[place].item() for place in places} == written
            assert min(places) >= 8
    assert not np.array_equal(examples(10, SHORT, TEST).inputs, sequences.inputs)


def test_an_epoch_of_the_mixture_has_one_segment_after_the_other() -> None:
    task, order = TASKS[MIXED], np.random.default_rng(0)
    training = [examples(one.count(300), one, TRAINING, random_filler=True) for one in task.training]
    found = [(*part.inputs.shape, int(part.weights[0].sum())) for part in epoch(task, training, order)]
    short = [(60, 128, 8), (60, 256, 16), (60, 256, 32), (60, 256, 64)]
    assert found == [(256, 64, 4), (44, 64, 4), *short]
    assert len(found) == task.steps(300)
    again = [part.inputs.tolist() for part in epoch(task, training, order)]
    assert again == [part.inputs.tolist() for part in epoch(task, training, order)]
    filler = training[0].inputs[:, 8:][training[0].labels[:, 8:] == IGNORED]
    assert 0.4 < np.mean(filler < 4096) < 0.6
    assert not np.array_equal(training[2].inputs[:, :32], training[3].inputs[:, :32])
    assert [TASKS[name].steps(1000) for name in ("64", "512")] == [1, 7]


def test_the_share_of_values_within_reach() -> None:
    sequences = examples(50, Segment(128, 8), TEST)
    distances = []
    for inputs, labels in zip(sequences.inputs.tolist(), sequences.labels.tolist(), strict=True):
        distances += [place - inputs.index(label) for place, label in enumerate(labels) if label >= 0]
    assert len(distances) == 50 * 8
    for tokens in (14, 30, 127):
        assert share_within(sequences, tokens) == np.mean([distance <= tokens for distance in distances])
    assert share_within(sequences, None) == 1
    filled = examples(50, Segment(128, 32), TEST, random_filler=True)
    distances = []
    for inputs, labels in zip(filled.inputs.tolist(), filled.labels.tolist(), strict=True):
        distances += [place - inputs.index(label) for place, label in enumerate(labels) if label >= 0]
    assert share_within(filled, 60) == np.mean([distance <= 60 for distance in distances]), "filler is no value"


@pytest.mark.parametrize(("name", "tokens"), [(NARROW, 30), (CONVOLVED_NARROW, 36), (MEMORY, None), (FULL, None)])
def test_the_reach_of_a_model_is_how_far_back_it_depends(name: str, tokens: int | None) -> None:
    model = model_of(name, configuration(name, "64", 16, 1e-3, 1)).eval().requires_grad_(False)
    row = torch.from_numpy(examples(1, SHORT, TEST).inputs)
    last = model.read(row).hidden[:, -1]

    def changed(distance: int) -> bool:
        other = row.clone()
        other[:, -1 - distance] += 1
        return not torch.equal(model.read(other).hidden[:, -1], last)

    assert reach(model) == tokens
    assert changed(63 if tokens is None else tokens)
    assert tokens is None or not any(map(changed, range(tokens + 1, 64)))


def test_a_width_that_is_not_refused_gives_a_model() -> None:
    found = {}
    for width in (32, 128, 160):
        Settings(widths=str(width))
        model = configuration(MEMORY, "64", width, 1e-3, 1).model
        found[width] = model.width // model.heads
    assert found == {32: 32, 128: 64, 160: 80}


def test_the_best_learning_rate_counts() -> None:
    records = [
        Record(FULL, "64", 64, 1e-3, 1000, 16384, 1.0, [0.2, 0.995], git="abc", device="a CPU"),
        Record(MEMORY, "64", 64, 1e-3, 1010, 900, 1.0, [0.4, 0.6, 0.5], git="abc", device="a CPU"),
        Record(MEMORY, "64", 64, 1e-2, 1010, 900, 1.0, [0.7], finite=False, git="abc", device="a CPU"),
        Record(NARROW, "64", 64, 1e-2, 990, 400, 0.55, [0.1, 0.3, 0.2], ended=False, git="abc", device="a CPU"),
    ]
    text = document(records, 3, 2048, 100)
    assert "| 64, 4 | 64 | memory | 1,010 | 900 | 100.0% | 70.0% | 1, not finite | 0.01 |" in text
    assert "| 64, 4 | 64 | window of 16 | 990 | 400 | 55.0% | 30.0% | 2, stopped after 3 | 0.01 |" in text
    assert "| 64, 4 | 64 | full attention | 1,000 | 16,384 | 100.0% | 99.5% | 2 | 0.001 |" in text
    assert text.index("| memory |") < text.index("| full attention |")
    assert "Learning rates: 0.001, 0.01. a CPU. Revision abc." in text


def test_the_mixture_has_a_table_with_a_column_for_each_test() -> None:
    columns = [[0.5] * 7 + [0.25], [0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05]]
    records = [
        Record(FULL, MIXED, 64, 1e-3, 1000, 132224, 1.0, [0.5, 0.407], by_test=columns, longest_state=264320),
        Record(MEMORY, MIXED, 64, 1e-3, 1010, 900, 1.0, [0.5, 0.6], ended=False, by_test=columns, longest_state=900),
        Record(NARROW, "64", 64, 1e-2, 990, 400, 0.55, [0.1, 0.3, 0.2]),
    ]
    first, second = document(records, 64, 100_000, 3000).split("## One model for all lengths")
    assert "At most 64 epochs of 100,000 sequences, tested on 3,000; one seed. Learning rates: 0.01." in first
    about = "At most 32 epochs of 180,000 sequences of 64 to 256 tokens, tested on 1,000 of each kind; one seed."
    assert f"{about} Learning rates: 0.001." in second
    assert "all but 512, 64 is the best" in second
    tests = "64, 4 | 64, 8 | 64, 16 | 128, 32 | 256, 64 | 512, 128 | 1024, 256 | 512, 64"
    assert f"| width | model | parameters | state | {tests} | mean | epochs | learning rate |" in second
    halves = " | ".join(["50.0%"] * 7)
    assert f"| 64 | full attention | 1,000 | 132,224 (264,320) | {halves} | 25.0% | 50.0% | 1 | 0.001 |" in second
    accuracy = "75.0% | 60.0% | 50.0% | 40.0% | 30.0% | 20.0% | 10.0% | 5.0% | 60.0%"
    assert f"| 64 | memory | 1,010 | 900 | {accuracy} | 2, stopped after 2 | 0.001 |" in second
    assert "| 64, 4 | 64 | window of 16 |" in first
    assert "window" not in second


@pytest.mark.slow
@pytest.mark.parametrize(("task", "amounts"), [("64", (3, 1024, 64)), (MIXED, (6, 8, 6))])
def test_a_training_that_was_stopped_goes_on_bitwise(task: str, amounts: tuple[int, int, int], tmp_path: Path) -> None:
    epochs, count, tests = amounts

    def records(file: Path) -> Iterator[Record]:
        return measured(MEMORY, task, 16, 1e-2, epochs=epochs, count=count, tests=tests, checkpoint=file)

    whole, stopped = tmp_path / "whole.pt", tmp_path / "stopped.pt"
    *_, expected = records(whole)
    first = next(records(stopped))
    assert (len(first.accuracy), first.ended) == (1, False)
    *_, found = records(stopped)
    assert found == expected
    assert found.ended
    asked = TASKS[task].tests
    assert [len(shares) for shares in found.by_test] == [len(asked) + len(TASKS[task].beside)] * 3
    assert found.accuracy == [np.mean(shares[: len(asked)]) for shares in found.by_test]
    ends = [torch.load(io.BytesIO(file.read_bytes()[DIGEST:]), weights_only=True) for file in (whole, stopped)]
    weights, expected_weights = (end["state"]["model"] for end in ends)
    assert all(torch.equal(weights[name], expected_weights[name]) for name in expected_weights)
    assert [one.ended for one in records(stopped)] == [True]  # a kill came after the last epoch
    content = bytearray(stopped.read_bytes())
    content[len(content) // 2] ^= 1
    stopped.write_bytes(content)
    with pytest.raises(ConfigError, match=r"stopped\.pt: must be as a training left it; remove it to train"):
        next(records(stopped))


@pytest.mark.slow
def test_the_command_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["tasks=64", "widths=16", "examples=512", "tests=8", f"runs={tmp_path}/runs", f"folder={tmp_path}"]
    assert main([*common, "models=full attention", "rates=1e-2", "epochs=2"]) == 0
    assert main([*common, "models=memory,full attention", "rates=1e-2", "epochs=2"]) == 0
    assert capsys.readouterr().out.count("full attention, task 64") == 1
    (memory, full) = (
        Record(**json.loads(next((tmp_path / "runs").glob(f"{name}-64-16-0.01-2x512-8.json")).read_text()))
        for name in ("memory", "full_attention")
    )
    assert full.state == 2 * 2 * 64 * 16  # keys and values of two layers
    assert len(memory.accuracy) == len(full.accuracy) == 2
    table = (tmp_path / "RESULTS.md").read_text()
    assert f"| memory | {memory.parameters:,} | {memory.state:,} |" in table
    assert main([*common, "models=full attention", "rates=1e-2", "epochs=2"]) == 0
    assert (tmp_path / "RESULTS.md").read_text() == table, "of all that is measured, not of what was asked for"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"name": "memory"}', "other"])
def test_a_damaged_record_is_refused(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(FULL, "64", 64, 1e-2, 1000, 16384, 1.0, [0.2, 0.995])
    file = tmp_path / "measured" / "full_attention-64-64-0.01-64x100000-3000.json"
    file.parent.mkdir()
    file.write_text(json.dumps(asdict(replace(record, width=128))) if content == "other" else content)
    assert main([f"folder={tmp_path}", "tasks=64", "widths=64"]) == 2
    assert (
        capsys.readouterr().err
        == f"atlas: {file}: must be as a training left it; remove it to measure this model again\n"
    )
    assert not (tmp_path / "RESULTS.md").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("tasks=100", "tasks=100: must be some of 64, 128, 256, 512, mixed"),
        ("models=mamba", "models=mamba: must be some of memory, memory of 16, memory of 4, window of 16"),
        ("widths=64.5", "widths=64.5: must be whole numbers >= 8"),
        ("widths=64,63", "widths=64,63: must be such that the heads, one for each full 64, have an even width (RoPE);"),
        ("widths=200", "widths=200: must be such that the heads, one for each full 64, have an even width (RoPE);"),
        ("runs=/dev/null/x", "runs=/dev/null/x: must be a folder that can be made (Not a directory)"),
        ("rates=0", "rates=0: must be empty, or numbers > 0"),
        ("examples=100", "examples=100: must be >= 512"),
        ("folder=nowhere", "folder=nowhere: must be a folder that exists"),
        ("folder=", "folder=: must be a folder that exists"),
    ],
)
def test_refusals(argument: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([argument]) == 2
    assert capsys.readouterr().err.startswith(f"atlas: {message}")
