import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from atlas.config import ConfigError
from atlas.data.corpus import Corpus
from atlas.data.text import CorpusData, StdlibData, TextData

TRAIN = np.random.default_rng(0).integers(0, 256, 1000, dtype=np.uint8)
VALIDATION = np.random.default_rng(1).integers(0, 256, 200, dtype=np.uint8)
CORPUS = Corpus("made up", ("a",), 1, TRAIN, VALIDATION)


def data(
    *, corpus: Corpus = CORPUS, sequence: int = 16, rows: int = 4, seed: int = 0, carry: bool = False
) -> CorpusData:
    source = CorpusData(sequence=sequence, batch_size=rows, seed=seed, steps=1, carry_memory=carry)
    source.corpus = corpus
    return source


def row_bytes(source: CorpusData, step: int, row: int) -> bytes:
    batch = source.batch(step)
    return bytes(batch.inputs[row].tolist()) + bytes(batch.targets[row, -1:].tolist())


def test_golden_batch() -> None:
    # Change me only if you mean it: every text batch of every old run changes; raise BATCHES then.
    inputs = data().batch(5).inputs.numpy().astype(np.uint8).tobytes()
    assert hashlib.sha256(inputs).hexdigest()[:16] == "4f1bcc49dd2e6bd3"


def test_batch_is_a_function_of_seed_and_step() -> None:
    source = data()
    third = source.batch(3).inputs
    source.batch(1)
    assert torch.equal(source.batch(3).inputs, third)
    assert torch.equal(data().batch(3).inputs, third)
    assert not torch.equal(source.batch(4).inputs, third)
    assert not torch.equal(data(seed=1).batch(3).inputs, third)


def test_rows_come_from_the_training_bytes() -> None:
    for row in range(4):
        assert row_bytes(data(), 1, row) in TRAIN.tobytes()
    batch = data().batch(1)
    assert batch.fresh.tolist() == [True] * 4
    assert batch.recall.tolist() == [False] * 4
    assert batch.weights.unique().tolist() == [1.0]


def test_validation_comes_from_the_validation_bytes_whatever_the_seed() -> None:
    batch = data(seed=0).validation(2)
    for inputs, last in zip(batch.inputs.tolist(), batch.targets[:, -1:].tolist(), strict=True):
        assert bytes(inputs + last) in VALIDATION.tobytes()
    assert torch.equal(data(seed=7).validation(2).inputs, batch.inputs)
    assert not torch.equal(data().validation(3).inputs, batch.inputs)


def test_every_place_can_be_drawn() -> None:
    tiny = Corpus("made up", (), 1, np.arange(18, dtype=np.uint8), VALIDATION)
    firsts = {int(first) for step in range(1, 30) for first in data(corpus=tiny).batch(step).inputs[:, 0]}
    assert firsts == {0, 1}


def test_carried_segments_follow_each_other_until_the_corpus_wraps() -> None:
    source = data(carry=True)
    lap = []
    for step in range(1, 70):
        batch, after = source.batch(step), source.batch(step + 1)
        wraps = after.fresh.tolist()
        for row in range(4):
            if not wraps[row]:
                assert batch.targets[row, -1] == after.inputs[row, 0]  # the last target is the next first input
                assert row_bytes(source, step, row) + row_bytes(source, step + 1, row)[1:] in TRAIN.tobytes()
        lap.append(wraps)
    assert source.batch(1).fresh.tolist() == [True] * 4
    assert np.sum(lap, axis=0).tolist() == [1, 1, 1, 1]  # some 62 segments; all rows start apart


def test_carried_rows_start_apart_and_the_offset_depends_on_the_seed() -> None:
    starts = data(carry=True).batch(1).inputs[:, :8]
    assert len({tuple(row) for row in starts.tolist()}) == 4
    offsets = {bytes(data(carry=True, seed=seed).batch(1).inputs[0].tolist()) for seed in range(8)}
    assert len(offsets) > 4


def test_carry_works_on_the_shortest_corpus() -> None:
    tiny = Corpus("made up", (), 1, np.arange(17, dtype=np.uint8), VALIDATION)
    batch = data(corpus=tiny, carry=True).batch(9)
    assert batch.inputs.tolist() == [list(range(16))] * 4
    assert batch.fresh.tolist() == [True] * 4


def test_stdlib_batches() -> None:
    source = StdlibData(validation_share=0.1, sequence=64, batch_size=2, seed=0, steps=10, carry_memory=False)
    assert row_bytes(source, 1, 0) in source.corpus.train.tobytes()
    assert source.vocabulary == 256


def text_data(paths: list[str], sequence: int) -> TextData:
    return TextData(
        paths=paths,
        encoding="utf8",
        validation_share=0.5,
        sequence=sequence,
        batch_size=2,
        seed=0,
        steps=10,
        carry_memory=False,
    )


def test_user_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("grün und blau " * 10, encoding="utf-8")
    source = text_data([f"{tmp_path}/*.txt"], 20)
    assert row_bytes(source, 1, 1) in source.corpus.train.tobytes()
    assert source.describe()["files"] == 1


def test_refuses_no_paths_and_a_corpus_shorter_than_a_sequence(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 40)
    with pytest.raises(ConfigError, match=r"^data\.paths=\[\]: must be at least one"):
        text_data([], 20)
    with pytest.raises(ConfigError, match=r"^data\.paths=.*train\.sequence=20 bytes"):
        assert text_data([f"{tmp_path}/a.txt"], 20).corpus
    assert text_data([f"{tmp_path}/a.txt"], 19).corpus.files == 1
