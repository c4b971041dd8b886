"""The questions of the level `recall`: needles in token sequences, one batch of them per cell of the grid.

Legend: N sequences, L tokens, n questions of a sequence, b bytes of an answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from atlas.config import JUDGED_TASK, NIAHConfig
from atlas.data.haystack import build_haystacks
from atlas.data.layout import depth_layout
from atlas.data.mqar import IGNORED, mqar_sequences
from atlas.data.needles import NeedleFormat, RecallSequences, Tokens, write_needles
from atlas.data.ruler import DIGITS, NUMBERS, ruler_in_ids, ruler_sequences
from atlas.data.sampler import Stream, generator

MQAR_PAIRS_MAX = 64  # zoology: 4, 8, 16, 64 pairs in 64, 128, 256, 512 tokens
NONE_SEEN = np.zeros((0, 0, 0, 0), dtype=np.int64)
MULTI_KEY = ("multi_key", "multi_key_text", "multi_query")


@dataclass(frozen=True)
class Questions:
    """Sequences with questions; `missing` says why there are none."""

    task: str
    haystack: str
    length: int
    depth: float | None
    chance: float
    inputs: NDArray[np.int64]  # [N, L]
    place: NDArray[np.int64]  # [N, n, b]: position whose logits give each answer byte
    answer: NDArray[np.int64]  # [N, n, b]
    distance: NDArray[np.int64]  # [N, n]: tokens from a question back to its needle
    seen: NDArray[np.int64]  # [N, n, shown, b]: values shown before the question, in order, then -1
    candidates: NDArray[np.int64]  # tokens that an answer byte can be: a guess among them is right by chance
    missing: str = ""


def grid(
    settings: NIAHConfig,
    needles: NeedleFormat,
    text: Tokens | None,
    lengths: list[int],
    only: tuple[str, int] | None = None,
) -> Iterator[Questions]:
    """The cells of the depth x length grid of every task, or `only` those of one task at one length.

    A cell has the same needles at every step, whatever is left out.
    """
    index = 0
    for task in dict.fromkeys((JUDGED_TASK, *settings.tasks)):
        everywhere = settings.all_depths or task == JUDGED_TASK
        depths = settings.depths if everywhere else settings.depths[:1]
        for length in lengths:
            for depth in [None] if task == "mqar" else depths:
                rng = generator(settings.seed, Stream.probe, index)
                index += 1
                if only in (None, (task, length)):
                    yield build_questions(rng, settings, needles, text, task, length, depth)


def build_questions(
    rng: np.random.Generator,
    settings: NIAHConfig,
    needles: NeedleFormat,
    text: Tokens | None,
    task: str,
    length: int,
    depth: float | None,
) -> Questions:
    """`settings.samples` sequences of a task with the needle at a depth, and others where the other depths are."""
    haystack = {"text": "text", "multi_key_text": "text", "ruler": "text", "mqar": "random"}.get(task, "noise")
    chance = {"mqar": 1 / (needles.symbols.vocabulary - needles.symbols.vocabulary // 2), "ruler": 1 / NUMBERS}.get(
        task, float(needles.value_alphabet) ** -needles.value_bytes
    )
    if haystack == "text" and (text is None or len(text) <= length):
        return _missing(task, haystack, length, depth, chance, f"no text of more than {length} tokens")
    try:
        if depth is None:
            return _mqar(rng, settings.samples, length, chance, needles.symbols.vocabulary)
        if task == "ruler":
            pieces = needles.symbols.ruler
            hay = build_haystacks(rng, settings.samples, length + 1, {"text": 1.0}, text, needles.symbols)
            if pieces is None:
                sequences = ruler_sequences(rng, hay, length=length, depth=depth)
                digits = np.arange(ord("0"), ord("9") + 1)
            else:
                sequences = ruler_in_ids(rng, hay, pieces, length=length, depth=depth)
                digits = pieces.digits.astype(np.int64)
            found = _from_sequences(task, haystack, length, depth, chance, sequences, DIGITS, digits)
            return replace(found, seen=found.answer[:, :, None])
        pairs = 1 + (settings.distractors if task in MULTI_KEY else 0)
        queries = pairs if task == "multi_query" else 1
        starts, shown = depth_layout(
            rng,
            settings.samples,
            length,
            slot=needles.slot,
            pairs=pairs,
            queries=queries,
            depth=depth,
            depths=settings.depths,
        )
    except ValueError as error:  # the needles do not fit into so few tokens
        return _missing(task, haystack, length, depth, chance, str(error))
    events = needles.draw(rng, settings.samples, pairs)
    hay = build_haystacks(rng, settings.samples, length + 1, {haystack: 1.0}, text, needles.symbols)
    sequences = write_needles(events, starts, shown, hay, needles.value_bytes)
    values = needles.values.astype(np.int64)
    found = _from_sequences(task, haystack, length, depth, chance, sequences, needles.value_bytes, values)
    return replace(found, seen=_seen(events[..., -needles.value_bytes :], starts, shown, queries))


def _seen(values: Tokens, starts: NDArray[np.int64], shown: NDArray[np.int64], queries: int) -> NDArray[np.int64]:
    """Values [N, pairs, b] of all events before each of the questions, which are the last events of a sequence."""
    order = np.take_along_axis(shown, np.argsort(starts, axis=1), axis=1)  # pairs in order of place
    values_in_order = np.take_along_axis(values, order[..., None], axis=1).astype(np.int64)
    count, events, size = values_in_order.shape
    seen = np.full((count, queries, events - 1, size), -1, dtype=np.int64)
    for query in range(queries):
        before = events - queries + query
        seen[:, query, :before] = values_in_order[:, :before]
    return seen


def _from_sequences(
    task: str,
    haystack: str,
    length: int,
    depth: float,
    chance: float,
    sequences: RecallSequences,
    answer_bytes: int,
    candidates: NDArray[np.int64],
) -> Questions:
    """The bytes of an answer are neighbours, so that the marked targets of a row fall into groups in order."""
    count = len(sequences.tokens)
    place = np.nonzero(sequences.answers)[1].reshape(count, -1, answer_bytes)
    row = np.arange(count)[:, None, None]
    tokens = sequences.tokens.astype(np.int64)
    return Questions(
        task, haystack, length, depth, chance,
        tokens[:, :-1], place, tokens[row, place + 1], sequences.distance[row, place][..., 0], NONE_SEEN, candidates,
    )  # fmt: skip


def _mqar(rng: np.random.Generator, count: int, length: int, chance: float, vocabulary: int) -> Questions:
    """Keys and values are ids of the model's vocabulary; the answer is asked for where the key comes again."""
    pairs = MQAR_PAIRS_MAX if length >= 512 else max(1, length // 16)
    sequences = mqar_sequences(rng, count, length, vocabulary=vocabulary, pairs=pairs, random_filler=False)
    place = np.nonzero(sequences.labels != IGNORED)[1].reshape(count, -1)
    answer = np.take_along_axis(sequences.labels, place, axis=1)
    values = sequences.inputs[:, 1 : 2 * pairs : 2]
    needle = 2 * (values[:, None, :] == answer[:, :, None]).argmax(axis=2)  # place of the key of the pair
    return Questions(
        "mqar", "none", length, None, chance,
        sequences.inputs, place[..., None], answer[..., None], place - needle,
        np.broadcast_to(values[:, None, :, None], (count, pairs, pairs, 1)), np.arange(vocabulary // 2, vocabulary),
    )  # fmt: skip


def _missing(task: str, haystack: str, length: int, depth: float | None, chance: float, reason: str) -> Questions:
    none, flat = np.zeros((0, 0, 0), dtype=np.int64), np.zeros((0, 0), dtype=np.int64)
    return Questions(task, haystack, length, depth, chance, flat, none, none, flat, NONE_SEEN, flat.reshape(-1), reason)
