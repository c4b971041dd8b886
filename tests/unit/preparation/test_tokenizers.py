"""Which tokenizer a store is made with, and what that one loses of the text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atlas.data.store_format import STORE_FILE, TOKENIZER_FILE
from atlas.preparation import preparation, units
from atlas.prepare import main


def jsonl(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    return path


def by_words(path: Path, words: list[str]) -> Path:
    """A tokenizer of words; all others are [UNK]."""
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({}, unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=["<eos>", "[UNK]"], show_progress=False)
    spare = [f"spare{number}" for number in range(80)]  # for the symbols of needles
    library.train_from_iterator([" ".join([*words, *spare])], trainer)
    library.save(str(path))
    return path


def refusal(capsys: pytest.CaptureFixture[str], command: list[str]) -> str:
    capsys.readouterr()
    assert main(command) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_store_of_another_tokenizer_is_not_the_one_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = jsonl(tmp_path / "a.jsonl", [f"one two {number}" for number in range(40)])
    tokenizer = by_words(tmp_path / "words.json", ["one", "two"])
    command = [str(source), f"out={tmp_path}/out", f"tokenizer={tokenizer}", "workers=1", "validation_share=0.2"]
    assert main(command) == 0
    assert main(command) == 0
    by_words(tokenizer, ["one", "two", "three"])
    allowed = "a folder that does not exist yet; it holds a store of another tokenizer"
    assert refusal(capsys, command) == f"atlas: out={tmp_path}/out: must be {allowed}"


@pytest.mark.parametrize("killed_in", ["validation_below", "_finish"])
def test_a_tokenizer_is_trained_again_where_its_sources_changed(
    killed_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the tokenizer was trained, and when all units were made with it."""
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(units, "SMALLEST_UNIT", 2000)
    one = jsonl(tmp_path / "a.jsonl", [f"some words of {number}" for number in range(400)])
    two = jsonl(tmp_path / "b.jsonl", [f"{number} WORTE AUS EINEM ANDEREN TEXT" for number in range(400)])
    keys = ["tokenizer=train:300", "workers=1", "validation_share=0.2"]

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation, killed_in, kill)
        assert main([str(one), f"out={tmp_path}/out", *keys]) == 130
    assert main([str(one), str(two), f"out={tmp_path}/out", *keys]) == 0
    assert main([str(one), str(two), f"out={tmp_path}/wanted", *keys]) == 0
    for name in (TOKENIZER_FILE, "train.tokens", STORE_FILE):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "wanted" / name).read_bytes()
