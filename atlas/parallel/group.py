"""The ranks of a run as a group of `torch.distributed`: gloo for agreements, gloo or NCCL for gradients."""

from __future__ import annotations

import gc
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before a group is there: it would keep the group as a default of its functions
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, ProcessGroup, Store
from torch.nn.parallel import DistributedDataParallel

from atlas.config import ConfigError
from atlas.config.exits import no_exit
from atlas.parallel.board import ENDED, REFUSED, Board
from atlas.parallel.ranks import RankError, Ranks, portable
from atlas.parallel.relay import Relay

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from atlas.parallel.slices import Model, Slices

T = TypeVar("T")
NO_LIMIT = timedelta(days=365)  # for the work of rank 0 that the others wait for


class Group(Ranks):
    """`store`: what the ranks have found each other by; it outlives any of them where torchrun keeps it."""

    def __init__(self, store: Store, rank: int, world: int, local_rank: int, timeout: timedelta) -> None:
        self.rank, self.world, self.local_rank = rank, world, local_rank
        self._store = PrefixStore("atlas", store)
        self._board = Board(self._store, rank, world)
        dist.init_process_group("gloo", store=self._store, rank=rank, world_size=world, timeout=timeout)
        dist.barrier()
        self._waiting, self._steps = _gloo(NO_LIMIT), cast(ProcessGroup, dist.group.WORLD)
        self._limit = f"parallel.start_timeout_s={timeout.total_seconds():g}"
        self._settled = self._parted = self._deciding = self._sliced = False
        self._heard: BaseException | None = None  # the last error of another rank
        self._meshes: list[DeviceMesh] = []

    def told_by_first(self, name: str, value: str) -> str:
        """The value of rank 0. Waits for no rank but that one."""
        if self.first:
            self._store.set(name, value)
        return self._store.get(name).decode()

    @property
    def lowest(self) -> bool:
        return all(self._board.runs(rank) is False for rank in range(self.rank))

    @property
    def free_to_raise(self) -> bool:
        return self._deciding

    def gather(self, value: T) -> list[T]:
        values = cast(list[T], [None] * self.world)
        with self.losing():
            dist.all_gather_object(values, value, group=self._steps)
        return values

    def gather_rows(self, rows: Tensor) -> Tensor:
        parts = [torch.empty(rows.shape, dtype=torch.float64) for _ in range(self.world)]
        with self.losing():
            dist.all_gather(parts, rows.to("cpu", torch.float64).contiguous(), group=self._steps)
        return torch.cat(parts).to(rows.device)

    def from_first(self, make: Callable[[], T]) -> T:
        if self._deciding:
            return make()
        if not self.first:
            return cast(T, self._receive())
        self._deciding = True
        try:
            with no_exit():
                value = make()
        except (Exception, KeyboardInterrupt) as error:
            if type(error) is not KeyboardInterrupt:  # that of a second signal: this rank leaves at once
                self._send(None, portable(error))
            raise
        finally:
            self._deciding = False
        self._send(value, None)
        return value

    def _send(self, value: object, error: BaseException | None) -> None:
        with self.losing():
            dist.broadcast_object_list([(value, error)], src=0, group=self._waiting)

    def _receive(self) -> object:
        answer: list[Any] = [None]
        with self.losing():
            dist.broadcast_object_list(answer, src=0, group=self._waiting)
        value, self._heard = answer[0]
        if self._heard is not None:
            raise self._heard
        return cast(object, value)

    def at_end(self, action: Callable[[], None]) -> str:
        if self._parted:
            if self.first:
                action()
            return ""
        try:
            self.from_first(action)
        except RankError as error:  # rank 0 has done what there was to do; another rank learns that from the store
            if self.first:
                self._board.write(ENDED)
            elif not self._board.has(ENDED):
                raise
            return str(error)
        return ""

    def settle(self, error: Exception | None) -> Exception | None:
        if self._settled:
            return error
        self._settled = True
        try:
            found = self.gather(None if error is None else portable(error))
        except RankError:  # rank 0 may have told of the error already, and ended
            if error is None:
                raise
            return error
        if self.first and any(one is not None for one in found):
            self._board.write(REFUSED)
        rank, first = next(((rank, one) for rank, one in enumerate(found) if one is not None), (self.rank, None))
        if first is None or rank == self.rank or str(first) == str(error):
            return error
        refused = isinstance(first, ConfigError)
        theirs = ConfigError(f"rank {rank}: {first}") if refused else RuntimeError(f"rank {rank}: {first!r}")
        self._heard = theirs
        return theirs

    def tells(self, error: BaseException) -> bool:
        own = self._parted and error is not self._heard and not isinstance(error, RankError)
        return self.first or (own and not self._board.has(REFUSED))

    def limit(self, step_timeout_s: float) -> None:
        with self.losing():  # until all are here it is the start that counts, however short a step may be
            dist.barrier()
        self._limit, timeout = f"parallel.step_timeout_s={step_timeout_s:g}", timedelta(seconds=step_timeout_s)
        with self.losing():
            self._steps = _gloo(timeout)
            # The others wait for rank 0 as long as its work takes; it waits for them no longer than for a step.
            self._waiting = _gloo(timeout if self.first else NO_LIMIT)

    def part(self, reason: str) -> None:
        if not self._parted:
            self._parted = True
            self._board.write_failure(reason)

    @contextmanager
    def losing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            self._parted = True
            here = f"step {self.step}" if self.step else "the start"
            raise self._board.explain(str(error), here, self._limit) from error

    def replicate(self, module: nn.Module, device: torch.device, *, some_unused: bool) -> nn.Module:
        if self._sliced:
            return module
        group = self._of_gradients(device)
        replica = DistributedDataParallel(
            module,
            process_group=group,
            init_sync=False,  # would hide a difference between the ranks, which agreement.py looks for
            find_unused_parameters=some_unused,
            gradient_as_bucket_view=True,
        )
        replica.register_comm_hook(group, lambda state, bucket: _sum(bucket.buffer(), state))  # DDP wants these names
        return replica

    def relay(self, parts: int) -> Relay | None:
        return Relay(self.rank % parts, parts, self._send_to, self._receive_from) if parts > 1 else None

    def _send_to(self, tensor: Tensor, neighbour: int) -> dist.Work:
        return cast(dist.Work, dist.isend(tensor, self.rank + neighbour, group=self._steps))

    def _receive_from(self, tensor: Tensor, neighbour: int) -> None:
        dist.recv(tensor, self.rank + neighbour, group=self._steps)

    @property
    def reorders(self) -> bool:
        return self.world > 2 and not self._sliced

    def _of_gradients(self, device: torch.device) -> ProcessGroup:
        return cast(ProcessGroup, dist.new_group(backend="nccl")) if device.type == "cuda" else self._steps

    def slices(self, model: Model, units: Sequence[nn.Module], device: torch.device) -> Slices[Model]:
        from torch.distributed.device_mesh import DeviceMesh  # imported late: they take a second

        from atlas.parallel.slices import Slices

        # A state that the model returns is a view of a tensor, and nothing changes it in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        self._sliced = True
        mesh = DeviceMesh.from_group(self._of_gradients(device), device.type)
        self._meshes.append(mesh)
        return Slices(model, units, mesh)

    def write_tensors(self, folder: Path, tensors: Mapping[str, Tensor]) -> str:
        from atlas.parallel.tensor_writer import write

        with self.losing():
            return write(folder, tensors, self._waiting)

    def whole(self, tensor: Tensor) -> Tensor:
        if not self._sliced:
            return tensor
        from atlas.parallel.slices import whole

        with self.losing():
            return whole(tensor)

    def sum_of_slices(self, sums: Tensor) -> Tensor:
        return self.gather_rows(sums).unflatten(0, (self.world, -1)).sum(0).to(sums.dtype) if self._sliced else sums

    def own(self, tensor: Tensor) -> Tensor:
        if not self._sliced:
            return tensor
        from atlas.parallel.slices import own

        return own(tensor)

    def apart(self, module: nn.Module) -> AbstractContextManager[None]:
        if self._sliced:
            from atlas.parallel.slices import unsummed

            return unsummed(module)
        return cast(DistributedDataParallel, module).no_sync()

    def leave(self, error: BaseException | None) -> None:
        """End the group and its threads. `error`: the exception that ends it, whose frames lose their variables.

        A thread of gloo lets go of a tensor some time after its work is done. Where the interpreter ends meanwhile, the
        process is aborted (pytorch issue 190489). torch joins these threads when nothing holds the group any more.
        """
        with suppress(RuntimeError):
            dist.destroy_process_group()
        del self._waiting, self._steps
        for mesh in self._meshes:  # caches of DTensor keep it; in torch 2.9 it has names of groups only
            getattr(mesh, "_pg_registry", {}).clear()
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
        gc.collect()  # DistributedDataParallel holds the group, and is part of cycles


@contextmanager
def meeting(timeout_s: float) -> Iterator[timedelta]:
    """Where the ranks do not find each other in this context, a `ConfigError` says so."""
    try:
        yield timedelta(seconds=timeout_s)
    except (dist.DistError, RuntimeError) as error:
        allowed = f"started together: they did not find each other within parallel.start_timeout_s={timeout_s:g}"
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConfigError(f"WORLD_SIZE={os.environ['WORLD_SIZE']}: must be {allowed} at {where}") from error


def _sum(gradients: Tensor, group: ProcessGroup) -> torch.futures.Future[Tensor]:
    """No mean: a rank has divided its losses by what the whole batch counts."""
    summed = dist.all_reduce(gradients, group=group, async_op=True).get_future()
    return cast("torch.futures.Future[Tensor]", summed.then(lambda done: done.value()[0]))


def _gloo(timeout: timedelta) -> ProcessGroup:
    return cast(ProcessGroup, dist.new_group(backend="gloo", timeout=timeout))
