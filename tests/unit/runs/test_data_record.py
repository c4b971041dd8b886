"""What a run says of its text when it goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlas.config import ConfigError
from atlas.data.corpus import Corpus
from atlas.pretrained.tokenizer import byte_tokenizer, end_token
from atlas.runs.data_record import (
    DATA_FILE,
    end_of_document,
    read_tokenizer,
    record_data,
    require_same_data,
    tokenizer_file,
)


def corpus(text: bytes, contents: dict[str, str]) -> Corpus:
    half = len(text) // 2
    parts = np.frombuffer(text[:half], dtype=np.uint8), np.frombuffer(text[half:], dtype=np.uint8)
    return Corpus("x/*", ("x/*",), len(contents), *parts, contents)


OLD = corpus(b"some text", {"a": "1", "b": "2"})
NEW = corpus(b"some more", {"a": "1", "b": "3", "c": "4"})


def difference(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        require_same_data(OLD.digest, NEW, False, folder)
    return str(caught.value).partition("; ")[2].partition(" (accept_changed_data=")[0]


def test_the_same_text_needs_no_word(tmp_path: Path) -> None:
    same = corpus(b"some text", {"other name": "1"})
    assert require_same_data(OLD.digest, same, False, tmp_path) == []
    assert require_same_data("", None, False, tmp_path) == []
    assert require_same_data(None, None, False, tmp_path) == []


def test_the_first_file_that_differs_is_named(tmp_path: Path) -> None:
    record_data(tmp_path, OLD)
    record_data(tmp_path, NEW)  # both stay known
    assert difference(tmp_path) == "files 1 changed, 1 added; the first: 'b' changed"


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b'{"%s": 3}' % OLD.digest.encode(), b"\xff"])
def test_a_record_that_is_lost_costs_the_name_only(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / DATA_FILE).write_bytes(content)
    assert difference(tmp_path) == "it is another one, and data.json does not tell which files differ"
    record_data(tmp_path, NEW)
    assert require_same_data(NEW.digest, NEW, False, tmp_path) == []


def test_a_runs_tokenizer_ends_documents_as_its_text_does(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    content = byte_tokenizer(with_end=True)
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 257, "content": "<|im_end|>"})
    (tmp_path / "store.json").write_text(json.dumps(content))
    run = tmp_path / "run"
    run.mkdir()
    assert tokenizer_file(run) is None
    record_data(run, replace(OLD, tokenizer=tmp_path / "store.json", end_of_document=257))
    (tmp_path / "tokenizer.json").write_text("{}")  # above the run, of something else
    file = tokenizer_file(run)
    assert file == run / "tokenizer.json"
    assert (read_tokenizer(file).end_of_document, end_of_document(run)) == (257, 257)
    assert end_token(content, end_of_document(run)) == ("<|im_end|>", 257)
    (run / DATA_FILE).unlink()  # as a run of before has none: the first of the usual names
    assert (read_tokenizer(file).end_of_document, end_of_document(run)) == (256, None)
    assert end_token(content, None) == ("<|endoftext|>", 256)


def test_another_split_of_the_same_files_is_another_text(tmp_path: Path) -> None:
    moved = Corpus("x/*", ("x/*",), 2, OLD.train[:2], np.concatenate([OLD.train[2:], OLD.validation]), OLD.contents)
    record_data(tmp_path, OLD)
    assert require_same_data(OLD.digest, moved, True, tmp_path) == [
        "goes on with another text (accept_changed_data=true): its files are the same, their split is not"
    ]
