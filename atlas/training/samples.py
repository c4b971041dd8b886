"""Continuations of validation text while a run trains: what the model has learnt, to read.

The same prompts and the same draws every time. Nothing of training is touched: the draws come from a generator of their
own, and decoding changes no weight.

Legend: T tokens of a validation row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import islice, takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from atlas.data.source import DataSource
from atlas.data.symbols import BYTES
from atlas.data.tokenizer import ByteTokenizer, LibraryTokenizer
from atlas.models.decoding import Sampling, decode
from atlas.models.language_model import AtlasModel
from atlas.training.evaluating import evaluating
from atlas.training.step import TrainStep

SAMPLING = Sampling(temperature=0.7)  # the default of `python -m atlas.generate`


class Sample(NamedTuple):
    number: int  # of the prompt, the same at every step
    prompt: str
    text: str


class Sampler:
    """Continues the first `count` validation rows. A prompt takes at most half of its row, and at most `tokens`.

    Raises `ConfigError` where the tokenizer of the text cannot be read.
    """

    def __init__(self, data: DataSource, step: TrainStep, count: int, tokens: int) -> None:
        self.data, self.step, self.count, self.tokens = data, step, count, tokens
        self._tokenizer = _tokenizer(data)

    def samples(self, model: AtlasModel) -> list[Sample]:
        return [
            Sample(number, self._text(ids), self._continued(model, ids)) for number, ids in enumerate(self._prompts)
        ]

    @cached_property
    def _prompts(self) -> list[list[int]]:
        found: list[list[int]] = []
        index = 0
        while len(found) < self.count:
            batch = self.data.validation(index)
            found += [self._prompt(*row) for row in zip(batch.inputs, batch.weights, strict=True)]
            index += 1
        return found[: self.count]

    def _prompt(self, row: Tensor, weights: Tensor) -> list[int]:
        """Of a row [T] whose padding at the end, if it has any, has no weight."""
        length = max((index for index, weight in enumerate(weights.tolist(), 1) if weight > 0), default=len(row))
        ids: list[int] = row[: min(max(length // 2, 1), self.tokens)].tolist()
        return ids

    def _continued(self, model: AtlasModel, prompt: Sequence[int]) -> str:
        """Up to the end of a document."""
        generator = torch.Generator().manual_seed(0)
        with evaluating(model), self.step.autocast():
            tokens = decode(model, torch.tensor([prompt], device=self.step.device), SAMPLING, generator=generator)
            added = (int(token) for token in islice(tokens, self.tokens))
            end = self._tokenizer.end_of_document if self._tokenizer else -1
            return self._text(list(takewhile(lambda one: one != end, added)))

    def _text(self, ids: Sequence[int]) -> str:
        """Ids without a tokenizer, as a data source of your own may have them, stand as numbers."""
        return self._tokenizer.decode(ids) if self._tokenizer else " ".join(map(str, ids))


def _tokenizer(data: DataSource) -> ByteTokenizer | LibraryTokenizer | None:
    if data.corpus is not None and data.corpus.tokenizer is not None:
        return LibraryTokenizer(data.corpus.tokenizer, None, "telemetry.samples")
    return ByteTokenizer() if data.vocabulary <= BYTES + 1 else None
