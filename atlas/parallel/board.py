"""What the ranks tell each other in torchrun's store, where the connection between them is broken."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

from torch.distributed.distributed_c10d import Store

from atlas.parallel.process_state import is_running
from atlas.parallel.ranks import RankError, log_name

ENDED = "ended"  # rank 0 has written the end of the run
REFUSED = "refused"  # rank 0 knows why the ranks do not start, and tells it
REPORT_SECONDS = {"gone": 3.0, "late": 1.0}  # for the ranks that are left to say that they are


class Board:
    """The store may be gone as well: then nothing is written, and nothing is found."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self._store, self._rank, self._world = store, rank, world
        store.set(f"process/{rank}", f"{socket.gethostname()} {os.getpid()}")

    def write(self, key: str) -> None:
        with suppress(RuntimeError):
            self._store.set(key, "")

    def has(self, key: str) -> bool:
        with suppress(RuntimeError):
            return self._store.check([key])
        return False

    def write_failure(self, reason: str) -> None:
        """Of this rank."""
        with suppress(RuntimeError):
            self._store.set(f"failed/{self._rank}", reason)

    def runs(self, rank: int) -> bool | None:
        """Whether its process runs; None for one on another machine."""
        host, _, process = self._of("process", rank).partition(" ")
        return is_running(int(process)) if host == socket.gethostname() else None

    def explain(self, error: str, here: str, limit: str) -> RankError:
        """Which rank is missing. Those that are left tell each other that they are.

        `error`: of the connection; `here`: where the run is; `limit`: how long it waits for a rank.
        """
        seen = "late" if "Timed out" in error else "gone"
        with suppress(RuntimeError):
            self._store.set(f"left/{self._rank}", seen)
        deadline = time.monotonic() + REPORT_SECONDS[seen]
        missing = self._missing()
        while time.monotonic() < deadline and not any(self.runs(rank) is False for rank in missing):
            time.sleep(0.1)
            missing = self._missing()
        everyone = range(self._world)
        if failed := [rank for rank in everyone if self._of("failed", rank)]:
            reason = self._of("failed", failed[0])
            return RankError(f"rank {failed[0]} failed at {here}: {reason} (its log: {log_name(failed[0])})")
        gone = [rank for rank in missing if self.runs(rank) is False]
        if missing and not gone and "late" in [self._of("left", rank) for rank in everyone]:
            return RankError(f"{_named(missing)} did not reach {here} within {limit}")
        gone = gone or [rank for rank in missing if self.runs(rank) is None]
        if gone:
            are = "is" if len(gone) == 1 else "are"
            return RankError(f"{_named(gone)} {are} gone at {here} (its log: {log_name(gone[0])})")
        with_whom = f" to {_named(missing)}" if missing else " between the ranks"
        return RankError(f"the connection{with_whom} broke at {here}: {' '.join(error.split())[:200]}")

    def _missing(self) -> list[int]:
        return [rank for rank in range(self._world) if rank != self._rank and not self._of("left", rank)]

    def _of(self, what: str, rank: int) -> str:
        """What a rank has written; "" for nothing."""
        key = f"{what}/{rank}"
        with suppress(RuntimeError):
            if self.has(key):
                return self._store.get(key).decode()
        return ""


def _named(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
