"""`python -m atlas.evaluate` on a run folder."""

from __future__ import annotations

import json
import shutil
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import atlas
from atlas.evaluate import main
from atlas.runs.summary import RunSummary

ONE_FILE = 300  # bytes


def answers(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "evaluation.json").read_text())["evaluations"]
    return found


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
    (found,) = answers(untrained)
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
    assert "in brackets that of the same text read in pieces of 64 tokens, the trained length\n" in out


def test_a_long_text_is_read_in_pieces_that_change_nothing(untrained: Path, text: Path) -> None:
    settings = [f"data.paths={text}", "factors=1", "rows=1", "bytes=2500", "memory=on", "device=cpu"]
    assert main([str(untrained), *settings]) == 0
    found = answers(untrained)[0]["bits_per_byte"][str(text)]
    model, _ = atlas.load(untrained)
    tokens = torch.tensor([list(text.read_bytes()[:2500])])
    with torch.no_grad():
        loss = F.cross_entropy(model(tokens[:, :-1]).logits[0], tokens[0, 1:]).item()
    assert found == {"bytes": 2500, "on": pytest.approx(loss / log(2), rel=1e-5)}


def test_without_files_the_validation_part_is_read(untrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(untrained), "factors=1", "rows=1", "bytes=100", "memory=off", "device=cpu"]) == 0
    (name,) = answers(untrained)[0]["bits_per_byte"]
    assert name.startswith("validation part of the ")
    assert name in capsys.readouterr().out


def test_a_result_stays_beside_those_of_other_questions(untrained: Path, notes: Path) -> None:
    run, few = str(untrained), ["factors=1", "rows=1", "memory=off", "device=cpu"]
    a, b = f"data.paths={notes}/a.txt", f"data.paths={notes}/b.txt"
    for asked in ([a], [b], [a, "rows=2"]):
        assert main([run, *few, *asked]) == 0
    first, second, third = answers(untrained)
    assert [list(one["texts"]) for one in (first, second, third)] == [[a[11:]], [b[11:]], [a[11:]]]
    assert [one["settings"]["rows"] for one in (first, second, third)] == [1, 1, 2]

    assert main([run, *few, f"data.paths=[{notes}/a*]"]) == 0  # the first question in other words
    assert answers(untrained) == [second, third, first | {"settings": {**first["settings"], "paths": f"[{notes}/a*]"}}]

    (notes / "b.txt").write_bytes((notes / "a.txt").read_bytes()[:-1])
    assert main([run, *few, b]) == 0
    assert [len(answers(untrained)), answers(untrained)[0]] == [4, second]


def test_the_one_entry_of_an_earlier_version_is_kept(untrained: Path) -> None:
    before = {"checkpoint": "step-00000007", "settings": {"rows": 8}, "trained_length": 64}
    (untrained / "evaluation.json").write_text(json.dumps(before))
    assert main([str(untrained), "factors=1", "rows=1", "bytes=100", "memory=off", "device=cpu"]) == 0
    assert (answers(untrained)[0], len(answers(untrained))) == (before, 2)


@pytest.mark.parametrize("content", ["[1]", '{"evaluations": [', '{"evaluations": [1]}'])
def test_a_file_of_another_content_is_not_overwritten(
    content: str, untrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = untrained / "evaluation.json"
    file.write_text(content)
    assert main([str(untrained), "device=cpu"]) == 2
    message = "must be a file that evaluate has written, or moved away: it would be lost"
    assert capsys.readouterr() == ("", f"atlas: {file}: {message}\n")
    assert file.read_text() == content


def test_text_that_the_run_was_trained_on_is_named(
    undisturbed: RunSummary, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last tenth of the run's one file is held out."""
    run, whole = tmp_path / "run", text.read_bytes()
    shutil.copytree(undisturbed.folder, run)
    (tmp_path / "tokenizer.json").write_text("{}")  # of something else: the run's tokens are bytes
    parts = {"seen.txt": whole[:3000], "half.txt": whole[:1000] + whole[-1000:], "held_out.txt": whole[-3000:]}
    for name, part in parts.items():
        (tmp_path / name).write_bytes(part)
    few = ["factors=1", "rows=1", "bytes=100", "memory=off", "device=cpu"]
    assert main([str(run), *few, f"data.paths={tmp_path}/*.txt"]) == 0
    (found,) = answers(run)
    shares = {Path(name).name: share for name, share in found["in_training"].items()}
    assert shares == {"seen.txt": 1.0, "half.txt": 15 / 32, "held_out.txt": 0.0}
    seen = f"training text: 100% of {tmp_path}/seen.txt stands in what the run was trained on, and parts of 1 more"
    read = "bits per byte: of 3 of 3 texts the first 100 bytes were read; bytes=3000 reads all of it"
    assert found["notes"] == [f"{seen}: these losses are no test", read]
    assert f"\n\n{seen}: these losses are no test\n{read}\n" in capsys.readouterr().out

    assert main([str(run), *few, f"data.paths={tmp_path}/held_out.txt", "bytes=3000"]) == 0
    assert answers(run)[1]["notes"] == []
    assert main([str(run), *few]) == 0  # the validation part
    assert [note.partition(":")[0] for note in answers(run)[2]["notes"]] == ["bits per byte"]


def test_a_file_of_a_run_whose_text_is_gone_is_known_by_its_hash(
    tiny: Any, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.txt"
    shutil.copyfile(text, mine)
    atlas.train(tiny(f"data.paths=[{mine}]", "train.steps=2"), tmp_path / "run")
    mine.rename(tmp_path / "moved.txt")
    few = ["factors=1", "rows=1", "bytes=60000", "memory=off", "device=cpu"]
    assert main([str(tmp_path / "run"), *few, f"data.paths={tmp_path}/moved.txt"]) == 0
    (found,) = answers(tmp_path / "run")
    assert found["in_training"] == {f"{tmp_path}/moved.txt": None}
    note = f"text of the run: {tmp_path}/moved.txt is in data.json, as training or validation text: this may be no test"
    assert found["notes"] == [note]
    assert f"\n{note}\n" in capsys.readouterr().out


KEYS = (
    "must be one of the keys data.paths, factors, rows, seed, bytes, lasting, memory, weights, trust, device,"
    " device.threads, device.kernels"
)


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
        ("paths=nowhere.txt", "data.paths=['nowhere.txt']: must "),
        ("data.rows=3", f"data.rows=3: {KEYS}; did you mean data.paths?\n"),
        ("data.path=a", f"data.path=a: {KEYS}; did you mean data.paths?\n"),
        ("devices=cpu", f"devices=cpu: {KEYS}; did you mean device?\n"),
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
