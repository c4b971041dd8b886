"""Mirrors a run to TensorBoard: event files in RUN/tensorboard. Needs the package tensorboard (extra `tensorboard`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any

from omegaconf import OmegaConf

from atlas.config import ConfigError, with_extra
from atlas.config.values import within
from atlas.telemetry.sinks import RunInfo, Sink

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
NO_CURVES = ("step", "time")


def as_markdown(sample: Mapping[str, Any]) -> str:
    """Prompt and continuation as they are, in indented blocks."""
    return "\n\n".join(indent(part, "    ") for part in (sample["prompt"], sample["text"]))


class TensorBoardSink(Sink):
    """Every number of a row is a scalar under its name. After a rollback or a resume the curves go on from the restored
    step: TensorBoard leaves out the points that were undone. Raises `ConfigError` where the package is missing."""

    takes_pictures = True

    def __init__(self, *, flush_seconds: Annotated[int, within("[1, inf)")]) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigError(f"logger.tensorboard: must be left out, or its package be {with_extra('tensorboard')}")
        self._flush_seconds = flush_seconds
        self._folder = Path()
        self._writer: SummaryWriter | None = None

    def open(self, info: RunInfo) -> None:
        self._folder = info.folder / FOLDER
        self._start(info.start_step)
        settings = OmegaConf.to_yaml(OmegaConf.create(dict(info.config)))
        self._write_text("config", f"```yaml\n{settings}```", info.start_step)

    def _start(self, step: int) -> None:
        """Write a new file whose points replace those after `step`."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1, flush_secs=self._flush_seconds)

    def row(self, row: Mapping[str, Any]) -> None:
        if self._writer is not None:
            for key, value in row.items():
                if isinstance(value, int | float) and key not in NO_CURVES:
                    self._writer.add_scalar(key, value, row["step"], row.get("time"))

    def event(self, event: Mapping[str, Any]) -> None:
        text = event.get("verdict") or event.get("message") or event.get("reason")
        if event["kind"] == "sample":
            self._write_text(f"sample/{event['number']}", as_markdown(event), event["step"])
        elif text:
            self._write_text(event["kind"], str(text), event["step"])
        if event["kind"] == "rollback":
            self._close()
            self._start(event["step"])

    def places(self) -> list[Path]:
        return [self._folder]

    def picture(self, name: str, file: Path, step: int) -> None:
        from matplotlib.image import imread

        if self._writer is not None:
            self._writer.add_image(name, imread(file)[..., :3], step, dataformats="HWC")

    def close(self, status: str, summary: Mapping[str, Any], table: Sequence[tuple[str, str]]) -> None:
        lines = [f"| {name} | {value} |" for name, value in (("status", status), *table)]
        self._write_text("summary", "\n".join(["| | |", "|---|---|", *lines]), int(summary.get("step", 0)))
        self._close()

    def _write_text(self, name: str, text: str, step: int) -> None:
        if self._writer is not None:
            self._writer.add_text(name, text, step)

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
