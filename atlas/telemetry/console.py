"""`ConsoleSink`: a progress bar on a terminal, plain lines elsewhere, and a closing table."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from atlas.config.console import GONE, discard_output
from atlas.config.untrusted import printable
from atlas.telemetry.sinks import RunInfo, Sink

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

QUIET_EVENTS = ("self_test", "checkpoint", "end")  # not shown: a failed test refuses, the closing table tells the rest
STYLES = {"spike": "yellow", "warning": "yellow", "watch": "yellow", "rollback": "bold yellow", "error": "bold red"}
REDRAW_SECONDS = 0.2
SHOWN_OF_PROMPT = 24  # characters of the text that a sample continues
LARGEST = 1e6  # from which on a number has an exponent: a perplexity has none that says more
ESTIMATE_SECONDS = 2.0  # of steps after the first, from which the time of the whole run is told
WORTH_TELLING_SECONDS = 120.0  # of a run
SHORTEST_BAR = 4  # characters


def _number(values: Mapping[str, Any], key: str, form: str) -> str:
    value = values.get(key)
    if value is None:
        return "-"
    return format(value, form if abs(value) < LARGEST else ".3g")


def _direction(delta: float | None) -> str:
    if delta is None:
        return "-"
    return f"{'down' if delta < 0 else 'up'} {_number({'': abs(delta)}, '', '.1%')}"


def describe_values(values: Mapping[str, Any], room: int | None = None) -> str:
    """Loss and perplexity of the step, ppl_delta of the watched rows (up or down from their moving average), gate and
    speed on one line; "-" for what was not measured. With `room`, in characters, what matters least is left out until
    the rest fits; the loss stays."""
    parts = {
        "loss": f"loss {_number(values, 'loss', '.3f')}",
        "perplexity": f"ppl {_number(values, 'perplexity', '.2f')}",
        "delta": f"watched ppl {_direction(values.get('ppl_delta'))}",
        "gate": f"gate {_number(values, 'gate/mean', '.2f')} std {_number(values, 'gate/std', '.2f')}",
        "speed": f"{_number(values, 'tokens_per_second', ',.0f')} tok/s",
    }
    for name in ("gate", "delta", "perplexity", "speed"):
        if room is not None and len("  ".join(parts.values())) > room:
            del parts[name]
    return "  ".join(parts.values())


def describe_event(event: Mapping[str, Any]) -> str:
    """An event on one line: its message if it has one, else its fields."""
    if "message" in event:
        text = str(event["message"])
    elif event["kind"] == "probe":
        text = f"niah {event.get('level')} {event.get('verdict')}"
    elif event["kind"] == "sample":  # a line: the end of the prompt, and its continuation
        text = f"{event['prompt'][-SHOWN_OF_PROMPT:]!r} -> {event['text']!r}"
    else:
        hidden = ("kind", "step", "time")
        text = "  ".join(f"{key}={_short(value)}" for key, value in event.items() if key not in hidden)
    return f"step {event['step']}  {event['kind']}: {text}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe_duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as 1:02:03 or 02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


class ConsoleSink(Sink):
    """Writes to `stream` (stdout if None). A closed pipe ends the sink, not the run."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._info: RunInfo | None = None
        self._bar: _Bar | None = None
        self._clock = 0.0  # when the first step of this start began, seconds
        self._first: tuple[int, float] | None = None  # the first step that was seen, and when it ended
        self._estimated = False

    def open(self, info: RunInfo) -> str | None:
        self._info = info
        self._clock = time.perf_counter()
        self._print(f"files: {info.folder}{os.sep}")
        stream = self._output()
        if stream.isatty():
            self._bar = _Bar(stream, info)
        return None

    def progress(self, step: int, values: Mapping[str, Any]) -> None:
        self._estimate(step)
        if self._bar is not None:
            self._bar.update(step, values, self._time_left(step))

    def row(self, row: Mapping[str, Any]) -> None:
        if self._bar is None and self._info is not None:
            step, steps = row["step"], self._info.steps
            left = self._time_left(step)
            self._print(f"step {step:>{len(str(steps))}}/{steps}  {describe_values(row)}  {left} left")

    def event(self, event: Mapping[str, Any]) -> None:
        if event["kind"] not in QUIET_EVENTS:
            self._print(describe_event(event), STYLES.get(event["kind"]))

    def close(self, status: str, summary: Mapping[str, Any], table: Sequence[tuple[str, str]]) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        lines = [("status", status), *table]
        if self._info is not None:
            lines.append(("files", f"{self._info.folder}{os.sep}"))
        width = max(len(name) for name, _ in lines)
        for name, value in lines:
            self._print(f"  {name:<{width}}  {value}")

    def _time_left(self, step: int) -> str:
        if self._info is None or step <= self._info.start_step:
            return "--:--"
        seconds_per_step = (time.perf_counter() - self._clock) / (step - self._info.start_step)
        return describe_duration(seconds_per_step * (self._info.steps - step))

    def _estimate(self, step: int) -> None:
        """Tell early, and once, how long a long run takes; the first step does more than the others."""
        now = time.perf_counter()
        if self._info is None or self._estimated:
            return
        if self._first is None:
            self._first = step, now
        first, began = self._first
        if step > first and now - began >= ESTIMATE_SECONDS:
            self._estimated = True
            each, steps = (now - began) / (step - first), self._info.steps - self._info.start_step
            if each * steps >= WORTH_TELLING_SECONDS:
                whole = describe_duration(each * steps)
                self._print(f"step {step}  estimate: {whole} for {steps:,} steps, {each:.3g} s each, probes apart")

    def _output(self) -> TextIO:
        stream = sys.stdout if self._stream is None else self._stream
        if stream is None:  # how Python shows a closed stdout
            raise OSError("stdout is closed")
        return stream

    def _print(self, line: str, style: str | None = None) -> None:
        line, stream = printable(line), self._output()
        try:
            if self._bar is not None:
                self._bar.print(line, style)
            else:
                _write_line(stream, line)
        except OSError as error:
            if error.errno in GONE:
                discard_output(stream)
            raise


def _write_line(stream: TextIO, line: str) -> None:
    try:
        print(line, file=stream, flush=True)
    except UnicodeEncodeError:  # a terminal or pipe that takes ASCII only
        print(line.encode("ascii", "replace").decode(), file=stream, flush=True)


class _Bar:
    """The live line on a terminal. rich is imported here, once a run has started."""

    def __init__(self, stream: TextIO, info: RunInfo) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        counter = f"{info.steps}/{info.steps}"
        # Drawn in this thread and not in rich's own: an error of the terminal is then raised where it is handled.
        self._progress: Progress = Progress(
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=len(counter))),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.fields[values]}  {task.fields[left]} left", table_column=Column(no_wrap=True)),
            console=Console(file=stream),
            auto_refresh=False,
            expand=True,
        )
        self._beside = len(counter) + SHORTEST_BAR + 3  # characters that the values do not have
        self._task: TaskID = self._progress.add_task("", total=info.steps, completed=info.start_step)
        self._show({}, "--:--")
        self._seen: dict[str, Any] = {}  # the last known value of each metric
        self._drawn = 0.0
        self._guard(self._progress.start)

    def update(self, step: int, values: Mapping[str, Any], left: str) -> None:
        """Show the values of `step`; drawn at most every `REDRAW_SECONDS`."""
        self._seen.update({key: value for key, value in values.items() if value is not None})
        self._progress.update(self._task, completed=step)
        self._show(self._seen, left)
        now = time.perf_counter()
        if now - self._drawn >= REDRAW_SECONDS:
            self._drawn = now
            self._guard(self._progress.refresh)

    def _show(self, values: Mapping[str, Any], left: str) -> None:
        room = self._progress.console.width - self._beside - len(f"  {left} left")
        self._progress.update(self._task, values=describe_values(values, room), left=left)

    def print(self, line: str, style: str | None) -> None:
        """A line above the bar."""
        from rich.text import Text

        text = Text(line, style=style or "")  # a style given to print would colour the bar too
        self._guard(lambda: self._progress.console.print(text, soft_wrap=True))

    def stop(self) -> None:
        """Draw the last state and give the terminal back."""
        self._guard(self._progress.stop)

    def _guard(self, action: Callable[[], object]) -> None:
        try:
            action()
        except SystemExit as error:  # rich ends the program when the pipe is closed
            raise BrokenPipeError("the terminal is gone") from error
