"""Which tokenizer a store is made with, and what that one loses of the text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atlas.data.store import TokenStore
from atlas.data.store_format import STORE_FILE, TOKENIZER_FILE, read_record
from atlas.data.symbols import Symbols
from atlas.data.tokenizer import LibraryTokenizer
from atlas.preparation import preparation, units
from atlas.preparation.lost_characters import count_lost
from atlas.preparation.split import hash_of
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


def test_words_that_a_sample_cuts_are_not_lost(tmp_path: Path) -> None:
    tokenizer = LibraryTokenizer(by_words(tmp_path / "words.json", ["known", "word"]))
    text = b"known word " * 40_000
    assert count_lost(tokenizer, [text]) == (0, 13383)  # four pieces of 4096 bytes, nine letters of eleven
    assert count_lost(tokenizer, [b"\xc3\xa9" * 3000]) == (2048, 2048)


@pytest.mark.parametrize("unknown", ["[UNK]", None])
def test_characters_that_a_tokenizer_loses_are_told(
    unknown: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of words that it maps to [UNK], or that it drops."""
    tokenizer = by_words(tmp_path / "words.json", ["known", "word"])
    if unknown is None:
        library = pytest.importorskip("tokenizers").Tokenizer.from_file(str(tokenizer))
        pieces = {one: number for number, one in enumerate([*library.get_vocab(), *"knowrd"])}
        library.model = pytest.importorskip("tokenizers").models.BPE(pieces, [])
        library.save(str(tokenizer))
    source = jsonl(tmp_path / "a.jsonl", [f"known word {'é' * (number % 3)}" for number in range(60)])
    keys = ["workers=1", "validation_share=0.2"]
    assert main([str(source), f"out={tmp_path}/out", f"tokenizer={tokenizer}", *keys]) == 0
    told = capsys.readouterr()
    share = 1 / 10  # of nine known characters and one unknown on average
    assert read_record(tmp_path / "out", "out").lost_characters == share
    assert "lost       10.00% of the characters, which the tokenizer does not give back\n" in told.out
    assert told.err.splitlines()[-1] == (
        "atlas: 10.0% of the characters are lost to this tokenizer, which drops, changes or does not know them:"
        " bits per byte will be too low"
    )
    assert main([str(source), f"out={tmp_path}/bytes", *keys]) == 0
    assert main([str(source), f"out={tmp_path}/trained", "tokenizer=train:260", *keys]) == 0
    assert [read_record(tmp_path / name, "out").lost_characters for name in ("bytes", "trained")] == [0, 0]
    assert "are lost" not in capsys.readouterr().err


def test_a_document_with_the_end_token_is_left_out_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does it count for the split: its hash is the lowest, and validation gets the document with the next one."""
    tokenizer = by_words(tmp_path / "words.json", ["known", "word"])
    texts = sorted((f"word {'known ' * number}" for number in range(8)), key=lambda text: hash_of(text.encode()))
    lowest = next(
        text
        for text in (f"known <eos>{' word' * number}" for number in range(200))
        if hash_of(text.encode()) < hash_of(texts[0].encode())
    )
    source = jsonl(tmp_path / "a.jsonl", [*texts, lowest])
    command = [str(source), f"out={tmp_path}/out", f"tokenizer={tokenizer}", "workers=1"]
    token = "holds the end-of-document token itself, which this tokenizer reads in text"
    place = f"{str(source)!r} line 9 {token}: {lowest.encode()[:60]!r}..."
    skip = "(on_error=skip leaves such documents out)"
    assert refusal(capsys, command) == f"atlas: SOURCE: must be readable; {place} {skip}"
    assert main([*command, "on_error=skip"]) == 0
    store = TokenStore(tmp_path / "out", "data.path")
    assert (store.record.skipped_count, store.record.skipped) == (1, [place])
    held = [store.tokenizer().decode(ids.tolist()).strip() for ids in (store.validation.tokens, store.train.tokens)]
    assert held[0] == texts[0].strip()
    assert len(store.train.ends) == 7


@pytest.mark.parametrize("spare", [200, 100, 63, 62])
def test_a_tokenizer_without_ids_for_english_makes_a_store_or_is_refused_before_the_work(
    spare: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ordinary ids stand for the noise of haystacks: as many as RULER's sentences have bytes, where there are."""
    library = pytest.importorskip("tokenizers")
    tokenizer = library.Tokenizer(library.models.BPE({chr(0x4E00 + number): number for number in range(spare)}, []))
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.save(str(tmp_path / "characters.json"))
    source = jsonl(tmp_path / "a.jsonl", [chr(0x4E00 + number) * 9 for number in range(40)])
    command = [str(source), f"out={tmp_path}/out", f"tokenizer={tmp_path}/characters.json", "workers=1"]
    if spare == 62:
        monkeypatch.setattr(preparation, "Worker", None)  # no unit is begun
        allowed = "one with 63 ordinary ids for the characters of needles that have none of their own"
        assert refusal(capsys, command) == f"atlas: tokenizer=(of 63 ids): must be {allowed}"
        return
    assert main(command) == 0
    symbols = Symbols.from_record(read_record(tmp_path / "out", "out").symbols)
    wanted = {200: range(90), 100: range(37), 63: range(62)}[spare]  # 137, 37 and none are left by the needles
    assert (symbols.noise.tolist(), symbols.blank) == (list(wanted), 0)
