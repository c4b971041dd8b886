"""Whether the rows of training and of validation come from the two parts of the text, as the data source gives them.

The parts themselves are compared before the start (`atlas/data/leakage.py`); a source may take its rows elsewhere.
"""

from __future__ import annotations

import numpy as np

from atlas.data.batch import Batch
from atlas.data.needles import Tokens

LONGEST = 128  # tokens of a row that are looked for
LEAST = 32  # of a row that is looked for: shorter ones stand anywhere


def standing(batch: Batch, text: Tokens, but_not_in: Tokens | None = None) -> tuple[int, int]:
    """Of the text rows of a batch on the CPU: how many stand in `text`, and how many there are.

    `but_not_in`: those that stand there as well are no proof, and are not counted as standing.
    """
    size = min(batch.inputs.shape[1], LONGEST)
    chosen = ~batch.recall & (batch.weights > 0).any(1)
    if size < LEAST or not bool(chosen.any()):
        return 0, 0
    rows = batch.inputs[chosen, :size].numpy().astype(text.dtype)
    found = _standing(rows, text)
    if but_not_in is not None and found:
        proofs = len(found) - len(_standing(np.stack(found), but_not_in))
        return proofs, len(rows)
    return len(found), len(rows)


def _standing(rows: Tokens, text: Tokens) -> list[Tokens]:
    whole = text.tobytes()

    def stands(wanted: bytes) -> bool:
        at = whole.find(wanted)
        while at >= 0 and at % text.itemsize:  # between two ids
            at = whole.find(wanted, at + 1)
        return at >= 0

    return [row for row in rows if stands(row.tobytes())]
