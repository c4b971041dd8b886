from math import exp, log

import numpy as np
import pytest

from atlas.data.batch import Batch
from atlas.data.bigram import STRENGTHS, Bigram
from atlas.data.corpus import Corpus
from atlas.data.text import CorpusData


def batch_of(tokens: np.ndarray, weights: np.ndarray | None = None) -> Batch:
    rows, length = tokens.shape
    given = np.ones((rows, length - 1), dtype=np.float32) if weights is None else weights
    return Batch.from_tokens(tokens, given, np.zeros(rows, dtype=np.bool_), np.ones(rows, dtype=np.bool_))


def test_probabilities_are_the_interpolated_counts() -> None:
    training = np.frombuffer(b"abracadabra", dtype=np.uint8)
    bigram = Bigram(training)
    u = (2 + 1) / (11 + 256)  # add-one unigram of b: two of eleven bytes
    expected = (2 + bigram.strength * u) / (4 + bigram.strength)  # a is followed four times, twice by b
    assert exp(-bigram.nats[ord("a"), ord("b")]) == pytest.approx(expected, rel=1e-12)
    assert np.exp(-bigram.nats).sum(axis=1) == pytest.approx(np.ones(256), rel=1e-12)


def test_strength_is_the_best_left_one_out() -> None:
    training = np.random.default_rng(0).integers(97, 107, 400, dtype=np.uint8)

    def left_one_out(strength: float) -> float:  # by brute force: forget each pair in turn
        unigram = (np.bincount(training, minlength=256) + 1) / (len(training) + 256)
        total = 0.0
        pairs = list(zip(training[:-1].tolist(), training[1:].tolist(), strict=True))
        for index, (first, second) in enumerate(pairs):
            others = pairs[:index] + pairs[index + 1 :]
            followers = [b for a, b in others if a == first]
            total += log((followers.count(second) + strength * unigram[second]) / (len(followers) + strength))
        return total

    assert Bigram(training).strength == max(STRENGTHS, key=left_one_out)


def test_a_deterministic_text_costs_almost_nothing_and_a_random_one_its_entropy() -> None:
    cycle = np.tile(np.arange(16, dtype=np.uint8), 500)
    assert Bigram(cycle).loss([batch_of(cycle[None, :101])]) < 0.01
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 16, 50_000, dtype=np.uint8)
    fresh = rng.integers(0, 16, (1, 5001), dtype=np.uint8)
    assert Bigram(noise).loss([batch_of(fresh)]) == pytest.approx(log(16), abs=0.01)


def test_loss_is_the_weighted_mean_over_all_batches() -> None:
    bigram = Bigram(np.frombuffer(b"abracadabra", dtype=np.uint8))
    nats = bigram.nats
    tokens = np.frombuffer(b"abc", dtype=np.uint8)[None]
    light = batch_of(tokens, np.array([[0.5, 0.0]], dtype=np.float32))
    expected = (nats[97, 98] + nats[98, 99] + 0.5 * nats[97, 98]) / 2.5
    assert bigram.loss([batch_of(tokens), light]) == pytest.approx(expected, rel=1e-12)


def test_baseline_reads_the_validation_batches() -> None:
    rng = np.random.default_rng(0)
    corpus = Corpus("made up", (), 1, rng.integers(0, 9, 3000, dtype=np.uint8), rng.integers(0, 9, 300, dtype=np.uint8))
    source = CorpusData(sequence=32, batch_size=4, seed=0, steps=1, carry_memory=False)
    source.corpus = corpus
    expected = Bigram(corpus.train).loss([source.validation(0), source.validation(1)])
    assert source.baseline(2) == expected
    assert source.baseline(1) != expected
