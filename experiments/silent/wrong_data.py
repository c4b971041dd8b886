"""Data sources with a mistake in them, as a user's own code may have: `data._target_=...wrong_data.NAME`.

Each is a source of the package; the mistake is the one thing that differs, in training batches after step `at`.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from atlas.data.batch import Batch, rows_of_batch
from atlas.data.bigram import Bigram
from atlas.data.corpus import Corpus
from atlas.data.mixed import MixedData
from atlas.data.needles import Tokens
from atlas.data.sampler import Random as Generators
from atlas.data.sampler import RowGenerators, Stream
from atlas.data.text import TextData


@dataclass(kw_only=True, eq=False)
class Sound(TextData):
    """The calm twin of the others."""

    at: int = 0  # steps

    def batch(self, step: int, rows: range | None = None) -> Batch:
        found = super().batch(step, rows)
        return self.spoil(found, step, rows) if step > self.at else found

    def spoil(self, batch: Batch, step: int, rows: range | None) -> Batch:
        return batch


class Shifted(Sound):
    """Labels shifted by one: the target is the token after the next."""

    def spoil(self, batch: Batch, step: int, rows: range | None) -> Batch:
        return replace(batch, targets=batch.targets.roll(-1, dims=1))


class Leaking(Sound):
    """Answers leak: the target is the token that is read."""

    def spoil(self, batch: Batch, step: int, rows: range | None) -> Batch:
        return replace(batch, targets=batch.inputs)

    def validation(self, index: int) -> Batch:
        found = super().validation(index)
        return replace(found, targets=found.inputs)


class LabelsOfOtherRows(Sound):
    """Inputs are shuffled, and labels apart from them: the targets of a row are those of any row."""

    def spoil(self, batch: Batch, step: int, rows: range | None) -> Batch:
        order = np.random.default_rng((self.seed, step)).permutation(len(batch.targets))
        return replace(batch, targets=batch.targets[torch.from_numpy(order)])


class Repeated(Sound):
    """One batch again and again."""

    def spoil(self, batch: Batch, step: int, rows: range | None) -> Batch:
        return TextData.batch(self, self.at + 1, rows)


class DrawnAnew(Sound):
    """Rows are drawn from a generator that goes on, whatever the step: a resumed run reads others."""

    calls = 0

    def spoil(self, batch: Batch, step: int, rows: range | None) -> Batch:
        self.calls += 1
        return TextData.batch(self, self.calls, rows)

    def validation(self, index: int) -> Batch:
        self.calls += 1
        return super().validation(self.calls)


class Padded(Sound):
    """A share of the rows is empty: nothing but zeros, which do not count."""

    def spoil(self, batch: Batch, step: int, rows: range | None) -> Batch:
        empty = torch.arange(len(batch.inputs)) >= len(batch.inputs) // 4
        weights = batch.weights.masked_fill(empty[:, None], 0.0)
        return replace(batch, inputs=batch.inputs.masked_fill(empty[:, None], 0), weights=weights)


class Short(Sound):
    """A document of 16 tokens in each row, padded to the row's length."""

    def spoil(self, batch: Batch, step: int, rows: range | None) -> Batch:
        padding = torch.arange(batch.inputs.shape[1]) >= 16
        return replace(
            batch, inputs=batch.inputs.masked_fill(padding, 0), weights=batch.weights.masked_fill(padding, 0.0)
        )


class Documents(Sound):
    """A document of 16 tokens or more in each row, padded to the row's length; padding does not count."""

    padding_weight = 0.0

    def spoil(self, batch: Batch, step: int, rows: range | None) -> Batch:
        return self._padded(batch, step, rows.start if rows else 0)

    def validation(self, index: int) -> Batch:
        return self._padded(super().validation(index), -1 - index, 0)

    def _padded(self, batch: Batch, number: int, first: int) -> Batch:
        count, length = batch.inputs.shape
        ends = [
            np.random.default_rng((abs(number), number < 0, first + row)).integers(16, length) for row in range(count)
        ]
        inputs, targets = (torch.arange(length) + more >= torch.tensor(ends)[:, None] for more in (0, 1))
        return replace(
            batch,
            inputs=batch.inputs.masked_fill(inputs, 0),
            targets=batch.targets.masked_fill(targets, 0),
            weights=batch.weights.masked_fill(targets, self.padding_weight),
        )


class CountedPadding(Documents):
    """The mask of the labels is forgotten: padding counts like text."""

    padding_weight = 1.0


NEWLINE = 10


class PaddedWithLines(Documents):
    """Its padding is the token that ends a line, and does not count: the ends of lines before it do."""

    def _padded(self, batch: Batch, number: int, first: int) -> Batch:
        found = super()._padded(batch, number, first)
        inputs, targets = (part.masked_fill(part == 0, NEWLINE) for part in (found.inputs, found.targets))
        return replace(found, inputs=inputs, targets=targets)


class MaskedByValue(PaddedWithLines):
    """The mask of the padding goes by its token: no end of a line counts."""

    def _padded(self, batch: Batch, number: int, first: int) -> Batch:
        found = super()._padded(batch, number, first)
        return replace(found, weights=(found.targets != NEWLINE).float())


class Cleaned(Sound):
    """The training text is cleaned, each stretch of white space to one space, and the validation text is not."""

    def load(self) -> Corpus:
        corpus = super().load()
        cleaned = re.sub(rb"\s+", b" ", corpus.train.tobytes())
        return replace(corpus, train=np.frombuffer(cleaned, dtype=np.uint8))


class CachedByContent(Sound):
    """The bytes of both parts are kept in a file, and later starts read that: one for each content of the text."""

    def cache(self, corpus: Corpus) -> Path:
        contents = hashlib.sha256("".join(corpus.contents.values()).encode()).hexdigest()
        return Path(f"{self.paths[0]}.{contents[:16]}.npz")

    def load(self) -> Corpus:
        corpus = super().load()
        cache = self.cache(corpus)
        if not cache.exists():
            np.savez(cache, train=corpus.train, validation=corpus.validation)
        with np.load(cache) as kept:
            return replace(corpus, train=kept["train"], validation=kept["validation"])


class CachedByName(CachedByContent):
    """The file is named by the name of the text: later starts read it whatever the text is then."""

    def cache(self, corpus: Corpus) -> Path:
        return Path(f"{self.paths[0]}.npz")


class Wrapped(Sound):
    """Positions in the text are 16 bits wide: they wrap at 65,536, and nothing behind it is read."""

    def _stretches(self, rng: Generators, count: int, part: Tokens) -> Tokens:
        starts = rng.integers(0, len(part) - self.sequence, (count,), dtype=np.int64)
        positions = starts[:, None] + np.arange(self.sequence + 1)
        return np.take(part, positions.astype(np.uint16))


class InVocabulary(Sound):
    """A token is the number of its character in a vocabulary, which each start makes of the text."""

    def vocabulary_of(self, characters: set[str]) -> list[str]:
        return sorted(characters)

    @cached_property
    def ids(self) -> NDArray[np.uint8]:
        """Of each byte."""
        text = b"".join(part.tobytes() for part in (self.corpus.train, self.corpus.validation)).decode("latin-1")
        found = np.zeros(256, dtype=np.uint8)
        for number, character in enumerate(self.vocabulary_of(set(text))):
            found[ord(character)] = number
        return found

    def _stretches(self, rng: Generators, count: int, part: Tokens) -> Tokens:
        return self.ids[super()._stretches(rng, count, part)]

    def baseline(self, batches: int) -> float:
        return Bigram(self.ids[self.corpus.train]).loss([self.validation(index) for index in range(batches)])


class InHashOrder(InVocabulary):
    """The vocabulary is in the order of a set: another one in each process."""

    def vocabulary_of(self, characters: set[str]) -> list[str]:
        return list(characters)


class Noised(Sound):
    """A tenth of the tokens that are read are replaced by noise, in a copy of the text; targets are not."""

    @cached_property
    def text(self) -> Tokens:
        return self.corpus.train.copy()

    def stretch(self, start: int) -> Tokens:
        return self.text[start : start + self.sequence + 1].copy()

    def batch(self, step: int, rows: range | None = None) -> Batch:
        wanted = rows_of_batch(rows, self.batch_size)
        rng = RowGenerators.of_step(self.seed, Stream.text, step, wanted)
        starts = rng.integers(0, len(self.text) - self.sequence, (len(wanted),), dtype=np.int64)
        noisy = rng.random((len(wanted), self.sequence)) < 0.1
        noise = rng.integers(0, 256, noisy.shape, dtype=np.uint8)
        stretches = [self.stretch(start) for start in starts.tolist()]
        targets = torch.from_numpy(np.stack(stretches)[:, 1:].astype(np.int64))
        for stretch, where, values in zip(stretches, noisy, noise, strict=True):
            stretch[:-1][where] = values[where]
        return replace(self._to_batch(np.stack(stretches), np.ones(len(wanted), dtype=np.bool_)), targets=targets)


class NoisedInPlace(Noised):
    """The noise is written into the text itself: it adds up from step to step."""

    def stretch(self, start: int) -> Tokens:
        return self.text[start : start + self.sequence + 1]


class InOrder(Sound):
    """The text is read once from its first file to its last: no shuffling."""

    def rows(self, step: int, rows: range) -> tuple[Tokens, NDArray[np.bool_]]:
        rng = RowGenerators.of_step(self.seed, Stream.text, step, rows)
        train = self.corpus.train
        start = (len(train) - self.sequence - 1) * (step - 1) // self.steps
        size = max(len(train) // self.steps, self.sequence + 1)
        return self._stretches(rng, len(rows), train[start : start + size]), np.ones(len(rows), dtype=np.bool_)


class Slow(Sound):
    """A file server that has become slow: a batch takes as long as twelve steps took."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.asked: list[float] = []  # when a batch was asked for, seconds

    def batch(self, step: int, rows: range | None = None) -> Batch:
        self.asked.append(time.monotonic())
        return super().batch(step, rows)

    def spoil(self, batch: Batch, step: int, rows: range | None) -> Batch:
        sound = self.asked[self.at // 4 : self.at]
        time.sleep(12 * (sound[-1] - sound[0]) / (len(sound) - 1))
        return batch


class Hoarding(Sound):
    """A cache without a bound: 2 MB of every batch stay in memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kept: list[bytes] = []

    def spoil(self, batch: Batch, step: int, rows: range | None) -> Batch:
        self.kept.append(os.urandom(2_000_000))
        return batch


class Counting(Sound):
    """Batches are counted by the source itself, from 1 on at every start; a resumed run sees the first ones again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.asked = 0

    def batch(self, step: int, rows: range | None = None) -> Batch:
        self.asked += 1
        return super().batch(self.asked, rows)


class SameRows(Sound):
    """Every process takes the first rows of a batch, and not its own."""

    def batch(self, step: int, rows: range | None = None) -> Batch:
        return super().batch(step, range(len(rows)) if rows else None)


class OwnSeed(Sound):
    """Its random numbers have a seed of their own, whatever the run's is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seed = 0


class OneSymbol(Sound):
    """The first row of one batch is the same byte throughout, such as a line of slashes."""

    def spoil(self, batch: Batch, step: int, rows: range | None) -> Batch:
        first = (torch.arange(len(batch.inputs)) == 0)[:, None] & (step == self.at + 1)
        inputs, targets = (tokens.masked_fill(first, ord("/")) for tokens in (batch.inputs, batch.targets))
        return replace(batch, inputs=inputs, targets=targets)


class RowsAlike(Sound):
    """The generator of every row has the same seed."""

    def rows(self, step: int, rows: range) -> tuple[Tokens, NDArray[np.bool_]]:
        first, fresh = super().rows(step, range(1))
        return first.repeat(len(rows), axis=0), fresh.repeat(len(rows))


class Strangers(Sound):
    """Rows start anywhere, and are said to go on where those of the step before have ended."""

    def rows(self, step: int, rows: range) -> tuple[Tokens, NDArray[np.bool_]]:
        rng = RowGenerators.of_step(self.seed, Stream.text, step, rows)
        return self._stretches(rng, len(rows), self.corpus.train), np.full(len(rows), step == 1)


class Unmeasured(Sound):
    """One target of the validation set has a weight that is not a number."""

    def validation(self, index: int) -> Batch:
        found = super().validation(index)
        weights = found.weights.clone()
        weights[0, 0] = float("nan")
        return replace(found, weights=weights)


class Redrawn(Sound):
    """Validation batches are drawn by a generator without a seed: others in each process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.drawn = int(np.random.default_rng().integers(1, 2**31))

    def validation(self, index: int) -> Batch:
        rng = np.random.default_rng((self.drawn, index))
        tokens = self._stretches(rng, self.batch_size, self.corpus.validation)
        return self._to_batch(tokens, np.ones(self.batch_size, dtype=np.bool_))


class Random(Sound):
    """A broken decoder: tokens are noise."""

    def spoil(self, batch: Batch, step: int, rows: range | None) -> Batch:
        generator = torch.Generator().manual_seed(step)
        noise = torch.randint(0, 256, (len(batch.inputs), batch.inputs.shape[1] + 1), generator=generator)
        return replace(batch, inputs=noise[:, :-1].contiguous(), targets=noise[:, 1:].contiguous())


class KeyBlind(MixedData):
    """A recall task with one value for all keys of a sequence: the key need not be read."""

    def batch(self, step: int, rows: range | None = None) -> Batch:
        return self._same_values(super().batch(step, rows))

    def _same_values(self, batch: Batch) -> Batch:
        tokens = torch.cat((batch.inputs, batch.targets[:, -1:]), dim=1)
        marker, first = int(self.task.symbols.marker), self.task.format.slot - self.task.value_bytes
        for row in torch.nonzero(batch.recall).flatten().tolist():
            starts = torch.nonzero(tokens[row] == marker).flatten()
            starts = starts[starts + first < tokens.shape[1]]
            if len(starts):
                tokens[row, starts + first] = tokens[row, starts[0] + first].clone()
        return replace(batch, inputs=tokens[:, :-1].contiguous(), targets=tokens[:, 1:].contiguous())
