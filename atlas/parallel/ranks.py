"""What a run asks of the processes (ranks) that train it together. Imports no torch: one process needs none of it.

An instance of `Ranks` itself is one process alone: what the others would say is what this one says.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from atlas.config.exits import no_exit

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from atlas.parallel.relay import Relay
    from atlas.parallel.slices import Model, Slices

T = TypeVar("T")


class RankError(Exception):
    """The ranks cannot go on together: one is gone, late, or has other numbers. The message names it."""


def log_name(rank: int) -> str:
    """Of the log of a rank in the run folder."""
    return f"train.rank{rank}.log" if rank else "train.log"


def portable(error: BaseException) -> BaseException:
    """The error, or a RuntimeError that tells the same, where another process could not take it over."""
    try:
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    except Exception:  # an error of a library may fail in any way here
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


class Ranks:
    """Every rank calls a method at the same place, except where its description says `by one rank`."""

    rank, world, local_rank = 0, 1, 0
    step = 0  # that the ranks work on, for messages

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes the run folder and talks to the user."""
        return self.rank == 0

    @property
    def lowest(self) -> bool:
        """Whether no rank below this one is left: those are on this machine, and gone. By one rank."""
        return True

    @property
    def free_to_raise(self) -> bool:
        """Whether an exception raised here, by one rank, reaches all of them."""
        return True

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        return [value]

    def gather_rows(self, rows: Tensor) -> Tensor:
        """float64 [n, k], of the same shape on every rank -> [world * n, k], in the order of the ranks."""
        return rows

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, which alone calls it; its exception is raised on every rank.

        The others wait for as long as it takes: a process alone has no limit either.
        """
        return make()

    def settle(self, error: Exception | None) -> Exception | None:
        """What keeps the ranks from starting: the error of rank 0, or that of the first rank that has one.

        Each rank asks once, when it is ready (None) or where it fails; a later call returns what it is given.
        """
        return error

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Settle what is raised in this context: either every rank leaves it ready, or none. An exit is an error."""
        try:
            with no_exit():
                yield
        except Exception as error:
            theirs = self.settle(error)
            if theirs is None or theirs is error:
                raise
            raise theirs from None
        if (theirs := self.settle(None)) is not None:
            raise theirs

    def tells(self, error: BaseException) -> bool:
        """Whether this rank tells the user of `error`: rank 0, or the one that has it alone. By one rank."""
        return self.first

    def limit(self, step_timeout_s: float) -> None:
        """From now on a rank that is later than this for a step ends the run."""

    def part(self, reason: str) -> None:
        """From now on this rank waits for no other: it ends by itself, for this reason. By one rank."""

    def at_end(self, action: Callable[[], None]) -> str:
        """Rank 0 carries out the action; the others wait for it, unless they have parted.

        Returns which rank is lost; "" where none is. Raises `RankError` where rank 0 may not have done it.
        """
        action()
        return ""

    def losing(self) -> AbstractContextManager[None]:
        """In this context an error of the connection between the ranks becomes a `RankError`. By one rank."""
        return nullcontext()

    def replicate(self, module: nn.Module, device: torch.device, *, some_unused: bool) -> nn.Module:
        """`module` with gradients that are the sums over all ranks. `some_unused`: not every parameter gets one."""
        return module

    def apart(self, module: nn.Module) -> AbstractContextManager[None]:
        """Backward passes in this context add to the rank's own gradients: the next one outside of it sums them."""
        return nullcontext()

    def relay(self, parts: int) -> Relay | None:
        """Between the ranks that share sequences, `parts` neighbours each; None where every rank has whole ones."""
        return None

    @property
    def reorders(self) -> bool:
        """Whether the first backward pass changes the order in which gradients are summed afterwards."""
        return False

    def slices(self, model: Model, units: Sequence[nn.Module], device: torch.device) -> Slices[Model]:
        """Cut the weights of the model, in place, into a slice for each rank (FSDP2). `units`: whole one at a time."""
        raise NotImplementedError("one process has nothing to slice")

    def write_tensors(self, folder: Path, tensors: Mapping[str, Tensor]) -> str:
        """Write slices, and a share of plain tensors, into a folder that all ranks see; returns why not, or ""."""
        from atlas.parallel.tensor_writer import write

        return write(folder, tensors, None)

    def whole(self, tensor: Tensor) -> Tensor:
        """The tensor of all slices; a plain one as it is."""
        return tensor

    def sum_of_slices(self, sums: Tensor) -> Tensor:
        """Sums [n, k] over slices, over those of all ranks; without slices as they are."""
        return sums

    def own(self, tensor: Tensor) -> Tensor:
        """This rank's slice; a plain tensor as it is. By one rank."""
        return tensor


ALONE = Ranks()
