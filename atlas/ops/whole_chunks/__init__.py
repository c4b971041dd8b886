"""Whole chunks at once, for rules that write the gradients of their own tokens: the fast path of `Scan`.

All forms have the same two functions, and `ENDS`, the chunk ends that the first one can apply:

    closed_chunks(end, start, kept, tokens, chunk, norm_max, prefix)    chunks in a row, each closed by the update `end`
    chunk_update(start, tokens, prefix)                                 one chunk or the start of one, not closed

`prefix`: token t reads what its chunk has written up to t; without it, the weights at the chunk's start.
"""

from __future__ import annotations

from types import ModuleType

from atlas.kernels.call import takes
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights
from atlas.ops.rules.rule import ChunkEnd
from atlas.ops.whole_chunks import cpp, triton
from atlas.ops.whole_chunks import torch as plain

LONGEST_PREFIX = 128  # tokens of a chunk whose Gram products still fit the cache


def chosen_form(
    start: FastWeights, tokens: ChunkInputs, chunk: int, *, prefix: bool, half: ChunkEnd | None = None
) -> ModuleType:
    """The kernels (`triton` on a GPU, `cpp` on a CPU) where they take chunks of these weights and tokens, else `torch`.

    `half`: products may be rounded to bf16, and the chunks are whole and end so.
    """
    if half is not None and triton.takes(half, start, tokens, chunk, prefix=prefix):
        return triton
    widths = *start.down.shape[1:], *start.up.shape[1:]
    fits = not (prefix and chunk > LONGEST_PREFIX) and takes(*start, *tokens, widths=widths)
    return cpp if fits else plain
