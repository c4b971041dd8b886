"""The recall task: needles in a haystack of bytes, and queries for them beyond the reach of attention.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, log

import numpy as np
from numpy.typing import NDArray

from atlas.config import VOCABULARY, require
from atlas.data.batch import Batch, rows_of_batch
from atlas.data.corpus import Corpus, Encoding, ValidationShare, load_corpus
from atlas.data.haystack import HAYSTACKS, build_haystacks
from atlas.data.layout import Layout, random_layout
from atlas.data.needles import NeedleFormat, RecallSequences, Tokens, write_needles
from atlas.data.sampler import VALIDATION_SEED, Random, RowGenerators, Stream, generator, of_rows
from atlas.data.source import HandedOver
from atlas.data.symbols import BYTE_SYMBOLS, KEY_ALPHABET, VALUE_ALPHABET, Symbols

KEY_BYTES_MAX = 4


@dataclass(frozen=True, kw_only=True)
class RecallTask:
    """What the needle sequences look like.

    Dense sequences have many answers for their length, from which recall is learnt; sparse ones have the long distances
    and the long haystack of a needle probe.

    The distance from a query to the pair's latest earlier event is more than `distance_min` tokens. During the first
    `curriculum_steps` steps it is also at most `distance_max(step)`, which grows from about twice `distance_min` to
    the whole sequence: the haystack between needle and query grows, while sequences keep their length.
    """

    pairs: int  # needles of a sequence
    queries: int  # questions of a sequence; a pair may be asked for more than once, or never
    sparse_share: float  # share of sequences that are sparse: few needles in a long haystack
    sparse_pairs: int  # needles of a sparse sequence
    sparse_queries: int
    key_bytes: int
    value_bytes: int
    value_alphabet: int  # different bytes that a value byte can be: chance is 1 / value_alphabet
    distance_min: int  # tokens; attention of `layers` layers reaches layers * (window - 1) back
    haystack: Mapping[str, float]  # relative share of each kind of haystack, see `build_haystacks`
    curriculum_steps: int  # 0 = full distances from the start
    filler_weight: float  # loss weight of every target that is no answer
    symbols: Symbols = field(init=False, default=BYTE_SYMBOLS)  # of the data's vocabulary

    def __post_init__(self) -> None:
        counts = ("pairs", "queries", "sparse_pairs", "sparse_queries", "key_bytes", "value_bytes")
        lowest = {**dict.fromkeys(counts, 1), "distance_min": 0, "curriculum_steps": 0}
        for name, least in lowest.items():
            value = getattr(self, name)
            require(isinstance(value, int) and value >= least, f"data.recall.{name}", value, f"an integer >= {least}")
        require(self.key_bytes <= KEY_BYTES_MAX, "data.recall.key_bytes", self.key_bytes, f"<= {KEY_BYTES_MAX}")
        size, sizes = self.value_alphabet, len(VALUE_ALPHABET)
        holds = isinstance(size, int) and 2 <= size <= sizes
        require(holds, "data.recall.value_alphabet", size, f"an integer in [2, {sizes}]")
        share = self.sparse_share
        require(_is_weight(share) and share <= 1, "data.recall.sparse_share", share, "a number in [0, 1]")
        require(self.sparse_pairs <= self.pairs, "data.recall.sparse_pairs", self.sparse_pairs, f"<= {self.pairs}")
        require(
            self.sparse_queries <= self.queries, "data.recall.sparse_queries", self.sparse_queries, f"<= {self.queries}"
        )
        require(_is_weight(self.filler_weight), "data.recall.filler_weight", self.filler_weight, "a number >= 0")
        known = all(kind in HAYSTACKS and _is_weight(share) for kind, share in self.haystack.items())
        usable = known and sum(self.haystack.values()) > 0
        allowed = f"shares >= 0 of {list(HAYSTACKS)}, one of them > 0"
        require(usable, "data.recall.haystack", dict(self.haystack), allowed)
        keys = len(KEY_ALPHABET) ** self.key_bytes
        allowed = f"<= {keys}, the different keys of data.recall.key_bytes={self.key_bytes}"
        require(self.pairs <= keys, "data.recall.pairs", self.pairs, allowed)

    @property
    def format(self) -> NeedleFormat:
        return NeedleFormat(self.key_bytes, self.value_bytes, self.value_alphabet, self.symbols)

    def in_symbols(self, symbols: Symbols) -> RecallTask:
        """The same task, its needles and haystacks made of these ids."""
        task = copy(self)
        object.__setattr__(task, "symbols", symbols)
        return task

    @property
    def needs_text(self) -> bool:
        return self.haystack.get("text", 0) > 0

    def require_fit(self, sequence: int) -> None:
        """Refuse a task that does not fit into sequences of this many tokens."""
        slot, events = self.format.slot, self.pairs + self.queries
        one_pair = max((1 + self.queries) * slot - 1, 2 * slot)  # fits, at distance 0
        least = max(events * slot - 1, 2 * slot)
        allowed = (
            f">= {least}, into which data.recall.pairs + queries={events} events of {slot} bytes fit;"
            " or give fewer of both, or choose data=text"
        )
        require(sequence >= one_pair, "train.sequence", sequence, allowed)
        most = (sequence + 1) // slot - self.queries
        allowed = f"<= {most}: pairs + queries={events} events of {slot} bytes must fit into train.sequence={sequence}"
        require(self.pairs <= most, "data.recall.pairs", self.pairs, allowed)
        farthest = sequence - 2 * slot
        allowed = f"<= {farthest}, else no query fits into train.sequence={sequence}"
        require(self.distance_min <= farthest, "data.recall.distance_min", self.distance_min, allowed)

    def distance_max(self, step: int, length: int) -> int:
        """Largest distance between a query and the pair's latest event at a step, tokens."""
        progress = (step - 1) / self.curriculum_steps if self.curriculum_steps else 1.0
        short = min(2 * (self.distance_min + self.format.slot), length)
        return round(short + min(progress, 1.0) * (length - short))

    def sparse_rows(self, start: float, rows: range) -> NDArray[np.bool_]:
        """Which of `rows` are sparse, for a random `start` in [0, 1): of any n rows from 0 on, n `sparse_share` are,
        rounded up or down, and right on average for any n."""
        before = np.floor(start + np.arange(rows.start, rows.stop + 1) * self.sparse_share)
        sparse: NDArray[np.bool_] = before[1:] > before[:-1]
        return sparse

    def training_rows(self, seed: int, step: int, rows: range, length: int, text: Tokens | None) -> RecallSequences:
        """The sequences of `rows` at a training step, each a function of (seed, step, row)."""
        rng = RowGenerators.of_step(seed, Stream.recall, step, rows)
        sparse = self.sparse_rows(generator(seed, Stream.sparse, step).random(), rows)
        return self.generate(rng, sparse, length, distance_max=self.distance_max(step, length), text=text)

    def generate(
        self,
        rng: Random,
        sparse: NDArray[np.bool_],
        length: int,
        *,
        distance_max: int | None = None,
        text: Tokens | None = None,
    ) -> RecallSequences:
        """Sequences of `length` tokens with needles and queries at random places; `sparse` [N] tells which are."""
        tokens = np.empty((len(sparse), length + 1), dtype=self.symbols.dtype)
        distance = np.empty((len(sparse), length), dtype=np.int64)
        kinds = (~sparse, self.pairs, self.queries), (sparse, self.sparse_pairs, self.sparse_queries)
        for rows, pairs, queries in kinds:
            if not rows.any():
                continue
            some = of_rows(rng, rows)
            layout = random_layout(
                some,
                int(rows.sum()),
                length,
                slot=self.format.slot,
                pairs=pairs,
                queries=queries,
                distance_min=self.distance_min,
                distance_max=length if distance_max is None else distance_max,
            )
            filled = self.fill(some, layout, length, text=text)
            tokens[rows], distance[rows] = filled.tokens, filled.distance
        return RecallSequences(tokens, distance)

    def fill(self, rng: Random, layout: Layout, length: int, *, text: Tokens | None = None) -> RecallSequences:
        """Sequences of `length` tokens with this task's needles and haystack and a given layout (for probes)."""
        starts, pairs = layout
        events = self.format.draw(rng, len(starts), int(pairs.max()) + 1)
        haystack = build_haystacks(rng, len(starts), length + 1, self.haystack, text, self.symbols)
        return write_needles(events, starts, pairs, haystack, self.value_bytes)

    def weights(self, sequences: RecallSequences) -> NDArray[np.float32]:
        """Loss weight of every target: 1 for answer bytes, `filler_weight` for the rest."""
        return np.where(sequences.answers, 1.0, self.filler_weight).astype(np.float32)


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < inf


@dataclass(kw_only=True, eq=False)
class RecallData(HandedOver):
    """Batches of needle sequences only. `paths`, `encoding` and `validation_share` are used by text haystacks only."""

    vocabulary = VOCABULARY
    baseline_name = "chance baseline"

    recall: RecallTask
    paths: Sequence[str]
    encoding: Encoding
    validation_share: ValidationShare

    def __post_init__(self) -> None:
        self.recall.require_fit(self.sequence)

    @cached_property
    def corpus(self) -> Corpus | None:
        if not self.recall.needs_text:
            return None
        corpus = load_corpus(self.paths, self.encoding, self.validation_share)
        corpus.require_length(self.sequence)
        return corpus

    @property
    def needles(self) -> NeedleFormat:
        return self.recall.format

    def batch(self, step: int, rows: range | None = None) -> Batch:
        text = None if self.corpus is None else self.corpus.train
        rows = rows_of_batch(rows, self.batch_size)
        sequences = self.recall.training_rows(self.seed, step, rows, self.sequence, text)
        return self._to_batch(sequences, self.recall.weights(sequences))

    def validation(self, index: int) -> Batch:
        """Full distances, a text haystack from the validation part; answers only have weight."""
        rng = generator(VALIDATION_SEED, Stream.validation, index)
        text = None if self.corpus is None else self.corpus.validation
        sparse = self.recall.sparse_rows(rng.random(), range(self.batch_size))
        sequences = self.recall.generate(rng, sparse, self.sequence, text=text)
        return self._to_batch(sequences, sequences.answers.astype(np.float32))

    def baseline(self, batches: int) -> float:
        """Chance: only answer bytes count, and without the needle they are uniform over the value alphabet."""
        return log(self.recall.value_alphabet)

    def describe(self) -> dict[str, str | int | float]:
        corpus = {} if self.corpus is None else self.corpus.describe()
        return corpus | {"source": "needle sequences", "pairs": self.recall.pairs, "queries": self.recall.queries}

    def _to_batch(self, sequences: RecallSequences, weights: NDArray[np.float32]) -> Batch:
        rows = np.ones(len(weights), dtype=np.bool_)
        return Batch.from_tokens(sequences.tokens, weights, rows, rows.copy())
