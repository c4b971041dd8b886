import contextlib
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from atlas.telemetry.console import ConsoleSink, describe_duration, describe_event, describe_values
from atlas.telemetry.sinks import RunInfo

VALUES = {
    "loss": 2.3456,
    "perplexity": 10.4444,
    "ppl_delta": 0.0123,
    "gate/mean": 0.5,
    "gate/std": 0.125,
    "tokens_per_second": 12345.6,
}
TABLE = [("loss", "2.346"), ("validation loss", "2.5")]


def read_all(terminal: int) -> str:
    """Everything written to a pseudo-terminal whose other end is closed."""
    data = b""
    with contextlib.suppress(OSError):  # Linux says so at the end
        while piece := os.read(terminal, 1 << 16):
            data += piece
    os.close(terminal)
    return data.decode()


def test_values_and_gaps_are_shown() -> None:
    assert describe_values(VALUES) == "loss 2.346  ppl 10.44  watched ppl up 1.2%  gate 0.50 std 0.12  12,346 tok/s"
    assert describe_values({"loss": 1, "gate/mean": None}) == "loss 1.000  ppl -  watched ppl -  gate - std -  - tok/s"


def test_a_perplexity_that_falls_is_no_alarm() -> None:
    assert describe_values(VALUES | {"ppl_delta": -0.627}).startswith("loss 2.346  ppl 10.44  watched ppl down 62.7%  ")


def test_an_event_shows_its_message_or_its_fields() -> None:
    event = {"kind": "rollback", "step": 300, "time": 1.0, "to_step": 200, "ppl_delta": 0.123456}
    assert describe_event(event) == "step 300  rollback: to_step=200  ppl_delta=0.1235"
    assert describe_event({**event, "message": "back to 200"}) == "step 300  rollback: back to 200"
    sample = {"kind": "sample", "step": 9, "time": 1.0, "number": 0, "prompt": "x" * 30 + "y\n", "text": "a\tb"}
    assert describe_event(sample) == f"step 9  sample: '{'x' * 22}y\\n' -> 'a\\tb'"


def test_nothing_that_is_shown_steers_the_terminal(tmp_path: Path) -> None:
    stream = io.StringIO()
    sink = ConsoleSink(stream)
    sink.open(RunInfo(folder=tmp_path / "\x1b]0;owned\x07", steps=10))
    sink.event({"kind": "warning", "step": 1, "time": 1.0, "message": "a\x1b[2Jb\x9b\u202e"})
    sink.event({"kind": "probe", "step": 1, "time": 1.0, "level": "\x1bc", "verdict": "\r"})
    sink.close("failed", {}, [("\x08", "\x1b[31mred\ud800")])
    lines = stream.getvalue()
    assert all(letter.isprintable() or letter == "\n" for letter in lines)
    assert "\nstep 1  warning: a\ufffd[2Jb\ufffd\ufffd\nstep 1  probe: niah \ufffdc \ufffd\n" in lines


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00"), (59.6, "01:00"), (3599, "59:59"), (3723, "1:02:03")])
def test_durations(seconds: float, text: str) -> None:
    assert describe_duration(seconds) == text


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    stream = io.StringIO()
    sink = ConsoleSink(stream)
    sink.open(RunInfo(folder=tmp_path, steps=1000))
    sink.progress(99, VALUES)
    sink.row({"step": 1000, **VALUES})
    sink.event({"kind": "checkpoint", "step": 100, "time": 1.0})
    sink.event({"kind": "warning", "step": 100, "time": 1.0, "message": "the gate is flat"})
    sink.close("completed", {}, TABLE)
    assert stream.getvalue().splitlines() == [
        f"files: {tmp_path}/",
        "step 1000/1000  loss 2.346  ppl 10.44  watched ppl up 1.2%  gate 0.50 std 0.12  12,346 tok/s  00:00 left",
        "step 100  warning: the gate is flat",
        "  status           completed",
        "  loss             2.346",
        "  validation loss  2.5",
        f"  files            {tmp_path}/",
    ]


def test_a_stream_that_takes_ascii_only_gets_question_marks(tmp_path: Path) -> None:
    raw = io.BytesIO()
    sink = ConsoleSink(io.TextIOWrapper(raw, encoding="ascii"))
    sink.event({"kind": "warning", "step": 1, "time": 1.0, "message": "Größe"})
    assert raw.getvalue() == b"step 1  warning: Gr??e\n"


def test_what_matters_least_is_left_out_where_there_is_no_room() -> None:
    assert describe_values(VALUES, 76) == describe_values(VALUES)
    assert describe_values(VALUES, 75) == "loss 2.346  ppl 10.44  watched ppl up 1.2%  12,346 tok/s"
    assert describe_values(VALUES, 36) == "loss 2.346  ppl 10.44  12,346 tok/s"
    assert describe_values(VALUES, 30) == "loss 2.346  12,346 tok/s"
    assert describe_values(VALUES, 0) == "loss 2.346"


def test_a_diverged_loss_does_not_fill_the_line() -> None:
    assert describe_values({"loss": 37203.83, "perplexity": 5.54e34}).startswith(
        "loss 37203.830  ppl 5.54e+34  watched"
    )


def test_a_long_run_tells_its_time_after_a_few_steps_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("atlas.telemetry.console.time.perf_counter", lambda: now[0])
    stream = io.StringIO()
    sink = ConsoleSink(stream)
    sink.open(RunInfo(folder=tmp_path, steps=2000))
    for step, seconds in enumerate((30.0, 10.5, 10.5, 10.5), start=1):  # the first step does more
        now[0] += seconds
        sink.progress(step, VALUES)
    assert stream.getvalue().splitlines()[1:] == [
        "step 2  estimate: 5:50:00 for 2,000 steps, 10.5 s each, probes apart"
    ]


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("40", "loss 2.346"),
        ("80", "loss 2.346  ppl 10.44  watched ppl up 1.2%  12,346 tok/s"),
        ("120", "loss 2.346  ppl 10.44  watched ppl up 1.2%  gate 0.50 std 0.12  12,346 tok/s"),
    ],
)
def test_a_terminal_gets_a_bar_with_lines_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str, values: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        sink = ConsoleSink(stream)
        sink.open(RunInfo(folder=tmp_path, steps=4))
        for step in (1, 2, 3, 4):
            sink.progress(step, {"loss": float(step)} if step < 4 else VALUES)
        sink.row({"step": 4, **VALUES})
        sink.event({"kind": "rollback", "step": 4, "time": 1.0, "message": "[back] to 2"})
        sink.close("completed", {}, TABLE)
    shown = read_all(master)
    assert "4/4" in shown
    assert "00:00 left" in shown
    assert f" {values}  00:00 left" in shown
    assert "…" not in shown
    assert "step 4  rollback: [back] to 2" in shown
    assert "  validation loss  2.5" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is given back


def test_a_reader_that_goes_away_ends_the_sink_not_the_run(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from atlas.telemetry.console import ConsoleSink
from atlas.telemetry.jsonl import read_jsonl
from atlas.telemetry.logger import TelemetryLogger
from atlas.telemetry.sinks import JsonlSink, RunInfo
folder = Path(sys.argv[1])
logger = TelemetryLogger([JsonlSink(), ConsoleSink()], every=1)
logger.open(RunInfo(folder=folder, steps=50))
sys.stdin.readline()
for step in range(1, 51):
    logger.log_step(step, {"loss": 1.0})
logger.close("completed", {}, [("loss", "1")])
"""
    arguments = [sys.executable, "-c", program, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.close()
        errors = process.stderr.read()
        assert process.wait(timeout=30) == 0
    assert errors == "warning: ConsoleSink failed and is switched off: BrokenPipeError: [Errno 32] Broken pipe\n"
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 50


def test_a_closed_stdout_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OSError, match=r"^stdout is closed$"):
        ConsoleSink().open(RunInfo(folder=tmp_path, steps=10))


def test_rich_is_not_imported_before_a_run_starts() -> None:
    program = "import sys, atlas.telemetry.console; print('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
