"""A second control of the level `recall`: a model that was trained without a memory answers the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from atlas.config import RECALL
from atlas.models.language_model import AtlasModel
from atlas.probes.keys import memory_layers
from atlas.probes.niah import NIAHProbe
from atlas.probes.result import NIAHResult


def with_trained_control(
    results: Sequence[NIAHResult], probe: NIAHProbe, control: AtlasModel, step: int
) -> list[NIAHResult]:
    """`results` with `without` in the recall cells: the same needles, by `control` after `step` training steps.

    Raises `ValueError` for a model with a memory.
    """
    if memory_layers(control):
        raise ValueError("the control has a memory")
    recall = NIAHProbe(
        replace(probe.config, levels=[RECALL.name], frozen=False),
        probe.needles,
        sequence=probe.sequence,
        text=probe.text,
    )
    (answers,) = recall.run(control, step, every_task=True)
    # A model without a memory has its own recall in the control.
    return [_merged(result, [cell.control for cell in answers.cells]) for result in results]


def _merged(result: NIAHResult, without: Sequence[float | None]) -> NIAHResult:
    if result.level != RECALL.name:
        return result
    cells = [replace(cell, without=value) for cell, value in zip(result.cells, without, strict=True)]
    return replace(result, cells=tuple(cells))
