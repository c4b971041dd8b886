"""Ids of documents and back, by bytes and by a tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from atlas.config import ConfigError
from atlas.data.tokenizer import ByteTokenizer, LibraryTokenizer
from atlas.prepare import main

TEXT = "The memory reads what the gate lets through: 12 naïve 👋.\n\n\tdef f():\n"


def test_a_byte_is_its_own_id() -> None:
    tokenizer = ByteTokenizer()
    (ids,) = tokenizer.encode([TEXT.encode()])
    assert ids.tolist() == list(TEXT.encode())
    assert tokenizer.decode([*ids, 256]) == TEXT
    assert (tokenizer.vocabulary, tokenizer.end_of_document) == (257, 256)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a tokenizer of 400 ids trained on it."""
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("trained")
    lines = [f"{TEXT} number {number} of the <|endoftext|> documents" for number in range(200)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    command = [f"{folder}/a.jsonl", f"out={folder}/out", "tokenizer=train:300", "workers=1", "validation_share=0.2"]
    assert main(command) == 0
    return folder


def test_a_trained_tokenizer_gives_every_document_back(trained: Path) -> None:
    tokenizer = LibraryTokenizer(trained / "out/tokenizer.json")
    texts = [TEXT, "<|endoftext|>", "é\u0000\ufffd", " ", "漢字 <|endoftext|> x"]
    encoded = tokenizer.encode([text.encode() for text in texts])
    assert tokenizer.vocabulary == 300
    for text, ids in zip(texts, encoded, strict=True):
        assert tokenizer.end_of_document not in ids
        assert tokenizer.decode(ids.tolist()) == text
    assert len(encoded[0]) < 0.7 * len(TEXT.encode())


def test_a_stream_gives_all_that_its_ids_stand_for_an_unfinished_character_at_its_end_too(trained: Path) -> None:
    tokenizer = LibraryTokenizer(trained / "out/tokenizer.json")
    ids = tokenizer.encode(["a漢".encode()])[0].tolist()
    beginnings = [ids[:count] for count in range(len(ids) + 1)]
    texts = ["".join(tokenizer.stream(iter(one))) for one in beginnings]
    assert texts == [tokenizer.decode(one) for one in beginnings] == ["", "a", "a\ufffd", "a\ufffd", "a漢"]


def test_training_it_again_gives_the_same_store(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tokenizer=train:300", "workers=1", "validation_share=0.2"]
    assert main([f"{trained}/a.jsonl", f"out={trained}/again", *arguments]) == 0
    for name in ("tokenizer.json", "train.tokens", "validation.ends", "store.json"):
        assert (trained / "again" / name).read_bytes() == (trained / "out" / name).read_bytes()
    assert (
        main([f"{trained}/a.jsonl", f"out={trained}/file", f"tokenizer={trained}/out/tokenizer.json", *arguments[1:]])
        == 0
    )
    assert (trained / "file/train.tokens").read_bytes() == (trained / "out/train.tokens").read_bytes()
    capsys.readouterr()
    assert main([f"{trained}/a.jsonl", f"out={trained}/large", "tokenizer=train:5000", "workers=1"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("atlas: tokenizer=train:5000: must be train:N with N <= ")


def test_what_is_no_tokenizer_is_refused(trained: Path, tmp_path: Path) -> None:
    broken = tmp_path / "tokenizer.json"
    with pytest.raises(ConfigError, match=f"tokenizer={broken}: must be a tokenizer.json that can be read"):
        LibraryTokenizer(broken)
    broken.write_text('{"model": 3}')
    with pytest.raises(ConfigError, match=f"tokenizer={broken}: must be a tokenizer.json of the tokenizers library"):
        LibraryTokenizer(broken)
    with pytest.raises(ConfigError) as refusal:
        LibraryTokenizer(trained / "out/tokenizer.json", "<end>")
    allowed = "one of its special tokens ['<|endoftext|>']"
    assert str(refusal.value) == f"end_of_document=<end>: must be {allowed}, in '{trained}/out/tokenizer.json'"


def test_a_tokenizer_of_a_public_model_in_its_own_format(trained: Path, tmp_path: Path) -> None:
    """WordPiece with a template that adds tokens, truncation, and an id beyond a gap."""
    content = json.loads((trained / "out/tokenizer.json").read_text())
    content["added_tokens"] = [
        {"id": number, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True} for number, name in ((3, "[CLS]"), (9, "</s>"))
    ]  # fmt: skip
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["model"] = {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": {"[UNK]": 0, "[CLS]": 3, "</s>": 9, "a": 1, "b": 2, "##a": 4, "##b": 5},
    }  # fmt: skip
    content["pre_tokenizer"], content["decoder"] = (
        {"type": "Whitespace"},
        {"type": "WordPiece", "prefix": "##", "cleanup": False},
    )
    content["post_processor"] = {
        "type": "BertProcessing", "sep": ["</s>", 9], "cls": ["[CLS]", 3],
    }  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    tokenizer = LibraryTokenizer(path)
    assert (tokenizer.vocabulary, tokenizer.end_of_document) == (10, 9)
    assert np.concatenate(tokenizer.encode([b"ab a b b b b zz"])).tolist() == [1, 5, 1, 2, 2, 2, 2, 0]
