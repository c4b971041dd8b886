"""Level `recall`: does the trained model find needles in token sequences that its attention cannot reach?

Legend: N sequences, L tokens, n questions of a sequence, b bytes of an answer.

A question counts as answered when every byte of its answer is the likeliest one, the bytes before it being given
(teacher forcing): the same as an exact match of greedy decoding. The control reads the same sequences with the memory
branch off; without a leak it cannot be above chance, since every needle that counts lies beyond the reach of
attention, layers * (window - 1) tokens. A control answers with the likeliest byte among those that an answer can be,
so that a model which only knows what answers look like is at chance, not below it.

Recall is judged by key: several needles, one of them asked for. A model that keeps the first or the last value it saw,
whatever the key, finds every single needle; of several it must find clearly more than the best such reader
(`key_blind.py`): the lower end of its share's confidence interval lies above that reader's share of the same samples.
The others stand where other questions ask (`depth_layout`), so a reader who knows the depths finds one depth's needles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan, sqrt

import numpy as np
import torch
from numpy.typing import NDArray

from atlas.config import JUDGED_TASK, NIAHConfig
from atlas.config.console import log
from atlas.data.needles import NeedleFormat
from atlas.data.sampler import Stream, generator
from atlas.models.language_model import AtlasModel
from atlas.models.plan import MemoryMode
from atlas.probes.haystacks import Questions, build_questions, grid
from atlas.probes.key_blind import key_blind_readers, lower_bound
from atlas.probes.keys import memory_layers
from atlas.probes.result import NIAHResult, ProbeCell, judge
from atlas.probes.subject import Subject

LEVEL = "recall"
CONTROL_MARGIN = 0.05  # of the control above chance
CAUSALITY_TOLERANCE = 1e-3  # of the largest logit; round-off stays below 1e-5
CAUSALITY_ROWS = 2


@dataclass(frozen=True)
class Answers:
    """What a model answers, for every question that counts."""

    right: NDArray[np.bool_]
    likelihood: NDArray[np.float64]  # probability of the whole answer


def attention_reach(model: AtlasModel) -> int | None:
    """Tokens back that attention can see through all layers; None = all of them."""
    windows = [block.attention.window for block in model.mag_blocks]
    return None if 0 in windows else sum(window - 1 for window in windows)


def probe_recall(subject: Subject) -> NIAHResult:
    """Judged on the task `multi_key` in noise, over all depths beyond the reach of attention: at the trained length, or
    at the shortest of `settings.lengths` where these leave that out. All other cells are for tables."""
    model, settings, needles, trained_length = subject.model, subject.settings, subject.needles, subject.trained_length
    reach, has_memory = attention_reach(model), bool(memory_layers(model))
    lengths = settings.lengths or [trained_length * factor for factor in settings.length_factors]
    judged_length = trained_length if trained_length in lengths else min(lengths)
    only = None if subject.every_task else (JUDGED_TASK, judged_length)
    cells, judged = [], []
    places: Counter[int] = Counter()  # of the judged needles, in tokens back from the question
    for questions in grid(settings, needles, subject.text, lengths, only):
        log.info("level recall: task %s, %d tokens", questions.task, questions.length)
        cell = _cell(model, settings, questions, reach, has_memory)
        cells.append(cell)
        if cell.task == JUDGED_TASK and cell.length == judged_length and cell.samples:
            judged.append(cell)
            places[int(questions.distance[0, 0])] += cell.samples
    chance = float(needles.value_alphabet) ** -needles.value_bytes
    control = _weighted(judged, [cell.control for cell in judged])
    faults, leak = [], causality_error(model, settings, needles, judged_length)
    if leak > CAUSALITY_TOLERANCE:
        faults.append(f"later tokens change the logits before them by {leak:.1e} of the largest: the future leaks")
    trials = sum(cell.samples for cell in judged)
    if control is not None and control > chance + control_margin(chance, trials):
        faults.append(f"the control finds {control:.1%} without the memory, chance is {chance:.1%}: a leak")
    details = {"causality_error": leak, "control_margin": control_margin(chance, trials) if trials else float("nan")}
    likelihood = _weighted(judged, [cell.likelihood for cell in judged])
    frozen = _weighted(judged, [cell.frozen for cell in judged])
    details |= {} if likelihood is None else {"likelihood": likelihood}
    details |= {} if frozen is None else {"frozen": frozen}
    details |= _by_span(judged)
    accuracy = _weighted(judged, [cell.accuracy for cell in judged])
    certain = None if accuracy is None else lower_bound(round(accuracy * trials), trials)
    details |= {} if certain is None else {"certain": certain}
    readers = list(judged[0].key_blind) if judged else []
    blind = {reader: _weighted(judged, [cell.key_blind[reader] for cell in judged]) or 0.0 for reader in readers}
    blind |= {"value at one depth": _by_place(places, chance)} if judged else {}
    details |= {f"key-blind, {reader}": share for reader, share in blind.items()}
    return judge(
        step=subject.step,
        level=LEVEL,
        threshold=settings.threshold,
        accuracy=accuracy,
        control=control,
        chance=chance,
        key_blind=max(blind.values(), default=None),
        certain=certain,
        faults=faults,
        missing=_why_missing(model, cells, judged, reach, judged_length, len(places)),
        cells=cells,
        details=details,
    )


def control_margin(chance: float, trials: int) -> float:
    """How far the control may lie above chance: 5 points, or three standard errors where the samples are few."""
    return max(CONTROL_MARGIN, 3 * sqrt(chance * (1 - chance) / max(trials, 1)))


def _why_missing(
    model: AtlasModel,
    cells: Sequence[ProbeCell],
    judged: Sequence[ProbeCell],
    reach: int | None,
    length: int,
    places: int,
) -> str:
    if not memory_layers(model):
        return "the model has no memory; the control is its own recall"
    if reach is None:
        return "attention sees the whole sequence (model.window=0)"
    if length <= reach:
        return f"{length} tokens are not more than the {reach} that attention reaches"
    if not judged:
        return next((cell.reason for cell in cells if cell.reason), "no needle lies beyond the reach of attention")
    if places == 1 and judged[0].accuracy is not None:
        depths = ", ".join(f"{cell.depth:g}" for cell in judged)
        where = f"only one place lies beyond the reach of attention (niah.depths: {depths})"
        return f"{where}, and then it tells which needle is asked for"
    return ""


def _by_place(places: Counter[int], chance: float) -> float:
    """Share that a reader finds who knows the depths of the questions, and answers with the value at one of them.

    In a short sequence, depths that are close are one place.
    """
    most = max(places.values()) / places.total()
    return most + (1 - most) * chance


def _by_span(cells: Sequence[ProbeCell]) -> dict[str, float]:
    """Accuracy of needles in the question's own shard (local memory) and of those in earlier ones (global memory)."""
    found: dict[str, float] = {}
    for name, own in (
        ("same_shard", [cell for cell in cells if cell.span == "same shard"]),
        ("earlier_shards", [cell for cell in cells if cell.span.endswith("back")]),
    ):
        accuracy = _weighted(own, [cell.accuracy for cell in own])
        found |= {} if accuracy is None else {name: accuracy}
    return found


def _weighted(cells: Sequence[ProbeCell], values: Sequence[float | None]) -> float | None:
    """Mean over needles; None where one is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return sum(cell.samples * value for cell, value in zip(cells, known, strict=True)) / sum(c.samples for c in cells)


def _cell(
    model: AtlasModel, settings: NIAHConfig, questions: Questions, reach: int | None, has_memory: bool
) -> ProbeCell:
    cell = ProbeCell(questions.task, questions.haystack, questions.length, questions.depth, chance=questions.chance)
    if questions.missing:
        return replace(cell, reason=questions.missing)
    if reach is None:
        return replace(cell, reason="attention sees the whole sequence")
    counted = questions.distance - 1 > reach
    if not counted.any():
        return replace(cell, reason=f"the needle lies within the {reach} tokens that attention reaches")
    off = answer(model, questions, counted, MemoryMode.off, guess=True)
    cell = replace(
        cell,
        span=span(questions, counted, model.plan.shard),
        samples=int(counted.sum()),
        control=_finite_mean(off),
        key_blind=key_blind_readers(questions, counted),
    )
    if not has_memory:
        return cell
    learn = answer(model, questions, counted, MemoryMode.learn)
    finite = bool(np.isfinite(learn.likelihood).all())
    frozen = answer(model, questions, counted, MemoryMode.frozen, guess=True) if settings.frozen else None
    return replace(
        cell,
        accuracy=_finite_mean(learn),
        likelihood=float(learn.likelihood.mean()) if finite else None,
        frozen=_finite_mean(frozen) if frozen is not None else None,
        reason="" if finite else "the outputs are not finite",
    )


def _finite_mean(answers: Answers) -> float | None:
    return float(answers.right.mean()) if np.isfinite(answers.likelihood).all() else None


def span(questions: Questions, counted: NDArray[np.bool_], shard: int | None) -> str:
    """Which memory a question needs: the local ones hold their own shard only, the global one the shards before it."""
    if shard is None:
        return "no shards"
    asked = questions.place[..., 0][counted]
    back = asked // shard - (asked - questions.distance[counted]) // shard
    if (back != back[0]).any():
        return "mixed"
    return "same shard" if back[0] == 0 else f"{back[0]} shard{'s' if back[0] > 1 else ''} back"


def answer(
    model: AtlasModel, questions: Questions, counted: NDArray[np.bool_], mode: MemoryMode, *, guess: bool = False
) -> Answers:
    """The model's answers to the questions that count, in forward passes of at most `tokens_at_once` tokens.

    `guess`: the likeliest of the question's candidates is taken, not of the whole vocabulary.
    """
    device = model.embedding.weight.device
    candidates = torch.from_numpy(questions.candidates).to(device)
    rows = max(1, model.tokens_at_once // questions.length)
    right, likelihood = [], []
    for first in range(0, len(questions.inputs), rows):
        part = slice(first, first + rows)
        inputs, place, wanted = (
            torch.from_numpy(np.ascontiguousarray(field[part])).to(device)
            for field in (questions.inputs, questions.place, questions.answer)
        )
        logits = model(inputs, mode=mode).logits
        at = logits[torch.arange(len(inputs), device=device)[:, None, None], place].float()  # [N, n, b, vocabulary]
        chosen = at.log_softmax(-1).gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
        chose = candidates[at[..., candidates].argmax(-1)] if guess else at.argmax(-1)
        right.append((chose == wanted).all(-1).cpu().numpy())
        likelihood.append(chosen.sum(-1).double().exp().cpu().numpy())
    return Answers(np.concatenate(right)[counted], np.concatenate(likelihood)[counted])


def causality_error(model: AtlasModel, settings: NIAHConfig, needles: NeedleFormat, length: int) -> float:
    """Largest change of the logits up to a place when all tokens after it change, relative to the largest logit.

    The place lies inside the second chunk, shard and global chunk wherever those are longer than a few tokens. Not a
    number where the logits are not finite, or no needle fits into the length.
    """
    few = replace(settings, samples=CAUSALITY_ROWS)
    length = min(length, max(2 * max(model.plan.global_size, model.plan.shard or 0), 8 * needles.slot))
    questions = build_questions(generator(settings.seed, Stream.probe, 0), few, needles, None, "single", length, 0.0)
    if questions.missing:
        return nan
    tokens = torch.from_numpy(questions.inputs).to(model.embedding.weight.device)
    cut = length // 2 + 5 if length > 12 else length // 2
    other = tokens.clone()
    other[:, cut:] = (other[:, cut:] + 1) % model.embedding.num_embeddings
    before = [model(version, mode=MemoryMode.learn).logits[:, :cut].float() for version in (tokens, other)]
    change = (before[0] - before[1]).abs().max() / before[0].abs().max().clamp(min=1e-8)
    return float(change) if isfinite(float(change)) else nan
