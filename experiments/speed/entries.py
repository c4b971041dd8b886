"""Which contestants a part races, and at which shapes; all of it checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from experiments.speed.contestants import Shape, configuration
from experiments.speed.names import BRANCH, BRANCHES, CONTEXTS, DECODE, MODELS, PLAIN, TITANS, WHOLE
from experiments.speed.options import Options

Entry = tuple[str, Shape]
LANGUAGE_MODELS = (*PLAIN, "attention", *MODELS)
WITH_STATE = ("transformer_atlas", "attention", *MODELS)
BESIDE_TITANS = ("transformer", "gd_c16", *TITANS)  # the longest step last


def entries(part: str, options: Options) -> list[Entry]:
    """Contestants and shapes of a part, in the order in which they take their first turns."""
    shape = Shape(options.model, options.batch, options.sequence)
    if part == "whole":
        return _each(_chosen(options, WHOLE, LANGUAGE_MODELS), [shape])
    if part == "titans":
        return _each(BESIDE_TITANS, [shape])
    if part == "decode":
        ends = sorted({min(options.contexts), max(options.contexts)})
        return _each(_chosen(options, DECODE, WITH_STATE), [Shape(options.model, 1, end) for end in ends])
    names = _chosen(options, CONTEXTS, LANGUAGE_MODELS) if part == "contexts" else _chosen(options, BRANCH, BRANCHES)
    shapes = [Shape(options.model, options.step_tokens // context, context) for context in options.contexts]
    return _each(names, shapes)


def check_entries(options: Options) -> None:
    """Raises `ConfigError` for a length that a model cannot take."""
    for part in options.parts:
        for name, shape in entries(part, options):
            if name not in TITANS:
                configuration(name, shape)


def _each(names: Sequence[str], shapes: Sequence[Shape]) -> list[Entry]:
    return [(name, shape) for shape in shapes for name in names]


def _chosen(options: Options, own: Sequence[str], possible: Iterable[str]) -> list[str]:
    """The contestants that were asked for and that the part can take, else its own."""
    return [name for name in options.contestants if name in possible] or list(own)
