"""summary.json: how a run ended, in numbers. It is written whatever happens."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from atlas.config.atomic import write_atomically
from atlas.telemetry.jsonl import plain
from atlas.telemetry.rows import last_place
from atlas.telemetry.run_files import SUMMARY_FILE, RunFiles

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SHOWN = (
    "status",
    "reason",
    "step",
    "steps",
    "tokens",
    "loss",
    "validation_loss",
    "tokens_per_second",
    "device",
    "folder",
)


@dataclass
class RunSummary:
    """`status`: completed, failed (an error) or aborted (stopped by the user or by a safeguard), with the `reason`.

    A run that was killed leaves the status `running` and the step of its start; `read_summary` calls it killed where
    that is sure, and takes the last step from the other files.
    """

    folder: str
    status: str = "running"
    reason: str = ""
    step: int = 0
    steps: int = 0
    tokens: int = 0
    segment: int = 0
    rollbacks: int = 0
    parameters: int = 0
    loss: float | None = None
    perplexity: float | None = None
    recall_loss: float | None = None
    validation_loss: float | None = None
    baseline_loss: float | None = None  # of a model without memory, and
    baseline_name: str = "bigram baseline"  # what it is
    baselines: list[dict[str, Any]] = field(default_factory=list)  # models without a memory, see `baselines.py`
    bytes_per_token: float = 1.0  # of the validation text: nats per byte are nats per token divided by it
    train_bytes_per_token: float = 1.0  # of the training text
    validation_bits_per_byte: float | None = None
    gate_mean: float | None = None
    gate_std: float | None = None
    gate_polarised: float | None = None
    tokens_per_second: float | None = None
    flops_per_token: float | None = None  # of training, counted from the settings (atlas/models/flops.py)
    peak_flops: float | None = None  # operations per second of a matrix product, measured at the end of the run
    flops_utilisation: float | None = None  # flops_per_token * tokens_per_second / peak_flops
    peak_memory_bytes: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    overhead: dict[str, float] = field(default_factory=dict)  # share of training time, per activity
    niah: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)  # of W_init; the loss jump at a reset
    local_chunks: dict[str, list[int]] = field(default_factory=dict)  # of Stage 2, by `first` and `last` step
    memory_use: dict[str, float] = field(default_factory=dict)  # loss of the watched rows: memory on, off, frozen
    watch: list[dict[str, Any]] = field(default_factory=list)  # what the watchers have found, in their order
    warnings: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)  # spikes and rollbacks, in their order
    device: str = ""
    processes: int = 1  # that train together
    versions: dict[str, str] = field(default_factory=dict)
    git: str = ""
    config_hash: str = ""
    data_digest: str = ""  # of the text that was trained on, see `Corpus.digest`
    validation_digest: str = ""  # of the first validation batch: runs with the same one can be compared by their losses
    launcher: str = ""  # of the sweep: basic (one job after the other), joblib, submitit_...; "" = a single run

    def write(self) -> None:
        """Replace the file as a whole; numbers that are not finite become null."""
        path = Path(self.folder) / SUMMARY_FILE
        path.parent.mkdir(parents=True, exist_ok=True)  # a folder that was removed while the run went on
        write_atomically(path, json.dumps(plain(asdict(self)), indent=1) + "\n")

    def take_last_step(self) -> None:
        """Take the newest step of which the run's files tell: a process that was killed could not write it here."""
        files = RunFiles(Path(self.folder), strict=False)
        places = [(row.get("segment") or 0, row.get("step")) for row in files.rows]
        tokens = {self.step: self.tokens}
        sound = [row for row in files.rows if type(row.get("step")) is type(row.get("tokens")) is int]
        tokens |= {row["step"]: row["tokens"] for row in sound}
        own = self.segment, self.step
        self.segment, self.step = last_place([own, *places], files.events, self.segment) or own
        self.tokens = tokens.get(self.step, 0)

    def metrics(self) -> Any:
        """metrics.jsonl by columns: a pandas DataFrame where pandas is installed, else a dict of numpy arrays.

        NaN = not measured; `undone` marks the rows of steps that a rollback undid.
        """
        from atlas.report.run_record import read_run

        rows = read_run(Path(self.folder), "").rows
        columns = {"step": rows.step, "segment": rows.segment, "undone": rows.undone, **rows.values}
        try:
            import pandas
        except ImportError:
            return columns
        return pandas.DataFrame(columns)

    def plot(self, *columns: str) -> Figure:
        """Columns of metrics.jsonl over the steps, by default the losses. Raises `ConfigError` for an unknown one."""
        from atlas.report.figure import run_figure

        return run_figure(Path(self.folder), columns)

    def __repr__(self) -> str:
        """How the run ended; `dataclasses.asdict` gives all of it."""
        return f"RunSummary({', '.join(f'{name}={value!r}' for name, value in self._shown())})"

    def _shown(self) -> list[tuple[str, Any]]:
        return [(name, value) for name in SHOWN if (value := getattr(self, name)) not in (None, "")]

    def _repr_html_(self) -> str:
        """In a notebook: how the run ended, in a table."""
        known = self._shown()
        known += [(f"niah {level}", result["verdict"]) for level, result in self.niah.items()]
        lines = [f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in known]
        return f"<table>{''.join(lines)}</table>"


def read_summary(folder: Path) -> RunSummary | None:
    """The summary in a run folder, wherever that lies now; None if there is none that can be read."""
    try:
        files = RunFiles(folder)
        summary = RunSummary(**{**files.summary, "folder": str(folder)})
    except (OSError, ValueError, TypeError):
        return None
    if files.status == "killed":
        summary.status = "killed"
    if not all(_fits(getattr(summary, key), kind) for key, kind in _KINDS.items()):
        return None
    if summary.status == "killed":
        summary.take_last_step()
    return summary


def _fits(value: Any, kind: Any) -> bool:
    allowed = tuple(get_origin(each) or each for each in (get_args(kind) if get_origin(kind) is UnionType else (kind,)))
    return type(value) in allowed or (float in allowed and type(value) is int)


_KINDS = get_type_hints(RunSummary)
