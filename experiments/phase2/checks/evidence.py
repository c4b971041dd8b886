"""The runs that the checks are made from, each started when it is first asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.config import ConfigError
from atlas.config.composition import compose
from experiments.phase2.checks.arguments import GateArguments
from experiments.phase2.checks.commands import run_logged
from experiments.phase2.checks.decisions import DECISION_FILE, sweep_overrides
from experiments.phase2.checks.record import RunRecord
from experiments.phase2.checks.rehearsal import FAULT, rehearsal_overrides

if TYPE_CHECKING:
    from atlas.models.language_model import AtlasModel


class Evidence:
    """Runs go into `folder`, each with its log beside it; `show` gets every line that they say."""

    def __init__(self, arguments: GateArguments, folder: Path, show: Callable[[str], None]) -> None:
        self.arguments, self.folder, self.show = arguments, folder, show
        self._records: dict[str, RunRecord | Exception] = {}  # by the name of the run's folder

    @property
    def training(self) -> RunRecord:
        """The run of the configuration on trial."""
        return self._record("run", self.arguments.overrides)

    @property
    def trained(self) -> RunRecord | None:
        """The same, if it was asked for already and left a record."""
        record = self._records.get("run")
        return record if isinstance(record, RunRecord) else None

    @property
    def forced(self) -> RunRecord:
        """The small run with a spike."""
        return self._record("rehearsal", (*rehearsal_overrides(self.arguments.overrides), FAULT))

    @property
    def calm(self) -> RunRecord:
        """Its twin without."""
        return self._record("rehearsal_calm", rehearsal_overrides(self.arguments.overrides))

    def model(self) -> tuple[AtlasModel, str]:
        """The trained model, or a new one where none was trained; and which of the two it is."""
        from atlas.runs.build import build_model, load

        if self.trained is not None:
            try:
                return load(self.trained.folder)[0], "the trained model"
            except ConfigError as error:
                self.show(f"no trained model: {error}")
        return build_model(self.arguments.config), "a model with its initial weights"

    def decision(self, protocol: str) -> tuple[Mapping[str, Any] | None, str]:
        """What `experiments.phase2.decide` wrote about the protocol's sweep, or None and the reason that it told."""
        log = self.folder / f"{protocol}.log"
        sweep = self.arguments.sweeps.get(protocol)
        if sweep is None:
            sweep = self.folder / protocol
            given = sweep_overrides(protocol, self.arguments.overrides)
            status, last = self._run(["atlas.train", "-m", *given, f"hydra.sweep.dir={_quoted(sweep)}"], log)
            if status not in (0, 1):  # 1: a job failed; whether that is evidence too is for `decide` to say
                return None, f"the sweep ended with status {status}: {last}"
        written = sweep / DECISION_FILE
        written.unlink(missing_ok=True)  # an old decision is no answer
        status, last = self._run(["experiments.phase2.decide", str(sweep)], log)
        if written.is_file():
            return json.loads(written.read_text(encoding="utf-8")), ""
        return None, f"experiments.phase2.decide ended with status {status}: {last}"

    def _record(self, name: str, overrides: Sequence[str]) -> RunRecord:
        """Train once; an error is kept as well, and raised again for every check that asks for the run."""
        if name not in self._records:
            try:
                self._records[name] = self._train(name, overrides)
            except Exception as error:
                self._records[name] = error
        record = self._records[name]
        if isinstance(record, Exception):
            raise record
        return record

    def _train(self, name: str, overrides: Sequence[str]) -> RunRecord:
        folder = self.folder / name
        command = ["atlas.train", *overrides, f"hydra.run.dir={_quoted(folder)}"]
        status, _ = self._run(command, self.folder / f"{name}.log")
        return RunRecord.read(folder, status, compose(overrides))

    def _run(self, command: Sequence[str], log: Path) -> tuple[int, str]:
        """Exit status, and the last line that was said."""
        last = ""

        def show(line: str) -> None:
            nonlocal last
            last = line.strip().removeprefix("atlas: ") or last
            self.show(line)

        return run_logged(command, log, show), last


def _quoted(path: Path) -> str:
    """A path as a value of Hydra's override grammar."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
