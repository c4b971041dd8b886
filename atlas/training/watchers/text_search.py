"""Looks for the rows of a run in the text that its data source names, in training's part and in validation's."""

from __future__ import annotations

from collections.abc import Sequence

from atlas.data.batch import Batch
from atlas.data.corpus import Corpus
from atlas.data.needles import Tokens
from atlas.training.watchers.apart import standing
from atlas.training.watchers.batch_facts import SEARCHED, places
from atlas.training.watchers.held_out import HeldOut
from atlas.training.watchers.own_files import lettered, stand_in, texts_of
from atlas.training.watchers.record import PLACES, Record

LOOKS = 100  # at most, for rows in the training text
HELD = 80  # steps of a start, at which its rows are looked for in the validation text


class TextSearch:
    """`corpus`: of the data, where there is one; `patterns`: of the files that it should have come from."""

    def __init__(self, record: Record, corpus: Corpus | None, patterns: Sequence[str]) -> None:
        self._record = record
        self._known = corpus is not None
        self._training: Tokens | None = None  # the two parts, where they are short enough to be searched
        self._validation: Tokens | None = None
        self._patterns: Sequence[str] = ()  # until the files are looked into
        self._rows: HeldOut | None = None  # of validation, where no text is known
        self._looks = 0
        if corpus is None:
            return
        if corpus.train.itemsize == 1:
            self._patterns = patterns
        if 0 < corpus.train.nbytes <= SEARCHED - corpus.validation.nbytes:
            self._training, self._validation = corpus.train, corpus.validation

    def see_validation(self, batches: Sequence[Batch], *, rows: bool) -> None:
        """Before the first step of this start. `rows`: training rows are to be compared with these, where no text is
        known."""
        if self._training is not None:
            self._record.validation_known = standing(batches[0].to("cpu"), self._training)
        if rows and not self._known:
            held_out = HeldOut([batch.to("cpu") for batch in batches])
            self._rows = held_out if held_out.compares else None

    def see_batch(self, batch: Batch) -> None:
        """Every training batch."""
        if self._rows is not None:
            self._rows.see(batch)
            self._record.validation_seen = self._rows.share

    def look(self, batch: Batch) -> None:
        """Where the rows of a batch stand; now and then."""
        record, training = self._record, self._training
        if training is not None and len(record.places) < PLACES and self._looks < LOOKS:
            record.places += places(training, batch)
            self._looks += 1
        if training is not None and self._validation is not None and record.step <= record.facts.first_step + HELD:
            record.training_held_out += standing(batch, self._validation, but_not_in=training)[0]
        if training is not None and self._patterns:
            pieces, texts = lettered(training), texts_of(self._patterns, len(training))
            record.in_files = (stand_in(texts, pieces), len(pieces)) if texts else None
        self._patterns = ()
