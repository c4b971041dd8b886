"""`NIAHProbe`: runs the levels of the needle-in-a-haystack probes on a model."""

from __future__ import annotations

import time
from dataclasses import replace

from atlas.config import LEVELS, NIAHConfig, level_of
from atlas.config.components import named_callable
from atlas.config.console import log
from atlas.config.exits import place_of
from atlas.data.needles import NeedleFormat, Tokens
from atlas.models.language_model import AtlasModel
from atlas.probes.neutral import untouched
from atlas.probes.result import NIAHResult, judge
from atlas.probes.subject import Subject


class NIAHProbe:
    """The needles are the same every time.

    `text` are bytes to take real-text haystacks from; without it, the key levels see RULER's noise sentences instead.
    """

    def __init__(self, config: NIAHConfig, needles: NeedleFormat, *, sequence: int, text: Tokens | None = None) -> None:
        self.config, self.needles, self.sequence, self.text = config, needles, sequence, text

    def run(self, model: AtlasModel, step: int, *, every_task: bool = False) -> list[NIAHResult]:
        """A result per level. Nothing of the model, of its mode or of any random state is changed.

        `every_task`: not only what is judged, but every task and length of the settings, for a table.
        """
        results = []
        with untouched(model):
            subject = Subject(model, self.config, step, self.needles, self.sequence, self.text, every_task)
            for level in self.config.levels:
                log.info("level %s", level)
                began = time.perf_counter()
                result = _measured(level, subject)
                results.append(replace(result, level=level, seconds=time.perf_counter() - began))
        return results


def _measured(level: str, subject: Subject) -> NIAHResult:
    """A level of the user's own that fails is not measured: training does not depend on it."""
    probe = named_callable("niah.levels", level_of(level).probe)
    try:
        result = probe(subject)
        if not isinstance(result, NIAHResult):
            raise TypeError(f"must return what `judge` returns, not {type(result).__name__}")
    except Exception as error:  # code of the user's
        if level in LEVELS:
            raise
        why = " ".join(f"{type(error).__name__}: {error}".split())
        missing = f"{why} (at {place_of(error)})"
        log.warning("niah.levels=%s: not measured: %s", level, missing)
        return judge(step=subject.step, level=level, threshold=subject.settings.threshold, missing=missing)
    return result
