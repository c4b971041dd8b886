"""Perplexity of fixed validation rows: the validation loss, and the series that the spike watch reads."""

from __future__ import annotations

from hashlib import sha256
from itertools import zip_longest

import torch
from torch import Tensor

from atlas.config import require
from atlas.data.batch import Batch
from atlas.data.source import DataSource
from atlas.models.language_model import AtlasModel
from atlas.models.plan import ChunkPlan, MemoryMode
from atlas.training.evaluating import evaluating
from atlas.training.losses import mean_losses, standard_error
from atlas.training.step import TrainStep
from atlas.training.step_result import perplexity
from atlas.training.watchers.batch_facts import digest
from atlas.training.watchers.model_facts import buffers_kept, model_facts
from atlas.training.watchers.observations import MemoryUse, ModelFacts


class Evaluator:
    """Losses of validation batches, which are the same for every run on this data; `watched`: rows of the first one.

    Raises `ConfigError` where no watched target has weight: their loss would be 0 at every step.
    """

    def __init__(self, data: DataSource, step: TrainStep, batches: int, watch_rows: int) -> None:
        self.step = step
        dealt = range(step.ranks.rank, batches, step.ranks.world)
        self.batches = [data.validation(index).to(step.device) for index in dealt]  # those of this rank
        if step.ranks.first:
            first = self.batches[0]
            rows = min(watch_rows, first.inputs.shape[0])
            self.watched = Batch(*(column[:rows] for column in vars(first).values()))
            allowed = f"a source whose first {rows} validation rows have a target of weight > 0: they are watched"
            source = f"{type(data).__module__}.{type(data).__qualname__}"
            require(bool((self.watched.weights > 0).any()), "data._target_", source, allowed)

    def validation_loss(self, model: AtlasModel, plan: ChunkPlan | None = None) -> float:
        """Mean loss in nats per weighted target, with the chunks of `plan` or the model's own. The ranks share the
        batches."""
        own = [(self._loss(model, batch, plan), batch.weights.sum().item()) for batch in self.batches]
        by_round = zip_longest(*self.step.ranks.gather(own))
        known = [one for of_ranks in by_round for one in of_ranks if one is not None]
        return sum(loss * weight for loss, weight in known) / sum(weight for _, weight in known)

    def watched_perplexity(self, model: AtlasModel) -> float:
        return self.step.ranks.from_first(lambda: perplexity(self._loss(model, self.watched)))

    def memory_use(self, model: AtlasModel, step: int) -> MemoryUse:
        """Loss of the watched rows with the memory on, off, and without writes."""
        return self.step.ranks.from_first(lambda: self._memory_use(model, step))

    def _memory_use(self, model: AtlasModel, step: int) -> MemoryUse:
        modes = MemoryMode.learn, MemoryMode.off, MemoryMode.frozen
        on, off, frozen = (self._losses(model, self.watched, mode) for mode in modes)
        loss = [mean_losses(losses, self.watched).total.item() for losses in (on, off, frozen)]
        return MemoryUse(step, loss[0], loss[1], loss[2], standard_error(frozen - on, self.watched.weights))

    def mode_gap(self, model: AtlasModel) -> float:
        """Loss of the watched rows in evaluation mode minus in training mode."""
        return self.step.ranks.from_first(lambda: self._mode_gap(model))

    def _mode_gap(self, model: AtlasModel) -> float:
        with evaluating(model), self.step.autocast(), buffers_kept(model):
            losses = []
            for training in (False, True):
                read = model.train(training).read(self.watched.inputs).hidden
                losses.append(mean_losses(model.losses(read, self.watched.targets), self.watched).total.item())
        return losses[0] - losses[1]

    @property
    def rows_digest(self) -> int:
        """Of the first validation batch."""
        return self.step.ranks.from_first(lambda: digest(self.batches[0].to(torch.device("cpu"))))

    @property
    def counted_digest(self) -> str:
        """Of the first validation batch: what is read, what is predicted and what counts."""
        return self.step.ranks.from_first(lambda: _digest(self.batches[0].to(torch.device("cpu"))))

    def model_facts(self, model: AtlasModel) -> ModelFacts | str:
        """Of the first watched row; or, in words, why the model cannot be tested, which does not end a run."""
        return self.step.ranks.from_first(lambda: self._model_facts(model))

    def _model_facts(self, model: AtlasModel) -> ModelFacts | str:
        with evaluating(model), self.step.autocast():
            try:
                return model_facts(model, self.watched.inputs[:1], self.watched.targets[:1])
            except Exception as error:  # of a part of the user's that cannot be copied, or read so
                return f"{type(error).__name__}: {error}"

    def _loss(self, model: AtlasModel, batch: Batch, plan: ChunkPlan | None = None) -> float:
        return mean_losses(self._losses(model, batch, plan=plan), batch).total.item()

    def _losses(
        self, model: AtlasModel, batch: Batch, mode: MemoryMode = MemoryMode.learn, plan: ChunkPlan | None = None
    ) -> Tensor:
        """[B, T] nats."""
        with evaluating(model), self.step.autocast():
            return model.losses(model.read(batch.inputs, plan=plan, mode=mode).hidden, batch.targets)


def _digest(batch: Batch) -> str:
    columns = batch.inputs, batch.targets, batch.weights
    return sha256(b"".join(column.contiguous().numpy().tobytes() for column in columns)).hexdigest()[:16]
