"""Training text that stands in the validation part."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas.data.corpus import load_corpus
from atlas.data.leakage import BLOCK, _sample, shared_blocks

RNG = np.random.default_rng(0)


def letters(count: int) -> NDArray[np.uint8]:
    return RNG.integers(97, 123, count, dtype=np.uint8)


def test_the_share_is_that_of_every_block_compared_with_every_block() -> None:
    train, validation = letters(3000), letters(1000)
    validation[100:400] = train[1234:1534]
    validation[700:830] = train[5:135]
    seen = {bytes(train[i : i + BLOCK]) for i in range(len(train) - BLOCK + 1)}
    shared = [i for i in range(len(validation) - BLOCK + 1) if bytes(validation[i : i + BLOCK]) in seen]
    share, starts = shared_blocks(train, validation)
    assert starts.tolist() == shared
    assert share == len(shared) / (len(validation) - BLOCK + 1)


@pytest.mark.parametrize("shift", [0, 1, 77])
def test_a_shifted_copy_in_a_sample_is_found(shift: int) -> None:
    train, validation = letters(1_000_000), letters(400_000)
    validation[: 200_000 - shift] = train[300_000 + shift : 500_000]
    assert shared_blocks(train, validation)[0] == pytest.approx(0.5, abs=0.02)


def test_what_is_not_found() -> None:
    train = letters(5000)
    changed = train[:2000].copy()
    changed[::BLOCK] = 0
    assert shared_blocks(train, changed)[0] == 0
    assert shared_blocks(train, train[: BLOCK - 1])[0] == 0
    assert shared_blocks(train[: BLOCK - 1], train)[0] == 0


def test_blocks_that_differ_have_different_hashes() -> None:
    text = letters(300_000)  # several pieces
    hashes, starts = _sample(text, 0)
    assert starts.tolist() == list(range(len(text) - BLOCK + 1))
    assert len(np.unique(hashes)) == len(hashes)


def test_a_near_copy_is_measured_told_and_warned_of(tmp_path: Path) -> None:
    text = bytes(letters(4000))
    for number in range(12):
        (tmp_path / f"{number}.txt").write_bytes(text + b"%02d" % number)
    corpus = load_corpus([f"{tmp_path}/*"], "bytes", 0.1)
    assert corpus.describe()["validation_in_training"] == corpus.leakage == pytest.approx(3873 / 3875, abs=1e-3)
    assert corpus.warnings == [
        "100.0% of the validation blocks (128 bytes) stand in the training part as well:"
        " the validation loss is lower than on new text"
    ]


def test_twelve_copies_leave_nothing_of_training_in_validation(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.txt").write_bytes(bytes(letters(4000)) if number > 9 else bytes(4000 * [65]) + b"\n")
    corpus = load_corpus([f"{tmp_path}/*"], "bytes", 0.1)
    assert (corpus.files, corpus.leakage) == (3, 0.0)
    assert len(corpus.warnings) == 1
