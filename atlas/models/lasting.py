"""Reading a text longer than those of training: what the global memory writes at a small rate lasts for a period only.

A needle is written at a large rate, ordinary text at small ones. In a text of many times the trained length the small
writes together bury the needle. So a second memory, the lasting one, learns from the large rates alone, and the global
memory goes on from it at the start of every period. Nothing changes within the first period.

Legend: N sequences x heads, T tokens, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atlas.models.plan import Lasting
from atlas.ops.chunk_scan import Scan, ScanState
from atlas.ops.dual_form import ChunkInputs, cut_fields


def read_lasting(
    scan: Scan, whole: ScanState, lasts: ScanState, tokens: ChunkInputs, position: int, lasting: Lasting
) -> tuple[Tensor, ScanState, ScanState]:
    """A stretch [N, T, ...] whose first token is number `position` -> outputs [N, T, d] and both states after it.

    `whole`: of what lasts and all writes of the open period; `lasts`: of what lasts.
    """
    large = tokens._replace(rate=tokens.rate.masked_fill(tokens.rate < lasting.rate, 0))
    outputs: list[Tensor] = []
    first, total = 0, tokens.rate.shape[1]
    while first < total:
        offset = (position + first) % lasting.period
        end = min(first + lasting.period - offset, total)
        out, whole = scan(whole if offset else lasts, _part(tokens, first, end))
        _, lasts = scan(lasts, _part(large, first, end))
        outputs.append(out)
        first = end
    return torch.cat(outputs, dim=1), whole, lasts


def _part(tokens: ChunkInputs, first: int, end: int) -> ChunkInputs:
    return ChunkInputs(*cut_fields(tokens, lambda field: field[:, first:end]))
