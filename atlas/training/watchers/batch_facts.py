"""What a batch tells of its data source. All batches are on the CPU, as the source gave them.

Legend: B sequences, T tokens, N rows.
"""

from __future__ import annotations

from zlib import crc32

from torch import Tensor

from atlas.data.batch import Batch
from atlas.data.needles import Tokens
from atlas.training.watchers.observations import BatchFacts

LONG = 48  # tokens that tell a row from others
SEARCHED = 2**27  # bytes of text times rows: 40 ms on a CPU core
PIECE = 2**20  # tokens of text that are copied at once


def digest(batch: Batch) -> int:
    """A sum over its rows, so that the digests of several processes add up to that of the whole batch."""
    return sum(row_digests(batch.inputs))


def row_digests(rows: Tensor) -> list[int]:
    return [crc32(row.tobytes()) for row in rows.numpy()]


def batch_facts(batch: Batch) -> BatchFacts:
    """Of a batch on the CPU, as the data source gave it."""
    counted = batch.weights > 0
    text = ~batch.recall[:, None].expand_as(counted)
    symbols = batch.targets[counted & text]
    inner = counted[:, :-1]  # the target of the last input is in no input
    same = batch.targets[:, :-1] == batch.inputs[:, 1:]
    return BatchFacts(
        commonest=symbols.bincount().max().item() / symbols.numel() if symbols.numel() else 0.0,
        padding=1 - symbols.numel() / max(int(text.sum()), 1) if bool(text.any()) else 0.0,
        next_tokens=_share(same, inner),
        copies=_share(batch.targets == batch.inputs, counted),
        counted_tails=_counted_tails(batch),
        masked=_masked(batch.targets, counted, text),
        counted=frozenset(symbols.unique().tolist()),
        different_rows=min(_different(batch.inputs[rows & counted.any(1)]) for rows in (batch.recall, ~batch.recall)),
    )


def _masked(targets: Tensor, counted: Tensor, text: Tensor) -> dict[int, int]:
    """Of text rows: id -> how many targets of it do not count although both of their neighbours do."""
    alone = ~counted[:, 1:-1] & counted[:, :-2] & counted[:, 2:] & text[:, 1:-1]
    ids, numbers = targets[:, 1:-1][alone].unique(return_counts=True)
    return dict(zip(ids.tolist(), numbers.tolist(), strict=True))


def _counted_tails(batch: Batch) -> float:
    """Share of the text rows whose last T / 8 tokens, and 8 at least, are one symbol, and count as targets."""
    rows, last = ~batch.recall, max(batch.targets.shape[1] // 8, 8)
    targets, inputs, counted = (part[rows, -last:] for part in (batch.targets, batch.inputs, batch.weights > 0))
    alike = ((targets == targets[:, -1:]) & (inputs == targets) & counted).all(dim=1)
    return alike.double().mean().item() if len(alike) else 0.0


def _different(rows: Tensor) -> float:
    """Share of different ones among rows [N, T]; 1 for none."""
    return len({row.tobytes() for row in rows.numpy()}) / len(rows) if len(rows) else 1.0


def continued_share(before: Batch | None, batch: Batch) -> float | None:
    """Of the rows that are not fresh, the share whose first input is the last target of the same row one step before.
    None without such a row; a target without weight may be anything."""
    if before is None or len(before.fresh) != len(batch.fresh):
        return None
    goes_on = ~batch.fresh & (before.weights[:, -1] > 0)
    return _share(batch.inputs[:, 0] == before.targets[:, -1], goes_on) if bool(goes_on.any()) else None


def places(text: Tokens, batch: Batch) -> list[float]:
    """Where text rows of a batch stand in the training text, in [0, 1]: those that stand there once.

    A row is known by its middle tokens. Of a long text fewer rows are looked for, and the text is copied in pieces.
    """
    first = (batch.inputs.shape[1] - LONG) // 2
    if first < 0:
        return []
    rows = batch.inputs[~batch.recall, first : first + LONG][: SEARCHED // text.nbytes]
    known = [row.tobytes() for row in rows.numpy().astype(text.dtype)]
    found: list[set[int]] = [set() for _ in known]  # places in bytes
    for start in range(0, len(text), PIECE):
        piece = text[start : start + PIECE + LONG - 1].tobytes()
        for row, places_of_row in zip(known, found, strict=True):
            if (at := piece.find(row)) >= 0:
                places_of_row |= {start * text.itemsize + place for place in (at, piece.rfind(row))}
    once = [min(places_of_row) for places_of_row in found if len(places_of_row) == 1]
    return [place / text.nbytes for place in once if place % text.itemsize == 0]


def _share(holds: Tensor, among: Tensor) -> float:
    count = int(among.sum())
    return int((holds & among).sum()) / count if count else 1.0
