"""Needle-in-a-haystack probes of a model as it is: the levels, when they are due, and their results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from atlas.config import NIAHConfig
from atlas.data.haystack import build_haystacks
from atlas.data.needles import NeedleFormat
from atlas.data.sampler import Stream, generator
from atlas.models.language_model import AtlasModel
from atlas.probes import accumulator, memory_level, recall
from atlas.probes.keys import SeenTokens, memory_layers, seen_tokens, text_rows
from atlas.probes.neutral import untouched
from atlas.probes.result import NIAHResult, judge

TEXT_ROWS = 2  # rows of text whose keys the key levels bury their needle under
# Places in the random stream; the cells of the recall grid count from 0.
_INDEX = {"accumulator": 1 << 32, "memory": 1 << 33, "text": 1 << 34}


class NIAHProbe:
    """Probes every `config.every` steps and at the last one. The needles are the same every time.

    `text` are bytes to take real-text haystacks from; without it, the key levels see RULER's noise sentences instead.
    """

    def __init__(
        self,
        config: NIAHConfig,
        needles: NeedleFormat,
        *,
        sequence: int,
        last_step: int,
        text: NDArray[np.uint8] | None = None,
    ) -> None:
        self.config, self.needles, self.sequence, self.last_step, self.text = config, needles, sequence, last_step, text

    def due(self, step: int) -> bool:
        return self.config.enabled and (step % self.config.every == 0 or step == self.last_step)

    def run(self, model: AtlasModel, step: int) -> list[NIAHResult]:
        """A result per level. Nothing of the model, of its mode or of any random state is changed."""
        results = []
        with untouched(model):
            for level in self.config.levels:
                began = time.perf_counter()
                result = self._level(model, step, level)
                results.append(replace(result, seconds=time.perf_counter() - began))
        return results

    def _level(self, model: AtlasModel, step: int, level: str) -> NIAHResult:
        if level == "recall":
            return recall.probe_recall(model, self.config, step, self.needles, self.sequence, self.text)
        if not memory_layers(model):
            return judge(
                step=step,
                level=level,
                threshold=self.config.threshold,
                accuracy=None,
                control=None,
                chance=0.0,
                missing="the model has no memory",
            )
        rng = generator(self.config.seed, Stream.probe, _INDEX[level])
        probe = memory_level.probe_memory if level == "memory" else accumulator.probe_accumulator
        return probe(model, self.config, step, rng, *self._seen(model))

    def _seen(self, model: AtlasModel) -> tuple[Sequence[SeenTokens], str]:
        """What the memories make of some text, and its name."""
        length = max(memory_level.stretch(model.plan, self.config.haystack), self.config.haystack + 1)
        rng = generator(self.config.seed, Stream.probe, _INDEX["text"])
        text, name = self.text, "text"
        if text is None or len(text) < length:
            name = "noise"
            text = build_haystacks(rng, 1, length + TEXT_ROWS, {"noise": 1.0}, None)[0]
        device = model.embedding.weight.device
        return seen_tokens(model, text_rows(rng, text, TEXT_ROWS, length, device)), name
