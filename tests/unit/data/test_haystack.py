import numpy as np
import pytest

from atlas.data.haystack import build_haystacks
from atlas.data.symbols import NOISE

TEXT = np.random.default_rng(5).integers(128, 256, 70, dtype=np.uint8)


def rows(kinds: dict[str, float], count: int = 20, length: int = 64) -> list[bytes]:
    return [bytes(row) for row in build_haystacks(np.random.default_rng(0), count, length, kinds, TEXT)]


def test_noise_is_rulers_sentences_from_a_random_place() -> None:
    found = rows({"noise": 1.0}, length=200)
    assert all(row in NOISE * 4 for row in found)
    assert len({row[:20] for row in found}) > 10


def test_text_is_a_stretch_of_the_text() -> None:
    found = rows({"text": 1.0}, count=100)
    assert all(row in TEXT.tobytes() for row in found)
    assert {row[0] for row in found} == set(TEXT[:7].tolist())


def test_random_is_printable_and_uniform() -> None:
    values = np.frombuffer(b"".join(rows({"random": 1.0}, count=1000)), dtype=np.uint8)
    assert np.bincount(values, minlength=256)[32:127] / len(values) == pytest.approx(np.full(95, 1 / 95), rel=0.2)
    assert (values.min(), values.max()) == (32, 126)


def test_kinds_are_mixed_by_their_shares() -> None:
    found = rows({"none": 3.0, "noise": 1.0, "text": 0.0, "random": 0.0}, count=2000)
    blank = sum(row == b" " * 64 for row in found) / 2000
    assert blank == pytest.approx(0.75, abs=0.03)
    assert all(row == b" " * 64 or row in NOISE * 2 for row in found)


def test_text_needs_a_text() -> None:
    with pytest.raises(ValueError, match="needs a text"):
        build_haystacks(np.random.default_rng(0), 2, 64, {"text": 1.0}, None)
