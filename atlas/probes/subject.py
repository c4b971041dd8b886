"""The input of a probe level: the model, the settings, and the material of its needles."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np

from atlas.config import NIAHConfig
from atlas.data.haystack import build_haystacks
from atlas.data.needles import NeedleFormat, Tokens
from atlas.data.sampler import Stream, generator
from atlas.models.language_model import AtlasModel
from atlas.models.plan import ChunkPlan
from atlas.probes.keys import SeenTokens, seen_tokens, text_rows

TEXT_ROWS = 2  # rows of text whose keys the key levels bury their needle under


class Place(IntEnum):
    """In the random stream of the probes. A number is never changed or reused: the needles of old runs depend on it.

    The cells of the level recall count from 0.
    """

    accumulator = 1 << 32
    memory = 1 << 33
    text = 1 << 34  # of `Subject.seen`
    memory_control = 1 << 35


@dataclass(frozen=True)
class Subject:
    """A model at a step, and how it is probed."""

    model: AtlasModel
    settings: NIAHConfig
    step: int
    needles: NeedleFormat
    trained_length: int  # tokens
    text: Tokens | None  # of text haystacks; None: the key levels see RULER's noise sentences instead
    every_task: bool  # False: only the cells that are judged

    def rng(self, place: Place) -> np.random.Generator:
        """The same at every step."""
        return generator(self.settings.seed, Stream.probe, place)

    @cached_property
    def seen(self) -> tuple[list[SeenTokens], str]:
        """Keys, values and rates of each layer on a text, and the text's name; one pass for all levels."""
        length, rng = stretch(self.model.plan, self.settings.haystack), self.rng(Place.text)
        text, name = self.text, "text"
        if text is None or len(text) < length:
            name = "noise"
            text = build_haystacks(rng, 1, length + TEXT_ROWS, {"noise": 1.0}, None, self.needles.symbols)[0]
        device = self.model.embedding.weight.device
        return seen_tokens(self.model, text_rows(rng, text, TEXT_ROWS, length, device)), name


def stretch(plan: ChunkPlan, haystack: int) -> int:
    """Tokens that the longest write of a key level needs, the needle included."""
    to_chunk_end = -(-(haystack + 1) // plan.global_size) * plan.global_size
    return max(to_chunk_end, haystack + 1, (plan.shard or 0) + 1)
