"""The batches of a run; on a GPU the next one is made by a thread while the device trains on this one."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from atlas.data.batch import Batch
from atlas.data.source import DataSource


class BatchAhead:
    """`take(n)` is batch n, or its `rows`. It depends on its number alone, so making it early changes nothing.

    A CPU has no core to spare: there a batch is made when it is taken.
    """

    def __init__(self, data: DataSource, device: torch.device, rows: range | None = None) -> None:
        self.data, self.rows = data, rows
        self._thread = ThreadPoolExecutor(1, "batches") if device.type == "cuda" else None
        self._next: tuple[int, Future[Batch]] | None = None

    def take(self, number: int) -> Batch:
        """Raises what `DataSource.batch` raises."""
        if self._thread is None:
            return self._batch(number)
        if self._next is None or self._next[0] != number:  # the first batch, or a rollback has left some out
            self._next = number, self._thread.submit(self._pinned, number)
        batch = self._next[1].result()
        self._next = number + 1, self._thread.submit(self._pinned, number + 1)
        return batch

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _pinned(self, number: int) -> Batch:
        """In pinned memory, so that the copy to the device does not hold up the host."""
        return self._batch(number).pinned()

    def _batch(self, number: int) -> Batch:
        return self.data.batch(number) if self.rows is None else self.data.batch(number, self.rows)
