import numpy as np
import pytest

from atlas.data.mqar import IGNORED, mqar_sequences


def test_pairs_first_then_every_key_once_with_its_value_as_label() -> None:
    found = mqar_sequences(np.random.default_rng(0), 30, 64, vocabulary=128, pairs=8, random_filler=False)
    for inputs, labels in zip(found.inputs, found.labels, strict=True):
        keys, values = inputs[0:16:2].tolist(), inputs[1:16:2].tolist()
        assert len(set(keys)) == len(set(values)) == 8
        assert set(keys) <= set(range(1, 64))
        assert set(values) <= set(range(64, 128))
        scored = np.flatnonzero(labels != IGNORED)
        assert scored.min() >= 16
        assert set((scored % 2).tolist()) == {0}
        value_of = dict(zip(keys, values, strict=True))
        assert sorted(inputs[scored].tolist()) == sorted(keys)
        assert [value_of[key] for key in inputs[scored].tolist()] == labels[scored].tolist()
        rest = np.delete(inputs[16:], scored - 16)
        assert rest.tolist() == [0] * 40


def test_small_offsets_are_likelier_as_the_power_law_says() -> None:
    found = mqar_sequences(np.random.default_rng(0), 20_000, 18, vocabulary=8, pairs=1, random_filler=True)
    offsets = (np.argmax(found.labels != IGNORED, axis=1) - 2) // 2
    law = np.arange(1, 9) ** -0.99
    assert np.bincount(offsets, minlength=8) / 20_000 == pytest.approx(law / law.sum(), abs=0.012)


@pytest.mark.parametrize("pairs", [0, 17, 64])
def test_refuses_pairs_that_do_not_fit(pairs: int) -> None:
    with pytest.raises(ValueError, match=f"pairs={pairs}"):
        mqar_sequences(np.random.default_rng(0), 2, 64, vocabulary=128, pairs=pairs, random_filler=True)
