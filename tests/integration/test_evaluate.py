"""`python -m atlas.evaluate` on a run folder."""

from __future__ import annotations

import json
from math import exp, log
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import atlas
from atlas.evaluate import main

ONE_FILE = 300  # bytes


@pytest.fixture
def notes(tmp_path: Path, text: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_bytes(text.read_bytes()[:ONE_FILE])
    (folder / "b.txt").write_bytes(text.read_bytes()[1000:1200])
    return folder


def test_the_numbers_are_those_of_one_pass_over_the_text(
    untrained: Path, notes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"data.paths={notes}/*.txt", "factors=1,2,100", "rows=3", "device=cpu"]
    assert main([str(untrained), *settings]) == 0
    found = json.loads((untrained / "evaluation.json").read_text())
    model, config = atlas.load(untrained)
    content = (notes / "a.txt").read_bytes()
    tokens = torch.tensor([list(content)])
    for name, mode in (("on", "learn"), ("off", "off"), ("frozen", "frozen")):
        with torch.no_grad():
            loss = F.cross_entropy(model(tokens[:, :-1], mode=mode).logits[0], tokens[0, 1:]).item()
        measured = found["bits_per_byte"][str(notes / "a.txt")]
        assert measured["bytes"] == ONE_FILE
        assert measured[name] == pytest.approx(loss / log(2), rel=1e-5)
    first, second = found["lengths"]["on"]
    assert [one["factor"] for one in (first, second)] == [1, 2]
    assert first["perplexity"] == first["in_pieces"]  # a text of the trained length is one piece
    assert exp(0) < second["perplexity"] != second["in_pieces"]
    assert found["left_out"] == [100]
    assert (found["trained_length"], found["checkpoint"]) == (config.train.sequence, "step-00000007")
    out = capsys.readouterr().out
    assert f"{100 * config.train.sequence}  not measured: the text is too short\n" in out
    assert f"{first['perplexity']:.3f} ({first['in_pieces']:.3f})" in out
    assert f"{measured['on']:.4f}" in out


def test_a_long_text_is_read_in_pieces_that_change_nothing(untrained: Path, text: Path) -> None:
    settings = [f"data.paths={text}", "factors=1", "rows=1", "bytes=2500", "memory=on", "device=cpu"]
    assert main([str(untrained), *settings]) == 0
    found = json.loads((untrained / "evaluation.json").read_text())["bits_per_byte"][str(text)]
    model, _ = atlas.load(untrained)
    tokens = torch.tensor([list(text.read_bytes()[:2500])])
    with torch.no_grad():
        loss = F.cross_entropy(model(tokens[:, :-1]).logits[0], tokens[0, 1:]).item()
    assert found == {"bytes": 2500, "on": pytest.approx(loss / log(2), rel=1e-5)}


def test_without_files_the_validation_part_is_read(untrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(untrained), "factors=1", "rows=1", "bytes=100", "memory=off", "device=cpu"]) == 0
    (name,) = json.loads((untrained / "evaluation.json").read_text())["bits_per_byte"]
    assert name.startswith("validation part of the ")
    assert name in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("factors=0,1", "factors=0,1: must be integers in [1, 10000], such as 1,2,4"),
        ("factors=", "factors=: must be integers in [1, 10000], such as 1,2,4"),
        ("rows=0", "rows=0: must be in [1, 10000]"),
        ("bytes=1", "bytes=1: must be >= 2"),
        ("memory=on,maybe", "memory=on,maybe: must be some of on,off,frozen"),
        ("lasting=nan", "lasting=nan: must be in [0, 1] (0 = all writes last)"),
        ("device.precision=bf16", "device.precision=bf16: must be left out: a trained model is read in fp32"),
        ("data.paths=nowhere.txt", "data.paths=['nowhere.txt']: must "),
        ("data.paths=short.txt", "data.paths="),
    ],
)
def test_a_bad_argument_is_refused(
    setting: str,
    message: str,
    untrained: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(untrained)
    (untrained / "short.txt").write_text("a")
    assert main([str(untrained), setting]) == 2
    found = capsys.readouterr()
    assert found.err.startswith(f"atlas: {message}")
    assert (found.out, found.err.count("\n")) == ("", 1)
