"""The state of a run: what a checkpoint saves, and what resume and rollback restore."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from atlas.checkpoint.snapshot import snapshot
from atlas.data.sampler import BATCHES
from atlas.models.language_model import AtlasModel, ModelState
from atlas.parallel.agreement import require_same_weights
from atlas.parallel.ranks import ALONE, Ranks
from atlas.training.early_stop import EarlyStop
from atlas.training.gate_monitor import GateMonitor
from atlas.training.optimizer import ScheduledOptimizer
from atlas.training.rng import restore_rng, rng_state, seed_rng
from atlas.training.rollback.history import History
from atlas.training.watchers.facts import Facts
from atlas.training.watchers.record import Record
from atlas.training.weight_average import AVERAGE, WeightAverage

if TYPE_CHECKING:
    from atlas.parallel.slices import Slices

POSITION = ("step", "tokens", "segment", "rollbacks", "skipped")  # attributes, one part of a checkpoint


@dataclass
class TrainState:
    """All that the rest of a run depends on. `carried`: model states of the rank's rows, with `train.carry_memory`."""

    model: AtlasModel
    optimizer: ScheduledOptimizer
    monitor: GateMonitor
    history: History
    step: int = 0  # optimiser steps done
    tokens: int = 0  # tokens trained on
    segment: int = 0  # raised by every rollback
    rollbacks: int = 0
    skipped: int = 0  # batches left out by rollbacks: step n trains on batch n + skipped
    carried: list[ModelState] = field(default_factory=list)
    data: str = ""  # digest of the text that the batches come from; "" without text
    batches: int = BATCHES  # which batches a seed gives, see `batches_of`
    average: WeightAverage | None = None  # with `train.ema`
    early_stop: EarlyStop | None = None  # with `train.patience`
    unfinished: dict[str, Any] | None = None  # of a step that a signal interrupted: its row, and whether it is measured
    record: Record = field(default_factory=lambda: Record(Facts(steps=0)))  # what the watchers judge
    ranks: Ranks = ALONE
    slices: Slices[AtlasModel] | None = None  # of the weights, with parallel.kind=fsdp

    PARTS: ClassVar[tuple[str, ...]] = ("model", "optimizer", "monitor", "history", "position", "carried", "rng")

    @property
    def stop_reason(self) -> str:
        """Why the run is over before its last step; "" where it is not."""
        return self.early_stop.reason if self.early_stop else ""

    @contextmanager
    def whole_model(self) -> Iterator[AtlasModel]:
        """The model; where it is in slices a copy with whole weights, to be read. All ranks call it together."""
        if self.slices is None:
            yield self.model
        else:
            with self.ranks.losing(), self.slices.whole_model() as copy:
                yield copy

    def require_same_weights(self, when: str) -> None:
        """Raise `RankError` where ranks have other weights than rank 0. In slices no two ranks have the same ones."""
        if self.slices is None:
            require_same_weights(self.ranks, self.model, when)

    def payload(self, *, whole: bool = True) -> dict[str, Any]:
        """The state as plain containers and tensors, the same for any number of ranks. All ranks call it together.

        `whole`: weights in slices too, otherwise they stay in slices.
        """
        carried = self.ranks.gather([pytree.tree_leaves(state) for state in self.carried])
        payload = self._payload([leaves for of_rank in carried for leaves in of_rank])
        if self.slices is None:
            return payload
        slices = self.slices
        with self.ranks.losing():
            payload["model"] = slices.saved_weights(whole=whole)
            moments = [slices.saved_moments(optimizer, whole=whole) for optimizer in self.optimizer.optimizers]
            payload["optimizer"] = {**payload["optimizer"], "optimizers": moments}
            if self.average is not None:
                payload[AVERAGE] = slices.saved_weights(self.average.weights, whole=whole)
        return payload

    def payload_alone(self) -> dict[str, Any] | None:
        """The payload without the other ranks; None where they hold a part of the state."""
        if self.ranks.world > 1 and (self.carried or self.slices is not None):
            return None
        return self._payload([pytree.tree_leaves(state) for state in self.carried])

    def _sliced(self, payload: dict[str, Any]) -> dict[str, Any]:
        """A whole payload as this rank loads it."""
        if self.slices is None:
            return payload
        slices, saved = self.slices, payload["optimizer"]
        pairs = zip(self.optimizer.optimizers, saved["optimizers"], strict=True)
        moments = [slices.of_moments(optimizer, state) for optimizer, state in pairs]
        found = {**payload, "model": slices.of_weights(payload["model"]), "optimizer": {**saved, "optimizers": moments}}
        return found | ({AVERAGE: slices.of_weights(payload[AVERAGE])} if AVERAGE in payload else {})

    def _payload(self, carried: list[list[Any]]) -> dict[str, Any]:
        payload = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "monitor": self.monitor.state_dict(),
            "history": self.history.state_dict(),
            "position": {name: getattr(self, name) for name in POSITION},
            "carried": carried,
            "rng": rng_state(),
            "data": self.data,
            "batches": self.batches,
            "watch": self.record.state_dict(),
        }
        if self.average is not None:
            payload[AVERAGE] = self.average.weights
        if self.early_stop is not None:
            payload["early_stop"] = self.early_stop.state_dict()
        return payload if self.unfinished is None else {**payload, "unfinished": self.unfinished}

    def restore(self, payload: dict[str, Any]) -> None:
        """Load a payload; training then continues bitwise. Raises `RuntimeError` for weights of another model, and any
        error for a part of another shape."""
        payload = self._sliced(payload)
        self.model.load_state_dict(payload["model"])
        self.optimizer.load_state_dict(payload["optimizer"])
        self.monitor.load_state_dict(payload["monitor"])
        self.history.load_state_dict(payload["history"])
        for name in POSITION:
            setattr(self, name, operator.index(payload["position"][name]))
        self.carried = [self._carried_state(leaves) for leaves in payload["carried"]]
        if self.average is not None and AVERAGE in payload:
            self.average.load(payload[AVERAGE])
        elif self.average is not None:
            self.average.start(self.model)
        if self.early_stop is not None:  # one that was switched on since has seen only what a rollback undoes
            self.early_stop.load_state_dict(payload.get("early_stop", EarlyStop(0).state_dict()))
        if "watch" in payload:  # older checkpoints have none
            self.record.load_state_dict(payload["watch"])
            if payload.get("data", self.data) != self.data:  # the user has accepted another text
                self.record.forget_held_out()
        self.unfinished = payload.get("unfinished")
        restore_rng(payload["rng"])  # of rank 0; each rank's generators differ
        if not self.ranks.first:
            seed_rng(int(torch.randint(2**62, ())) + self.ranks.rank)

    def unlike(self, payload: dict[str, Any]) -> str:
        """Where weights or the optimiser's tensors are not those of the payload that was restored; "" where all are."""
        return _unlike("model", payload["model"], self.model.state_dict()) or _unlike(
            "optimizer", payload["optimizer"], self.optimizer.state_dict()
        )

    def take_over(self) -> None:
        """Take over the state that rank 0 has restored: the others need not see its disk."""
        if self.ranks.world > 1:
            carried = [pytree.tree_leaves(state) for state in self.carried]
            payload = self.ranks.from_first(lambda: snapshot(self._payload(carried)))
            if not self.ranks.first:
                self.restore(payload)
            self.keep_own_rows()
            self.require_same_weights(f"before step {self.step + 1}")

    def keep_own_rows(self) -> None:
        """Of the carried rows that a payload holds, keep those that this rank trains on."""
        if self.ranks.world > 1:
            rows = [row for state in self.carried for row in state.split()]
            own = len(rows) // self.ranks.world
            self.carried = rows[self.ranks.rank * own : (self.ranks.rank + 1) * own]

    def _carried_state(self, leaves: list[Any]) -> ModelState:
        device = self.model.embedding.weight.device
        batch = next(leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor))
        _, structure = pytree.tree_flatten(self.model.initial_state(batch))
        on_device = [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        state: ModelState = pytree.tree_unflatten(on_device, structure)
        return state


def _unlike(place: str, saved: Any, now: Any) -> str:
    """The first place where a tensor of `saved` is missing in `now`, or is another one. Other values may differ."""
    if isinstance(saved, Tensor):
        if not isinstance(now, Tensor) or saved.shape != now.shape:
            return place
        found = now.detach().to(saved.device, saved.dtype)
        same = (found == saved) | (found.isnan() & saved.isnan()) if saved.is_floating_point() else found == saved
        return "" if bool(same.all()) else place
    items = saved.items() if isinstance(saved, dict) else enumerate(saved) if isinstance(saved, list | tuple) else ()
    for key, value in items:
        try:
            there = now[key]
        except (LookupError, TypeError):
            there = None
        if found_at := _unlike(f"{place}.{key}", value, there):
            return found_at
    return ""
