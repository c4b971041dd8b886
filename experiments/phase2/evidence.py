"""The runs that the checks are made from: how each is started, and what it left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.config import ConfigError, RunConfig
from atlas.config.composition import compose, load_config
from atlas.config.keys import override_name
from atlas.runs.summary import RunSummary, read_summary
from atlas.telemetry.run_files import CONFIG_FILE, EVENTS_FILE, METRICS_FILE, RunFiles
from experiments.phase2.arguments import ExitArguments, override_group
from experiments.phase2.decide import PROTOCOLS, decide_sweeps
from experiments.phase2.decision import ProtocolDecision
from experiments.phase2.quiet import MachineClock, Quiet, read_machine, spread_between_rounds, write_machine

if TYPE_CHECKING:
    from atlas.models.language_model import AtlasModel

GRACE_SECONDS = 60.0  # for a run to save its state after it is told to stop
FAULT_STEP = 205  # when the spread of the first descent no longer widens the limit of a spike
FAULT = f"debug.inject=weights@{FAULT_STEP}"
# The rehearsal has one layer of width 32 and takes seconds. Watch, rollback and optimiser are those on trial.
SMALL = (
    "model.width=32",
    "model.layers=1",
    "model.heads=2",
    "model.feedforward=64",
    "model.memory.hidden=16",
    "model.persistent_keys=8",
    "model.window=8",
    "chunk_size.shard=32",
    "chunk_size.global_size=32",
    "chunk_size.local=[8]",
    "data=stdlib",
    "train.sequence=64",
    "train.batch_size=8",
    "train.steps=260",
    "train.validation_every=20",
    "telemetry.every=20",
    "checkpoint.every=40",
    "niah=off",
    "logger=none",
)
# Groups of the user's overrides that these runs are started with; the rest they settle themselves.
REHEARSAL_GROUPS = ("device", "rollback", "seed")
SWEEP_GROUPS = {
    "chunk_sizes": ("model", "ablation", "data", "optim", "train", "device", "seed"),
    "probe_frequency": (
        *("model", "chunk_size", "ablation", "data", "optim", "train", "niah", "rollback", "watch", "device", "seed"),
    ),
}
# Within these groups a sweep settles: for the chunk sizes the lengths that it varies, for the probes when they run.
SETTLED = {
    "chunk_sizes": ("train", "train.sequence", "train.batch_size", "train.steps", "train.validation_batches"),
    "probe_frequency": ("train.steps", "niah", "niah.enabled", "niah.every"),
}


def rehearsal_overrides(overrides: Sequence[str]) -> tuple[str, ...]:
    return (*SMALL, *(text for text in overrides if override_group(text) in REHEARSAL_GROUPS))


def sweep_overrides(protocol: str, overrides: Sequence[str]) -> tuple[str, ...]:
    """What the gate starts a protocol's sweep with."""
    experiment = next(one.experiments[0] for one in PROTOCOLS if one.name == protocol)
    groups, settled = SWEEP_GROUPS[protocol], SETTLED[protocol]
    own = (text for text in overrides if override_group(text) in groups and override_name(text) not in settled)
    return (f"experiment={experiment}", *own)


@dataclass(frozen=True)
class CheckedRun:
    """What a run left in its folder. `exit_status` is that of its process; below 0, the signal that ended it."""

    folder: Path
    exit_status: int
    config: RunConfig
    summary: RunSummary | None
    rows: Sequence[dict[str, Any]] = field(default_factory=list)
    events: Sequence[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path, exit_status: int, config: RunConfig) -> CheckedRun:
        """`config` is what the run was started with; the frozen one is used where the run wrote it.

        Raises `JsonlError` for a file that is damaged before its last line.
        """
        frozen = folder / CONFIG_FILE
        files = RunFiles(folder)
        rows = files.rows if (folder / METRICS_FILE).is_file() else []
        events = files.events if (folder / EVENTS_FILE).is_file() else []
        config = load_config(frozen, config.trust) if frozen.is_file() else config
        return cls(folder, exit_status, config, read_summary(folder), rows, events)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind, in their order."""
        return [event for event in self.events if event["kind"] == kind]

    @property
    def trouble(self) -> str:
        """Why the run did not complete; "" if it did."""
        if self.exit_status in (-9, 137):
            return "killed by the system, which does so when memory runs out"
        if self.summary is None:
            return f"exit status {self.exit_status}, no summary.json"
        if self.summary.status != "completed":
            return f"{self.summary.status} at step {self.summary.step}: {self.summary.reason or 'no reason was told'}"
        return "" if self.exit_status == 0 else f"exit status {self.exit_status} of a completed run"


class Evidence:
    """Starts each run when it is first asked for, in `folder`, with its log beside it; `show` gets its output."""

    def __init__(self, arguments: ExitArguments, folder: Path, show: Callable[[str], None]) -> None:
        self.arguments, self.folder, self.show = arguments, folder, show
        self.quiet: dict[str, Quiet] = {}  # by protocol, once its times are read
        self._load_before = os.getloadavg()[0]
        self._runs: dict[str, CheckedRun | Exception] = {}  # by the name of the run's folder

    @property
    def training(self) -> CheckedRun:
        """The run of the configuration on trial."""
        return self._run("run", self.arguments.overrides)

    @property
    def trained(self) -> CheckedRun | None:
        """The same, if it was asked for before and could be read."""
        found = self._runs.get("run")
        return found if isinstance(found, CheckedRun) else None

    @property
    def forced(self) -> CheckedRun:
        """The small run with a spike."""
        return self._run("rehearsal", (*rehearsal_overrides(self.arguments.overrides), FAULT))

    @property
    def calm(self) -> CheckedRun:
        """Its twin without."""
        return self._run("rehearsal_calm", rehearsal_overrides(self.arguments.overrides))

    def model(self) -> tuple[AtlasModel, str]:
        """The trained model, or a new one where none was trained; and which of the two it is."""
        from atlas.runs.build import build_model
        from atlas.runs.load import load

        if self.trained is not None:
            try:
                return load(self.trained.folder)[0], "the trained model"
            except ConfigError as error:
                self.show(f"no trained model: {error}")
        return build_model(self.arguments.config), "a model with its initial weights"

    def decision(self, protocol: str) -> ProtocolDecision | str:
        """The decision from the protocol's sweep, or why there is none."""
        sweep, clock = self.arguments.sweeps.get(protocol), None
        if sweep is None:
            sweep, clock = self.folder / protocol, MachineClock(self._load_before)
            given = sweep_overrides(protocol, self.arguments.overrides)
            status, last = self._command(protocol, "-m", *given, f"hydra.sweep.dir={_quoted(sweep)}")
            if status not in (0, 1):  # 1: a job failed; whether that is evidence too is for the rule to say
                return f"the sweep ended with status {status}: {last}"
        try:
            (record,) = decide_sweeps([sweep], protocol).values()
        except ConfigError as error:
            return f"the sweep is no evidence: {error}"
        machine = read_machine(sweep)
        if clock is not None:
            machine = clock.read()
            write_machine(machine, sweep)  # for a later gate that takes this sweep as evidence
        self.quiet[protocol] = Quiet(machine, spread_between_rounds(record.evidence))
        return record.decision

    def _run(self, name: str, overrides: Sequence[str]) -> CheckedRun:
        """Train once; an error is kept as well, and raised again for every check that asks for the run."""
        if name not in self._runs:
            try:
                folder = self.folder / name
                status, _ = self._command(name, *overrides, f"hydra.run.dir={_quoted(folder)}")
                self._runs[name] = CheckedRun.read(folder, status, compose(overrides))
            except Exception as error:
                self._runs[name] = error
        found = self._runs[name]
        if isinstance(found, Exception):
            raise found
        return found

    def _command(self, name: str, *arguments: str) -> tuple[int, str]:
        """Run `atlas.train` into the log of that name; returns its exit status and the last line that it said."""
        last = ""

        def show(line: str) -> None:
            nonlocal last
            last = line.strip().removeprefix("atlas: ") or last
            self.show(line)

        return run_logged(["atlas.train", *arguments], self.folder / f"{name}.log", show), last


def run_logged(command: Sequence[str], log: Path, show: Callable[[str], None]) -> int:
    """Run `python -m COMMAND`, append its output to `log` and show every line; returns the exit status.

    An interrupt first stops the command, in good order.
    """
    arguments = [sys.executable, "-u", "-m", *command]
    with log.open("a", encoding="utf-8", buffering=1) as file:
        file.write(f"$ {' '.join(['python', *arguments[2:]])}\n")
        # A session of its own: Ctrl-C reaches the exit gate alone, which passes it on once.
        with subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                for line in process.stdout or ():
                    file.write(line)
                    show(line.rstrip())
            except BaseException:
                process.terminate()
                try:
                    process.wait(GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                raise
    return process.returncode


def _quoted(path: Path) -> str:
    """A path as a value of Hydra's override grammar."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
